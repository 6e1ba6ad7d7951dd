//! Log lines on stderr (and the child's own lines on the stream they came from).
//!
//! A thread does the writing, so that a slow log collector never holds up a request, and lines
//! that arrive together leave in one system call. Memory is bounded: access lines are dropped and
//! counted when the collector stands still, the child's lines make the child wait instead.

mod json;
mod text;

use std::fmt;
use std::io::Write as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};

pub(crate) use json::Correlation;
use text::HumanSize;
use text::append_stamp;

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

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// As Go's log writes them: date, time, text.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The format of this name; `None` for a name that is no format's.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// What an access line tells of a call.
#[derive(Debug)]
pub(crate) struct AccessLine<'a> {
    pub(crate) method: &'a Method,
    pub(crate) uri: &'a Uri,
    pub(crate) status: StatusCode,
    /// Whether the status has its words, as in mode http.
    pub(crate) with_reason: bool,
    /// Bytes of the answer; negative when unknown.
    pub(crate) size: i64,
    pub(crate) took: Duration,
    /// Shown in text lines where it is some.
    pub(crate) call_id: Option<&'a HeaderValue>,
    pub(crate) correlation: Option<&'a Correlation>,
}

/// A handle to the one log of the process; cheap to clone.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    format: LogFormat,
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
    pub(crate) fn start(format: LogFormat) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
            room: tokio::sync::Notify::new(),
        });
        let writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("log".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || writer.write_all(format))?;
        Ok(Self { shared, format })
    }

    /// Writes one stamped line to stderr; drops it, and counts it, when the collector stands still.
    pub(crate) fn line(&self, text: fmt::Arguments<'_>) {
        self.own(|buffer| match self.format {
            LogFormat::Text => {
                append_stamp(buffer);
                let _infallible = buffer.write_fmt(text);
            }
            LogFormat::Json => json::message(buffer, "watchdog", &text.to_string(), None),
        });
    }

    /// Writes the line of one call to stderr, as `line` does.
    pub(crate) fn access(&self, access: &AccessLine<'_>) {
        self.own(|buffer| match self.format {
            LogFormat::Text => {
                append_stamp(buffer);
                let _infallible = write!(buffer, "{access}");
            }
            LogFormat::Json => json::access(buffer, access),
        });
    }

    /// By what lines about this request are found again; nothing where lines do not show it.
    pub(crate) fn correlation(&self, headers: &HeaderMap) -> Option<Arc<Correlation>> {
        (self.format == LogFormat::Json).then(|| Arc::new(Correlation::of(headers)))
    }

    fn own(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.shared.lock();
        if state.waiting() > CAPACITY {
            state.dropped += 1;
            return;
        }
        write(&mut state.stderr);
        state.stderr.push(b'\n');
        self.shared.wake(&mut state);
    }

    /// Writes one line of the child to the stream it came from, waiting while there is no room.
    pub(crate) async fn child_line(
        &self,
        stream: Stream,
        prefix: bool,
        text: &[u8],
        correlation: Option<&Correlation>,
    ) {
        loop {
            let room = self.shared.room.notified();
            if self.try_child_line(stream, prefix, text, correlation) {
                return;
            }
            room.await;
        }
    }

    fn try_child_line(
        &self,
        stream: Stream,
        prefix: bool,
        text: &[u8],
        correlation: Option<&Correlation>,
    ) -> bool {
        let mut state = self.shared.lock();
        if state.waiting() > CAPACITY {
            return false;
        }
        let (buffer, name) = match stream {
            Stream::Stdout => (&mut state.stdout, "stdout"),
            Stream::Stderr => (&mut state.stderr, "stderr"),
        };
        match self.format {
            LogFormat::Text => {
                if prefix {
                    append_stamp(buffer);
                    buffer.extend_from_slice(name.as_bytes());
                    buffer.extend_from_slice(b": ");
                }
                buffer.extend_from_slice(text);
            }
            LogFormat::Json => {
                json::message(buffer, name, &String::from_utf8_lossy(text), correlation);
            }
        }
        buffer.push(b'\n');
        self.shared.wake(&mut state);
        true
    }

    /// Writes what is left and stops; gives up after a second so that a stuck collector cannot
    /// keep the process alive.
    pub(crate) fn close(&self) {
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

    fn write_all(&self, format: LogFormat) {
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
                let text =
                    format!("{dropped} log lines were dropped: the log collector is too slow");
                match format {
                    LogFormat::Text => {
                        append_stamp(&mut stderr);
                        stderr.extend_from_slice(text.as_bytes());
                    }
                    LogFormat::Json => json::message(&mut stderr, "watchdog", &text, None),
                }
                stderr.push(b'\n');
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

impl fmt::Display for AccessLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, uri, status, size, took, .. } = self;
        let number = status.as_u16();
        let (space, reason) = match status.canonical_reason() {
            Some(reason) if self.with_reason => (" ", reason),
            _ => ("", ""),
        };
        let size = HumanSize(*size);
        // Whole numbers print several times faster than fractions.
        let parts = (took.as_micros() + 50) / 100;
        let (seconds, parts) = (parts / 10_000, parts % 10_000);
        write!(
            f,
            "{method} {uri} - {number}{space}{reason} - ContentLength: {size} ({seconds}.{parts:04}s)"
        )?;
        match self.call_id {
            Some(id) => write!(f, " [{}]", String::from_utf8_lossy(id.as_bytes())),
            None => Ok(()),
        }
    }
}
