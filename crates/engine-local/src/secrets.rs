//! Secrets: kept on disk for the engine alone, copied into memory for the replicas that mount
//! them.
//!
//! Each replica has a folder of its own on a memory file system, bound read-only into the
//! container. An update writes a new file beside the old one and renames it over: a reader sees
//! the old value or the new one, whole.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::mount::{MsFlags, mount};
use sha2::{Digest as _, Sha256};
use updraft_engine::{EngineError, SecretValue};
use updraft_model::{Digest, Namespace, SecretName};

use crate::options::{LocalEngineOptions, OpenError};
use crate::record::{beside_others, write_atomically};

/// Room for the copies of all replicas.
const MOUNT_OPTIONS: &str = "mode=0700,size=64m";

/// The secrets of one instance.
#[derive(Debug)]
pub(crate) struct SecretStore {
    kept: PathBuf,
    mounted: PathBuf,
    /// Held while one is created, so that of two at once one is told that it exists.
    creating: Mutex<()>,
}

impl SecretStore {
    /// Makes the folders, and the memory file system unless it is there.
    pub(crate) fn open(options: &LocalEngineOptions) -> Result<Self, OpenError> {
        let store = Self::in_folders(options);
        for folder in [&store.kept, &store.mounted] {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(folder).map_err(OpenError::file("create", folder))?;
        }
        if !is_mount_point(&store.mounted) {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("tmpfs"), &store.mounted, Some("tmpfs"), flags, Some(MOUNT_OPTIONS))
                .map_err(io::Error::from)
                .map_err(OpenError::file("mount memory on", &store.mounted))?;
        }
        Ok(store)
    }

    /// The store where the options say, with nothing made yet.
    pub(crate) fn in_folders(options: &LocalEngineOptions) -> Self {
        Self {
            kept: options.state.join("secrets"),
            mounted: options.mounted_secrets(),
            creating: Mutex::default(),
        }
    }

    fn folder(&self, namespace: &Namespace) -> PathBuf {
        self.kept.join(namespace.as_str())
    }

    fn file(&self, namespace: &Namespace, name: &SecretName) -> PathBuf {
        self.folder(namespace).join(name.as_str())
    }

    pub(crate) fn list(&self, namespace: &Namespace) -> Result<Vec<SecretName>, EngineError> {
        let failed = |error| EngineError::engine("list secrets", error);
        let entries = match fs::read_dir(self.folder(namespace)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            // What does not parse is the leftover of an interrupted write.
            names.extend(name.to_str().and_then(|name| SecretName::new(name).ok()));
        }
        names.sort();
        Ok(names)
    }

    pub(crate) fn contains(&self, namespace: &Namespace, name: &SecretName) -> bool {
        self.file(namespace, name).is_file()
    }

    /// A kept value.
    pub(crate) fn read(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<SecretValue, EngineError> {
        fs::read(self.file(namespace, name))
            .map(SecretValue::new)
            .map_err(|error| EngineError::engine(format!("read secret `{name}`"), error))
    }

    /// Keeps a new secret, durably.
    pub(crate) fn create(
        &self,
        namespace: &Namespace,
        name: &SecretName,
        value: &SecretValue,
    ) -> Result<(), EngineError> {
        let _creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        if self.contains(namespace, name) {
            let (namespace, name) = (namespace.clone(), name.clone());
            return Err(EngineError::SecretExists { namespace, name });
        }
        self.keep(namespace, name, value)
    }

    /// Keeps a value, new or not, durably.
    pub(crate) fn keep(
        &self,
        namespace: &Namespace,
        name: &SecretName,
        value: &SecretValue,
    ) -> Result<(), EngineError> {
        let write = || {
            let folder = self.folder(namespace);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            // The folder is closed to others, so the file is too before its mode says so.
            let path = self.file(namespace, name);
            write_atomically(&path, value.expose(), true)?;
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        };
        beside_others(write)
            .map_err(|error| EngineError::engine(format!("keep secret `{name}`"), error))
    }

    pub(crate) fn remove(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<(), EngineError> {
        fs::remove_file(self.file(namespace, name))
            .map_err(|error| EngineError::engine(format!("remove secret `{name}`"), error))
    }

    pub(crate) fn remove_namespace(&self, namespace: &Namespace) -> io::Result<()> {
        match fs::remove_dir_all(self.folder(namespace)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// What the named secrets hold now, as digests, and which of them are missing.
    pub(crate) fn digests(
        &self,
        namespace: &Namespace,
        names: &[SecretName],
    ) -> (BTreeMap<SecretName, Digest>, Vec<SecretName>) {
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        for name in names {
            match fs::read(self.file(namespace, name)) {
                Ok(bytes) => {
                    found.insert(name.clone(), Digest::from_bytes(Sha256::digest(bytes).into()));
                }
                Err(_) => missing.push(name.clone()),
            }
        }
        (found, missing)
    }

    /// The folder that one replica mounts.
    pub(crate) fn replica_folder(&self, replica: &str) -> PathBuf {
        self.mounted.join(replica)
    }

    /// Copies the named secrets for one replica, readable by its user alone.
    pub(crate) fn hand_out(
        &self,
        replica: &str,
        namespace: &Namespace,
        names: &[SecretName],
        owner: (u32, u32),
    ) -> io::Result<PathBuf> {
        let folder = self.replica_folder(replica);
        fs::DirBuilder::new().recursive(true).mode(0o500).create(&folder)?;
        chown(&folder, Some(owner.0), Some(owner.1))?;
        for name in names {
            let value = fs::read(self.file(namespace, name))?;
            place(&folder, name, &value, owner)?;
        }
        Ok(folder)
    }

    /// Replaces a secret in a replica that has it.
    pub(crate) fn refresh(
        &self,
        replica: &str,
        name: &SecretName,
        value: &SecretValue,
        owner: (u32, u32),
    ) -> io::Result<()> {
        place(&self.replica_folder(replica), name, value.expose(), owner)
    }

    /// Takes a replica's copies back.
    pub(crate) fn take_back(&self, replica: &str) {
        let folder = self.replica_folder(replica);
        if let Err(error) = fs::remove_dir_all(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, folder = %folder.display(), "a replica's secrets stay in memory");
        }
    }
}

fn place(folder: &Path, name: &SecretName, value: &[u8], owner: (u32, u32)) -> io::Result<()> {
    // A name that no secret can have, so it never hides one.
    let temporary = folder.join(format!("..{name}"));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o400).open(&temporary)?;
    file.write_all(value)?;
    chown(&temporary, Some(owner.0), Some(owner.1))?;
    fs::rename(&temporary, folder.join(name.as_str()))
}

/// Whether something is mounted on a folder: it lies on another device than its parent.
pub(crate) fn is_mount_point(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.dev()).ok();
    let own = device(folder);
    own.is_some() && own != folder.parent().and_then(device)
}
