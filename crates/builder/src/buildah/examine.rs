//! What a machine offers builds, and what is worse than it could be.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::XattrFlags;
use updraft_idmap::IdMap;

use crate::cgroup::Cgroups;
use crate::{sandbox, seccomp};

/// Why builds with a store below `folder`, which is there, would be less apart from the machine
/// than they could be; empty when they would not. Leaves nothing behind.
pub fn examine(folder: &Path) -> Vec<String> {
    let probe = folder.join(format!(".updraft-examines-{}", std::process::id()));
    let tried = match fs::create_dir(&probe) {
        Ok(()) => try_users(&probe, &probe),
        Err(cause) => Err(format!("nothing can be tried in `{}` ({cause})", folder.display())),
    };
    if let Err(cause) = fs::remove_dir(&probe) {
        tracing::debug!(%cause, "there was nothing to remove");
    }
    let cgroups = Cgroups::detect("updraft-examines");
    shortcomings(tried.as_ref().err().map(String::as_str), &cgroups, seccomp::profile().is_some())
}

/// The same as sentences, of what was found.
pub(super) fn shortcomings(
    without_users: Option<&str>,
    cgroups: &Cgroups,
    has_calls: bool,
) -> Vec<String> {
    let users = without_users.map(|reason| format!("builds run as root of this machine: {reason}"));
    let groups = matches!(cgroups, Cgroups::Missing)
        .then(|| "builds have no limits on memory, processes and processors".to_owned());
    let calls = (!has_calls).then(|| {
        "steps of builds may trace each other and ask for the kernel's keys: this machine has no \
         list of system calls at /usr/share/containers/seccomp.json"
            .to_owned()
    });
    users.into_iter().chain(groups).chain(calls).collect()
}

/// Whether a build could run in a user namespace here; if not, why.
pub(super) fn try_users(builds: &Path, run_root: &Path) -> Result<(), String> {
    let lacks = |what: &str| {
        let what = what.to_owned();
        move |cause: io::Error| {
            format!("{what} ({cause}); Linux 6.3 and later can, on most file systems")
        }
    };
    let users = IdMap::new(sandbox::USERS_FIRST, sandbox::USERS)
        .map_err(|cause| format!("no user namespace can be made ({cause})"))?;
    for folder in [builds, run_root] {
        let shown = format!("`{}` cannot be shown under other users", folder.display());
        users.shifted_writable(folder).map_err(lacks(&shown))?;
    }
    // As a step leaves it on a folder that it removed and made anew.
    rustix::fs::setxattr(builds, "user.overlay.opaque", b"n", XattrFlags::empty())
        .map_err(|cause| lacks("folders in the store cannot be marked")(cause.into()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_at_a_folder_leaves_nothing_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let found = examine(folder.path());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // This machine can do it all, or the tests of builds would not mean much.
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn everything_that_is_missing_is_told() {
        let told = shortcomings(Some("no user namespace"), &Cgroups::Missing, false);
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].ends_with("no user namespace"), "{told:?}");
    }
}
