//! One function as the data plane sees it.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use updraft_engine::{Availability, FunctionEndpoints, Lease};
use updraft_model::{FunctionId, FunctionSpec, OwnerName};

use crate::gate::Gate;
use crate::line::{Limit, Line};
use crate::metrics::FunctionMetrics;
use crate::options::InvokeOptions;
use crate::replica::Replica;

/// A function at one moment: what it is and which replicas are ready. A newer one takes its place
/// in the table when the engine says so; a request that holds this one can still use it.
pub struct Function {
    pub(crate) endpoints: Arc<FunctionEndpoints>,
    /// Those that are ready, and those that rest.
    pub(crate) replicas: Vec<Arc<Replica>>,
    pub(crate) state: Arc<FunctionState>,
    pub(crate) timeout: Duration,
    /// How many calls it takes at once; most functions set no limit.
    pub(crate) limit: Option<Limit>,
    /// Who may call; most functions leave that open.
    pub(crate) gate: Option<Box<Gate>>,
}

/// What came of looking for a replica with room.
pub(crate) enum Pick {
    /// One is held.
    Taken(Arc<Replica>, Lease),
    /// Those there are have as much as they take.
    Busy,
    /// None is there that is not on its way out or to be avoided.
    None,
}

/// What a function carries at one moment.
#[derive(Debug, Clone)]
pub struct FunctionLoad {
    /// The spec that takes traffic.
    pub spec: Arc<FunctionSpec>,
    /// What a request can expect.
    pub availability: Availability,
    /// Replicas that are ready.
    pub ready: usize,
    /// Calls under way, those that wait for a replica included.
    pub in_flight: u64,
    /// Calls that have begun since this process first saw the function.
    pub started: u64,
}

/// What stays the same while replicas come and go.
#[derive(Debug)]
pub(crate) struct FunctionState {
    /// `<name>.<namespace>`.
    pub(crate) qualified: Arc<str>,
    /// The name alone.
    pub(crate) name: Arc<str>,
    pub(crate) metrics: FunctionMetrics,
    /// Where the search for the least busy replica starts, so that equals take turns.
    turn: AtomicUsize,
    /// Requests that wait for a replica.
    pub(crate) waiters: AtomicUsize,
    /// The wake-up under way, if its sender is alive; it brings the reason when it fails.
    pub(crate) waking: Mutex<Option<watch::Receiver<Option<String>>>>,
    /// Calls that wait for others to end.
    pub(crate) line: Line,
}

impl FunctionState {
    pub(crate) fn new(id: &FunctionId) -> Self {
        Self {
            qualified: id.to_string().into(),
            name: id.name.as_str().into(),
            metrics: FunctionMetrics::default(),
            turn: AtomicUsize::new(0),
            waiters: AtomicUsize::new(0),
            waking: Mutex::new(None),
            line: Line::default(),
        }
    }
}

impl Function {
    pub(crate) fn new(
        endpoints: Arc<FunctionEndpoints>,
        replicas: Vec<Arc<Replica>>,
        state: Arc<FunctionState>,
        options: &InvokeOptions,
    ) -> Self {
        let spec = &endpoints.spec;
        let timeout = spec.timeout().unwrap_or(options.timeout).min(options.longest_timeout);
        let limit = spec.concurrency().map(|each| Limit { each, waiting: spec.queue_limit() });
        let gate = Gate::of(spec);
        Self { endpoints, replicas, state, timeout, limit, gate }
    }

    /// Its place in the engine.
    pub fn id(&self) -> &FunctionId {
        &self.endpoints.spec.id
    }

    /// The spec that takes traffic.
    pub fn spec(&self) -> &Arc<FunctionSpec> {
        &self.endpoints.spec
    }

    /// What a request can expect.
    pub fn availability(&self) -> &Availability {
        &self.endpoints.availability
    }

    /// Whether somebody has to ask for its replicas before a request can go.
    pub(crate) fn rests(&self) -> bool {
        matches!(self.availability(), Availability::Asleep | Availability::Frozen)
    }

    /// Lets frozen replicas go on, where that is in our hands. Returns whether it is.
    pub(crate) fn thaw(&self) -> bool {
        self.endpoints.resting.as_ref().is_some_and(|resting| resting.thaw.thaw())
    }

    /// What it carries now.
    pub fn load(&self) -> FunctionLoad {
        FunctionLoad {
            spec: Arc::clone(self.spec()),
            availability: self.availability().clone(),
            ready: self.ready(),
            in_flight: self.state.metrics.in_flight(),
            started: self.state.metrics.started(),
        }
    }

    /// Replicas that are ready.
    pub fn ready(&self) -> usize {
        self.endpoints.ready.len()
    }

    /// How long it may take to its headers, and how long a body may stand still.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Owner and own name, where a push of that owner deployed it.
    pub(crate) fn owned(&self) -> Option<(OwnerName, String)> {
        let id = self.id();
        if id.namespace != updraft_model::Namespace::default() {
            return None;
        }
        let owner = self.endpoints.spec.owner()?;
        let own_name = owner.own_name(&id.name)?;
        Some((owner, own_name.into()))
    }

    /// The ready replica with the fewest requests under way, held; none when all are on their way
    /// out or among those to avoid.
    pub(crate) fn pick(&self, avoided: &[Arc<Replica>]) -> Option<(Arc<Replica>, Lease)> {
        if let [replica] = self.replicas.as_slice()
            && avoided.is_empty()
        {
            return Some((Arc::clone(replica), replica.endpoint.load.lease()?));
        }
        let start = self.state.turn.fetch_add(1, Ordering::Relaxed);
        let mut closed: Vec<usize> = Vec::new();
        loop {
            let count = self.replicas.len();
            let (index, replica) = (0..count)
                .map(|step| start.wrapping_add(step) % count)
                .filter(|index| !closed.contains(index))
                .map(|index| (index, &self.replicas[index]))
                .filter(|(_, replica)| !avoided.iter().any(|other| Arc::ptr_eq(other, replica)))
                .min_by_key(|(_, replica)| replica.endpoint.load.in_flight())?;
            if let Some(lease) = replica.endpoint.load.lease() {
                return Some((Arc::clone(replica), lease));
            }
            closed.push(index);
        }
    }
}

impl Function {
    /// Like [`Self::pick`], but none that has `most` requests already. Exact only among callers
    /// that exclude each other, as those in a function's line do.
    pub(crate) fn pick_within(&self, avoided: &[Arc<Replica>], most: usize) -> Pick {
        let start = self.state.turn.fetch_add(1, Ordering::Relaxed);
        let mut closed: Vec<usize> = Vec::new();
        loop {
            let count = self.replicas.len();
            let open = (0..count)
                .map(|step| start.wrapping_add(step) % count)
                .filter(|index| !closed.contains(index))
                .map(|index| (index, &self.replicas[index]))
                .filter(|(_, replica)| !avoided.iter().any(|other| Arc::ptr_eq(other, replica)));
            let least = open
                .map(|(index, replica)| (index, replica, replica.endpoint.load.in_flight()))
                .min_by_key(|(_, _, in_flight)| *in_flight);
            match least {
                None => return Pick::None,
                Some((_, _, in_flight)) if in_flight >= most => return Pick::Busy,
                Some((index, replica, _)) => match replica.endpoint.load.lease() {
                    Some(lease) => return Pick::Taken(Arc::clone(replica), lease),
                    None => closed.push(index),
                },
            }
        }
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("id", self.id())
            .field("availability", self.availability())
            .finish_non_exhaustive()
    }
}
