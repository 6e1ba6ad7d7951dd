//! The story of one push on its way into the store, and out of it to whoever follows.
//!
//! An event is visible once it is durable, never before: followers read the store and are only
//! woken by the writer, so that nobody can see a gap, an event twice, or one that a crash undoes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::Stream;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use updraft_store::{Advance, NewEvent, PushId, PushState, Store, StoreError};

use crate::event::{PushEvent, PushEventKind, from_stored, to_stored};

/// Events that wait for the writer at most; build lines beyond are counted and dropped.
const WAITING_MAX: usize = 10_000;

/// Writes the story of one push.
#[derive(Debug)]
pub(crate) struct Journal {
    push: PushId,
    store: Store,
    waiting: Mutex<Waiting>,
    wake: Notify,
    closed: AtomicBool,
    // Keeps what is written in the order in which it was told.
    writing: tokio::sync::Mutex<()>,
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: Vec<NewEvent>,
    dropped_lines: usize,
    /// Nothing is told after the end.
    over: bool,
}

impl Journal {
    pub(crate) fn new(push: PushId, store: Store) -> Arc<Self> {
        Arc::new(Self {
            push,
            store,
            waiting: Mutex::default(),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            writing: tokio::sync::Mutex::new(()),
            written: watch::Sender::new(0),
        })
    }

    /// Wakes a follower whenever something was written; ends when nobody works on the push.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// Tells an event; it is written soon, together with those that wait with it.
    pub(crate) fn tell(&self, kind: &PushEventKind) {
        let mut waiting = self.waiting();
        if waiting.over {
            return;
        }
        if waiting.events.len() >= WAITING_MAX && matches!(kind, PushEventKind::BuildLine { .. }) {
            waiting.dropped_lines += 1;
            return;
        }
        waiting.events.push(to_stored(kind));
        drop(waiting);
        self.wake.notify_one();
    }

    /// Writes what is told, until [`Self::close`]. One such task runs beside the work on a push.
    pub(crate) async fn write_as_told(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            if let Err(error) = self.flush().await {
                // The work itself stops at its next state, which cannot be written either.
                tracing::error!(push = %self.push, %error, "events of a push were not written");
            }
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Lets the writer end once everything told so far is written.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_waiting(&self) -> Vec<NewEvent> {
        let mut waiting = self.waiting();
        let mut events = std::mem::take(&mut waiting.events);
        let dropped = std::mem::take(&mut waiting.dropped_lines);
        if dropped > 0 {
            let text = format!("{dropped} lines of build output are not shown");
            events.push(to_stored(&PushEventKind::Notice { text }));
        }
        events
    }

    /// Writes everything told so far.
    pub(crate) async fn flush(&self) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        let events = self.take_waiting();
        if events.is_empty() {
            return Ok(());
        }
        self.store.append_events(self.push, events).await?;
        self.written.send_modify(|written| *written += 1);
        Ok(())
    }

    /// Writes everything told so far, the new state and the events that come with it, at once.
    pub(crate) async fn advance(
        &self,
        from: PushState,
        to: PushState,
        detail: Option<Value>,
        kinds: &[PushEventKind],
    ) -> Result<Advance, StoreError> {
        let _writing = self.writing.lock().await;
        let mut events = self.take_waiting();
        self.waiting().over = to.is_final();
        events.extend(kinds.iter().map(to_stored));
        let advance = self.store.advance_push(self.push, from, to, detail, events).await;
        if !matches!(advance, Ok(Advance::Moved { .. })) {
            self.waiting().over = false;
        }
        let advance = advance?;
        self.written.send_modify(|written| *written += 1);
        Ok(advance)
    }
}

/// Where a follower stands.
struct Follower {
    store: Store,
    push: PushId,
    next: u64,
    read: std::vec::IntoIter<PushEvent>,
    watch: Option<watch::Receiver<u64>>,
    over: bool,
}

/// The story of a push from event `from` on: what is written already, then what comes, until the
/// push is over. `watch` is absent when nobody works on the push.
pub(crate) fn follow(
    store: Store,
    push: PushId,
    from: u64,
    watch: Option<watch::Receiver<u64>>,
) -> impl Stream<Item = PushEvent> + Send + 'static {
    let follower = Follower {
        store,
        push,
        next: from.max(1),
        read: Vec::new().into_iter(),
        watch,
        over: false,
    };
    futures_util::stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((event, follower))
    })
}

impl Follower {
    async fn next(&mut self) -> Option<PushEvent> {
        loop {
            if let Some(event) = self.read.next() {
                self.next = event.seq + 1;
                self.over |= matches!(event.kind, PushEventKind::Finished { .. });
                return Some(event);
            }
            if self.over {
                return None;
            }
            // Marked before the read: what is written after it wakes us again.
            if let Some(watch) = &mut self.watch {
                watch.mark_unchanged();
            }
            match self.store.events(self.push, self.next).await {
                Ok(events) if events.is_empty() => {}
                Ok(events) => {
                    self.read = events.into_iter().map(from_stored).collect::<Vec<_>>().into_iter();
                    continue;
                }
                Err(error) => {
                    tracing::error!(push = %self.push, %error, "the story of a push ends early");
                    return None;
                }
            }
            // Without a worker, or once it has ended, what was just read is all there is.
            let Some(watch) = &mut self.watch else { return None };
            if watch.changed().await.is_err() {
                self.watch = None;
            }
        }
    }
}
