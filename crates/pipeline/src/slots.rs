//! Slots for work that takes much of the machine: so many at once, fair between owners.
//!
//! A free slot goes to the waiting owner who holds the fewest; among equals, to the one who has
//! waited longest. Ten functions of one owner therefore never keep another owner's first waiting
//! for more than one build.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use updraft_model::OwnerName;

/// A number of slots. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct FairSlots(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    held: BTreeMap<OwnerName, usize>,
    // In order of arrival. Bounded by the pushes that the pipeline lets in.
    waiting: VecDeque<(OwnerName, oneshot::Sender<Slot>)>,
}

/// Holds a slot until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: FairSlots,
    owner: OwnerName,
}

impl FairSlots {
    pub(crate) fn new(slots: usize) -> Self {
        let free = slots.max(1);
        Self(Arc::new(Mutex::new(State { free, held: BTreeMap::new(), waiting: VecDeque::new() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a slot. Dropping the future gives up the place in the queue.
    pub(crate) async fn acquire(&self, owner: OwnerName) -> Slot {
        loop {
            let (sender, receiver) = oneshot::channel();
            self.state().waiting.push_back((owner.clone(), sender));
            self.hand_out();
            // The sender is only dropped unsent when the state is gone, which we hold.
            if let Ok(slot) = receiver.await {
                return slot;
            }
        }
    }

    fn hand_out(&self) {
        loop {
            let (sender, slot) = {
                let mut state = self.state();
                if state.free == 0 {
                    return;
                }
                state.waiting.retain(|(_, sender)| !sender.is_closed());
                let held = |owner: &OwnerName| state.held.get(owner).copied().unwrap_or(0);
                let next = state
                    .waiting
                    .iter()
                    .enumerate()
                    .min_by_key(|(_, (owner, _))| held(owner))
                    .map(|(index, _)| index);
                let Some((owner, sender)) = next.and_then(|index| state.waiting.remove(index))
                else {
                    return;
                };
                state.free -= 1;
                *state.held.entry(owner.clone()).or_default() += 1;
                (sender, Slot { slots: self.clone(), owner })
            };
            // When the waiter has left, the slot comes back here and frees itself by its drop,
            // which must not happen under the lock.
            drop(sender.send(slot));
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut state = self.slots.state();
            state.free += 1;
            if let Some(held) = state.held.get_mut(&self.owner) {
                *held -= 1;
                if *held == 0 {
                    state.held.remove(&self.owner);
                }
            }
        }
        self.slots.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    fn owner(name: &str) -> OwnerName {
        OwnerName::new(name).unwrap()
    }

    #[tokio::test]
    async fn no_more_than_the_slots_are_held_at_once() {
        let slots = FairSlots::new(2);
        let first = slots.acquire(owner("a")).await;
        let _second = slots.acquire(owner("a")).await;
        let third = slots.acquire(owner("a"));
        tokio::pin!(third);
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        tokio::time::timeout(Duration::from_secs(5), third).await.unwrap();
    }

    #[tokio::test]
    async fn an_owner_with_fewer_slots_goes_first() {
        let slots = FairSlots::new(2);
        let held = [slots.acquire(owner("a")).await, slots.acquire(owner("a")).await];
        let (many, one) = (slots.acquire(owner("a")), slots.acquire(owner("b")));
        tokio::pin!(many, one);
        assert!(many.as_mut().now_or_never().is_none());
        assert!(one.as_mut().now_or_never().is_none());
        let [first, second] = held;
        drop(first);
        let other = one.as_mut().now_or_never().expect("the other owner has the slot");
        assert!(many.as_mut().now_or_never().is_none());
        drop((second, other));
        assert!(many.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_loses_no_slot() {
        let slots = FairSlots::new(1);
        let held = slots.acquire(owner("a")).await;
        {
            let leaving = slots.acquire(owner("b"));
            tokio::pin!(leaving);
            assert!(leaving.as_mut().now_or_never().is_none());
        }
        drop(held);
        assert!(slots.acquire(owner("c")).now_or_never().is_some());
    }
}
