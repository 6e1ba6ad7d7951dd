//! Mounts that show files as owned by a shifted range of users.
//!
//! The layers of an image belong to the users 0, 1, 2 … as the image has it. A container in a user
//! namespace calls other users of the machine by these numbers, so the files have to look as if
//! they belonged to those. The kernel can do that for one mount without touching a file
//! (`mount_setattr(2)` with `MOUNT_ATTR_IDMAP`, since Linux 5.12; below an overlay since 5.19), so
//! that all tenants share one copy of each layer on disk and in memory.
//!
//! The engine asks for such mounts when it lays out the root of a replica. This crate never mounts
//! anything on a path by itself, and it holds the only `unsafe` of the workspace: one system call.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::libc;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// How users are called on the two sides: user `n` of a file looks like user `first + n`.
///
/// Held by a user namespace without a process in it; dropping it takes nothing from mounts that
/// were made with it.
#[derive(Debug)]
pub struct IdMap {
    namespace: OwnedFd,
}

impl IdMap {
    /// A map of the users and groups `0..count` to `first..first + count`. Starts a process for a
    /// moment (`unshare`, of util-linux), because only a process can make a user namespace.
    ///
    /// # Errors
    /// The machine's fault: the kernel has no user namespaces or forbids them, the program is not
    /// there, or the caller is not root.
    pub fn new(first: u32, count: u32) -> io::Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        // It echoes a byte once it lives in the new namespace, and waits there for our leave.
        let mut holder = Command::new("unshare")
            .args(["--user", "--", "cat"])
            .env_clear()
            .env("PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let made = Self::of_process(&mut holder, first, count);
        // It has nothing to lose, and may have ended already.
        drop(holder.kill());
        holder.wait()?;
        made
    }

    fn of_process(holder: &mut Child, first: u32, count: u32) -> io::Result<Self> {
        let closed = || io::Error::other("the program `unshare` has no pipes");
        holder.stdin.as_mut().ok_or_else(closed)?.write_all(b"x")?;
        let mut echo = [0];
        holder.stdout.as_mut().ok_or_else(closed)?.read_exact(&mut echo).map_err(|_| {
            io::Error::other("no user namespace can be made here, does the kernel forbid them?")
        })?;
        let process = Path::new("/proc").join(holder.id().to_string());
        let map = format!("0 {first} {count}\n");
        fs::write(process.join("uid_map"), &map)?;
        fs::write(process.join("gid_map"), &map)?;
        Ok(Self { namespace: fs::File::open(process.join("ns/user"))?.into() })
    }

    /// The folder `path` as a read-only mount that is not mounted anywhere yet, seen through this
    /// map. What is mounted below `path` is not part of it.
    ///
    /// # Errors
    /// `EINVAL` where the kernel or the file system below `path` knows no such mounts; else what
    /// the kernel says of the path.
    pub fn shifted(&self, path: &Path) -> io::Result<OwnedFd> {
        self.tree(path, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID)
    }

    /// As [`shifted`](Self::shifted), to be written to: what user `first + n` makes there belongs
    /// to user `n`.
    ///
    /// # Errors
    /// Those of [`shifted`](Self::shifted).
    pub fn shifted_writable(&self, path: &Path) -> io::Result<OwnedFd> {
        self.tree(path, 0)
    }

    fn tree(&self, path: &Path, more: u64) -> io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(rustix::fs::CWD, path, flags)?;
        let attributes = libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_NODEV | more;
        set_attributes(&tree, attributes, &self.namespace)?;
        Ok(tree)
    }
}

impl AsFd for IdMap {
    /// The user namespace, for who lets a process live in it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// Mounts what [`IdMap::shifted`] made on a folder.
///
/// # Errors
/// What the kernel says of the folder.
pub fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(tree, "", rustix::fs::CWD, target, flags)?)
}

#[expect(unsafe_code, reason = "no library wraps mount_setattr")]
fn set_attributes(tree: &OwnedFd, attributes: u64, namespace: &OwnedFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(namespace.as_raw_fd().unsigned_abs()),
    };
    // SAFETY: both descriptors are open for the whole call, as their owners are borrowed. The
    // path is a constant that ends in NUL. The kernel reads, and only reads, as many bytes of
    // `attributes` as its size says, and keeps no pointer beyond the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step ends its test")]

    use std::os::unix::fs::MetadataExt as _;

    use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};

    use super::*;

    /// A folder with a file of root and one of user 100.
    fn files() -> tempfile::TempDir {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        for (name, owner) in [("root", 0), ("app", 100)] {
            fs::write(folder.path().join(name), name).unwrap();
            std::os::unix::fs::chown(folder.path().join(name), Some(owner), Some(owner)).unwrap();
        }
        folder
    }

    #[test]
    fn files_look_as_if_shifted_users_owned_them_and_stay_as_they_are() {
        let files = files();
        let map = IdMap::new(1_000_000, 65_536).unwrap();
        let tree = map.shifted(files.path()).unwrap();
        for (name, owner) in [("root", 1_000_000), ("app", 1_000_100)] {
            let seen = statat(tree.as_fd(), name, AtFlags::empty()).unwrap();
            assert_eq!((seen.st_uid, seen.st_gid), (owner, owner), "{name}");
        }
        assert_eq!(fs::metadata(files.path().join("app")).unwrap().uid(), 100);
    }

    #[test]
    fn nothing_can_be_written_through_such_a_mount() {
        let files = files();
        let tree = IdMap::new(1_000_000, 65_536).unwrap().shifted(files.path()).unwrap();
        let opened = openat(&tree, "root", OFlags::WRONLY, Mode::empty());
        assert_eq!(opened.unwrap_err(), rustix::io::Errno::ROFS);
    }

    #[test]
    fn a_folder_that_is_missing_is_told() {
        let map = IdMap::new(1_000_000, 1).unwrap();
        let error = map.shifted(Path::new("/nothing/here")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn users_that_do_not_exist_are_refused() {
        assert!(IdMap::new(u32::MAX, 2).is_err());
    }
}
