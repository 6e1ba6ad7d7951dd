//! The loop over an engine that runs nothing: what it is asked, and what it is not.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "support/still_engine.rs"]
mod still_engine;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use updraft_engine::Availability;
use updraft_invoke::{InvokeOptions, Invoker};
use updraft_model::labels;
use updraft_scaler::{Alert, Scaler, ScalerOptions, ScalerParts};

use still_engine::StillEngine;

const TICK: Duration = Duration::from_millis(20);

fn start(engine: &Arc<StillEngine>, options: ScalerOptions) -> Arc<Scaler> {
    let invoker = Invoker::new(engine.clone(), InvokeOptions::new("test"));
    let backlog = Arc::new(|_: &_| 0);
    Scaler::start(ScalerParts { engine: engine.clone(), invoker, backlog, options })
}

fn options() -> ScalerOptions {
    ScalerOptions {
        tick: TICK,
        freeze_after: Some(Duration::from_millis(100)),
        zero_after: Duration::from_millis(200),
        ..ScalerOptions::default()
    }
}

/// What the metrics say.
fn text(scaler: &Scaler) -> String {
    let mut registry = Registry::default();
    scaler.register_metrics(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn thousands_of_sleepers_cost_the_engine_no_question() {
    let engine = StillEngine::new(true);
    let names = |count: u32| (0..count).map(|number| format!("sleeper-{number}"));
    engine.publish(names(3_000), &[(labels::SCALE_ZERO, "true")], &Availability::Asleep);
    let scaler = start(&engine, options());
    until("all are seen", || text(&scaler).contains("updraft_functions{state=\"asleep\"} 3000"))
        .await;
    // One more look than the one that saw them.
    tokio::time::sleep(TICK * 3).await;
    assert_eq!(engine.asked.load(Ordering::Relaxed), 0);
    assert_eq!(*engine.scaled.lock().unwrap(), []);
    // What is gone is forgotten.
    engine.remove_all();
    until("all are forgotten", || !text(&scaler).contains("sleeper-")).await;
    scaler.shutdown().await;
}

#[tokio::test]
async fn what_cannot_freeze_is_not_asked_at_every_look() {
    let engine = StillEngine::new(true);
    engine.publish(["awake".to_owned()].into_iter(), &[], &Availability::Ready);
    let scaler = start(&engine, options());
    until("it is asked", || engine.freezes.load(Ordering::Relaxed) > 0).await;
    let asked = engine.asked.load(Ordering::Relaxed);
    until("ten looks later", || engine.asked.load(Ordering::Relaxed) > asked + 10).await;
    assert_eq!(engine.freezes.load(Ordering::Relaxed), 1);
    scaler.shutdown().await;

    let engine = StillEngine::new(false);
    engine.publish(["awake".to_owned()].into_iter(), &[], &Availability::Ready);
    let scaler = start(&engine, options());
    until("ten looks", || engine.asked.load(Ordering::Relaxed) > 20).await;
    assert_eq!(engine.freezes.load(Ordering::Relaxed), 0);
    scaler.shutdown().await;
}

#[tokio::test]
async fn one_function_that_cannot_be_scaled_does_not_hold_up_the_others() {
    let engine = StillEngine::new(false);
    let zero = [(labels::SCALE_ZERO, "true")];
    let names = ["broken", "idle"].map(str::to_owned);
    engine.publish(names.into_iter(), &zero, &Availability::Ready);
    let scaler = start(&engine, options());
    until("one stops", || *engine.scaled.lock().unwrap() == [("idle".to_owned(), 0)]).await;
    let line =
        "updraft_scaler_decisions_total{function_name=\"idle.openfaas-fn\",decision=\"stop\"} 1";
    until("it is counted", || text(&scaler).contains(line)).await;
    assert!(!text(&scaler).contains("broken.openfaas-fn\",decision"));
    scaler.shutdown().await;
}

#[tokio::test]
async fn an_alert_scales_whom_it_names_and_collects_what_fails() {
    let engine = StillEngine::new(false);
    let labels = [(labels::SCALE_MAX, "10"), (labels::SCALE_FACTOR, "25")];
    let names = ["alarmed", "calm", "broken", "broken-too"].map(str::to_owned);
    engine.publish(names.into_iter(), &labels, &Availability::Ready);
    let scaler = start(&engine, ScalerOptions { follow_load: false, ..options() });
    let alert = |status: &str, functions: &[&str]| {
        let notices: Vec<String> = functions
            .iter()
            .map(|name| format!(r#"{{"status":"{status}","labels":{{"function_name":"{name}"}}}}"#))
            .collect();
        Alert::parse(format!(r#"{{"alerts":[{}]}}"#, notices.join(",")).as_bytes()).unwrap()
    };
    let outcome = scaler
        .alert(alert(
            "firing",
            &["alarmed.openfaas-fn", "broken", "nobody", ".", "Not A Name", "broken-too"],
        ))
        .await;
    assert_eq!((outcome.scaled, outcome.errors.len()), (1, 2));
    assert!(outcome.errors[0].contains("broken.openfaas-fn"), "{:?}", outcome.errors);
    assert_eq!(*engine.scaled.lock().unwrap(), [("alarmed".to_owned(), 4)]);
    // What has its minimum already is not touched.
    let outcome = scaler.alert(alert("resolved", &["alarmed", "calm"])).await;
    assert_eq!((outcome.scaled, outcome.errors.len()), (1, 0));
    assert_eq!(engine.scaled.lock().unwrap().last(), Some(&("alarmed".to_owned(), 1)));
    scaler.shutdown().await;
}

#[tokio::test]
async fn a_scaler_that_is_shut_down_does_nothing_any_more() {
    let engine = StillEngine::new(false);
    engine.publish(["awake".to_owned()].into_iter(), &[], &Availability::Ready);
    let scaler = start(&engine, options());
    until("it looks", || engine.asked.load(Ordering::Relaxed) > 2).await;
    scaler.shutdown().await;
    let asked = engine.asked.load(Ordering::Relaxed);
    tokio::time::sleep(TICK * 5).await;
    assert_eq!(engine.asked.load(Ordering::Relaxed), asked);
}
