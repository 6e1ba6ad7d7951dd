//! What is desired, on disk: one JSON file per function below the state folder, and what each
//! running replica is, one file below the volatile folder.
//!
//! Both forms carry a version. A file is replaced as a whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use updraft_engine::Revision;
use updraft_model::{Digest, FunctionId, FunctionSpec, SecretName};

use crate::options::OpenError;

/// The form this code writes, for both kinds of record.
const VERSION: u32 = 1;

/// One revision of a function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RevisionRecord {
    pub(crate) revision: Revision,
    pub(crate) spec: FunctionSpec,
    /// The image's content, once it was looked up; replicas of one revision share it.
    #[serde(default)]
    pub(crate) image: Option<Digest>,
    /// What the secrets held when the spec was applied, as digests, so that the same spec with
    /// other secrets is a change.
    #[serde(default)]
    pub(crate) secrets: BTreeMap<SecretName, Digest>,
    /// A replica of it was ready once.
    #[serde(default)]
    pub(crate) proven: bool,
}

/// What is desired of a function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FunctionRecord {
    pub(crate) version: u32,
    pub(crate) created_at: Timestamp,
    /// The newest revision number given out.
    pub(crate) newest: Revision,
    /// Replicas desired.
    pub(crate) replicas: u32,
    /// The revision that takes traffic.
    pub(crate) serving: RevisionRecord,
    /// The revision that is being rolled out.
    #[serde(default)]
    pub(crate) candidate: Option<RevisionRecord>,
    /// The function slept when the roll-out began and nobody asked for it since: when the
    /// roll-out is given up it sleeps again.
    #[serde(default)]
    pub(crate) woken: bool,
    /// Why the newest revision was given up, until the next one.
    #[serde(default)]
    pub(crate) given_up: Option<GivenUp>,
}

/// A revision that did not become ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GivenUp {
    pub(crate) revision: Revision,
    pub(crate) reason: String,
    pub(crate) log_tail: Vec<String>,
}

impl FunctionRecord {
    pub(crate) fn new(serving: RevisionRecord, replicas: u32, now: Timestamp) -> Self {
        Self {
            version: VERSION,
            created_at: now,
            newest: serving.revision,
            replicas,
            serving,
            candidate: None,
            woken: false,
            given_up: None,
        }
    }

    /// The revision that clients see: the one being rolled out, else the one that serves.
    pub(crate) fn shown(&self) -> &RevisionRecord {
        self.candidate.as_ref().unwrap_or(&self.serving)
    }
}

/// Whether a write must survive a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// A specification: acknowledged only when it is on disk.
    Synced,
    /// A replica count: whole on disk, but an older one may come back after a power failure.
    /// A wake-up does not wait for the disk.
    Written,
}

/// The function records of one instance.
#[derive(Debug)]
pub(crate) struct RecordStore {
    folder: PathBuf,
}

impl RecordStore {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn path(&self, id: &FunctionId) -> PathBuf {
        self.folder.join(id.namespace.as_str()).join(format!("{}.json", id.name))
    }

    pub(crate) fn save(
        &self,
        id: &FunctionId,
        record: &FunctionRecord,
        durability: Durability,
    ) -> io::Result<()> {
        let path = self.path(id);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let bytes = serde_json::to_vec_pretty(record)?;
        match durability {
            Durability::Synced => beside_others(|| write_atomically(&path, &bytes, true)),
            Durability::Written => write_atomically(&path, &bytes, false),
        }
    }

    pub(crate) fn remove(&self, id: &FunctionId) -> io::Result<()> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => path.parent().map_or(Ok(()), |folder| beside_others(|| sync_folder(folder))),
        }
    }

    /// Every record, with the function it is of.
    pub(crate) fn load(&self) -> Result<Vec<(FunctionId, FunctionRecord)>, OpenError> {
        let mut all = Vec::new();
        for namespace in folder_entries(&self.folder)? {
            for path in folder_entries(&namespace)? {
                if path.extension().is_none_or(|extension| extension != "json") {
                    continue;
                }
                let bytes = fs::read(&path).map_err(OpenError::file("read", &path))?;
                let wrong = |reason: String| OpenError::Record { path: path.clone(), reason };
                let record: FunctionRecord =
                    serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
                if record.version != VERSION {
                    let found = record.version;
                    return Err(wrong(format!(
                        "its version is {found}, this Updraft knows {VERSION}; is it an older one?"
                    )));
                }
                all.push((record.serving.spec.id.clone(), record));
            }
        }
        Ok(all)
    }
}

/// What a running replica is, so that the next start of Updraft can adopt it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReplicaRecord {
    pub(crate) version: u32,
    /// The machine's boot in which it was started; after another one it cannot run any more.
    pub(crate) boot: String,
    pub(crate) function: FunctionId,
    pub(crate) revision: Revision,
    pub(crate) address: Ipv4Addr,
    /// User and group that own its secret files.
    pub(crate) owner: (u32, u32),
    /// The first process, once it runs: its id and when it started, in clock ticks since boot.
    #[serde(default)]
    pub(crate) process: Option<(i32, u64)>,
    /// It answered its readiness probe.
    #[serde(default)]
    pub(crate) ready: bool,
}

impl ReplicaRecord {
    pub(crate) fn new(
        boot: &str,
        function: FunctionId,
        revision: Revision,
        address: Ipv4Addr,
        owner: (u32, u32),
    ) -> Self {
        let boot = boot.to_owned();
        Self {
            version: VERSION,
            boot,
            function,
            revision,
            address,
            owner,
            process: None,
            ready: false,
        }
    }

    /// Writes it into the replica's folder.
    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        write_atomically(&folder.join("replica.json"), &serde_json::to_vec(self)?, false)
    }

    /// Reads it from a replica's folder; nothing when it is missing or of another version.
    pub(crate) fn load(folder: &Path) -> Option<Self> {
        let bytes = fs::read(folder.join("replica.json")).ok()?;
        serde_json::from_slice::<Self>(&bytes).ok().filter(|record| record.version == VERSION)
    }
}

/// The paths in a folder; none when there is no folder.
pub(crate) fn folder_entries(folder: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(OpenError::file("read", folder)(error)),
    };
    let paths: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    paths.map_err(OpenError::file("read", folder))
}

/// Replaces a file as a whole: a reader sees the old bytes or the new ones.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // A leading dot and another ending keep a leftover of a crash from being read as a record.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if sync { sync_folder(folder) } else { Ok(()) }
}

/// Does work that waits for the disk without holding up other tasks of this thread, where the
/// async runtime has other threads.
pub(crate) fn beside_others<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As written by the first version; kept for ever.
    const FUNCTION_V1: &str = r#"{
        "version": 1,
        "created_at": "2026-11-21T03:00:00Z",
        "newest": 4,
        "replicas": 2,
        "serving": {
            "revision": 3,
            "spec": {
                "id": { "namespace": "openfaas-fn", "name": "demo-hello" },
                "image": "localhost/demo/hello:1",
                "secrets": ["token"],
                "read_only_root": true
            },
            "image": "sha256:0101010101010101010101010101010101010101010101010101010101010101",
            "secrets": {
                "token": "sha256:0202020202020202020202020202020202020202020202020202020202020202"
            },
            "proven": true
        },
        "candidate": null,
        "woken": false,
        "given_up": { "revision": 4, "reason": "replica exited with code 1", "log_tail": ["x"] }
    }"#;

    const REPLICA_V1: &str = r#"{
        "version": 1,
        "boot": "b",
        "function": { "namespace": "openfaas-fn", "name": "demo-hello" },
        "revision": 3,
        "address": "10.64.0.2",
        "owner": [100, 101],
        "process": [4711, 123456],
        "ready": true
    }"#;

    #[test]
    fn records_of_the_first_version_are_read() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("openfaas-fn");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("demo-hello.json"), FUNCTION_V1).unwrap();
        // What a crash in the middle of a write leaves is no record.
        fs::write(folder.join(".demo-hello.json.new"), "{").unwrap();
        let store = RecordStore::new(state.path().to_owned());
        let all = store.load().unwrap();
        let [(id, record)] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!(id.to_string(), "demo-hello.openfaas-fn");
        assert_eq!((record.newest, record.serving.revision), (Revision(4), Revision(3)));
        store.save(id, record, Durability::Synced).unwrap();
        assert_eq!(store.load().unwrap(), all);
        store.remove(id).unwrap();
        assert!(store.load().unwrap().is_empty());

        fs::write(state.path().join("replica.json"), REPLICA_V1).unwrap();
        let replica = ReplicaRecord::load(state.path()).unwrap();
        assert_eq!(replica.process, Some((4711, 123_456)));
    }

    #[test]
    fn a_record_of_a_later_version_is_refused_by_name() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("openfaas-fn");
        fs::create_dir(&folder).unwrap();
        let later = FUNCTION_V1.replace("\"version\": 1", "\"version\": 2");
        fs::write(folder.join("demo-hello.json"), later).unwrap();
        let error = RecordStore::new(state.path().to_owned()).load().unwrap_err().to_string();
        assert!(error.contains("demo-hello.json") && error.contains("version is 2"), "{error}");
    }
}
