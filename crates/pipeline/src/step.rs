//! The transitions of a push: one pure function, so that they can be read and tested as a table.
//!
//! | State | Work to leave it | Outcome | Next state |
//! | --- | --- | --- | --- |
//! | received | check the commit out | checked out | cloned |
//! | cloned | plan each function | planned | planned |
//! | planned | – | builds begun | building |
//! | building | build, make releases | released | released |
//! | released | – | deployment begun | deploying |
//! | deploying | deploy, clean up | deployed, nothing failed | ready |
//! | deploying | deploy, clean up | deployed, something failed | failed |
//! | received | – | nothing to do | nothing-to-do |
//! | any that is not final | – | failed, superseded, cancelled | the state of that name |
//!
//! A state names what is done. It is persisted before anything relies on it, and the work that
//! leaves a state may run twice.

use thiserror::Error;
use updraft_store::PushState;

/// What has to be done to leave a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Put the commit's files into the work folder.
    Checkout,
    /// Read the stack and decide what happens with each function.
    Plan,
    /// Nothing but to say that builds begin.
    BeginBuilds,
    /// Build what has to be built, and make a release of everything that is new.
    Build,
    /// Nothing but to say that the deployment begins.
    BeginDeployment,
    /// Point functions at their releases, and remove those that left the stack.
    Deploy,
}

/// How work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The files are there.
    CheckedOut,
    /// It is decided what happens with each function.
    Planned,
    /// Builds begin.
    BuildsBegun,
    /// Everything that could be built has its release.
    Released,
    /// The deployment begins.
    DeploymentBegun,
    /// Everything that could be deployed is live.
    Deployed {
        /// Whether any function failed on the way.
        any_failed: bool,
    },
    /// This push is none that goes live.
    NothingToDo,
    /// The push as a whole failed.
    Failed,
    /// A newer push took its place.
    Superseded,
    /// Somebody stopped it.
    Cancelled,
}

/// The outcome does not belong to the state; a mistake of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a push that is {state} cannot take the outcome {outcome:?}")]
pub struct StepError {
    state: PushState,
    outcome: Outcome,
}

/// What has to be done to leave `state`; nothing when it is final.
pub const fn work(state: PushState) -> Option<Work> {
    match state {
        PushState::Received => Some(Work::Checkout),
        PushState::Cloned => Some(Work::Plan),
        PushState::Planned => Some(Work::BeginBuilds),
        PushState::Building => Some(Work::Build),
        PushState::Released => Some(Work::BeginDeployment),
        PushState::Deploying => Some(Work::Deploy),
        PushState::Ready
        | PushState::Failed
        | PushState::Superseded
        | PushState::Cancelled
        | PushState::NothingToDo => None,
    }
}

/// The state after `outcome`.
///
/// # Errors
/// [`StepError`] when that outcome cannot happen in that state.
pub const fn step(state: PushState, outcome: Outcome) -> Result<PushState, StepError> {
    use PushState as S;
    if state.is_final() {
        return Err(StepError { state, outcome });
    }
    match (state, outcome) {
        (S::Received, Outcome::CheckedOut) => Ok(S::Cloned),
        (S::Received, Outcome::NothingToDo) => Ok(S::NothingToDo),
        (S::Cloned, Outcome::Planned) => Ok(S::Planned),
        (S::Planned, Outcome::BuildsBegun) => Ok(S::Building),
        (S::Building, Outcome::Released) => Ok(S::Released),
        (S::Released, Outcome::DeploymentBegun) => Ok(S::Deploying),
        (S::Deploying, Outcome::Deployed { any_failed: false }) => Ok(S::Ready),
        (S::Deploying, Outcome::Deployed { any_failed: true }) | (_, Outcome::Failed) => {
            Ok(S::Failed)
        }
        (_, Outcome::Superseded) => Ok(S::Superseded),
        (_, Outcome::Cancelled) => Ok(S::Cancelled),
        _ => Err(StepError { state, outcome }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcomes() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::CheckedOut),
            Just(Outcome::Planned),
            Just(Outcome::BuildsBegun),
            Just(Outcome::Released),
            Just(Outcome::DeploymentBegun),
            any::<bool>().prop_map(|any_failed| Outcome::Deployed { any_failed }),
            Just(Outcome::NothingToDo),
            Just(Outcome::Failed),
            Just(Outcome::Superseded),
            Just(Outcome::Cancelled),
        ]
    }

    fn rank(state: PushState) -> usize {
        PushState::ALL.iter().position(|other| *other == state).unwrap()
    }

    fn success(work: Work) -> Outcome {
        match work {
            Work::Checkout => Outcome::CheckedOut,
            Work::Plan => Outcome::Planned,
            Work::BeginBuilds => Outcome::BuildsBegun,
            Work::Build => Outcome::Released,
            Work::BeginDeployment => Outcome::DeploymentBegun,
            Work::Deploy => Outcome::Deployed { any_failed: false },
        }
    }

    #[test]
    fn work_that_succeeds_leads_from_received_to_ready() {
        let mut state = PushState::Received;
        let mut seen = vec![state];
        while let Some(work) = work(state) {
            state = step(state, success(work)).unwrap();
            seen.push(state);
        }
        assert_eq!(seen, PushState::ALL[..7]);
    }

    #[test]
    fn a_state_is_final_exactly_when_it_has_no_work() {
        for state in PushState::ALL {
            assert_eq!(work(state).is_none(), state.is_final(), "{state}");
        }
    }

    proptest! {
        #[test]
        fn no_sequence_of_outcomes_goes_back_or_leaves_a_final_state(
            sequence in prop::collection::vec(outcomes(), 0..40)
        ) {
            let mut state = PushState::Received;
            for outcome in sequence {
                match step(state, outcome) {
                    Ok(next) => {
                        prop_assert!(!state.is_final());
                        prop_assert!(rank(next) > rank(state));
                        state = next;
                    }
                    Err(error) => prop_assert_eq!(error.state, state),
                }
            }
        }

        #[test]
        fn every_state_that_is_not_final_can_fail_be_superseded_and_be_cancelled(
            index in 0..PushState::ALL.len()
        ) {
            let state = PushState::ALL[index];
            for (outcome, next) in [
                (Outcome::Failed, PushState::Failed),
                (Outcome::Superseded, PushState::Superseded),
                (Outcome::Cancelled, PushState::Cancelled),
            ] {
                prop_assert_eq!(step(state, outcome).ok(), (!state.is_final()).then_some(next));
            }
        }
    }
}
