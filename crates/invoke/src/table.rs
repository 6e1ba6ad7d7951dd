//! The functions by the names under which requests ask for them.

use std::collections::HashMap;
use std::sync::Arc;

use updraft_engine::{Endpoint, EndpointTable, FunctionEndpoints};
use updraft_model::{FunctionId, Namespace};

use crate::function::{Function, FunctionState};
use crate::options::InvokeOptions;
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
    pub(crate) fn next(&self, endpoints: &EndpointTable, options: &InvokeOptions) -> Self {
        let mut next = Self::default();
        next.by_name.reserve(endpoints.len() * 2);
        for (id, endpoints) in endpoints.iter() {
            let before = self.by_id(id);
            let function = match before {
                Some(before) if Arc::ptr_eq(&before.endpoints, endpoints) => Arc::clone(before),
                _ => Arc::new(renewed(before.map(AsRef::as_ref), id, endpoints, options)),
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
    options: &InvokeOptions,
) -> Function {
    let known = before.map_or(&[] as &[_], |before| &before.replicas);
    let protocol = endpoints.spec.protocol();
    let replica = |endpoint: &Arc<Endpoint>| {
        let same = known.iter().find(|replica| {
            replica.endpoint.replica == endpoint.replica
                && replica.endpoint.address == endpoint.address
                && Arc::ptr_eq(&replica.endpoint.load, &endpoint.load)
        });
        same.map_or_else(
            || {
                let InvokeOptions { idle_connections, lanes, .. } = *options;
                let endpoint = Arc::clone(endpoint);
                Arc::new(Replica::new(endpoint, protocol, idle_connections, lanes))
            },
            Arc::clone,
        )
    };
    // Those that rest are kept too, with their connections: their doors are shut until the request
    // that wakes them opens them.
    let resting = endpoints.resting.iter().flat_map(|resting| &resting.replicas);
    let replicas = endpoints.ready.iter().chain(resting).map(replica).collect();
    let state = before.map_or_else(|| Arc::new(FunctionState::new(id)), |b| Arc::clone(&b.state));
    Function::new(Arc::clone(endpoints), replicas, state, options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;
    use updraft_engine::{Availability, ReplicaId, ReplicaLoad};
    use updraft_model::{FunctionName, FunctionSpec, annotations, labels};

    const TIMEOUT: Duration = Duration::from_secs(9);
    const LONGEST_TIMEOUT: Duration = Duration::from_mins(20);

    fn id(name: &str, namespace: &str) -> FunctionId {
        let namespace = Namespace::new(namespace).unwrap();
        FunctionId { namespace, name: FunctionName::new(name).unwrap() }
    }

    fn endpoint(replica: &str) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            replica: ReplicaId::new(replica),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            load: Arc::new(ReplicaLoad::default()),
        })
    }

    fn entry(
        id: &FunctionId,
        owner: Option<&str>,
        ready: &[&Arc<Endpoint>],
    ) -> (FunctionId, Arc<FunctionEndpoints>) {
        let mut spec = FunctionSpec::new(id.clone(), "localhost/test:1".parse().unwrap());
        if let Some(owner) = owner {
            spec.labels.insert(labels::GIT_OWNER.to_owned(), owner.to_owned());
        }
        let endpoints = FunctionEndpoints {
            spec: Arc::new(spec),
            ready: ready.iter().map(|endpoint| Arc::clone(endpoint)).collect(),
            availability: Availability::Ready,
            resting: None,
        };
        (id.clone(), Arc::new(endpoints))
    }

    fn next(before: &Table, entries: Vec<(FunctionId, Arc<FunctionEndpoints>)>) -> Table {
        let options = InvokeOptions {
            timeout: TIMEOUT,
            longest_timeout: LONGEST_TIMEOUT,
            ..InvokeOptions::new("test")
        };
        before.next(&Arc::new(entries.into_iter().collect()), &options)
    }

    #[test]
    fn functions_are_found_by_every_name_they_have_and_by_no_other() {
        let table = next(
            &Table::default(),
            vec![
                entry(&id("alice-b-c", "openfaas-fn"), Some("Alice"), &[]),
                entry(&id("alice-stray", "openfaas-fn"), None, &[]),
                entry(&id("bob-x", "openfaas-fn"), Some("alice"), &[]),
                entry(&id("alice-staged", "staging"), Some("alice"), &[]),
            ],
        );
        let named = |name: &str| table.by_name(name).map(|function| function.id().to_string());
        assert_eq!(named("alice-b-c").as_deref(), Some("alice-b-c.openfaas-fn"));
        assert_eq!(named("alice-b-c.openfaas-fn").as_deref(), Some("alice-b-c.openfaas-fn"));
        assert_eq!(named("alice-staged.staging").as_deref(), Some("alice-staged.staging"));
        for unknown in ["alice-staged", "alice-b-c.staging", "b-c", "", ".", ".openfaas-fn"] {
            assert_eq!(named(unknown), None, "{unknown}");
        }
        assert!(table.by_owner("alice", "b-c").is_some());
        for (owner, own_name) in [
            ("alice", "stray"),
            ("alice", "staged"),
            ("alice", "x"),
            ("bob", "x"),
            ("Alice", "b-c"),
        ] {
            assert!(table.by_owner(owner, own_name).is_none(), "{owner} {own_name}");
        }
        assert_eq!(table.functions().count(), 4);
    }

    #[test]
    fn a_change_keeps_the_counts_and_the_replicas_that_stay() {
        let (f, g) = (id("f", "openfaas-fn"), id("g", "openfaas-fn"));
        let (stays, goes, comes) = (endpoint("stays"), endpoint("goes"), endpoint("comes"));
        let unchanged = entry(&g, None, &[&stays]);
        let one =
            next(&Table::default(), vec![entry(&f, None, &[&stays, &goes]), unchanged.clone()]);
        let two = next(&one, vec![entry(&f, None, &[&comes, &stays]), unchanged]);
        let (before, after) = (one.by_id(&f).unwrap(), two.by_id(&f).unwrap());
        assert!(Arc::ptr_eq(&before.state, &after.state));
        assert!(Arc::ptr_eq(&before.replicas[0], &after.replicas[1]));
        assert!(Arc::ptr_eq(one.by_id(&g).unwrap(), two.by_id(&g).unwrap()));
        // The same name at the same address with another load is another process.
        let three = next(&two, vec![entry(&f, None, &[&endpoint("stays")])]);
        let reborn = &three.by_id(&f).unwrap().replicas[0];
        assert!(!Arc::ptr_eq(reborn, &after.replicas[1]));
        assert!(three.by_id(&g).is_none());
    }

    #[test]
    fn equals_take_turns_and_closed_doors_are_passed() {
        let f = id("f", "openfaas-fn");
        let endpoints = [endpoint("a"), endpoint("b"), endpoint("c")];
        let all: Vec<_> = endpoints.iter().collect();
        let table = next(&Table::default(), vec![entry(&f, None, &all)]);
        let function = table.by_id(&f).unwrap();
        let mut leases = Vec::new();
        for _ in 0..9 {
            leases.push(function.pick(&[]).unwrap());
        }
        assert!(endpoints.iter().all(|endpoint| endpoint.load.in_flight() == 3));
        endpoints[1].load.close();
        drop(leases);
        let avoided = [Arc::clone(&function.replicas[0])];
        for _ in 0..9 {
            let (replica, _lease) = function.pick(&avoided).unwrap();
            assert!(Arc::ptr_eq(&replica, &function.replicas[2]));
        }
        endpoints[2].load.close();
        assert!(function.pick(&avoided).is_none());
        assert!(endpoints.iter().all(|endpoint| endpoint.load.in_flight() == 0));
    }

    #[test]
    fn the_timeout_is_the_functions_own_where_it_says_one() {
        let f = id("f", "openfaas-fn");
        let check = |text: &str, expected: Duration| {
            let mut spec = FunctionSpec::new(f.clone(), "localhost/test:1".parse().unwrap());
            spec.annotations.insert(annotations::TIMEOUT.to_owned(), text.to_owned());
            let availability = Availability::Asleep;
            let endpoints = FunctionEndpoints {
                spec: Arc::new(spec),
                ready: vec![],
                availability,
                resting: None,
            };
            let table = next(&Table::default(), vec![(f.clone(), Arc::new(endpoints))]);
            assert_eq!(table.by_id(&f).unwrap().timeout(), expected, "{text}");
        };
        check("5m", Duration::from_mins(5));
        check("30", Duration::from_secs(30));
        check("5h", LONGEST_TIMEOUT);
        for text in ["", "0", "soon", "-1s"] {
            check(text, TIMEOUT);
        }
    }

    #[test]
    fn hints_are_for_slips_of_the_finger() {
        let table = next(&Table::default(), vec![entry(&id("resize", "openfaas-fn"), None, &[])]);
        assert_eq!(table.nearest("resise"), Some("resize"));
        assert_eq!(table.nearest("rezise"), Some("resize"));
        assert_eq!(table.nearest("r"), None);
        assert_eq!(table.nearest("payments"), None);
    }
}
