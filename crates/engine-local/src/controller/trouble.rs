//! Failures of one revision: how many in a row, the last one, and when to try again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::backoff;
use crate::replica::Failure;

/// After so long without another failure, with all replicas ready, the earlier ones are forgotten.
const STEADY: Duration = Duration::from_mins(1);

/// What went wrong with the replicas of one revision lately.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    pub(super) failures: u32,
    pub(super) last: Option<Failure>,
    pub(super) next_start: Option<Instant>,
    /// The same moment on the calendar, where it is far enough to tell people.
    pub(super) next_start_at: Option<Timestamp>,
    /// When it may be forgotten.
    pub(super) steady: Option<Instant>,
}

impl Trouble {
    pub(super) fn add(&mut self, failure: Failure) {
        let now = Instant::now();
        self.failures += 1;
        let delay = backoff::delay(self.failures);
        self.next_start = Some(now + delay);
        let told = SignedDuration::try_from(delay).ok().filter(|_| !delay.is_zero());
        self.next_start_at = told.and_then(|delay| Timestamp::now().checked_add(delay).ok());
        self.steady = Some(now + STEADY);
        self.last = Some(failure);
    }

    pub(super) fn may_be_forgotten(&self) -> bool {
        self.steady.is_some_and(|at| at <= Instant::now())
    }

    pub(super) fn is_over(&self) -> bool {
        self.next_start.is_none_or(|at| at <= Instant::now())
    }
}
