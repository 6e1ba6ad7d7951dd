//! The line in front of a function that takes only so many calls at once on each replica.
//!
//! Who comes first is served first. A call that ends hands its place to the head of the line; so
//! does a change of the table that brings replicas. Functions without a limit never come here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::oneshot;
use updraft_engine::Lease;

use crate::function::{Function, FunctionState, Pick};
use crate::replica::Replica;

/// How many calls a function takes at once, and how many may wait for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    /// Calls at once on each replica.
    pub(crate) each: usize,
    /// Calls that wait.
    pub(crate) waiting: usize,
}

/// Those who wait for their turn at one function, and the function they wait for.
#[derive(Debug, Default)]
pub(crate) struct Line {
    inner: Mutex<Inner>,
    /// How many wait, without those who have left.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    /// The newest version of the function; weak, because the function holds its line.
    current: Weak<Function>,
    /// The first to be served in front; who has left is noticed when its turn comes.
    places: VecDeque<oneshot::Sender<Turn>>,
    /// Whether the function was removed.
    gone: bool,
}

/// A replica that a call may use now.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) function: Arc<Function>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) hold: Hold,
}

/// Holds a replica for one call; where calls wait for it, the next one's turn comes with its end.
#[derive(Debug)]
pub(crate) struct Hold {
    lease: Option<Lease>,
    line: Option<Arc<FunctionState>>,
}

impl Hold {
    /// Holds a replica of a function without a limit.
    pub(crate) const fn unlimited(lease: Lease) -> Self {
        Self { lease: Some(lease), line: None }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(state) = self.line.take() {
            // The place must be free before it is given to the next.
            drop(self.lease.take());
            state.advance();
        }
    }
}

/// What came of asking for a turn.
pub(crate) enum Asked {
    /// It is the caller's turn.
    Turn(Turn),
    /// All replicas have as much as they take.
    Wait(Place),
    /// And as many wait as may.
    Full,
    /// There is no replica to wait for.
    NoReplica,
}

/// A place in the line.
pub(crate) struct Place {
    state: Arc<FunctionState>,
    turn: oneshot::Receiver<Turn>,
}

impl Place {
    /// Waits for the turn; nothing when the function was removed.
    pub(crate) async fn turn(&mut self) -> Option<Turn> {
        (&mut self.turn).await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.state.line.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl FunctionState {
    /// Asks for a replica of `function`, none of `avoided`. A caller whose turn had come already
    /// goes before all others.
    pub(crate) fn ask(
        self: &Arc<Self>,
        function: &Arc<Function>,
        limit: Limit,
        avoided: &[Arc<Replica>],
        had_turn: bool,
    ) -> Asked {
        let mut line = self.line.lock();
        if line.gone {
            return Asked::NoReplica;
        }
        let function = line.current.upgrade().unwrap_or_else(|| Arc::clone(function));
        let busy = match function.pick_within(avoided, limit.each) {
            Pick::None => return Asked::NoReplica,
            Pick::Busy => true,
            Pick::Taken(replica, lease) => {
                if had_turn || line.places.is_empty() {
                    return Asked::Turn(self.turn(&function, replica, lease));
                }
                false
            }
        };
        if line.places.len() >= limit.waiting {
            line.places.retain(|place| !place.is_closed());
        }
        if line.places.len() >= limit.waiting && !had_turn {
            return Asked::Full;
        }
        let (place, turn) = oneshot::channel();
        if had_turn {
            line.places.push_front(place);
        } else {
            line.places.push_back(place);
        }
        self.line.waiting.fetch_add(1, Ordering::Relaxed);
        if !busy {
            // Room beside a line is there only because those in it have left.
            self.serve(&mut line, &function);
        }
        Asked::Wait(Place { state: Arc::clone(self), turn })
    }

    fn turn(
        self: &Arc<Self>,
        function: &Arc<Function>,
        replica: Arc<Replica>,
        lease: Lease,
    ) -> Turn {
        let hold = Hold { lease: Some(lease), line: Some(Arc::clone(self)) };
        Turn { function: Arc::clone(function), replica, hold }
    }

    /// Gives every free place to the head of the line.
    fn advance(self: &Arc<Self>) {
        let mut line = self.line.lock();
        if line.places.is_empty() {
            return;
        }
        if let Some(function) = line.current.upgrade() {
            self.serve(&mut line, &function);
        }
    }

    fn serve(self: &Arc<Self>, line: &mut Inner, function: &Arc<Function>) {
        let most = function.limit.map_or(usize::MAX, |limit| limit.each);
        while let Some(place) = line.places.pop_front() {
            if place.is_closed() {
                continue;
            }
            let Pick::Taken(replica, lease) = function.pick_within(&[], most) else {
                line.places.push_front(place);
                return;
            };
            if let Err(mut turn) = place.send(self.turn(function, replica, lease)) {
                // Left just now. The line is in hand already, so that its end need not move it.
                turn.hold.line = None;
            }
        }
    }

    /// Notes the newest version of the function; its replicas may have room for those who wait.
    pub(crate) fn renew(self: &Arc<Self>, function: &Arc<Function>) {
        self.line.lock().current = Arc::downgrade(function);
        self.advance();
    }

    /// Sends everybody away, because the function is no more.
    pub(crate) fn disband(&self) {
        let mut line = self.line.lock();
        line.gone = true;
        line.places.clear();
    }
}
