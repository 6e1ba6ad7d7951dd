//! Log lines on stderr (and the child's own lines on the stream they came from).
//!
//! A thread does the writing, so that a slow log collector never holds up a request, and lines
//! that arrive together leave in one system call. Memory is bounded: access lines are dropped and
//! counted when the collector stands still, the child's lines make the child wait instead.

use std::fmt;
use std::io::Write as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What may wait for the collector, in bytes; beyond it nothing more is taken.
const CAPACITY: usize = 1024 * 1024;
/// How long the writer lets lines gather before the next system call.
const GATHER: Duration = Duration::from_millis(2);
/// How long the last lines may take to leave when the process ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Which of the two streams a line belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// A handle to the one log of the process; cheap to clone.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes the writer; also tells `close` that the writer is done.
    changed: Condvar,
    /// Wakes copiers of the child's streams when there is room again.
    room: tokio::sync::Notify,
}

#[derive(Default)]
struct State {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    dropped: u64,
    asleep: bool,
    closing: bool,
    finished: bool,
}

impl State {
    fn waiting(&self) -> usize {
        self.stdout.len() + self.stderr.len()
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}

impl Log {
    /// Starts the writer.
    ///
    /// # Errors
    /// When the system refuses a thread; nothing can run then.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
            room: tokio::sync::Notify::new(),
        });
        let writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("log".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || writer.write_all())?;
        Ok(Self { shared })
    }

    /// Writes one stamped line to stderr; drops it, and counts it, when the collector stands still.
    pub fn line(&self, text: fmt::Arguments<'_>) {
        let mut state = self.shared.lock();
        if state.waiting() > CAPACITY {
            state.dropped += 1;
            return;
        }
        append_stamp(&mut state.stderr);
        let _infallible = state.stderr.write_fmt(text);
        state.stderr.push(b'\n');
        self.shared.wake(&mut state);
    }

    /// Writes one line of the child to the stream it came from, waiting while there is no room.
    pub(crate) async fn child_line(&self, stream: Stream, prefix: bool, text: &[u8]) {
        loop {
            let room = self.shared.room.notified();
            if self.try_child_line(stream, prefix, text) {
                return;
            }
            room.await;
        }
    }

    fn try_child_line(&self, stream: Stream, prefix: bool, text: &[u8]) -> bool {
        let mut state = self.shared.lock();
        if state.waiting() > CAPACITY {
            return false;
        }
        let (buffer, name): (_, &[u8]) = match stream {
            Stream::Stdout => (&mut state.stdout, b"stdout: "),
            Stream::Stderr => (&mut state.stderr, b"stderr: "),
        };
        if prefix {
            append_stamp(buffer);
            buffer.extend_from_slice(name);
        }
        buffer.extend_from_slice(text);
        buffer.push(b'\n');
        self.shared.wake(&mut state);
        true
    }

    /// Writes what is left and stops; gives up after a second so that a stuck collector cannot
    /// keep the process alive.
    pub fn close(&self) {
        let end = Instant::now() + LAST_WORDS;
        let mut state = self.shared.lock();
        state.closing = true;
        self.shared.changed.notify_all();
        while !state.finished {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, state: &mut State) {
        if state.asleep {
            state.asleep = false;
            self.changed.notify_all();
        }
    }

    fn write_all(&self) {
        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        loop {
            let mut state = self.lock();
            while state.waiting() == 0 && !state.closing {
                state.asleep = true;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.asleep = false;
            let closing = state.closing;
            if state.waiting() == 0 {
                state.finished = true;
                self.changed.notify_all();
                return;
            }
            std::mem::swap(&mut state.stdout, &mut stdout);
            std::mem::swap(&mut state.stderr, &mut stderr);
            let dropped = std::mem::take(&mut state.dropped);
            drop(state);
            self.room.notify_waiters();
            if dropped > 0 {
                append_stamp(&mut stderr);
                let _infallible = writeln!(
                    stderr,
                    "{dropped} log lines were dropped: the log collector is too slow"
                );
            }
            // A closed stream is nobody's fault and nothing can be reported about it.
            let mut out = std::io::stdout().lock();
            let _gone = out.write_all(&stdout).and_then(|()| out.flush());
            let _gone = std::io::stderr().lock().write_all(&stderr);
            reset(&mut stdout);
            reset(&mut stderr);
            if !closing {
                std::thread::sleep(GATHER);
            }
        }
    }
}

/// Empties a buffer; one that a burst has grown is given back.
fn reset(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(64 * 1024);
}

/// Appends `YYYY/MM/DD HH:MM:SS ` (UTC).
fn append_stamp(buffer: &mut Vec<u8>) {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    stamp(buffer, seconds);
}

fn stamp(buffer: &mut Vec<u8>, unix_seconds: u64) {
    let (year, month, day) = civil_date(unix_seconds / 86_400);
    let second = unix_seconds % 86_400;
    let mut text = *b"0000/00/00 00:00:00 ";
    let mut put = |at: usize, width: usize, mut value: u64| {
        for slot in (at..at + width).rev() {
            text[slot] = b'0' + u8::try_from(value % 10).unwrap_or(0);
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second / 3600);
    put(14, 2, second / 60 % 60);
    put(17, 2, second % 60);
    buffer.extend_from_slice(&text);
}

/// Days since 1970-01-01 as year, month, day of the Gregorian calendar: years are counted from
/// March, so that the leap day is the last of its year.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// A size for people, in powers of a thousand and at most four digits: `39B`, `1.2kB`.
/// Negative is an unknown size: `-1B`.
pub(crate) fn human_size(bytes: i64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = if value >= 100.0 {
        1
    } else if value >= 10.0 {
        2
    } else {
        3
    };
    let text = format!("{value:.decimals$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_have_the_go_log_shape() {
        let check = |seconds, expected: &str| {
            let mut buffer = Vec::new();
            stamp(&mut buffer, seconds);
            assert_eq!(String::from_utf8(buffer).unwrap(), expected);
        };
        check(0, "1970/01/01 00:00:00 ");
        check(951_782_399, "2000/02/28 23:59:59 ");
        check(951_782_400, "2000/02/29 00:00:00 ");
        check(1_709_251_199, "2024/02/29 23:59:59 ");
        check(1_767_225_599, "2025/12/31 23:59:59 ");
        check(1_767_225_600, "2026/01/01 00:00:00 ");
    }

    #[test]
    fn sizes_are_in_human_units() {
        let check = |bytes, expected: &str| assert_eq!(human_size(bytes), expected);
        check(-1, "-1B");
        check(0, "0B");
        check(39, "39B");
        check(999, "999B");
        check(1000, "1kB");
        check(1200, "1.2kB");
        check(1234, "1.234kB");
        check(12_345, "12.35kB");
        check(5_000_000, "5MB");
        check(i64::MAX, "9.223EB");
    }
}
