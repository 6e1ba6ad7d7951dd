//! One ready replica with the connections to it that are not in use.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use updraft_engine::Endpoint;

use crate::connection::Connection;

/// A replica and its idle connections.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) endpoint: Arc<Endpoint>,
    /// Last in, first out: the rest of a burst goes cold and is closed. Held for a push or a pop
    /// only; with connections driven by the requests that use them, nothing else touches it.
    idle: Mutex<Vec<Connection>>,
    most_idle: usize,
}

impl Replica {
    pub(crate) fn new(endpoint: Arc<Endpoint>, most_idle: usize) -> Self {
        Self { endpoint, idle: Mutex::new(Vec::new()), most_idle }
    }

    /// The connection used last, if one is idle. It may have been closed meanwhile.
    pub(crate) fn take(&self) -> Option<Connection> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps a connection for the next request, or closes it when there are plenty.
    pub(crate) fn put(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.most_idle {
            idle.push(connection);
        } else {
            drop(idle);
            drop(connection);
        }
    }

    /// Closes connections that nobody has used for `limit`.
    pub(crate) fn sweep(&self, now: Instant, limit: Duration) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // The oldest are at the bottom.
        let fresh = idle
            .iter()
            .position(|connection| now.saturating_duration_since(connection.last_used) < limit)
            .unwrap_or(idle.len());
        let cold: Vec<_> = idle.drain(..fresh).collect();
        drop(idle);
        drop(cold);
    }
}
