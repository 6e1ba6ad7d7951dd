//! The index follows the streams: what is there at the start, then what others add.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use futures_util::StreamExt;
use updraft_model::FunctionId;
use updraft_store::StoreError;
use updraft_store::queue::IndexEntry;

use crate::entry::{self, Said};
use crate::lease::moment;
use crate::link::{PATIENCE, with_causes};
use crate::store::{Inner, locked};

/// Messages that are indexed in one step.
const STEP: usize = 1000;

/// How long one request for more lasts; then the next one shows whether the consumer still lives.
const WAIT: Duration = Duration::from_secs(20);

/// How often the broker says that it has not forgotten a request that waits.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long to wait before a stream is followed again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Followed {
    Records,
    Calls,
}

impl Inner {
    /// Indexes what is in the stream. Gives the number of its last message.
    pub(crate) async fn load(&self, followed: Followed) -> Result<u64, StoreError> {
        let consumer = self.reader(followed, 0).await?;
        let mut last = 0;
        loop {
            let mut batch = consumer
                .fetch()
                .max_messages(STEP)
                .messages()
                .await
                .map_err(|error| self.unfollowed(&error.to_string()))?;
            let mut messages = Vec::new();
            while let Some(message) = tokio::time::timeout(PATIENCE, batch.next())
                .await
                .map_err(|_| self.unfollowed("no answer in time"))?
            {
                messages.push(message.map_err(|error| self.unfollowed(&with_causes(&*error)))?);
            }
            if messages.is_empty() {
                return Ok(last);
            }
            last = self.take_in(followed, messages).await?.max(last);
        }
    }

    fn unfollowed(&self, reason: &str) -> StoreError {
        self.link.unavailable("follow the streams", reason)
    }

    /// A consumer of our own that shows the headers of all messages behind `last`.
    async fn reader(&self, followed: Followed, last: u64) -> Result<PullConsumer, StoreError> {
        let names = &self.link.names;
        let (stream, filter_subject) = match followed {
            Followed::Records => (&names.records, names.all_records()),
            Followed::Calls => (&names.calls, String::new()),
        };
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: last + 1 },
            ack_policy: AckPolicy::None,
            filter_subject,
            headers_only: true,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: Duration::from_mins(2),
            ..pull::Config::default()
        };
        let stream = self.link.stream(stream).await?;
        let made = stream.create_consumer(config).await;
        made.map_err(|error| self.unfollowed(&with_causes(&error)))
    }

    /// Follows the stream for as long as the store lives.
    pub(crate) async fn follow(self: Arc<Self>, followed: Followed, mut last: u64) {
        loop {
            if let Err(error) = self.follow_once(followed, &mut last).await {
                tracing::debug!(%error, ?followed, "a stream is followed again in a moment");
            }
            tokio::time::sleep(AFTER_FAILURE).await;
        }
    }

    /// Until the consumer fails, or does not say in time that it lives.
    async fn follow_once(&self, followed: Followed, last: &mut u64) -> Result<(), StoreError> {
        self.link.check("follow the streams")?;
        let consumer = self.reader(followed, *last).await?;
        loop {
            let batch = consumer.batch().max_messages(STEP).expires(WAIT).heartbeat(HEARTBEAT);
            let batch = batch.messages().await;
            let batch = batch.map_err(|error| self.unfollowed(&error.to_string()))?;
            let mut batch = batch.ready_chunks(STEP);
            while let Some(chunk) = tokio::time::timeout(WAIT + PATIENCE, batch.next())
                .await
                .map_err(|_| self.unfollowed("no sign of life"))?
            {
                let mut messages = Vec::with_capacity(chunk.len());
                for message in chunk {
                    messages.push(message.map_err(|error| self.unfollowed(&with_causes(&*error)))?);
                }
                *last = self.take_in(followed, messages).await?.max(*last);
            }
        }
    }

    /// Indexes what the messages say. Gives the number of the last one.
    async fn take_in(&self, followed: Followed, messages: Vec<Message>) -> Result<u64, StoreError> {
        let (mut last, mut is_news) = (0, false);
        let (mut entries, mut gone) = (Vec::new(), Vec::new());
        for message in &messages {
            let Ok(info) = message.info() else { continue };
            let sequence = info.stream_sequence;
            last = last.max(sequence);
            let headers = message.headers.clone().unwrap_or_default();
            is_news |= entry::by(&headers) != Some(self.me());
            let said = match followed {
                Followed::Records => entry::read(&headers, sequence),
                Followed::Calls => entry::read(&headers, 0),
            };
            match (followed, said) {
                (_, Ok(Some(Said::Forgotten(number)))) => {
                    gone.push(number);
                    self.remember_mark(sequence);
                }
                (Followed::Records, Ok(Some(Said::Is(entry)))) => entries.push(*entry),
                (Followed::Calls, Ok(Some(Said::Is(mut entry)))) => {
                    // One with a number is a dead letter that was put back, and has a record.
                    if entry.record.number == 0 {
                        entry.record.number = crate::store::number_of(sequence);
                        entry.request = sequence;
                        entries.push(*entry);
                    }
                }
                (Followed::Calls, Ok(None)) => {
                    let function = self.link.names.function(&message.subject);
                    let published = moment(info.published);
                    entries.extend(self.another(function, sequence, published).await?);
                }
                (Followed::Records, Ok(None)) => {}
                (_, Err(reason)) => {
                    tracing::error!(sequence, ?followed, reason, "a record cannot be read");
                }
            }
        }
        if followed == Followed::Calls {
            self.remove_ended(&entries).await?;
        }
        self.index.put(entries).await?;
        self.index.remove(gone).await?;
        if is_news {
            self.news.notify_one();
        }
        Ok(last)
    }

    /// The call that another producer put into the stream, unless it is none; then it is removed
    /// when it is handed out.
    async fn another(
        &self,
        function: Option<FunctionId>,
        sequence: u64,
        published: jiff::Timestamp,
    ) -> Result<Option<IndexEntry>, StoreError> {
        let Some(function) = function else { return Ok(None) };
        let message = self.link.message(&self.link.names.calls, sequence).await?;
        let Some(message) = message else { return Ok(None) };
        let (headers, payload) = (&message.headers, &message.payload);
        match self.understand(&function, sequence, published, headers, payload) {
            Ok((entry, _)) if self.index.by_id(&entry.record.id).await?.is_none() => {
                Ok(Some(entry))
            }
            Ok(_) => Ok(None),
            Err(reason) => {
                tracing::error!(sequence, %function, reason, "a message is no call, it is removed");
                self.link.remove(&self.link.names.calls, sequence).await;
                Ok(None)
            }
        }
    }

    /// Removes requests of calls whose record says that they ended: a crash came between.
    async fn remove_ended(&self, entries: &[IndexEntry]) -> Result<(), StoreError> {
        use updraft_store::queue::CallState::{Queued, Running};
        let ids = entries.iter().map(|entry| entry.record.id.clone()).collect();
        let requests: std::collections::HashMap<_, _> =
            entries.iter().map(|entry| (&entry.record.id, entry.request)).collect();
        for known in self.index.by_ids(ids).await? {
            let is_ended = !matches!(known.record.state, Queued | Running);
            if let Some(request) = requests.get(&known.record.id)
                && is_ended
            {
                self.link.remove(&self.link.names.calls, *request).await;
            }
        }
        Ok(())
    }

    /// The mark of a forgotten call is removed once every instance has seen it.
    pub(crate) fn remember_mark(&self, sequence: u64) {
        locked(&self.marks).push((tokio::time::Instant::now(), sequence));
    }

    /// Removes marks that are old enough.
    pub(crate) async fn remove_marks(self: Arc<Self>) {
        /// By then every instance that lives has read it; one that starts reads none.
        const OLD: Duration = Duration::from_mins(1);
        loop {
            tokio::time::sleep(OLD / 4).await;
            let old: Vec<u64> = {
                let mut marks = locked(&self.marks);
                let young = marks.partition_point(|(since, _)| since.elapsed() >= OLD);
                marks.drain(..young).map(|(_, sequence)| sequence).collect()
            };
            for sequence in old {
                self.link.remove(&self.link.names.records, sequence).await;
            }
        }
    }
}
