//! `[queue]`: asynchronous calls.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Deserialize;
use updraft_queue::{CallbackOptions, CallbackTarget, QueueOptions, RetryPolicy, SigningKey};

use super::nats::{NatsConfig, QueueBackend};
use super::{bytes, duration};
use crate::RELEASE;

/// `[queue]`: what asynchronous calls may take, and how they are made again and told of.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct QueueConfig {
    /// What keeps the calls.
    pub(crate) backend: QueueBackend,
    /// Where it is, when it is NATS.
    pub(crate) nats: NatsConfig,
    /// Queues by name, which functions choose with `com.openfaas.queue`.
    queues: BTreeMap<String, NamedQueueConfig>,
    /// Calls at once, of all functions together.
    concurrency: usize,
    /// Calls at once of one function that does not say how many it takes.
    function_concurrency: usize,
    /// Most calls that wait.
    waiting: u64,
    /// Most calls of one function that wait.
    function_waiting: u64,
    /// Most bytes of the bodies of calls that wait.
    #[serde(deserialize_with = "bytes")]
    waiting_size: u64,
    /// Longest body of a call.
    #[serde(deserialize_with = "bytes")]
    body_size: u64,
    /// Bytes of an answer that are kept and told.
    #[serde(deserialize_with = "bytes")]
    result_size: u64,
    /// How long done and cancelled calls stay on record.
    #[serde(deserialize_with = "duration")]
    keep: Duration,
    /// How many of them do.
    keep_count: u64,
    /// How long dead letters stay.
    #[serde(deserialize_with = "duration")]
    keep_dead: Duration,
    /// How many of them do.
    keep_dead_count: u64,
    /// Attempts after the first.
    retry_attempts: u32,
    /// Statuses after which a call is made again.
    retry_codes: Vec<u16>,
    /// Wait before the second attempt.
    #[serde(deserialize_with = "duration")]
    retry_min_wait: Duration,
    /// Longest wait between attempts.
    #[serde(deserialize_with = "duration")]
    retry_max_wait: Duration,
    /// Hosts and networks that callbacks may reach although they lie inside.
    callback_allow: Vec<String>,
    /// Certificates that callbacks believe beside the system's.
    callback_roots: Option<PathBuf>,
    /// Longest time of one callback.
    #[serde(deserialize_with = "duration")]
    callback_time: Duration,
    /// Attempts at a callback after the first.
    callback_attempts: u32,
}

/// `[queue.queues.NAME]`: one queue among several.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedQueueConfig {
    /// Calls of all its functions together that run at once.
    concurrency: usize,
}

/// A key that signs nothing: for the defaults, which need one.
const NO_KEY: SigningKey = SigningKey::new([0; 32]);

impl Default for QueueConfig {
    fn default() -> Self {
        let usual = QueueOptions::usual(CallbackOptions::usual("", 0, NO_KEY, RELEASE));
        Self {
            backend: QueueBackend::default(),
            nats: NatsConfig::default(),
            queues: BTreeMap::new(),
            concurrency: usual.concurrency,
            function_concurrency: usual.function_concurrency,
            waiting: usual.waiting,
            function_waiting: usual.function_waiting,
            waiting_size: usual.waiting_bytes,
            body_size: usual.body,
            result_size: usual.result as u64,
            keep: usual.keep,
            keep_count: usual.keep_count,
            keep_dead: usual.keep_dead,
            keep_dead_count: usual.keep_dead_count,
            retry_attempts: usual.retry.attempts,
            retry_codes: usual.retry.codes,
            retry_min_wait: usual.retry.min_wait,
            retry_max_wait: usual.retry.max_wait,
            callback_allow: Vec::new(),
            callback_roots: None,
            callback_time: usual.callback.time,
            callback_attempts: usual.callback.retry.attempts,
        }
    }
}

impl QueueConfig {
    /// Checks what the types alone cannot.
    pub(super) fn check(&self) -> Result<()> {
        if self.concurrency == 0 || self.function_concurrency == 0 {
            bail!("queue.concurrency and queue.function_concurrency must be at least 1");
        }
        if self.retry_min_wait.is_zero() || self.retry_max_wait < self.retry_min_wait {
            bail!("queue.retry_min_wait must be above 0 and not above queue.retry_max_wait");
        }
        if self.callback_time.is_zero() {
            bail!("queue.callback_time must be above 0");
        }
        if let Some(code) = self.retry_codes.iter().find(|code| !(100..600).contains(*code)) {
            bail!("queue.retry_codes: {code} is no HTTP status");
        }
        for (name, queue) in &self.queues {
            if queue.concurrency == 0 {
                bail!("queue.queues.{name}.concurrency must be at least 1");
            }
            if !updraft_queue::is_queue_name(name) {
                bail!(
                    "queue.queues: `{name}` is no queue's name, use 1 to 63 letters, digits and `-_.`"
                );
            }
        }
        if self.backend == QueueBackend::Nats {
            self.nats.options("check", Path::new(""), Duration::from_secs(1))?;
        }
        self.targets().map(drop)
    }

    fn targets(&self) -> Result<Vec<CallbackTarget>> {
        let target = |text: &String| {
            text.parse().map_err(|error| anyhow::anyhow!("queue.callback_allow: {error}"))
        };
        self.callback_allow.iter().map(target).collect()
    }

    /// The queue's options for the platform at `root`, `port`.
    pub(crate) fn options(&self, root: &str, port: u16, key: SigningKey) -> Result<QueueOptions> {
        let usual = CallbackOptions::usual(root, port, key, RELEASE);
        let callback = CallbackOptions {
            allow: self.targets()?,
            roots: self.callback_roots.clone(),
            time: self.callback_time,
            retry: RetryPolicy { attempts: self.callback_attempts, ..usual.retry.clone() },
            ..usual
        };
        Ok(QueueOptions {
            concurrency: self.concurrency,
            function_concurrency: self.function_concurrency,
            queues: self
                .queues
                .iter()
                .map(|(name, queue)| (name.clone(), queue.concurrency))
                .collect(),
            waiting: self.waiting,
            function_waiting: self.function_waiting,
            waiting_bytes: self.waiting_size,
            body: self.body_size,
            result: usize::try_from(self.result_size).unwrap_or(usize::MAX),
            keep: self.keep,
            keep_count: self.keep_count,
            keep_dead: self.keep_dead,
            keep_dead_count: self.keep_dead_count,
            retry: RetryPolicy {
                attempts: self.retry_attempts,
                codes: self.retry_codes.clone(),
                min_wait: self.retry_min_wait,
                max_wait: self.retry_max_wait,
            },
            ..QueueOptions::usual(callback)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<QueueConfig> {
        let config: QueueConfig = toml::from_str(text)?;
        config.check().map(|()| config)
    }

    #[test]
    fn the_defaults_hold_and_what_is_written_replaces_them() {
        let config = checked("keep = '1h'\ncallback_allow = ['10.0.0.0/8', 'hooks.example.org']");
        let options = config.unwrap().options("localhost", 8080, NO_KEY).unwrap();
        assert_eq!(options.keep, Duration::from_hours(1));
        assert_eq!(options.callback.allow.len(), 2);
        assert_eq!(options.retry, RetryPolicy::default());
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_their_key() {
        for (text, key) in [
            ("concurrency = 0", "queue.concurrency"),
            ("retry_codes = [42]", "queue.retry_codes"),
            ("retry_min_wait = '10m'", "queue.retry_min_wait"),
            ("callback_allow = ['10.0.0.0/40']", "queue.callback_allow"),
            ("callback_time = 0", "queue.callback_time"),
            ("[queues.slow]\nconcurrency = 0", "queue.queues.slow"),
            ("backend = 'nats'\n[nats]\nservers = []", "queue.nats.servers"),
        ] {
            let refusal = checked(text).unwrap_err().to_string();
            assert!(refusal.contains(key), "{refusal}");
        }
    }
}
