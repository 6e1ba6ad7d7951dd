//! The lock file that a watchdog keeps while it serves, looked at from outside its container.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// Where it is in the container.
pub(super) const PATH: &str = "/tmp/.lock";

/// Whether the file is there, in the world of this process. Links in that world lead nowhere out
/// of it, and nothing is opened but the name.
pub(super) fn exists(process: i32) -> bool {
    look(&format!("/proc/{process}/root"), PATH).is_ok()
}

fn look(root: &str, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(&root, path, flags | OFlags::NOFOLLOW, Mode::empty(), inside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_do_not_lead_out_of_the_container() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join(".lock"), "").unwrap();
        let root = tempfile::tempdir().unwrap();
        let there = || look(root.path().to_str().unwrap(), PATH).is_ok();
        assert!(!there());
        symlink(outside.path(), root.path().join("tmp")).unwrap();
        assert!(!there(), "an absolute link begins at the container's root");
        fs::remove_file(root.path().join("tmp")).unwrap();
        fs::create_dir(root.path().join("tmp")).unwrap();
        fs::write(root.path().join("tmp/.lock"), "").unwrap();
        assert!(there());
    }

    #[test]
    fn a_process_that_is_gone_has_no_lock_file() {
        assert!(!exists(i32::MAX));
    }
}
