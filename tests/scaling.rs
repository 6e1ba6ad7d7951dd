//! Replicas follow load on a real engine: up and down as OpenFaaS's conformance suite asks, one
//! size left alone, idle functions frozen and stopped, and woken without a lost call.

use std::future::Future;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use updraft_tests::images::{Recipe, alpine};
use updraft_tests::{Answer, Cloud, eventually};

const IMAGE: &str = "functions/alpine:latest";

/// How long the suite waits for a number of replicas.
const SCALE_LIMIT: Duration = Duration::from_mins(1);

/// A cloud whose configuration says this.
fn cloud(configuration: &str) -> Cloud {
    let mut file = tempfile::NamedTempFile::new().expect("a file can be made");
    file.write_all(configuration.as_bytes()).expect("a file can be written");
    let path = file.path().to_str().expect("the path is text");
    Cloud::start_with_images(&[alpine(&[IMAGE])], &["--config", path])
}

async fn deploy(cloud: &Cloud, name: &str, process: &str, labels: Value, annotations: Value) {
    let deployment = json!({
        "service": name, "image": IMAGE, "envProcess": process,
        "labels": labels, "annotations": annotations,
    });
    let answer = cloud.openfaas("POST", "/system/functions", &deployment.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let what = format!("{name} is available");
    eventually(&what, SCALE_LIMIT, async || {
        (number(cloud, name, "availableReplicas").await > 0).then_some(())
    })
    .await;
}

/// A number of a function's status; what is left out is 0.
async fn number(cloud: &Cloud, name: &str, field: &str) -> u64 {
    let answer = cloud.openfaas("GET", &format!("/system/function/{name}"), "").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json().get(field).and_then(Value::as_u64).unwrap_or(0)
}

async fn replicas(cloud: &Cloud, name: &str, wanted: impl Fn(u64) -> bool) -> u64 {
    let what = format!("{name} has the replicas it should");
    eventually(&what, SCALE_LIMIT, async || {
        let replicas = number(cloud, name, "replicas").await;
        wanted(replicas).then_some(replicas)
    })
    .await
}

async fn call(cloud: &Cloud, name: &str) -> Answer {
    cloud.send("POST", "127.0.0.1", &format!("/function/{name}"), &[], "hello").await
}

/// Calls ten times a second, each call on a connection of its own, until `end` is there.
async fn under_load<T>(cloud: &Cloud, names: &[&str], end: impl Future<Output = T>) -> T {
    let load = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            for name in names {
                assert_eq!(call(cloud, name).await.status, 200);
            }
        }
    };
    tokio::select! {
        end = end => end,
        () = load => unreachable!("the load goes on"),
    }
}

/// The value of a series, named with its labels.
async fn metric(cloud: &Cloud, series: &str) -> Option<f64> {
    let answer = cloud.openfaas("GET", "/metrics", "").await;
    assert_eq!(answer.status, 200);
    let line = answer.body.lines().find_map(|line| line.strip_prefix(series));
    line.map(|value| value.trim().parse().expect("a number"))
}

/// The function as `updraft list --json` shows it.
fn list(cloud: &Cloud, name: &str) -> Value {
    let functions: Value = serde_json::from_str(&cloud.run_ok(&["list", "--json"])).expect("JSON");
    let all = functions.as_array().expect("an array");
    all.iter().find(|function| function["name"] == name).expect("it is listed").clone()
}

#[tokio::test]
async fn ten_calls_a_second_bring_a_second_replica_and_their_end_takes_it_away() {
    let cloud = cloud("");
    let two = json!({"com.openfaas.scale.min": "1", "com.openfaas.scale.max": "2"});
    deploy(&cloud, "test-throughput-scaling", "env", two, json!({})).await;
    let fixed = json!({"com.openfaas.scale.min": "2", "com.openfaas.scale.max": "2"});
    deploy(&cloud, "test-scaling-disabled", "env", fixed, json!({})).await;

    let both = ["test-throughput-scaling", "test-scaling-disabled"];
    let up = replicas(&cloud, both[0], |replicas| replicas >= 2);
    assert_eq!(under_load(&cloud, &both, up).await, 2);
    replicas(&cloud, both[0], |replicas| replicas == 1).await;
    assert_eq!(number(&cloud, both[1], "replicas").await, 2);

    // Each decision is told, and why; nothing was decided about the other one.
    let log = cloud.server_log();
    assert!(log.contains("test-throughput-scaling.openfaas-fn 1 => 2: rps "), "{log}");
    assert!(log.contains("test-throughput-scaling.openfaas-fn 2 => 1: "), "{log}");
    assert!(!log.contains("test-scaling-disabled.openfaas-fn 2 =>"), "{log}");
    for decision in ["up", "down"] {
        let series = format!(
            "updraft_scaler_decisions_total{{function_name=\"{}.openfaas-fn\",decision=\"{decision}\"}}",
            both[0]
        );
        assert_eq!(metric(&cloud, &series).await, Some(1.0), "{series}");
    }
}

/// A program that keeps a processor busy for a moment.
const BUSY: &str = "#!/bin/sh\ni=0\nwhile [ $i -lt 60000 ]; do i=$((i + 1)); done\necho done\n";

/// Processor time counts where the label says so, whatever the number of calls.
#[tokio::test]
async fn a_busy_processor_brings_a_second_replica_and_a_lazy_one_with_more_calls_does_not() {
    let image = Recipe { scripts: &[("home/app/busy", BUSY)], ..alpine(&[IMAGE]) };
    let cloud = Cloud::start_with_images(&[image], &[]);
    let by_cpu = json!({
        "com.openfaas.scale.type": "cpu", "com.openfaas.scale.target": "100",
        "com.openfaas.scale.max": "2",
    });
    deploy(&cloud, "busy", "./busy", by_cpu.clone(), json!({})).await;
    let lazy = json!({
        "com.openfaas.scale.type": "cpu", "com.openfaas.scale.target": "4000",
        "com.openfaas.scale.max": "2",
    });
    deploy(&cloud, "lazy", "cat", lazy, json!({})).await;
    let up = replicas(&cloud, "busy", |replicas| replicas == 2);
    under_load(&cloud, &["lazy", "lazy", "busy"], up).await;
    assert_eq!(number(&cloud, "lazy", "replicas").await, 1);
    let shown = list(&cloud, "busy");
    assert_eq!(shown["scaling"]["targets"][0]["mode"], "cpu", "{shown}");
    assert!(shown["scaling"]["targets"][0]["measured"].as_f64().unwrap() > 90.0, "{shown}");
    replicas(&cloud, "busy", |replicas| replicas == 1).await;
    let log = cloud.server_log();
    assert!(log.contains("busy.openfaas-fn 1 => 2: cpu "), "{log}");
}

/// What waits in the queue counts, before any of it is under way.
#[tokio::test]
async fn calls_that_wait_in_the_queue_bring_replicas_and_their_end_takes_them_away() {
    let cloud = cloud("");
    let by_backlog = json!({
        "com.openfaas.scale.type": "queue", "com.openfaas.scale.target": "4",
        "com.openfaas.scale.target-proportion": "1", "com.openfaas.scale.max": "3",
    });
    let one_at_once = json!({"updraft.concurrency": "1"});
    deploy(&cloud, "worker", "sleep 2", by_backlog, one_at_once).await;
    for _ in 0..30 {
        let answer = cloud.send("POST", "127.0.0.1", "/async-function/worker", &[], "job").await;
        assert_eq!(answer.status, 202, "{}", answer.body);
    }
    replicas(&cloud, "worker", |replicas| replicas == 3).await;
    let shown = list(&cloud, "worker");
    assert_eq!(shown["scaling"]["max"], 3, "{shown}");
    assert_eq!(shown["scaling"]["targets"][0]["mode"], "queue", "{shown}");
    let last = shown["scaling"]["last"]["text"].as_str().unwrap();
    assert!(last.contains("=> 3: queue ") && last.ends_with("at most 3"), "{shown}");
    let wide = cloud.run_ok(&["list", "--wide"]);
    for part in ["LAST DECISION", "worker", "queue ", " of 4", last] {
        assert!(wide.contains(part), "{part} in\n{wide}");
    }
    let what = "the queue is empty and one replica is left";
    eventually(what, 2 * SCALE_LIMIT, async || {
        (number(&cloud, "worker", "replicas").await == 1).then_some(())
    })
    .await;
    let done = "queue_worker_messages_processed_total";
    let metrics = cloud.openfaas("GET", "/metrics", "").await.body;
    let processed: f64 = metrics
        .lines()
        .filter(|line| line.starts_with(done))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert!(processed >= 30.0, "none was lost to the change: {processed}");
}

#[tokio::test]
async fn an_idle_function_stops_and_no_call_is_lost_to_that() {
    let cloud = cloud("[scaler]\ntick = '100ms'\nfreeze_after = '300ms'");
    let zero = json!({"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "1s"});
    deploy(&cloud, "sleeper", "cat", zero, json!({})).await;
    // Calls that come while it freezes, stops or has just done so, each a little later than the
    // one before.
    for round in 0..20 {
        let answer = call(&cloud, "sleeper").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"), "round {round}");
        // The pause is what is tested, it waits for nothing.
        let pause = Duration::from_millis(250 + round % 3 * 400 + round * 15);
        tokio::time::sleep(pause).await;
    }
    replicas(&cloud, "sleeper", |replicas| replicas == 0).await;
    let log = cloud.server_log();
    assert!(log.contains("sleeper.openfaas-fn 1 => 0: 1s without a call"), "{log}");
    assert_eq!(call(&cloud, "sleeper").await.body, "hello");
    assert_eq!(number(&cloud, "sleeper", "replicas").await, 1);
}

#[tokio::test]
async fn a_call_longer_than_the_idle_time_is_not_cut() {
    let cloud = cloud("[scaler]\ntick = '100ms'\nfreeze_after = '200ms'");
    let zero = json!({"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "1s"});
    deploy(&cloud, "slow", "sleep 4", zero, json!({})).await;
    let begun = Instant::now();
    let answer = call(&cloud, "slow").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(begun.elapsed() >= Duration::from_secs(4));
    replicas(&cloud, "slow", |replicas| replicas == 0).await;
}

#[tokio::test]
async fn what_never_stops_freezes_and_a_call_thaws_it() {
    let cloud = cloud("[scaler]\ntick = '100ms'\nfreeze_after = '500ms'");
    deploy(&cloud, "resting", "cat", json!({}), json!({})).await;
    assert_eq!(call(&cloud, "resting").await.status, 200);
    let state = |state: &str| {
        format!("updraft_function_state{{function_name=\"resting.openfaas-fn\",state=\"{state}\"}}")
    };
    let frozen = async || metric(&cloud, &state("frozen")).await;
    eventually("it is frozen", SCALE_LIMIT, frozen).await;
    // It still counts as one that runs.
    assert_eq!(number(&cloud, "resting", "replicas").await, 1);
    let count = "gateway_service_count{function_name=\"resting.openfaas-fn\"}";
    assert_eq!(metric(&cloud, count).await, Some(1.0));
    assert_eq!(call(&cloud, "resting").await.body, "hello");
    assert!(cloud.server_log().contains("resting.openfaas-fn freezes: "));
}

#[tokio::test]
async fn a_function_is_kept_warm_within_its_window() {
    let cloud = cloud("[scaler]\ntick = '100ms'\nfreeze_after = '200ms'");
    let zero = json!({"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "1s"});
    // A window that is always open, and one that opens on the 30th of February.
    let warm = json!({"updraft.warm": "* * * * * for 2m = 2", "timezone": "Europe/Berlin"});
    deploy(&cloud, "warm", "cat", zero.clone(), warm).await;
    deploy(&cloud, "cold", "cat", zero, json!({"updraft.warm": "0 0 30 2 * for 1h = 2"})).await;
    replicas(&cloud, "warm", |replicas| replicas == 2).await;
    replicas(&cloud, "cold", |replicas| replicas == 0).await;
    // The other one has rested meanwhile, and this one was asked to as little as it was to stop.
    assert_eq!(number(&cloud, "warm", "replicas").await, 2);
    let log = cloud.server_log();
    assert!(log.contains("warm.openfaas-fn 1 => 2: warm window"), "{log}");
    assert!(!log.contains("warm.openfaas-fn freezes"), "{log}");
}

#[tokio::test]
async fn an_alert_raises_the_replicas_and_its_end_takes_them_back() {
    let cloud = cloud("[scaler]\nfollow_load = false");
    let four = json!({"com.openfaas.scale.max": "4", "com.openfaas.scale.factor": "50"});
    deploy(&cloud, "alarmed", "cat", four, json!({})).await;
    let alert = async |status: &str| {
        let body = json!({
            "receiver": "scale-up", "status": status,
            "alerts": [
                {"status": status, "labels": {
                    "alertname": "APIHighInvocationRate", "function_name": "alarmed.openfaas-fn",
                }},
                {"status": status, "labels": {"function_name": "nobody"}},
            ],
        });
        let answer = cloud.openfaas("POST", "/system/alert", &body.to_string()).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
        number(&cloud, "alarmed", "replicas").await
    };
    assert_eq!(alert("firing").await, 3);
    assert_eq!(alert("firing").await, 4);
    assert_eq!(alert("firing").await, 4);
    assert_eq!(alert("resolved").await, 1);
    let broken = cloud.openfaas("POST", "/system/alert", "nonsense").await;
    assert_eq!(broken.status, 400);
}

#[tokio::test]
async fn after_a_restart_nothing_stops_before_it_was_idle_for_its_whole_time() {
    let mut cloud = cloud("");
    let zero = json!({"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "4s"});
    deploy(&cloud, "survivor", "cat", zero, json!({})).await;
    cloud.kill();
    cloud.resume();
    let resumed = Instant::now();
    assert_eq!(number(&cloud, "survivor", "replicas").await, 1);
    replicas(&cloud, "survivor", |replicas| replicas == 0).await;
    assert!(resumed.elapsed() >= Duration::from_secs(3), "{:?}", resumed.elapsed());
    assert_eq!(call(&cloud, "survivor").await.status, 200);
}
