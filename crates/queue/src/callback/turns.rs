//! Whose callbacks are made next: owners take turns, and none has all the places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use updraft_model::OwnerName;
use updraft_store::queue::CallbacksDue;

/// Callbacks under way, by owner.
#[derive(Debug)]
pub(super) struct CallbackTurns {
    places: usize,
    running: HashMap<Option<OwnerName>, usize>,
    total: usize,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CallbackTurn {
    /// Up to so many of this owner's callbacks may be made.
    Now {
        /// Whose.
        owner: Option<OwnerName>,
        /// How many.
        count: u32,
    },
    /// Nothing before that moment, or before a callback ends.
    Later(Option<Timestamp>),
}

/// A callback under way; dropped, its place is free.
#[derive(Debug)]
pub(super) struct CallbackPlace {
    turns: Arc<Mutex<CallbackTurns>>,
    owner: Option<OwnerName>,
}

impl CallbackTurns {
    pub(super) fn new(places: usize) -> Self {
        Self { places: places.max(1), running: HashMap::new(), total: 0 }
    }

    /// The owner with the fewest callbacks under way comes first. One whose receivers hang fills
    /// three quarters of the places at most, so that there is always one for somebody else.
    pub(super) fn next(&self, due: &[CallbacksDue], now: Timestamp) -> CallbackTurn {
        let free = self.places - self.total.min(self.places);
        let most = (self.places * 3).div_ceil(4);
        let running = |owner: &Option<OwnerName>| self.running.get(owner).copied().unwrap_or(0);
        let open = |due: &&CallbacksDue| running(&due.owner) < most;
        let ready: Vec<_> = due.iter().filter(open).filter(|due| due.due <= now).collect();
        let first = ready.iter().min_by_key(|due| (running(&due.owner), due.due));
        match first {
            Some(first) if free > 0 => {
                let fair = (free / ready.len()).max(1).min(most - running(&first.owner));
                let count = u32::try_from(fair).unwrap_or(u32::MAX);
                CallbackTurn::Now { owner: first.owner.clone(), count }
            }
            // The end of a callback wakes who waits for a place.
            Some(_) => CallbackTurn::Later(None),
            None => CallbackTurn::Later(due.iter().filter(open).map(|due| due.due).min()),
        }
    }
}

impl CallbackPlace {
    pub(super) fn take(turns: &Arc<Mutex<CallbackTurns>>, owner: Option<OwnerName>) -> Self {
        let mut taken = turns.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total += 1;
        *taken.running.entry(owner.clone()).or_default() += 1;
        drop(taken);
        Self { turns: Arc::clone(turns), owner }
    }
}

impl Drop for CallbackPlace {
    fn drop(&mut self) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.total = turns.total.saturating_sub(1);
        if let Some(running) = turns.running.get_mut(&self.owner) {
            *running -= 1;
            if *running == 0 {
                turns.running.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(owner: &str, second: i64) -> CallbacksDue {
        let due = Timestamp::from_second(second).unwrap();
        CallbacksDue { owner: owner.parse().ok(), due }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(100).unwrap()
    }

    fn take(turns: &Arc<Mutex<CallbackTurns>>, due: &[CallbacksDue]) -> Option<CallbackPlace> {
        let next = turns.lock().unwrap().next(due, now());
        match next {
            CallbackTurn::Now { owner, .. } => Some(CallbackPlace::take(turns, owner)),
            CallbackTurn::Later(_) => None,
        }
    }

    #[test]
    fn owners_take_turns_however_much_one_of_them_has() {
        let turns = Arc::new(Mutex::new(CallbackTurns::new(8)));
        let both = [due("alice", 1), due("bob", 50)];
        let places: Vec<_> = (0..8).map(|_| take(&turns, &both).unwrap()).collect();
        let bobs = places.iter().filter(|place| place.owner == "bob".parse().ok()).count();
        assert_eq!(bobs, 4);
        assert_eq!(take(&turns, &both).map(|place| place.owner.clone()), None);
        drop(places);
        assert_eq!(turns.lock().unwrap().total, 0);
        assert!(turns.lock().unwrap().running.is_empty());
    }

    #[test]
    fn nobody_fills_every_place() {
        let turns = Arc::new(Mutex::new(CallbackTurns::new(8)));
        let alone = [due("alice", 1)];
        let mut places: Vec<_> = (0..6).map(|_| take(&turns, &alone).unwrap()).collect();
        assert!(take(&turns, &alone).is_none());
        let both = [due("alice", 1), due("bob", 50)];
        places.push(take(&turns, &both).unwrap());
        assert_eq!(places[6].owner, "bob".parse().ok());
    }

    #[test]
    fn a_turn_takes_a_fair_share_of_what_is_free_and_waits_for_what_is_due() {
        let turns = CallbackTurns::new(8);
        let owners = [due("alice", 1), due("bob", 2), due("carol", 300)];
        let first = CallbackTurn::Now { owner: "alice".parse().ok(), count: 4 };
        assert_eq!(turns.next(&owners, now()), first);
        let later = Timestamp::from_second(300).unwrap();
        assert_eq!(turns.next(&owners[2..], now()), CallbackTurn::Later(Some(later)));
        assert_eq!(turns.next(&[], now()), CallbackTurn::Later(None));
    }
}
