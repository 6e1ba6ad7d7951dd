//! How an attempt ends, and how a call does: the record first, then what it makes superfluous.

use async_nats::HeaderMap;
use async_nats::jetstream::AckKind;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use updraft_model::FunctionId;
use updraft_store::StoreError;
use updraft_store::queue::{
    Attempt, CallFilter, CallId, CallRecord, CallState, CallbackState, Expiry, IndexEntry, Outcome,
};

use crate::link::WriteError;
use crate::store::{HeldCall, Inner, locked};
use crate::{body, entry};

/// Records that are written at once when many are.
const AT_ONCE: usize = 32;

/// Tries at a record that others change at the same time.
const TRIES: usize = 5;

/// After this long, calls that another instance accepted for a function that is unknown here are
/// given up here: that instance would have made them by now.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_hours(1);

/// Headers that mean something only when a message is sent for the first time.
const ONCE: [&str; 3] =
    ["Nats-Msg-Id", "Nats-Expected-Last-Subject-Sequence", "Nats-Expected-Stream"];

/// A message's headers, to be sent again.
fn again(headers: &HeaderMap) -> HeaderMap {
    let mut copy = HeaderMap::new();
    for (name, values) in headers.iter() {
        if !ONCE.iter().any(|once| once.eq_ignore_ascii_case(name.as_ref())) {
            for value in values {
                copy.append(name.clone(), value.clone());
            }
        }
    }
    copy
}

/// Marks the end of a call.
fn ended(entry: &mut IndexEntry, state: CallState) {
    let now = Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap_or_default();
    let call = &mut entry.record;
    call.state = state;
    call.finished_at = Some(now);
    entry.request = 0;
    entry.holder = None;
    entry.hold = None;
    if state != CallState::Cancelled
        && let Some(callback) = &mut call.callback
    {
        callback.state = CallbackState::Pending;
        callback.attempts = 0;
        entry.callback_due = Some(now);
    }
}

impl Inner {
    /// Puts a call back: for another attempt when there was an outcome, else as if there had been
    /// none.
    pub(crate) async fn put_back(
        &self,
        attempt: Attempt,
        due: Timestamp,
        outcome: Option<Outcome>,
    ) -> Result<bool, StoreError> {
        let Some(held) = self.held(attempt) else { return Ok(false) };
        let mut entry = held.entry.clone();
        entry.record.state = CallState::Queued;
        entry.record.due = due;
        entry.holder = None;
        entry.hold = None;
        match outcome {
            None => entry.record.attempts -= 1,
            Some(outcome) => {
                entry.record.status = outcome.status;
                entry.record.reason = outcome.reason;
                entry.record.took = Some(outcome.took);
            }
        }
        match self.write_patiently("put the call back", entry).await {
            Ok(_) => {
                self.let_go(attempt);
                let wait = due.as_millisecond() - Timestamp::now().as_millisecond();
                let wait = Duration::from_millis(u64::try_from(wait).unwrap_or(0).max(1));
                self.link.acknowledge(&held.hold, AckKind::Nak(Some(wait))).await;
                Ok(true)
            }
            Err(error) => self.lost(attempt, error),
        }
    }

    pub(crate) async fn finish(
        self: &Arc<Self>,
        attempt: Attempt,
        state: CallState,
        outcome: Outcome,
    ) -> Result<bool, StoreError> {
        let Some(held) = self.held(attempt) else { return Ok(false) };
        let mut entry = held.entry.clone();
        ended(&mut entry, state);
        entry.record.status = outcome.status;
        entry.record.reason = outcome.reason;
        entry.record.took = Some(outcome.took);
        // Before the record says that they are there.
        let id = &held.entry.record.id;
        if let Some(answer) = &outcome.answer
            && let Err(WriteError::Failed(error)) = self.keep_answer(id, answer).await
        {
            tracing::warn!(%error, call = %id, "an answer is not kept");
        }
        if state == CallState::Dead {
            let kept = self.keep_letter(id, &held.headers, held.payload.clone()).await;
            if let Err(WriteError::Failed(error)) = kept {
                return Err(error);
            }
        }
        match self.write_patiently("end the call", entry).await {
            Ok(entry) => {
                self.let_go(attempt);
                // Nobody waits for the tidying; what of it a crash prevents, the next start does.
                let inner = Arc::clone(self);
                tokio::spawn(async move { inner.settle(&held, &entry).await });
                Ok(true)
            }
            Err(error) => self.lost(attempt, error),
        }
    }

    /// What could not be written: another's word counts, or the broker failed.
    fn lost(&self, attempt: Attempt, error: WriteError) -> Result<bool, StoreError> {
        self.let_go(attempt);
        match error {
            WriteError::Changed => Ok(false),
            WriteError::Failed(error) => Err(error),
        }
    }

    /// Removes what an ended call leaves.
    async fn settle(&self, held: &HeldCall, entry: &IndexEntry) {
        self.link.acknowledge(&held.hold, AckKind::Ack).await;
        self.link.remove(&self.link.names.calls, held.sequence).await;
        if entry.record.state != CallState::Dead
            && let Some(name) = &entry.body
        {
            body::remove(&self.link, name).await;
        }
    }

    /// Keeps the request of a dead letter.
    async fn keep_letter(
        &self,
        id: &CallId,
        headers: &HeaderMap,
        payload: Bytes,
    ) -> Result<(), WriteError> {
        let subject = self.link.names.letter(id);
        self.link.publish("keep the dead letter", subject, again(headers), payload).await?;
        Ok(())
    }

    /// Ends a call that no attempt holds. False when it changed meanwhile.
    pub(crate) async fn end_unmade(
        &self,
        mut entry: IndexEntry,
        state: CallState,
        reason: &str,
    ) -> Result<bool, StoreError> {
        let request = entry.request;
        let calls = &self.link.names.calls;
        if state == CallState::Dead
            && request != 0
            && let Some(message) = self.link.message(calls, request).await?
        {
            let kept = self.keep_letter(&entry.record.id, &message.headers, message.payload).await;
            if let Err(WriteError::Failed(error)) = kept {
                return Err(error);
            }
        }
        ended(&mut entry, state);
        entry.record.reason = Some(reason.to_owned());
        entry.record.status = None;
        match self.write("end the call", entry).await {
            Ok(_) => {
                if request != 0 {
                    self.link.remove(calls, request).await;
                }
                Ok(true)
            }
            Err(WriteError::Changed) => Ok(false),
            Err(WriteError::Failed(error)) => Err(error),
        }
    }

    pub(crate) async fn bury(
        &self,
        function: &FunctionId,
        reason: &str,
        count: u32,
    ) -> Result<(u64, u64), StoreError> {
        let before = Timestamp::now() - PATIENCE_WITH_OTHERS;
        let left = self.index.left(function, self.me(), before, count).await?;
        let lengths = left.iter().map(|entry| entry.record.body_length).collect::<Vec<_>>();
        let mut ends = stream::iter(left.into_iter().zip(lengths))
            .map(|(entry, length)| async move {
                let ended = self.end_unmade(entry, CallState::Dead, reason).await?;
                Ok::<_, StoreError>(ended.then_some(length))
            })
            .buffer_unordered(AT_ONCE);
        let (mut calls, mut bytes) = (0, 0);
        while let Some(ended) = ends.next().await {
            if let Some(length) = ended? {
                calls += 1;
                bytes += length;
            }
        }
        Ok((calls, bytes))
    }

    pub(crate) async fn cancel(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError> {
        const DOING: &str = "cancel the call";
        let Some(mut entry) = self.index.by_id(id).await? else { return Ok(None) };
        for _ in 0..TRIES {
            if !matches!(entry.record.state, CallState::Queued | CallState::Running) {
                return Ok(None);
            }
            let before = entry.record.clone();
            let (request, name) = (entry.request, entry.body.clone());
            let mut cancelled = entry.clone();
            ended(&mut cancelled, CallState::Cancelled);
            match self.write(DOING, cancelled).await {
                Ok(_) => {
                    let held = locked(&self.held).remove(&before.number);
                    if let Some(held) = held {
                        self.link.acknowledge(&held.hold, AckKind::Ack).await;
                    }
                    if request != 0 {
                        self.link.remove(&self.link.names.calls, request).await;
                    }
                    if let Some(name) = name {
                        body::remove(&self.link, &name).await;
                    }
                    return Ok(Some(before));
                }
                Err(WriteError::Failed(error)) => return Err(error),
                Err(WriteError::Changed) => match self.read_record(id).await? {
                    None => return Ok(None),
                    Some(there) => {
                        self.index.put(vec![there.clone()]).await?;
                        entry = there;
                    }
                },
            }
        }
        Err(self.link.unavailable(DOING, "its record changes all the time"))
    }

    /// Puts a dead letter back. Nothing when it is none any more.
    ///
    /// The record goes first, then the request, then the letter: whatever a crash leaves, the
    /// letter is there until the request is.
    pub(crate) async fn revive(
        &self,
        mut entry: IndexEntry,
    ) -> Result<Option<CallRecord>, StoreError> {
        let now = Timestamp::from_millisecond(Timestamp::now().as_millisecond());
        let call = &mut entry.record;
        call.state = CallState::Queued;
        call.attempts = 0;
        call.due = now.unwrap_or_default();
        call.finished_at = None;
        if let Some(callback) = &mut call.callback {
            callback.state = CallbackState::Waiting;
            callback.attempts = 0;
        }
        entry.callback_due = None;
        entry.request = 0;
        let names = &self.link.names;
        if self.link.last(&names.records, &names.letter(&entry.record.id)).await?.is_none() {
            return Err(self.link.refused("put the dead letter back", "its request is gone"));
        }
        match self.write("put the dead letter back", entry).await {
            Ok(entry) => {
                self.send_letter_again(&entry).await?;
                let answer = self.link.names.answer(&entry.record.id);
                self.link.purge(&self.link.names.records, answer).await;
                Ok(Some(entry.record))
            }
            Err(WriteError::Changed) => Ok(None),
            Err(WriteError::Failed(error)) => Err(error),
        }
    }

    /// Puts the request of a revived call into the stream of calls, if its letter is still there.
    pub(crate) async fn send_letter_again(&self, entry: &IndexEntry) -> Result<(), StoreError> {
        let names = &self.link.names;
        let subject = names.letter(&entry.record.id);
        let Some(letter) = self.link.last(&names.records, &subject).await? else { return Ok(()) };
        let mut headers = again(&letter.headers);
        // The call keeps its number.
        entry::write(&mut headers, entry, self.me())
            .map_err(|reason| self.link.refused("put the dead letter back", reason))?;
        let call = names.call(&entry.record.function);
        let sent =
            self.link.publish("put the dead letter back", call, headers, letter.payload).await;
        match sent {
            Ok(_) | Err(WriteError::Changed) => {
                self.link.remove(&names.records, letter.sequence).await;
                Ok(())
            }
            Err(WriteError::Failed(error)) => Err(error),
        }
    }

    pub(crate) async fn revive_some(
        &self,
        filter: &CallFilter,
        after: i64,
        count: u32,
    ) -> Result<Vec<CallRecord>, StoreError> {
        let found = self.index.dead_after(filter, after, count).await?;
        let revived: Vec<_> =
            stream::iter(found).map(|entry| self.revive(entry)).buffered(AT_ONCE).collect().await;
        let mut records = Vec::with_capacity(revived.len());
        for record in revived {
            records.extend(record?);
        }
        Ok(records)
    }

    pub(crate) async fn discard(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError> {
        match self.index.by_id(id).await? {
            Some(entry)
                if !matches!(entry.record.state, CallState::Queued | CallState::Running) =>
            {
                let record = entry.record.clone();
                Ok(self.forget(entry).await?.then_some(record))
            }
            _ => Ok(None),
        }
    }

    /// Forgets an ended call. False when it changed meanwhile.
    async fn forget(&self, entry: IndexEntry) -> Result<bool, StoreError> {
        const DOING: &str = "forget the call";
        let names = &self.link.names;
        let id = &entry.record.id;
        let mut headers = HeaderMap::new();
        entry::write_forgotten(&mut headers, entry.record.number, self.me());
        match self.replace(DOING, names.record(id), headers, entry.revision).await {
            Ok(sequence) => {
                self.index.remove(vec![entry.record.number]).await?;
                self.link.purge(&names.records, names.answer(id)).await;
                if entry.record.state == CallState::Dead {
                    self.link.purge(&names.records, names.letter(id)).await;
                    if let Some(name) = &entry.body {
                        body::remove(&self.link, name).await;
                    }
                }
                self.remember_mark(sequence);
                Ok(true)
            }
            Err(WriteError::Changed) => Ok(false),
            Err(WriteError::Failed(error)) => Err(error),
        }
    }

    pub(crate) async fn expire(&self, expiry: Expiry) -> Result<Vec<CallRecord>, StoreError> {
        let ids = self.index.expired(expiry).await?.into_iter().map(|call| call.id).collect();
        let entries = self.index.by_ids(ids).await?;
        let gone: Vec<_> = stream::iter(entries)
            .map(|entry| async move {
                let record = entry.record.clone();
                Ok::<_, StoreError>(self.forget(entry).await?.then_some(record))
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut records = Vec::with_capacity(gone.len());
        for record in gone {
            records.extend(record?);
        }
        Ok(records)
    }
}
