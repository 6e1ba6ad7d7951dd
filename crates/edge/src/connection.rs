//! One connection from outside: how long it may dawdle, and how it ends.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::net::TcpStream;
use updraft_invoke::Wire;

use crate::door::EdgeLimits;

/// What happens on a connection, noted without looking at a clock: whoever watches it looks from
/// time to time.
///
/// A connection's task looks at what others tell it only when it runs anyway, and `waker` makes it
/// run; so a request costs no subscription to anything.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// The connection's task.
    pub(crate) waker: AtomicWaker,
    /// Requests begun.
    begun: AtomicU32,
    /// Requests whose answer has not ended.
    open: AtomicU32,
    /// Whether bytes came while no request was open.
    heading: AtomicBool,
    /// Whether bytes left since the last look.
    written: AtomicBool,
    /// Whether the peer takes no more bytes for now.
    blocked: AtomicBool,
    /// Whether the connection speaks HTTP/2, which has frames between requests.
    http2: AtomicBool,
}

impl Activity {
    /// Notes that the head of a request is complete; the request is open until the guard goes.
    pub(crate) fn begin(self: &Arc<Self>, http2: bool) -> Busy {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        self.heading.store(false, Ordering::Relaxed);
        if http2 {
            self.http2.store(true, Ordering::Relaxed);
        }
        Busy(Arc::clone(self))
    }
}

/// All open connections, and how far the shutdown has come.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    phase: AtomicU8,
    /// Locked when a connection comes or goes.
    open: Mutex<HashMap<u64, Arc<Activity>>>,
    next: AtomicU64,
}

/// What every connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Serve.
    Open = 0,
    /// End after the requests that are open.
    Leaving = 1,
    /// End now.
    Cut = 2,
}

impl Connections {
    /// What connections are told now.
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Open,
            1 => Phase::Leaving,
            _ => Phase::Cut,
        }
    }

    /// Tells every connection.
    pub(crate) fn tell(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
        for activity in self.open().values() {
            activity.waker.wake();
        }
    }

    /// Notes a new connection for as long as the guard lives.
    pub(crate) fn enter(self: &Arc<Self>) -> Entry {
        let activity = Arc::new(Activity::default());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open().insert(number, Arc::clone(&activity));
        Entry { connections: Arc::clone(self), number, activity }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Activity>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the open ones.
#[derive(Debug)]
pub(crate) struct Entry {
    connections: Arc<Connections>,
    number: u64,
    pub(crate) activity: Arc<Activity>,
}

impl Entry {
    /// What this connection is told. Asked after the waker is set, it misses nothing.
    pub(crate) fn phase(&self) -> Phase {
        self.connections.phase()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.open().remove(&self.number);
    }
}

/// Keeps a request open.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Judges a connection at every tick.
#[derive(Debug)]
pub(crate) struct Patience {
    activity: Arc<Activity>,
    begun: u32,
    /// Ticks for which the head of one request has been coming.
    slow: u32,
    /// Ticks for which nothing has happened.
    quiet: u32,
    most_quiet: u32,
    /// Ticks for which the peer has taken no byte of what is ready for it.
    stalled: u32,
    most_stalled: u32,
}

/// What to do with a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Let it go on.
    Keep,
    /// Nobody uses it: say goodbye.
    Retire,
    /// It dawdles with the head of a request, or with taking an answer: close it.
    Close,
}

impl Patience {
    /// Ticks within the time that a head may take; one more is granted, because the first tick
    /// may fall right after its first byte.
    const HEAD_TICKS: u32 = 2;

    /// How often to look, if a head may take `head`.
    pub(crate) fn tick(head: Duration) -> Duration {
        (head / Self::HEAD_TICKS).max(Duration::from_millis(1))
    }

    pub(crate) fn new(activity: Arc<Activity>, limits: &EdgeLimits) -> Self {
        let ticks = |time: Duration| {
            let ticks = time.as_millis() / Self::tick(limits.head).as_millis().max(1);
            u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
        };
        let (most_quiet, most_stalled) = (ticks(limits.idle), ticks(limits.stall));
        Self { activity, begun: 0, slow: 0, quiet: 0, most_quiet, stalled: 0, most_stalled }
    }

    /// Looks once.
    pub(crate) fn look(&mut self) -> Verdict {
        let activity = &*self.activity;
        let begun = activity.begun.load(Ordering::Relaxed);
        let changed = std::mem::replace(&mut self.begun, begun) != begun;
        let written = activity.written.swap(false, Ordering::Relaxed);
        if activity.blocked.load(Ordering::Relaxed) && !written {
            self.stalled += 1;
            if self.stalled > self.most_stalled {
                return Verdict::Close;
            }
        } else {
            self.stalled = 0;
        }
        if activity.open.load(Ordering::Relaxed) > 0 || changed {
            (self.slow, self.quiet) = (0, 0);
            return Verdict::Keep;
        }
        // Before the first request even silence is slow.
        let http2 = activity.http2.load(Ordering::Relaxed);
        if begun == 0 || activity.heading.load(Ordering::Relaxed) && !http2 {
            self.slow += 1;
        } else {
            self.slow = 0;
        }
        self.quiet = if written && !http2 { 0 } else { self.quiet + 1 };
        if self.slow > Self::HEAD_TICKS {
            Verdict::Close
        } else if self.quiet > self.most_quiet {
            Verdict::Retire
        } else {
            Verdict::Keep
        }
    }
}

/// A socket that notes what passes.
pub(crate) struct WatchedStream {
    stream: Wire,
    activity: Arc<Activity>,
}

impl WatchedStream {
    pub(crate) fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self { stream: Wire::new(stream), activity }
    }

    fn note_written(&self, polled: &Poll<io::Result<usize>>) {
        match polled {
            Poll::Ready(Ok(1..)) => {
                self.activity.written.store(true, Ordering::Relaxed);
                if self.activity.blocked.load(Ordering::Relaxed) {
                    self.activity.blocked.store(false, Ordering::Relaxed);
                }
            }
            Poll::Ready(_) => {}
            Poll::Pending => self.activity.blocked.store(true, Ordering::Relaxed),
        }
    }
}

impl Read for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if polled.is_ready() && self.activity.open.load(Ordering::Relaxed) == 0 {
            self.activity.heading.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl Write for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note_written(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.note_written(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience() -> (Arc<Activity>, Patience) {
        let activity = Arc::new(Activity::default());
        let second = Duration::from_secs(1);
        let limits = EdgeLimits {
            head: 2 * second,
            idle: 4 * second,
            stall: 3 * second,
            ..EdgeLimits::usual()
        };
        (Arc::clone(&activity), Patience::new(activity, &limits))
    }

    fn looks(patience: &mut Patience) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        while verdicts.len() < 10
            && !matches!(verdicts.last(), Some(Verdict::Close | Verdict::Retire))
        {
            verdicts.push(patience.look());
        }
        verdicts
    }

    #[test]
    fn a_connection_that_never_sends_a_head_is_closed() {
        let (_activity, mut patience) = patience();
        assert_eq!(looks(&mut patience), [Verdict::Keep, Verdict::Keep, Verdict::Close]);
    }

    #[test]
    fn a_second_head_that_dawdles_is_closed_and_an_idle_connection_retired() {
        let (activity, mut patience) = patience();
        drop(activity.begin(false));
        activity.heading.store(true, Ordering::Relaxed);
        assert_eq!(looks(&mut patience)[1..], [Verdict::Keep, Verdict::Keep, Verdict::Close]);

        let (activity, mut patience) = self::patience();
        drop(activity.begin(false));
        let verdicts = looks(&mut patience);
        assert_eq!((verdicts.len(), verdicts.last()), (6, Some(&Verdict::Retire)));
    }

    #[test]
    fn an_open_request_may_take_any_time() {
        let (activity, mut patience) = patience();
        let busy = activity.begin(true);
        assert!(looks(&mut patience).iter().all(|verdict| *verdict == Verdict::Keep));
        drop(busy);
        assert_eq!(looks(&mut patience).last(), Some(&Verdict::Retire));
    }

    #[test]
    fn a_caller_who_takes_nothing_of_an_answer_is_cut_off_and_a_slow_one_is_not() {
        let (activity, mut patience) = patience();
        let _busy = activity.begin(false);
        activity.blocked.store(true, Ordering::Relaxed);
        for _ in 0..20 {
            activity.written.store(true, Ordering::Relaxed);
            assert_eq!(patience.look(), Verdict::Keep);
        }
        let verdicts = looks(&mut patience);
        assert_eq!((verdicts.len(), verdicts.last()), (4, Some(&Verdict::Close)));
    }

    #[test]
    fn an_answer_that_still_drains_is_not_idle() {
        let (activity, mut patience) = patience();
        drop(activity.begin(false));
        for _ in 0..20 {
            activity.written.store(true, Ordering::Relaxed);
            assert_eq!(patience.look(), Verdict::Keep);
        }
    }
}
