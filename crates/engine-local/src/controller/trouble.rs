//! Failures of one revision: how many in a row, the last one, and when to try again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::backoff;
use crate::replica::Failure;

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
    /// Counts a failure. `steady_after` is how long its replicas must do well for it to be
    /// forgotten.
    pub(super) fn add(&mut self, failure: Failure, steady_after: Duration) {
        let now = Instant::now();
        self.failures += 1;
        let delay = backoff::delay(self.failures);
        self.next_start = Some(now + delay);
        let told = SignedDuration::try_from(delay).ok().filter(|_| !delay.is_zero());
        self.next_start_at = told.and_then(|delay| Timestamp::now().checked_add(delay).ok());
        self.steady = Some(now + steady_after);
        self.last = Some(failure);
    }

    /// The replicas were frozen for so long. They could not fail meanwhile, which is no sign that
    /// they do well.
    pub(super) fn rested(&mut self, length: Duration) {
        self.steady = self.steady.map(|at| at + length);
    }

    pub(super) fn may_be_forgotten(&self) -> bool {
        self.steady.is_some_and(|at| at <= Instant::now())
    }

    pub(super) fn is_over(&self) -> bool {
        self.next_start.is_none_or(|at| at <= Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn time_in_which_nothing_could_fail_is_no_time_of_doing_well() {
        let failure = Failure {
            reason: "it exited with code 1".to_owned(),
            log_tail: Vec::new(),
            exit: Exit::Code(1),
            out_of_memory: false,
        };
        let mut trouble = Trouble::default();
        trouble.rested(Duration::from_hours(1));
        assert!(!trouble.may_be_forgotten(), "there is nothing to forget");
        trouble.add(failure, Duration::ZERO);
        assert!(trouble.may_be_forgotten());
        trouble.rested(Duration::from_hours(1));
        assert!(!trouble.may_be_forgotten());
    }
}
