//! Work in a mount namespace of its own: what is mounted there is seen by the programs started
//! there and vanishes with the last of them, so that no crash can leave a mount behind.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::oneshot;

/// Where a hybrid cgroup layout has its second hierarchy; crun 1.8 refuses to work beside it.
pub(crate) const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// An empty folder that everybody may enter, on which each start mounts what its container is
/// made of, seen by it alone. Below the engine's own folders a container's users could not go.
pub(crate) const STAGE: &str = "/run/updraft-stage";

/// Makes the folder, unless it is there.
pub(crate) fn make_stage() -> io::Result<()> {
    match fs::create_dir(STAGE) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(STAGE, fs::Permissions::from_mode(0o755))
}

/// Whether the hybrid layout's second hierarchy is shown to the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnifiedCgroup {
    /// Leave it where it is.
    Shown,
    /// Take it out of sight.
    Hidden,
}

/// Runs `work` on a thread of its own inside a fresh copy of the mount namespace.
///
/// A namespace belongs to a thread, and the thread ends with the work: a thread of the async
/// runtime is never moved.
pub(crate) async fn in_private_mounts<T: Send + 'static>(
    unified: UnifiedCgroup,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    on_own_thread("updraft-mounts", move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        // Mounts and unmounts of the host still arrive here, nothing of ours gets out.
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)?;
        if unified == UnifiedCgroup::Hidden {
            umount2(UNIFIED, MntFlags::MNT_DETACH)?;
        }
        work()
    })
    .await
}

/// Runs `work` on a fresh thread that ends after it.
pub(crate) async fn on_own_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        // The receiver is gone when the caller gave up; then nobody wants the result.
        drop(done.send(work()));
    })?;
    result.await.unwrap_or_else(|_| Err(io::Error::other("the worker thread panicked")))
}
