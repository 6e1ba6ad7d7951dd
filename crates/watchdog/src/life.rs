//! Whether this watchdog is healthy, and what is still under way.
//!
//! Owns the lock file and the counters; it decides nothing about when to start or stop.

use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The state of one watchdog, shared by all its connections.
#[derive(Debug)]
pub(crate) struct Life {
    /// The function can take calls; never goes back.
    accepting: AtomicBool,
    /// SIGTERM has come; never goes back.
    leaving: AtomicBool,
    lock_file: Option<PathBuf>,
    max_inflight: Option<usize>,
    /// Calls that the limit counts.
    in_flight: AtomicUsize,
    /// Calls that draining waits for: those in flight but for tunnels.
    active: AtomicUsize,
    /// Calls ever begun.
    begun: AtomicU64,
}

impl Life {
    pub(crate) fn new(lock_file: Option<PathBuf>, max_inflight: Option<usize>) -> Self {
        Self {
            accepting: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            lock_file,
            max_inflight,
            in_flight: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
        }
    }

    pub(crate) fn lock_file(&self) -> Option<&Path> {
        self.lock_file.as_deref()
    }

    /// From here on health is good: writes the lock file, unless it is suppressed.
    pub(crate) fn begin_accepting(&self) -> io::Result<()> {
        if self.leaving.load(Ordering::SeqCst) {
            return Ok(());
        }
        if let Some(path) = &self.lock_file {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o660)
                .open(path)?;
        }
        self.accepting.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// From here on health is bad for good; the lock file goes.
    pub(crate) fn begin_leaving(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        self.remove_lock_file();
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// Removes the lock file; also one that a killed predecessor in the same container has left.
    pub(crate) fn remove_lock_file(&self) {
        if let Some(path) = &self.lock_file {
            let _absent = std::fs::remove_file(path);
        }
    }

    /// The function accepts calls, nobody has told us to leave, and the lock file (where there is
    /// to be one) still stands.
    pub(crate) fn healthy(&self) -> bool {
        self.accepting.load(Ordering::SeqCst)
            && !self.leaving.load(Ordering::SeqCst)
            && self.lock_file.as_ref().is_none_or(|path| path.is_file())
    }

    /// The limit, if it is reached now.
    pub(crate) fn limit_reached(&self) -> Option<usize> {
        self.max_inflight.filter(|&limit| self.in_flight.load(Ordering::SeqCst) >= limit)
    }

    /// Counts a call in.
    ///
    /// # Errors
    /// The limit, when that many calls are in flight already.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Place, usize> {
        let before = self.in_flight.fetch_add(1, Ordering::SeqCst);
        if let Some(limit) = self.max_inflight.filter(|&limit| before >= limit) {
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
            return Err(limit);
        }
        self.active.fetch_add(1, Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
        Ok(Place { life: Arc::clone(self), awaited: true })
    }

    pub(crate) fn active(&self) -> usize {
        self.active.load(Ordering::SeqCst)
    }

    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }
}

/// One call's place among those in flight; given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    life: Arc<Life>,
    awaited: bool,
}

impl Place {
    /// The call has become a tunnel: it still counts for the limit, but draining goes on without it.
    pub(crate) fn no_longer_awaited(&mut self) {
        if std::mem::take(&mut self.awaited) {
            self.life.active.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.life.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.no_longer_awaited();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn life(folder: &Path) -> Life {
        Life::new(Some(folder.join("sub/.lock")), None)
    }

    #[test]
    fn the_lock_file_is_empty_mode_0660_in_a_folder_made_when_needed() {
        let folder = tempfile::tempdir().unwrap();
        let life = life(folder.path());
        assert!(!life.healthy());
        life.begin_accepting().unwrap();
        let metadata = std::fs::metadata(life.lock_file().unwrap()).unwrap();
        assert_eq!(metadata.len(), 0);
        // The process's file mode mask may take bits away, never add any.
        assert_eq!(metadata.permissions().mode() & 0o777 & !0o660, 0);
        assert!(life.healthy());
    }

    #[test]
    fn health_ends_when_the_lock_file_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let life = life(folder.path());
        life.begin_accepting().unwrap();
        std::fs::remove_file(life.lock_file().unwrap()).unwrap();
        assert!(!life.healthy());
    }

    #[test]
    fn a_suppressed_lock_file_does_not_spoil_health() {
        let life = Life::new(None, None);
        life.begin_accepting().unwrap();
        assert!(life.healthy());
    }

    #[test]
    fn leaving_removes_the_lock_file_and_nothing_brings_health_back() {
        let folder = tempfile::tempdir().unwrap();
        let life = life(folder.path());
        life.begin_accepting().unwrap();
        life.begin_leaving();
        assert!(!life.lock_file().unwrap().exists());
        life.begin_accepting().unwrap();
        assert!(!life.healthy());
        assert!(!life.lock_file().unwrap().exists());
    }

    #[test]
    fn the_call_over_the_limit_is_refused_and_places_come_back() {
        let life = Arc::new(Life::new(None, Some(2)));
        let first = life.enter().unwrap();
        let mut second = life.enter().unwrap();
        assert_eq!(life.enter().unwrap_err(), 2);
        assert_eq!(life.limit_reached(), Some(2));
        second.no_longer_awaited();
        assert_eq!((life.active(), life.limit_reached()), (1, Some(2)));
        drop(second);
        assert_eq!((life.active(), life.limit_reached()), (1, None));
        drop(first);
        assert_eq!((life.active(), life.begun()), (0, 2));
    }
}
