//! The JSON of `/api/v1`, as the server writes it and the client reads it.
//!
//! Fields may be added to answers; readers ignore what they do not know. Nothing here ever holds
//! a secret's value; the one type that holds a token's text does not print it.

mod calls;
mod disk;
mod engine;
mod scaling;
mod schedules;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
pub use updraft_engine::SecretOrigin;
use updraft_model::{
    Digest, FunctionName, ImageRef, ItemKey, OwnerName, RepositoryName, SecretName,
};
pub use updraft_pipeline::{ItemAction, SecretAction, SecretDifference};
use updraft_store::{BuildId, BuildState, PushId, PushState, TokenId};

pub use calls::{Call, CallResult, Callback, CallbackKey, Redriven};
pub use disk::{CollectedImage, DiskUse, KeptImage, UsedBy};
pub use engine::{Engine, Fact, FunctionReplicas, ReplicaDetail, ReplicaExit, Trouble};
pub use scaling::{Decision, Scaling, Target};
pub use schedules::{Schedule, ScheduledRun};

/// A request that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What is wrong.
    pub error: FailureDetail,
}

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureDetail {
    /// What failed and why, one sentence.
    pub reason: String,
    /// What to do about it, when we know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The server itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Updraft's release.
    pub release: String,
    /// The commit it was built from.
    pub commit: String,
    /// What runs the functions.
    pub engine: String,
    /// The root domain: functions live on `<owner>.<root>`.
    pub root: String,
}

/// A function, deployed or only declared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// Whose it is; absent for one that came through the OpenFaaS API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerName>,
    /// What its owner calls it; without an owner, the visible name.
    pub name: FunctionName,
    /// Where it is called.
    pub url: String,
    /// The repository that declares it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The image that runs; absent when nothing is deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// Replicas desired.
    pub replicas: u32,
    /// Replicas that are ready.
    pub available_replicas: u32,
    /// The replicas that take requests now.
    #[serde(default)]
    pub ready: Vec<Replica>,
    /// The release that is live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<u64>,
    /// Whether that release stays although newer ones come.
    pub pinned: bool,
    /// The commit of the live release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// When it was first deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// Why not all is well, when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What its labels and annotations get wrong, and what holds instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// How it is scaled; absent until the scaler has looked at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
}

/// One replica of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The engine's name for it; log lines carry it.
    pub name: String,
    /// Where its HTTP server listens, reachable from this machine only.
    pub address: SocketAddr,
}

/// A push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// Its number.
    pub id: PushId,
    /// Whose repository.
    pub owner: OwnerName,
    /// Which repository.
    pub repository: RepositoryName,
    /// The full name of the ref that moved.
    pub reference: String,
    /// The commit that it moved to.
    pub commit: String,
    /// How far it has come.
    pub state: PushState,
    /// Whether it came as files, without git.
    pub uploaded: bool,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// The answer to an upload: the push that was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// The push; its events tell what becomes of it.
    pub push: PushId,
}

/// A build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Its number.
    pub id: BuildId,
    /// The push that asked for it.
    pub push: PushId,
    /// Whose function.
    pub owner: OwnerName,
    /// Which function.
    pub function: FunctionName,
    /// How it stands.
    pub state: BuildState,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The image it gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// A release of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Its number.
    pub number: u64,
    /// The push it came from.
    pub push: PushId,
    /// The commit.
    pub commit: String,
    /// The image.
    pub image: ImageRef,
    /// The image's digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<Digest>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Whether it is the live one.
    pub live: bool,
    /// Whether it is live and stays so.
    pub pinned: bool,
    /// Whether its image is still here, so that it can be gone back to.
    #[serde(default = "yes")]
    pub kept: bool,
}

/// What an older server does not tell.
const fn yes() -> bool {
    true
}

/// Where to roll a function back to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Rollback {
    /// To the release before the live one, and stay there.
    #[default]
    Previous,
    /// To the release of that number, and stay there.
    To(u64),
    /// To the newest release, and follow pushes again.
    Unpin,
}

/// One line that a function wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// The replica.
    pub instance: String,
    /// When.
    pub timestamp: Timestamp,
    /// The line.
    pub text: String,
}

/// A secret of an owner: everything but its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// What stack files call it.
    pub name: SecretName,
    /// Its items; each is a file of its functions.
    pub items: Vec<SecretItem>,
    /// Changes with the items. Nothing can be learnt from it about the values.
    pub digest: String,
    /// Its type; `Opaque` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Who made it what it is.
    pub origin: SecretOrigin,
    /// When there was first a secret of that name.
    pub created_at: Timestamp,
    /// When its items changed last.
    pub changed_at: Timestamp,
    /// The owner's functions that have it.
    pub users: Vec<FunctionName>,
}

/// One item of a secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretItem {
    /// Its key, the file's name.
    pub key: ItemKey,
    /// Changes with the value. Nothing can be learnt from it about the value.
    pub digest: String,
    /// How long the value is.
    pub bytes: usize,
}

/// Items that a secret is to hold. Does not print.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretItems {
    /// Values in base64, by key.
    pub items: BTreeMap<ItemKey, String>,
}

impl fmt::Debug for SecretItems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.items.keys()).finish()
    }
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The name.
    pub name: OwnerName,
    /// When the owner was first seen; absent in requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
}

/// A token to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Whose it will be; made when new.
    pub owner: OwnerName,
    /// What it is for.
    pub name: String,
}

/// A token that was just made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// What lists and revocations call it.
    pub id: TokenId,
    /// Whose it is.
    pub owner: OwnerName,
    /// The token; it cannot be read again.
    pub token: Hidden,
}

/// What is known of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// What revocations call it.
    pub id: TokenId,
    /// Whose it is.
    pub owner: OwnerName,
    /// What it is for.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last accepted, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
}

/// A text that does not print.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hidden(String);

impl Hidden {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, to be shown to whom it belongs and to nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(…)")
    }
}

impl From<updraft_store::Push> for Push {
    fn from(push: updraft_store::Push) -> Self {
        Self {
            id: push.id,
            owner: push.owner,
            repository: push.repository,
            reference: push.reference,
            commit: push.commit,
            state: push.state,
            uploaded: push.upload.is_some(),
            created_at: push.created_at,
            finished_at: push.finished_at,
        }
    }
}

impl From<updraft_store::Build> for Build {
    fn from(build: updraft_store::Build) -> Self {
        Self {
            id: build.id,
            push: build.push,
            owner: build.owner,
            function: build.function,
            state: build.state,
            reason: build.reason,
            image: build.image.map(|(image, _)| image),
            started_at: build.started_at,
            finished_at: build.finished_at,
        }
    }
}

impl From<updraft_store::Token> for Token {
    fn from(token: updraft_store::Token) -> Self {
        Self {
            id: token.id,
            owner: token.owner,
            name: token.name,
            created_at: token.created_at,
            last_used: token.last_used,
        }
    }
}

impl From<updraft_store::Owner> for Owner {
    fn from(owner: updraft_store::Owner) -> Self {
        Self { name: owner.name, created_at: Some(owner.created_at) }
    }
}

impl From<updraft_engine::LogLine> for LogLine {
    fn from(line: updraft_engine::LogLine) -> Self {
        Self {
            instance: line.instance.as_str().to_owned(),
            timestamp: line.timestamp,
            text: line.text,
        }
    }
}

impl Release {
    /// A release, with what is live for its function.
    pub fn new(release: updraft_store::Release, live: Option<&updraft_store::Environment>) -> Self {
        let live = live.filter(|live| live.release == release.number);
        Self {
            number: release.number,
            push: release.push,
            commit: release.commit,
            image: release.image,
            image_id: release.image_id,
            created_at: release.created_at,
            live: live.is_some(),
            pinned: live.is_some_and(|live| live.pinned == updraft_store::PinnedTo::ThisRelease),
            kept: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_says_where_in_one_word_or_number() {
        let check = |json: &str, rollback: Rollback| {
            assert_eq!(serde_json::from_str::<Rollback>(json).unwrap(), rollback);
            assert_eq!(serde_json::to_string(&rollback).unwrap(), json);
        };
        check(r#""previous""#, Rollback::Previous);
        check(r#"{"to":3}"#, Rollback::To(3));
        check(r#""unpin""#, Rollback::Unpin);
    }

    #[test]
    fn a_new_token_does_not_print() {
        let token = NewToken {
            id: TokenId::new(1),
            owner: OwnerName::new("alice").unwrap(),
            token: Hidden::new("updraft_secret"),
        };
        assert!(!format!("{token:?}").contains("secret"));
        assert!(serde_json::to_string(&token).unwrap().contains("updraft_secret"));
    }
}
