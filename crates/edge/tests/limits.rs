//! Functions that take only so many calls at once: who waits, for how long, and who is refused.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use support::{
    Answer, House, Replica, annotated, bounded, call, endpoint, get, house, known, metric,
    plain_house, spec, text, told, until,
};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;
use updraft_engine::Availability;
use updraft_model::annotations::{CONCURRENCY, QUEUE_LIMIT, TIMEOUT};

/// A replica that keeps each call until it is let go, and notes what came in which order.
struct Gated {
    replica: Replica,
    go: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    order: Arc<Mutex<Vec<String>>>,
}

impl Gated {
    async fn new() -> Self {
        let go = Arc::new(Semaphore::new(0));
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let order: Arc<Mutex<Vec<String>>> = Arc::default();
        let shared = (Arc::clone(&go), Arc::clone(&inside), Arc::clone(&most), Arc::clone(&order));
        let replica = Replica::http(move |request| {
            let (go, inside, most, order) = shared.clone();
            async move {
                order.lock().await.push(request.uri().path().to_owned());
                most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                go.acquire().await.unwrap().forget();
                inside.fetch_sub(1, Ordering::SeqCst);
                text("done")
            }
        })
        .await;
        Self { replica, go, inside, most, order }
    }

    fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }
}

fn waiting(house: &House) -> u64 {
    metric(house, "updraft_function_waiting")
}

fn start(house: &House, path: &str) -> JoinHandle<Answer> {
    let (address, path) = (house.address, format!("/function/f{path}"));
    tokio::spawn(async move { get(address, "127.0.0.1", &path).await })
}

#[tokio::test]
async fn calls_beyond_the_limit_wait_in_the_order_in_which_they_came() {
    let (house, gated) = (plain_house().await, Gated::new().await);
    let endpoint = endpoint("r", gated.replica.address);
    house.engine.ready(annotated("f", &[(CONCURRENCY, "2")]), &[&endpoint]);
    known(&house, "f").await;
    let mut calls = Vec::new();
    for index in 0..8 {
        calls.push(start(&house, &format!("/{index}")));
        let arrived = || metric(&house, "gateway_function_invocation_inflight") == index + 1;
        until("the call has come", arrived).await;
        until("it is inside or waits", || gated.inside() as u64 + waiting(&house) == index + 1)
            .await;
    }
    assert_eq!((gated.inside(), waiting(&house)), (2, 6));
    for left in (0..6).rev() {
        gated.go.add_permits(1);
        until("the next has come in", || waiting(&house) == left && gated.inside() == 2).await;
    }
    gated.go.add_permits(2);
    for call in calls {
        assert_eq!(call.await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(gated.most.load(Ordering::SeqCst), 2);
    let mut order = gated.order.lock().await.clone();
    order[..2].sort();
    assert_eq!(order, ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7"]);
    assert_eq!(endpoint.load.in_flight(), 0);
}

#[tokio::test]
async fn the_limit_holds_for_each_replica_and_a_new_one_takes_from_the_line() {
    let (house, one, two) = (plain_house().await, Gated::new().await, Gated::new().await);
    let first = endpoint("one", one.replica.address);
    // As an image with a watchdog would have it that refuses the rest.
    let mut limited = spec("f");
    limited.environment.insert("max_inflight".into(), "3".into());
    house.engine.ready(limited.clone(), &[&first]);
    known(&house, "f").await;
    let calls: Vec<_> = (0..8).map(|_| start(&house, "")).collect();
    until("three are inside, five wait", || one.inside() == 3 && waiting(&house) == 5).await;
    let second = endpoint("two", two.replica.address);
    house.engine.ready(limited, &[&first, &second]);
    until("three more are inside", || two.inside() == 3 && waiting(&house) == 2).await;
    one.go.add_permits(8);
    two.go.add_permits(8);
    for call in calls {
        assert_eq!(call.await.unwrap().0, StatusCode::OK);
    }
    for gated in [&one, &two] {
        assert_eq!(gated.most.load(Ordering::SeqCst), 3);
    }
}

#[tokio::test]
async fn a_full_line_is_a_429_that_says_when_to_come_again() {
    let (house, gated) = (plain_house().await, Gated::new().await);
    let endpoint = endpoint("r", gated.replica.address);
    house.engine.ready(annotated("f", &[(CONCURRENCY, "1"), (QUEUE_LIMIT, "2")]), &[&endpoint]);
    known(&house, "f").await;
    let mut calls: Vec<_> = (0..3).map(|_| start(&house, "")).collect();
    until("one is inside, two wait", || gated.inside() == 1 && waiting(&house) == 2).await;
    let (status, headers, body) = call(house.address).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(headers["retry-after"], "1");
    assert_eq!(headers["x-openfaas-internal"], "gateway");
    assert_eq!(told(&body)["function"], "f");
    // Somebody who leaves makes room, for those in the line and behind it.
    calls.remove(2).abort();
    calls.remove(1).abort();
    until("they have left", || waiting(&house) < 2).await;
    calls.push(start(&house, ""));
    until("it waits", || waiting(&house) >= 1).await;
    gated.go.add_permits(9);
    for call in calls {
        assert_eq!(call.await.unwrap().0, StatusCode::OK);
    }
    until("nobody is left", || endpoint.load.in_flight() == 0 && waiting(&house) == 0).await;
}

#[tokio::test]
async fn without_a_line_the_second_call_is_refused_at_once() {
    let (house, gated) = (plain_house().await, Gated::new().await);
    let endpoint = endpoint("r", gated.replica.address);
    house.engine.ready(annotated("f", &[(CONCURRENCY, "1"), (QUEUE_LIMIT, "0")]), &[&endpoint]);
    known(&house, "f").await;
    let first = start(&house, "");
    until("one is inside", || gated.inside() == 1).await;
    assert_eq!(call(house.address).await.0, StatusCode::TOO_MANY_REQUESTS);
    gated.go.add_permits(1);
    assert_eq!(first.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn waiting_counts_in_the_timeout_and_its_end_is_a_504() {
    let (house, gated) = (plain_house().await, Gated::new().await);
    let endpoint = endpoint("r", gated.replica.address);
    let limited = annotated("f", &[(CONCURRENCY, "1"), (TIMEOUT, "400ms")]);
    house.engine.ready(limited, &[&endpoint]);
    known(&house, "f").await;
    let first = start(&house, "");
    until("one is inside", || gated.inside() == 1).await;
    let began = std::time::Instant::now();
    let (second, third) = (start(&house, ""), start(&house, ""));
    until("two wait", || waiting(&house) == 2).await;
    // The first times out inside; the second comes in late and has only the rest of its time.
    let (status, _, body) = first.await.unwrap();
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    assert!(told(&body)["reason"].as_str().unwrap().contains("400ms"), "{body:?}");
    for call in [second, third] {
        let (status, _, body) = call.await.unwrap();
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
        assert!(told(&body)["reason"].as_str().unwrap().contains("400ms"), "{body:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    until("nobody is left", || endpoint.load.in_flight() == 0 && waiting(&house) == 0).await;
}

#[tokio::test]
async fn the_line_is_sent_away_when_the_function_is_removed() {
    let (house, gated) = (plain_house().await, Gated::new().await);
    let endpoint = endpoint("r", gated.replica.address);
    house.engine.ready(annotated("f", &[(CONCURRENCY, "1")]), &[&endpoint]);
    known(&house, "f").await;
    let first = start(&house, "");
    until("one is inside", || gated.inside() == 1).await;
    let second = start(&house, "");
    until("one waits", || waiting(&house) == 1).await;
    house.engine.remove(&spec("f").id);
    assert_eq!(second.await.unwrap().0, StatusCode::NOT_FOUND);
    gated.go.add_permits(1);
    assert_eq!(first.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn a_limit_that_is_lifted_lets_everybody_in_and_a_roll_out_keeps_the_line() {
    let (house, old, new) = (plain_house().await, Gated::new().await, Gated::new().await);
    let (old_endpoint, new_endpoint) =
        (endpoint("old", old.replica.address), endpoint("new", new.replica.address));
    let limited = annotated("f", &[(CONCURRENCY, "1")]);
    house.engine.ready(limited.clone(), &[&old_endpoint]);
    known(&house, "f").await;
    let calls: Vec<_> = (0..6).map(|_| start(&house, "")).collect();
    until("one is inside", || old.inside() == 1 && waiting(&house) == 5).await;
    old_endpoint.load.close();
    house.engine.ready(limited, &[&new_endpoint]);
    until("the new one has the next", || new.inside() == 1 && waiting(&house) == 4).await;
    house.engine.ready(spec("f"), &[&new_endpoint]);
    until("all are inside", || new.inside() == 5 && waiting(&house) == 0).await;
    old.go.add_permits(1);
    new.go.add_permits(9);
    for call in calls {
        assert_eq!(call.await.unwrap().0, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_sleeper_with_a_limit_is_woken_once_and_serves_its_crowd_in_turn() {
    let (house, gated) = (plain_house().await, Gated::new().await);
    let limited = annotated("f", &[(CONCURRENCY, "2")]);
    house.engine.put(limited.clone(), vec![], Availability::Asleep);
    known(&house, "f").await;
    let calls: Vec<_> = (0..50).map(|_| start(&house, "")).collect();
    until("all wait", || waiting(&house) == 50).await;
    house.engine.ready(limited, &[&endpoint("r", gated.replica.address)]);
    until("two are inside", || gated.inside() == 2 && waiting(&house) == 48).await;
    gated.go.add_permits(50);
    for call in calls {
        assert_eq!(bounded("an answer", call).await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(gated.most.load(Ordering::SeqCst), 2);
    assert_eq!(house.engine.scale_calls(), 1);
}

#[tokio::test]
async fn those_in_line_are_told_why_when_the_function_begins_to_fail() {
    let house = house(|options| options.failing_patience = Duration::from_millis(50), |_| {}).await;
    let gated = Gated::new().await;
    let limited = annotated("f", &[(CONCURRENCY, "1"), (TIMEOUT, "20s")]);
    house.engine.ready(limited.clone(), &[&endpoint("r", gated.replica.address)]);
    known(&house, "f").await;
    let inside = start(&house, "");
    until("one is inside", || gated.inside() == 1).await;
    let line: Vec<_> = (0..5).map(|_| start(&house, "")).collect();
    until("the others wait", || waiting(&house) == 5).await;
    // One failure that passes sends nobody away.
    let failing = Availability::Failing("exit status 9".to_owned());
    house.engine.put(limited.clone(), vec![], failing.clone());
    house.engine.ready(limited.clone(), &[&endpoint("s", gated.replica.address)]);
    until("the next is inside", || gated.inside() == 2 && waiting(&house) == 4).await;
    house.engine.put(limited, vec![], failing);
    let mut told_why = 0;
    gated.go.add_permits(2);
    for call in line {
        let (status, headers, body) = bounded("an answer", call).await.unwrap();
        if status == StatusCode::OK {
            continue;
        }
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body:?}");
        assert!(headers.contains_key("retry-after"));
        assert!(told(&body)["reason"].as_str().unwrap().contains("exit status 9"), "{body:?}");
        told_why += 1;
    }
    assert_eq!(told_why, 4);
    assert_eq!(bounded("an answer", inside).await.unwrap().0, StatusCode::OK);
    assert_eq!(waiting(&house), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_a_storm_the_limit_is_never_passed_and_nobody_is_forgotten() {
    let house = plain_house().await;
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, highest) = (Arc::clone(&inside), Arc::clone(&most));
    let replica = Replica::http(move |_| {
        let (inside, most) = (Arc::clone(&counted), Arc::clone(&highest));
        async move {
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            text("")
        }
    })
    .await;
    let endpoint = endpoint("r", replica.address);
    house.engine.ready(annotated("f", &[(CONCURRENCY, "3")]), &[&endpoint]);
    known(&house, "f").await;
    let callers: Vec<_> = (0..30)
        .map(|caller| {
            let address = house.address;
            tokio::spawn(async move {
                for round in 0..20 {
                    let one = tokio::spawn(call(address));
                    if (caller + round) % 5 == 0 {
                        tokio::task::yield_now().await;
                        one.abort();
                        drop(one.await);
                    } else {
                        assert_eq!(one.await.unwrap().0, StatusCode::OK);
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        bounded("a caller is done", caller).await.unwrap();
    }
    assert!(most.load(Ordering::SeqCst) <= 3);
    until("nobody is left", || endpoint.load.in_flight() == 0 && waiting(&house) == 0).await;
}
