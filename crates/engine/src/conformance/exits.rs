//! Claims about ends and health: how a replica ended is told, what fails again and again is held
//! back, and what hangs is replaced.

use std::sync::Arc;
use std::time::Duration;

use updraft_model::{FunctionId, FunctionSpec, ResourceSet, annotations};

use super::{Harness, Judge, PATIENCE, with_environment};
use crate::{EngineError, ReplicaExit, ReplicaId, ReplicaState, Wake};

impl<H: Harness> Judge<H> {
    pub(super) fn first_replica(&self, id: &FunctionId) -> ReplicaId {
        self.engine().endpoints().borrow()[id].ready[0].replica.clone()
    }

    /// Waits until another replica than this one serves.
    pub(super) async fn until_replaced(&self, id: &FunctionId, before: &ReplicaId) {
        self.until("another replica is ready", || async {
            let table = self.engine().endpoints().borrow().clone();
            table[id].ready.first().is_some_and(|endpoint| endpoint.replica != *before)
        })
        .await;
    }

    /// Waits until a replica is not there any more, not even on its way out.
    pub(super) async fn until_gone(&self, id: &FunctionId, replica: &ReplicaId) {
        self.until("the old replica is gone", || async {
            let told = self.engine().replicas(id).await.unwrap();
            !told.iter().any(|told| told.id == *replica)
        })
        .await;
    }

    pub(super) async fn last_exit(&self, id: &FunctionId) -> ReplicaExit {
        self.status(id).await.last_exit.expect("an end is told")
    }
}

fn annotated(mut spec: FunctionSpec, pairs: &[(&str, &str)]) -> FunctionSpec {
    let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    spec.annotations.extend(pairs);
    spec
}

/// Who ended by itself is told of with its code, its last lines and the time, and counted.
pub async fn an_exit_is_told_with_its_code_and_last_lines<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = judge.spec("leaver");
    let revision = judge.deploy(&spec).await;
    let status = judge.status(&spec.id).await;
    assert_eq!((status.restarts, &status.last_exit, &status.trouble), (0, &None, &None));
    let before = judge.first_replica(&spec.id);
    assert!(judge.try_call(&spec.id, "/exit/3").await.is_err());
    judge.until_replaced(&spec.id, &before).await;
    let exit = judge.last_exit(&spec.id).await;
    assert_eq!((&exit.replica, exit.revision), (&before, revision));
    assert_eq!((exit.code, exit.signal, exit.out_of_memory), (Some(3), None, false));
    assert!(exit.reason.contains('3'), "{}", exit.reason);
    let asked = |line: &String| line == "conformance app was asked to exit";
    assert!(exit.log_tail.iter().any(asked), "{:?}", exit.log_tail);
    let age = jiff::Timestamp::now().as_second() - exit.at.as_second();
    assert!((0..60).contains(&age), "it ended {age} seconds ago");
    assert_eq!(judge.status(&spec.id).await.restarts, 1);
    // What is asked to end is no such end.
    judge.engine().scale(&spec.id, 0).await.unwrap();
    judge.until_ready(&spec.id, 0).await;
    assert_eq!(judge.status(&spec.id).await.restarts, 1);
}

/// Who took too much memory is told so.
pub async fn a_memory_kill_is_told_as_one<H: Harness>(judge: Arc<Judge<H>>) {
    let mut spec = judge.spec("glutton");
    let memory = Some("32Mi".parse().unwrap());
    spec.limits = Some(ResourceSet { memory, ..ResourceSet::default() });
    judge.deploy(&spec).await;
    let before = judge.first_replica(&spec.id);
    assert!(judge.try_call(&spec.id, "/memory/256").await.is_err());
    judge.until_replaced(&spec.id, &before).await;
    let exit = judge.last_exit(&spec.id).await;
    assert!(exit.out_of_memory && exit.reason.contains("memory"), "{exit:?}");
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
}

/// What ends at once again and again is started more and more rarely, and the status says when.
pub async fn a_crash_loop_backs_off_and_says_so<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = with_environment(judge.spec("looper"), &[("exit_at_start", "7")]);
    engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    judge
        .until("a start is held back", || async {
            let status = judge.status(&spec.id).await;
            status
                .trouble
                .is_some_and(|trouble| trouble.failures >= 4 && trouble.next_start.is_some())
        })
        .await;
    let status = judge.status(&spec.id).await;
    assert!(status.restarts >= 4, "{}", status.restarts);
    assert_eq!(status.last_exit.and_then(|exit| exit.code), Some(7));
    let message = status.message.expect("it says what is wrong");
    assert!(message.contains('7') && message.contains("times"), "{message}");
    // A corrected spec does not wait for what was held back.
    let fixed = judge.spec("looper");
    judge.deploy(&fixed).await;
    judge
        .until("the trouble is over", || async {
            let status = judge.status(&spec.id).await;
            status.trouble.is_none() && status.message.is_none()
        })
        .await;
}

/// A function that does nothing cannot fail: that is no sign that it is well.
pub async fn a_function_that_rests_between_two_crashes_still_says_so<H: Harness>(
    judge: Arc<Judge<H>>,
) {
    if !judge.can_freeze() {
        return;
    }
    let spec = judge.spec("brittle");
    judge.deploy(&spec).await;
    for _ in 0..2 {
        let before = judge.first_replica(&spec.id);
        assert!(judge.try_call(&spec.id, "/exit/4").await.is_err());
        judge.until_replaced(&spec.id, &before).await;
    }
    judge.frozen(&spec.id).await;
    for rests in [true, false] {
        let status = judge.status(&spec.id).await;
        assert_eq!(status.trouble.map(|trouble| trouble.failures), Some(2), "rests: {rests}");
        let message = status.message.expect("it says what is wrong");
        assert!(message.contains('4') && message.contains("2 times"), "{message}");
        assert_eq!(judge.body(&spec.id, "/").await, "hello");
    }
}

/// Each replica is told with what it does and uses.
pub async fn replicas_are_told_one_by_one<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = judge.spec("counted");
    let unknown = engine.replicas(&spec.id).await.unwrap_err();
    assert!(matches!(unknown, EngineError::UnknownFunction(_)), "{unknown}");
    let begin = jiff::Timestamp::now();
    let revision = judge.deploy(&spec).await;
    engine.scale(&spec.id, 2).await.unwrap();
    judge.until_ready(&spec.id, 2).await;
    let replicas = engine.replicas(&spec.id).await.unwrap();
    let mut ready: Vec<_> = engine.endpoints().borrow()[&spec.id]
        .ready
        .iter()
        .map(|endpoint| (endpoint.replica.clone(), Some(endpoint.address)))
        .collect();
    let mut told: Vec<_> =
        replicas.iter().map(|replica| (replica.id.clone(), replica.address)).collect();
    ready.sort();
    told.sort();
    assert_eq!(told, ready);
    for replica in &replicas {
        assert_eq!((replica.state, replica.revision), (ReplicaState::Ready, revision));
        // Engines may keep whole seconds.
        assert!(replica.started_at.as_second() >= begin.as_second(), "{replica:?}");
        if judge.harness.measures_usage() {
            assert!(replica.usage.is_some_and(|usage| usage.memory_bytes > 0), "{replica:?}");
        }
    }
    if engine.capabilities().freeze {
        judge.until("it is frozen", || async { engine.freeze(&spec.id).await.unwrap() }).await;
        let replicas = engine.replicas(&spec.id).await.unwrap();
        assert!(replicas.iter().all(|replica| replica.state == ReplicaState::Frozen));
    }
    engine.scale(&spec.id, 0).await.unwrap();
    judge
        .until("none is left", || async { engine.replicas(&spec.id).await.unwrap().is_empty() })
        .await;
}

/// A replica whose health check fails makes room for another one.
pub async fn a_replica_that_hangs_is_replaced<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = annotated(
        judge.spec("hanging"),
        &[(annotations::HEALTH_PERIOD, "1"), (annotations::HEALTH_FAILURES, "2")],
    );
    judge.deploy(&spec).await;
    let before = judge.first_replica(&spec.id);
    judge.body(&spec.id, "/sick/500").await;
    judge.until_replaced(&spec.id, &before).await;
    let exit = judge.last_exit(&spec.id).await;
    assert_eq!(exit.replica, before);
    assert!(exit.reason.contains("500"), "{}", exit.reason);
    assert_eq!(judge.body(&spec.id, "/").await, "hello");
    assert_eq!(judge.status(&spec.id).await.restarts, 1);
}

/// The path for readiness decides who gets requests, whatever the one for health says.
pub async fn readiness_waits_for_the_path_that_was_asked_for<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = annotated(judge.spec("picky"), &[(annotations::READY_PATH, "/env/warm")]);
    let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    let soon = Duration::from_millis(500);
    let early = engine.wait_ready(&spec.id, revision, soon).await.unwrap_err();
    assert!(matches!(early, EngineError::NotReady { .. }), "{early}");
    let warm = with_environment(spec, &[("warm", "yes")]);
    let revision = engine.apply(warm.clone(), Wake::Keep).await.unwrap();
    engine.wait_ready(&warm.id, revision, PATIENCE).await.unwrap();
}

/// Readiness is no matter of the start alone, where a function says how to ask for it.
pub async fn a_replica_that_is_not_ready_any_more_gets_no_requests_until_it_is<H: Harness>(
    judge: Arc<Judge<H>>,
) {
    let engine = judge.engine();
    let spec = annotated(
        with_environment(judge.spec("moody"), &[("lock_file", "here")]),
        &[
            (annotations::READY_PATH, "/read/tmp/.lock"),
            (annotations::READY_PERIOD, "1"),
            (annotations::READY_FAILURES, "2"),
        ],
    );
    judge.deploy(&spec).await;
    let before = judge.first_replica(&spec.id);
    let address = engine.endpoints().borrow()[&spec.id].ready[0].address;
    judge.body(&spec.id, "/remove/tmp/.lock").await;
    judge.until_ready(&spec.id, 0).await;
    let told = engine.replicas(&spec.id).await.unwrap();
    assert_eq!((told.len(), told[0].state), (1, ReplicaState::Unready));
    let message = judge.status(&spec.id).await.message.expect("it says what is wrong");
    assert!(message.contains("/read/tmp/.lock"), "{message}");
    // Ready again, it is the same one: nothing was replaced.
    assert_eq!(Judge::<H>::request(address, "/write/tmp/.lock").await.unwrap().status, 200);
    judge.until_ready(&spec.id, 1).await;
    assert_eq!(judge.first_replica(&spec.id), before);
    assert_eq!(judge.body(&spec.id, "/").await, "hello");
    let status = judge.status(&spec.id).await;
    assert_eq!((status.restarts, status.message), (0, None));
}

/// The watchdog's lock file takes the place of HTTP where a function says so.
pub async fn a_lock_file_tells_readiness_and_health<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let locked = annotated(
        with_environment(judge.spec("locked"), &[("health", "500")]),
        &[
            (annotations::PROBE, "lock"),
            (annotations::HEALTH_PERIOD, "1"),
            (annotations::HEALTH_FAILURES, "1"),
        ],
    );
    let without = locked.clone();
    let revision = engine.apply(without.clone(), Wake::Keep).await.unwrap();
    let soon = Duration::from_millis(500);
    assert!(engine.wait_ready(&without.id, revision, soon).await.is_err());
    let locked = with_environment(locked, &[("lock_file", "here")]);
    judge.deploy(&locked).await;
    let before = judge.first_replica(&locked.id);
    judge.body(&locked.id, "/remove/tmp/.lock").await;
    judge.until_replaced(&locked.id, &before).await;
    let reason = judge.last_exit(&locked.id).await.reason;
    assert!(reason.contains("lock"), "{reason}");
}

/// An engine tells at least what it is.
pub async fn an_engine_tells_what_it_found<H: Harness>(judge: Arc<Judge<H>>) {
    judge.deploy(&judge.spec("known")).await;
    let status = judge.engine().status();
    assert!(!status.facts.is_empty());
    for fact in &status.facts {
        assert!(!fact.subject.is_empty() && !fact.found.is_empty(), "{fact:?}");
        assert!(fact.degraded.as_ref().is_none_or(|why| !why.is_empty()), "{fact:?}");
    }
}
