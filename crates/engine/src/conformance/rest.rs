//! Claims about rest: what is frozen and thawed, woken and measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use updraft_model::{FunctionId, annotations, labels};

use tokio::time::Instant;

use super::{Harness, Judge, PATIENCE, with_environment};
use crate::{Availability, EngineError, ReplicaId, Wake};

impl<H: Harness> Judge<H> {
    pub(super) fn can_freeze(&self) -> bool {
        self.engine().capabilities().freeze
    }

    pub(super) fn availability(&self, id: &FunctionId) -> Availability {
        self.engine().endpoints().borrow()[id].availability.clone()
    }

    pub(super) fn replicas(&self, id: &FunctionId) -> Vec<ReplicaId> {
        let table = self.engine().endpoints().borrow().clone();
        table[id].ready.iter().map(|endpoint| endpoint.replica.clone()).collect()
    }

    /// Freezes a function that nobody calls.
    pub(super) async fn frozen(&self, id: &FunctionId) {
        let what = format!("{id} is frozen");
        self.until(&what, || async { self.engine().freeze(id).await.unwrap() }).await;
        assert_eq!(self.availability(id), Availability::Frozen);
        assert!(self.replicas(id).is_empty());
    }
}

/// A frozen function keeps its replicas and their memory, and a wake-up brings the same back.
pub async fn a_frozen_function_is_thawed_as_it_was<H: Harness>(judge: Arc<Judge<H>>) {
    if !judge.can_freeze() {
        return;
    }
    let engine = judge.engine();
    let spec = judge.spec("resting");
    judge.deploy(&spec).await;
    engine.scale(&spec.id, 2).await.unwrap();
    judge.until_ready(&spec.id, 2).await;
    let before = judge.replicas(&spec.id);
    judge.frozen(&spec.id).await;
    assert!(engine.freeze(&spec.id).await.unwrap(), "it is frozen already");
    let status = judge.status(&spec.id).await;
    assert_eq!((status.replicas, status.available_replicas), (2, 2));
    engine.wake(&spec.id).await.unwrap();
    assert_eq!(judge.availability(&spec.id), Availability::Ready);
    assert_eq!(judge.replicas(&spec.id), before);
    assert_eq!(judge.body(&spec.id, "/").await, "hello");
    engine.wake(&spec.id).await.unwrap();
    assert_eq!(judge.replicas(&spec.id), before);
}

/// What is frozen uses no processor.
pub async fn a_frozen_function_does_nothing<H: Harness>(judge: Arc<Judge<H>>) {
    if !judge.can_freeze() {
        return;
    }
    let spec = judge.spec("still");
    judge.deploy(&spec).await;
    let endpoint = Arc::clone(&judge.engine().endpoints().borrow()[&spec.id].ready[0]);
    judge.frozen(&spec.id).await;
    // The kernel takes the connection; nobody answers on it.
    let direct = Judge::<H>::request(endpoint.address, "/");
    assert!(tokio::time::timeout(Duration::from_millis(300), direct).await.is_err());
    assert!(endpoint.load.lease().is_none());
}

/// A request under way keeps its function awake.
pub async fn a_busy_function_is_not_frozen<H: Harness>(judge: Arc<Judge<H>>) {
    if !judge.can_freeze() {
        return;
    }
    let engine = judge.engine();
    let spec = judge.spec("busy");
    judge.deploy(&spec).await;
    engine.scale(&spec.id, 3).await.unwrap();
    judge.until_ready(&spec.id, 3).await;
    // What a request is to the engine: somebody holds the replica.
    let ready = engine.endpoints().borrow()[&spec.id].ready.clone();
    let lease = ready[1].load.lease().expect("its door is open");
    assert!(!engine.freeze(&spec.id).await.unwrap());
    assert_eq!(judge.availability(&spec.id), Availability::Ready);
    assert_eq!(judge.body(&spec.id, "/").await, "hello");
    drop(lease);
    judge.frozen(&spec.id).await;
}

/// A function that starts or is replaced is not frozen.
pub async fn a_starting_function_is_not_frozen<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    // Ready only with the variable: what starts without it goes on starting.
    let mut spec = judge.spec("early");
    spec.annotations.insert(annotations::READY_PATH.into(), "/env/warm".into());
    engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    assert!(!engine.freeze(&spec.id).await.unwrap());
    judge.deploy(&with_environment(spec.clone(), &[("warm", "yes")])).await;
    engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    assert!(!engine.freeze(&spec.id).await.unwrap());
    judge.deploy(&with_environment(spec.clone(), &[("warm", "again")])).await;
    engine.scale(&spec.id, 0).await.unwrap();
    judge.until_ready(&spec.id, 0).await;
    assert!(!engine.freeze(&spec.id).await.unwrap());
    assert_eq!(judge.availability(&spec.id), Availability::Asleep);
}

/// Callers come at any moment of freezing and thawing, and every one is served.
pub async fn no_request_fails_however_often_its_function_is_frozen<H: Harness>(
    judge: Arc<Judge<H>>,
) {
    if !judge.can_freeze() {
        return;
    }
    const CALLS: u64 = 150;
    const FREEZES: u64 = 10;
    let spec = judge.spec("restless");
    judge.deploy(&spec).await;
    judge.engine().scale(&spec.id, 2).await.unwrap();
    judge.until_ready(&spec.id, 2).await;
    let over = Arc::new(AtomicBool::new(false));
    let freezes = Arc::new(AtomicU64::new(0));
    let freezer = tokio::spawn({
        let (judge, id) = (Arc::clone(&judge), spec.id.clone());
        let (over, freezes) = (Arc::clone(&over), Arc::clone(&freezes));
        async move {
            while !over.load(Ordering::SeqCst) {
                let was_frozen = judge.availability(&id) == Availability::Frozen;
                if judge.engine().freeze(&id).await.unwrap() && !was_frozen {
                    freezes.fetch_add(1, Ordering::SeqCst);
                }
                tokio::task::yield_now().await;
            }
        }
    });
    let callers: Vec<_> = (0..3_u64)
        .map(|caller| {
            let (judge, id) = (Arc::clone(&judge), spec.id.clone());
            let freezes = Arc::clone(&freezes);
            tokio::spawn(async move {
                let begin = Instant::now();
                // On a busy machine calls take long, and leave few moments for a rest.
                let enough = |call| {
                    let seldom = freezes.load(Ordering::SeqCst) < FREEZES;
                    call >= CALLS && !(seldom && begin.elapsed() < PATIENCE)
                };
                for call in (0..).take_while(|call| !enough(*call)) {
                    // Spread over what a cycle of freezing and thawing takes, and the same in
                    // each run.
                    let pause = (call * 7919 + caller * 104_729) % 71;
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    let answer = judge.try_call(&id, "/").await;
                    assert_eq!(answer.map(|answer| answer.body), Ok("hello".to_owned()));
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    over.store(true, Ordering::SeqCst);
    freezer.await.unwrap();
    let freezes = freezes.load(Ordering::SeqCst);
    assert!(freezes >= FREEZES, "it was frozen {freezes} times only");
}

/// Everything that can be asked of a function can be asked of a frozen one.
pub async fn a_frozen_function_is_scaled_replaced_and_removed<H: Harness>(judge: Arc<Judge<H>>) {
    if !judge.can_freeze() {
        return;
    }
    let engine = judge.engine();
    let spec = with_environment(judge.spec("handled"), &[("answer", "old")]);
    judge.deploy(&spec).await;
    judge.body(&spec.id, "/print/before-its-rest").await;
    judge.frozen(&spec.id).await;
    let query = crate::LogQuery {
        id: spec.id.clone(),
        instance: None,
        since: None,
        tail: None,
        follow: false,
    };
    let lines = engine.logs(query).await.unwrap();
    let lines: Vec<_> = futures_util::StreamExt::collect(lines).await;
    assert!(lines.iter().flatten().any(|line| line.text.contains("before-its-rest")));

    engine.scale(&spec.id, 2).await.unwrap();
    judge.until_ready(&spec.id, 2).await;
    judge.frozen(&spec.id).await;
    engine.scale(&spec.id, 1).await.unwrap();
    judge.until_ready(&spec.id, 1).await;
    judge.frozen(&spec.id).await;
    engine.scale(&spec.id, 1).await.unwrap();
    assert_eq!(judge.availability(&spec.id), Availability::Ready, "the same number thaws too");
    judge.frozen(&spec.id).await;
    let spec = with_environment(spec, &[("answer", "new")]);
    judge.deploy(&spec).await;
    assert_eq!(judge.body(&spec.id, "/").await, "new");
    judge.frozen(&spec.id).await;
    engine.scale(&spec.id, 0).await.unwrap();
    judge.until_ready(&spec.id, 0).await;
    engine.wake(&spec.id).await.unwrap();
    assert_eq!(judge.body(&spec.id, "/").await, "new");
    judge.frozen(&spec.id).await;
    engine.remove(&spec.id).await.unwrap();
    assert!(engine.get(&spec.id).await.unwrap().is_none());
    judge.deploy(&spec).await;
    assert_eq!(judge.body(&spec.id, "/").await, "new");
}

/// A secret that changes while its function rests is the new one afterwards.
pub async fn a_secret_that_changes_during_a_rest_is_seen_after_it<H: Harness>(
    judge: Arc<Judge<H>>,
) {
    if !judge.can_freeze() {
        return;
    }
    let engine = judge.engine();
    let mut spec = judge.spec("forgetful");
    let (place, name) = (spec.id.namespace.clone(), "token".parse().unwrap());
    engine.create_secret(&place, &name, crate::SecretValue::new("old")).await.unwrap();
    spec.secrets = vec![name.clone()];
    judge.deploy(&spec).await;
    judge.frozen(&spec.id).await;
    engine.update_secret(&place, &name, crate::SecretValue::new("new")).await.unwrap();
    assert_eq!(judge.availability(&spec.id), Availability::Frozen);
    let path = "/read/var/openfaas/secrets/token";
    judge
        .until("the new value is seen", || async { judge.body(&spec.id, path).await == "new" })
        .await;
}

/// Where an engine lets the data plane thaw, a request needs nobody else, and the table follows.
pub async fn a_request_thaws_without_the_control_plane<H: Harness>(judge: Arc<Judge<H>>) {
    if !judge.can_freeze() {
        return;
    }
    let engine = judge.engine();
    let spec = judge.spec("self-served");
    judge.deploy(&spec).await;
    engine.scale(&spec.id, 2).await.unwrap();
    judge.until_ready(&spec.id, 2).await;
    let before = judge.replicas(&spec.id);
    judge.frozen(&spec.id).await;
    let table = engine.endpoints().borrow().clone();
    let Some(resting) = table[&spec.id].resting.clone() else { return };
    assert_eq!(resting.replicas.len(), 2);
    assert!(resting.replicas.iter().all(|endpoint| endpoint.load.lease().is_none()));
    assert!(resting.thaw.thaw());
    let lease = resting.replicas[0].load.lease().expect("its door is open at once");
    let answer = Judge::<H>::request(resting.replicas[0].address, "/").await;
    assert_eq!(answer.map(|answer| answer.body), Ok("hello".to_owned()));
    assert!(!engine.freeze(&spec.id).await.unwrap(), "a request is under way");
    drop(lease);
    judge.until_ready(&spec.id, 2).await;
    assert_eq!(judge.replicas(&spec.id), before);
    // A rest that is over stays over, whoever still holds on to it.
    judge.frozen(&spec.id).await;
    assert!(resting.thaw.thaw());
    assert_eq!(judge.availability(&spec.id), Availability::Frozen);
    assert!(resting.replicas.iter().all(|endpoint| endpoint.load.lease().is_none()));
    assert_eq!(judge.body(&spec.id, "/").await, "hello");
}

/// Waking what sleeps runs its minimum; waking what is awake changes nothing.
pub async fn a_wake_up_runs_the_minimum<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let mut spec = judge.spec("early-bird");
    spec.labels.insert(labels::SCALE_MIN.into(), "2".into());
    judge.deploy(&spec).await;
    engine.scale(&spec.id, 0).await.unwrap();
    judge.until_ready(&spec.id, 0).await;
    engine.wake(&spec.id).await.unwrap();
    assert_eq!(judge.status(&spec.id).await.replicas, 2);
    judge.until_ready(&spec.id, 2).await;
    engine.scale(&spec.id, 3).await.unwrap();
    engine.wake(&spec.id).await.unwrap();
    assert_eq!(judge.status(&spec.id).await.replicas, 3);
    let nobody = FunctionId::in_default("nobody".parse().unwrap());
    let unknown = |error: EngineError| matches!(error, EngineError::UnknownFunction(_));
    assert!(unknown(engine.wake(&nobody).await.unwrap_err()));
    if judge.can_freeze() {
        assert!(unknown(engine.freeze(&nobody).await.unwrap_err()));
    }
    if judge.harness.measures_usage() {
        assert!(unknown(engine.usage(&nobody).await.unwrap_err()));
    }
}

/// Usage counts every replica, memory as it is used and processor time as it goes by.
pub async fn usage_follows_what_replicas_do<H: Harness>(judge: Arc<Judge<H>>) {
    if !judge.harness.measures_usage() {
        return;
    }
    let engine = judge.engine();
    let usage = async |id: &FunctionId| engine.usage(id).await.unwrap().expect("it is measured");
    let spec = judge.spec("measured");
    judge.deploy(&spec).await;
    let before = usage(&spec.id).await;
    assert_eq!(before.replicas, 1);
    assert!(before.cpu_seconds > 0.0 && before.memory_bytes > 0, "{before:?}");
    assert!(before.memory_bytes < 32 << 20, "{before:?}");
    judge.body(&spec.id, "/hold/64").await;
    let after = usage(&spec.id).await;
    assert!(after.memory_bytes >= before.memory_bytes + (60 << 20), "{before:?} {after:?}");
    assert!(after.cpu_seconds > before.cpu_seconds, "{before:?} {after:?}");
    engine.scale(&spec.id, 2).await.unwrap();
    judge.until_ready(&spec.id, 2).await;
    assert_eq!(usage(&spec.id).await.replicas, 2);
    engine.scale(&spec.id, 0).await.unwrap();
    judge
        .until("nothing is used", || async { usage(&spec.id).await == crate::Usage::default() })
        .await;
}

/// A limit on the processor holds while the function works.
pub async fn a_processor_limit_holds<H: Harness>(judge: Arc<Judge<H>>) {
    if !judge.harness.measures_usage() {
        return;
    }
    let mut spec = judge.spec("throttled");
    let cpu = Some("200m".parse().unwrap());
    spec.limits = Some(updraft_model::ResourceSet { cpu, ..updraft_model::ResourceSet::default() });
    judge.deploy(&spec).await;
    let used = async || judge.engine().usage(&spec.id).await.unwrap().unwrap().cpu_seconds;
    let (begin, before) = (tokio::time::Instant::now(), used().await);
    judge.body(&spec.id, "/spin/1000").await;
    let share = (used().await - before) / begin.elapsed().as_secs_f64();
    // The readings around it cost a little too.
    assert!(share < 0.35, "it had {share} of a processor");
}
