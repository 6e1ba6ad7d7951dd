//! The store: what it is made of, taking calls, and looking at them.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::PullConsumer;
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use updraft_model::{FunctionId, Namespace, OwnerName};
use updraft_store::queue::{
    Attempt, BodyPieces, BodyWriter, CallFilter, CallId, CallIndex, CallRecord, CallResult,
    CallState, CallStore, CallToAdd, CallbackRecord, CallbackState, CallbacksDue, Expiry,
    IndexEntry, LeasedCallback, Leases, Outcome, StoredBody, Waiting,
};
use updraft_store::{BlobName, StoreError};

use crate::link::{Link, OpenNatsError, WriteError};
use crate::message::{Outgoing, from_map, to_map};
use crate::{NatsOptions, entry};

/// The header that describes a kept answer.
const ANSWER: &str = "Updraft-Answer";

/// What an instance looks at without having been told to, so that nothing is missed for good.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Calls kept by a NATS server. Cheap to clone; the followers of the streams end with the last.
#[derive(Clone)]
pub struct NatsCallStore {
    pub(crate) inner: Arc<Inner>,
    pub(crate) followers: Arc<Mutex<Vec<AbortOnDropHandle<()>>>>,
}

pub(crate) struct Inner {
    pub(crate) link: Link,
    pub(crate) index: CallIndex,
    pub(crate) options: NatsOptions,
    /// The calls that this process holds, by number.
    pub(crate) held: Mutex<HashMap<i64, HeldCall>>,
    /// The consumers that were found.
    pub(crate) consumers: Mutex<HashMap<FunctionId, PullConsumer>>,
    /// Another instance changed something.
    pub(crate) news: Notify,
    /// Messages that say that a call is forgotten, oldest first.
    pub(crate) marks: Mutex<Vec<(tokio::time::Instant, u64)>>,
    /// When overdue calls were last looked into, in milliseconds since 1970.
    pub(crate) looked_into: AtomicI64,
}

/// A call that this process holds.
#[derive(Debug, Clone)]
pub(crate) struct HeldCall {
    pub(crate) entry: IndexEntry,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
    /// What its message is acknowledged by.
    pub(crate) hold: String,
    pub(crate) sequence: u64,
}

/// What is kept of an answer beside its body.
#[derive(Serialize, Deserialize)]
struct AnswerForm {
    v: u32,
    headers: std::collections::BTreeMap<String, Vec<String>>,
    length: u64,
}

const ANSWER_FORM: u32 = 1;

impl fmt::Debug for NatsCallStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsCallStore")
            .field("servers", &self.inner.options.servers.len())
            .field("stream", &self.inner.options.stream)
            .finish_non_exhaustive()
    }
}

impl NatsCallStore {
    /// Begins the connection and makes the index; the streams are looked at by
    /// [`recover`](CallStore::recover), when the broker is there.
    ///
    /// # Errors
    /// The operator's or the machine's fault; a broker that is away is none.
    pub async fn open(options: NatsOptions) -> Result<Self, OpenNatsError> {
        let index = CallIndex::create(&options.index)?;
        let link = Link::open(&options).await?;
        let inner = Arc::new(Inner {
            link,
            index,
            options,
            held: Mutex::default(),
            consumers: Mutex::default(),
            news: Notify::new(),
            marks: Mutex::default(),
            looked_into: AtomicI64::new(0),
        });
        Ok(Self { inner, followers: Arc::default() })
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The function as its caller names it.
fn name_of(function: &FunctionId) -> String {
    if function.namespace == Namespace::default() {
        function.name.to_string()
    } else {
        function.to_string()
    }
}

impl Inner {
    pub(crate) fn me(&self) -> &str {
        &self.options.instance
    }

    /// Keeps the next version of a record: what `entry` says, in place of its revision. Gives the
    /// entry with the revision it got; it is in the index then.
    pub(crate) async fn write(
        &self,
        doing: &'static str,
        mut entry: IndexEntry,
    ) -> Result<IndexEntry, WriteError> {
        entry.revision = self.send_record(doing, &entry).await?;
        self.index.put(vec![entry.clone()]).await?;
        Ok(entry)
    }

    /// As [`write`](Self::write), for what must not be forgotten because the broker is away for a
    /// moment: it is tried for as long as the lease lasts.
    pub(crate) async fn write_patiently(
        &self,
        doing: &'static str,
        entry: IndexEntry,
    ) -> Result<IndexEntry, WriteError> {
        let until = tokio::time::Instant::now() + self.options.lease;
        let mut is_repeat = false;
        loop {
            let failure = match self.write(doing, entry.clone()).await {
                Err(WriteError::Failed(error)) if error.is_unavailable() => error,
                Err(WriteError::Changed) if is_repeat => {
                    // The version that is there may be this one, kept by a try whose answer was
                    // lost.
                    let there = self.read_record(&entry.record.id).await?;
                    let there = there.ok_or(WriteError::Changed)?;
                    let ours = IndexEntry { revision: there.revision, ..entry };
                    if there != ours {
                        return Err(WriteError::Changed);
                    }
                    self.index.put(vec![there.clone()]).await?;
                    return Ok(there);
                }
                other => return other,
            };
            is_repeat = true;
            if tokio::time::Instant::now() >= until {
                return Err(failure.into());
            }
            tracing::warn!(error = %failure, "what a call came to is noted again in a moment");
            tokio::time::sleep(Duration::from_millis(500).min(self.options.lease / 4)).await;
        }
    }

    /// Keeps a version of a record and gives its revision.
    pub(crate) async fn send_record(
        &self,
        doing: &'static str,
        entry: &IndexEntry,
    ) -> Result<u64, WriteError> {
        let mut headers = HeaderMap::new();
        entry::write(&mut headers, entry, self.me())
            .map_err(|reason| self.link.refused(doing, reason))?;
        let subject = self.link.names.record(&entry.record.id);
        self.replace(doing, subject, headers, entry.revision).await
    }

    /// Keeps a message in place of the one of that number; 0 when there must be none.
    pub(crate) async fn replace(
        &self,
        doing: &'static str,
        subject: String,
        mut headers: HeaderMap,
        revision: u64,
    ) -> Result<u64, WriteError> {
        headers.insert("Nats-Expected-Last-Subject-Sequence", revision.to_string());
        Ok(self.link.publish(doing, subject, headers, Bytes::new()).await?.sequence)
    }

    /// The record as the broker has it.
    pub(crate) async fn read_record(&self, id: &CallId) -> Result<Option<IndexEntry>, StoreError> {
        let names = &self.link.names;
        let message = self.link.last(&names.records, &names.record(id)).await?;
        let Some(message) = message else { return Ok(None) };
        match entry::read(&message.headers, message.sequence) {
            Ok(Some(entry::Said::Is(entry))) => Ok(Some(*entry)),
            Ok(_) => Ok(None),
            Err(reason) => Err(self.link.refused("read the record", reason)),
        }
    }

    async fn add(&self, call: CallToAdd) -> Result<(CallId, Timestamp), StoreError> {
        const DOING: &str = "keep the call";
        let [wanted, other] = &call.ids;
        let taken = self.index.by_id(wanted).await?.is_some();
        let ids = if taken { [other, other] } else { [wanted, other] };
        for id in ids {
            if let Some(entry) = self.try_add(DOING, &call, id).await? {
                let added = (id.clone(), entry.record.due);
                self.index.put(vec![entry]).await?;
                return Ok(added);
            }
        }
        Err(self.link.refused(DOING, "two calls have its ids already"))
    }

    /// Nothing when another call got that id just now.
    async fn try_add(
        &self,
        doing: &'static str,
        call: &CallToAdd,
        id: &CallId,
    ) -> Result<Option<IndexEntry>, StoreError> {
        let now =
            Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap_or_default();
        let (inline, body) = match &call.body {
            StoredBody::Inline(bytes) => (Some(bytes), None),
            StoredBody::Blob(name, _) => (None, Some(name.clone())),
        };
        let mut entry = IndexEntry {
            record: CallRecord {
                number: 0,
                id: id.clone(),
                function: call.function.clone(),
                owner: call.owner.clone(),
                queue: call.queue.clone(),
                state: CallState::Queued,
                attempts: 0,
                due: now,
                created_at: now,
                finished_at: None,
                method: call.head.method.to_string(),
                target: call.head.target.clone(),
                body_length: call.body.length(),
                status: None,
                reason: None,
                took: None,
                callback: call.callback.clone().map(|url| CallbackRecord {
                    url,
                    state: CallbackState::Waiting,
                    attempts: 0,
                    reason: None,
                }),
            },
            callback_due: None,
            revision: 0,
            request: 0,
            body,
            origin: self.me().to_owned(),
            holder: None,
            hold: None,
        };
        let outgoing = Outgoing {
            id,
            function: name_of(&call.function),
            queue: &call.queue,
            head: &call.head,
            body: inline,
            callback: call.callback.as_deref(),
        };
        let unwritable = |reason: String| self.link.refused(doing, reason);
        let (mut headers, payload) =
            outgoing.encode().map_err(|error| unwritable(error.to_string()))?;
        entry::write(&mut headers, &entry, self.me()).map_err(unwritable)?;
        headers.insert(NATS_MESSAGE_ID, id.as_str());
        let subject = self.link.names.call(&call.function);
        let kept = match self.link.publish(doing, subject, headers, payload).await {
            Ok(kept) => kept,
            Err(WriteError::Failed(error)) => return Err(error),
            Err(WriteError::Changed) => return Ok(None),
        };
        if kept.duplicate {
            return Ok(None);
        }
        entry.record.number = number_of(kept.sequence);
        entry.request = kept.sequence;
        Ok(Some(entry))
    }

    /// Keeps an answer, as much of it as a message takes.
    pub(crate) async fn keep_answer(
        &self,
        id: &CallId,
        (headers, body, length): &(http::HeaderMap, Bytes, u64),
    ) -> Result<(), WriteError> {
        const DOING: &str = "keep the answer";
        let form = AnswerForm { v: ANSWER_FORM, headers: to_map(headers), length: *length };
        let form = serde_json::to_string(&form);
        let form = form.map_err(|error| self.link.refused(DOING, error))?;
        let body = body.slice(..body.len().min(self.link.room()));
        let mut headers = HeaderMap::new();
        headers.insert(ANSWER, form);
        self.link.publish(DOING, self.link.names.answer(id), headers, body).await?;
        Ok(())
    }

    pub(crate) async fn answer(
        &self,
        record: CallRecord,
    ) -> Result<Option<CallResult>, StoreError> {
        let names = &self.link.names;
        let message = self.link.last(&names.records, &names.answer(&record.id)).await?;
        let Some(message) = message else { return Ok(None) };
        let form = message.headers.get(ANSWER).map_or("", |form| form.as_str());
        let form: AnswerForm = serde_json::from_str(form)
            .map_err(|error| self.link.refused("read the answer", error))?;
        if form.v != ANSWER_FORM {
            return Err(self.link.refused("read the answer", "a newer Updraft wrote it"));
        }
        let headers = from_map(&form.headers);
        Ok(Some(CallResult { record, headers, body: message.payload, length: form.length }))
    }
}

/// The number of a call: where its message first lay.
pub(crate) fn number_of(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

#[async_trait]
impl CallStore for NatsCallStore {
    async fn recover(&self) -> Result<usize, StoreError> {
        self.recover_all().await
    }

    async fn waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        self.inner.index.waiting().await
    }

    async fn dead(&self) -> Result<Vec<(FunctionId, u64)>, StoreError> {
        self.inner.index.dead().await
    }

    async fn new_body(&self) -> Result<Box<dyn BodyWriter>, StoreError> {
        self.inner.link.check("keep the body")?;
        Ok(Box::new(crate::body::StreamBody::new(Arc::clone(&self.inner))))
    }

    async fn open_body(&self, name: &BlobName) -> Result<Option<BodyPieces>, StoreError> {
        crate::body::open(&self.inner, name).await
    }

    async fn remove_body(&self, name: BlobName) {
        crate::body::remove(&self.inner.link, &name).await;
    }

    async fn add(&self, call: CallToAdd) -> Result<(CallId, Timestamp), StoreError> {
        self.inner.add(call).await
    }

    async fn call(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError> {
        Ok(self.inner.index.by_id(id).await?.map(|entry| entry.record))
    }

    async fn result(&self, id: &CallId) -> Result<Option<CallResult>, StoreError> {
        match self.inner.index.by_id(id).await? {
            None => Ok(None),
            Some(entry) => self.inner.answer(entry.record).await,
        }
    }

    async fn calls(&self, filter: &CallFilter) -> Result<Vec<CallRecord>, StoreError> {
        self.inner.index.calls(filter).await
    }

    async fn lease(
        &self,
        function: &FunctionId,
        count: usize,
        until: Timestamp,
    ) -> Result<Leases, StoreError> {
        self.inner.lease(function, count, until).await
    }

    async fn renew(&self, held: Vec<Attempt>, until: Timestamp) -> Result<(), StoreError> {
        self.inner.renew(&held, until).await
    }

    async fn release(&self, attempt: Attempt, due: Timestamp) -> Result<bool, StoreError> {
        self.inner.put_back(attempt, due, None).await
    }

    async fn retry(
        &self,
        attempt: Attempt,
        due: Timestamp,
        outcome: Outcome,
    ) -> Result<bool, StoreError> {
        self.inner.put_back(attempt, due, Some(outcome)).await
    }

    async fn finish(
        &self,
        attempt: Attempt,
        state: CallState,
        outcome: Outcome,
    ) -> Result<bool, StoreError> {
        self.inner.finish(attempt, state, outcome).await
    }

    async fn bury(
        &self,
        function: &FunctionId,
        reason: String,
        count: u32,
    ) -> Result<(u64, u64), StoreError> {
        self.inner.bury(function, &reason, count).await
    }

    async fn cancel(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError> {
        self.inner.cancel(id).await
    }

    async fn redrive(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError> {
        match self.inner.index.by_id(id).await? {
            Some(entry) if entry.record.state == CallState::Dead => self.inner.revive(entry).await,
            _ => Ok(None),
        }
    }

    async fn redrive_some(
        &self,
        filter: &CallFilter,
        after: i64,
        count: u32,
    ) -> Result<Vec<CallRecord>, StoreError> {
        self.inner.revive_some(filter, after, count).await
    }

    async fn discard(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError> {
        self.inner.discard(id).await
    }

    async fn expire(&self, expiry: Expiry) -> Result<Vec<CallRecord>, StoreError> {
        self.inner.expire(expiry).await
    }

    async fn oldest_end(&self) -> Result<Option<Timestamp>, StoreError> {
        self.inner.index.oldest_end().await
    }

    async fn callbacks_due(&self) -> Result<Vec<CallbacksDue>, StoreError> {
        self.inner.index.callbacks_due().await
    }

    async fn lease_callbacks(
        &self,
        owner: Option<&OwnerName>,
        count: u32,
        until: Timestamp,
    ) -> Result<Vec<LeasedCallback>, StoreError> {
        self.inner.lease_callbacks(owner, count, until).await
    }

    async fn callback_delivered(&self, attempt: Attempt) -> Result<bool, StoreError> {
        self.inner.end_callback(attempt, CallbackState::Delivered, None, None).await
    }

    async fn callback_failed(
        &self,
        attempt: Attempt,
        due: Option<Timestamp>,
        reason: String,
    ) -> Result<bool, StoreError> {
        let state = if due.is_some() { CallbackState::Pending } else { CallbackState::Failed };
        self.inner.end_callback(attempt, state, due, Some(reason)).await
    }

    async fn holds(&self, attempt: Attempt) -> Result<bool, StoreError> {
        let Some(entry) = self.inner.index.by_number(attempt.call).await? else { return Ok(false) };
        Ok(entry.record.state == CallState::Running
            && entry.record.attempts == attempt.number
            && entry.holder.as_deref() == Some(self.inner.me()))
    }

    async fn changed(&self) {
        drop(tokio::time::timeout(LOOK_EVERY, self.inner.news.notified()).await);
    }
}

impl Inner {
    /// Whether overdue calls may be looked into again.
    pub(crate) fn may_look(&self, now: i64) -> bool {
        /// Milliseconds between two looks.
        const BETWEEN: i64 = 5_000;
        let before = self.looked_into.load(Ordering::Relaxed);
        now - before >= BETWEEN
            && self
                .looked_into
                .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}
