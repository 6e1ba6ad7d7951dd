//! One lane a repository: of the pushes that go live there, the newest wins and they run one
//! after the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;
use updraft_model::{OwnerName, RepositoryName};
use updraft_store::PushId;

/// Which repository a lane is for.
pub(crate) type LaneKey = (OwnerName, RepositoryName);

/// Why a push is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// A newer push to the same place came.
    Superseded(PushId),
    /// Somebody asked for it.
    Cancelled,
    /// The process ends; the next one goes on.
    Shutdown,
}

/// Tells a push to stop, and why. The first reason counts.
#[derive(Debug)]
pub(crate) struct Stop {
    token: CancellationToken,
    reason: OnceLock<StopReason>,
}

impl Stop {
    /// `shutdown` stops every push.
    pub(crate) fn new(shutdown: &CancellationToken) -> Arc<Self> {
        Arc::new(Self { token: shutdown.child_token(), reason: OnceLock::new() })
    }

    pub(crate) fn stop(&self, reason: StopReason) {
        // A reason that came first stays; either way the push stops.
        let _first_stays = self.reason.set(reason);
        self.token.cancel();
    }

    /// Why the push is to stop; nothing while it may go on.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        let stopped = self.token.is_cancelled();
        stopped.then(|| self.reason.get().copied().unwrap_or(StopReason::Shutdown))
    }

    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

/// All lanes that anybody is in.
#[derive(Debug, Default)]
pub(crate) struct Lanes(Mutex<HashMap<LaneKey, Lane>>);

#[derive(Debug)]
struct Lane {
    pushes: Vec<(PushId, Arc<Stop>)>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// A push's place in its lane, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    lanes: Arc<Lanes>,
    key: LaneKey,
    push: PushId,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, HashMap<LaneKey, Lane>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a push into its lane. Older ones there are told to stop; when a newer one is there,
    /// this one is.
    pub(crate) fn enter(self: &Arc<Self>, key: LaneKey, push: PushId, stop: Arc<Stop>) -> Place {
        let mut lanes = self.lock();
        let lane = lanes.entry(key.clone()).or_insert_with(|| Lane {
            pushes: Vec::new(),
            turn: Arc::new(tokio::sync::Mutex::new(())),
        });
        for (other, other_stop) in &lane.pushes {
            if *other < push {
                other_stop.stop(StopReason::Superseded(push));
            } else {
                stop.stop(StopReason::Superseded(*other));
            }
        }
        lane.pushes.push((push, stop));
        let turn = Arc::clone(&lane.turn);
        drop(lanes);
        Place { lanes: Arc::clone(self), key, push, turn }
    }
}

impl Place {
    /// Waits until no other push of the lane runs. The turn ends when the guard is dropped.
    pub(crate) async fn turn(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lanes = self.lanes.lock();
        if let Some(lane) = lanes.get_mut(&self.key) {
            lane.pushes.retain(|(push, _)| *push != self.push);
            if lane.pushes.is_empty() {
                lanes.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> LaneKey {
        (OwnerName::new("alice").unwrap(), RepositoryName::new("shop").unwrap())
    }

    #[test]
    fn the_newest_push_stops_all_others_in_whatever_order_they_come() {
        for order in [[1, 2, 3], [3, 1, 2], [2, 3, 1]] {
            let lanes = Arc::new(Lanes::default());
            let shutdown = CancellationToken::new();
            let entered: Vec<_> = order
                .into_iter()
                .map(|number| {
                    let stop = Stop::new(&shutdown);
                    let push = PushId::new(number);
                    (number, Arc::clone(&stop), lanes.enter(key(), push, stop))
                })
                .collect();
            for (number, stop, _) in &entered {
                assert_eq!(stop.reason().is_none(), *number == 3, "{order:?}: {number}");
            }
            drop(entered);
            assert!(lanes.lock().is_empty());
        }
    }

    #[test]
    fn a_shutdown_stops_a_push_without_another_reason() {
        let shutdown = CancellationToken::new();
        let (one, two) = (Stop::new(&shutdown), Stop::new(&shutdown));
        two.stop(StopReason::Cancelled);
        assert_eq!(one.reason(), None);
        shutdown.cancel();
        assert_eq!(one.reason(), Some(StopReason::Shutdown));
        assert_eq!(two.reason(), Some(StopReason::Cancelled));
    }
}
