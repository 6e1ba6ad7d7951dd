//! Requests that find no ready replica: one wakes the function, all of them wait, none for ever.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use updraft_engine::Availability;

use crate::failure::Failure;
use crate::function::{Function, FunctionState};
use crate::invoker::Shared;

/// How long a wake-up that the engine has accepted may take to show in the table, before another
/// request may ask again.
const WAKE_SHOWS: Duration = Duration::from_secs(5);

/// A place among those who wait for a function.
struct Waiter<'a>(&'a FunctionState);

impl<'a> Waiter<'a> {
    fn enter(state: &'a FunctionState, most: usize) -> Option<Self> {
        let waiter = Self(state);
        (state.waiters.fetch_add(1, Ordering::Relaxed) < most).then_some(waiter)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// Waits until the function has replicas that `tried` did not have. One that rests is thawed
    /// here and now where the engine lets us; `thawed` says which version the call has tried so.
    ///
    /// # Errors
    /// The function is gone, cannot be started, or did not start in time; or too many wait.
    pub(crate) async fn wait_ready(
        self: &Arc<Self>,
        tried: &Arc<Function>,
        thawed: &mut Option<Arc<Function>>,
        deadline: Instant,
    ) -> Result<Arc<Function>, Failure> {
        let state = &tried.state;
        let name = &*state.name;
        let Some(_waiter) = Waiter::enter(state, self.options.waiters) else {
            let reason = format!("{} requests wait for it already", self.options.waiters);
            return Err(Failure::invoke(StatusCode::TOO_MANY_REQUESTS, name, reason).retry_after(1));
        };
        // Subscribed before the table is read, so that no change is missed.
        let mut changes = self.changes.subscribe();
        let mut patience: Option<Instant> = None;
        loop {
            let function = self.table.load().by_name(&state.qualified).map(Arc::clone);
            let Some(function) = function else {
                let reason = "the function was removed while the request waited for it";
                return Err(Failure::invoke(StatusCode::NOT_FOUND, name, reason));
            };
            let mut waking = None;
            let mut until = deadline;
            match function.availability() {
                Availability::Ready if !Arc::ptr_eq(&function, tried) => return Ok(function),
                Availability::Frozen
                    if thawed.as_ref().is_none_or(|before| !Arc::ptr_eq(before, &function))
                        && function.thaw() =>
                {
                    *thawed = Some(Arc::clone(&function));
                    return Ok(function);
                }
                Availability::Asleep | Availability::Frozen => {
                    waking = Some(self.wake(&function));
                }
                Availability::Failing(_) => {
                    let end = Instant::now() + self.options.failing_patience;
                    until = until.min(*patience.get_or_insert(end));
                }
                Availability::Ready | Availability::Starting => {}
            }
            let event = timeout_at(until, async {
                match waking {
                    None => changes.changed().await.err().map(|_| None),
                    Some(mut waking) => tokio::select! {
                        _ = changes.changed() => None,
                        refused = waking.changed() => match refused {
                            Ok(()) => Some(waking.borrow().clone()),
                            Err(_) => None,
                        },
                    },
                }
            });
            match event.await {
                Ok(Some(Some(reason))) => {
                    return Err(not_startable(name, &reason));
                }
                Ok(Some(None)) => {
                    return Err(not_startable(name, "the platform is shutting down"));
                }
                Ok(None) => {}
                Err(_) => {
                    if let Availability::Failing(reason) = function.availability() {
                        return Err(not_startable(name, reason));
                    }
                    let limit = updraft_model::format_duration(self.options.wake_limit);
                    return Err(not_startable(
                        name,
                        &format!("no replica was ready within {limit}"),
                    ));
                }
            }
        }
    }

    /// Waits until a function has failed for as long as callers are kept waiting for that; the
    /// reason is the engine's. For those in its line, who wait for nobody then.
    pub(crate) async fn fails(&self, qualified: &str) -> String {
        let mut changes = self.changes.subscribe();
        let mut since: Option<Instant> = None;
        loop {
            let function = self.table.load().by_name(qualified).map(Arc::clone);
            let reason = function.and_then(|function| match function.availability() {
                Availability::Failing(reason) => Some(reason.clone()),
                _ => None,
            });
            let changed = async {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let Some(reason) = reason else {
                since = None;
                changed.await;
                continue;
            };
            let end = *since.get_or_insert_with(Instant::now) + self.options.failing_patience;
            if timeout_at(end, changed).await.is_err() {
                return reason;
            }
        }
    }

    /// Asks the engine for replicas unless somebody does already; the receiver gets the reason
    /// if that fails, and is closed when asking again makes sense.
    pub(crate) fn wake(
        self: &Arc<Self>,
        function: &Arc<Function>,
    ) -> watch::Receiver<Option<String>> {
        let state = &function.state;
        let mut slot = state.waking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waking) = &*slot
            && waking.has_changed().is_ok()
        {
            return waking.clone();
        }
        let (outcome, waking) = watch::channel(None);
        *slot = Some(waking.clone());
        drop(slot);
        tokio::spawn(run_wake(Arc::clone(self), Arc::clone(function), outcome));
        waking
    }
}

async fn run_wake(
    shared: Arc<Shared>,
    function: Arc<Function>,
    outcome: watch::Sender<Option<String>>,
) {
    let id = function.id();
    tracing::debug!(function = %id, "waking a function");
    let mut changes = shared.changes.subscribe();
    let woken = timeout(shared.options.wake_limit, shared.engine.wake(id)).await;
    let refused = match woken {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            tracing::warn!(function = %id, error = &error as &dyn std::error::Error, "cannot wake");
            Some(error.to_string())
        }
        Err(_) => Some("the engine did not answer".to_owned()),
    };
    if refused.is_some() {
        outcome.send_replace(refused);
        return;
    }
    let shown = async {
        loop {
            // Not by what it says: a function may rest again before anybody has looked.
            let shown = shared
                .table
                .load()
                .by_name(&function.state.qualified)
                .is_none_or(|now| !Arc::ptr_eq(&now.endpoints, &function.endpoints));
            if shown || changes.changed().await.is_err() {
                return;
            }
        }
    };
    // A function that still rests then may be woken once more.
    let _ = timeout(WAKE_SHOWS, shown).await;
}

pub(crate) fn not_startable(name: &str, reason: &str) -> Failure {
    let reason = format!("the function could not be started: {reason}");
    Failure::invoke(StatusCode::SERVICE_UNAVAILABLE, name, reason).retry_after(2)
}
