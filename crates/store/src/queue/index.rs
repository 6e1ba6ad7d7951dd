//! What is known of calls that another keeper holds, where lists and look-ups find it.
//!
//! The keeper is the truth; the index follows it and is made anew at every start. Each entry says
//! which version of the keeper's record it shows, and a newer one is never replaced by an older.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Row, params_from_iter};
use updraft_model::{FunctionId, OwnerName};

use super::form::number;
use super::record::{COLUMN_COUNT, COLUMNS, record};
use super::{
    CallFilter, CallId, CallRecord, CallState, CallbacksDue, Expiry, Waiting, callback, lease, list,
};
use crate::BlobName;
use crate::database::{Database, Durability};
use crate::error::StoreError;
use crate::schema;
use crate::stored::{moment, now, optional_moment, optional_text};

/// A call, and where its keeper has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// What is known of the call.
    pub record: CallRecord,
    /// When its callback is due, while it is pending.
    pub callback_due: Option<Timestamp>,
    /// Which version of the keeper's record this is; 0 before there is one.
    pub revision: u64,
    /// Where the keeper has the request; 0 when nowhere yet, or no longer.
    pub request: u64,
    /// The long body, if it has one.
    pub body: Option<BlobName>,
    /// The instance that accepted the call.
    pub origin: String,
    /// The instance that holds the call, or its callback.
    pub holder: Option<String>,
    /// What the keeper knows that hold by.
    pub hold: Option<String>,
}

/// The index: cheap to clone.
#[derive(Debug, Clone)]
pub struct CallIndex {
    database: Arc<Database>,
}

/// Columns of an entry behind those of its record.
const MORE: &str = "c.callback_due, c.revision, c.request, c.body, c.origin, c.holder, c.hold";

fn entry(row: &Row<'_>) -> rusqlite::Result<IndexEntry> {
    let count = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
    Ok(IndexEntry {
        record: record(row)?,
        callback_due: optional_moment(row, COLUMN_COUNT)?,
        revision: count(COLUMN_COUNT + 1)?,
        request: count(COLUMN_COUNT + 2)?,
        body: optional_text(row, COLUMN_COUNT + 3)?,
        origin: row.get(COLUMN_COUNT + 4)?,
        holder: row.get(COLUMN_COUNT + 5)?,
        hold: row.get(COLUMN_COUNT + 6)?,
    })
}

impl CallIndex {
    /// An empty index in this file. Blocks for some milliseconds.
    ///
    /// # Errors
    /// The machine's fault: no space, no permission.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        for ending in ["", "-wal", "-shm", "-journal"] {
            let mut file = path.as_os_str().to_owned();
            file.push(ending);
            match std::fs::remove_file(&file) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::Folder { path: path.to_owned(), source });
                }
                _ => {}
            }
        }
        let database = Database::open(path, schema::QUEUE_INDEX, Durability::None)?;
        Ok(Self { database: Arc::new(database) })
    }

    /// Enters calls, each unless a newer version of it is there.
    pub async fn put(&self, entries: Vec<IndexEntry>) -> Result<(), StoreError> {
        self.database
            .write("index the calls", move |c| {
                let mut put = c.prepare_cached(
                    "INSERT INTO calls (seq, id, function, owner, queue, state, attempts, due,
                         created_at, finished_at, method, target, body_length, status, reason,
                         took_micros, callback, callback_state, callback_attempts, callback_due,
                         callback_reason, revision, request, body, origin, holder, hold)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
                         ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27)
                     ON CONFLICT (seq) DO UPDATE SET
                         state = excluded.state, attempts = excluded.attempts, due = excluded.due,
                         finished_at = excluded.finished_at, status = excluded.status,
                         reason = excluded.reason, took_micros = excluded.took_micros,
                         callback_state = excluded.callback_state,
                         callback_attempts = excluded.callback_attempts,
                         callback_due = excluded.callback_due,
                         callback_reason = excluded.callback_reason,
                         revision = excluded.revision, request = excluded.request,
                         holder = excluded.holder, hold = excluded.hold
                     WHERE excluded.revision > calls.revision",
                )?;
                for entry in &entries {
                    let (call, callback) = (&entry.record, entry.record.callback.as_ref());
                    put.execute(params_from_iter([
                        Value::from(call.number),
                        call.id.to_string().into(),
                        call.function.to_string().into(),
                        call.owner.as_ref().map(ToString::to_string).into(),
                        call.queue.clone().into(),
                        call.state.number().into(),
                        call.attempts.into(),
                        call.due.as_millisecond().into(),
                        call.created_at.as_millisecond().into(),
                        call.finished_at.map(Timestamp::as_millisecond).into(),
                        call.method.clone().into(),
                        call.target.clone().into(),
                        number(call.body_length).into(),
                        call.status.map(i64::from).into(),
                        call.reason.clone().into(),
                        call.took.map(lease::micros).into(),
                        callback.map(|callback| callback.url.clone()).into(),
                        callback.map_or(0, |callback| callback.state.number()).into(),
                        callback.map_or(0, |callback| i64::from(callback.attempts)).into(),
                        entry.callback_due.map(Timestamp::as_millisecond).into(),
                        callback.and_then(|callback| callback.reason.clone()).into(),
                        number(entry.revision).into(),
                        number(entry.request).into(),
                        entry.body.as_ref().map(ToString::to_string).into(),
                        entry.origin.clone().into(),
                        entry.holder.clone().into(),
                        entry.hold.clone().into(),
                    ]))?;
                }
                Ok(())
            })
            .await
    }

    /// Forgets calls.
    pub async fn remove(&self, numbers: Vec<i64>) -> Result<(), StoreError> {
        self.database
            .write("forget the calls", move |c| {
                let mut remove = c.prepare_cached("DELETE FROM calls WHERE seq = ?1")?;
                for number in numbers {
                    remove.execute([number])?;
                }
                Ok(())
            })
            .await
    }

    /// Notes that the calls are held until `until`.
    pub async fn renew(&self, numbers: Vec<i64>, until: Timestamp) -> Result<(), StoreError> {
        self.database
            .write("renew the leases", move |c| {
                let mut renew =
                    c.prepare_cached("UPDATE calls SET due = ?2 WHERE seq = ?1 AND state = 1")?;
                for number in numbers {
                    renew.execute((number, until.as_millisecond()))?;
                }
                Ok(())
            })
            .await
    }

    async fn select(
        &self,
        doing: &'static str,
        tail: &'static str,
        values: Vec<Value>,
    ) -> Result<Vec<IndexEntry>, StoreError> {
        self.database
            .read(doing, move |c| {
                c.prepare_cached(&format!("SELECT {COLUMNS}, {MORE} FROM calls c {tail}"))?
                    .query_map(params_from_iter(values), entry)?
                    .collect()
            })
            .await
    }

    /// The call of that id.
    pub async fn by_id(&self, id: &CallId) -> Result<Option<IndexEntry>, StoreError> {
        let tail = "WHERE c.id = ?1 ORDER BY c.seq DESC LIMIT 1";
        let found = self.select("look the call up", tail, vec![id.to_string().into()]).await?;
        Ok(found.into_iter().next())
    }

    /// The calls of these ids, as far as they are known.
    pub async fn by_ids(&self, ids: Vec<CallId>) -> Result<Vec<IndexEntry>, StoreError> {
        self.database
            .read("look the calls up", move |c| {
                let mut select = c.prepare_cached(&format!(
                    "SELECT {COLUMNS}, {MORE} FROM calls c WHERE c.id = ?1 ORDER BY c.seq DESC"
                ))?;
                let mut found = Vec::with_capacity(ids.len());
                for id in &ids {
                    found.extend(select.query_row([id.as_str()], entry).optional()?);
                }
                Ok(found)
            })
            .await
    }

    /// The call of that number.
    pub async fn by_number(&self, number: i64) -> Result<Option<IndexEntry>, StoreError> {
        let found = self.select("look the call up", "WHERE c.seq = ?1", vec![number.into()]);
        Ok(found.await?.into_iter().next())
    }

    /// The calls that the filter lets through, newest first.
    pub async fn calls(&self, filter: &CallFilter) -> Result<Vec<CallRecord>, StoreError> {
        let filter = filter.clone();
        self.database.read("list the calls", move |c| list::calls(c, &filter)).await
    }

    /// Every function that has calls waiting or running.
    pub async fn waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        self.database.read("count the calls", lease::waiting).await
    }

    /// How many dead letters each function has.
    pub async fn dead(&self) -> Result<Vec<(FunctionId, u64)>, StoreError> {
        self.database.read("count the dead letters", list::dead).await
    }

    /// When the oldest ended call ended, if there is one.
    pub async fn oldest_end(&self) -> Result<Option<Timestamp>, StoreError> {
        self.database.read("find the oldest call", list::oldest_end).await
    }

    /// Whose callbacks are to be made, and when the first of each is due.
    pub async fn callbacks_due(&self) -> Result<Vec<CallbacksDue>, StoreError> {
        self.database.read("find the callbacks", callback::due).await
    }

    /// Callbacks of an owner's calls that are due.
    pub async fn due_callbacks(
        &self,
        owner: Option<&OwnerName>,
        count: u32,
    ) -> Result<Vec<IndexEntry>, StoreError> {
        let owner = owner.map(ToString::to_string);
        let tail = "WHERE c.callback_state = 1 AND c.owner IS ?1 AND c.callback_due <= ?2
                    ORDER BY c.callback_due LIMIT ?3";
        let values = vec![owner.into(), now().into(), count.into()];
        self.select("find the callbacks", tail, values).await
    }

    /// When the next call of a function is due, and when it came.
    pub async fn next(
        &self,
        function: &FunctionId,
    ) -> Result<Option<(Timestamp, Timestamp)>, StoreError> {
        let function = function.to_string();
        self.database
            .read("find the next call", move |c| {
                c.prepare_cached(
                    "SELECT due, created_at FROM calls WHERE function = ?1 AND state <= 1
                     ORDER BY due, seq LIMIT 1",
                )?
                .query_row([&function], |row| Ok((moment(row, 0)?, moment(row, 1)?)))
                .optional()
            })
            .await
    }

    /// Calls of a function that should have been leased before `before`.
    pub async fn overdue(
        &self,
        function: &FunctionId,
        before: Timestamp,
        count: u32,
    ) -> Result<Vec<IndexEntry>, StoreError> {
        let tail = "WHERE c.function = ?1 AND c.state <= 1 AND c.due < ?2
                    ORDER BY c.due, c.seq LIMIT ?3";
        let values =
            vec![function.to_string().into(), before.as_millisecond().into(), count.into()];
        self.select("find overdue calls", tail, values).await
    }

    /// Waiting calls of a function that `origin` accepted, or that came before `before`.
    pub async fn left(
        &self,
        function: &FunctionId,
        origin: &str,
        before: Timestamp,
        count: u32,
    ) -> Result<Vec<IndexEntry>, StoreError> {
        let tail = "WHERE c.function = ?1 AND c.state <= 1 AND c.state = 0
                        AND (c.origin = ?2 OR c.created_at < ?3)
                    ORDER BY c.due, c.seq LIMIT ?4";
        let values = vec![
            function.to_string().into(),
            origin.to_owned().into(),
            before.as_millisecond().into(),
            count.into(),
        ];
        self.select("find the calls to give up", tail, values).await
    }

    /// Calls and callbacks that `holder` holds.
    pub async fn held_by(&self, holder: &str) -> Result<Vec<IndexEntry>, StoreError> {
        let tail = "WHERE c.holder = ?1 AND (c.state = 1 OR c.callback_state = 1)";
        self.select("find what was held", tail, vec![holder.to_owned().into()]).await
    }

    /// Calls that wait and whose request is nowhere: putting them back was interrupted.
    pub async fn without_request(&self) -> Result<Vec<IndexEntry>, StoreError> {
        let tail = "WHERE c.state = 0 AND c.state <= 1 AND c.request = 0";
        self.select("find interrupted calls", tail, Vec::new()).await
    }

    /// Dead letters that the filter lets through and that are newer than `after`, oldest first.
    pub async fn dead_after(
        &self,
        filter: &CallFilter,
        after: i64,
        count: u32,
    ) -> Result<Vec<IndexEntry>, StoreError> {
        let filter = CallFilter { state: Some(CallState::Dead), ..filter.clone() };
        let (condition, mut values) = filter.to_sql();
        values.push(after.into());
        let after = values.len();
        self.database
            .read("find dead letters", move |c| {
                c.prepare_cached(&format!(
                    "SELECT {COLUMNS}, {MORE} FROM calls c WHERE {condition} AND c.seq > ?{after}
                     ORDER BY c.seq LIMIT {count}"
                ))?
                .query_map(params_from_iter(values), entry)?
                .collect()
            })
            .await
    }

    /// Ended calls that are too old or too many, unless somebody is still to be told of them.
    pub async fn expired(&self, expiry: Expiry) -> Result<Vec<CallRecord>, StoreError> {
        self.database.read("find old calls", move |c| list::expired(c, expiry)).await
    }

    /// The long bodies of all calls.
    pub async fn bodies(&self) -> Result<HashSet<BlobName>, StoreError> {
        self.database
            .read("list the bodies", |c| {
                c.prepare_cached("SELECT body FROM calls WHERE body IS NOT NULL")?
                    .query_map([], |row| optional_text(row, 0))?
                    .filter_map(Result::transpose)
                    .collect()
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::queue::{CallbackRecord, CallbackState};

    fn entry(number: i64, revision: u64, state: CallState) -> IndexEntry {
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        IndexEntry {
            record: CallRecord {
                number,
                id: format!("call-{number}").parse().unwrap(),
                function: FunctionId::in_default("f".parse().unwrap()),
                owner: "alice".parse().ok(),
                queue: "q".to_owned(),
                state,
                attempts: 2,
                due: at,
                created_at: at,
                finished_at: (state == CallState::Dead).then_some(at),
                method: "PUT".to_owned(),
                target: "/a?b".to_owned(),
                body_length: 7,
                status: Some(500),
                reason: Some("why".to_owned()),
                took: Some(Duration::from_micros(1500)),
                callback: Some(CallbackRecord {
                    url: "http://example.org/".to_owned(),
                    state: CallbackState::Pending,
                    attempts: 3,
                    reason: None,
                }),
            },
            callback_due: Some(at),
            revision,
            request: 4,
            body: "bodies/01".parse().ok(),
            origin: "one".to_owned(),
            holder: Some("two".to_owned()),
            hold: Some("hold".to_owned()),
        }
    }

    #[tokio::test]
    async fn an_entry_comes_out_as_it_went_in_and_only_a_newer_one_replaces_it() {
        let folder = tempfile::tempdir().unwrap();
        let index = CallIndex::create(&folder.path().join("index.db")).unwrap();
        let running = entry(1, 5, CallState::Running);
        index.put(vec![running.clone()]).await.unwrap();
        assert_eq!(index.by_number(1).await.unwrap(), Some(running.clone()));
        index.put(vec![entry(1, 4, CallState::Dead), entry(1, 5, CallState::Dead)]).await.unwrap();
        assert_eq!(index.by_id(&running.record.id).await.unwrap(), Some(running));
        let dead = entry(1, 6, CallState::Dead);
        index.put(vec![dead.clone()]).await.unwrap();
        let letters = index.dead_after(&CallFilter::default(), 0, 10).await.unwrap();
        assert_eq!(letters, [dead]);
        assert_eq!(index.bodies().await.unwrap().len(), 1);
        index.remove(vec![1]).await.unwrap();
        assert_eq!(index.by_number(1).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_was_there_before_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.db");
        let index = CallIndex::create(&path).unwrap();
        index.put(vec![entry(1, 5, CallState::Queued)]).await.unwrap();
        assert_eq!(index.waiting().await.unwrap()[0].calls, 1);
        drop(index);
        let index = CallIndex::create(&path).unwrap();
        assert!(index.waiting().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn calls_are_found_by_what_is_to_be_done_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let index = CallIndex::create(&folder.path().join("index.db")).unwrap();
        let queued = IndexEntry { request: 0, ..entry(1, 1, CallState::Queued) };
        let running = entry(2, 2, CallState::Running);
        index.put(vec![queued.clone(), running.clone()]).await.unwrap();
        let function = &queued.record.function;
        let now = Timestamp::now();
        assert_eq!(index.without_request().await.unwrap(), std::slice::from_ref(&queued));
        assert_eq!(
            index.left(function, "one", now, 9).await.unwrap(),
            std::slice::from_ref(&queued)
        );
        let long_ago = Timestamp::from_second(1).unwrap();
        assert!(index.left(function, "other", long_ago, 9).await.unwrap().is_empty());
        assert_eq!(index.overdue(function, now, 1).await.unwrap(), std::slice::from_ref(&queued));
        assert_eq!(index.held_by("two").await.unwrap().len(), 2);
        let owner = queued.record.owner.clone();
        let due = CallbacksDue { owner: owner.clone(), due: queued.callback_due.unwrap() };
        assert_eq!(index.callbacks_due().await.unwrap(), [due]);
        assert_eq!(index.due_callbacks(owner.as_ref(), 9).await.unwrap().len(), 2);
        assert!(index.due_callbacks(None, 9).await.unwrap().is_empty());
        index.renew(vec![1, 2], now).await.unwrap();
        let dues = [1, 2].map(|number| index.by_number(number));
        let [first, second] = dues;
        let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
        assert_eq!(first.record.due, queued.record.due);
        assert_eq!(second.record.due.as_millisecond(), now.as_millisecond());
    }
}
