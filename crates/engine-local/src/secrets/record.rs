//! Secrets on disk: one record a secret, below `secret-records/<namespace>` in the state folder.
//!
//! A record carries a version and is encrypted with the machine's key, bound to its place, so that
//! neither a copy of the folder nor a record that somebody moves tells anything. Before the first of them a secret was a file with its one value,
//! below `secrets/<namespace>`; those are taken over at the first start.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use updraft_engine::{SecretContent, SecretInfo, SecretItems, SecretOrigin, SecretValue};
use updraft_model::{Digest, ItemKey, Namespace, SecretName};
use updraft_seal::MachineKey;
use zeroize::Zeroizing;

use crate::options::OpenError;
use crate::record::folder_entries;

/// The form this code writes.
const VERSION: u32 = 1;

/// What a record's file begins with; the rest is encrypted.
const HEAD: &[u8] = b"updraft secret 1\n";

/// What the file of the digests' key is bound to.
const DIGESTS: &[u8] = b"updraft secret digests 1";

/// A file before it takes its place; no secret has such a name.
const NEW_FILE: &str = ".new";

/// The records of one instance. Changes come from one caller at a time.
#[derive(Debug)]
pub(super) struct Kept {
    records: PathBuf,
    /// Where earlier versions kept values.
    values: PathBuf,
    digests: DigestKey,
    machine: MachineKey,
}

/// The key that digests of secrets are made with.
struct DigestKey([u8; 32]);

impl std::fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DigestKey(…)")
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    origin: SecretOrigin,
    created_at: Timestamp,
    changed_at: Timestamp,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    items: BTreeMap<ItemKey, String>,
}

/// When a secret was made and changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    created_at: Timestamp,
    changed_at: Timestamp,
}

impl Kept {
    pub(super) fn open(state: &Path, machine_key: &Path) -> Result<Self, OpenError> {
        let machine = MachineKey::open(machine_key, true).map_err(|error| {
            let (path, reason) = (machine_key.to_owned(), chain(&error));
            OpenError::Record { path, reason }
        })?;
        let records = state.join("secret-records");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&records)
            .map_err(OpenError::file("create", &records))?;
        let key = state.join("secret-digests.key");
        let digests = DigestKey::open(&key, &machine).map_err(OpenError::file("read", &key))?;
        Ok(Self { records, values: state.join("secrets"), digests, machine })
    }

    fn folder(&self, namespace: &Namespace) -> PathBuf {
        self.records.join(namespace.as_str())
    }

    /// Everything that may be told. A record that cannot be read is told in the log and counts as
    /// absent: what needs it waits until it is put anew.
    pub(super) fn load(&self) -> Result<BTreeMap<(Namespace, SecretName), SecretInfo>, OpenError> {
        let mut all = BTreeMap::new();
        for (namespace, name, path) in named_files(&self.records)? {
            match self.read(&namespace, &name) {
                Ok((content, times)) => {
                    let mut info = self.describe(&name, &content, None, times.changed_at);
                    info.created_at = times.created_at;
                    all.insert((namespace, name), info);
                }
                Err(error) => {
                    let path = path.display();
                    tracing::error!(%error, %path, "a secret cannot be read, set it again");
                }
            }
        }
        Ok(all)
    }

    pub(super) fn describe(
        &self,
        name: &SecretName,
        content: &SecretContent,
        before: Option<&SecretInfo>,
        now: Timestamp,
    ) -> SecretInfo {
        SecretInfo::of(name, content, before, now, |text| self.digests.of(text))
    }

    pub(super) fn read(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> io::Result<(SecretContent, Times)> {
        let bytes = fs::read(self.folder(namespace).join(name.as_str()))?;
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text);
        let sealed = bytes
            .strip_prefix(HEAD)
            .ok_or_else(|| invalid("it is no secret of this version of Updraft"))?;
        let plain = self
            .machine
            .decrypt(&about(namespace, name), sealed)
            .ok_or_else(|| invalid("it is damaged, or was written with another machine key"))?;
        let record: Record = serde_json::from_slice(&plain)?;
        if record.version != VERSION {
            let text = format!(
                "its version is {}, this Updraft knows {VERSION}; is it an older one?",
                record.version
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let item = |(key, value): (ItemKey, String)| {
            let value = STANDARD.decode(value).map_err(io::Error::other)?;
            io::Result::Ok((key, SecretValue::new(value)))
        };
        let items: SecretItems = record.items.into_iter().map(item).collect::<Result<_, _>>()?;
        let Record { origin, created_at, changed_at, kind, labels, annotations, .. } = record;
        let content = SecretContent { items, kind, labels, annotations, origin };
        Ok((content, Times { created_at, changed_at }))
    }

    /// Replaces a record as a whole, durably.
    pub(super) fn write(
        &self,
        namespace: &Namespace,
        name: &SecretName,
        content: &SecretContent,
        info: &SecretInfo,
    ) -> io::Result<()> {
        let item =
            |(key, value): (&ItemKey, &SecretValue)| (key.clone(), STANDARD.encode(value.expose()));
        let record = Record {
            version: VERSION,
            origin: content.origin.clone(),
            created_at: info.created_at,
            changed_at: info.changed_at,
            kind: content.kind.clone(),
            labels: content.labels.clone(),
            annotations: content.annotations.clone(),
            items: content.items.iter().map(item).collect(),
        };
        let folder = self.folder(namespace);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let plain = Zeroizing::new(serde_json::to_vec(&record)?);
        let sealed = self.machine.encrypt(&about(namespace, name), &plain)?;
        replace(&folder, name.as_str(), &[HEAD, &sealed].concat())
    }

    pub(super) fn remove(&self, namespace: &Namespace, name: &SecretName) -> io::Result<()> {
        let folder = self.folder(namespace);
        fs::remove_file(folder.join(name.as_str()))?;
        File::open(folder)?.sync_all()
    }

    pub(super) fn remove_namespace(&self, namespace: &Namespace) -> io::Result<()> {
        match fs::remove_dir_all(self.folder(namespace)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes records of the values that an earlier version kept. Tells what that version called
    /// each: the plain digest of its value. May be cut short and done again.
    pub(super) fn take_over(&self) -> Result<BTreeMap<(Namespace, SecretName), Digest>, OpenError> {
        let mut taken = BTreeMap::new();
        for (namespace, name, path) in named_files(&self.values)? {
            let read = OpenError::file("read", &path);
            let value = fs::read(&path).map_err(read)?;
            let changed = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let changed = changed.ok().and_then(|time| Timestamp::try_from(time).ok());
            let digest = Digest::from_bytes(Sha256::digest(&value).into());
            let items = SecretItems::single(&name, SecretValue::new(value));
            let content = SecretContent::by_hand(items);
            let now = changed.unwrap_or_else(Timestamp::now);
            let info = self.describe(&name, &content, None, now);
            self.write(&namespace, &name, &content, &info)
                .map_err(OpenError::file("take over", &path))?;
            taken.insert((namespace, name), digest);
        }
        // Only now: what is not written yet is still there after a crash.
        match fs::remove_dir_all(&self.values) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(OpenError::file("remove", &self.values)(error));
            }
            _ => {}
        }
        Ok(taken)
    }
}

/// The files below `<folder>/<namespace>` that have the name of a secret; others are leftovers of
/// interrupted writes.
fn named_files(folder: &Path) -> Result<Vec<(Namespace, SecretName, PathBuf)>, OpenError> {
    let name_of = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let mut all = Vec::new();
    for inner in folder_entries(folder)? {
        let Some(namespace) = name_of(&inner).and_then(|name| Namespace::new(name).ok()) else {
            continue;
        };
        for path in folder_entries(&inner)? {
            if let Some(name) = name_of(&path).and_then(|name| SecretName::new(name).ok()) {
                all.push((namespace.clone(), name, path));
            }
        }
    }
    Ok(all)
}

/// What a record is bound to.
fn about(namespace: &Namespace, name: &SecretName) -> Vec<u8> {
    let mut about = HEAD.to_vec();
    about.extend(format!("{namespace}/{name}").into_bytes());
    about
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Replaces a file of a folder, for its owner's eyes alone from its first byte on.
fn replace(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = folder.join(NEW_FILE);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, folder.join(name))?;
    File::open(folder)?.sync_all()
}

impl DigestKey {
    /// Reads the key; makes it when there is none, or none that this machine can read.
    fn open(path: &Path, machine: &MachineKey) -> io::Result<Self> {
        let sealed = match fs::read(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            read => read.ok(),
        };
        let known = sealed.as_ref().and_then(|sealed| machine.decrypt(DIGESTS, sealed));
        if let Some(key) = known.and_then(|key| <[u8; 32]>::try_from(key.as_slice()).ok()) {
            return Ok(Self(key));
        }
        if sealed.is_some() {
            let path = path.display();
            tracing::warn!(%path, "cannot be read with this machine key, digests change once");
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        replace(folder, &name, &machine.encrypt(DIGESTS, &key)?)?;
        Ok(Self(key))
    }

    fn of(&self, text: &[u8]) -> Digest {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0)
            .unwrap_or_else(|error| unreachable!("a key may have any length: {error}"));
        mac.update(text);
        Digest::from_bytes(mac.finalize().into_bytes().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As written by the first version of records; kept for ever.
    const RECORD_V1: &str = r#"{
        "version": 1,
        "origin": {
            "from": "sealed",
            "owner": "alice",
            "repository": "shop",
            "commit": "04b8e449881cee29b2e6a9fbb8e53b9e4b4cb0ac",
            "file": "secrets.yml"
        },
        "created_at": "2026-11-21T03:00:00Z",
        "changed_at": "2026-11-21T04:00:00Z",
        "kind": "Opaque",
        "labels": { "app": "shop" },
        "annotations": {},
        "items": { "password": "aHVudGVyMg==", "user": "" }
    }"#;

    fn kept_in(state: &Path) -> Kept {
        Kept::open(state, &state.join("machine-key")).unwrap()
    }

    fn place() -> (Namespace, SecretName) {
        (Namespace::default(), SecretName::new("alice-db").unwrap())
    }

    #[test]
    fn records_of_the_first_version_are_read_and_a_later_one_is_told_and_left_out() {
        let state = tempfile::tempdir().unwrap();
        let kept = kept_in(state.path());
        let folder = state.path().join("secret-records/openfaas-fn");
        fs::create_dir(&folder).unwrap();
        let write = |name: &str, record: &str| {
            let about = about(&Namespace::default(), &SecretName::new(name).unwrap());
            let sealed = kept.machine.encrypt(&about, record.as_bytes()).unwrap();
            fs::write(folder.join(name), [HEAD, &sealed].concat()).unwrap();
        };
        write("alice-db", RECORD_V1);
        write("later", &RECORD_V1.replace(r#""version": 1"#, r#""version": 2"#));
        // Moved by somebody who may write the folder: it is bound to its place.
        fs::copy(folder.join("alice-db"), folder.join("bob-db")).unwrap();
        fs::write(folder.join("plain"), RECORD_V1).unwrap();
        fs::write(folder.join(NEW_FILE), "{").unwrap();
        let all = kept.load().unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        let info = &all[&place()];
        assert_eq!(info.items["password"].bytes, 7);
        assert_eq!(info.created_at.to_string(), "2026-11-21T03:00:00Z");
        assert_eq!(info.changed_at.to_string(), "2026-11-21T04:00:00Z");
        let (namespace, name) = place();
        let (content, _) = kept.read(&namespace, &name).unwrap();
        assert_eq!(content.items.get("password").unwrap().expose(), b"hunter2");
        assert!(matches!(content.origin, SecretOrigin::Sealed { .. }));
        // The same key is found again, and so the same digests.
        assert_eq!(kept_in(state.path()).load().unwrap(), all);
    }

    #[test]
    fn nothing_on_the_disk_holds_a_value() {
        let state = tempfile::tempdir().unwrap();
        let kept = kept_in(state.path());
        let (namespace, name) = place();
        let items = SecretItems::single(&name, SecretValue::new("hunter2-hunter2"));
        let content = SecretContent::by_hand(items);
        let info = kept.describe(&name, &content, None, Timestamp::UNIX_EPOCH);
        kept.write(&namespace, &name, &content, &info).unwrap();
        let bytes = fs::read(kept.folder(&namespace).join(name.as_str())).unwrap();
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!holds(b"hunter2"));
        assert!(!holds(&STANDARD.encode("hunter2-hunter2").as_bytes()[..8]));
        // Another machine key opens nothing, and says so.
        fs::remove_file(state.path().join("machine-key")).unwrap();
        let other = kept_in(state.path());
        let error = other.read(&namespace, &name).unwrap_err().to_string();
        assert!(error.contains("another machine key"), "{error}");
        assert!(other.load().unwrap().is_empty());
    }

    #[test]
    fn a_digest_does_not_tell_a_value_that_can_be_guessed() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let digest = |state: &Path| {
            let (_, name) = place();
            let items = SecretItems::single(&name, SecretValue::new("1234"));
            let content = SecretContent::by_hand(items);
            let kept = kept_in(state);
            kept.describe(&name, &content, None, Timestamp::UNIX_EPOCH).digest
        };
        assert_eq!(digest(one.path()), digest(one.path()));
        assert_ne!(digest(one.path()), digest(other.path()));
    }

    #[test]
    fn values_that_an_earlier_version_kept_in_files_become_records() {
        let state = tempfile::tempdir().unwrap();
        let values = state.path().join("secrets/openfaas-fn");
        fs::create_dir_all(&values).unwrap();
        fs::write(values.join("alice-db"), [0, 255, 10]).unwrap();
        fs::write(values.join(".alice-db.new"), "half").unwrap();
        let kept = kept_in(state.path());
        let taken = kept.take_over().unwrap();
        let plain = Digest::from_bytes(Sha256::digest([0, 255, 10]).into());
        assert_eq!(taken, BTreeMap::from([(place(), plain)]));
        let (namespace, name) = place();
        let (content, _) = kept.read(&namespace, &name).unwrap();
        assert_eq!(
            content,
            SecretContent::by_hand(SecretItems::single(&name, SecretValue::new([0, 255, 10]),))
        );
        assert!(!state.path().join("secrets").is_dir());
        assert!(kept.take_over().unwrap().is_empty());
    }
}
