//! What only a broker can do: be away, come back, and be shared.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;
use http_body_util::Full;
use serde_json::json;
use tokio::sync::Semaphore;
use updraft_model::annotations;
use updraft_queue::{CallState, CallStore, Queue, QueueOptions, QueueParts, SubmitError};
use updraft_queue_nats::NatsCallStore;
use updraft_store::queue::{CallToAdd, Client, RequestHead, StoredBody};

use crate::backend::{Backend, options};
use crate::house::{House, Server, find, id, new_call, quick, spec};
use crate::server::NatsServer;

#[tokio::test]
async fn a_broker_that_is_away_at_the_start_is_waited_for_and_calls_are_refused_until_then() {
    let house = House::over(Backend::over(NatsServer::absent()), quick()).await;
    let server = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let refusal = house.submit(new_call("f"), "x").await.unwrap_err();
    assert!(matches!(refusal, SubmitError::Away), "{refusal}");
    assert_eq!((refusal.status().as_u16(), refusal.retry_after()), (503, Some(5)));
    house.backend.server.lock().unwrap().resume();
    let call = find("a call to be taken", async || house.submit(new_call("f"), "x").await.ok());
    house.ends(&call.await, CallState::Done).await;
}

#[tokio::test]
async fn a_broker_that_is_killed_loses_nothing_and_is_an_error_of_its_own_meanwhile() {
    let house = House::with(QueueOptions { concurrency: 4, ..quick() }).await;
    let gate = Arc::new(Semaphore::new(0));
    let server = Server::start({
        let gate = Arc::clone(&gate);
        move |_, _| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Response::new(Full::default())
            }
        }
    })
    .await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let mut calls = Vec::new();
    for number in 0..40 {
        calls.push(house.submit(new_call("f"), format!("{number}")).await.unwrap());
    }
    server.is_asked(4).await;
    house.backend.server.lock().unwrap().kill();
    let refusal =
        find("a refusal", async || house.submit(new_call("f"), "while it is away").await.err())
            .await;
    assert_eq!((refusal.status().as_u16(), refusal.retry_after()), (503, Some(5)), "{refusal}");
    assert!(refusal.to_string().contains("record of calls"), "{refusal}");
    // Four calls end while nobody can note it.
    gate.add_permits(1000);
    house.backend.server.lock().unwrap().resume();
    for call in &calls {
        house.ends(call, CallState::Done).await;
    }
    let asked = server.asked();
    for (number, call) in calls.iter().enumerate() {
        let body = format!("{number}");
        let made: Vec<_> = asked.iter().filter(|asked| asked.body == body.as_bytes()).collect();
        assert!(!made.is_empty(), "call {number} was made");
        assert!(made.iter().all(|made| made.header("x-call-id") == call.as_str()));
    }
    find("nothing to wait", async || (house.queue.backlog(&id("f")) == 0).then_some(())).await;
}

#[tokio::test]
async fn calls_that_wait_outlive_the_broker_and_the_queue() {
    let mut house = House::new().await;
    let server = Server::statuses(&[503, 200]).await;
    let later = [(annotations::RETRY_MIN_WAIT, "2s")];
    house.put(spec("f", &later), server.endpoint()).await;
    let call = house.submit(new_call("f"), vec![7; 300_000]).await.unwrap();
    find("the first attempt", async || {
        let call = house.call(&call).await;
        (call.state == CallState::Queued && call.attempts == 1).then_some(())
    })
    .await;
    house.backend.server.lock().unwrap().kill();
    house.backend.server.lock().unwrap().resume();
    house.restart().await;
    assert_eq!(house.ends(&call, CallState::Done).await.attempts, 2);
    assert_eq!(server.asked()[1].body, vec![7; 300_000]);
}

#[tokio::test]
async fn what_another_producer_puts_into_the_stream_is_called() {
    let house = House::new().await;
    let server = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let client = async_nats::connect(house.backend.url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    let message = json!({
        "Header": {"X-Call-Id": ["theirs"], "Content-Type": ["text/plain"]}, "Host": "gateway",
        "Body": "aGVsbG8=", "Method": "PUT", "Path": "/a", "QueryString": "b=c", "Function": "f",
    });
    for payload in [message.to_string(), "no call at all".to_owned()] {
        let sent = jetstream.publish("updraft.calls.openfaas-fn.f", payload.into()).await.unwrap();
        sent.await.unwrap();
    }
    let asked = &server.is_asked(1).await[0];
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("PUT", "/a?b=c"));
    assert_eq!((&asked.body[..], asked.header("x-call-id")), (&b"hello"[..], "theirs"));
    let record = house.ends(&"theirs".parse().unwrap(), CallState::Done).await;
    assert_eq!((record.attempts, record.owner), (1, None));
    find("an empty stream", async || {
        let stream = house.backend.stream("UPDRAFT_CALLS").await;
        (stream.cached_info().state.messages == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn two_instances_share_the_calls_and_see_what_the_other_does() {
    let house = House::with(QueueOptions { function_concurrency: 2, ..quick() }).await;
    let gate = Arc::new(Semaphore::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let server = Server::start({
        let (gate, most) = (Arc::clone(&gate), Arc::clone(&most));
        move |_, _| {
            let (gate, most) = (Arc::clone(&gate), Arc::clone(&most));
            async move {
                most.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                Response::new(Full::default())
            }
        }
    })
    .await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let other = another(&house, "two").await;
    let mut calls = Vec::new();
    for _ in 0..6 {
        calls.push(house.submit(new_call("f"), "x").await.unwrap());
    }
    // Each instance makes as many as it may.
    server.is_asked(4).await;
    assert_eq!(most.load(Ordering::SeqCst), 4);
    // What one instance accepted and runs, or what waits, the other can cancel.
    let cancelled = find("a call that the first one runs", async || {
        for call in &calls {
            let theirs = other.call(call).await.unwrap();
            if theirs.is_some_and(|call| call.state == CallState::Queued) {
                return Some(call.clone());
            }
        }
        None
    })
    .await;
    assert!(other.cancel(&cancelled).await.unwrap());
    house.ends(&cancelled, CallState::Cancelled).await;
    gate.add_permits(100);
    for call in calls.iter().filter(|call| **call != cancelled) {
        house.ends(call, CallState::Done).await;
    }
    assert_eq!(server.asked().len(), 5);
    find("both to see that nothing waits", async || {
        (house.queue.backlog(&id("f")) == 0 && other.backlog(&id("f")) == 0).then_some(())
    })
    .await;
    other.shutdown().await;
}

/// A queue of another instance over the same calls and functions.
async fn another(house: &House, instance: &str) -> Arc<Queue> {
    let store = store(house, instance).await;
    let (invoker, options) = (Arc::clone(&house.invoker), house.options.clone());
    Queue::start(QueueParts { store, invoker, options }).await.unwrap()
}

/// The store of another instance, once it has reached the broker.
async fn store(house: &House, instance: &str) -> Arc<dyn CallStore> {
    let options = options(house.backend.url(), &house.path(""), instance, house.options.lease);
    let store = NatsCallStore::open(options).await.unwrap();
    find("the broker", async || store.recover().await.ok()).await;
    Arc::new(store)
}

#[tokio::test]
async fn an_instance_that_dies_leaves_its_calls_to_another_one() {
    let house = House::with(QueueOptions { lease: Duration::from_secs(1), ..quick() }).await;
    let server = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    // An instance takes a call, takes it up, and is never heard of again. The function is not
    // known to it, but to the other one.
    let dead = store(&house, "dead").await;
    let client = Client { address: "192.0.2.1".parse().unwrap(), tls: false, authorized: true };
    let ids = ["left", "other"].map(|id| id.parse().unwrap());
    let head = RequestHead {
        method: http::Method::POST,
        target: "/".to_owned(),
        headers: http::HeaderMap::new(),
        client,
    };
    let call = CallToAdd {
        ids,
        function: id("asleep"),
        owner: None,
        queue: "faas-request".to_owned(),
        head,
        body: StoredBody::Inline("x".into()),
        callback: None,
    };
    let (call, _) = dead.add(call).await.unwrap();
    let leased = find("the lease", async || {
        let until = jiff::Timestamp::now() + house.options.lease;
        let leases = dead.lease(&id("asleep"), 1, until).await.unwrap();
        leases.calls.into_iter().next()
    })
    .await;
    assert_eq!(leased.record.attempts, 1);
    house.put(spec("asleep", &[]), server.endpoint()).await;
    let record = house.ends(&call, CallState::Done).await;
    assert_eq!(record.attempts, 2);
    assert_eq!(server.asked()[0].header("x-call-id"), "left");
    // What the dead one says of it does not count any more.
    assert!(!dead.release(leased.attempt, jiff::Timestamp::now()).await.unwrap());
}
