//! Functions that sleep, start or fail when a request comes.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use support::{
    House, Replica, bounded, call, connect, endpoint, house, known, plain_house, request, spec,
    text, told, until,
};
use updraft_engine::{Availability, EngineError};
use updraft_model::labels;

fn waiting(house: &House) -> usize {
    let text = house.invoker.metrics_text();
    let line = text.lines().find(|line| line.starts_with("gateway_function_invocation_inflight"));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn five_hundred_callers_of_a_sleeper_wake_it_once() {
    let house = plain_house().await;
    let replica = Replica::http(|_| async { text("awake") }).await;
    let mut sleeper = spec("f");
    sleeper.labels.insert(labels::SCALE_MIN.to_owned(), "2".to_owned());
    house.engine.put(sleeper.clone(), vec![], Availability::Asleep);
    known(&house, "f").await;
    let mut calls = Vec::new();
    for _ in 0..500 {
        let mut sender = connect::<http_body_util::Empty<bytes::Bytes>>(house.address).await;
        let asked = request("localhost", "/function/f").body(http_body_util::Empty::new()).unwrap();
        calls.push(tokio::spawn(async move { sender.send_request(asked).await.unwrap().status() }));
    }
    until("all of them wait", || waiting(&house) == 500).await;
    until("the engine is asked", || house.engine.scale_calls() == 1).await;
    house.engine.put(sleeper.clone(), vec![], Availability::Starting);
    tokio::task::yield_now().await;
    house.engine.ready(sleeper.clone(), &[&endpoint("r", replica.address)]);
    for call in calls {
        assert_eq!(bounded("an answer", call).await.unwrap(), StatusCode::OK);
    }
    assert_eq!(*house.engine.scales.lock().unwrap(), [(sleeper.id, 2)]);
}

#[tokio::test]
async fn a_function_that_fell_asleep_again_is_woken_again() {
    let house = plain_house().await;
    let replica = Replica::http(|_| async { text("awake") }).await;
    let address = replica.address;
    house.engine.put(spec("f"), vec![], Availability::Asleep);
    known(&house, "f").await;
    house.engine.on_scale(move |engine, _, _| {
        engine.ready(spec("f"), &[&endpoint("r", address)]);
        Ok(())
    });
    for round in 1..=5 {
        assert_eq!(call(house.address).await.0, StatusCode::OK);
        assert_eq!(house.engine.scale_calls(), round);
        house.engine.put(spec("f"), vec![], Availability::Asleep);
        let asleep = || *house.invoker.find("f").unwrap().availability() == Availability::Asleep;
        until("the data plane knows", asleep).await;
    }
}

#[tokio::test]
async fn what_cannot_be_started_is_a_503_with_the_reason() {
    let house = house(|options| options.failing_patience = Duration::from_millis(50), |_| {}).await;
    house.engine.put(spec("f"), vec![], Availability::Asleep);
    known(&house, "f").await;
    house.engine.on_scale(|_, id, _| Err(EngineError::UnknownFunction(id.clone())));
    let check = |(status, headers, body): support::Answer, expected: &str| {
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(headers.contains_key("retry-after"));
        let reason = told(&body)["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(expected), "{reason}");
    };
    check(call(house.address).await, "does not exist");
    let failing = Availability::Failing("exit status 127".to_owned());
    house.engine.put(spec("f"), vec![], failing.clone());
    until("known", || *house.invoker.find("f").unwrap().availability() == failing).await;
    check(call(house.address).await, "exit status 127");
}

#[tokio::test]
async fn waiting_for_a_start_is_bounded_in_time_and_number() {
    let house = house(
        |options| {
            options.wake_limit = Duration::from_millis(300);
            options.waiters = 3;
        },
        |_| {},
    )
    .await;
    house.engine.put(spec("f"), vec![], Availability::Starting);
    known(&house, "f").await;
    let calls: Vec<_> = (0..3).map(|_| tokio::spawn(call(house.address))).collect();
    until("three wait", || waiting(&house) == 3).await;
    let (status, headers, body) = call(house.address).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(headers.contains_key("retry-after"));
    assert_eq!(told(&body)["function"], "f");
    for call in calls {
        let (status, _, body) = call.await.unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(told(&body)["reason"].as_str().unwrap().contains("300ms"), "{body:?}");
    }
    assert_eq!(house.engine.scale_calls(), 0);
}

#[tokio::test]
async fn a_function_removed_while_waited_for_is_a_404() {
    let house = Arc::new(plain_house().await);
    house.engine.put(spec("f"), vec![], Availability::Starting);
    known(&house, "f").await;
    let waiter = tokio::spawn(call(house.address));
    until("one waits", || waiting(&house) == 1).await;
    house.engine.remove(&spec("f").id);
    assert_eq!(waiter.await.unwrap().0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_caller_who_leaves_stops_waiting() {
    let house = plain_house().await;
    house.engine.put(spec("f"), vec![], Availability::Starting);
    known(&house, "f").await;
    let waiter = tokio::spawn(call(house.address));
    until("one waits", || waiting(&house) == 1).await;
    waiter.abort();
    until("nobody waits", || waiting(&house) == 0).await;
}
