//! The functions by the names under which requests ask for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use updraft_engine::{Endpoint, EndpointTable, FunctionEndpoints};
use updraft_model::{FunctionId, Namespace};

use crate::function::{Function, FunctionState};
use crate::replica::Replica;

/// Most names looked at for a hint, so that wrong names stay cheap to answer.
const HINT_CANDIDATES: usize = 2_000;

/// All functions at one moment. Never changed in place.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// By `<name>.<namespace>`, and in the default namespace by `<name>` too.
    by_name: HashMap<Arc<str>, Arc<Function>>,
    /// Those that pushes deployed: by owner, then by the owner's own name.
    by_owner: HashMap<Box<str>, HashMap<Box<str>, Arc<Function>>>,
}

impl Table {
    /// The table after a change; what has not changed is taken over, connections included.
    pub(crate) fn next(
        &self,
        endpoints: &EndpointTable,
        timeout: Duration,
        idle_connections: usize,
    ) -> Self {
        let mut next = Self::default();
        next.by_name.reserve(endpoints.len() * 2);
        for (id, endpoints) in endpoints.iter() {
            let before = self.by_id(id);
            let function = match before {
                Some(before) if Arc::ptr_eq(&before.endpoints, endpoints) => Arc::clone(before),
                _ => Arc::new(renewed(
                    before.map(AsRef::as_ref),
                    id,
                    endpoints,
                    timeout,
                    idle_connections,
                )),
            };
            next.insert(function);
        }
        next
    }

    fn insert(&mut self, function: Arc<Function>) {
        let state = &function.state;
        if let Some((owner, own_name)) = function.owned() {
            let functions = self.by_owner.entry(String::from(owner).into()).or_default();
            functions.insert(own_name.into(), Arc::clone(&function));
        }
        if function.id().namespace == Namespace::default() {
            self.by_name.insert(Arc::clone(&state.name), Arc::clone(&function));
        }
        self.by_name.insert(Arc::clone(&state.qualified), function);
    }

    /// By `<name>` in the default namespace, or by `<name>.<namespace>`.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<Function>> {
        self.by_name.get(name)
    }

    pub(crate) fn by_id(&self, id: &FunctionId) -> Option<&Arc<Function>> {
        self.by_name.get(id.to_string().as_str())
    }

    pub(crate) fn by_owner(&self, owner: &str, own_name: &str) -> Option<&Arc<Function>> {
        self.by_owner.get(owner)?.get(own_name)
    }

    /// Each function once.
    pub(crate) fn functions(&self) -> impl Iterator<Item = &Arc<Function>> {
        self.by_name
            .iter()
            .filter(|(name, function)| ***name == *function.state.qualified)
            .map(|(_, function)| function)
    }

    /// The name that was probably meant: one or two slips of the finger away, no more, because
    /// names of strangers are not for browsing.
    pub(crate) fn nearest(&self, name: &str) -> Option<&str> {
        let plausible = |candidate: &&str| {
            candidate.len().abs_diff(name.len()) <= 2 && candidate.len() > 3 && name.len() <= 128
        };
        let names = self.by_name.keys().map(AsRef::as_ref).take(HINT_CANDIDATES);
        let (distance, nearest) = names
            .filter(plausible)
            .map(|candidate| (strsim::osa_distance(name, candidate), candidate))
            .min()?;
        (distance <= 2).then_some(nearest)
    }
}

/// A function after a change, with the connections to those replicas that are still there.
fn renewed(
    before: Option<&Function>,
    id: &FunctionId,
    endpoints: &Arc<FunctionEndpoints>,
    timeout: Duration,
    idle_connections: usize,
) -> Function {
    let known = before.map_or(&[] as &[_], |before| &before.replicas);
    let replica = |endpoint: &Arc<Endpoint>| {
        let same = known.iter().find(|replica| {
            replica.endpoint.replica == endpoint.replica
                && replica.endpoint.address == endpoint.address
                && Arc::ptr_eq(&replica.endpoint.load, &endpoint.load)
        });
        same.map_or_else(
            || Arc::new(Replica::new(Arc::clone(endpoint), idle_connections)),
            Arc::clone,
        )
    };
    let replicas = endpoints.ready.iter().map(replica).collect();
    let state = before.map_or_else(|| Arc::new(FunctionState::new(id)), |b| Arc::clone(&b.state));
    Function::new(Arc::clone(endpoints), replicas, state, timeout)
}
