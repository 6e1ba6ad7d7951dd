//! The folder of what a reboot takes: bundles, the runtime's own state, copies of secrets.
//!
//! It lies below `/run`, which is memory on most machines. Where it is a disk (in containers that
//! have no init of their own, say) memory is mounted on the folder: each start writes a dozen small
//! files there, and a file system on a disk takes as long for them as for all else in a start.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::statfs;

use crate::options::OpenError;
use crate::secrets::is_mount_point;
use crate::stock::private_folder;

/// Nobody but root enters; some kilobytes for each replica.
const MOUNT_OPTIONS: &str = "mode=0700,size=10%";

/// What `statfs` calls memory (`TMPFS_MAGIC` of linux/magic.h).
const TMPFS: u64 = 0x0102_1994;

/// Makes the folder, in memory if it is new. One that holds something stays as it is: replicas of
/// an earlier run live from it.
///
/// # Errors
/// The machine's fault: the folder cannot be made or read.
pub(crate) fn open(folder: &Path) -> Result<(), OpenError> {
    private_folder(folder)?;
    let look = OpenError::file("look at", folder);
    let kind = statfs(folder).map_err(io::Error::from);
    let is_memory = kind.map(|kind| u64::try_from(kind.f_type) == Ok(TMPFS));
    match is_memory.and_then(|memory| Ok(memory || fs::read_dir(folder)?.next().is_some())) {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(error) => return Err(look(error)),
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if let Err(error) = mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some(MOUNT_OPTIONS)) {
        tracing::warn!(folder = %folder.display(), %error, "no memory can be mounted, starts take longer");
    }
    Ok(())
}

/// Removes the folder and what is mounted on it.
///
/// # Errors
/// The machine's fault: something in it is in use.
pub(crate) fn remove(folder: &Path) -> Result<(), OpenError> {
    if is_mount_point(folder) {
        umount2(folder, MntFlags::MNT_DETACH)
            .map_err(io::Error::from)
            .map_err(OpenError::file("unmount", folder))?;
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::file("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_memory(folder: &Path) -> bool {
        u64::try_from(statfs(folder).unwrap().f_type) == Ok(TMPFS)
    }

    #[test]
    fn a_new_folder_on_a_disk_is_made_in_memory_once_and_removed() {
        let disk = tempfile::tempdir_in("/var/tmp").unwrap();
        assert!(!is_memory(disk.path()), "nothing is shown where this is memory already");
        let folder = disk.path().join("run/engine");
        open(&folder).unwrap();
        assert!(is_memory(&folder));
        fs::write(folder.join("kept"), "by an earlier run").unwrap();
        open(&folder).unwrap();
        assert!(folder.join("kept").exists(), "a second mount would hide it");
        remove(&folder).unwrap();
        assert!(!folder.exists());
        remove(&folder).unwrap();
    }

    #[test]
    fn a_folder_that_replicas_live_from_stays_as_it_is() {
        let disk = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::write(disk.path().join("replica"), "").unwrap();
        open(disk.path()).unwrap();
        assert!(disk.path().join("replica").exists());
        assert!(!is_memory(disk.path()));
    }
}
