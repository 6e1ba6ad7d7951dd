//! Looking at many calls, making dead ones again, and forgetting old ones.

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};
use std::collections::HashSet;
use updraft_model::{FunctionId, OwnerName};

use super::form::{function, number};
use super::lease::{Lost, drop_request};
use super::record::{COLUMNS, record};
use super::{CallId, CallRecord, CallState, SqliteCallStore};
use crate::BlobName;
use crate::error::StoreError;
use crate::stored::{moment, now, optional_text};

/// Which calls. Absent means any.
#[derive(Debug, Clone, Default)]
pub struct CallFilter {
    /// In this state.
    pub state: Option<CallState>,
    /// Of this function.
    pub function: Option<FunctionId>,
    /// Of this owner's functions.
    pub owner: Option<OwnerName>,
    /// Older than the call of this number, to go on where a list ended.
    pub before: Option<i64>,
    /// At most so many; 0 is the usual number.
    pub limit: u32,
}

/// How long ended calls are kept.
#[derive(Debug, Clone, Copy)]
pub struct Expiry {
    /// Done and cancelled ones that ended before this go.
    pub done_before: Timestamp,
    /// Dead ones that ended before this go.
    pub dead_before: Timestamp,
    /// So many done and cancelled ones stay at most.
    pub done_kept: u64,
    /// So many dead ones stay at most.
    pub dead_kept: u64,
    /// At most so many go in one step.
    pub step: u32,
}

/// Most calls in one list.
const LIST_MAX: u32 = 1000;

/// Calls in a list that asks for no number.
const LIST_USUAL: u32 = 100;

impl CallFilter {
    /// The condition and its parameters.
    pub(super) fn to_sql(&self) -> (String, Vec<Value>) {
        let mut conditions = vec!["1".to_owned()];
        let mut values = Vec::new();
        if let Some(state) = self.state {
            // Written out, so that the partial indexes apply.
            let number = match state {
                CallState::Queued => "c.state = 0 AND c.state <= 1",
                CallState::Running => "c.state = 1 AND c.state <= 1",
                CallState::Done => "c.state = 2 AND c.state >= 2",
                CallState::Dead => "c.state = 3 AND c.state >= 2",
                CallState::Cancelled => "c.state = 4 AND c.state >= 2",
            };
            conditions.push(number.to_owned());
        }
        let mut equal = |column: &str, value: Option<String>| {
            if let Some(value) = value {
                values.push(Value::from(value));
                conditions.push(format!("{column} = ?{}", values.len()));
            }
        };
        equal("c.function", self.function.as_ref().map(ToString::to_string));
        equal("c.owner", self.owner.as_ref().map(ToString::to_string));
        if let Some(before) = self.before {
            values.push(Value::from(before));
            conditions.push(format!("c.seq < ?{}", values.len()));
        }
        (conditions.join(" AND "), values)
    }
}

/// The calls that the filter lets through, newest first.
pub(super) fn calls(c: &Connection, filter: &CallFilter) -> rusqlite::Result<Vec<CallRecord>> {
    let (condition, values) = filter.to_sql();
    let limit = if filter.limit == 0 { LIST_USUAL } else { filter.limit.min(LIST_MAX) };
    c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM calls c WHERE {condition} ORDER BY c.seq DESC LIMIT {limit}"
    ))?
    .query_map(params_from_iter(values), record)?
    .collect()
}

/// How many dead letters each function has.
pub(super) fn dead(c: &Connection) -> rusqlite::Result<Vec<(FunctionId, u64)>> {
    c.prepare_cached(
        "SELECT function, count(*) FROM calls WHERE state = 3 AND state >= 2 GROUP BY function",
    )?
    .query_map([], |row| Ok((function(row, 0)?, row.get::<_, i64>(1)?.unsigned_abs())))?
    .collect()
}

/// When the oldest ended call ended, if there is one.
pub(super) fn oldest_end(c: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    c.prepare_cached("SELECT finished_at FROM calls WHERE state >= 2 ORDER BY finished_at LIMIT 1")?
        .query_row([], |row| moment(row, 0))
        .optional()
}

/// Ended calls that are too old or too many.
pub(super) fn expired(c: &Connection, expiry: Expiry) -> rusqlite::Result<Vec<CallRecord>> {
    // The newest that is one too many, by state: done and cancelled count alike.
    let floor = |states: &str, kept: u64| {
        c.prepare_cached(&format!(
            "SELECT seq FROM calls WHERE state >= 2 AND state IN ({states})
             ORDER BY seq DESC LIMIT 1 OFFSET ?1"
        ))?
        .query_row([number(kept)], |row| row.get::<_, i64>(0))
        .optional()
        .map(|floor| floor.unwrap_or(-1))
    };
    let (done_floor, dead_floor) =
        (floor("2, 4", expiry.done_kept)?, floor("3", expiry.dead_kept)?);
    c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM calls c
             WHERE c.state >= 2 AND c.callback_state <> 1 AND (
                 (c.state IN (2, 4) AND (c.finished_at < ?1 OR c.seq <= ?2))
                 OR (c.state = 3 AND (c.finished_at < ?3 OR c.seq <= ?4)))
             ORDER BY c.finished_at LIMIT ?5"
    ))?
    .query_map(
        (
            expiry.done_before.as_millisecond(),
            done_floor,
            expiry.dead_before.as_millisecond(),
            dead_floor,
            expiry.step,
        ),
        record,
    )?
    .collect()
}

impl SqliteCallStore {
    /// The calls that the filter lets through, newest first.
    pub async fn calls(&self, filter: &CallFilter) -> Result<Vec<CallRecord>, StoreError> {
        let filter = filter.clone();
        self.database.read("list the calls", move |c| calls(c, &filter)).await
    }

    /// How many dead letters each function has.
    pub async fn dead(&self) -> Result<Vec<(FunctionId, u64)>, StoreError> {
        self.database.read("count the dead letters", dead).await
    }

    /// Puts a dead letter back into the queue as if it had just come. Nothing when it is none.
    pub async fn redrive(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError> {
        let id = id.clone();
        let redriven = self
            .redrive_where("c.id = ?1 AND c.state = 3".to_owned(), vec![id.to_string().into()], 1)
            .await?;
        Ok(redriven.into_iter().next())
    }

    /// Puts up to `count` dead letters that the filter lets through back, oldest first; those
    /// newer than `after` only, so that a caller who goes on comes to an end.
    pub async fn redrive_some(
        &self,
        filter: &CallFilter,
        after: i64,
        count: u32,
    ) -> Result<Vec<CallRecord>, StoreError> {
        let filter = CallFilter { state: Some(CallState::Dead), ..filter.clone() };
        let (mut condition, mut values) = filter.to_sql();
        values.push(after.into());
        condition = format!("{condition} AND c.seq > ?{}", values.len());
        self.redrive_where(condition, values, count).await
    }

    async fn redrive_where(
        &self,
        condition: String,
        values: Vec<Value>,
        count: u32,
    ) -> Result<Vec<CallRecord>, StoreError> {
        self.database
            .write("put dead letters back", move |c| {
                let mut found: Vec<CallRecord> = c
                    .prepare_cached(&format!(
                        "SELECT {COLUMNS} FROM calls c WHERE {condition}
                         ORDER BY c.seq LIMIT {count}"
                    ))?
                    .query_map(params_from_iter(values), record)?
                    .collect::<rusqlite::Result<_>>()?;
                let due = now();
                let mut back = c.prepare_cached(
                    "UPDATE calls SET state = 0, attempts = 0, due = ?2, finished_at = NULL,
                         callback_state = 0, callback_attempts = 0, callback_due = NULL
                     WHERE seq = ?1",
                )?;
                let mut forget = c.prepare_cached("DELETE FROM results WHERE seq = ?1")?;
                for call in &mut found {
                    back.execute((call.number, due))?;
                    forget.execute([call.number])?;
                    call.state = CallState::Queued;
                    call.attempts = 0;
                    call.due = Timestamp::from_millisecond(due).unwrap_or_default();
                }
                Ok(found)
            })
            .await
    }

    /// Forgets a call that has ended. Nothing when it is none.
    pub async fn discard(&self, id: &CallId) -> Result<Option<(CallRecord, Lost)>, StoreError> {
        let id = id.clone();
        self.database
            .write("discard the call", move |c| {
                let found = c
                    .prepare_cached(&format!(
                        "SELECT {COLUMNS} FROM calls c WHERE c.id = ?1 AND c.state >= 2"
                    ))?
                    .query_row([id.as_str()], record)
                    .optional()?;
                let Some(record) = found else { return Ok(None) };
                let mut lost = Lost::default();
                drop_request(c, record.number, &mut lost)?;
                c.prepare_cached("DELETE FROM calls WHERE seq = ?1")?.execute([record.number])?;
                Ok(Some((record, lost)))
            })
            .await
    }

    /// Forgets ended calls that are too old or too many, unless somebody is still to be told of
    /// them. Gives those that went; fewer than a step means that there are no more.
    pub async fn expire(&self, expiry: Expiry) -> Result<(Vec<CallRecord>, Lost), StoreError> {
        self.database
            .write("forget old calls", move |c| {
                let gone = expired(c, expiry)?;
                let mut lost = Lost::default();
                let mut remove = c.prepare_cached("DELETE FROM calls WHERE seq = ?1")?;
                for call in &gone {
                    drop_request(c, call.number, &mut lost)?;
                    remove.execute([call.number])?;
                }
                Ok((gone, lost))
            })
            .await
    }

    /// When the oldest ended call ended, if there is one.
    pub async fn oldest_end(&self) -> Result<Option<Timestamp>, StoreError> {
        self.database.read("find the oldest call", oldest_end).await
    }

    /// The bodies that records name, for a sweep of those that none does.
    pub async fn blobs_on_record(&self) -> Result<HashSet<BlobName>, StoreError> {
        self.database
            .read("list the bodies", |c| {
                c.prepare_cached("SELECT blob FROM requests WHERE blob IS NOT NULL")?
                    .query_map([], |row| optional_text(row, 0))?
                    .filter_map(Result::transpose)
                    .collect()
            })
            .await
    }
}
