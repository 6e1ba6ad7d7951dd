//! What the door and the workers share.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use updraft_invoke::Invoker;
use updraft_model::FunctionId;
use updraft_store::StoreError;
use updraft_store::queue::{Attempt, CallRecord, CallStore, LeasedCall};

use crate::callback::Caller;
use crate::lanes::Lanes;
use crate::queue::QueueParts;
use crate::{QueueError, QueueOptions};

pub(crate) struct Shared {
    pub(crate) store: Arc<dyn CallStore>,
    /// Whether what is on record was taken up.
    taken_up: AtomicBool,
    pub(crate) invoker: Arc<Invoker>,
    pub(crate) options: QueueOptions,
    lanes: Mutex<Lanes>,
    /// The calls under way, by number.
    held: Mutex<HashMap<i64, Held>>,
    /// Dead letters by function.
    dead: Mutex<HashMap<FunctionId, u64>>,
    pub(crate) counts: Counts,
    /// Something is due, or a worker is free.
    pub(crate) work: Notify,
    /// A callback is due, or a caller of callbacks is free.
    pub(crate) tell: Notify,
    /// A call has ended and may be forgotten some day.
    pub(crate) ended: Notify,
    /// A first call is under way, whose lease wants to be renewed.
    pub(crate) first_held: Notify,
    /// No new attempts from now on.
    pub(crate) stopping: CancellationToken,
    /// Attempts under way are given up.
    pub(crate) abandoning: CancellationToken,
    pub(crate) attempts: TaskTracker,
    pub(crate) caller: Caller,
}

/// A call under way.
struct Held {
    attempt: Attempt,
    hang_up: CancellationToken,
}

/// What has happened since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) submitted: AtomicU64,
    pub(crate) processed: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) buried: AtomicU64,
    pub(crate) told: AtomicU64,
    pub(crate) untold: AtomicU64,
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Now, in milliseconds since 1970.
pub(crate) fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// So much later than now.
pub(crate) fn in_future(wait: std::time::Duration) -> Timestamp {
    let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(now().saturating_add(wait)).unwrap_or(Timestamp::MAX)
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn open(parts: QueueParts) -> Result<Arc<Self>, QueueError> {
        let QueueParts { store, invoker, options } = parts;
        let caller = Caller::new(&options.callback)?;
        Ok(Arc::new(Self {
            taken_up: AtomicBool::new(false),
            lanes: Mutex::default(),
            held: Mutex::default(),
            dead: Mutex::default(),
            counts: Counts::default(),
            work: Notify::new(),
            tell: Notify::new(),
            ended: Notify::new(),
            first_held: Notify::new(),
            stopping: CancellationToken::new(),
            abandoning: CancellationToken::new(),
            attempts: TaskTracker::new(),
            caller,
            store,
            invoker,
            options,
        }))
    }

    /// Takes up what is on record; calls are accepted from then on.
    pub(crate) async fn take_up(&self) -> Result<(), StoreError> {
        let recovered = self.store.recover().await?;
        let waiting = self.store.waiting().await?;
        let dead = self.store.dead().await?;
        let calls: u64 = waiting.iter().map(|waiting| waiting.calls).sum();
        if calls > 0 {
            tracing::info!(calls, recovered, "asynchronous calls go on");
        }
        *self.lanes() = Lanes::of(waiting);
        *locked(&self.dead) = dead.into_iter().collect();
        self.taken_up.store(true, Ordering::Release);
        Ok(())
    }

    pub(crate) fn is_taken_up(&self) -> bool {
        self.taken_up.load(Ordering::Acquire)
    }

    /// Looks at what others did to the calls that this instance shares with them.
    pub(crate) async fn follow(&self) -> Result<(), StoreError> {
        let before = self.lanes().changes();
        let (waiting, dead) = (self.store.waiting().await?, self.store.dead().await?);
        self.lanes().follow(waiting, &before);
        *locked(&self.dead) = dead.into_iter().collect();
        for attempt in self.held() {
            if !self.store.holds(attempt).await? {
                self.hang_up(attempt.call);
            }
        }
        self.work.notify_one();
        self.tell.notify_one();
        Ok(())
    }

    pub(crate) fn lanes(&self) -> MutexGuard<'_, Lanes> {
        locked(&self.lanes)
    }

    /// A call is on record.
    pub(crate) fn accepted(&self, function: &FunctionId, bytes: u64, created: i64) {
        count(&self.counts.submitted);
        self.lanes().kept(function, bytes, created);
        self.work.notify_one();
    }

    /// Calls are on record again.
    pub(crate) fn redriven(&self, calls: &[CallRecord]) {
        for call in calls {
            self.fewer_dead(&call.function);
            let created = call.created_at.as_millisecond();
            let (owner, queue) = (call.owner.clone(), call.queue.clone());
            let mut lanes = self.lanes();
            lanes.add(&call.function, owner, queue, call.body_length, created);
            lanes.due(&call.function, call.due.as_millisecond());
        }
        self.work.notify_one();
    }

    /// Ended calls are no longer on record.
    pub(crate) fn forgotten(&self, calls: &[CallRecord]) {
        for call in calls.iter().filter(|call| call.state == crate::CallState::Dead) {
            self.fewer_dead(&call.function);
        }
    }

    pub(crate) fn more_dead(&self, function: &FunctionId, count: u64) {
        *locked(&self.dead).entry(function.clone()).or_default() += count;
        self.counts.buried.fetch_add(count, Ordering::Relaxed);
    }

    fn fewer_dead(&self, function: &FunctionId) {
        let mut dead = locked(&self.dead);
        if let Some(count) = dead.get_mut(function) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                dead.remove(function);
            }
        }
    }

    pub(crate) fn dead(&self) -> Vec<(FunctionId, u64)> {
        locked(&self.dead).iter().map(|(function, count)| (function.clone(), *count)).collect()
    }

    /// Notes that a call is under way; the token ends it early.
    pub(crate) fn hold(&self, call: &LeasedCall) -> CancellationToken {
        let hang_up = CancellationToken::new();
        let mut held = locked(&self.held);
        let before = held
            .insert(call.record.number, Held { attempt: call.attempt, hang_up: hang_up.clone() });
        if let Some(before) = before {
            // Its lease lapsed and another attempt has begun: what it brings does not count.
            before.hang_up.cancel();
        }
        drop(held);
        self.first_held.notify_one();
        hang_up
    }

    /// Notes that an attempt has ended.
    pub(crate) fn let_go(&self, number: i64, attempt: Attempt, function: &FunctionId) {
        let mut held = locked(&self.held);
        if held.get(&number).is_some_and(|held| held.attempt == attempt) {
            held.remove(&number);
        }
        drop(held);
        self.lanes().stopped(function);
        self.work.notify_one();
    }

    pub(crate) fn hang_up(&self, number: i64) {
        if let Some(held) = locked(&self.held).get(&number) {
            held.hang_up.cancel();
        }
    }

    /// The attempts under way.
    pub(crate) fn held(&self) -> Vec<Attempt> {
        locked(&self.held).values().map(|held| held.attempt).collect()
    }
}
