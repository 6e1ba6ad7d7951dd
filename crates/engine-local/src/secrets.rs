//! Secrets: kept on disk for the engine alone, copied into memory for the replicas that mount
//! them.
//!
//! What may be told of them is held in memory, so that nothing asks the disk but the start of a
//! replica that needs the values. A record on disk is replaced as a whole or not at all
//! ([`record`]); so is the set of files that a running replica sees ([`mounted`]).

mod mounted;
mod record;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use nix::mount::{MsFlags, mount};
use updraft_engine::{
    EngineError, PutSecret, SecretChange, SecretContent, SecretInfo, SecretItems,
};
use updraft_model::{Digest, ItemKey, Namespace, SecretName, Tenant};

use crate::options::{LocalEngineOptions, OpenError};
use crate::record::beside_others;
use record::Kept;

/// Room for the copies of all replicas. What tenants have of it is bounded by [`TENANT_ROOM`], so
/// this is only there for a machine with very many that all want much.
const MOUNT_OPTIONS: &str = "mode=0700,size=25%";

/// Most memory for the copies that one tenant's replicas have, in bytes: enough for four thousand
/// small secrets, and no more than one tenant's part of the machine.
const TENANT_ROOM: u64 = 16 << 20;

/// Memory is given in pages of no less.
const PAGE: u64 = 4096;

/// How long a reader may be on its way from a link to its file.
const READERS_LIMIT: Duration = Duration::from_secs(1);

/// Types of secrets that are credentials for a registry: nothing of them is mounted.
const PULL_KINDS: [&str; 2] = ["kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg"];

/// The secrets of one instance.
#[derive(Debug)]
pub(crate) struct SecretStore {
    kept: Kept,
    mounted: PathBuf,
    /// What may be told. Held while one is changed, so that of two changes one comes first on
    /// disk, in memory and in every replica.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    secrets: BTreeMap<(Namespace, SecretName), SecretInfo>,
    /// Replicas that have a folder of secrets.
    holders: BTreeMap<String, Holder>,
}

/// A replica that has a folder of secrets.
#[derive(Debug)]
struct Holder {
    copies: Copies,
    /// Memory that they take, in bytes.
    room: u64,
}

/// Which secrets a replica has copies of, and whose they are.
#[derive(Debug, Clone)]
pub(crate) struct Copies {
    /// Whose replica it is; nobody's when an Updraft that knew no tenants started it.
    pub(crate) tenant: Option<Tenant>,
    pub(crate) namespace: Namespace,
    pub(crate) names: Vec<SecretName>,
    /// User and group that own its files.
    pub(crate) owner: (u32, u32),
}

impl State {
    /// Memory for copies of these secrets. With `instead` that one counts as if it were so.
    fn room(&self, copies: &Copies, instead: Option<&SecretInfo>) -> u64 {
        let secrets = copies.names.iter().filter_map(|name| match instead {
            Some(info) if info.name == *name => Some(info),
            _ => self.secrets.get(&(copies.namespace.clone(), name.clone())),
        });
        let shown = secrets.filter(|info| !is_pull_kind(info.kind.as_deref()));
        let items = shown.flat_map(|info| info.items.values());
        items.map(|item| (item.bytes as u64).max(1).next_multiple_of(PAGE)).sum()
    }

    /// Memory for the copies of a tenant's replicas, but for those of `except`.
    fn room_of(&self, tenant: Option<&Tenant>, except: &str) -> u64 {
        let holders = self.holders.iter().filter(|(replica, _)| *replica != except);
        let own = holders.filter(|(_, holder)| holder.copies.tenant.as_ref() == tenant);
        own.map(|(_, holder)| holder.room).sum()
    }
}

/// Refuses a tenant more memory for copies than its part.
fn check_room(tenant: Option<&Tenant>, room: u64) -> Result<(), String> {
    if room <= TENANT_ROOM {
        return Ok(());
    }
    let whose = tenant.map_or_else(|| "no tenant".to_owned(), |tenant| format!("`{tenant}`"));
    Err(format!(
        "the replicas of {whose} would have {} MiB of secrets in memory, {} MiB are allowed: give \
         functions fewer or smaller secrets, or run fewer replicas of them",
        room.div_ceil(1 << 20),
        TENANT_ROOM >> 20
    ))
}

/// What the start of an engine found among the secrets of an earlier version.
#[derive(Debug, Default)]
pub(crate) struct Migrated(BTreeMap<(Namespace, SecretName), Digest>);

impl Migrated {
    /// Whether a digest that an earlier version noted is of what the secret holds now.
    pub(crate) fn is_current(
        &self,
        namespace: &Namespace,
        name: &SecretName,
        old: &Digest,
    ) -> bool {
        self.0.get(&(namespace.clone(), name.clone())) == Some(old)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl SecretStore {
    /// Makes the folders, and the memory file system unless it is there; reads what is kept, and
    /// takes over what an earlier version kept.
    pub(crate) fn open(options: &LocalEngineOptions) -> Result<(Self, Migrated), OpenError> {
        let (store, migrated) = Self::in_folders(options)?;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&store.mounted).map_err(OpenError::file("create", &store.mounted))?;
        let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        if is_mount_point(&store.mounted) {
            // That of an earlier run, which may have had other room.
            flags |= MsFlags::MS_REMOUNT;
        }
        mount(Some("tmpfs"), &store.mounted, Some("tmpfs"), flags, Some(MOUNT_OPTIONS))
            .map_err(io::Error::from)
            .map_err(OpenError::file("mount memory on", &store.mounted))?;
        Ok((store, migrated))
    }

    /// The store where the options say, without the memory file system.
    pub(crate) fn in_folders(options: &LocalEngineOptions) -> Result<(Self, Migrated), OpenError> {
        let kept = Kept::open(&options.state, &options.machine_key)?;
        let migrated = Migrated(kept.take_over()?);
        let secrets = kept.load()?;
        let state = Mutex::new(State { secrets, holders: BTreeMap::new() });
        Ok((Self { kept, mounted: options.mounted_secrets(), state }, migrated))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may be told of a namespace's secrets, by name.
    pub(crate) fn list(&self, namespace: &Namespace) -> Vec<SecretInfo> {
        let state = self.state();
        let here = state.secrets.iter().filter(|((place, _), _)| place == namespace);
        here.map(|(_, info)| info.clone()).collect()
    }

    pub(crate) fn info(&self, namespace: &Namespace, name: &SecretName) -> Option<SecretInfo> {
        self.state().secrets.get(&(namespace.clone(), name.clone())).cloned()
    }

    /// The kept items.
    pub(crate) fn read(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<SecretItems, EngineError> {
        self.kept
            .read(namespace, name)
            .map(|(content, _)| content.items)
            .map_err(|error| EngineError::engine(format!("read secret `{name}`"), error))
    }

    /// Keeps items, durably, and gives them to the replicas that mount the secret.
    pub(crate) fn put(
        &self,
        namespace: &Namespace,
        name: &SecretName,
        content: &SecretContent,
        put: PutSecret,
    ) -> Result<SecretChange, EngineError> {
        content.check(name)?;
        let mut state = self.state();
        let key = (namespace.clone(), name.clone());
        let before = state.secrets.get(&key);
        match (put, before) {
            (PutSecret::New, Some(_)) => {
                return Err(EngineError::SecretExists { namespace: key.0, name: key.1 });
            }
            (PutSecret::Existing, None) => {
                return Err(EngineError::UnknownSecret { namespace: key.0, name: key.1 });
            }
            _ => {}
        }
        let info = self.kept.describe(name, content, before, Timestamp::now());
        let change = info.change(before);
        if before == Some(&info) {
            return Ok(change);
        }
        let rooms = Self::check_change(&state, namespace, &info)?;
        beside_others(|| self.kept.write(namespace, name, content, &info))
            .map_err(|error| EngineError::engine(format!("keep secret `{name}`"), error))?;
        state.secrets.insert(key, info);
        if change == SecretChange::Unchanged {
            return Ok(change);
        }
        let mut before = Vec::new();
        for (replica, room) in rooms {
            let Some(holder) = state.holders.get_mut(&replica) else { continue };
            holder.room = room;
            let folder = self.replica_folder(&replica);
            let shown = shown(content);
            match mounted::place(&folder, name, shown, holder.copies.owner) {
                // It has ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let doing = format!("update secret `{name}` in replica `{replica}`");
                    return Err(EngineError::engine(doing, error));
                }
                Ok(replaced) => before.extend(replaced),
            }
        }
        remove_soon(before);
        Ok(change)
    }

    /// The replicas that mount a secret, with the memory that their copies take once it is so.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] when that were more than a tenant may have.
    fn check_change(
        state: &State,
        namespace: &Namespace,
        info: &SecretInfo,
    ) -> Result<BTreeMap<String, u64>, EngineError> {
        let mounts =
            |copies: &Copies| copies.namespace == *namespace && copies.names.contains(&info.name);
        let holders = state.holders.iter().filter(|(_, holder)| mounts(&holder.copies));
        let mut rooms = BTreeMap::new();
        let mut grown: BTreeMap<Option<&Tenant>, i128> = BTreeMap::new();
        for (replica, holder) in holders {
            let room = state.room(&holder.copies, Some(info));
            *grown.entry(holder.copies.tenant.as_ref()).or_default() +=
                i128::from(room) - i128::from(holder.room);
            rooms.insert(replica.clone(), room);
        }
        for (tenant, grown) in grown {
            // Less than before is always welcome.
            let room = i128::from(state.room_of(tenant, "")) + grown;
            if grown > 0 {
                check_room(tenant, u64::try_from(room).unwrap_or(0))
                    .map_err(EngineError::Invalid)?;
            }
        }
        Ok(rooms)
    }

    pub(crate) fn remove(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<(), EngineError> {
        let mut state = self.state();
        let key = (namespace.clone(), name.clone());
        if !state.secrets.contains_key(&key) {
            return Err(EngineError::UnknownSecret { namespace: key.0, name: key.1 });
        }
        beside_others(|| self.kept.remove(namespace, name))
            .map_err(|error| EngineError::engine(format!("remove secret `{name}`"), error))?;
        state.secrets.remove(&key);
        Ok(())
    }

    pub(crate) fn remove_namespace(&self, namespace: &Namespace) -> io::Result<()> {
        let mut state = self.state();
        self.kept.remove_namespace(namespace)?;
        state.secrets.retain(|(place, _), _| place != namespace);
        Ok(())
    }

    /// What the named secrets hold now, as digests, and which of them are missing.
    pub(crate) fn digests(
        &self,
        namespace: &Namespace,
        names: &[SecretName],
    ) -> (BTreeMap<SecretName, Digest>, Vec<SecretName>) {
        let state = self.state();
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        for name in names {
            match state.secrets.get(&(namespace.clone(), name.clone())) {
                Some(info) => drop(found.insert(name.clone(), info.digest)),
                None => missing.push(name.clone()),
            }
        }
        (found, missing)
    }

    /// Refuses a function that would have two files of one name. With `instead` it is judged as
    /// if that secret had those items.
    ///
    /// # Errors
    /// [`EngineError::Invalid`].
    pub(crate) fn check_files(
        &self,
        namespace: &Namespace,
        names: &[SecretName],
        instead: Option<(&SecretName, &SecretContent)>,
    ) -> Result<(), EngineError> {
        let state = self.state();
        let mut files: BTreeMap<ItemKey, &SecretName> = BTreeMap::new();
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                continue;
            }
            let keys: Vec<ItemKey> = match instead {
                Some((other, content)) if other == name => shown(content).keys().cloned().collect(),
                _ => match state.secrets.get(&(namespace.clone(), name.clone())) {
                    Some(info) if !is_pull_kind(info.kind.as_deref()) => {
                        info.items.keys().cloned().collect()
                    }
                    _ => Vec::new(),
                },
            };
            for key in keys {
                if let Some(other) = files.insert(key.clone(), name) {
                    return Err(EngineError::Invalid(format!(
                        "secrets `{other}` and `{name}` both have an item `{key}`, and each item \
                         is a file of that name: rename one, or give the function only one of them"
                    )));
                }
            }
        }
        Ok(())
    }

    /// The folder that one replica mounts.
    fn replica_folder(&self, replica: &str) -> PathBuf {
        self.mounted.join(replica)
    }

    /// Copies secrets for one replica, readable by its user alone.
    ///
    /// # Errors
    /// One is missing, or there is no memory left for the tenant or for all.
    pub(crate) fn hand_out(&self, replica: &str, copies: Copies) -> io::Result<PathBuf> {
        let folder = self.replica_folder(replica);
        // Held, so that a change comes before the copies are made or after they can be found.
        let mut state = self.state();
        let room = state.room(&copies, None);
        let tenant = copies.tenant.as_ref();
        check_room(tenant, state.room_of(tenant, replica) + room).map_err(io::Error::other)?;
        mounted::prepare(&folder, copies.owner)?;
        for name in &copies.names {
            let (content, _) = self.kept.read(&copies.namespace, name).map_err(|error| {
                let missing = error.kind() == io::ErrorKind::NotFound;
                let text = if missing { "not found".to_owned() } else { error.to_string() };
                io::Error::new(error.kind(), format!("secret `{name}`: {text}"))
            })?;
            mounted::place(&folder, name, shown(&content), copies.owner)?;
        }
        state.holders.insert(replica.to_owned(), Holder { copies, room });
        Ok(folder)
    }

    /// Notes a replica of an earlier run, which has its copies.
    pub(crate) fn adopt(&self, replica: &str, copies: Copies) {
        let mut state = self.state();
        let room = state.room(&copies, None);
        state.holders.insert(replica.to_owned(), Holder { copies, room });
    }

    /// Takes a replica's copies back.
    pub(crate) fn take_back(&self, replica: &str) {
        let mut state = self.state();
        state.holders.remove(replica);
        let folder = self.replica_folder(replica);
        if let Err(error) = fs::remove_dir_all(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, folder = %folder.display(), "a replica's secrets stay in memory");
        }
    }
}

/// Removes what replicas saw before, once nobody can be on the way there: a reader that has
/// followed a link of the old set finds its file.
fn remove_soon(folders: Vec<PathBuf>) {
    let remove = move || {
        for folder in folders {
            if let Err(error) = fs::remove_dir_all(&folder)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, folder = %folder.display(), "an old secret stays in memory");
            }
        }
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(async move {
            tokio::time::sleep(READERS_LIMIT).await;
            remove();
        })),
        Err(_) => remove(),
    }
}

/// The items that become files.
fn shown(content: &SecretContent) -> &SecretItems {
    static NOTHING: std::sync::LazyLock<SecretItems> =
        std::sync::LazyLock::new(SecretItems::default);
    if is_pull_kind(content.kind.as_deref()) { &NOTHING } else { &content.items }
}

/// Whether secrets of that type are credentials for a registry.
pub(crate) fn is_pull_kind(kind: Option<&str>) -> bool {
    kind.is_some_and(|kind| PULL_KINDS.contains(&kind))
}

/// Whether something is mounted on a folder: it lies on another device than its parent.
pub(crate) fn is_mount_point(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.dev()).ok();
    let own = device(folder);
    own.is_some() && own != folder.parent().and_then(device)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use updraft_engine::SecretValue;

    fn name(text: &str) -> SecretName {
        SecretName::new(text).unwrap()
    }

    fn content(items: &[(&str, &str)]) -> SecretContent {
        let item =
            |(key, value): &(&str, &str)| (ItemKey::new(*key).unwrap(), SecretValue::new(*value));
        SecretContent::by_hand(items.iter().map(item).collect())
    }

    fn copies(owner: &str, names: &[SecretName], user: (u32, u32)) -> Copies {
        Copies {
            tenant: Some(format!("owner/{owner}").parse().unwrap()),
            namespace: Namespace::default(),
            names: names.to_vec(),
            owner: user,
        }
    }

    fn open(folder: &Path) -> SecretStore {
        let options = LocalEngineOptions::new("00000000", folder, &folder.join("run"));
        fs::create_dir_all(options.mounted_secrets()).unwrap();
        SecretStore::in_folders(&options).unwrap().0
    }

    fn files(folder: &Path) -> Vec<(String, String)> {
        let shown = |entry: io::Result<fs::DirEntry>| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let value = fs::read_to_string(folder.join(&name)).ok()?;
            Some((name, value))
        };
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().filter_map(shown).collect();
        files.sort();
        files
    }

    #[test]
    fn replicas_see_all_of_a_change_and_items_that_are_gone_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let place = Namespace::default();
        let put = |items: &[(&str, &str)]| {
            store.put(&place, &name("db"), &content(items), PutSecret::Either).unwrap()
        };
        assert_eq!(put(&[("user", "u1"), ("password", "p1")]), SecretChange::Created);
        store.put(&place, &name("other"), &content(&[("other", "o")]), PutSecret::New).unwrap();
        let names = [name("db"), name("other")];
        let shown = store.hand_out("r1", copies("alice", &names, (1234, 1235))).unwrap();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let expected = [pair("other", "o"), pair("password", "p1"), pair("user", "u1")];
        assert_eq!(files(&shown), expected);
        for file in ["user", "password", "other"] {
            let metadata = fs::metadata(shown.join(file)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (1234, 1235), "{file}");
            assert_eq!(metadata.mode() & 0o7777, 0o400, "{file}");
        }
        assert_eq!(fs::metadata(&shown).unwrap().mode() & 0o7777, 0o500);

        assert_eq!(put(&[("user", "u2"), ("host", "h2")]), SecretChange::Replaced);
        let expected = [pair("host", "h2"), pair("other", "o"), pair("user", "u2")];
        assert_eq!(files(&shown), expected);
        assert_eq!(put(&[("user", "u2"), ("host", "h2")]), SecretChange::Unchanged);
        store.take_back("r1");
        assert!(!shown.is_dir());
    }

    #[test]
    fn what_is_kept_is_there_after_a_restart_with_its_digest_and_times() {
        let folder = tempfile::tempdir().unwrap();
        let place = Namespace::default();
        let long =
            name(&["l".repeat(63), "l".repeat(63), "l".repeat(63), "l".repeat(61)].join("."));
        let before = {
            let store = open(folder.path());
            for name in [&name("db"), &long] {
                store.put(&place, name, &content(&[("k", "v")]), PutSecret::New).unwrap();
            }
            store.list(&place)
        };
        let store = open(folder.path());
        assert_eq!(store.list(&place), before);
        assert_eq!(store.read(&place, &long).unwrap().get("k").unwrap().expose(), b"v");
        store.remove(&place, &long).unwrap();
        let again = store.remove(&place, &long).unwrap_err();
        assert!(matches!(again, EngineError::UnknownSecret { .. }));
        assert_eq!(open(folder.path()).list(&place).len(), 1);
    }

    #[test]
    fn one_item_in_two_secrets_of_a_function_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let place = Namespace::default();
        for secret in ["one", "two"] {
            let content = content(&[("key", "v"), (secret, "v")]);
            store.put(&place, &name(secret), &content, PutSecret::New).unwrap();
        }
        let both = [name("one"), name("two")];
        let error = store.check_files(&place, &both, None).unwrap_err().to_string();
        assert!(error.contains("`one` and `two` both have an item `key`"), "{error}");
        let other = content(&[("other", "v")]);
        store.check_files(&place, &both, Some((&name("two"), &other))).unwrap();
        store.check_files(&place, &[name("one"), name("one")], None).unwrap();
    }

    #[test]
    fn credentials_of_a_registry_are_no_files() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let place = Namespace::default();
        let mut pull = content(&[(".dockerconfigjson", "{}")]);
        pull.kind = Some("kubernetes.io/dockerconfigjson".to_owned());
        store.put(&place, &name("pull"), &pull, PutSecret::New).unwrap();
        let shown = store.hand_out("r", copies("alice", &[name("pull")], (0, 0))).unwrap();
        assert!(files(&shown).is_empty());
    }
    #[test]
    fn a_tenant_has_its_part_of_the_memory_and_others_have_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let place = Namespace::default();
        let mebibyte = "x".repeat(1 << 20);
        let (large, small) = (name("large"), name("small"));
        store.put(&place, &large, &content(&[("large", &mebibyte)]), PutSecret::New).unwrap();
        store.put(&place, &small, &content(&[("small", "x")]), PutSecret::New).unwrap();
        let hand_out = |replica: &str, owner: &str, secret: &SecretName| {
            store.hand_out(replica, copies(owner, std::slice::from_ref(secret), (0, 0)))
        };
        for number in 0..16 {
            hand_out(&format!("m{number}"), "mallory", &large).unwrap();
        }
        let refused = hand_out("m16", "mallory", &small).unwrap_err().to_string();
        assert!(refused.contains("`owner/mallory`") && refused.contains("17 MiB"), "{refused}");
        hand_out("a0", "alice", &large).unwrap();
        // Also not by a secret that grows where it is.
        store.take_back("m0");
        hand_out("m0", "mallory", &small).unwrap();
        let grown = content(&[("small", &mebibyte), ("more", "x")]);
        let refused = store.put(&place, &small, &grown, PutSecret::Existing).unwrap_err();
        assert!(matches!(refused, EngineError::Invalid(_)), "{refused:?}");
        assert_eq!(store.read(&place, &small).unwrap().iter().count(), 1);
        store.put(&place, &small, &content(&[("small", "y")]), PutSecret::Existing).unwrap();
        store.put(&place, &large, &content(&[("large", "little")]), PutSecret::Existing).unwrap();
        hand_out("m16", "mallory", &small).unwrap();
    }
}
