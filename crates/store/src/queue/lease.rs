//! A worker's way through a call: lease, renew, and how it ends.

use bytes::Bytes;
use http::HeaderMap;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};
use std::time::Duration;
use updraft_model::FunctionId;

use super::form::{Head, function, headers_to_column, number};
use super::record::{COLUMN_COUNT, COLUMNS, record};
use super::{CallId, CallRecord, CallState, RequestHead, SqliteCallStore, StoredBody, Waiting};
use crate::error::StoreError;
use crate::stored::{moment, now, optional_text};

/// One attempt at one call: only its holder may say what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// The number of the call.
    pub call: i64,
    /// Which attempt at it, or at its callback, from 1 on.
    pub number: u32,
}

/// A call that a worker holds.
#[derive(Debug)]
pub struct LeasedCall {
    /// The right to end it.
    pub attempt: Attempt,
    /// What is known of it.
    pub record: CallRecord,
    /// What to send.
    pub head: RequestHead,
    /// What to send after it.
    pub body: StoredBody,
}

/// What a lease brought.
#[derive(Debug)]
pub struct Leases {
    /// The calls, in the order of their turn.
    pub calls: Vec<LeasedCall>,
    /// When the next call of the function that was not leased is due, and when it came.
    pub next: Option<(Timestamp, Timestamp)>,
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The answer's status, if there was one.
    pub status: Option<u16>,
    /// Why it did not do; nothing when it did.
    pub reason: Option<String>,
    /// How long it took.
    pub took: Duration,
    /// The answer's headers, the kept part of its body, and its whole length.
    pub answer: Option<(HeaderMap, Bytes, u64)>,
}

/// Bodies that lost their record; whoever gets this removes them.
#[must_use]
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lost(pub Vec<crate::BlobName>);

fn milliseconds(moment: Timestamp) -> i64 {
    moment.as_millisecond()
}

pub(super) fn micros(took: Duration) -> i64 {
    i64::try_from(took.as_micros()).unwrap_or(i64::MAX)
}

fn leased(row: &Row<'_>) -> rusqlite::Result<LeasedCall> {
    let mut record = record(row)?;
    record.attempts += 1;
    record.state = CallState::Running;
    let (headers, client) = Head::from_column(row, COLUMN_COUNT)?;
    let body = if let Some(blob) = optional_text(row, COLUMN_COUNT + 2)? {
        StoredBody::Blob(blob, record.body_length)
    } else {
        let inline: Option<Vec<u8>> = row.get(COLUMN_COUNT + 1)?;
        StoredBody::Inline(inline.unwrap_or_default().into())
    };
    let method = record.method.parse().unwrap_or(http::Method::POST);
    Ok(LeasedCall {
        attempt: Attempt { call: record.number, number: record.attempts },
        head: RequestHead { method, target: record.target.clone(), headers, client },
        body,
        record,
    })
}

/// Forgets the body of a call that will not be made again.
pub(super) fn drop_request(c: &Connection, call: i64, lost: &mut Lost) -> rusqlite::Result<()> {
    let blob = c
        .prepare_cached("DELETE FROM requests WHERE seq = ?1 RETURNING blob")?
        .query_row([call], |row| optional_text(row, 0))
        .optional()?;
    lost.0.extend(blob.flatten());
    Ok(())
}

/// Every function that has calls waiting or running.
pub(super) fn waiting(c: &Connection) -> rusqlite::Result<Vec<Waiting>> {
    c.prepare_cached(
        "SELECT function, max(owner), max(queue), count(*), sum(body_length), min(due),
             min(created_at)
         FROM calls WHERE state <= 1 GROUP BY function",
    )?
    .query_map([], |row| {
        Ok(Waiting {
            function: function(row, 0)?,
            owner: optional_text(row, 1)?,
            queue: row.get(2)?,
            calls: row.get::<_, i64>(3)?.unsigned_abs(),
            bytes: row.get::<_, i64>(4)?.unsigned_abs(),
            due: moment(row, 5)?,
            oldest: moment(row, 6)?,
        })
    })?
    .collect()
}

impl SqliteCallStore {
    /// Takes back what workers of an earlier process held. Call it once, before any lease.
    /// Returns how many calls that were.
    pub async fn recover(&self) -> Result<usize, StoreError> {
        self.database
            .write("take the running calls back", |c| {
                c.execute("UPDATE calls SET callback_due = 0 WHERE callback_state = 1", [])?;
                c.execute("UPDATE calls SET state = 0, due = ?1 WHERE state = 1", [now()])
            })
            .await
    }

    /// Every function that has calls waiting.
    pub async fn waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        self.database.read("count the calls", waiting).await
    }

    /// Leases up to `count` calls of a function that are due, until `until`.
    pub async fn lease(
        &self,
        function: &FunctionId,
        count: usize,
        until: Timestamp,
    ) -> Result<Leases, StoreError> {
        let function = function.to_string();
        self.database
            .write("lease calls", move |c| {
                let calls: Vec<LeasedCall> = c
                    .prepare_cached(&format!(
                        "SELECT {COLUMNS}, q.head, q.body, q.blob
                         FROM calls c JOIN requests q ON q.seq = c.seq
                         WHERE c.function = ?1 AND c.state <= 1 AND c.due <= ?2
                         ORDER BY c.due, c.seq LIMIT ?3"
                    ))?
                    .query_map((&function, now(), number(count as u64)), leased)?
                    .collect::<rusqlite::Result<_>>()?;
                let mut lease = c.prepare_cached(
                    "UPDATE calls SET state = 1, attempts = ?2, due = ?3 WHERE seq = ?1",
                )?;
                for call in &calls {
                    lease.execute((call.attempt.call, call.attempt.number, milliseconds(until)))?;
                }
                let next = c
                    .prepare_cached(
                        "SELECT due, created_at FROM calls WHERE function = ?1 AND state <= 1
                         ORDER BY due, seq LIMIT 1",
                    )?
                    .query_row([&function], |row| Ok((moment(row, 0)?, moment(row, 1)?)))
                    .optional()?;
                Ok(Leases { calls, next })
            })
            .await
    }

    /// Holds the calls until `until`.
    pub async fn renew(&self, held: Vec<Attempt>, until: Timestamp) -> Result<(), StoreError> {
        self.database
            .write("renew the leases", move |c| {
                let mut renew = c.prepare_cached(
                    "UPDATE calls SET due = ?3 WHERE seq = ?1 AND attempts = ?2 AND state = 1",
                )?;
                for attempt in &held {
                    renew.execute((attempt.call, attempt.number, milliseconds(until)))?;
                }
                Ok(())
            })
            .await
    }

    /// Gives a call back without having tried it: its attempt does not count.
    pub async fn release(&self, attempt: Attempt, due: Timestamp) -> Result<bool, StoreError> {
        self.database
            .write("give the call back", move |c| {
                c.prepare_cached(
                    "UPDATE calls SET state = 0, attempts = attempts - 1, due = ?3
                     WHERE seq = ?1 AND attempts = ?2 AND state = 1",
                )?
                .execute((attempt.call, attempt.number, milliseconds(due)))
            })
            .await
            .map(|changed| changed > 0)
    }

    /// Puts a call back for another attempt. False when the lease was lost.
    pub async fn retry(
        &self,
        attempt: Attempt,
        due: Timestamp,
        outcome: Outcome,
    ) -> Result<bool, StoreError> {
        self.database
            .write("put the call back", move |c| {
                c.prepare_cached(
                    "UPDATE calls SET state = 0, due = ?3, status = ?4, reason = ?5,
                         took_micros = ?6
                     WHERE seq = ?1 AND attempts = ?2 AND state = 1",
                )?
                .execute((
                    attempt.call,
                    attempt.number,
                    milliseconds(due),
                    outcome.status,
                    outcome.reason,
                    micros(outcome.took),
                ))
            })
            .await
            .map(|changed| changed > 0)
    }

    /// Ends a call, done or dead, and has its callback made if there is one. Nothing when the
    /// lease was lost.
    pub async fn finish(
        &self,
        attempt: Attempt,
        state: CallState,
        outcome: Outcome,
    ) -> Result<Option<Lost>, StoreError> {
        self.database
            .write("end the call", move |c| {
                let ended_at = now();
                let changed = c
                    .prepare_cached(
                        "UPDATE calls SET state = ?3, finished_at = ?4, status = ?5, reason = ?6,
                             took_micros = ?7, callback_state = iif(callback IS NULL, 0, 1),
                             callback_due = iif(callback IS NULL, NULL, ?4), callback_attempts = 0
                         WHERE seq = ?1 AND attempts = ?2 AND state = 1",
                    )?
                    .execute((
                        attempt.call,
                        attempt.number,
                        state,
                        ended_at,
                        outcome.status,
                        outcome.reason,
                        micros(outcome.took),
                    ))?;
                if changed == 0 {
                    return Ok(None);
                }
                if let Some((headers, body, length)) = outcome.answer {
                    c.prepare_cached(
                        "INSERT OR REPLACE INTO results (seq, headers, body, length)
                         VALUES (?1, ?2, ?3, ?4)",
                    )?
                    .execute((
                        attempt.call,
                        headers_to_column(&headers)?,
                        body.as_ref(),
                        number(length),
                    ))?;
                }
                let mut lost = Lost::default();
                if state != CallState::Dead {
                    drop_request(c, attempt.call, &mut lost)?;
                }
                Ok(Some(lost))
            })
            .await
    }

    /// Gives up up to `count` waiting calls of a function at once. Returns how many there were,
    /// and the bytes of their bodies.
    pub async fn bury(
        &self,
        function: &FunctionId,
        reason: String,
        count: u32,
    ) -> Result<(u64, u64), StoreError> {
        let function = function.to_string();
        self.database
            .write("give the calls up", move |c| {
                c.prepare_cached(
                    "UPDATE calls SET state = 3, finished_at = ?2, reason = ?3, status = NULL,
                         callback_state = iif(callback IS NULL, 0, 1),
                         callback_due = iif(callback IS NULL, NULL, ?2), callback_attempts = 0
                     WHERE seq IN (SELECT seq FROM calls WHERE function = ?1 AND state <= 1
                                       AND state = 0 ORDER BY due, seq LIMIT ?4)
                     RETURNING body_length",
                )?
                .query_map((&function, now(), reason, count), |row| row.get::<_, i64>(0))?
                .try_fold((0, 0), |(calls, bytes), length| {
                    Ok((calls + 1, bytes + length?.unsigned_abs()))
                })
            })
            .await
    }

    /// Cancels a call that waits or runs; gives what it was before, and nothing when it is no
    /// such call.
    pub async fn cancel(&self, id: &CallId) -> Result<Option<(CallRecord, Lost)>, StoreError> {
        let id = id.clone();
        self.database
            .write("cancel the call", move |c| {
                let found = c
                    .prepare_cached(&format!(
                        "SELECT {COLUMNS} FROM calls c WHERE c.id = ?1 AND c.state <= 1"
                    ))?
                    .query_row([id.as_str()], record)
                    .optional()?;
                let Some(record) = found else { return Ok(None) };
                c.prepare_cached("UPDATE calls SET state = 4, finished_at = ?2 WHERE seq = ?1")?
                    .execute((record.number, now()))?;
                let mut lost = Lost::default();
                drop_request(c, record.number, &mut lost)?;
                Ok(Some((record, lost)))
            })
            .await
    }
}
