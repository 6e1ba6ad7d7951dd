//! What a push notes with its state, so that a new start can go on from there.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use updraft_model::FunctionName;

use crate::event::{FailedStep, PlannedFunction};

/// The form that this version writes and reads.
const FORM: u32 = 1;

/// Starts after which a push is given up: one that brings the process down each time must not
/// do so for ever.
pub(crate) const ATTEMPTS_MAX: u32 = 5;

/// What a push notes with its state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Detail {
    /// Starts of the process that went on with this push.
    pub(crate) attempts: u32,
    /// From `planned` on: what happens with each function.
    pub(crate) plan: Vec<PlannedFunction>,
    /// From `planned` on: functions that left the stack.
    pub(crate) removed: Vec<FunctionName>,
    /// From `released` on: which release each function is to have.
    pub(crate) targets: Vec<Target>,
    /// From `released` on: functions that have none, because they failed before.
    pub(crate) failed: Vec<Failure>,
    /// From `deploying` on: secrets, or files of them, that could not be taken.
    pub(crate) refused_secrets: Vec<String>,
}

/// The release that a function is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) function: FunctionName,
    pub(crate) release: u64,
    /// Whether that release is live and runs already.
    pub(crate) unchanged: bool,
}

/// A function that failed, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) function: FunctionName,
    pub(crate) step: FailedStep,
    /// It waits for a secret: its release goes live when that is there.
    #[serde(default)]
    pub(crate) waits: bool,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    v: u32,
    #[serde(flatten)]
    detail: Detail,
}

impl Detail {
    pub(crate) fn to_stored(&self) -> Option<Value> {
        serde_json::to_value(Stored { v: FORM, detail: self.clone() }).ok()
    }

    /// Reads what was noted; nothing when it has another form.
    pub(crate) fn from_stored(stored: Option<&Value>) -> Option<Self> {
        let Some(stored) = stored else { return Some(Self::default()) };
        let stored: Stored = serde_json::from_value(stored.clone()).ok()?;
        (stored.v == FORM).then_some(stored.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_reads_back_and_another_form_does_not() {
        let detail = Detail {
            attempts: 2,
            targets: vec![Target {
                function: FunctionName::new("hello").unwrap(),
                release: 3,
                unchanged: false,
            }],
            ..Detail::default()
        };
        let mut stored = detail.to_stored().unwrap();
        assert_eq!(Detail::from_stored(Some(&stored)), Some(detail));
        assert_eq!(Detail::from_stored(None), Some(Detail::default()));
        stored["v"] = 2.into();
        assert_eq!(Detail::from_stored(Some(&stored)), None);
    }
}
