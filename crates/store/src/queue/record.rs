//! What is known of a call, and its way from queued to its end.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use jiff::Timestamp;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension, Row, ToSql};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use updraft_model::{FunctionId, OwnerName};

use super::form::{Head, function, headers_from_column, number};
use super::{CallId, CallToAdd, SqliteCallStore, StoredBody};
use crate::error::StoreError;
use crate::stored::{moment, now, optional_moment, optional_text, text};

macro_rules! state_type {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// The word for it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The number that stands for it in columns.
            pub(super) const fn number(self) -> i64 {
                match self { $(Self::$variant => $number,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.number().into())
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                match value.as_i64()? {
                    $($number => Ok(Self::$variant),)+
                    other => Err(FromSqlError::OutOfRange(other)),
                }
            }
        }
    };
}

state_type!(
    /// Where a call is on its way.
    CallState {
        /// Waits for its turn, or for its next attempt.
        Queued = 0 "queued",
        /// The function has it.
        Running = 1 "running",
        /// The function answered, whatever it answered.
        Done = 2 "done",
        /// Given up: a dead letter, kept to be looked at, made again or discarded.
        Dead = 3 "dead",
        /// Somebody did not want it any more.
        Cancelled = 4 "cancelled",
    }
);

state_type!(
    /// Whether whoever asked to be told was told.
    CallbackState {
        /// There is nothing to tell yet.
        Waiting = 0 "waiting",
        /// They are to be told.
        Pending = 1 "pending",
        /// They were told and took it.
        Delivered = 2 "delivered",
        /// They could not be told.
        Failed = 3 "failed",
    }
);

/// The text names no state.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no state of a call, use queued, running, done, dead or cancelled")]
pub struct ParseCallStateError(String);

impl FromStr for CallState {
    type Err = ParseCallStateError;

    fn from_str(text: &str) -> Result<Self, ParseCallStateError> {
        [Self::Queued, Self::Running, Self::Done, Self::Dead, Self::Cancelled]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| ParseCallStateError(text.to_owned()))
    }
}

/// What is known of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRecord {
    /// Its place in the record: later calls have higher numbers.
    pub number: i64,
    /// Its name.
    pub id: CallId,
    /// Whom it calls.
    pub function: FunctionId,
    /// Whose function that is, if anybody's.
    pub owner: Option<OwnerName>,
    /// The queue's name.
    pub queue: String,
    /// Where it is on its way.
    pub state: CallState,
    /// Attempts begun so far.
    pub attempts: u32,
    /// While queued: when the next attempt may begin.
    pub due: Timestamp,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The request's method.
    pub method: String,
    /// Raw path and query below the function.
    pub target: String,
    /// Bytes of its body.
    pub body_length: u64,
    /// The status of the last attempt, if one was answered.
    pub status: Option<u16>,
    /// Why the last attempt did not do.
    pub reason: Option<String>,
    /// How long the last attempt took.
    pub took: Option<Duration>,
    /// Whoever is to be told.
    pub callback: Option<CallbackRecord>,
}

/// What is known of a callback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallbackRecord {
    /// The address.
    pub url: String,
    /// Whether they were told.
    pub state: CallbackState,
    /// Attempts begun so far.
    pub attempts: u32,
    /// Why the last attempt did not do.
    pub reason: Option<String>,
}

/// What a function answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallResult {
    /// The call it belongs to.
    pub record: CallRecord,
    /// The answer's headers.
    pub headers: HeaderMap,
    /// The answer's body, or its beginning.
    pub body: Bytes,
    /// The length of the whole answer.
    pub length: u64,
}

impl CallResult {
    /// Whether the kept body is not the whole one.
    pub fn is_cut(&self) -> bool {
        self.length > self.body.len() as u64
    }
}

/// Columns of a [`CallRecord`], `c` being the table of calls.
pub(super) const COLUMNS: &str = "c.seq, c.id, c.function, c.owner, c.queue, c.state, c.attempts,
    c.due, c.created_at, c.finished_at, c.method, c.target, c.body_length, c.status, c.reason,
    c.took_micros, c.callback, c.callback_state, c.callback_attempts, c.callback_reason";

/// How many columns that are.
pub(super) const COLUMN_COUNT: usize = 20;

pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<CallRecord> {
    let callback = match row.get(16)? {
        None => None,
        Some(url) => Some(CallbackRecord {
            url,
            state: row.get(17)?,
            attempts: row.get(18)?,
            reason: row.get(19)?,
        }),
    };
    Ok(CallRecord {
        number: row.get(0)?,
        id: text(row, 1)?,
        function: function(row, 2)?,
        owner: optional_text(row, 3)?,
        queue: row.get(4)?,
        state: row.get(5)?,
        attempts: row.get(6)?,
        due: moment(row, 7)?,
        created_at: moment(row, 8)?,
        finished_at: optional_moment(row, 9)?,
        method: row.get(10)?,
        target: row.get(11)?,
        body_length: row.get::<_, i64>(12)?.unsigned_abs(),
        status: row.get(13)?,
        reason: row.get(14)?,
        took: row
            .get::<_, Option<i64>>(15)?
            .map(|micros| Duration::from_micros(micros.unsigned_abs())),
        callback,
    })
}

impl SqliteCallStore {
    /// Keeps a call; it is on the disk when this returns. Gives the id it got and when it is due.
    pub async fn add(&self, call: CallToAdd) -> Result<(CallId, Timestamp), StoreError> {
        let added = self
            .database
            .write("keep the call", move |c| {
                let created_at = now();
                let head = Head::to_column(&call.head.headers, call.head.client)?;
                let mut insert = c.prepare_cached(
                    "INSERT INTO calls (id, function, owner, queue, state, due, created_at, method,
                         target, body_length, callback)
                     VALUES (?1, ?2, ?3, ?4, 0, ?5, ?5, ?6, ?7, ?8, ?9)
                     ON CONFLICT (id) DO NOTHING",
                )?;
                let (function, length) = (call.function.to_string(), number(call.body.length()));
                let mut insert = |id: &CallId| {
                    insert.execute((
                        id.as_str(),
                        &function,
                        call.owner.as_ref().map(OwnerName::as_str),
                        &call.queue,
                        created_at,
                        call.head.method.as_str(),
                        &call.head.target,
                        length,
                        call.callback.as_deref(),
                    ))
                };
                let [wanted, other] = &call.ids;
                let id = if insert(wanted)? == 1 {
                    wanted
                } else if insert(other)? == 1 {
                    other
                } else {
                    return Err(rusqlite::Error::QueryReturnedNoRows);
                };
                let (body, blob) = match &call.body {
                    StoredBody::Inline(bytes) if bytes.is_empty() => (None, None),
                    StoredBody::Inline(bytes) => (Some(bytes.as_ref()), None),
                    StoredBody::Blob(name, _) => (None, Some(name.as_str())),
                };
                c.prepare_cached(
                    "INSERT INTO requests (seq, head, body, blob) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute((c.last_insert_rowid(), head, body, blob))?;
                Ok((id.clone(), created_at))
            })
            .await?;
        let (id, due) = added;
        Ok((id, Timestamp::from_millisecond(due).unwrap_or_default()))
    }

    /// What is known of a call.
    pub async fn call(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError> {
        let id = id.clone();
        self.database
            .read("read the call", move |c| {
                c.prepare_cached(&format!("SELECT {COLUMNS} FROM calls c WHERE c.id = ?1"))?
                    .query_row([id.as_str()], record)
                    .optional()
            })
            .await
    }

    /// The kept answer of a call, when there is one.
    pub async fn result(&self, id: &CallId) -> Result<Option<CallResult>, StoreError> {
        let id = id.clone();
        self.database
            .read("read the call's answer", move |c| {
                c.prepare_cached(&format!(
                    "SELECT {COLUMNS}, r.headers, r.body, r.length
                     FROM calls c JOIN results r ON r.seq = c.seq WHERE c.id = ?1"
                ))?
                .query_row([id.as_str()], result)
                .optional()
            })
            .await
    }
}

/// A record with the answer's three columns behind it.
pub(super) fn result(row: &Row<'_>) -> rusqlite::Result<CallResult> {
    Ok(CallResult {
        record: record(row)?,
        headers: headers_from_column(row, COLUMN_COUNT)?,
        body: row.get::<_, Vec<u8>>(COLUMN_COUNT + 1)?.into(),
        length: row.get::<_, i64>(COLUMN_COUNT + 2)?.unsigned_abs(),
    })
}
