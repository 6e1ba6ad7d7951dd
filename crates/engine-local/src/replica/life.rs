//! The life cycle of one replica: states, what moves it on, and what is then to be done.
//!
//! | state     | event         | next      | to do                 |
//! |-----------|---------------|-----------|-----------------------|
//! | probing   | answered      | ready     | publish               |
//! | probing   | too late      | stopping  | terminate             |
//! | probing   | retire        | stopping  | terminate             |
//! | ready     | retire        | draining  | drain                 |
//! | ready     | unhealthy     | stopping  | terminate             |
//! | draining  | drained       | stopping  | terminate             |
//! | stopping  | grace is over | stopping  | kill                  |
//! | any other | exited        | ended     | clean up              |
//!
//! Whatever is not in the table changes nothing. A frozen replica is a ready one whose door is
//! shut: its function freezes and thaws all of its replicas together (`controller::rest`), and
//! here only the way out knows of it.

/// Where a replica is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It runs and did not answer yet.
    Probing,
    /// It takes requests.
    Ready,
    /// It ends the requests it has and gets no others.
    Draining,
    /// It was told to end.
    Stopping,
    /// Its process is gone.
    Ended,
}

/// What happens to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Its readiness probe was answered with a success.
    Answered,
    /// It did not answer in time.
    TooLate,
    /// It was ready and does not answer any more.
    Unhealthy,
    /// It is not wanted any more.
    Retire,
    /// Its last request has ended, or the limit for that is over.
    Drained,
    /// It did not end in time after it was told to.
    GraceOver,
    /// Its process ended.
    Exited,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Let requests reach it.
    Publish,
    /// Refuse new requests and wait for the open ones.
    Drain,
    /// Ask its process to end.
    Terminate,
    /// End its process.
    Kill,
    /// Remove what is left of it.
    CleanUp,
}

impl Life {
    /// The next state, and what follows from it.
    pub(crate) fn step(self, event: Event) -> (Self, Option<Effect>) {
        match (self, event) {
            (Self::Ended, _) => (Self::Ended, None),
            (_, Event::Exited) => (Self::Ended, Some(Effect::CleanUp)),
            (Self::Probing, Event::Answered) => (Self::Ready, Some(Effect::Publish)),
            (Self::Probing, Event::TooLate | Event::Retire)
            | (Self::Ready, Event::Unhealthy)
            | (Self::Draining, Event::Drained) => (Self::Stopping, Some(Effect::Terminate)),
            (Self::Ready, Event::Retire) => (Self::Draining, Some(Effect::Drain)),
            (Self::Stopping, Event::GraceOver) => (Self::Stopping, Some(Effect::Kill)),
            (state, _) => (state, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVENTS: [Event; 7] = [
        Event::Answered,
        Event::TooLate,
        Event::Unhealthy,
        Event::Retire,
        Event::Drained,
        Event::GraceOver,
        Event::Exited,
    ];

    #[test]
    fn a_replica_is_drained_before_it_is_told_to_end() {
        let mut life = Life::Probing;
        let mut effects = Vec::new();
        for event in
            [Event::Answered, Event::Retire, Event::Drained, Event::GraceOver, Event::Exited]
        {
            let (next, effect) = life.step(event);
            life = next;
            effects.extend(effect);
        }
        assert_eq!(life, Life::Ended);
        use Effect::{CleanUp, Drain, Kill, Publish, Terminate};
        assert_eq!(effects, [Publish, Drain, Terminate, Kill, CleanUp]);
    }

    proptest! {
        #[test]
        fn whatever_happens_it_is_cleaned_up_once_and_never_killed_before_it_was_asked(
            events in proptest::collection::vec(proptest::sample::select(&EVENTS[..]), 0..20)
        ) {
            let mut life = Life::Probing;
            let mut seen = Vec::new();
            for event in events.into_iter().chain([Event::Exited]) {
                let (next, effect) = life.step(event);
                life = next;
                seen.extend(effect);
            }
            prop_assert_eq!(life, Life::Ended);
            prop_assert_eq!(seen.iter().filter(|effect| **effect == Effect::CleanUp).count(), 1);
            prop_assert_eq!(seen.last(), Some(&Effect::CleanUp));
            prop_assert!(seen.iter().filter(|effect| **effect == Effect::Publish).count() <= 1);
            let told = seen.iter().position(|effect| *effect == Effect::Terminate);
            let killed = seen.iter().position(|effect| *effect == Effect::Kill);
            prop_assert!(killed.is_none() || told < killed);
        }
    }
}
