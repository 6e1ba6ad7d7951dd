//! What can be set about the data plane.

use std::net::IpAddr;
use std::time::Duration;

/// Limits and identity of an [`Invoker`](crate::Invoker).
#[derive(Debug, Clone)]
pub struct InvokeOptions {
    /// Updraft's version, told to callers in `X-Served-By`.
    pub version: String,
    /// How long a function may take to its response headers, and how long either body may stand
    /// still, where the function itself says nothing.
    pub timeout: Duration,
    /// The most that a function may ask for as its timeout.
    pub longest_timeout: Duration,
    /// How long a request waits for a function that sleeps or starts.
    pub wake_limit: Duration,
    /// How long a request waits for a function whose last start failed, before it is told so.
    pub failing_patience: Duration,
    /// How long a request tries replicas that do not take its connection.
    pub connect_limit: Duration,
    /// How long an unused connection to a replica is kept; must stay below what the servers in
    /// the replicas grant, so that they do not close it just when it is used again.
    pub idle_limit: Duration,
    /// How many unused connections are kept for each replica, by each lane.
    pub idle_connections: usize,
    /// Threads that keep connections apart, see [`keep_connections_in`](crate::keep_connections_in).
    pub lanes: usize,
    /// How many requests may wait for one function; more are refused with 429.
    pub waiters: usize,
    /// How long the keys of a private function are used before they are read again.
    pub key_age: Duration,
    /// Most bytes of a body whose signature is checked; such a body is held in memory.
    pub signed_body: usize,
    /// Peers whose `X-Forwarded-Host` and `X-Forwarded-Proto` are believed. Everybody else's are
    /// replaced.
    pub trusted_proxies: Vec<IpAddr>,
}

impl InvokeOptions {
    /// What suits most installations.
    pub fn new(version: impl Into<String>) -> Self {
        Self {
            version: version.into(),
            timeout: Duration::from_mins(1),
            longest_timeout: Duration::from_hours(24),
            wake_limit: Duration::from_mins(1),
            failing_patience: Duration::from_secs(2),
            connect_limit: Duration::from_secs(3),
            idle_limit: Duration::from_secs(4),
            idle_connections: 256,
            lanes: std::thread::available_parallelism().map_or(1, usize::from),
            waiters: 10_000,
            key_age: Duration::from_secs(5),
            signed_body: 4 << 20,
            trusted_proxies: Vec::new(),
        }
    }
}
