//! The running queue: gives turns, renews leases, forgets what is old, and stops.
//!
//! Nothing here looks for work at intervals: it is woken by what happens, and by the moment at
//! which the next thing is due.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;
use updraft_model::FunctionId;
use updraft_store::StoreError;
use updraft_store::queue::Expiry;

use crate::lanes::{Limits, Turn};
use crate::shared::{Shared, in_future, now};
use crate::{callback, work};

/// How long to wait after the record could not be written.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Longest wait before the record is tried to be reached again.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// How often what others do is looked at, at most.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// Calls that are given up, or forgotten, in one write.
const STEP: u32 = 500;

/// How often calls may be forgotten because there are too many, at most.
const FORGET_EVERY: Duration = Duration::from_secs(5);

/// The tasks of a queue that runs.
#[derive(Debug)]
pub(crate) struct Running {
    /// Everything but the renewal of leases, which goes on until the last call has ended.
    turns: JoinHandle<()>,
    leases: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let leases = tokio::spawn(renew_leases(Arc::clone(shared)));
        Self { turns: tokio::spawn(run(Arc::clone(shared))), leases }
    }

    /// Takes up what is on record once it can be reached, and begins then.
    pub(crate) fn start_later(shared: &Arc<Shared>, error: &StoreError) -> Self {
        tracing::error!(%error, "asynchronous calls are refused until their record can be reached");
        let leases = tokio::spawn(renew_leases(Arc::clone(shared)));
        let shared = Arc::clone(shared);
        let turns = tokio::spawn(async move {
            if wait_for_record(&shared).await {
                run(shared).await;
            }
        });
        Self { turns, leases }
    }

    /// Lets what is under way end, and gives back what does not in time.
    pub(crate) async fn stop(self, shared: &Arc<Shared>) {
        shared.stopping.cancel();
        drop(self.turns.await);
        shared.attempts.close();
        let ended = tokio::time::timeout(shared.options.drain, shared.attempts.wait()).await;
        if ended.is_err() {
            shared.abandoning.cancel();
            shared.attempts.wait().await;
        }
        self.leases.abort();
        drop(self.leases.await);
    }
}

/// Runs the queue until it is to stop.
async fn run(shared: Arc<Shared>) {
    tokio::join!(
        give_turns(&shared),
        callback::dispatch(&shared),
        forget(&shared),
        follow_others(&shared),
    );
}

/// Tries until the record can be reached. False when the queue is to stop before that.
async fn wait_for_record(shared: &Shared) -> bool {
    let mut wait = AFTER_FAILURE;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shared.stopping.cancelled() => return false,
        }
        match shared.take_up().await {
            Ok(()) => {
                tracing::info!("the record of asynchronous calls is reached, they are taken again");
                return true;
            }
            Err(error) => {
                wait = (wait * 2).min(LONGEST_WAIT);
                tracing::error!(%error, retry_in = ?wait, "asynchronous calls are still refused");
            }
        }
    }
}

/// Notices what other instances do to calls that they share with this one.
async fn follow_others(shared: &Shared) {
    loop {
        tokio::select! {
            () = shared.store.changed() => {}
            () = shared.stopping.cancelled() => return,
        }
        if let Err(error) = shared.follow().await {
            tracing::error!(%error, "what other instances did to calls cannot be looked at");
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_EVERY) => {}
            () = shared.stopping.cancelled() => return,
        }
    }
}

/// Waits until `due`, or for ever.
pub(crate) async fn until(due: Option<i64>) {
    match due {
        None => std::future::pending().await,
        Some(due) => {
            let wait = u64::try_from(due.saturating_sub(now())).unwrap_or(0);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }
}

async fn give_turns(shared: &Arc<Shared>) {
    let limit_of = |function: &FunctionId| limit_of(shared, function);
    while !shared.stopping.is_cancelled() {
        let limits = Limits { all: shared.options.concurrency, queues: &shared.options.queues };
        let turn = shared.lanes().next(now(), limits, limit_of);
        if let Some(turn) = turn {
            if shared.invoker.find(&turn.function.to_string()).is_some() {
                take(shared, &turn).await;
            } else {
                bury(shared, &turn).await;
            }
            continue;
        }
        // Where everything is busy, the end of an attempt wakes.
        let due = shared.lanes().next_due(limits, limit_of);
        tokio::select! {
            () = shared.work.notified() => {}
            () = until(due) => {}
            () = shared.stopping.cancelled() => {}
        }
    }
}

/// How many calls of the function may run at once.
fn limit_of(shared: &Shared, function: &FunctionId) -> usize {
    let usual = shared.options.function_concurrency;
    shared
        .invoker
        .find(&function.to_string())
        .and_then(|function| work::concurrency(&function))
        .map_or(usual, |own| own.clamp(1, shared.options.concurrency))
}

/// Leases the calls of a turn and begins them.
async fn take(shared: &Arc<Shared>, turn: &Turn) {
    let until = in_future(shared.options.lease);
    match shared.store.lease(&turn.function, turn.count, until).await {
        Ok(leases) => {
            let next = leases.next.map(|(due, came)| (due.as_millisecond(), came.as_millisecond()));
            shared.lanes().took(turn, leases.calls.len(), next);
            for call in leases.calls {
                let attempt = work::Held::new(shared, &call);
                shared.attempts.spawn(work::make(attempt, call));
            }
        }
        Err(error) => {
            tracing::error!(%error, function = %turn.function, "calls cannot be taken up");
            put_off(shared, turn);
        }
    }
}

/// Gives up the calls of a function that is no more.
async fn bury(shared: &Shared, turn: &Turn) {
    let function = &turn.function;
    let reason = format!("function `{}` was removed", function.name);
    match shared.store.bury(function, reason, STEP).await {
        Ok((calls, bytes)) => {
            if calls > 0 {
                tracing::warn!(%function, calls, "calls of a removed function became dead letters");
                shared.more_dead(function, calls);
                shared.tell.notify_one();
                shared.ended.notify_one();
            }
            let mut lanes = shared.lanes();
            if calls < u64::from(STEP) {
                lanes.took(turn, 0, None);
            }
            lanes.gone(function, calls, bytes);
        }
        Err(error) => {
            tracing::error!(%error, %function, "calls cannot be given up");
            put_off(shared, turn);
        }
    }
}

fn put_off(shared: &Shared, turn: &Turn) {
    let (later, came) = (in_future(AFTER_FAILURE).as_millisecond(), now());
    shared.lanes().put_off(turn, (later, came));
}

/// Renews the leases of calls under way, and sleeps while there are none.
async fn renew_leases(shared: Arc<Shared>) {
    let lease = shared.options.lease;
    loop {
        let held = shared.held();
        if held.is_empty() {
            shared.first_held.notified().await;
        } else if let Err(error) = shared.store.renew(held, in_future(lease)).await {
            tracing::error!(%error, "leases cannot be renewed");
        }
        tokio::time::sleep(lease / 3).await;
    }
}

/// Forgets ended calls when they are too old or too many.
async fn forget(shared: &Shared) {
    while !shared.stopping.is_cancelled() {
        match forget_once(shared).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "old calls cannot be forgotten"),
        }
        let options = &shared.options;
        let oldest = shared.store.oldest_end().await.ok().flatten();
        let keep = options.keep.min(options.keep_dead);
        let due = oldest.map(|oldest| {
            let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
            // A dead letter may well outlive what done calls are kept for.
            oldest.as_millisecond().saturating_add(keep).max(now() + 60_000)
        });
        tokio::select! {
            () = until(due) => {}
            () = shared.ended.notified() => {
                tokio::select! {
                    () = tokio::time::sleep(FORGET_EVERY) => {}
                    () = shared.stopping.cancelled() => {}
                }
            }
            () = shared.stopping.cancelled() => {}
        }
    }
}

/// Whether there may be more.
async fn forget_once(shared: &Shared) -> Result<bool, StoreError> {
    let options = &shared.options;
    let before = |keep: Duration| {
        let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(now().saturating_sub(keep)).unwrap_or(Timestamp::MIN)
    };
    let expiry = Expiry {
        done_before: before(options.keep),
        dead_before: before(options.keep_dead),
        done_kept: options.keep_count,
        dead_kept: options.keep_dead_count,
        step: STEP,
    };
    let gone = shared.store.expire(expiry).await?;
    shared.forgotten(&gone);
    Ok(gone.len() == STEP as usize)
}
