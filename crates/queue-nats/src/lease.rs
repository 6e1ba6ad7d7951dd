//! Handing calls out: what the consumer gives is compared with the record, and the record decides.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use futures_util::StreamExt;
use futures_util::future::join_all;
use jiff::Timestamp;
use updraft_model::FunctionId;
use updraft_store::StoreError;
use updraft_store::queue::{
    Attempt, CallId, CallRecord, CallState, CallbackRecord, CallbackState, IndexEntry, LeasedCall,
    Leases, StoredBody,
};

use crate::entry;
use crate::link::{PATIENCE, WriteError, with_causes};
use crate::message::{Incoming, decode};
use crate::store::{HeldCall, Inner, locked, number_of};

/// How soon to look again when the consumer gave less than is due.
const AGAIN: Duration = Duration::from_millis(100);

/// How long a call may be overdue before it is looked into.
const OVERDUE: Duration = Duration::from_secs(5);

/// How long a message is left alone whose record could not be read or written.
const LATER: Duration = Duration::from_secs(1);

/// What to do with a message that was handed out.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Make the call.
    Make,
    /// Not before this long.
    Later(Duration),
    /// Its call has ended, or another message stands for it.
    Remove,
}

/// What the record says about a message.
fn judge(entry: &IndexEntry, sequence: u64, now: Timestamp) -> Verdict {
    let call = &entry.record;
    if !matches!(call.state, CallState::Queued | CallState::Running)
        || (entry.request != 0 && entry.request != sequence)
    {
        return Verdict::Remove;
    }
    // Queued: its next attempt may not begin yet. Running: somebody holds it until then.
    match call.due.as_millisecond() - now.as_millisecond() {
        wait if wait > 0 => Verdict::Later(Duration::from_millis(wait.unsigned_abs())),
        _ => Verdict::Make,
    }
}

/// A message that was handed out, and what is known of its call.
struct Handed {
    message: Message,
    sequence: u64,
    hold: String,
    entry: IndexEntry,
    read: Incoming,
}

impl Inner {
    pub(crate) async fn lease(
        &self,
        function: &FunctionId,
        count: usize,
        until: Timestamp,
    ) -> Result<Leases, StoreError> {
        let messages = self.fetch(function, count).await?;
        let ran_dry = messages.len() < count;
        let handed = self.read_all(function, messages).await?;
        let taken = join_all(handed.into_iter().map(|handed| self.take(handed, until))).await;
        let mut calls: Vec<LeasedCall> = taken.into_iter().flatten().collect();
        calls.sort_by_key(|call| call.record.number);
        let mut next = self.index.next(function).await?;
        if ran_dry && let Some((due, _)) = &mut next {
            let now = Timestamp::now();
            if calls.is_empty() && *due <= now {
                self.look_into(function, now).await?;
            }
            *due = (*due).max(now + AGAIN);
        }
        Ok(Leases { calls, next })
    }

    /// Up to `count` messages that may be handed out now.
    async fn fetch(&self, function: &FunctionId, count: usize) -> Result<Vec<Message>, StoreError> {
        const DOING: &str = "take up calls";
        self.link.check(DOING)?;
        let known = locked(&self.consumers).get(function).cloned();
        let consumer = if let Some(consumer) = known {
            consumer
        } else {
            let made = self.link.consumer(function).await?;
            locked(&self.consumers).insert(function.clone(), made.clone());
            made
        };
        let fetching = async {
            let mut batch = consumer.fetch().max_messages(count).messages().await?;
            let mut messages = Vec::with_capacity(count);
            while let Some(message) = batch.next().await {
                messages.push(message?);
            }
            Ok::<_, async_nats::Error>(messages)
        };
        match tokio::time::timeout(PATIENCE, fetching).await {
            Ok(Ok(messages)) => Ok(messages),
            failure => {
                // The consumer may be gone, as after a cluster lost it: the next try makes it
                // anew. What it handed out just now is handed out again.
                locked(&self.consumers).remove(function);
                let reason = match failure {
                    Ok(Err(error)) => with_causes(&*error),
                    _ => "the consumer did not answer in time".to_owned(),
                };
                Err(self.link.unavailable(DOING, reason))
            }
        }
    }

    async fn read_all(
        &self,
        function: &FunctionId,
        messages: Vec<Message>,
    ) -> Result<Vec<Handed>, StoreError> {
        let mut read = Vec::with_capacity(messages.len());
        for message in messages {
            let (Some(hold), Ok(info)) = (message.reply.clone(), message.info()) else { continue };
            let (sequence, published) = (info.stream_sequence, moment(info.published));
            let headers = message.headers.clone().unwrap_or_default();
            match self.understand(function, sequence, published, &headers, &message.payload) {
                Ok((entry, incoming)) => read.push(Handed {
                    sequence,
                    hold: hold.to_string(),
                    entry,
                    read: incoming,
                    message,
                }),
                Err(reason) => {
                    tracing::error!(
                        sequence, %function, reason,
                        "a message in the stream of calls cannot be read and is removed"
                    );
                    self.link.acknowledge(&hold, AckKind::Term).await;
                    self.link.remove(&self.link.names.calls, sequence).await;
                }
            }
        }
        let ids = read.iter().map(|handed| handed.entry.record.id.clone()).collect();
        let known: HashMap<CallId, IndexEntry> = self
            .index
            .by_ids(ids)
            .await?
            .into_iter()
            .map(|entry| (entry.record.id.clone(), entry))
            .collect();
        for handed in &mut read {
            if let Some(entry) = known.get(&handed.entry.record.id) {
                handed.entry = entry.clone();
            }
        }
        Ok(read)
    }

    /// A call as its message tells it, before anything became of it.
    pub(crate) fn understand(
        &self,
        function: &FunctionId,
        sequence: u64,
        published: Timestamp,
        headers: &async_nats::HeaderMap,
        payload: &[u8],
    ) -> Result<(IndexEntry, Incoming), String> {
        let incoming = decode(headers, payload)?;
        if let Some(entry::Said::Is(mut entry)) = entry::read(headers, 0)? {
            if entry.record.number == 0 {
                entry.record.number = number_of(sequence);
            }
            entry.request = sequence;
            return Ok((*entry, incoming));
        }
        Ok((self.foreign(function, sequence, published, &incoming), incoming))
    }

    /// The record of a call that another producer put into the stream.
    fn foreign(
        &self,
        function: &FunctionId,
        sequence: u64,
        published: Timestamp,
        incoming: &Incoming,
    ) -> IndexEntry {
        let own = || {
            let id = format!("{}-{sequence}", self.options.stream);
            id.parse().expect("a stream's name and a number are an id")
        };
        let callback = incoming.callback.clone().map(|url| CallbackRecord {
            url,
            state: CallbackState::Waiting,
            attempts: 0,
            reason: None,
        });
        IndexEntry {
            record: CallRecord {
                number: number_of(sequence),
                id: incoming.id.clone().unwrap_or_else(own),
                function: function.clone(),
                owner: None,
                queue: incoming.queue.clone().unwrap_or_else(|| "faas-request".to_owned()),
                state: CallState::Queued,
                attempts: 0,
                due: published,
                created_at: published,
                finished_at: None,
                method: incoming.head.method.to_string(),
                target: incoming.head.target.clone(),
                body_length: incoming.body.len() as u64,
                status: None,
                reason: None,
                took: None,
                callback,
            },
            callback_due: None,
            revision: 0,
            request: sequence,
            body: None,
            origin: String::new(),
            holder: None,
            hold: None,
        }
    }

    /// Takes a call that was handed out, if it is to be made now.
    async fn take(&self, handed: Handed, until: Timestamp) -> Option<LeasedCall> {
        let Handed { message, sequence, hold, mut entry, read } = handed;
        loop {
            match judge(&entry, sequence, Timestamp::now()) {
                Verdict::Make => {}
                Verdict::Later(wait) => {
                    self.link.acknowledge(&hold, AckKind::Nak(Some(wait))).await;
                    return None;
                }
                Verdict::Remove => {
                    self.link.acknowledge(&hold, AckKind::Ack).await;
                    self.link.remove(&self.link.names.calls, sequence).await;
                    return None;
                }
            }
            let mut taken = entry.clone();
            taken.record.state = CallState::Running;
            taken.record.attempts += 1;
            taken.record.due = until;
            taken.request = sequence;
            taken.holder = Some(self.me().to_owned());
            taken.hold = Some(hold.clone());
            let failure = match self.write("lease the call", taken).await {
                Ok(taken) => {
                    return Some(self.hold(taken, &message, hold, sequence, read));
                }
                // Another instance, or a version that the index has not seen yet.
                Err(WriteError::Changed) => match self.read_record(&entry.record.id).await {
                    Ok(Some(there)) if there.revision != entry.revision => {
                        drop(self.index.put(vec![there.clone()]).await);
                        entry = there;
                        continue;
                    }
                    Ok(Some(_)) => "its record changes all the time".to_owned(),
                    // Forgotten while it was handed out.
                    Ok(None) => {
                        self.link.acknowledge(&hold, AckKind::Ack).await;
                        self.link.remove(&self.link.names.calls, sequence).await;
                        return None;
                    }
                    Err(error) => error.to_string(),
                },
                Err(WriteError::Failed(error)) => error.to_string(),
            };
            tracing::warn!(call = %entry.record.id, reason = failure, "a call is taken up later");
            self.link.acknowledge(&hold, AckKind::Nak(Some(LATER))).await;
            return None;
        }
    }

    fn hold(
        &self,
        entry: IndexEntry,
        message: &Message,
        hold: String,
        sequence: u64,
        read: Incoming,
    ) -> LeasedCall {
        let record = entry.record.clone();
        let attempt = Attempt { call: record.number, number: record.attempts };
        let body = match &entry.body {
            Some(name) => StoredBody::Blob(name.clone(), record.body_length),
            None => StoredBody::Inline(read.body),
        };
        let held = HeldCall {
            entry,
            headers: message.headers.clone().unwrap_or_default(),
            payload: message.payload.clone(),
            hold,
            sequence,
        };
        locked(&self.held).insert(record.number, held);
        LeasedCall { attempt, head: read.head, body, record }
    }

    /// Whom this process holds by that attempt.
    pub(crate) fn held(&self, attempt: Attempt) -> Option<HeldCall> {
        let held = locked(&self.held);
        held.get(&attempt.call).filter(|held| held.entry.record.attempts == attempt.number).cloned()
    }

    /// Lets go of a call that this attempt held.
    pub(crate) fn let_go(&self, attempt: Attempt) {
        let mut held = locked(&self.held);
        let is_it = |held: &HeldCall| held.entry.record.attempts == attempt.number;
        if held.get(&attempt.call).is_some_and(is_it) {
            held.remove(&attempt.call);
        }
    }

    pub(crate) async fn renew(
        &self,
        attempts: &[Attempt],
        until: Timestamp,
    ) -> Result<(), StoreError> {
        const DOING: &str = "renew the leases";
        self.link.check(DOING)?;
        let mut renewed = Vec::with_capacity(attempts.len());
        for attempt in attempts {
            if let Some(held) = self.held(*attempt) {
                self.link.acknowledge(&held.hold, AckKind::Progress).await;
                renewed.push(attempt.call);
            }
        }
        self.index.renew(renewed, until).await?;
        match tokio::time::timeout(PATIENCE, self.link.client.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.link.unavailable(DOING, error)),
            Err(_) => Err(self.link.unavailable(DOING, "no answer in time")),
        }
    }

    /// Finds out why calls that should have been handed out long ago were not.
    async fn look_into(&self, function: &FunctionId, now: Timestamp) -> Result<(), StoreError> {
        if !self.may_look(now.as_millisecond()) {
            return Ok(());
        }
        for entry in self.index.overdue(function, now - OVERDUE, 16).await? {
            let call = &entry.record;
            let there = self.read_record(&call.id).await?;
            if let Some(there) = there.filter(|there| there.revision > entry.revision) {
                // The index had missed something.
                self.index.put(vec![there]).await?;
            } else if entry.request == 0 {
                self.send_letter_again(&entry).await?;
            } else if self.link.message(&self.link.names.calls, entry.request).await?.is_none() {
                if entry.revision == 0 {
                    // Made and forgotten, and the index knew nothing of it.
                    self.index.remove(vec![call.number]).await?;
                } else if call.state == CallState::Queued {
                    let reason = "its request is no longer in the stream of calls";
                    tracing::error!(call = %call.id, reason, "a call cannot be made");
                    self.end_unmade(entry, CallState::Dead, reason).await?;
                }
            }
        }
        Ok(())
    }
}

/// A moment as the broker tells it.
pub(crate) fn moment(at: async_nats::datetime::DateTime) -> Timestamp {
    let nanos = at.unix_timestamp_nanos() / 1_000_000;
    let millis = i64::try_from(nanos).unwrap_or_default();
    Timestamp::from_millisecond(millis).unwrap_or_default()
}
