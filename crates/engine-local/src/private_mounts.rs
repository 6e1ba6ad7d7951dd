//! Work in a mount namespace of its own: what is mounted there is seen by the programs started
//! there and vanishes with the last of them, so that no crash can leave a mount behind.
//!
//! Namespaces are made ahead, each by a thread that waits in it for one piece of work: copying the
//! host's mounts and hiding one of them takes the kernel longer than all that is done there.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::oneshot;

/// Where a hybrid cgroup layout has its second hierarchy; crun 1.8 refuses to work beside it.
pub(crate) const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Namespaces kept ready.
const SPARE: usize = 2;

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

type Work = Box<dyn FnOnce() + Send>;

/// Mount namespaces for one piece of work each.
#[derive(Clone)]
pub(crate) struct PrivateMounts {
    unified: UnifiedCgroup,
    /// The program that will be started there.
    program: Option<Arc<Path>>,
    /// Whether namespaces are made ahead yet. Before everything that starts need is mounted they
    /// must not be: where the host's mounts are private, later ones do not arrive in them.
    ahead: Arc<AtomicBool>,
    /// Threads that wait in a namespace; one whose sender is dropped ends.
    spare: Arc<Mutex<VecDeque<mpsc::Sender<Work>>>>,
}

impl PrivateMounts {
    pub(crate) fn new(unified: UnifiedCgroup) -> Self {
        Self { unified, program: None, ahead: Arc::default(), spare: Arc::default() }
    }

    /// Shows `program` as a file that cannot be written, which saves a container runtime half of
    /// its start: so that no container can overwrite it through `/proc/self/exe`, it would
    /// otherwise lay such a mount over itself and begin anew.
    pub(crate) fn with_read_only(mut self, program: PathBuf) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Runs `work` on a thread of its own inside a fresh copy of the mount namespace.
    ///
    /// A namespace belongs to a thread, and the thread ends with the work: a thread of the async
    /// runtime is never moved.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        // The receiver is gone when the caller gave up; then nobody wants the result.
        let work: Work = Box::new(move || drop(done.send(work())));
        let spare = self.lock().pop_front();
        let place = match spare {
            Some(place) => place,
            None => self.make().await?,
        };
        place.send(work).map_err(|_| io::Error::other("the thread of a namespace has ended"))?;
        let result = result.await;
        // After the work, not beside it: whoever waits for it needs the processor more.
        self.refill();
        result.unwrap_or_else(|_| Err(io::Error::other("the worker thread panicked")))
    }

    /// Keeps namespaces ready from now on. What is mounted on the host is to be mounted by then.
    pub(crate) fn make_ahead(&self) {
        self.ahead.store(true, Ordering::SeqCst);
        self.refill();
    }

    /// Makes as many namespaces ahead as are kept ready, behind the caller's back.
    fn refill(&self) {
        if !self.ahead.load(Ordering::SeqCst) || self.lock().len() >= SPARE {
            return;
        }
        let this = self.clone();
        drop(tokio::spawn(async move {
            while this.lock().len() < SPARE {
                match this.make().await {
                    Ok(place) => this.lock().push_back(place),
                    Err(error) => {
                        tracing::debug!(%error, "no mount namespace can be made ahead");
                        return;
                    }
                }
            }
        }));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<mpsc::Sender<Work>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread in a fresh namespace.
    async fn make(&self) -> io::Result<mpsc::Sender<Work>> {
        let (sender, work) = mpsc::channel::<Work>();
        let (made, ready) = oneshot::channel();
        let (unified, program) = (self.unified, self.program.clone());
        thread::Builder::new().name("updraft-mounts".to_owned()).spawn(move || {
            let entered = enter(unified, program.as_deref());
            let failed = entered.is_err();
            if made.send(entered).is_err() || failed {
                return;
            }
            if let Ok(work) = work.recv() {
                work();
            }
        })?;
        ready.await.unwrap_or_else(|_| Err(io::Error::other("the worker thread panicked")))?;
        Ok(sender)
    }
}

impl fmt::Debug for PrivateMounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateMounts").field("unified", &self.unified).finish_non_exhaustive()
    }
}

/// Moves this thread into a mount namespace of its own.
fn enter(unified: UnifiedCgroup, program: Option<&Path>) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Mounts and unmounts of the host still arrive here, nothing of ours gets out.
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)?;
    if unified == UnifiedCgroup::Hidden {
        umount2(UNIFIED, MntFlags::MNT_DETACH)?;
    }
    if let Some(program) = program
        && let Err(error) = make_read_only(program)
    {
        // It then does so by itself.
        tracing::debug!(program = %program.display(), %error, "cannot be mounted over itself");
    }
    Ok(())
}

/// Lays a file over itself, read-only.
fn make_read_only(file: &Path) -> io::Result<()> {
    let nothing = None::<&str>;
    mount(Some(file), file, nothing, MsFlags::MS_BIND, nothing)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(nothing, file, nothing, flags, nothing)?;
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    fn is_mounted(path: &Path) -> bool {
        let list = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        list.lines().any(|line| line.split(' ').nth(4) == path.to_str())
    }

    #[tokio::test]
    async fn what_is_mounted_in_one_is_seen_by_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let mounts = PrivateMounts::new(UnifiedCgroup::Shown);
        let place: PathBuf = folder.path().canonicalize().unwrap();
        for _ in 0..4 {
            let target = place.clone();
            let seen = mounts.run(move || {
                assert!(!is_mounted(&target), "an earlier piece of work left it");
                let nothing = None::<&str>;
                mount(Some("tmpfs"), &target, Some("tmpfs"), MsFlags::empty(), nothing)?;
                Ok(is_mounted(&target))
            });
            assert!(seen.await.unwrap());
            assert!(!is_mounted(&place));
        }
    }

    #[tokio::test]
    async fn a_program_cannot_be_written_there_and_still_be_replaced_outside() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().canonicalize().unwrap().join("program");
        fs::write(&program, "one").unwrap();
        let mounts = PrivateMounts::new(UnifiedCgroup::Shown).with_read_only(program.clone());
        let ahead = mounts.make().await.unwrap();
        mounts.lock().push_back(ahead);
        let inside = program.clone();
        let refused = mounts.run(move || Ok(fs::write(&inside, "two").map_err(|e| e.kind())));
        assert_eq!(refused.await.unwrap(), Err(io::ErrorKind::ReadOnlyFilesystem));
        // As a package manager does it, with a namespace waiting.
        let ahead = mounts.make().await.unwrap();
        mounts.lock().push_back(ahead);
        let new = folder.path().join("new");
        fs::write(&new, "three").unwrap();
        fs::rename(&new, &program).unwrap();
        let inside = program.clone();
        let seen = mounts.run(move || fs::read_to_string(&inside));
        assert_eq!(seen.await.unwrap(), "three");
    }

    /// As the runtime is tried out before the secrets' memory is mounted.
    #[tokio::test]
    async fn nothing_is_made_ahead_before_the_host_is_ready() {
        let mounts = PrivateMounts::new(UnifiedCgroup::Shown);
        mounts.run(|| Ok(())).await.unwrap();
        tokio::task::yield_now().await;
        assert!(mounts.lock().is_empty(), "it could miss what is mounted next");
        mounts.make_ahead();
        let begin = std::time::Instant::now();
        while mounts.lock().len() < SPARE {
            assert!(begin.elapsed().as_secs() < 30, "no namespace is made ahead");
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn what_the_host_mounts_later_arrives_in_a_namespace_made_before() {
        let folder = tempfile::tempdir().unwrap();
        let place: PathBuf = folder.path().canonicalize().unwrap();
        let mounts = PrivateMounts::new(UnifiedCgroup::Shown);
        // As a host has it: shared with whoever copies it later.
        let nothing = None::<&str>;
        mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
        mount(nothing, &place, nothing, MsFlags::MS_SHARED, nothing).unwrap();
        let ahead = mounts.make().await.unwrap();
        mounts.lock().push_back(ahead);
        let later = place.join("later");
        fs::create_dir(&later).unwrap();
        mount(Some("tmpfs"), &later, Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
        let target = later.clone();
        let seen = mounts.run(move || Ok(is_mounted(&target))).await;
        umount2(&later, MntFlags::MNT_DETACH).unwrap();
        umount2(&place, MntFlags::MNT_DETACH).unwrap();
        assert!(seen.unwrap());
    }
}
