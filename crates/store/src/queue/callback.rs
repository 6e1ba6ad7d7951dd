//! Telling whoever asked to be told: leased and retried as calls are.

use jiff::Timestamp;
use rusqlite::OptionalExtension;

use super::record::{COLUMN_COUNT, COLUMNS, record, result};
use super::{Attempt, CallRecord, CallResult, CallStore};
use crate::error::StoreError;
use crate::stored::{moment, now};

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

impl CallStore {
    /// Leases up to `count` callbacks that are due until `until`; and when the next one is due.
    pub async fn lease_callbacks(
        &self,
        count: u32,
        until: Timestamp,
    ) -> Result<(Vec<LeasedCallback>, Option<Timestamp>), StoreError> {
        self.database
            .write("lease callbacks", move |c| {
                let leased: Vec<LeasedCallback> = c
                    .prepare_cached(&format!(
                        "SELECT {COLUMNS}, r.headers, r.body, r.length
                         FROM calls c LEFT JOIN results r ON r.seq = c.seq
                         WHERE c.callback_state = 1 AND c.callback_due <= ?1
                         ORDER BY c.callback_due LIMIT ?2"
                    ))?
                    .query_map((now(), count), |row| {
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
                let next = c
                    .prepare_cached(
                        "SELECT callback_due FROM calls WHERE callback_state = 1
                         ORDER BY callback_due LIMIT 1",
                    )?
                    .query_row([], |row| moment(row, 0))
                    .optional()?;
                Ok((leased, next))
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
