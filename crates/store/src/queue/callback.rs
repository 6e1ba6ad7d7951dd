//! Telling whoever asked to be told: leased and retried as calls are.

use jiff::Timestamp;
use rusqlite::Connection;
use updraft_model::OwnerName;

use super::record::{COLUMN_COUNT, COLUMNS, record, result};
use super::{Attempt, CallRecord, CallResult, SqliteCallStore};
use crate::error::StoreError;
use crate::stored::{moment, now, optional_text};

/// A callback that a worker holds.
#[derive(Debug)]
pub struct LeasedCallback {
    /// The right to say what came of it.
    pub attempt: Attempt,
    /// The call it tells of.
    pub record: CallRecord,
    /// What the function answered, if it did.
    pub result: Option<CallResult>,
}

/// When the next callback of an owner's calls is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallbacksDue {
    /// Whose calls, if anybody's.
    pub owner: Option<OwnerName>,
    /// When.
    pub due: Timestamp,
}

/// Whose callbacks are to be made.
pub(super) fn due(c: &Connection) -> rusqlite::Result<Vec<CallbacksDue>> {
    c.prepare_cached(
        "SELECT owner, min(callback_due) FROM calls WHERE callback_state = 1 GROUP BY owner",
    )?
    .query_map([], |row| Ok(CallbacksDue { owner: optional_text(row, 0)?, due: moment(row, 1)? }))?
    .collect()
}

impl SqliteCallStore {
    /// Whose callbacks are to be made, and when the first of each is due.
    pub async fn callbacks_due(&self) -> Result<Vec<CallbacksDue>, StoreError> {
        self.database.read("find the callbacks", due).await
    }

    /// Leases up to `count` callbacks of an owner's calls that are due, until `until`.
    pub async fn lease_callbacks(
        &self,
        owner: Option<&OwnerName>,
        count: u32,
        until: Timestamp,
    ) -> Result<Vec<LeasedCallback>, StoreError> {
        let owner = owner.cloned();
        self.database
            .write("lease callbacks", move |c| {
                let leased: Vec<LeasedCallback> = c
                    .prepare_cached(&format!(
                        "SELECT {COLUMNS}, r.headers, r.body, r.length
                         FROM calls c LEFT JOIN results r ON r.seq = c.seq
                         WHERE c.callback_state = 1 AND c.owner IS ?1 AND c.callback_due <= ?2
                         ORDER BY c.callback_due LIMIT ?3"
                    ))?
                    .query_map((owner.as_ref().map(OwnerName::as_str), now(), count), |row| {
                        let mut record = record(row)?;
                        let number = match &mut record.callback {
                            None => 1,
                            Some(callback) => {
                                callback.attempts += 1;
                                callback.attempts
                            }
                        };
                        let answered =
                            row.get_ref(COLUMN_COUNT)? != rusqlite::types::ValueRef::Null;
                        Ok(LeasedCallback {
                            attempt: Attempt { call: record.number, number },
                            result: answered.then(|| result(row)).transpose()?,
                            record,
                        })
                    })?
                    .collect::<rusqlite::Result<_>>()?;
                let mut lease = c.prepare_cached(
                    "UPDATE calls SET callback_attempts = ?2, callback_due = ?3 WHERE seq = ?1",
                )?;
                for callback in &leased {
                    let Attempt { call, number } = callback.attempt;
                    lease.execute((call, number, until.as_millisecond()))?;
                }
                Ok(leased)
            })
            .await
    }

    /// Notes that they were told.
    pub async fn callback_delivered(&self, attempt: Attempt) -> Result<bool, StoreError> {
        self.end_callback(attempt, 2, None, None).await
    }

    /// Notes that they are to be told again at `due`, or never when there is no such moment.
    pub async fn callback_failed(
        &self,
        attempt: Attempt,
        due: Option<Timestamp>,
        reason: String,
    ) -> Result<bool, StoreError> {
        self.end_callback(attempt, if due.is_some() { 1 } else { 3 }, due, Some(reason)).await
    }

    async fn end_callback(
        &self,
        attempt: Attempt,
        state: u8,
        due: Option<Timestamp>,
        reason: Option<String>,
    ) -> Result<bool, StoreError> {
        self.database
            .write("note the callback", move |c| {
                c.prepare_cached(
                    "UPDATE calls SET callback_state = ?3, callback_due = ?4, callback_reason = ?5
                     WHERE seq = ?1 AND callback_attempts = ?2 AND callback_state = 1",
                )?
                .execute((
                    attempt.call,
                    attempt.number,
                    state,
                    due.map(Timestamp::as_millisecond),
                    reason,
                ))
            })
            .await
            .map(|changed| changed > 0)
    }
}
