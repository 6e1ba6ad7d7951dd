//! Whose turn it is: one lane a function, turns between owners, then between an owner's lanes.
//!
//! Pure but for the clock that it is told. It counts what the record holds and never holds a call
//! itself, so that a million waiting calls cost no memory here.

use std::collections::{BTreeMap, HashMap};

use updraft_model::{FunctionId, OwnerName};
use updraft_store::queue::Waiting;

/// Milliseconds since 1970.
pub(crate) type Moment = i64;

/// Most calls that one turn may take, so that a lease stays a short write.
const TURN_MAX: usize = 32;

/// A function with calls.
#[derive(Debug)]
struct Lane {
    owner: Option<OwnerName>,
    queue: String,
    /// Calls on record, those under way included; reserved places too.
    calls: u64,
    running: usize,
    /// When the next call is due, as far as is known.
    due: Option<Moment>,
    /// When the oldest waiting call came, as far as is known.
    oldest: Option<Moment>,
    /// Bytes of their bodies.
    bytes: u64,
    /// Counts what this process did to it.
    changes: u64,
    /// Counts changes of `due` by others than the one who leases.
    touched: u64,
    /// When it last had a turn.
    turn: u64,
}

/// All lanes.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    by_function: HashMap<FunctionId, Lane>,
    /// When each owner last had a turn; owners without lanes are forgotten.
    owners: BTreeMap<Option<OwnerName>, u64>,
    turns: u64,
    calls: u64,
    bytes: u64,
    running: usize,
}

/// A turn: up to `count` calls of `function` may be leased now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) function: FunctionId,
    pub(crate) count: usize,
    touched: u64,
}

/// What a lane shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LaneView {
    pub(crate) function: FunctionId,
    pub(crate) queue: String,
    pub(crate) waiting: u64,
    pub(crate) running: u64,
    pub(crate) oldest: Option<Moment>,
}

/// There is no place for another call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    All,
    Function,
    Bytes,
}

/// How many calls may run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits<'a> {
    /// Of all functions together.
    pub(crate) all: usize,
    /// Of all functions of a queue together, for the queues that have a limit of their own.
    pub(crate) queues: &'a BTreeMap<String, usize>,
}

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) all: u64,
    pub(crate) function: u64,
    pub(crate) bytes: u64,
}

impl Lanes {
    /// The lanes of what an earlier process left.
    pub(crate) fn of(waiting: Vec<Waiting>) -> Self {
        let mut lanes = Self::default();
        for Waiting { function, owner, queue, calls, bytes, due, oldest } in waiting {
            lanes.calls += calls;
            lanes.bytes += bytes;
            let lane = lanes.lane(&function, owner, queue);
            lane.calls = calls;
            lane.bytes = bytes;
            lane.due = Some(due.as_millisecond());
            lane.oldest = Some(oldest.as_millisecond());
        }
        lanes
    }

    /// How often each lane was changed here, for [`follow`](Lanes::follow).
    pub(crate) fn changes(&self) -> HashMap<FunctionId, u64> {
        self.by_function.iter().map(|(function, lane)| (function.clone(), lane.changes)).collect()
    }

    /// Takes over what the record holds, of which others change as much as this process does. A
    /// lane that was changed here since `before` is left for the next time.
    pub(crate) fn follow(&mut self, waiting: Vec<Waiting>, before: &HashMap<FunctionId, u64>) {
        let mut gone: Vec<FunctionId> = self.by_function.keys().cloned().collect();
        for Waiting { function, owner, queue, calls, bytes, due, oldest } in waiting {
            gone.retain(|other| *other != function);
            let known = self.by_function.get(&function).map(|lane| lane.changes);
            if known != before.get(&function).copied() {
                continue;
            }
            let lane = self.lane(&function, owner, queue);
            let (calls_before, bytes_before) = (lane.calls, lane.bytes);
            lane.calls = calls;
            lane.bytes = bytes;
            let due = due.as_millisecond();
            lane.due = Some(lane.due.map_or(due, |known| known.min(due)));
            lane.oldest.get_or_insert(oldest.as_millisecond());
            lane.touched += 1;
            self.calls = (self.calls + calls).saturating_sub(calls_before);
            self.bytes = (self.bytes + bytes).saturating_sub(bytes_before);
        }
        for function in gone {
            let lane = &self.by_function[&function];
            if before.get(&function) == Some(&lane.changes) && lane.running == 0 {
                let (calls, bytes) = (lane.calls, lane.bytes);
                self.gone(&function, calls, bytes);
            }
        }
    }

    fn lane(
        &mut self,
        function: &FunctionId,
        owner: Option<OwnerName>,
        queue: String,
    ) -> &mut Lane {
        // A newcomer is no worse off than who has waited longest, and no better.
        let first = self.owners.values().copied().min().unwrap_or(self.turns);
        self.owners.entry(owner.clone()).or_insert(first);
        let lane = self.by_function.entry(function.clone()).or_insert_with(|| Lane {
            owner: None,
            queue: String::new(),
            calls: 0,
            bytes: 0,
            changes: 0,
            running: 0,
            due: None,
            oldest: None,
            touched: 0,
            turn: 0,
        });
        lane.owner = owner;
        lane.queue = queue;
        lane
    }

    /// Takes a place for a call that is about to be kept, before its body is.
    pub(crate) fn reserve(
        &mut self,
        function: &FunctionId,
        owner: Option<OwnerName>,
        queue: String,
        places: Places,
    ) -> Result<(), NoPlace> {
        if self.calls >= places.all {
            return Err(NoPlace::All);
        }
        if self.bytes >= places.bytes {
            return Err(NoPlace::Bytes);
        }
        if self.by_function.get(function).is_some_and(|lane| lane.calls >= places.function) {
            return Err(NoPlace::Function);
        }
        self.calls += 1;
        let lane = self.lane(function, owner, queue);
        lane.calls += 1;
        lane.changes += 1;
        Ok(())
    }

    /// A call is on record that no place was reserved for.
    pub(crate) fn add(
        &mut self,
        function: &FunctionId,
        owner: Option<OwnerName>,
        queue: String,
        bytes: u64,
        created: Moment,
    ) {
        self.calls += 1;
        self.bytes += bytes;
        let lane = self.lane(function, owner, queue);
        lane.calls += 1;
        lane.bytes += bytes;
        lane.changes += 1;
        lane.oldest = Some(lane.oldest.map_or(created, |oldest| oldest.min(created)));
    }

    /// The call in a reserved place is on record and due.
    pub(crate) fn kept(&mut self, function: &FunctionId, bytes: u64, created: Moment) {
        self.bytes += bytes;
        if let Some(lane) = self.by_function.get_mut(function) {
            lane.bytes += bytes;
            lane.changes += 1;
            lane.oldest.get_or_insert(created);
        }
        self.due(function, created);
    }

    /// A call of the function becomes due at `due`.
    pub(crate) fn due(&mut self, function: &FunctionId, due: Moment) {
        if let Some(lane) = self.by_function.get_mut(function) {
            lane.due = Some(lane.due.map_or(due, |known| known.min(due)));
            lane.touched += 1;
            lane.changes += 1;
        }
    }

    /// So many calls of the function are no more on record as to be made.
    pub(crate) fn gone(&mut self, function: &FunctionId, calls: u64, bytes: u64) {
        self.calls = self.calls.saturating_sub(calls);
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some(lane) = self.by_function.get_mut(function) {
            lane.calls = lane.calls.saturating_sub(calls);
            lane.bytes = lane.bytes.saturating_sub(bytes);
            lane.changes += 1;
        }
        self.tidy(function);
    }

    /// A call came back to an end of its attempt.
    pub(crate) fn stopped(&mut self, function: &FunctionId) {
        self.running = self.running.saturating_sub(1);
        if let Some(lane) = self.by_function.get_mut(function) {
            lane.running = lane.running.saturating_sub(1);
        }
        self.tidy(function);
    }

    fn tidy(&mut self, function: &FunctionId) {
        let empty = |lane: &Lane| lane.calls == 0 && lane.running == 0;
        if !self.by_function.get(function).is_some_and(empty) {
            return;
        }
        if let Some(lane) = self.by_function.remove(function)
            && !self.by_function.values().any(|other| other.owner == lane.owner)
        {
            self.owners.remove(&lane.owner);
        }
    }

    /// How much room there is in the queues that have a limit of their own.
    fn in_queues<'a>(&self, limits: Limits<'a>) -> HashMap<&'a str, usize> {
        let mut room: HashMap<&str, usize> =
            limits.queues.iter().map(|(name, limit)| (name.as_str(), *limit)).collect();
        if !room.is_empty() {
            for lane in self.by_function.values() {
                if let Some(room) = room.get_mut(lane.queue.as_str()) {
                    *room = room.saturating_sub(lane.running);
                }
            }
        }
        room
    }

    /// The next turn at `now`, when at most so many calls may run and `limit_of` of a function.
    /// The owner who waited longest comes first, then the lane that did.
    pub(crate) fn next(
        &mut self,
        now: Moment,
        limits: Limits<'_>,
        limit_of: impl Fn(&FunctionId) -> usize,
    ) -> Option<Turn> {
        let free = limits.all.saturating_sub(self.running);
        if free == 0 {
            return None;
        }
        let in_queues = self.in_queues(limits);
        let mut ready = 0;
        let mut best: Option<((u64, u64), &FunctionId, usize)> = None;
        for (function, lane) in &self.by_function {
            if lane.due.is_none_or(|due| due > now) {
                continue;
            }
            let room = limit_of(function).saturating_sub(lane.running);
            let room = room.min(in_queues.get(lane.queue.as_str()).copied().unwrap_or(room));
            if room == 0 {
                continue;
            }
            ready += 1;
            let order = (self.owners.get(&lane.owner).copied().unwrap_or(0), lane.turn);
            if best.as_ref().is_none_or(|(other, name, _)| (order, function) < (*other, *name)) {
                best = Some((order, function, room));
            }
        }
        let (_, function, room) = best?;
        let function = function.clone();
        self.turns += 1;
        let turns = self.turns;
        let lane = self.by_function.get_mut(&function)?;
        lane.turn = turns;
        let touched = lane.touched;
        self.owners.insert(lane.owner.clone(), turns);
        // What is free is shared by those who are ready, so that the first does not take it all.
        let count = room.min((free / ready).max(1)).min(TURN_MAX);
        Some(Turn { function, count, touched })
    }

    /// What the turn took, and when the next call of its lane is due and came.
    pub(crate) fn took(&mut self, turn: &Turn, count: usize, next: Option<(Moment, Moment)>) {
        self.running += count;
        if let Some(lane) = self.by_function.get_mut(&turn.function) {
            lane.running += count;
            lane.changes += 1;
            // A call that came meanwhile may have been missed by the look at the record.
            if lane.touched == turn.touched {
                lane.due = next.map(|(due, _)| due);
            }
            lane.oldest = next.map(|(_, created)| created);
        }
        self.tidy(&turn.function);
    }

    /// The turn could not be taken: the lane has its next one later.
    pub(crate) fn put_off(&mut self, turn: &Turn, (due, created): (Moment, Moment)) {
        if let Some(lane) = self.by_function.get_mut(&turn.function) {
            lane.due = Some(due);
            lane.oldest.get_or_insert(created);
        }
    }

    /// When the next call is due of a lane that has room.
    pub(crate) fn next_due(
        &self,
        limits: Limits<'_>,
        limit_of: impl Fn(&FunctionId) -> usize,
    ) -> Option<Moment> {
        if self.running >= limits.all {
            return None;
        }
        let in_queues = self.in_queues(limits);
        self.by_function
            .iter()
            .filter(|(function, lane)| limit_of(function) > lane.running)
            .filter(|(_, lane)| in_queues.get(lane.queue.as_str()) != Some(&0))
            .filter_map(|(_, lane)| lane.due)
            .min()
    }

    /// Calls of the function that wait or run.
    pub(crate) fn backlog(&self, function: &FunctionId) -> u64 {
        self.by_function.get(function).map_or(0, |lane| lane.calls)
    }

    /// What every lane shows.
    pub(crate) fn view(&self) -> Vec<LaneView> {
        let view = |(function, lane): (&FunctionId, &Lane)| LaneView {
            function: function.clone(),
            queue: lane.queue.clone(),
            waiting: lane.calls.saturating_sub(lane.running as u64),
            running: lane.running as u64,
            oldest: lane.oldest,
        };
        self.by_function.iter().map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use updraft_model::FunctionName;

    use super::*;

    const PLACES: Places = Places { all: 1000, function: 500, bytes: 1 << 20 };

    fn all(limit: usize) -> Limits<'static> {
        Limits { all: limit, queues: const { &BTreeMap::new() } }
    }

    fn id(function: &str) -> FunctionId {
        FunctionId::in_default(FunctionName::new(function).unwrap())
    }

    fn add(lanes: &mut Lanes, owner: &str, function: &str, calls: usize) {
        let function = id(function);
        for _ in 0..calls {
            let owner = OwnerName::new(owner).ok();
            lanes.reserve(&function, owner, "q".to_owned(), PLACES).unwrap();
            lanes.kept(&function, 1, 0);
        }
    }

    /// Takes a turn as if the record held what the lanes say.
    fn take(lanes: &mut Lanes, limit: usize) -> Option<String> {
        let turn = lanes.next(0, all(limit), |_| 100)?;
        let lane = &lanes.by_function[&turn.function];
        let waiting = usize::try_from(lane.calls).unwrap() - lane.running;
        let taken = turn.count.min(waiting);
        lanes.took(&turn, taken, (taken < waiting).then_some((0, 0)));
        Some(format!("{} {taken}", turn.function.name))
    }

    /// Ends a call of the function for good.
    fn end(lanes: &mut Lanes, function: &str) {
        lanes.gone(&id(function), 1, 1);
        lanes.stopped(&id(function));
    }

    #[test]
    fn turns_go_round_between_owners_and_then_between_their_functions() {
        let mut lanes = Lanes::default();
        add(&mut lanes, "alice", "alice-f", 10);
        add(&mut lanes, "alice", "alice-g", 10);
        add(&mut lanes, "bob", "bob-f", 10);
        let mut turns = Vec::new();
        for _ in 0..8 {
            let turn = take(&mut lanes, 1).unwrap();
            let function = turn.split(' ').next().unwrap().to_owned();
            end(&mut lanes, &function);
            turns.push(function);
        }
        assert_eq!(turns.iter().filter(|turn| *turn == "bob-f").count(), 4, "{turns:?}");
        assert_eq!(turns.iter().filter(|turn| *turn == "alice-f").count(), 2, "{turns:?}");
        assert!(turns.windows(2).all(|two| two[0] != two[1]), "{turns:?}");
    }

    #[test]
    fn free_places_are_shared_by_those_who_are_ready() {
        let mut lanes = Lanes::default();
        add(&mut lanes, "alice", "alice-f", 100);
        add(&mut lanes, "bob", "bob-f", 100);
        assert_eq!(take(&mut lanes, 20).unwrap(), "alice-f 10");
        assert_eq!(take(&mut lanes, 20).unwrap(), "bob-f 5");
    }

    #[test]
    fn a_call_that_comes_while_a_lease_is_read_is_not_forgotten() {
        let mut lanes = Lanes::default();
        add(&mut lanes, "alice", "f", 1);
        let turn = lanes.next(0, all(10), |_| 10).unwrap();
        add(&mut lanes, "alice", "f", 1);
        // The lease was read before the second call was on record.
        lanes.took(&turn, 1, None);
        assert!(lanes.next(0, all(10), |_| 10).is_some());
    }

    #[test]
    fn nothing_is_taken_before_it_is_due() {
        let mut lanes = Lanes::default();
        add(&mut lanes, "alice", "f", 1);
        let turn = lanes.next(0, all(10), |_| 10).unwrap();
        lanes.took(&turn, 1, None);
        lanes.due(&id("f"), 500);
        lanes.stopped(&id("f"));
        assert_eq!(lanes.next(499, all(10), |_| 10), None);
        assert_eq!(lanes.next_due(all(10), |_| 10), Some(500));
        assert_eq!(lanes.next_due(all(10), |_| 0), None);
        assert!(lanes.next(500, all(10), |_| 10).is_some());
    }

    #[test]
    fn places_run_out_and_come_back() {
        let mut lanes = Lanes::default();
        let places = Places { all: 3, function: 2, bytes: 10 };
        let reserve = |lanes: &mut Lanes, function: &str| {
            lanes.reserve(&id(function), None, "q".to_owned(), places)
        };
        assert_eq!(reserve(&mut lanes, "f"), Ok(()));
        assert_eq!(reserve(&mut lanes, "f"), Ok(()));
        assert_eq!(reserve(&mut lanes, "f"), Err(NoPlace::Function));
        assert_eq!(reserve(&mut lanes, "g"), Ok(()));
        assert_eq!(reserve(&mut lanes, "g"), Err(NoPlace::All));
        lanes.gone(&id("f"), 1, 0);
        lanes.kept(&id("g"), 10, 0);
        assert_eq!(reserve(&mut lanes, "f"), Err(NoPlace::Bytes));
        lanes.gone(&id("g"), 1, 10);
        assert_eq!(reserve(&mut lanes, "f"), Ok(()));
    }

    #[test]
    fn a_queue_with_a_limit_of_its_own_keeps_to_it_and_no_other_does() {
        let queues = BTreeMap::from([("slow".to_owned(), 3)]);
        let limits = Limits { all: 100, queues: &queues };
        let mut lanes = Lanes::default();
        for (function, queue) in [("f", "slow"), ("g", "slow"), ("h", "q")] {
            for _ in 0..10 {
                lanes.reserve(&id(function), None, queue.to_owned(), PLACES).unwrap();
                lanes.kept(&id(function), 1, 0);
            }
        }
        let mut running: HashMap<String, usize> = HashMap::new();
        while let Some(turn) = lanes.next(0, limits, |_| 10) {
            let name = turn.function.name.to_string();
            lanes.took(&turn, turn.count, Some((0, 0)));
            *running.entry(name).or_default() += turn.count;
        }
        assert_eq!(running["f"] + running.get("g").copied().unwrap_or(0), 3);
        assert_eq!(running["h"], 10);
        assert_eq!(lanes.next_due(limits, |_| 100), Some(0), "the free queue goes on");
        assert_eq!(lanes.next_due(limits, |other| usize::from(*other != id("h")) * 100), None);
        lanes.gone(&id("f"), 1, 1);
        lanes.stopped(&id("f"));
        assert!(lanes.next(0, limits, |other| usize::from(*other != id("h")) * 10).is_some());
    }

    proptest! {
        #[test]
        fn limits_hold_and_empty_lanes_leave_nothing(
            steps in proptest::collection::vec((0usize..4, 0usize..4), 1..200),
        ) {
            let functions = ["a-f", "a-g", "b-f", "c-f"];
            let mut lanes = Lanes::default();
            let mut running: HashMap<usize, usize> = HashMap::new();
            for (step, which) in steps {
                let function = id(functions[which]);
                match step {
                    0 | 1 => add(&mut lanes, &functions[which][..1], functions[which], 1),
                    2 => {
                        if let Some(turn) = lanes.next(0, all(5), |_| 2) {
                            let lane = &lanes.by_function[&turn.function];
                            let waiting = usize::try_from(lane.calls).unwrap() - lane.running;
                            let taken = turn.count.min(waiting);
                            let place = functions
                                .iter()
                                .position(|name| id(name) == turn.function)
                                .unwrap();
                            let next = (taken < waiting).then_some((0, 0));
                            lanes.took(&turn, taken, next);
                            *running.entry(place).or_default() += taken;
                            prop_assert!(running[&place] <= 2);
                        }
                    }
                    _ => {
                        if running.get(&which).is_some_and(|count| *count > 0) {
                            *running.get_mut(&which).unwrap() -= 1;
                            lanes.gone(&function, 1, 1);
                            lanes.stopped(&function);
                        }
                    }
                }
                prop_assert!(lanes.running <= 5);
                prop_assert_eq!(lanes.running, running.values().sum::<usize>());
            }
            let left = lanes.view();
            prop_assert!(left.iter().all(|lane| lane.waiting + lane.running > 0));
            prop_assert!(lanes.owners.len() <= left.len());
        }
    }
}
