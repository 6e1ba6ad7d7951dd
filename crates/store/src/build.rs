//! Builds: one record for each time a function's context was turned into an image.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use updraft_model::{Digest, FunctionName, ImageRef, OwnerName};

use crate::blob::BlobName;
use crate::error::StoreError;
use crate::repository::function_id;
use crate::stored::{moment, now, optional_moment, optional_text, text};
use crate::{BuildId, PushId, Store};

/// How a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildState {
    /// It runs.
    Running,
    /// There is an image.
    Succeeded,
    /// There is none, by the fault of the function or of its limits.
    Failed,
    /// It was stopped: by a newer push, a person, or the end of the process.
    Cancelled,
}

/// The text names no state of a build.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no state of a build")]
pub struct ParseBuildStateError(String);

impl BuildState {
    /// The state's name, as it is stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for BuildState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for BuildState {
    type Err = ParseBuildStateError;

    fn from_str(text: &str) -> Result<Self, ParseBuildStateError> {
        [Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| ParseBuildStateError(text.to_owned()))
    }
}

/// A build to record.
#[derive(Debug, Clone)]
pub struct NewBuild {
    /// The push that asks for it.
    pub push: PushId,
    /// Whose function.
    pub owner: OwnerName,
    /// Which function; some repository must declare it.
    pub function: FunctionName,
    /// Digest of everything the build depends on.
    pub key: Digest,
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildResult {
    /// With an image.
    Succeeded {
        /// The image, as a release names it.
        image: ImageRef,
        /// The image's own digest.
        image_id: Digest,
    },
    /// Without one, for the reason given.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// It was stopped.
    Cancelled,
}

/// A build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Its number.
    pub id: BuildId,
    /// The push that asked for it.
    pub push: PushId,
    /// Whose function.
    pub owner: OwnerName,
    /// Which function.
    pub function: FunctionName,
    /// Digest of everything it depended on.
    pub key: Digest,
    /// How it stands.
    pub state: BuildState,
    /// Why it failed, when it did.
    pub reason: Option<String>,
    /// The image and its digest, when it succeeded.
    pub image: Option<(ImageRef, Digest)>,
    /// Where its output is; nothing once it was dropped for age.
    pub log: Option<BlobName>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended, when it has.
    pub finished_at: Option<Timestamp>,
}

const SELECT: &str = "SELECT b.id, b.push, f.owner, f.name, b.key, b.state, b.reason, b.image, \
                      b.image_id, b.log, b.started_at, b.finished_at
                      FROM builds b JOIN functions f ON f.id = b.function";

fn build_of(row: &Row<'_>) -> rusqlite::Result<Build> {
    Ok(Build {
        id: row.get(0)?,
        push: row.get(1)?,
        owner: text(row, 2)?,
        function: text(row, 3)?,
        key: text(row, 4)?,
        state: text(row, 5)?,
        reason: row.get(6)?,
        image: optional_text(row, 7)?.zip(optional_text(row, 8)?),
        log: optional_text(row, 9)?,
        started_at: moment(row, 10)?,
        finished_at: optional_moment(row, 11)?,
    })
}

impl Store {
    /// Records a build that is about to run, and names the blob for its output.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`] when no repository ever declared the function.
    pub async fn start_build(&self, build: NewBuild) -> Result<Build, StoreError> {
        self.database
            .write("record the build", move |c| {
                let function = function_id(c, &build.owner, &build.function)?
                    .ok_or(rusqlite::Error::QueryReturnedNoRows)?;
                c.prepare_cached(
                    "INSERT INTO builds (function, push, key, state, started_at)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute((
                    function,
                    build.push,
                    build.key.to_string(),
                    BuildState::Running.as_str(),
                    now(),
                ))?;
                let id = BuildId::new(c.last_insert_rowid());
                c.prepare_cached("UPDATE builds SET log = ?2 WHERE id = ?1")?
                    .execute((id, BlobName::build_log(id).as_str()))?;
                c.prepare_cached(&format!("{SELECT} WHERE b.id = ?1"))?.query_row([id], build_of)
            })
            .await
    }

    /// Records how a running build ended; one that has ended already stays as it is.
    pub async fn finish_build(&self, id: BuildId, result: BuildResult) -> Result<(), StoreError> {
        self.database
            .write("record the build's end", move |c| {
                let (state, reason, image) = match result {
                    BuildResult::Succeeded { image, image_id } => {
                        (BuildState::Succeeded, None, Some((image, image_id)))
                    }
                    BuildResult::Failed { reason } => (BuildState::Failed, Some(reason), None),
                    BuildResult::Cancelled => (BuildState::Cancelled, None, None),
                };
                let (image, image_id) = image.unzip();
                c.prepare_cached(
                    "UPDATE builds SET state = ?2, reason = ?3, image = ?4, image_id = ?5,
                     finished_at = ?6 WHERE id = ?1 AND finished_at IS NULL",
                )?
                .execute((
                    id,
                    state.as_str(),
                    reason,
                    image.map(String::from),
                    image_id.map(String::from),
                    now(),
                ))?;
                Ok(())
            })
            .await
    }

    /// Marks every build that is recorded as running as cancelled. Only for the process that runs
    /// builds, before it runs the first: whatever ran then ended with its predecessor.
    pub async fn cancel_running_builds(&self) -> Result<(), StoreError> {
        self.database
            .write("clear interrupted builds", |c| {
                c.execute(
                    "UPDATE builds SET state = 'cancelled', finished_at = ?1
                     WHERE finished_at IS NULL",
                    [now()],
                )?;
                Ok(())
            })
            .await
    }

    /// The newest build of a function with that key that gave an image.
    pub async fn build_by_key(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
        key: Digest,
    ) -> Result<Option<Build>, StoreError> {
        let (owner, function) = (owner.clone(), function.clone());
        self.database
            .read("look the build up", move |c| {
                c.prepare_cached(&format!(
                    "{SELECT} WHERE f.owner = ?1 AND f.name = ?2 AND b.key = ?3
                     AND b.state = 'succeeded' ORDER BY b.id DESC LIMIT 1"
                ))?
                .query_row((owner.as_str(), function.as_str(), key.to_string()), build_of)
                .optional()
            })
            .await
    }

    /// One build, or nothing when there is none of that number.
    pub async fn build(&self, id: BuildId) -> Result<Option<Build>, StoreError> {
        self.database
            .read("read the build", move |c| {
                c.prepare_cached(&format!("{SELECT} WHERE b.id = ?1"))?
                    .query_row([id], build_of)
                    .optional()
            })
            .await
    }

    /// The builds that a push asked for, oldest first.
    pub async fn builds_of_push(&self, push: PushId) -> Result<Vec<Build>, StoreError> {
        self.database
            .read("list the push's builds", move |c| {
                c.prepare_cached(&format!("{SELECT} WHERE b.push = ?1 ORDER BY b.id"))?
                    .query_map([push], build_of)?
                    .collect()
            })
            .await
    }

    /// The newest builds, newest first: of an owner or of everybody, of one function or of all.
    pub async fn builds(
        &self,
        owner: Option<&OwnerName>,
        function: Option<&FunctionName>,
        limit: u32,
    ) -> Result<Vec<Build>, StoreError> {
        let (owner, function) = (owner.cloned(), function.cloned());
        self.database
            .read("list the builds", move |c| {
                c.prepare_cached(&format!(
                    "{SELECT} WHERE (?1 IS NULL OR f.owner = ?1) AND (?2 IS NULL OR f.name = ?2)
                     ORDER BY b.id DESC LIMIT ?3"
                ))?
                .query_map(
                    (
                        owner.as_ref().map(OwnerName::as_str),
                        function.as_ref().map(FunctionName::as_str),
                        limit,
                    ),
                    build_of,
                )?
                .collect()
            })
            .await
    }

    /// Drops the output of a function's builds except the newest `keep`; the records stay.
    pub async fn prune_build_logs(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
        keep: u32,
    ) -> Result<(), StoreError> {
        let (owner, function) = (owner.clone(), function.clone());
        let dropped: Vec<BlobName> = self
            .database
            .write("drop old build logs", move |c| {
                let Some(function) = function_id(c, &owner, &function)? else {
                    return Ok(Vec::new());
                };
                c.prepare_cached(
                    "UPDATE builds SET log = NULL WHERE function = ?1 AND log IS NOT NULL
                     AND finished_at IS NOT NULL AND id NOT IN
                         (SELECT id FROM builds WHERE function = ?1 ORDER BY id DESC LIMIT ?2)
                     RETURNING id",
                )?
                .query_map((function, keep), |row| Ok(BlobName::build_log(row.get(0)?)))?
                .collect()
            })
            .await?;
        for name in dropped {
            // The record no longer names it; a blob that stays costs space, nothing else.
            if let Err(error) = self.blobs.remove(&name).await {
                tracing::warn!(%error, "an old build log could not be removed");
            }
        }
        Ok(())
    }
}
