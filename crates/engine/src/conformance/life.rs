//! Claims about functions: how they come, change, sleep, fail and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use updraft_model::{FunctionId, labels};

use super::{Harness, Judge, PATIENCE, with_environment};
use crate::{Availability, EngineError, Expect, Fault, LogQuery, Revision, Wake};

/// A function goes through its whole life.
pub async fn a_function_is_created_listed_described_and_removed<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let mut spec = judge.spec("first");
    spec.labels.insert("team".into(), "blue".into());
    spec.annotations.insert("note".into(), "with spaces\nand lines".into());
    assert!(engine.get(&spec.id).await.unwrap().is_none());
    let revision = judge.deploy(&spec).await;
    assert_eq!(judge.body(&spec.id, "/").await, "hello");

    let status = judge.status(&spec.id).await;
    assert_eq!((status.replicas, status.available_replicas), (1, 1));
    assert_eq!((status.revision, &status.message), (revision, &None));
    assert_eq!(status.spec.labels.get(labels::FUNCTION).map(String::as_str), Some("first"));
    assert_eq!(status.spec.labels.get("team").map(String::as_str), Some("blue"));
    assert_eq!(status.spec.annotations, spec.annotations);
    assert_eq!(status.spec.image, spec.image);
    assert!(status.spec.limits.is_none() && status.spec.environment.is_empty());

    judge.deploy(&judge.spec("another")).await;
    let listed = engine.list(&spec.id.namespace).await.unwrap();
    let names: Vec<_> = listed.iter().map(|status| status.spec.id.name.as_str()).collect();
    assert_eq!(names, ["another", "first"]);

    engine.remove(&spec.id).await.unwrap();
    assert!(!engine.endpoints().borrow().contains_key(&spec.id));
    assert!(engine.get(&spec.id).await.unwrap().is_none());
    assert_eq!(engine.list(&spec.id.namespace).await.unwrap().len(), 1);
}

/// A caller that decided on what it saw does not overwrite what came since.
pub async fn a_change_in_between_stops_a_conditional_update<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = judge.spec("contended");
    let apply_if = async |answer: &str, expect| {
        let spec = with_environment(spec.clone(), &[("GREETING", answer)]);
        engine.apply_if(spec, Wake::Keep, expect).await
    };
    let seen = async || Expect::as_seen(engine.get(&spec.id).await.unwrap().as_ref());
    let is_superseded = |result: Result<Revision, EngineError>| {
        assert!(matches!(result, Err(EngineError::Superseded(_))), "{result:?}");
    };

    let nothing = seen().await;
    assert_eq!(nothing, Expect::Nothing);
    apply_if("one", nothing).await.unwrap();
    is_superseded(apply_if("two", nothing).await);
    let first = seen().await;
    apply_if("two", first).await.unwrap();
    is_superseded(apply_if("three", first).await);
    assert_eq!(judge.status(&spec.id).await.spec.environment["GREETING"], "two");

    // A function of the same name and revision that was made anew is another one.
    engine.remove(&spec.id).await.unwrap();
    is_superseded(apply_if("three", first).await);
    assert!(engine.get(&spec.id).await.unwrap().is_none());
    apply_if("one", seen().await).await.unwrap();
    is_superseded(apply_if("three", first).await);
    apply_if("three", Expect::Anything).await.unwrap();
}

/// Calls on a function that is not there are the caller's fault and say so.
pub async fn what_does_not_exist_is_told<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let id = FunctionId::in_default("nobody".parse().unwrap());
    let is_unknown = |result: Result<(), EngineError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, EngineError::UnknownFunction(_)), "{error}");
        assert_eq!(error.fault(), Fault::Caller);
    };
    is_unknown(engine.remove(&id).await);
    is_unknown(engine.scale(&id, 1).await);
    is_unknown(engine.wait_ready(&id, Revision(1), PATIENCE).await);
    let elsewhere = judge.spec_in("nowhere", "f");
    let error = engine.apply(elsewhere.clone(), Wake::Keep).await.unwrap_err();
    assert!(matches!(error, EngineError::UnknownNamespace(_)), "{error}");
    let error = engine.list(&elsewhere.id.namespace).await.unwrap_err();
    assert!(matches!(error, EngineError::UnknownNamespace(_)), "{error}");
}

/// A wrong spec is refused and leaves nothing behind.
pub async fn a_spec_that_cannot_run_is_refused<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let mut forged = judge.spec("forged");
    forged.labels.insert(labels::FUNCTION.into(), "other".into());
    let wrong = with_environment(judge.spec("wrong"), &[("a=b", "c")]);
    for spec in [forged, wrong] {
        let id = spec.id.clone();
        let error = engine.apply(spec, Wake::Keep).await.unwrap_err();
        assert!(matches!(error, EngineError::InvalidSpec(_)), "{error}");
        assert!(engine.get(&id).await.unwrap().is_none());
    }
}

/// A release that is applied once more is no new revision and starts nothing: whoever deploys may
/// be interrupted and begin again.
pub async fn a_release_applied_again_changes_nothing<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = judge.spec("same");
    let revision = judge.deploy(&spec).await;
    let before = engine.endpoints().borrow()[&spec.id].ready[0].replica.clone();
    assert_eq!(engine.apply(spec.clone(), Wake::AtLeastMinimum).await.unwrap(), revision);
    engine.wait_ready(&spec.id, revision, PATIENCE).await.unwrap();
    let after = engine.endpoints().borrow()[&spec.id].ready[0].replica.clone();
    assert_eq!(before, after);
}

/// An update by hand replaces the replicas, also by the same.
pub async fn an_update_rolls_even_when_nothing_has_changed<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = judge.spec("rolled");
    let first = judge.deploy(&spec).await;
    let before = judge.engine().endpoints().borrow()[&spec.id].ready[0].replica.clone();
    let second = judge.deploy(&spec).await;
    assert!(second > first);
    let after = judge.engine().endpoints().borrow()[&spec.id].ready[0].replica.clone();
    assert_ne!(before, after);
    judge.engine().scale(&spec.id, 0).await.unwrap();
    judge.until_ready(&spec.id, 0).await;
    judge.deploy(&spec).await;
    assert_eq!(judge.status(&spec.id).await.replicas, 0);
}

/// From the moment an update is ready no request gets an old answer.
pub async fn an_update_replaces_what_answers<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = with_environment(judge.spec("updated"), &[("answer", "old")]);
    let first = judge.deploy(&spec).await;
    assert_eq!(judge.body(&spec.id, "/").await, "old");
    let spec = with_environment(spec, &[("answer", "new")]);
    let second = judge.deploy(&spec).await;
    assert!(second > first);
    for _ in 0..10 {
        assert_eq!(judge.body(&spec.id, "/").await, "new");
    }
    let error = judge.engine().wait_ready(&spec.id, first, PATIENCE).await.unwrap_err();
    assert!(matches!(error, EngineError::Superseded(_)), "{error}");
}

fn not_ready(error: EngineError) -> (String, Vec<String>) {
    assert_eq!(error.fault(), Fault::Function, "{error}");
    match error {
        EngineError::NotReady { reason, log_tail, .. } => (reason, log_tail),
        other => panic!("expected `NotReady`, got: {other}"),
    }
}

/// A function that ends at once is told so, with what it wrote; its status says so too.
pub async fn a_first_revision_that_fails_is_told_with_its_last_lines<H: Harness>(
    judge: Arc<Judge<H>>,
) {
    let engine = judge.engine();
    let spec = with_environment(judge.spec("failing"), &[("exit_at_start", "7")]);
    let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    let error = engine.wait_ready(&spec.id, revision, PATIENCE).await.unwrap_err();
    let (reason, log_tail) = not_ready(error);
    assert!(reason.contains('7'), "the exit code is missing in `{reason}`");
    assert!(
        log_tail.iter().any(|line| line == "conformance app was asked to fail"),
        "{log_tail:?}"
    );
    judge
        .until("the status explains the failure", || async {
            let status = judge.status(&spec.id).await;
            status.available_replicas == 0
                && status.message.is_some_and(|message| message.contains('7'))
        })
        .await;
    judge
        .until("the table explains the failure", || async {
            let table = engine.endpoints().borrow().clone();
            matches!(table[&spec.id].availability, Availability::Failing(_))
        })
        .await;
}

/// An image that cannot be had is the function's fault and named.
pub async fn an_image_that_does_not_exist_is_told<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let mut spec = judge.spec("imageless");
    spec.image = judge.harness.missing_image();
    let outcome = match engine.apply(spec.clone(), Wake::Keep).await {
        Ok(revision) => engine.wait_ready(&spec.id, revision, PATIENCE).await,
        Err(error) => Err(error),
    };
    let error = outcome.unwrap_err();
    assert_eq!(error.fault(), Fault::Function, "{error}");
    assert!(error.to_string().contains(spec.image.name()), "{error}");
}

/// A function that runs and is not healthy is told with what its health check answered.
pub async fn a_function_that_never_gets_ready_is_told_why<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = with_environment(judge.spec("unhealthy"), &[("health", "404")]);
    let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    judge
        .until("the table explains the failure", || async {
            let table = engine.endpoints().borrow().clone();
            matches!(&table[&spec.id].availability, Availability::Failing(why) if why.contains("404"))
        })
        .await;
    let limit = Duration::from_millis(50);
    let (reason, _) = not_ready(engine.wait_ready(&spec.id, revision, limit).await.unwrap_err());
    assert!(reason.contains("404"), "{reason}");
}

/// While an update fails, and after it, the old revision answers.
pub async fn a_failing_update_leaves_the_old_revision_serving<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let good = with_environment(judge.spec("kept"), &[("answer", "good")]);
    let first = judge.deploy(&good).await;
    let bad = with_environment(good.clone(), &[("answer", "bad"), ("exit_at_start", "9")]);
    let second = engine.apply(bad, Wake::AtLeastMinimum).await.unwrap();
    assert_eq!(judge.body(&good.id, "/").await, "good");
    let error = engine.wait_ready(&good.id, second, PATIENCE).await.unwrap_err();
    let (reason, log_tail) = not_ready(error);
    assert!(reason.contains('9') && !log_tail.is_empty(), "{reason} {log_tail:?}");
    assert_eq!(judge.body(&good.id, "/").await, "good");
    let status = judge.status(&good.id).await;
    assert_eq!((status.revision, status.available_replicas), (first, 1));
    assert_eq!(status.spec.environment, good.environment);
    assert!(status.message.is_some(), "the status does not tell of the failed update");
}

/// After a failed update the next one works as ever, the failed spec itself included.
pub async fn a_fixed_update_after_a_failing_one_serves<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let good = with_environment(judge.spec("fixed"), &[("answer", "1")]);
    judge.deploy(&good).await;
    let bad = with_environment(good.clone(), &[("exit_at_start", "1")]);
    let failed = engine.apply(bad.clone(), Wake::Keep).await.unwrap();
    not_ready(engine.wait_ready(&good.id, failed, PATIENCE).await.unwrap_err());
    let again = engine.apply(bad, Wake::Keep).await.unwrap();
    assert!(again > failed, "a given-up revision is not tried again");
    let fixed = with_environment(good, &[("answer", "2")]);
    judge.deploy(&fixed).await;
    assert_eq!(judge.body(&fixed.id, "/").await, "2");
    assert_eq!(judge.status(&fixed.id).await.message, None);
}

/// Of several updates at once the newest serves in the end; the others are told.
pub async fn the_newest_of_many_updates_wins<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = with_environment(judge.spec("raced"), &[("answer", "0")]);
    judge.deploy(&spec).await;
    let mut revisions = Vec::new();
    for answer in ["1", "2", "3", "4"] {
        let spec = with_environment(spec.clone(), &[("answer", answer)]);
        revisions.push(engine.apply(spec, Wake::Keep).await.unwrap());
    }
    assert!(revisions.is_sorted());
    let newest = revisions.pop().unwrap();
    engine.wait_ready(&spec.id, newest, PATIENCE).await.unwrap();
    assert_eq!(judge.body(&spec.id, "/").await, "4");
    for older in revisions {
        let error = engine.wait_ready(&spec.id, older, PATIENCE).await.unwrap_err();
        assert!(matches!(error, EngineError::Superseded(_)), "{error}");
    }
    judge.until_ready(&spec.id, 1).await;
}

/// Replacing a function again and again costs no request.
pub async fn no_request_fails_while_a_function_is_replaced<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = with_environment(judge.spec("busy"), &[("answer", "0")]);
    judge.deploy(&spec).await;
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (judge, id, stop) = (Arc::clone(&judge), spec.id.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut answers = 0;
                while !stop.load(Ordering::Relaxed) {
                    let answer = judge.try_call(&id, "/slow/5").await;
                    assert_eq!(answer.map(|answer| answer.status), Ok(200));
                    answers += 1;
                }
                answers
            })
        })
        .collect();
    for answer in 1..=5 {
        let spec = with_environment(spec.clone(), &[("answer", &answer.to_string())]);
        judge.deploy(&spec).await;
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.expect("no request failed") > 0);
    }
}

/// A request that is under way when its replica is replaced gets its answer.
pub async fn an_open_request_ends_before_its_replica_goes<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = judge.spec("patient");
    judge.deploy(&spec).await;
    let replica = Arc::clone(&judge.engine().endpoints().borrow()[&spec.id].ready[0]);
    let open = tokio::spawn({
        let (judge, id) = (Arc::clone(&judge), spec.id.clone());
        async move { judge.try_call(&id, "/held").await }
    });
    judge.until("the request is under way", || async { replica.load.in_flight() == 1 }).await;
    judge.deploy(&with_environment(spec.clone(), &[("answer", "new")])).await;
    assert_eq!(judge.body(&spec.id, "/").await, "new");
    assert!(replica.load.lease().is_none(), "whoever holds an older table gets no lease either");
    Judge::<H>::request(replica.address, "/release").await.expect("it is still there");
    assert_eq!(open.await.unwrap().map(|answer| answer.body), Ok("released".to_owned()));
    judge.until_gone(&spec.id, &replica.replica).await;
}

/// What became of a request that asked for another protocol holds its replica as a request does.
pub async fn an_upgraded_connection_goes_on_while_its_function_is_replaced<H: Harness>(
    judge: Arc<Judge<H>>,
) {
    let spec = judge.spec("talkative");
    judge.deploy(&spec).await;
    let replica = Arc::clone(&judge.engine().endpoints().borrow()[&spec.id].ready[0]);
    let lease = replica.load.lease().expect("its door is open");
    let mut stream = TcpStream::connect(replica.address).await.unwrap();
    let request = "GET /upgrade HTTP/1.1\r\nHost: function\r\nConnection: Upgrade\r\n\
                   Upgrade: echo\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    for answer in ["one", "two"] {
        judge.deploy(&with_environment(spec.clone(), &[("answer", answer)])).await;
        assert_eq!(judge.body(&spec.id, "/").await, answer);
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut said = [0; 3];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(said, answer.as_bytes());
    }
    drop((stream, lease));
    judge.until_gone(&spec.id, &replica.replica).await;
}

/// The number of replicas follows what is asked for, and is told at once.
pub async fn scaling_starts_and_ends_replicas<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = judge.spec("scaled");
    judge.deploy(&spec).await;
    for replicas in [3, 1, 2, 0] {
        engine.scale(&spec.id, replicas).await.unwrap();
        assert_eq!(judge.status(&spec.id).await.replicas, replicas);
        judge.until_ready(&spec.id, replicas).await;
    }
    let table = engine.endpoints().borrow().clone();
    assert_eq!(table[&spec.id].availability, Availability::Asleep);
}

/// `com.openfaas.scale.min` sets the first number, and an update raises to it.
pub async fn the_minimum_label_decides_how_many_start<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let mut spec = judge.spec("minimum");
    spec.labels.insert(labels::SCALE_MIN.into(), "2".into());
    engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    assert_eq!(judge.status(&spec.id).await.replicas, 2);
    judge.until_ready(&spec.id, 2).await;
    engine.scale(&spec.id, 1).await.unwrap();
    spec.annotations.insert("changed".into(), "yes".into());
    judge.deploy(&spec).await;
    assert_eq!(judge.status(&spec.id).await.replicas, 2);
    engine.scale(&spec.id, 3).await.unwrap();
    spec.annotations.insert("changed".into(), "again".into());
    judge.deploy(&spec).await;
    assert_eq!(judge.status(&spec.id).await.replicas, 3);
}

async fn asleep<H: Harness>(judge: &Judge<H>, name: &str) -> updraft_model::FunctionSpec {
    let spec = with_environment(judge.spec(name), &[("answer", "old")]);
    judge.deploy(&spec).await;
    judge.engine().scale(&spec.id, 0).await.unwrap();
    judge.until_ready(&spec.id, 0).await;
    spec
}

/// An update of a sleeping function changes what wakes, not that it sleeps.
pub async fn a_sleeping_function_stays_asleep_when_it_is_updated<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = with_environment(asleep(&judge, "sleeper").await, &[("answer", "new")]);
    judge.deploy(&spec).await;
    assert_eq!(judge.status(&spec.id).await.replicas, 0);
    let table = engine.endpoints().borrow().clone();
    assert_eq!(table[&spec.id].availability, Availability::Asleep);
    engine.scale(&spec.id, 1).await.unwrap();
    assert_eq!(judge.body(&spec.id, "/").await, "new");
}

/// A deployment that must be proven starts a sleeping function.
pub async fn a_sleeping_function_wakes_to_prove_an_update<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = with_environment(asleep(&judge, "prover").await, &[("answer", "new")]);
    let revision = engine.apply(spec.clone(), Wake::AtLeastMinimum).await.unwrap();
    engine.wait_ready(&spec.id, revision, PATIENCE).await.unwrap();
    judge.until_ready(&spec.id, 1).await;
    assert_eq!(judge.body(&spec.id, "/").await, "new");
}

/// When the proof fails, the function sleeps on with its old revision.
pub async fn a_failed_proof_lets_a_sleeping_function_sleep_on<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let old = asleep(&judge, "dreamer").await;
    let bad = with_environment(old.clone(), &[("exit_at_start", "5")]);
    let revision = engine.apply(bad, Wake::AtLeastMinimum).await.unwrap();
    not_ready(engine.wait_ready(&old.id, revision, PATIENCE).await.unwrap_err());
    assert_eq!(judge.status(&old.id).await.replicas, 0);
    engine.scale(&old.id, 1).await.unwrap();
    assert_eq!(judge.body(&old.id, "/").await, "old");
}

/// Waking is scaling from zero; many callers that do it at once start it once.
pub async fn a_sleeping_function_wakes_when_it_is_asked_for<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = asleep(&judge, "waker").await;
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (judge, id) = (Arc::clone(&judge), spec.id.clone());
            tokio::spawn(async move {
                judge.engine().scale(&id, 1).await.unwrap();
                judge.body(&id, "/").await
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "old");
    }
    judge.until_ready(&spec.id, 1).await;
    let query =
        LogQuery { id: spec.id.clone(), instance: None, since: None, tail: None, follow: false };
    let lines: Vec<_> = judge.engine().logs(query).await.unwrap().collect().await;
    let starts = lines.iter().flatten().filter(|line| line.text == "conformance app starts");
    assert_eq!(starts.count(), 2, "once before it slept, and once for all that woke it");
}

/// A replica that ends by itself is replaced.
pub async fn a_crashed_replica_is_started_again<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = judge.spec("crashing");
    judge.deploy(&spec).await;
    let before = judge.engine().endpoints().borrow()[&spec.id].ready[0].replica.clone();
    assert!(judge.try_call(&spec.id, "/exit/3").await.is_err());
    judge
        .until("another replica is ready", || async {
            let table = judge.engine().endpoints().borrow().clone();
            table[&spec.id].ready.first().is_some_and(|endpoint| endpoint.replica != before)
        })
        .await;
    assert_eq!(judge.body(&spec.id, "/").await, "hello");
    assert_eq!(judge.status(&spec.id).await.replicas, 1);
}

/// Removing a function that is on its way leaves nothing.
pub async fn a_function_removed_while_it_starts_is_gone<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let spec = with_environment(judge.spec("hasty"), &[("start_delay_ms", "500")]);
    let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    let waiting = tokio::spawn({
        let (engine, id) = (Arc::clone(&engine), spec.id.clone());
        async move { engine.wait_ready(&id, revision, PATIENCE).await }
    });
    engine.remove(&spec.id).await.unwrap();
    assert!(engine.get(&spec.id).await.unwrap().is_none());
    assert!(!engine.endpoints().borrow().contains_key(&spec.id));
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, EngineError::UnknownFunction(_)), "{error}");
}

/// A name can be used again at once.
pub async fn a_removed_function_can_be_created_again<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = with_environment(judge.spec("phoenix"), &[("answer", "first")]);
    for answer in ["first", "second", "third"] {
        let spec = with_environment(spec.clone(), &[("answer", answer)]);
        judge.deploy(&spec).await;
        assert_eq!(judge.body(&spec.id, "/").await, answer);
        judge.engine().remove(&spec.id).await.unwrap();
    }
}
