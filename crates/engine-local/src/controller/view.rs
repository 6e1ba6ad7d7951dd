//! What a function shows of itself: its entry in the endpoint table and its status.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use updraft_engine::{
    Availability, EngineError, FunctionEndpoints, FunctionStatus, ReplicaExit, ReplicaId,
    ReplicaLoad, ReplicaState, Revision, Trouble,
};
use updraft_model::{Digest, FunctionId, FunctionSpec, SecretName};

use super::Controller;
use super::plan::Standing;
use crate::record::{FunctionRecord, GivenUp};
use crate::replica::Failure;

/// A first deployment that failed so often in a row is told to be not ready without waiting for
/// the limit. The engine goes on trying.
const TELLING_FAILURES: u32 = 3;

/// A function's status with a spec that is shared: functions that sleep are many, and should cost
/// little more than their records.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) spec: Arc<FunctionSpec>,
    revision: Revision,
    replicas: u32,
    available_replicas: u32,
    created_at: Timestamp,
    message: Option<String>,
    pub(crate) restarts: u64,
    last_exit: Option<ReplicaExit>,
    trouble: Option<Trouble>,
}

impl Shown {
    /// As the port tells it.
    pub(crate) fn status(&self) -> FunctionStatus {
        FunctionStatus {
            spec: self.spec.as_ref().clone(),
            revision: self.revision,
            replicas: self.replicas,
            available_replicas: self.available_replicas,
            created_at: self.created_at,
            message: self.message.clone(),
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
            trouble: self.trouble.clone(),
        }
    }
}

/// What everybody may know of a function.
#[derive(Debug, Clone)]
pub(crate) struct FunctionState {
    pub(crate) shown: Arc<Shown>,
    pub(crate) newest: Revision,
    pub(crate) serving: Revision,
    /// Replicas of the serving revision that take requests.
    pub(crate) ready: usize,
    pub(crate) given_up: Option<Arc<GivenUp>>,
    /// How often in a row the serving revision failed without having been ready, and how.
    pub(crate) failures: u32,
    pub(crate) last_failure: Option<Failure>,
    /// What its secrets held when the shown spec was applied.
    pub(crate) secrets: Arc<BTreeMap<SecretName, Digest>>,
    /// It was never ready since it was applied.
    pub(crate) unproven: bool,
    /// All replicas, whatever they do.
    pub(crate) members: Arc<[MemberView]>,
}

/// What everybody may know of one replica.
#[derive(Debug, Clone)]
pub(crate) struct MemberView {
    pub(crate) id: ReplicaId,
    pub(crate) revision: Revision,
    pub(crate) state: ReplicaState,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) started_at: Timestamp,
    pub(crate) load: Arc<ReplicaLoad>,
}

impl Controller {
    /// Tells the data plane and whoever watches what is so now. Replicas on their way out have
    /// their doors shut in between: whoever waits for a new revision and then finds it serving
    /// may rely on it that nothing new comes to the old one.
    pub(super) fn tell(&mut self) {
        let Some(desired) = self.desired.clone() else { return };
        let serving = desired.serving.revision;
        let spec = Arc::clone(&desired.serving.spec);
        let ready: Vec<_> = self.ready(serving).cloned().collect();
        let ready_count = ready.len();
        let message = self.message(&desired);
        let frozen = self.is_frozen();
        // What rests is no place for a request, unless it thaws it.
        let (ready, resting) =
            if frozen { (Vec::new(), self.resting(ready)) } else { (ready, None) };
        let availability = if frozen {
            Availability::Frozen
        } else if !ready.is_empty() {
            Availability::Ready
        } else if desired.replicas == 0 {
            Availability::Asleep
        } else {
            match &self.serving_trouble.last {
                Some(failure) => Availability::Failing(failure.reason.clone()),
                None => Availability::Starting,
            }
        };
        let endpoints = FunctionEndpoints { spec, ready, availability, resting };
        if self.published.as_deref().is_none_or(|published| !same(published, &endpoints)) {
            let endpoints = Arc::new(endpoints);
            self.published = Some(Arc::clone(&endpoints));
            (self.publish)(&self.id, Some(endpoints));
        }
        self.members
            .values()
            .filter(|member| member.standing == Standing::Leaving)
            .for_each(|member| member.replica.load.close());
        let shown = desired.shown();
        let status = Shown {
            spec: Arc::clone(&shown.spec),
            revision: shown.revision,
            replicas: desired.replicas,
            available_replicas: u32::try_from(ready_count).unwrap_or(u32::MAX),
            created_at: desired.created_at,
            message,
            restarts: desired.exits,
            last_exit: desired.last_exit.as_ref().map(ReplicaExit::from),
            trouble: self.trouble(),
        };
        let views = self.members.iter().map(|(id, member)| MemberView {
            id: id.clone(),
            revision: member.replica.revision,
            state: match member.standing {
                Standing::Starting => ReplicaState::Starting,
                Standing::Ready if frozen => ReplicaState::Frozen,
                Standing::Ready => ReplicaState::Ready,
                Standing::Unready => ReplicaState::Unready,
                Standing::Leaving => ReplicaState::Leaving,
            },
            address: member.endpoint.as_ref().map(|endpoint| endpoint.address),
            started_at: member.replica.started_at,
            load: Arc::clone(&member.replica.load),
        });
        let views: Arc<[MemberView]> = views.collect();
        self.state.send_replace(Some(FunctionState {
            shown: Arc::new(status),
            secrets: Arc::new(desired.shown().secrets.clone()),
            newest: desired.newest,
            serving,
            ready: ready_count,
            given_up: desired.given_up.map(Arc::new),
            failures: self.serving_trouble.failures,
            last_failure: self.serving_trouble.last.clone(),
            unproven: !desired.serving.proven,
            members: views,
        }));
    }

    fn trouble(&self) -> Option<Trouble> {
        let trouble = &self.serving_trouble;
        (trouble.failures > 0).then(|| Trouble {
            failures: trouble.failures,
            next_start: trouble.next_start_at.filter(|_| !trouble.is_over()),
        })
    }

    fn message(&self, desired: &FunctionRecord) -> Option<String> {
        if let Some(failure) = &self.serving_trouble.last {
            let last = failure.log_tail.last().map(|line| format!("; its last line: {line}"));
            let failures = self.serving_trouble.failures;
            let times = if failures > 1 { format!(" ({failures} times)") } else { String::new() };
            let next = self.trouble().and_then(|trouble| trouble.next_start);
            let next = next.map(|at| format!("; it is started again at {at:.0}"));
            let (last, next) = (last.unwrap_or_default(), next.unwrap_or_default());
            return Some(format!("{}{times}{last}{next}", failure.reason));
        }
        if let Some(given_up) = &desired.given_up {
            return Some(format!(
                "revision {} was given up and revision {} goes on: {}",
                given_up.revision.0, desired.serving.revision.0, given_up.reason
            ));
        }
        let mut unready = self.members.values().filter_map(|member| member.unready.as_deref());
        let first = unready.next()?;
        let count = unready.count() + 1;
        let replicas = if count == 1 { "replica gets" } else { "replicas get" };
        Some(format!("{count} {replicas} no calls until ready again: {first}"))
    }
}

/// Whether `revision` serves, or why it does not and will not; nothing while it may yet.
pub(crate) fn verdict(
    id: &FunctionId,
    state: Option<&FunctionState>,
    revision: Revision,
) -> Option<Result<(), EngineError>> {
    let Some(state) = state else {
        return Some(Err(EngineError::UnknownFunction(id.clone())));
    };
    let not_ready = |reason: &str, log_tail: &[String]| EngineError::NotReady {
        id: id.clone(),
        reason: reason.to_owned(),
        log_tail: log_tail.to_vec(),
    };
    if let Some(given_up) = state.given_up.as_ref().filter(|given| given.revision == revision) {
        return Some(Err(not_ready(&given_up.reason, &given_up.log_tail)));
    }
    if state.newest != revision && state.serving != revision {
        return Some(Err(EngineError::Superseded(id.clone())));
    }
    if state.serving != revision {
        return None;
    }
    if state.ready > 0 || state.shown.replicas == 0 {
        return Some(Ok(()));
    }
    let failure = state.last_failure.as_ref()?;
    (state.unproven && state.failures >= TELLING_FAILURES)
        .then(|| Err(not_ready(&failure.reason, &failure.log_tail)))
}

/// Whether two entries of the table say the same.
fn same(one: &FunctionEndpoints, other: &FunctionEndpoints) -> bool {
    Arc::ptr_eq(&one.spec, &other.spec)
        && one.availability == other.availability
        && one.ready.len() == other.ready.len()
        && one.ready.iter().zip(&other.ready).all(|(a, b)| Arc::ptr_eq(a, b))
        && match (&one.resting, &other.resting) {
            (None, None) => true,
            (Some(one), Some(other)) => {
                Arc::ptr_eq(&one.thaw, &other.thaw) && one.replicas.len() == other.replicas.len()
            }
            _ => false,
        }
}
