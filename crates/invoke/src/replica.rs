//! One ready replica with the connections to it that are not in use.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use updraft_engine::Endpoint;
use updraft_model::Protocol;

use crate::connection::Connection;
use crate::shared_connection::SharedConnections;

thread_local! {
    static LANE: Cell<usize> = const { Cell::new(0) };
}

/// Makes this thread keep the connections it opens for itself, apart from those of other lanes.
/// A thread with an event loop of its own wants that: the events of a connection come to the
/// thread that opened it, whoever uses it. All other threads share one place.
pub fn keep_connections_in(lane: usize) {
    LANE.set(lane + 1);
}

/// A replica and its idle connections.
pub(crate) struct Replica {
    pub(crate) endpoint: Arc<Endpoint>,
    /// One place for the threads that have no lane, and one for each lane. Last in, first out:
    /// the rest of a burst goes cold and is closed. Held for a push or a pop only; with
    /// connections driven by the requests that use them, nothing else touches it.
    idle: Box<[Mutex<Vec<Connection>>]>,
    most_idle: usize,
    /// The connections that many requests use at once, of each lane, where the replica speaks
    /// HTTP/2; none where it does not.
    shared: Box<[SharedConnections]>,
}

impl Replica {
    /// With room for `most_idle` connections of each of `lanes`.
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        protocol: Protocol,
        most_idle: usize,
        lanes: usize,
    ) -> Self {
        let idle = std::iter::repeat_with(Mutex::default).take(lanes + 1).collect();
        let shared = match protocol {
            Protocol::Http1 => Box::default(),
            Protocol::H2c => {
                std::iter::repeat_with(SharedConnections::default).take(lanes + 1).collect()
            }
        };
        Self { endpoint, idle, most_idle, shared }
    }

    /// This thread's connections.
    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        let lane = LANE.get() % self.idle.len();
        self.idle[lane].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This thread's connections that are shared, where the replica speaks HTTP/2.
    fn shared(&self) -> Option<&SharedConnections> {
        if self.shared.is_empty() {
            return None;
        }
        self.shared.get(LANE.get() % self.shared.len())
    }

    /// The connection used last, if one is idle. It may have been closed meanwhile.
    pub(crate) fn take(&self) -> Option<Connection> {
        if let Some(shared) = self.shared() {
            return shared.take();
        }
        self.idle().pop()
    }

    /// A new connection, or a place on one that another request has just made.
    ///
    /// # Errors
    /// The replica takes no connection within `limit`.
    pub(crate) async fn connect(&self, limit: Duration) -> io::Result<Connection> {
        let address = self.endpoint.address;
        match self.shared() {
            Some(shared) => shared.connect(address, limit).await,
            None => Connection::open(address, limit).await,
        }
    }

    /// Keeps a connection for the next request, or closes it when there are plenty.
    pub(crate) fn put(&self, connection: Connection) {
        if !self.shared.is_empty() {
            return;
        }
        let mut idle = self.idle();
        if idle.len() < self.most_idle {
            idle.push(connection);
        } else {
            drop(idle);
            drop(connection);
        }
    }

    /// Closes connections that nobody has used for `limit`.
    pub(crate) fn sweep(&self, now: Instant, limit: Duration) {
        for lane in &self.idle {
            let mut idle = lane.lock().unwrap_or_else(PoisonError::into_inner);
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
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
