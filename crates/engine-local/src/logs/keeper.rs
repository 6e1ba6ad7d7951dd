//! Looking after the log files of running replicas: notes when they grew, drops what is too old.
//!
//! The kernel tells when a file was written to, and the note is made then, so that a line's time
//! is that of its writing within a millisecond or two; of a file that is written to without a
//! pause, within some more. Where the kernel does not tell, files are looked at now and then.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{FallocateFlags, fallocate, inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::{index, older, read};
use crate::shared::Shared;

/// How often files are looked at where the kernel does not tell of writes.
const INTERVAL: Duration = Duration::from_millis(250);

/// Pause after a look, so that a file that is written to all the time costs little: the shortest,
/// and the longest after many in a row.
const SHORT_PAUSE: Duration = Duration::from_millis(1);
const LONG_PAUSE: Duration = Duration::from_millis(20);

/// Notes kept in memory for whoever follows.
const RECENT: usize = 256;

/// A file is dropped from its beginning in steps of this size, which every file system takes.
const BLOCK: u64 = 4096;

/// Every log file of a replica that runs.
#[derive(Debug)]
pub(crate) struct Looked {
    files: Mutex<HashMap<PathBuf, Seen>>,
    /// What the kernel tells by; nothing where it does not.
    kernel: Option<OwnedFd>,
    /// Counts looks that found something, for whoever follows.
    grown: watch::Sender<u64>,
}

/// What is known of a file.
#[derive(Debug, Default)]
struct Seen {
    /// Its length at the last look.
    length: Option<u64>,
    /// The newest notes: until which byte, and when.
    recent: VecDeque<(u64, Timestamp)>,
    /// The kernel's number for it.
    watch: Option<i32>,
}

impl Default for Looked {
    fn default() -> Self {
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let kernel = inotify::init(flags).inspect_err(|error| {
            tracing::debug!(%error, "the kernel does not tell of writes to logs");
        });
        Self { files: Mutex::default(), kernel: kernel.ok(), grown: watch::Sender::new(0) }
    }
}

impl Looked {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Seen>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the looks that found something.
    pub(super) fn grown(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    /// Looks after a file from now on.
    pub(crate) fn begin(&self, path: &Path, limits: Limits) {
        let watch = self
            .kernel
            .as_ref()
            .and_then(|kernel| inotify::add_watch(kernel, path, inotify::WatchFlags::MODIFY).ok());
        self.lock().entry(path.to_owned()).or_default().watch = watch;
        // What was written before the kernel told.
        self.look(path, limits, Timestamp::now());
    }

    /// Takes a last look at a file that grows no more, and forgets it.
    pub(crate) fn end(&self, path: &Path, limits: Limits) {
        self.look(path, limits, Timestamp::now());
        let seen = self.lock().remove(path);
        if let (Some(kernel), Some(watch)) = (&self.kernel, seen.and_then(|seen| seen.watch)) {
            // Gone with the file already is as good.
            inotify::remove_watch(kernel, watch).ok();
        }
    }

    /// Looks at a file that may have grown, so that all that is in it has a time.
    pub(super) fn look(&self, path: &Path, limits: Limits, now: Timestamp) {
        let mut files = self.lock();
        let beside = files.keys().filter(|other| other.parent() == path.parent()).count();
        let Some(seen) = files.get_mut(path) else { return };
        let grew = look(path, seen, limits.each(beside), limits.farthest, now);
        drop(files);
        match grew {
            Ok(true) => self.grown.send_modify(|count| *count += 1),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a log file cannot be kept");
            }
        }
    }

    /// When what ends at `offset` of a file was written, if that was noted lately.
    pub(super) fn time_of(&self, path: &Path, offset: u64) -> Option<Timestamp> {
        let files = self.lock();
        let recent = &files.get(path)?.recent;
        // Older than the oldest note kept is not known here.
        if recent.front().is_none_or(|(until, _)| *until >= offset && recent.len() == RECENT) {
            return None;
        }
        recent.iter().find(|(until, _)| *until >= offset).map(|(_, time)| *time)
    }

    /// The files that the kernel says were written to.
    fn written(&self) -> Vec<PathBuf> {
        let Some(kernel) = &self.kernel else { return Vec::new() };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(kernel, &mut buffer);
        let mut numbers = Vec::new();
        let mut overflown = false;
        while let Ok(event) = events.next() {
            overflown |= event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
            if !numbers.contains(&event.wd()) {
                numbers.push(event.wd());
            }
        }
        let files = self.lock();
        let is_meant = |seen: &Seen| seen.watch.is_some_and(|watch| numbers.contains(&watch));
        let meant = files.iter().filter(|(_, seen)| overflown || is_meant(seen));
        meant.map(|(path, _)| path.clone()).collect()
    }

    fn all(&self) -> Vec<PathBuf> {
        self.lock().keys().cloned().collect()
    }
}

/// How large log files may grow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// One replica's.
    pub(crate) replica: u64,
    /// All of one function's replicas that run, together.
    pub(crate) function: u64,
    /// How far a file may have come, dropped parts counted, before it begins anew: the kernel
    /// counts them too when it compares a file with the longest that a replica may write.
    pub(crate) farthest: u64,
}

impl Limits {
    /// The share of one of so many.
    fn each(self, replicas: usize) -> u64 {
        let share = self.function / u64::try_from(replicas.max(1)).unwrap_or(1);
        self.replica.min(share).max(4 * BLOCK)
    }
}

/// Runs until Updraft stops.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let kernel = shared.looked.kernel.as_ref().and_then(|kernel| {
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types that may change their descriptor; an OwnedFd never does"
        )]
        let told = AsyncFd::with_interest(kernel.try_clone().ok()?, Interest::READABLE);
        told.ok()
    });
    let mut pause = SHORT_PAUSE;
    loop {
        let told = async {
            if let Some(kernel) = &kernel {
                kernel.readable().await.map(|mut ready| ready.clear_ready()).is_ok()
            } else {
                tokio::time::sleep(INTERVAL).await;
                false
            }
        };
        let told = tokio::select! {
            told = told => told,
            () = shared.closing.cancelled() => return,
        };
        let now = Timestamp::now();
        let looking = Arc::clone(&shared);
        let looked = tokio::task::spawn_blocking(move || {
            let looked = &looking.looked;
            let files = if told { looked.written() } else { looked.all() };
            let limits = looking.options.log_limits();
            for path in &files {
                looked.look(path, limits, now);
            }
            !files.is_empty()
        });
        let busy = match looked.await {
            Ok(busy) => busy,
            Err(error) => {
                tracing::warn!(%error, "log files could not be looked at");
                false
            }
        };
        tokio::time::sleep(pause).await;
        let again = kernel.as_ref().is_some_and(|_| busy && shared.looked.has_more());
        pause = if again { (pause * 2).min(LONG_PAUSE) } else { SHORT_PAUSE };
    }
}

impl Looked {
    /// Whether the kernel has told of more since.
    fn has_more(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(kernel) = &self.kernel else { return false };
        let mut events = [PollFd::new(kernel, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut events, Some(&at_once)).is_ok_and(|count| count > 0)
    }
}

/// Notes how far a file has come, and drops its oldest part when it is too large. Returns whether
/// it has grown.
fn look(
    path: &Path,
    seen: &mut Seen,
    limit: u64,
    farthest: u64,
    now: Timestamp,
) -> io::Result<bool> {
    let metadata = fs::metadata(path)?;
    let length = metadata.len();
    if seen.length == Some(length) || (seen.length.is_none() && length == 0) {
        seen.length = Some(length);
        return Ok(false);
    }
    // Bytes of the time before the first look have the file's own time, the others have now.
    let time = match seen.length {
        None => Timestamp::try_from(metadata.modified()?).unwrap_or(now),
        Some(_) => now,
    };
    // Who looks may have read the clock before somebody else who came first: lines are in order.
    let time = seen.recent.back().map_or(time, |(_, last)| time.max(*last));
    let mut notes = OpenOptions::new().create(true).append(true).open(index(path))?;
    writeln!(notes, "{length} {}", time.as_microsecond())?;
    seen.length = Some(length);
    if seen.recent.len() == RECENT {
        seen.recent.pop_front();
    }
    seen.recent.push_back((length, time));
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let too_far = length > farthest;
    if too_far || length - read::start(&file, length) > limit {
        rotate(path, &file, length, limit, too_far, seen)?;
    }
    Ok(true)
}

/// Takes the oldest part out of a file: the replica goes on writing to its end, and offsets stay
/// what they were, so that nothing is lost but what is too old. Where the file system cannot do
/// that, or the file has come too far, what is left is copied to its older part and the file is
/// emptied; what is written between the last copied byte and the emptying is lost then.
fn rotate(
    path: &Path,
    file: &File,
    length: u64,
    limit: u64,
    too_far: bool,
    seen: &mut Seen,
) -> io::Result<()> {
    let keep = length.saturating_sub(limit / 2) / BLOCK * BLOCK;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let is_out = keep == 0 || fallocate(file, flags, 0, keep).is_ok();
    let part = older(path);
    if is_out && !too_far {
        // Older than what was just taken out.
        for older in [index(&part), part] {
            match fs::remove_file(older) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        return read::forget_times(path, keep);
    }
    let mut from = File::open(path)?;
    let mut to = File::create(&part)?;
    // At the same offsets, which the notes are about, without writing what was taken out.
    let start = read::start(&from, length);
    from.seek(SeekFrom::Start(start))?;
    to.seek(SeekFrom::Start(start))?;
    io::copy(&mut from, &mut to)?;
    fs::rename(index(path), index(&part))?;
    file.set_len(0)?;
    *seen = Seen { length: Some(0), watch: seen.watch, recent: VecDeque::new() };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::read::{Times, parts, tail};

    const LIMITS: Limits = Limits { replica: 64 * 1024, function: 128 * 1024, farthest: 1 << 30 };

    fn log(path: &Path) -> File {
        OpenOptions::new().create(true).append(true).open(path).unwrap()
    }

    /// What a file takes of its disk.
    fn on_disk(path: &Path) -> u64 {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).unwrap().blocks() * 512
    }

    #[test]
    fn a_large_file_loses_its_oldest_lines_and_no_other() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = folder.path().join("x.log");
        let mut log = log(&path);
        let looked = Looked::default();
        looked.begin(&path, LIMITS);
        for number in 0..20_000 {
            writeln!(log, "line number {number:06}").unwrap();
            if number % 100 == 0 {
                looked.look(&path, LIMITS, Timestamp::now());
            }
        }
        looked.end(&path, LIMITS);
        assert!(on_disk(&path) <= 2 * LIMITS.replica, "{}", on_disk(&path));
        assert_eq!(parts(&path), std::slice::from_ref(&path));
        let lines = tail(&path, 100_000);
        assert!(lines.len() > 1000, "{}", lines.len());
        assert_eq!(lines.last().map(String::as_str), Some("line number 019999"));
        let first: usize = lines[0].rsplit(' ').next().unwrap().parse().unwrap();
        for (line, number) in lines.iter().zip(first..) {
            assert_eq!(line, &format!("line number {number:06}"), "none is missing or cut");
        }
        // Notes of what is gone are gone too.
        assert!(fs::read_to_string(index(&path)).unwrap().lines().count() < 100);
    }

    /// The kernel ends who writes behind the longest file it may have, holes counted: a function
    /// that prints a line now and then for years must not get there.
    #[test]
    fn a_file_never_comes_as_far_as_the_longest_that_a_replica_may_write() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = folder.path().join("x.log");
        let mut log = log(&path);
        let looked = Looked::default();
        let limits = Limits { farthest: 200 * 1024, ..LIMITS };
        looked.begin(&path, limits);
        let mut written = 0;
        for number in 0..60_000 {
            writeln!(log, "line number {number:06}").unwrap();
            written += 19;
            if number % 100 == 0 {
                looked.look(&path, limits, Timestamp::now());
            }
            let length = fs::metadata(&path).unwrap().len();
            assert!(length < limits.farthest + 4096, "{length} after {written}");
        }
        looked.end(&path, limits);
        assert!(written > 5 * limits.farthest);
        let all = parts(&path);
        assert!(all.iter().map(|part| on_disk(part)).sum::<u64>() <= 3 * LIMITS.replica);
        // What is left of both parts is one piece, with times that rise.
        let lines: Vec<_> = all.iter().flat_map(|part| tail(part, 100_000)).collect();
        let first: usize = lines[0].rsplit(' ').next().unwrap().parse().unwrap();
        assert_eq!(lines.last().map(String::as_str), Some("line number 059999"));
        for (line, number) in lines.iter().zip(first..) {
            assert_eq!(line, &format!("line number {number:06}"), "none is missing or cut");
        }
        let ends = all.iter().map(|part| {
            let length = fs::metadata(part).unwrap().len();
            (Times::of(part).at(length), length)
        });
        assert!(ends.map(|(time, _)| time).is_sorted());
    }

    #[test]
    fn replicas_of_one_function_share_what_it_may_write() {
        assert_eq!(LIMITS.each(1), 64 * 1024);
        assert_eq!(LIMITS.each(4), 32 * 1024);
        assert_eq!(LIMITS.each(1000), 4 * BLOCK);
    }

    #[test]
    fn a_look_whose_clock_was_read_before_another_keeps_lines_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let mut log = log(&path);
        let looked = Looked::default();
        looked.begin(&path, LIMITS);
        let early = Timestamp::now();
        for now in [early + jiff::SignedDuration::from_secs(1), early] {
            log.write_all(b"line\n").unwrap();
            looked.look(&path, LIMITS, now);
        }
        let noted = Times::of(&path);
        assert!(noted.at(5) <= noted.at(10));
        assert!(looked.time_of(&path, 5) <= looked.time_of(&path, 10));
        looked.end(&path, LIMITS);
    }

    #[test]
    fn lines_have_the_time_at_which_the_kernel_told_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let mut log = log(&path);
        let looked = Looked::default();
        looked.begin(&path, LIMITS);
        assert!(looked.written().is_empty());
        let mut times = Vec::new();
        for line in ["first\n", "second\n"] {
            log.write_all(line.as_bytes()).unwrap();
            assert_eq!(looked.written(), std::slice::from_ref(&path));
            let now = Timestamp::now();
            looked.look(&path, LIMITS, now);
            times.push(now);
        }
        let noted = Times::of(&path);
        for (offset, time) in [(6, times[0]), (13, times[1])] {
            assert_eq!(noted.at(offset).as_microsecond(), time.as_microsecond());
            assert_eq!(looked.time_of(&path, offset), Some(time));
        }
        assert_eq!(looked.time_of(&path, 14), None);
        looked.end(&path, LIMITS);
        log.write_all(b"third\n").unwrap();
        assert!(looked.written().is_empty(), "nobody looks after it any more");
    }
}
