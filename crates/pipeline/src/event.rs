//! The story of a push, told once and read by everybody: terminal, API, dashboard.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use updraft_model::{FunctionName, ImageRef, ItemKey, OwnerName, RepositoryName, SecretName};
use updraft_store::{BuildId, NewEvent, PushState, StoredEvent};

/// The form of event bodies that this version writes. Readers of another form show it as
/// unreadable rather than wrong.
const FORM: u32 = 1;

/// One thing that happened during a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushEvent {
    /// Its place in the story, from 1, without gaps.
    pub seq: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub kind: PushEventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PushEventKind {
    /// The push reached a state.
    State {
        /// Which.
        state: PushState,
    },
    /// It is decided what happens with each function.
    Plan {
        /// The functions of the stack, by name.
        functions: Vec<PlannedFunction>,
        /// Functions that left the stack and will be removed.
        removed: Vec<FunctionName>,
    },
    /// Something to tell the user, in passing.
    Notice {
        /// The text, one line.
        text: String,
    },
    /// Something the user should change, although the push goes on.
    Warning {
        /// The text, one line.
        text: String,
    },
    /// A build began.
    BuildStarted {
        /// Of which function.
        function: FunctionName,
        /// Its record, by which its whole output can be read.
        build: BuildId,
    },
    /// A build wrote a line.
    BuildLine {
        /// Of which function.
        function: FunctionName,
        /// The line, without escape sequences.
        line: String,
    },
    /// Nothing had to be built: an earlier build had the same input.
    BuildReused {
        /// Of which function.
        function: FunctionName,
        /// The image of that build.
        image: ImageRef,
    },
    /// A build gave an image.
    BuildFinished {
        /// Of which function.
        function: FunctionName,
        /// Its record.
        build: BuildId,
        /// The image.
        image: ImageRef,
        /// How long it took.
        milliseconds: u64,
    },
    /// A function answers with a new release.
    Deployed {
        /// Which function.
        function: FunctionName,
        /// The release that is live now.
        release: u64,
        /// Where it is called.
        url: String,
    },
    /// A function stays as it is.
    Unchanged {
        /// Which function.
        function: FunctionName,
        /// The release that is live.
        release: u64,
        /// Where it is called.
        url: String,
    },
    /// A function stays at the release it was rolled back to.
    Pinned {
        /// Whose function.
        owner: OwnerName,
        /// Which function.
        function: FunctionName,
        /// The release that is live and stays.
        live: u64,
        /// The newest release, which waits.
        newest: u64,
        /// Where it is called.
        url: String,
    },
    /// A function that left the stack is gone.
    Removed {
        /// Which function.
        function: FunctionName,
    },
    /// A function failed; the others go on, and what it served before it still serves.
    FunctionFailed {
        /// Which function.
        function: FunctionName,
        /// Where it failed.
        step: FailedStep,
        /// Why.
        reason: String,
        /// The last lines of its build or of its replica, oldest first.
        log_tail: Vec<String>,
        /// What to do about it, when we know.
        hint: Option<String>,
    },
    /// The push as a whole failed; nothing of it is live.
    PushFailed {
        /// Where it failed.
        step: FailedStep,
        /// Why; may have several lines, for instance an excerpt of the stack file.
        reason: String,
        /// What to do about it, when we know.
        hint: Option<String>,
    },
    /// A sealed secret of the repository is the owner's secret now.
    SecretTaken {
        /// Its name.
        secret: SecretName,
        /// The file in the repository.
        file: String,
        /// The keys of its items.
        keys: Vec<ItemKey>,
        /// What that changed.
        outcome: SecretOutcome,
    },
    /// A sealed secret, or a file of them, cannot be taken; what was there before stays in force.
    SecretRefused {
        /// The file in the repository.
        file: String,
        /// Where in the file; empty for the file as a whole.
        place: String,
        /// The secret's name as the file has it.
        name: Option<String>,
        /// Why.
        reason: String,
        /// Whether there is a secret of that name from before.
        keeps: bool,
        /// Functions that go on with it.
        users: Vec<FunctionName>,
    },
    /// A secret that left the repository's files is gone.
    SecretRemoved {
        /// Its name.
        secret: SecretName,
    },
    /// A secret left the repository's files and stays, because functions have it.
    SecretStays {
        /// Its name.
        secret: SecretName,
        /// Those functions.
        users: Vec<FunctionName>,
    },
    /// A function that the push does not deploy was started afresh with changed secrets.
    Rolled {
        /// Which function.
        function: FunctionName,
        /// The repository that declares it.
        repository: RepositoryName,
        /// Its release, the same as before.
        release: u64,
        /// The secrets.
        secrets: Vec<SecretName>,
    },
    /// The push is over.
    Finished {
        /// How it ended.
        verdict: Verdict,
    },
}

/// What taking a sealed secret changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretOutcome {
    /// There was none of that name.
    Created,
    /// It holds other items now; its functions are started afresh.
    Replaced,
    /// It held the same items already.
    Unchanged,
}

/// Where something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailedStep {
    /// While the files of the commit were put into place.
    Checkout,
    /// While the stack was read and the work planned.
    Plan,
    /// While an image was built.
    Build,
    /// While the release was recorded.
    Release,
    /// While the function was deployed.
    Deploy,
    /// While functions that left the stack were removed.
    CleanUp,
}

impl FailedStep {
    /// The step's name, for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Checkout => "checkout",
            Self::Plan => "plan",
            Self::Build => "build",
            Self::Release => "release",
            Self::Deploy => "deploy",
            Self::CleanUp => "clean-up",
        }
    }
}

/// A function of the stack and what happens with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFunction {
    /// Which function.
    pub name: FunctionName,
    /// Its template (`lang`); empty when it has none, for instance a ready image.
    pub template: String,
    /// What happens with it.
    pub action: PlannedAction,
}

/// What happens with a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum PlannedAction {
    /// Its image is built.
    Build,
    /// An image that an earlier build gave is deployed with new settings.
    Reuse,
    /// A ready image is deployed.
    Image,
    /// Nothing: what is live is what the stack says.
    Unchanged,
    /// Nothing: it cannot be deployed, see its failure.
    Refused,
    /// Nothing: another repository of the owner declares it.
    Taken {
        /// That repository.
        by: RepositoryName,
    },
}

/// How a push ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The final state.
    pub state: PushState,
    /// One line for people, for instance `2 functions live, 1 failed: hello (build)`.
    pub summary: String,
    /// How long the push took, from its record on.
    pub milliseconds: u64,
}

impl Verdict {
    /// Whether the push did what it was meant to; `git push` exits non-zero when not.
    ///
    /// A push that a newer one replaced did no harm and is no failure.
    pub fn is_success(&self) -> bool {
        !matches!(self.state, PushState::Failed | PushState::Cancelled)
    }
}

/// Gives an event its stored form.
pub(crate) fn to_stored(kind: &PushEventKind) -> NewEvent {
    let mut body = serde_json::to_value(kind).unwrap_or_default();
    if let Value::Object(fields) = &mut body {
        fields.insert("v".to_owned(), FORM.into());
    }
    NewEvent { at: Timestamp::now(), body }
}

/// Reads an event's stored form. What another version wrote in a form of its own becomes a
/// notice, so that a story stays readable from end to end.
pub(crate) fn from_stored(stored: StoredEvent) -> PushEvent {
    let StoredEvent { seq, at, body } = stored;
    let known = body.get("v").and_then(Value::as_u64) == Some(FORM.into());
    let kind = if known { serde_json::from_value(body).ok() } else { None };
    let kind = kind.unwrap_or_else(|| PushEventKind::Notice {
        text: "(an event that this version of Updraft cannot read)".to_owned(),
    });
    PushEvent { seq, at, kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_reads_back_and_says_its_form() {
        let kind = PushEventKind::BuildLine {
            function: FunctionName::new("hello").unwrap(),
            line: "STEP 1".to_owned(),
        };
        let stored = to_stored(&kind);
        assert_eq!(stored.body["v"], 1);
        let event = StoredEvent { seq: 3, at: stored.at, body: stored.body };
        assert_eq!(from_stored(event).kind, kind);
    }

    #[test]
    fn an_event_of_another_form_is_shown_as_unreadable() {
        let body = serde_json::json!({ "v": 99, "kind": "state", "state": "ready" });
        let event = StoredEvent { seq: 1, at: Timestamp::UNIX_EPOCH, body };
        assert!(matches!(from_stored(event).kind, PushEventKind::Notice { .. }));
    }

    #[test]
    fn the_wire_form_is_flat_and_tagged() {
        let event = PushEvent {
            seq: 7,
            at: Timestamp::UNIX_EPOCH,
            kind: PushEventKind::State { state: PushState::Cloned },
        };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"seq":7,"at":"1970-01-01T00:00:00Z","kind":"state","state":"cloned"}"#
        );
    }
}
