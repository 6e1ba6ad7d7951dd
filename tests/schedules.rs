//! A function says when it wants to be called, and is called then, by the whole cloud.

use std::time::Duration;

use serde_json::{Value, json};
use updraft_tests::images::alpine;
use updraft_tests::{Cloud, eventually};

const IMAGE: &str = "functions/alpine:latest";

/// How long a second's schedule may take to show, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

async fn deploy(cloud: &Cloud, name: &str, schedule: &str) {
    let deployment = json!({
        "service": name, "image": IMAGE, "envProcess": "env",
        "labels": {"com.openfaas.scale.zero": "false"},
        "annotations": {"topic": "cron-function", "schedule": schedule, "timezone": "Europe/Berlin"},
    });
    let answer = cloud.openfaas("POST", "/system/functions", &deployment.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
}

/// What `updraft schedules` tells of a function's first schedule.
fn schedule(cloud: &Cloud, name: &str) -> Value {
    let all = cloud.json(&["schedules"]);
    let id = format!("{name}.openfaas-fn");
    let found =
        all.as_array().and_then(|all| all.iter().find(|one| one["function"] == id.as_str()));
    found.cloned().unwrap_or_default()
}

fn done(schedule: &Value) -> Vec<&Value> {
    let runs = schedule["runs"].as_array().map(Vec::as_slice).unwrap_or_default();
    runs.iter().filter(|run| run["state"] == "done" && run["status"] == 200).collect()
}

#[tokio::test]
async fn a_function_is_called_by_the_clock_across_a_restart() {
    let mut cloud = Cloud::start_with_images(&[alpine(&[IMAGE])], &[]);
    deploy(&cloud, "ticking", "@every 1s").await;
    deploy(&cloud, "confused", "every now and then").await;
    let first = eventually("two runs are done", PATIENCE, async || {
        let ticking = schedule(&cloud, "ticking");
        (done(&ticking).len() >= 2).then_some(ticking)
    })
    .await;
    assert_eq!(first["timezone"], "Europe/Berlin");
    assert!(first["next"].as_str() > first["runs"][0]["due"].as_str(), "{first}");
    let confused = schedule(&cloud, "confused");
    assert!(confused["problem"].is_string() && confused["next"].is_null(), "{confused}");

    // What the function got is what a connector sends.
    let call = done(&first)[0]["call"].as_str().expect("a call id").to_owned();
    let answer = cloud.json(&["calls", "result", &call]);
    let body = answer["body"].as_str().expect("a body");
    let body = String::from_utf8(
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).expect("base64"),
    )
    .expect("text");
    for line in
        ["Http_Method=POST", "Http_X_Topic=cron-function", "Http_X_Connector=cron-connector"]
    {
        assert!(body.lines().any(|found| found == line), "{line}: {body}");
    }

    cloud.kill();
    cloud.resume();
    let last = first["runs"][0]["due"].as_str().expect("a time").to_owned();
    let second = eventually("runs after the restart", PATIENCE, async || {
        let ticking = schedule(&cloud, "ticking");
        let newer = done(&ticking).iter().any(|run| run["due"].as_str() > Some(last.as_str()));
        newer.then_some(ticking)
    })
    .await;
    let runs = second["runs"].as_array().expect("runs");
    let mut dues: Vec<_> = runs.iter().filter_map(|run| run["due"].as_str()).collect();
    let count = dues.len();
    dues.dedup();
    assert_eq!(dues.len(), count, "{second}");
    let told = cloud.run_ok(&["schedules"]);
    assert!(told.contains("ticking") && told.contains("confused: `every now and then`"), "{told}");
}
