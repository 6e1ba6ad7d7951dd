//! What can be set about the queue.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::callback::CallbackOptions;
use crate::policy::RetryPolicy;

/// Limits of a [`Queue`](crate::Queue). `usual` suits most installations.
#[derive(Debug, Clone)]
pub struct QueueOptions {
    /// Calls at once, of all functions together.
    pub concurrency: usize,
    /// Calls at once of one function whose spec says nothing about it.
    pub function_concurrency: usize,
    /// Calls at once of all functions together that name the same queue, for the queues that have
    /// a limit of their own.
    pub queues: BTreeMap<String, usize>,
    /// Calls that may wait, of all functions together; more are refused.
    pub waiting: u64,
    /// Calls of one function that may wait; more are refused.
    pub function_waiting: u64,
    /// Bytes that the bodies of waiting calls may take together; more are refused.
    pub waiting_bytes: u64,
    /// Longest body of a call.
    pub body: u64,
    /// Longest body that lies in the database; longer ones become files.
    pub inline_body: usize,
    /// Bytes of an answer that are kept and told; the rest is read and dropped.
    pub result: usize,
    /// How long a caller may send nothing in the middle of a body.
    pub body_patience: Duration,
    /// How long a done or cancelled call stays on record.
    pub keep: Duration,
    /// How many of them do.
    pub keep_count: u64,
    /// How long a dead letter stays.
    pub keep_dead: Duration,
    /// How many of them do.
    pub keep_dead_count: u64,
    /// How long a worker holds a call without a sign of life.
    pub lease: Duration,
    /// How long calls under way may go on when the queue is to stop.
    pub drain: Duration,
    /// When and how often a call is made again whose function says nothing about it.
    pub retry: RetryPolicy,
    /// Who may be told of answers, and how.
    pub callback: CallbackOptions,
}

impl QueueOptions {
    /// What suits most installations.
    pub fn usual(callback: CallbackOptions) -> Self {
        Self {
            concurrency: 256,
            function_concurrency: 32,
            queues: BTreeMap::new(),
            waiting: 1_000_000,
            function_waiting: 500_000,
            waiting_bytes: 8 << 30,
            body: 256 << 20,
            inline_body: 64 << 10,
            result: 1 << 20,
            body_patience: Duration::from_secs(30),
            keep: Duration::from_hours(24),
            keep_count: 10_000,
            keep_dead: Duration::from_hours(24 * 14),
            keep_dead_count: 100_000,
            lease: Duration::from_secs(30),
            drain: Duration::from_secs(10),
            retry: RetryPolicy::default(),
            callback,
        }
    }
}
