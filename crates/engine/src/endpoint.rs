//! Where requests can go: the table that an engine publishes and the data plane follows.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use updraft_model::{FunctionId, FunctionSpec};

/// Every function the engine knows, asleep or awake. Cheap to clone and never changed in place.
pub type EndpointTable = Arc<HashMap<FunctionId, Arc<FunctionEndpoints>>>;

/// Names one replica of one function, for logs and for people; unique on its engine.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(Arc<str>);

impl ReplicaId {
    /// Wraps the name that the engine chose.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// What the data plane needs to know of a function.
#[derive(Debug)]
pub struct FunctionEndpoints {
    /// The spec that takes traffic.
    pub spec: Arc<FunctionSpec>,
    /// Ready replicas; empty while the function sleeps, starts or fails.
    pub ready: Vec<Arc<Endpoint>>,
    /// What a request that finds no ready replica can expect.
    pub availability: Availability,
}

/// Whether waiting for a replica makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// At least one replica is ready.
    Ready,
    /// No replica is desired; a request must ask for one.
    Asleep,
    /// Replicas are there and frozen; a request must ask for the thaw.
    Frozen,
    /// Replicas are desired and on their way.
    Starting,
    /// Replicas are desired and the last attempt failed, for the reason given; the engine goes
    /// on trying.
    Failing(String),
}

/// One ready replica: its address, and who is using it.
#[derive(Debug)]
pub struct Endpoint {
    /// The replica's name.
    pub replica: ReplicaId,
    /// Where its HTTP server listens.
    pub address: SocketAddr,
    /// Requests under way, shared by data plane and engine.
    pub load: Arc<ReplicaLoad>,
}

/// Counts the requests on one replica and closes the door when it is to go.
///
/// The order of the two atomics is the proof: a lease counts first and looks at the door after;
/// a drain closes the door first and counts after. Whatever the interleaving, either the lease
/// sees the closed door and leaves, or the drain sees the lease and waits.
#[derive(Debug, Default)]
pub struct ReplicaLoad {
    in_flight: AtomicUsize,
    closed: AtomicBool,
    left: Notify,
}

/// Holds a replica for the length of one request, tunnelled upgrades included.
#[derive(Debug)]
pub struct Lease(Arc<ReplicaLoad>);

impl ReplicaLoad {
    /// Counts one more request, unless the replica is about to go: then take another.
    pub fn lease(self: &Arc<Self>) -> Option<Lease> {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let lease = Lease(Arc::clone(self));
        (!self.closed.load(Ordering::SeqCst)).then_some(lease)
    }

    /// Requests on the replica now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Refuses new leases from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Refuses new leases and waits until the last one has ended, at most for `limit`.
    /// Returns how many were still open then.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.close();
        let idle = async {
            loop {
                let left = self.left.notified();
                tokio::pin!(left);
                // Registered before the count is read, so that no departure is missed.
                left.as_mut().enable();
                if self.in_flight() == 0 {
                    return;
                }
                left.await;
            }
        };
        let _ = tokio::time::timeout(limit, idle).await;
        self.in_flight()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1
            && self.0.closed.load(Ordering::SeqCst)
        {
            self.0.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_replica_takes_no_lease() {
        let load = Arc::new(ReplicaLoad::default());
        let lease = load.lease();
        assert_eq!(load.in_flight(), 1);
        load.close();
        assert!(load.lease().is_none());
        assert_eq!(load.in_flight(), 1);
        drop(lease);
        assert_eq!(load.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_drain_waits_for_the_last_lease() {
        let load = Arc::new(ReplicaLoad::default());
        let lease = load.lease().unwrap();
        let draining = tokio::spawn({
            let load = Arc::clone(&load);
            async move { load.drain(Duration::from_mins(1)).await }
        });
        while load.lease().is_some() {
            tokio::task::yield_now().await;
        }
        assert!(!draining.is_finished());
        drop(lease);
        assert_eq!(draining.await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_drain_gives_up_after_its_limit() {
        let load = Arc::new(ReplicaLoad::default());
        let _lease = load.lease().unwrap();
        assert_eq!(load.drain(Duration::from_millis(10)).await, 1);
    }
}
