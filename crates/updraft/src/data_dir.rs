//! The data directory: where everything lies, who holds it, and how the command line finds the
//! server that does.
//!
//! This is the one place that knows the layout; crates are handed the paths they own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// Hex digits of an instance id; few enough for the names of network devices.
const INSTANCE_DIGITS: usize = 8;

/// Where what does not outlive a reboot lies, a folder for each instance.
pub(crate) const RUN: &str = "/run";

/// How the names of these folders begin; the instance follows.
pub(crate) const VOLATILE: &str = "updraft-";

/// A data directory and the id of the instance that lives in it.
#[derive(Debug, Clone)]
pub(crate) struct DataDir {
    root: PathBuf,
    instance: String,
}

/// Held while a server runs on a data directory; dropped, it lets the next one in.
#[derive(Debug)]
pub(crate) struct DataDirLock(#[expect(dead_code, reason = "holds the lock")] File);

/// What the command line needs to find the running server; lies in the data directory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServerRecord {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// The root domain it serves.
    pub(crate) root: String,
    /// Its process id.
    pub(crate) pid: u32,
}

impl DataDir {
    /// Opens the directory, making it and its instance id where they are missing.
    pub(crate) fn create(root: &Path) -> Result<Self> {
        let make = |path: &Path| {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .with_context(|| format!("cannot create the folder {}", path.display()))
        };
        make(root)?;
        // Mount points, sockets and the engine's records hold absolute paths.
        let root = root
            .canonicalize()
            .with_context(|| format!("cannot open the data directory {}", root.display()))?;
        for folder in ["blobs", "git", "work", "containers", "engine", "logs", "secrets"] {
            make(&root.join(folder))?;
        }
        let instance = read_or_choose_instance(&root.join("instance"))?;
        Ok(Self { root, instance })
    }

    /// Opens a directory that a server has made before.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        if !root.join("instance").is_file() {
            bail!(
                "{} is not a data directory of Updraft; start a server with `updraft up --data-dir {}` or name another with --data-dir",
                root.display(),
                root.display()
            );
        }
        Self::create(root)
    }

    /// Makes this process the only server on the directory.
    ///
    /// Another running server is an error that names the directory.
    pub(crate) fn lock(&self) -> Result<DataDirLock> {
        let path = self.root.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "another Updraft runs on {}; stop it, or choose another folder with --data-dir",
                self.root.display()
            );
        }
        Ok(DataDirLock(file))
    }

    /// Eight hex digits that tell this instance's devices, mounts and processes from others'.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("updraft.db")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(crate) fn queue(&self) -> PathBuf {
        self.root.join("queue.db")
    }

    pub(crate) fn queue_blobs(&self) -> PathBuf {
        self.root.join("queue")
    }

    /// What is looked up about calls that a broker keeps; made anew at every start.
    pub(crate) fn queue_index(&self) -> PathBuf {
        self.root.join("queue-index.db")
    }

    /// What ran by the clock.
    pub(crate) fn schedules(&self) -> PathBuf {
        self.root.join("schedules.json")
    }

    /// Signs what callbacks tell.
    pub(crate) fn callback_key(&self) -> PathBuf {
        self.root.join("secrets/callback-key")
    }

    /// Keys of sealed secrets, encrypted with the machine key.
    pub(crate) fn sealing_keys(&self) -> PathBuf {
        self.root.join("secrets/sealing-keys")
    }

    /// Encrypts secrets and their keys on the disk.
    pub(crate) fn machine_key(&self) -> PathBuf {
        self.root.join("secrets/machine-key")
    }

    pub(crate) fn repositories(&self) -> PathBuf {
        self.root.join("git")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(crate) fn admin_password(&self) -> PathBuf {
        self.root.join("secrets/basic-auth-password")
    }

    /// What does not outlive a reboot: mounts, bundles, runtime state.
    pub(crate) fn volatile(&self) -> PathBuf {
        Path::new(RUN).join(format!("{VOLATILE}{}", self.instance))
    }

    /// Says in [`Self::volatile`] whose it is, and holds it as long as the server runs.
    pub(crate) fn claim_volatile(&self) -> Result<DataDirLock> {
        claim_volatile(&self.volatile(), &self.root)
    }

    /// Says in [`Self::volatile`] whose it is.
    pub(crate) fn note_volatile(&self) -> Result<()> {
        note_volatile(&self.volatile(), &self.root)
    }

    /// Removes what does not outlive a reboot, nothing being mounted in it any more.
    pub(crate) fn remove_volatile(&self) -> Result<()> {
        let folder = self.volatile();
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", folder.display()))
            }
            _ => Ok(()),
        }
    }

    /// Folders and files whose size people ask for, beside the images.
    pub(crate) fn measured(&self) -> BTreeMap<&'static str, PathBuf> {
        [
            ("build logs", self.blobs()),
            ("database", self.database()),
            ("function logs", self.root.join("logs")),
            ("repositories", self.repositories()),
            ("queue", self.queue()),
            ("queued bodies", self.queue_blobs()),
            ("work in progress", self.work()),
        ]
        .into()
    }

    fn server_record(&self) -> PathBuf {
        self.root.join("server.json")
    }

    /// Notes where the server listens.
    pub(crate) fn announce(&self, record: &ServerRecord) -> Result<()> {
        write_whole(&self.server_record(), serde_json::to_string(record)?.as_bytes())
    }

    /// Where the server listens, if one has said so.
    pub(crate) fn server(&self) -> Option<ServerRecord> {
        serde_json::from_slice(&fs::read(self.server_record()).ok()?).ok()
    }

    /// Takes the note back at the end.
    pub(crate) fn retract(&self) {
        if let Err(error) = fs::remove_file(self.server_record()) {
            tracing::debug!(%error, "the server record was gone already");
        }
    }
}

/// The data directory that a volatile folder belongs to, if it says so.
pub(crate) fn volatile_owner(folder: &Path) -> Option<PathBuf> {
    let path = fs::read(folder.join("data-dir")).ok()?;
    Some(PathBuf::from(OsString::from_vec(path))).filter(|path| path.is_absolute())
}

/// What a server holds in its volatile folder. Beside the lock in the data directory: that one is
/// gone when somebody has removed the directory under it.
pub(crate) fn volatile_lock(folder: &Path) -> PathBuf {
    folder.join("lock")
}

fn note_volatile(folder: &Path, owner: &Path) -> Result<()> {
    if volatile_owner(folder).as_deref() == Some(owner) {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    write_whole(&folder.join("data-dir"), owner.as_os_str().as_bytes())
}

pub(crate) fn claim_volatile(folder: &Path, owner: &Path) -> Result<DataDirLock> {
    note_volatile(folder, owner)?;
    let path = volatile_lock(folder);
    let claim = || {
        let file = File::create(&path)?;
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    };
    claim().map(DataDirLock).with_context(|| format!("cannot lock {}", path.display()))
}

fn read_or_choose_instance(path: &Path) -> Result<String> {
    if let Ok(text) = fs::read_to_string(path) {
        let id = text.trim();
        let is_hex = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if id.len() != INSTANCE_DIGITS || !is_hex {
            bail!("{} holds no instance id; restore it, 8 hex digits", path.display());
        }
        return Ok(id.to_owned());
    }
    let random = getrandom::u32().context("cannot read random numbers")?;
    let id = format!("{random:08x}");
    write_whole(path, id.as_bytes())?;
    Ok(id)
}

/// Writes a file so that a reader, or a crash, sees the old content or the new, never a part.
fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instance_id_stays_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::create(folder.path()).unwrap();
        let second = DataDir::open(folder.path()).unwrap();
        assert_eq!(first.instance(), second.instance());
        assert_eq!(first.instance().len(), INSTANCE_DIGITS);
    }

    #[test]
    fn a_second_server_is_kept_out_until_the_first_ends() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = DataDir::create(folder.path()).unwrap();
        let lock = data_dir.lock().unwrap();
        let refusal = data_dir.lock().unwrap_err().to_string();
        assert!(refusal.contains("another Updraft runs"), "{refusal}");
        drop(lock);
        data_dir.lock().unwrap();
    }

    #[test]
    fn a_folder_that_is_no_data_directory_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = DataDir::open(folder.path()).unwrap_err().to_string();
        assert!(refusal.contains("updraft up --data-dir"), "{refusal}");
    }
}
