//! Environments: which release of a function is live, and whether it stays so when a newer one
//! comes.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row};
use updraft_model::{FunctionName, OwnerName};

use crate::Store;
use crate::error::StoreError;
use crate::repository::function_id;
use crate::stored::{moment, now, text};

/// The environment that the public address serves.
const LIVE: &str = "live";

/// Whether a newer release replaces the live one by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinnedTo {
    /// It does.
    Newest,
    /// It does not: somebody rolled back to this release and means it.
    ThisRelease,
}

/// What is live for a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Whose function.
    pub owner: OwnerName,
    /// Which function.
    pub function: FunctionName,
    /// The number of the live release.
    pub release: u64,
    /// Whether a newer release replaces it.
    pub pinned: PinnedTo,
    /// When the live release was last changed.
    pub updated_at: Timestamp,
}

const SELECT: &str = "SELECT f.owner, f.name, e.release, e.pinned, e.updated_at
                      FROM environments e JOIN functions f ON f.id = e.function";

fn environment_of(row: &Row<'_>) -> rusqlite::Result<Environment> {
    Ok(Environment {
        owner: text(row, 0)?,
        function: text(row, 1)?,
        release: row.get::<_, i64>(2)?.unsigned_abs(),
        pinned: if row.get(3)? { PinnedTo::ThisRelease } else { PinnedTo::Newest },
        updated_at: moment(row, 4)?,
    })
}

impl Store {
    /// What is live for a function, if anything.
    pub async fn live(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
    ) -> Result<Option<Environment>, StoreError> {
        let (owner, function) = (owner.clone(), function.clone());
        self.database
            .read("read what is live", move |c| {
                c.prepare_cached(&format!(
                    "{SELECT} WHERE f.owner = ?1 AND f.name = ?2 AND e.name = ?3"
                ))?
                .query_row((owner.as_str(), function.as_str(), LIVE), environment_of)
                .optional()
            })
            .await
    }

    /// What is live for an owner, or for everybody, by name.
    pub async fn all_live(
        &self,
        owner: Option<&OwnerName>,
    ) -> Result<Vec<Environment>, StoreError> {
        let owner = owner.cloned();
        self.database
            .read("list what is live", move |c| {
                c.prepare_cached(&format!(
                    "{SELECT} WHERE (?1 IS NULL OR f.owner = ?1) AND e.name = ?2
                     ORDER BY f.owner, f.name"
                ))?
                .query_map((owner.as_ref().map(OwnerName::as_str), LIVE), environment_of)?
                .collect()
            })
            .await
    }

    /// Makes a release the live one.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`] when there is no such release.
    pub async fn set_live(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
        release: u64,
        pinned: PinnedTo,
    ) -> Result<(), StoreError> {
        let (owner, function) = (owner.clone(), function.clone());
        self.database
            .write("note what is live", move |c| {
                let function = function_id(c, &owner, &function)?
                    .ok_or(rusqlite::Error::QueryReturnedNoRows)?;
                c.prepare_cached(
                    "INSERT INTO environments (function, name, release, pinned, updated_at)
                     VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (function, name) DO UPDATE SET release = excluded.release,
                         pinned = excluded.pinned, updated_at = excluded.updated_at",
                )?
                .execute((
                    function,
                    LIVE,
                    release.cast_signed(),
                    pinned == PinnedTo::ThisRelease,
                    now(),
                ))?;
                Ok(())
            })
            .await
    }
}
