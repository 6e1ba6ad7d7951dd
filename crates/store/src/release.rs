//! Releases: immutable, numbered for each function from 1; numbers are never given twice.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};
use updraft_model::{Digest, FunctionName, FunctionSpec, ImageRef, OwnerName};

use crate::error::StoreError;
use crate::repository::function_id;
use crate::stored::{from_json, moment, now, optional_text, text, to_json};
use crate::{PushId, Store};

/// The form of the spec column that this version writes and reads.
const SPEC_FORM: u32 = 1;

/// A release to record.
#[derive(Debug, Clone)]
pub struct NewRelease {
    /// The push that it comes from.
    pub push: PushId,
    /// Whose function.
    pub owner: OwnerName,
    /// Which function; some repository must declare it.
    pub function: FunctionName,
    /// The commit, in hex.
    pub commit: String,
    /// The image's own digest, when it is known.
    pub image_id: Option<Digest>,
    /// All that is to run, image included.
    pub spec: FunctionSpec,
}

/// A release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Whose function.
    pub owner: OwnerName,
    /// Which function.
    pub function: FunctionName,
    /// Its number, from 1.
    pub number: u64,
    /// The push that it came from.
    pub push: PushId,
    /// The commit, in hex.
    pub commit: String,
    /// The image, as the spec names it.
    pub image: ImageRef,
    /// The image's own digest, when it is known.
    pub image_id: Option<Digest>,
    /// All that is to run.
    pub spec: FunctionSpec,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Images that records need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NeededImages {
    /// Those whose content is known.
    pub ids: BTreeSet<Digest>,
    /// Those that are known by name only.
    pub names: BTreeSet<ImageRef>,
}

const SELECT: &str = "SELECT f.owner, f.name, r.number, r.push, r.commit_id, r.image, \
                      r.image_id, r.spec, r.created_at
                      FROM releases r JOIN functions f ON f.id = r.function";

fn release_of(row: &Row<'_>) -> rusqlite::Result<Release> {
    Ok(Release {
        owner: text(row, 0)?,
        function: text(row, 1)?,
        number: row.get::<_, i64>(2)?.unsigned_abs(),
        push: row.get(3)?,
        commit: row.get(4)?,
        image: text(row, 5)?,
        image_id: optional_text(row, 6)?,
        spec: from_json(row, 7, SPEC_FORM)?,
        created_at: moment(row, 8)?,
    })
}

fn create(connection: &Connection, release: &NewRelease) -> rusqlite::Result<Release> {
    let function = function_id(connection, &release.owner, &release.function)?
        .ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    let mut select =
        connection.prepare_cached(&format!("{SELECT} WHERE r.function = ?1 AND r.push = ?2"))?;
    let known = select.query_row((function, release.push), release_of).optional()?;
    if let Some(known) = known {
        return Ok(known);
    }
    let number: i64 = connection
        .prepare_cached(
            "UPDATE functions SET last_release = last_release + 1 WHERE id = ?1
             RETURNING last_release",
        )?
        .query_row([function], |row| row.get(0))?;
    connection
        .prepare_cached(
            "INSERT INTO releases
             (function, number, push, commit_id, image, image_id, spec, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute((
            function,
            number,
            release.push,
            &release.commit,
            release.spec.image.as_str(),
            release.image_id.map(String::from),
            to_json(SPEC_FORM, &release.spec)?,
            now(),
        ))?;
    select.query_row((function, release.push), release_of)
}

impl Store {
    /// Makes the releases of a push, all or none, each with its function's next number. A
    /// release that this push has already made is given as it is.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`] when no repository ever declared one of the functions.
    pub async fn create_releases(
        &self,
        releases: Vec<NewRelease>,
    ) -> Result<Vec<Release>, StoreError> {
        self.database
            .write("record the releases", move |c| {
                releases.iter().map(|release| create(c, release)).collect()
            })
            .await
    }

    /// One release, or nothing when it does not exist or was dropped for age.
    pub async fn release(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
        number: u64,
    ) -> Result<Option<Release>, StoreError> {
        let (owner, function) = (owner.clone(), function.clone());
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        self.database
            .read("read the release", move |c| {
                c.prepare_cached(&format!(
                    "{SELECT} WHERE f.owner = ?1 AND f.name = ?2 AND r.number = ?3"
                ))?
                .query_row((owner.as_str(), function.as_str(), number), release_of)
                .optional()
            })
            .await
    }

    /// The newest releases of a function, newest first.
    pub async fn releases(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
        limit: u32,
    ) -> Result<Vec<Release>, StoreError> {
        let (owner, function) = (owner.clone(), function.clone());
        self.database
            .read("list the releases", move |c| {
                c.prepare_cached(&format!(
                    "{SELECT} WHERE f.owner = ?1 AND f.name = ?2 ORDER BY r.number DESC LIMIT ?3"
                ))?
                .query_map((owner.as_str(), function.as_str(), limit), release_of)?
                .collect()
            })
            .await
    }

    /// The images that a release within the window, a live one, or a push under way may still
    /// need: the `keep` newest releases of each function and those made at or after `since`.
    pub async fn images_in_use(
        &self,
        keep: u32,
        since: Timestamp,
    ) -> Result<NeededImages, StoreError> {
        self.database
            .read("list the images in use", move |c| {
                let mut needed = NeededImages::default();
                // A push under way may use again whatever was built for its functions before.
                let mut select = c.prepare_cached(
                    "SELECT r.image_id, r.image FROM releases r WHERE r.created_at >= ?2
                       OR r.number IN (SELECT number FROM releases WHERE function = r.function
                                       ORDER BY number DESC LIMIT ?1)
                       OR r.number IN (SELECT release FROM environments
                                       WHERE function = r.function)
                     UNION SELECT b.image_id, b.image FROM builds b
                     JOIN functions f ON f.id = b.function
                     JOIN pushes p ON p.repository = f.repository AND p.finished_at IS NULL
                     WHERE b.image_id IS NOT NULL",
                )?;
                let mut rows = select.query((keep, since.as_millisecond()))?;
                while let Some(row) = rows.next()? {
                    match optional_text(row, 0)? {
                        Some(id) => drop(needed.ids.insert(id)),
                        None => drop(needed.names.insert(text(row, 1)?)),
                    }
                }
                Ok(needed)
            })
            .await
    }

    /// Drops a function's releases except the newest `keep` and the one that is live. Gives
    /// those dropped, so that images nobody needs any more can go as well.
    pub async fn prune_releases(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
        keep: u32,
    ) -> Result<Vec<Release>, StoreError> {
        let (owner, function) = (owner.clone(), function.clone());
        self.database
            .write("drop old releases", move |c| {
                let Some(id) = function_id(c, &owner, &function)? else { return Ok(Vec::new()) };
                let dropped = c
                    .prepare_cached(&format!(
                        "{SELECT} WHERE r.function = ?1
                         AND r.number NOT IN (SELECT number FROM releases WHERE function = ?1
                                              ORDER BY number DESC LIMIT ?2)
                         AND r.number NOT IN (SELECT release FROM environments
                                              WHERE function = ?1)
                         ORDER BY r.number"
                    ))?
                    .query_map((id, keep), release_of)?
                    .collect::<rusqlite::Result<Vec<_>>>()?;
                for release in &dropped {
                    c.prepare_cached("DELETE FROM releases WHERE function = ?1 AND number = ?2")?
                        .execute((id, release.number.cast_signed()))?;
                }
                Ok(dropped)
            })
            .await
    }
}
