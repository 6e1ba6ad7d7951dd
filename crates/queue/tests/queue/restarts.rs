//! A queue that ends and begins again.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http_body_util::Full;
use tokio::sync::Semaphore;
use updraft_model::annotations;
use updraft_queue::{CallState, QueueOptions, SubmitError};

use crate::house::{House, Server, find, id, new_call, quick, spec};

#[tokio::test]
async fn what_waits_is_made_after_a_restart_in_the_order_it_came() {
    let mut house = House::with(QueueOptions { concurrency: 1, ..quick() }).await;
    let server = Server::statuses(&[503, 200]).await;
    let annotated = spec("f", &[(annotations::RETRY_MIN_WAIT, "500ms")]);
    house.put(annotated, server.endpoint()).await;
    let first = house.submit(new_call("f"), "0").await.unwrap();
    find("the first attempt", async || {
        (house.call(&first).await.state == CallState::Queued && server.asked().len() == 1)
            .then_some(())
    })
    .await;
    house.restart().await;
    assert_eq!(house.queue.backlog(&id("f")), 1);
    let record = house.ends(&first, CallState::Done).await;
    assert_eq!(record.attempts, 2);
}

#[tokio::test]
async fn a_stop_lets_calls_under_way_end_and_takes_no_more() {
    let house = House::new().await;
    let gate = Arc::new(Semaphore::new(0));
    let server = gated(&gate).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let call = house.submit(new_call("f"), "").await.unwrap();
    server.is_asked(1).await;
    let stop = house.queue.shutdown();
    let open = async {
        // The stop has begun when no call is taken any more.
        find("the stop to begin", async || {
            let refusal = house.submit(new_call("f"), "").await.err()?;
            matches!(refusal, SubmitError::Stopping).then_some(())
        })
        .await;
        gate.add_permits(100);
    };
    tokio::join!(stop, open);
    assert_eq!(house.call(&call).await.state, CallState::Done);
}

#[tokio::test]
async fn a_stop_gives_back_what_does_not_end_in_time_and_the_next_start_makes_it() {
    let options = QueueOptions { drain: Duration::from_millis(50), ..quick() };
    let mut house = House::with(options).await;
    let gate = Arc::new(Semaphore::new(0));
    let server = gated(&gate).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let call = house.submit(new_call("f"), vec![9; 5000]).await.unwrap();
    server.is_asked(1).await;
    house.restart().await;
    gate.add_permits(100);
    let record = house.ends(&call, CallState::Done).await;
    assert_eq!(record.attempts, 1, "an attempt that was given back does not count");
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].body, vec![9; 5000]);
    assert_eq!(asked[0].header("x-call-id"), asked[1].header("x-call-id"));
}

#[tokio::test]
async fn a_lease_is_renewed_while_a_call_runs_and_nobody_else_makes_it() {
    let options = QueueOptions { lease: Duration::from_millis(150), ..quick() };
    let house = House::with(options).await;
    let gate = Arc::new(Semaphore::new(0));
    let server = gated(&gate).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let call = house.submit(new_call("f"), "").await.unwrap();
    server.is_asked(1).await;
    let begun = house.call(&call).await.due;
    find("four renewals", async || {
        let due = house.call(&call).await.due;
        (due.duration_since(begun).as_millis() > 400).then_some(())
    })
    .await;
    gate.add_permits(1);
    assert_eq!(house.ends(&call, CallState::Done).await.attempts, 1);
    assert_eq!(server.asked().len(), 1);
}

/// Answers as the gate lets it.
async fn gated(gate: &Arc<Semaphore>) -> Server {
    let gate = Arc::clone(gate);
    Server::start(move |_, _| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Response::new(Full::default())
        }
    })
    .await
}
