//! Pushes: one record each, with the state that its work has reached.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{OptionalExtension, Row};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use updraft_model::{OwnerName, RepositoryName};

use crate::error::StoreError;
use crate::event::{self, NewEvent};
use crate::owner::{self, EnsureOwnerError};
use crate::repository::ensure_repository_id;
use crate::stored::{moment, now, optional_moment, text};
use crate::{PushId, Store};

/// How far a push has come. What a state names is done and need not be done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushState {
    /// It is recorded.
    Received,
    /// Its files lie in its work folder.
    Cloned,
    /// It is decided what happens with each function.
    Planned,
    /// Builds are under way; each has a record of its own.
    Building,
    /// Every function that built has its release.
    Released,
    /// Releases are being deployed.
    Deploying,
    /// All of it is live.
    Ready,
    /// Something failed; what did not fail is live.
    Failed,
    /// A newer push to the same ref took its place.
    Superseded,
    /// Somebody stopped it.
    Cancelled,
    /// Nothing of it goes live, for instance a branch that is not the live one.
    NothingToDo,
}

/// The text names no state.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no state of a push")]
pub struct ParsePushStateError(String);

impl PushState {
    /// All states, in the order of their work.
    pub const ALL: [Self; 11] = [
        Self::Received,
        Self::Cloned,
        Self::Planned,
        Self::Building,
        Self::Released,
        Self::Deploying,
        Self::Ready,
        Self::Failed,
        Self::Superseded,
        Self::Cancelled,
        Self::NothingToDo,
    ];

    /// Whether the push is over.
    pub const fn is_final(self) -> bool {
        matches!(
            self,
            Self::Ready | Self::Failed | Self::Superseded | Self::Cancelled | Self::NothingToDo
        )
    }

    /// The state's name, as it is stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Cloned => "cloned",
            Self::Planned => "planned",
            Self::Building => "building",
            Self::Released => "released",
            Self::Deploying => "deploying",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
            Self::Cancelled => "cancelled",
            Self::NothingToDo => "nothing-to-do",
        }
    }
}

impl fmt::Display for PushState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for PushState {
    type Err = ParsePushStateError;

    fn from_str(text: &str) -> Result<Self, ParsePushStateError> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| ParsePushStateError(text.to_owned()))
    }
}

/// The folder that holds an upload's files, until its push takes it over.
pub type UploadFolder = PathBuf;

/// A push to record.
#[derive(Debug, Clone)]
pub struct NewPush {
    /// Whose repository.
    pub owner: OwnerName,
    /// Which repository.
    pub repository: RepositoryName,
    /// The full name of the ref that moved, for instance `refs/heads/main`.
    pub reference: String,
    /// The commit that it moved to, in hex.
    pub commit: String,
    /// Where the files are when they came without git.
    pub upload: Option<UploadFolder>,
}

/// What recording a push gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedPush {
    /// The new push.
    pub id: PushId,
    /// Older pushes to the same ref that are not over yet.
    pub unfinished: Vec<PushId>,
}

/// A push.
#[derive(Debug, Clone, PartialEq)]
pub struct Push {
    /// Its number.
    pub id: PushId,
    /// Whose repository.
    pub owner: OwnerName,
    /// Which repository.
    pub repository: RepositoryName,
    /// The full name of the ref that moved.
    pub reference: String,
    /// The commit that it moved to, in hex.
    pub commit: String,
    /// Where the files are when they came without git.
    pub upload: Option<UploadFolder>,
    /// How far it has come.
    pub state: PushState,
    /// What the pipeline noted with the state; the pipeline's own form.
    pub detail: Option<Value>,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// When it was over, when it is.
    pub finished_at: Option<Timestamp>,
}

/// Which pushes to list. Absent means any.
#[derive(Debug, Clone)]
pub struct PushFilter {
    /// Only this owner's.
    pub owner: Option<OwnerName>,
    /// Only this repository's.
    pub repository: Option<RepositoryName>,
    /// The newest so many.
    pub limit: u32,
}

/// Whether a push moved to its next state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// It did; the events with it are numbered from here.
    Moved {
        /// The number of the first event.
        first_seq: u64,
    },
    /// It was in another state than expected; nothing changed.
    Elsewhere(PushState),
}

const COLUMNS: &str = "p.id, r.owner, r.name, p.reference, p.commit_id, p.upload, p.state, \
                       p.detail, p.created_at, p.finished_at";
const FROM: &str = "FROM pushes p JOIN repositories r ON r.id = p.repository";

fn push_of(row: &Row<'_>) -> rusqlite::Result<Push> {
    let detail = match row.get_ref(7)?.as_str_or_null()? {
        None => None,
        Some(text) => Some(serde_json::from_str(text).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(7, Type::Text, Box::new(error))
        })?),
    };
    Ok(Push {
        id: row.get(0)?,
        owner: text(row, 1)?,
        repository: text(row, 2)?,
        reference: row.get(3)?,
        commit: row.get(4)?,
        upload: row.get::<_, Option<String>>(5)?.map(PathBuf::from),
        state: text(row, 6)?,
        detail,
        created_at: moment(row, 8)?,
        finished_at: optional_moment(row, 9)?,
    })
}

impl Store {
    /// Records a push in the state [`PushState::Received`], with its repository and owner when
    /// they are new. When this returns the push will not be lost.
    ///
    /// # Errors
    /// See [`Store::ensure_owner`].
    pub async fn record_push(&self, push: NewPush) -> Result<RecordedPush, EnsureOwnerError> {
        let owner = push.owner.clone();
        let recorded = self
            .database
            .write("record the push", move |c| {
                if let Some(existing) = owner::ensure(c, &push.owner)? {
                    return Ok(Err(existing));
                }
                let repository = ensure_repository_id(c, &push.owner, &push.repository)?;
                let unfinished = c
                    .prepare_cached(
                        "SELECT id FROM pushes WHERE repository = ?1 AND reference = ?2
                         AND finished_at IS NULL ORDER BY id",
                    )?
                    .query_map((repository, &push.reference), |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                let upload = push.upload.as_ref().map(|path| path.to_string_lossy());
                c.prepare_cached(
                    "INSERT INTO pushes
                     (repository, reference, commit_id, upload, state, created_at, updated_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
                )?
                .execute((
                    repository,
                    &push.reference,
                    &push.commit,
                    upload,
                    PushState::Received.as_str(),
                    now(),
                ))?;
                Ok(Ok(RecordedPush { id: PushId::new(c.last_insert_rowid()), unfinished }))
            })
            .await?;
        recorded.map_err(|existing| EnsureOwnerError::Collision { owner, existing })
    }

    /// Moves a push from one state to another, with what the pipeline needs to go on from there
    /// (none leaves what was noted before) and the events that tell of it: all of it or nothing.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`] when there is no such push.
    pub async fn advance_push(
        &self,
        push: PushId,
        from: PushState,
        to: PushState,
        detail: Option<Value>,
        events: Vec<NewEvent>,
    ) -> Result<Advance, StoreError> {
        self.database
            .write("move the push on", move |c| {
                let found: PushState = c
                    .prepare_cached("SELECT state FROM pushes WHERE id = ?1")?
                    .query_row([push], |row| text(row, 0))?;
                if found != from {
                    return Ok(Advance::Elsewhere(found));
                }
                let now = now();
                c.prepare_cached(
                    "UPDATE pushes SET state = ?2, detail = coalesce(?3, detail), updated_at = ?4, finished_at = ?5
                     WHERE id = ?1",
                )?
                .execute((
                    push,
                    to.as_str(),
                    detail.map(|detail| detail.to_string()),
                    now,
                    to.is_final().then_some(now),
                ))?;
                Ok(Advance::Moved { first_seq: event::append(c, push, &events)? })
            })
            .await
    }

    /// One push, or nothing when there is none of that number.
    pub async fn push(&self, push: PushId) -> Result<Option<Push>, StoreError> {
        self.database
            .read("read the push", move |c| {
                c.prepare_cached(&format!("SELECT {COLUMNS} {FROM} WHERE p.id = ?1"))?
                    .query_row([push], push_of)
                    .optional()
            })
            .await
    }

    /// The newest push to a ref, whether it is over or not.
    pub async fn newest_push(
        &self,
        owner: &OwnerName,
        repository: &RepositoryName,
        reference: &str,
    ) -> Result<Option<Push>, StoreError> {
        let (owner, repository) = (owner.clone(), repository.clone());
        let reference = reference.to_owned();
        self.database
            .read("read the newest push", move |c| {
                c.prepare_cached(&format!(
                    "SELECT {COLUMNS} {FROM} WHERE r.owner = ?1 AND r.name = ?2
                     AND p.reference = ?3 ORDER BY p.id DESC LIMIT 1"
                ))?
                .query_row((owner.as_str(), repository.as_str(), reference), push_of)
                .optional()
            })
            .await
    }

    /// The newest push that came after `push` and takes its place: to the same ref, or one of
    /// both an upload, to the same repository.
    pub async fn newer_push(&self, push: PushId) -> Result<Option<PushId>, StoreError> {
        self.database
            .read("look for a newer push", move |c| {
                c.prepare_cached(
                    "SELECT n.id FROM pushes p JOIN pushes n ON n.repository = p.repository
                     WHERE p.id = ?1 AND n.id > p.id
                     AND (n.reference = p.reference OR n.upload IS NOT NULL
                          OR p.upload IS NOT NULL)
                     AND n.state <> 'nothing-to-do' ORDER BY n.id DESC LIMIT 1",
                )?
                .query_row([push], |row| row.get(0))
                .optional()
            })
            .await
    }

    /// Pushes, newest first.
    pub async fn pushes(&self, filter: PushFilter) -> Result<Vec<Push>, StoreError> {
        self.database
            .read("list the pushes", move |c| {
                c.prepare_cached(&format!(
                    "SELECT {COLUMNS} {FROM}
                     WHERE (?1 IS NULL OR r.owner = ?1) AND (?2 IS NULL OR r.name = ?2)
                     ORDER BY p.id DESC LIMIT ?3"
                ))?
                .query_map(
                    (
                        filter.owner.as_ref().map(OwnerName::as_str),
                        filter.repository.as_ref().map(RepositoryName::as_str),
                        filter.limit,
                    ),
                    push_of,
                )?
                .collect()
            })
            .await
    }

    /// Pushes that are not over, oldest first.
    pub async fn unfinished_pushes(&self) -> Result<Vec<Push>, StoreError> {
        self.database
            .read("list the unfinished pushes", |c| {
                c.prepare_cached(&format!(
                    "SELECT {COLUMNS} {FROM} WHERE p.finished_at IS NULL ORDER BY p.id"
                ))?
                .query_map([], push_of)?
                .collect()
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_reads_back_and_serde_agrees() {
        for state in PushState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
            assert_eq!(serde_json::to_value(state).unwrap(), Value::from(state.as_str()));
        }
        assert!("done".parse::<PushState>().is_err());
    }
}
