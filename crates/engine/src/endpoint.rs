//! Where requests can go: the table that an engine publishes and the data plane follows.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// The replicas of a frozen function, where a request may thaw them itself; see [`Resting`].
    pub resting: Option<Resting>,
}

/// Frozen replicas within reach of the data plane, so that the first request after a rest need
/// not wait for the control plane.
#[derive(Debug, Clone)]
pub struct Resting {
    /// The replicas. Their doors are shut until they are thawed.
    pub replicas: Vec<Arc<Endpoint>>,
    /// Lets them go on.
    pub thaw: Arc<dyn Thaw>,
}

/// Lets the frozen replicas of one function go on.
pub trait Thaw: Send + Sync + fmt::Debug {
    /// Thaws the replicas and opens their doors, here and now; the endpoint table follows. Takes
    /// well under a millisecond and may be called by any number of requests at once.
    ///
    /// Returns whether the replicas may take leases now. If not, the function is not frozen any
    /// more, or cannot be thawed this way: ask for it by [`Engine::wake`](crate::Engine::wake).
    fn thaw(&self) -> bool;
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

/// Counts the requests on one replica and holds its door.
///
/// Count and door are one word, and that is the proof: a lease adds itself and learns in the same
/// step whether the door was open, so no request is ever on a replica whose door was shut before
/// it came. A drain shuts the door and then waits for the count; a pause shuts it only if nobody
/// is inside, in one step, so that no request is turned away from a replica that is not about to
/// rest. A lease that finds the door shut takes itself off the count again: it may be seen there
/// for a moment, which makes a pause not happen and a drain wait a little, never the opposite.
///
/// Shut for good and shut for a rest are two bits: waking a replica up never opens the door of one
/// that is on its way out.
#[derive(Debug, Default)]
pub struct ReplicaLoad {
    word: AtomicUsize,
    left: Notify,
}

/// The replica is on its way out; its door stays shut.
const CLOSED: usize = 1 << (usize::BITS - 1);
/// The replica rests; its door opens again.
const PAUSED: usize = 1 << (usize::BITS - 2);
/// The rest of the word: requests under way.
const COUNT: usize = PAUSED - 1;

/// Holds a replica for the length of one request, tunnelled upgrades included.
#[derive(Debug)]
pub struct Lease(Arc<ReplicaLoad>);

impl ReplicaLoad {
    /// Counts one more request, unless the replica rests or is about to go: then take another.
    pub fn lease(self: &Arc<Self>) -> Option<Lease> {
        let before = self.word.fetch_add(1, Ordering::SeqCst);
        let lease = Lease(Arc::clone(self));
        (before & !COUNT == 0).then_some(lease)
    }

    /// Requests on the replica now.
    pub fn in_flight(&self) -> usize {
        self.word.load(Ordering::SeqCst) & COUNT
    }

    /// Refuses new leases from now on, for good.
    pub fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::SeqCst);
    }

    /// Refuses new leases until [`Self::resume`], if no request is under way and the door is open.
    /// Returns whether that was so; otherwise nothing has changed.
    #[must_use]
    pub fn pause_if_idle(&self) -> bool {
        self.word.compare_exchange(0, PAUSED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Whether the replica rests.
    pub fn is_paused(&self) -> bool {
        self.word.load(Ordering::SeqCst) & PAUSED != 0
    }

    /// Takes leases again after a pause; a closed door stays closed.
    pub fn resume(&self) {
        self.word.fetch_and(!PAUSED, Ordering::SeqCst);
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
        let before = self.0.word.fetch_sub(1, Ordering::SeqCst);
        if before & COUNT == 1 && before & CLOSED != 0 {
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

    #[test]
    fn a_pause_waits_for_nobody_and_ends() {
        let load = Arc::new(ReplicaLoad::default());
        let lease = load.lease().unwrap();
        assert!(!load.pause_if_idle(), "a request is under way");
        drop((lease, load.lease().unwrap()));
        assert!(load.pause_if_idle());
        assert!(!load.pause_if_idle(), "it rests already");
        assert!(load.lease().is_none());
        assert_eq!(load.in_flight(), 0);
        load.resume();
        assert!(load.lease().is_some());
    }

    #[test]
    fn a_replica_on_its_way_out_is_not_opened_by_waking_it() {
        let load = Arc::new(ReplicaLoad::default());
        assert!(load.pause_if_idle());
        load.close();
        load.resume();
        assert!(load.lease().is_none());
        assert!(!load.pause_if_idle());
    }

    #[tokio::test]
    async fn a_drain_of_a_resting_replica_ends_at_once() {
        let load = Arc::new(ReplicaLoad::default());
        assert!(load.pause_if_idle());
        assert_eq!(load.drain(Duration::from_mins(1)).await, 0);
    }

    /// Threads take leases while another pauses as often as it can: while it holds the pause no
    /// lease is held, which each side checks in a way the other cannot miss.
    #[test]
    fn no_request_is_ever_on_a_paused_replica() {
        use std::sync::atomic::AtomicBool;
        const PAUSES: usize = 2_000;
        let load = Arc::new(ReplicaLoad::default());
        let resting = Arc::new(AtomicBool::new(false));
        let over = Arc::new(AtomicBool::new(false));
        let served = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut served = 0;
                        while !over.load(Ordering::SeqCst) {
                            if let Some(_lease) = load.lease() {
                                assert!(!resting.load(Ordering::SeqCst));
                                served += 1;
                            }
                            std::thread::yield_now();
                        }
                        served
                    })
                })
                .collect();
            let mut pauses = 0;
            while pauses < PAUSES {
                if load.pause_if_idle() {
                    resting.store(true, Ordering::SeqCst);
                    std::thread::yield_now();
                    resting.store(false, Ordering::SeqCst);
                    load.resume();
                    pauses += 1;
                }
                std::thread::yield_now();
            }
            over.store(true, Ordering::SeqCst);
            callers.into_iter().map(|caller| caller.join().unwrap()).sum::<usize>()
        });
        assert!(served > 0);
        assert_eq!(load.in_flight(), 0);
    }
}
