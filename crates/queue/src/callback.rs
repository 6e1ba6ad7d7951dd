//! Telling whoever asked to be told: which callbacks are due, and what came of them.
//!
//! The address is a stranger's choice, so nothing inside is ever reached by it unless the
//! configuration says so; see [`address`].

mod address;
mod send;
mod sign;
mod turns;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use jiff::Timestamp;
use updraft_model::OwnerName;
use updraft_store::queue::{CallbacksDue, LeasedCallback};

use crate::QueueError;
use crate::dispatch::until;
use crate::policy::{RetryPolicy, jitter};
use crate::shared::{Shared, count, in_future};

pub use address::{CallbackTarget, ParseCallbackTargetError};
pub(crate) use send::Caller;
use turns::{CallbackPlace, CallbackTurn, CallbackTurns};

pub use sign::{OpenKeyError, OwnerKey, SigningKey};

/// Longest address.
const URL_MAX: usize = 4096;

/// How long to wait after the record could not be read.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Who may be told of answers, and how.
#[derive(Debug, Clone)]
pub struct CallbackOptions {
    /// What may be told although it lies inside.
    pub allow: Vec<CallbackTarget>,
    /// The domain under which the platform itself is found, and its port.
    pub own: (String, u16),
    /// Signs what is told.
    pub key: SigningKey,
    /// A PEM file with certificates to believe beside the system's.
    pub roots: Option<PathBuf>,
    /// How long telling may take, from the look-up of the name to the answer.
    pub time: Duration,
    /// Callbacks under way at once.
    pub at_once: usize,
    /// Attempts, and the waits between them; the codes are those that may get better.
    pub retry: RetryPolicy,
    /// Updraft's version, for the `User-Agent`.
    pub version: String,
}

impl CallbackOptions {
    /// What suits most installations of the platform at `root`, `port`.
    pub fn usual(root: &str, port: u16, key: SigningKey, version: &str) -> Self {
        Self {
            allow: Vec::new(),
            own: (root.to_owned(), port),
            key,
            roots: None,
            time: Duration::from_secs(10),
            at_once: 64,
            retry: RetryPolicy {
                attempts: 8,
                codes: vec![408, 425, 429, 500, 502, 503, 504],
                min_wait: Duration::from_secs(2),
                max_wait: Duration::from_mins(10),
            },
            version: version.to_owned(),
        }
    }
}

/// What became of one attempt to tell.
#[derive(Debug)]
pub(crate) enum Told {
    /// They took it.
    Taken,
    /// They may take it later, not before the wait when there is one.
    Again(String, Option<Duration>),
    /// There is no point.
    Never(String),
}

/// Checks what can be known of an address without looking its name up.
pub(crate) fn check(url: &Uri, options: &CallbackOptions) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("the callback address {what}"));
    if url.to_string().len() > URL_MAX {
        return wrong("is too long");
    }
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return wrong("has neither the scheme `http` nor `https`");
    }
    let Some(authority) = url.authority() else { return wrong("names no host") };
    if authority.as_str().contains('@') {
        return wrong(
            "holds credentials, which are not sent; let the receiver check the signature",
        );
    }
    if authority.host().is_empty() {
        return wrong("names no host");
    }
    address::check_literal(url, options)
}

/// Makes callbacks as they become due, owner by owner.
pub(crate) async fn dispatch(shared: &Arc<Shared>) {
    let options = &shared.options.callback;
    let lease = options.time * 2 + shared.options.lease;
    let turns = Arc::new(Mutex::new(CallbackTurns::new(options.at_once)));
    let turns_of = |turns: &Mutex<CallbackTurns>, due: &[CallbacksDue]| {
        turns.lock().unwrap_or_else(PoisonError::into_inner).next(due, Timestamp::now())
    };
    while !shared.stopping.is_cancelled() {
        let next = match shared.store.callbacks_due().await {
            Ok(due) => match turns_of(&turns, &due) {
                CallbackTurn::Now { owner, count } => {
                    if take_turn(shared, &turns, owner, count, lease).await {
                        continue;
                    }
                    Some(in_future(AFTER_FAILURE).as_millisecond())
                }
                CallbackTurn::Later(due) => due.map(Timestamp::as_millisecond),
            },
            Err(error) => {
                tracing::error!(%error, "callbacks cannot be looked up");
                Some(in_future(AFTER_FAILURE).as_millisecond())
            }
        };
        tokio::select! {
            () = shared.tell.notified() => {}
            () = until(next) => {}
            () = shared.stopping.cancelled() => {}
        }
    }
}

/// Leases the callbacks of a turn and begins them. False when there were none to be had.
async fn take_turn(
    shared: &Arc<Shared>,
    turns: &Arc<Mutex<CallbackTurns>>,
    owner: Option<OwnerName>,
    count: u32,
    lease: Duration,
) -> bool {
    let leased = shared.store.lease_callbacks(owner.as_ref(), count, in_future(lease)).await;
    let callbacks = match leased {
        Ok(callbacks) => callbacks,
        Err(error) => {
            tracing::error!(%error, "callbacks cannot be taken up");
            return false;
        }
    };
    let any = !callbacks.is_empty();
    for callback in callbacks {
        let place = CallbackPlace::take(turns, owner.clone());
        let shared = Arc::clone(shared);
        shared.attempts.clone().spawn(async move {
            tell(&shared, callback).await;
            drop(place);
            shared.tell.notify_one();
        });
    }
    any
}

/// Makes one callback and records what came of it.
async fn tell(shared: &Shared, callback: LeasedCallback) {
    let (id, attempt) = (&callback.record.id, callback.attempt);
    let Some(told_to) = &callback.record.callback else { return };
    let (url, attempts) = (told_to.url.clone(), told_to.attempts);
    let retry = &shared.options.callback.retry;
    let told = tokio::select! {
        told = shared.caller.tell(shared, &callback) => told,
        // Its lease lapses, and the next start tells them.
        () = shared.abandoning.cancelled() => return,
    };
    let noted = match told {
        Told::Taken => {
            count(&shared.counts.told);
            shared.store.callback_delivered(attempt).await
        }
        Told::Again(reason, wait) if attempts <= retry.attempts => {
            let wait = wait.unwrap_or_default().max(retry.wait(attempts, jitter()));
            tracing::debug!(call = %id, url, reason, ?wait, "a callback is to be made again");
            let noted = shared.store.callback_failed(attempt, Some(in_future(wait)), reason).await;
            shared.tell.notify_one();
            noted
        }
        Told::Again(reason, _) | Told::Never(reason) => {
            count(&shared.counts.untold);
            tracing::warn!(call = %id, url, reason, "a callback was given up");
            shared.store.callback_failed(attempt, None, reason).await
        }
    };
    if let Err(error) = noted {
        tracing::error!(%error, call = %id, "what a callback came to cannot be recorded");
    }
}

impl Caller {
    /// What is made of the options once.
    pub(crate) fn new(options: &CallbackOptions) -> Result<Self, QueueError> {
        Self::open(options.roots.as_deref())
            .map_err(|source| QueueError::Roots { path: options.roots.clone(), source })
    }
}
