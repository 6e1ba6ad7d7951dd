//! What happened during a push, in order, for whoever looks now or later.

use jiff::Timestamp;
use rusqlite::Connection;
use serde_json::Value;
use updraft_model::{OwnerName, RepositoryName};

use crate::error::StoreError;
use crate::stored::moment;
use crate::{PushId, Store};

/// Most events that one read gives; read on from the last number.
const READ_MAX: u32 = 1000;

/// An event to append. The body is the writer's and says itself which form it has.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub body: Value,
}

/// An event as it was appended.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// Its place among the push's events, from 1, without gaps.
    pub seq: u64,
    /// When it happened, to the millisecond.
    pub at: Timestamp,
    /// What happened.
    pub body: Value,
}

/// Appends events; gives the number of the first.
pub(crate) fn append(
    connection: &Connection,
    push: PushId,
    events: &[NewEvent],
) -> rusqlite::Result<u64> {
    let last: i64 = connection
        .prepare_cached("SELECT coalesce(max(seq), 0) FROM push_events WHERE push = ?1")?
        .query_row([push], |row| row.get(0))?;
    let mut insert = connection
        .prepare_cached("INSERT INTO push_events (push, seq, at, body) VALUES (?1, ?2, ?3, ?4)")?;
    for (seq, event) in (last + 1..).zip(events) {
        insert.execute((push, seq, event.at.as_millisecond(), event.body.to_string()))?;
    }
    Ok(last.unsigned_abs() + 1)
}

impl Store {
    /// Appends events to a push; gives the number of the first, the others follow it.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`] when there is no such push.
    pub async fn append_events(
        &self,
        push: PushId,
        events: Vec<NewEvent>,
    ) -> Result<u64, StoreError> {
        self.database.write("append events to the push", move |c| append(c, push, &events)).await
    }

    /// Drops the events of a repository's pushes that are over, except the newest `keep` pushes'.
    pub async fn prune_events(
        &self,
        owner: &OwnerName,
        repository: &RepositoryName,
        keep: u32,
    ) -> Result<(), StoreError> {
        let (owner, repository) = (owner.clone(), repository.clone());
        self.database
            .write("drop old events", move |c| {
                c.prepare_cached(
                    "DELETE FROM push_events WHERE push IN
                         (SELECT p.id FROM pushes p JOIN repositories r ON r.id = p.repository
                          WHERE r.owner = ?1 AND r.name = ?2 AND p.finished_at IS NOT NULL
                          ORDER BY p.id DESC LIMIT -1 OFFSET ?3)",
                )?
                .execute((owner.as_str(), repository.as_str(), keep))?;
                Ok(())
            })
            .await
    }

    /// The events of a push from number `from` on (1 is the first), at most 1000 of them.
    pub async fn events(&self, push: PushId, from: u64) -> Result<Vec<StoredEvent>, StoreError> {
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        self.database
            .read("read the push's events", move |c| {
                c.prepare_cached(
                    "SELECT seq, at, body FROM push_events WHERE push = ?1 AND seq >= ?2
                     ORDER BY seq LIMIT ?3",
                )?
                .query_map((push, from, READ_MAX), |row| {
                    let body = row.get_ref(2)?.as_str()?;
                    Ok(StoredEvent {
                        seq: row.get::<_, i64>(0)?.unsigned_abs(),
                        at: moment(row, 1)?,
                        body: serde_json::from_str(body).map_err(|error| {
                            rusqlite::Error::FromSqlConversionFailure(
                                2,
                                rusqlite::types::Type::Text,
                                Box::new(error),
                            )
                        })?,
                    })
                })?
                .collect()
            })
            .await
    }
}
