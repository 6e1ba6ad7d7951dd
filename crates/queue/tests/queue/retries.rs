//! Answers that may get better, dead letters, and what becomes of them.

use std::time::Duration;

use http::Response;
use http_body_util::Full;
use updraft_model::annotations;
use updraft_queue::{CallFilter, CallState};

use crate::house::{House, Server, find, id, new_call, spec};

#[tokio::test]
async fn a_failed_call_is_made_again_with_the_same_id_until_it_is_answered() {
    let house = House::new().await;
    let server = Server::statuses(&[500, 503, 200]).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let call = house.submit(new_call("f"), "the body").await.unwrap();
    let record = house.ends(&call, CallState::Done).await;
    assert_eq!((record.attempts, record.status, record.reason), (3, Some(200), None));
    for asked in server.asked() {
        assert_eq!(asked.header("x-call-id"), call.as_str());
        assert_eq!(&asked.body[..], b"the body");
    }
    let result = house.queue.result(&call).await.unwrap().unwrap();
    assert_eq!(&result.body[..], b"answer 2");
}

#[tokio::test]
async fn another_answer_is_an_answer() {
    let house = House::new().await;
    let server = Server::statuses(&[404]).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let call = house.submit(new_call("f"), "").await.unwrap();
    let record = house.ends(&call, CallState::Done).await;
    assert_eq!((record.attempts, record.status), (1, Some(404)));
}

#[tokio::test]
async fn what_never_gets_better_becomes_a_dead_letter_that_can_be_made_again() {
    let house = House::new().await;
    let server = Server::statuses(&[500, 500, 500, 200]).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let call = house.submit(new_call("f"), vec![5; 5000]).await.unwrap();
    let dead = house.ends(&call, CallState::Dead).await;
    assert_eq!((dead.attempts, dead.status), (3, Some(500)));
    assert_eq!(dead.reason.as_deref(), Some("the function answered 500"));
    assert_eq!(&house.queue.result(&call).await.unwrap().unwrap().body[..], b"answer 2");
    house.is_idle("f").await;

    assert!(house.queue.redrive(&call).await.unwrap());
    assert!(!house.queue.redrive(&call).await.unwrap());
    let done = house.ends(&call, CallState::Done).await;
    assert_eq!((done.attempts, done.status), (1, Some(200)));
    assert_eq!(server.asked()[3].body, vec![5; 5000]);
    assert_eq!(server.asked()[3].header("x-call-id"), call.as_str());
}

#[tokio::test]
async fn all_dead_letters_of_a_function_are_made_again_at_once_or_discarded() {
    let house = House::new().await;
    let failing = Server::statuses(&[500]).await;
    for function in ["f", "g"] {
        let spec = spec(function, &[(annotations::RETRY_ATTEMPTS, "0")]);
        house.put(spec, failing.endpoint()).await;
        for _ in 0..250 {
            house.submit(new_call(function), "").await.unwrap();
        }
    }
    find("500 dead letters", async || (house.count(CallState::Dead).await == 500).then_some(()))
        .await;
    let works = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), works.endpoint()).await;
    let of_f = CallFilter { function: Some(id("f")), ..CallFilter::default() };
    assert_eq!(house.queue.redrive_all(of_f).await.unwrap(), 250);
    find("250 done", async || (house.count(CallState::Done).await == 250).then_some(())).await;
    assert_eq!(house.count(CallState::Dead).await, 250);

    let of_g = CallFilter { function: Some(id("g")), limit: 1, ..CallFilter::default() };
    let one = house.queue.list(of_g).await.unwrap().remove(0);
    assert!(house.queue.discard(&one.id).await.unwrap());
    assert!(!house.queue.discard(&one.id).await.unwrap());
    assert_eq!(house.count(CallState::Dead).await, 249);
}

#[tokio::test]
async fn the_functions_own_policy_counts() {
    let house = House::new().await;
    let server = Server::statuses(&[500, 418, 418]).await;
    let annotated = spec(
        "f",
        &[
            (annotations::RETRY_ATTEMPTS, "1"),
            (annotations::RETRY_CODES, "418"),
            (annotations::RETRY_MIN_WAIT, "1ms"),
        ],
    );
    house.put(annotated, server.endpoint()).await;
    let not_listed = house.submit(new_call("f"), "").await.unwrap();
    assert_eq!(house.ends(&not_listed, CallState::Done).await.status, Some(500));
    let listed = house.submit(new_call("f"), "").await.unwrap();
    assert_eq!(house.ends(&listed, CallState::Dead).await.attempts, 2);
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let house = House::new().await;
    let server = Server::start(async |number, _| {
        let status = if number == 0 { 429 } else { 200 };
        let answer = Response::builder().status(status).header("retry-after", "1");
        answer.body(Full::default()).unwrap()
    })
    .await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let call = house.submit(new_call("f"), "").await.unwrap();
    house.ends(&call, CallState::Done).await;
    let asked = server.asked();
    assert!(asked[1].at - asked[0].at >= Duration::from_millis(990));
}

#[tokio::test]
async fn a_replica_that_breaks_off_is_tried_again() {
    let house = House::new().await;
    let gone = Server::statuses(&[200]).await.endpoint();
    house.put(spec("f", &[]), gone).await;
    let call = house.submit(new_call("f"), "").await.unwrap();
    find("a failed attempt", async || {
        let call = house.call(&call).await;
        (call.attempts >= 1 && call.reason.is_some()).then_some(())
    })
    .await;
    let dead = house.ends(&call, CallState::Dead).await;
    assert!(dead.reason.unwrap().contains("replica"), "the platform says what was wrong");
}

#[tokio::test]
async fn calls_of_a_function_that_was_removed_become_dead_letters_with_the_reason() {
    let house = House::new().await;
    let server = Server::statuses(&[500]).await;
    let annotated = spec("f", &[(annotations::RETRY_MIN_WAIT, "300ms")]);
    house.put(annotated, server.endpoint()).await;
    let mut calls = Vec::new();
    for _ in 0..5 {
        calls.push(house.submit(new_call("f"), "").await.unwrap());
    }
    server.is_asked(5).await;
    house.take_away(&id("f")).await;
    for call in &calls {
        let dead = house.ends(call, CallState::Dead).await;
        assert_eq!(dead.reason.as_deref(), Some("function `f` was removed"));
    }
    house.is_idle("f").await;
    let works = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), works.endpoint()).await;
    assert_eq!(house.queue.redrive_all(CallFilter::default()).await.unwrap(), 5);
    for call in &calls {
        house.ends(call, CallState::Done).await;
    }
}
