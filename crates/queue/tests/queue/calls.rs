//! Accepting, making, looking, cancelling.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Response};
use http_body_util::{Full, StreamBody};
use tokio::sync::Semaphore;
use updraft_model::annotations;
use updraft_queue::{CallFilter, CallState, QueueOptions, SubmitError};

use crate::house::{House, Server, find, id, new_call, owned, quick, spec};

#[tokio::test]
async fn a_call_arrives_as_it_was_sent_and_its_answer_is_kept() {
    let house = House::new().await;
    let server = Server::start(async |_, _| {
        Response::builder().status(201).header("x-made", "yes").body(Full::from("made")).unwrap()
    })
    .await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let mut call = new_call("f");
    call.method = Method::PUT;
    call.target = "/a%2Fb//c?d=%20&d".to_owned();
    for (name, value) in [
        ("x-connector", "cron-connector"),
        ("x-topic", "things"),
        ("authorization", "Bearer of the caller"),
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "dropped"),
        ("transfer-encoding", "chunked"),
        ("x-callback-url", "http://example.org"),
        ("x-call-id", "chosen-by-me"),
        ("host", "gateway.test"),
    ] {
        call.headers.insert(name, HeaderValue::from_static(value));
    }
    let call_id = house.submit(call, "the body").await.unwrap();
    assert_eq!(call_id.as_str(), "chosen-by-me");
    let record = house.ends(&call_id, CallState::Done).await;
    assert_eq!((record.status, record.attempts, record.reason), (Some(201), 1, None));

    let asked = &server.asked()[0];
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("PUT", "/a%2Fb//c?d=%20&d"));
    assert_eq!(&asked.body[..], b"the body");
    assert_eq!(asked.header("content-length"), "8");
    assert_eq!(asked.header("x-call-id"), "chosen-by-me");
    assert_eq!(asked.header("x-connector"), "cron-connector");
    assert_eq!(asked.header("x-topic"), "things");
    assert_eq!(asked.header("authorization"), "Bearer of the caller");
    assert_eq!(asked.header("host"), "gateway.test");
    assert_eq!(asked.header("x-forwarded-for"), "192.0.2.1");
    assert!(!asked.header("x-start-time").is_empty());
    for dropped in ["x-hop", "x-callback-url", "transfer-encoding"] {
        assert_eq!(asked.header(dropped), "", "{dropped}");
    }

    let result = house.queue.result(&call_id).await.unwrap().unwrap();
    assert_eq!((&result.body[..], result.length, result.is_cut()), (&b"made"[..], 4, false));
    assert_eq!(result.headers["x-made"], "yes");
    house.is_idle("f").await;
}

#[tokio::test]
async fn a_call_of_an_unknown_function_is_refused_at_once() {
    let house = House::new().await;
    let refusal = house.submit(new_call("nobody"), "x").await.unwrap_err();
    assert!(matches!(&refusal, SubmitError::UnknownFunction(name) if *name == id("nobody")));
    assert_eq!(refusal.status(), 404);
    assert!(house.queue.list(CallFilter::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_call_id_that_is_taken_or_unsafe_is_replaced_and_nothing_is_overwritten() {
    let house = House::new().await;
    let server = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let with_id = |id: &'static str| {
        let mut call = new_call("f");
        call.headers.insert("x-call-id", HeaderValue::from_static(id));
        call
    };
    let first = house.submit(with_id("mine"), "1").await.unwrap();
    let second = house.submit(with_id("mine"), "2").await.unwrap();
    let third = house.submit(with_id("../etc"), "3").await.unwrap();
    assert_eq!(first.as_str(), "mine");
    assert_ne!(second, first);
    assert_eq!((second.as_str().len(), third.as_str().len()), (36, 36));
    for call in [&first, &second, &third] {
        house.ends(call, CallState::Done).await;
    }
    let mut bodies: Vec<_> = server.asked().into_iter().map(|asked| asked.body).collect();
    bodies.sort();
    assert_eq!(bodies, ["1", "2", "3"]);
}

#[tokio::test]
async fn a_long_body_goes_through_a_file_that_is_gone_afterwards() {
    let house = House::new().await;
    let server = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let body: Vec<u8> = (0..300_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let call = house.submit(new_call("f"), body.clone()).await.unwrap();
    house.ends(&call, CallState::Done).await;
    assert_eq!(server.asked()[0].body, body);
    assert_eq!(server.asked()[0].header("content-length"), "300000");
    find("the file to go", async || (house.bodies().await == 0).then_some(())).await;
}

#[tokio::test]
async fn a_body_that_is_too_long_stalls_or_breaks_is_refused_and_leaves_nothing() {
    let house = House::new().await;
    let server = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let refusal = house.submit(new_call("f"), vec![0; (1 << 20) + 1]).await.unwrap_err();
    assert!(matches!(refusal, SubmitError::TooLarge { limit: 0x10_0000 }), "{refusal}");
    assert_eq!(refusal.status(), 413);

    let frame = |size: usize| Ok(http_body::Frame::data(Bytes::from(vec![0; size])));
    let pieces = futures_util::stream::iter((0..20).map(move |_| frame(100_000)));
    let refusal = house.queue.submit(new_call("f"), StreamBody::new(pieces)).await.unwrap_err();
    let _: &Result<http_body::Frame<Bytes>, std::io::Error> = &frame(1);
    assert_eq!(refusal.status(), 413);

    let stalled = futures_util::stream::iter([frame(5000)]);
    let stalled = futures_util::StreamExt::chain(stalled, futures_util::stream::pending());
    let refusal = house.queue.submit(new_call("f"), StreamBody::new(stalled)).await.unwrap_err();
    assert_eq!(refusal.status(), 408);

    let broken = [frame(5000), Err(std::io::Error::other("gone"))];
    let broken = StreamBody::new(futures_util::stream::iter(broken));
    let refusal = house.queue.submit(new_call("f"), broken).await.unwrap_err();
    assert_eq!(refusal.status(), 400);
    assert_eq!(house.bodies().await, 0);
    assert_eq!(house.queue.backlog(&id("f")), 0);
    assert!(house.queue.list(CallFilter::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_full_queue_refuses_and_takes_again_when_there_is_room() {
    let house = House::with(QueueOptions { function_waiting: 2, ..quick() }).await;
    let gate = Arc::new(Semaphore::new(0));
    let server = {
        let gate = Arc::clone(&gate);
        Server::start(move |_, _| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Response::new(Full::default())
            }
        })
    };
    let server = server.await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let first = house.submit(new_call("f"), "1").await.unwrap();
    house.submit(new_call("f"), "2").await.unwrap();
    let refusal = house.submit(new_call("f"), "3").await.unwrap_err();
    assert_eq!((refusal.status().as_u16(), refusal.retry_after()), (429, Some(10)));
    gate.add_permits(2);
    house.ends(&first, CallState::Done).await;
    find("room", async || (house.queue.backlog(&id("f")) == 0).then_some(())).await;
    house.submit(new_call("f"), "4").await.unwrap();
    gate.add_permits(1);
}

#[tokio::test]
async fn requests_that_no_function_can_be_asked_are_refused() {
    let house = House::new().await;
    let server = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let mut connect = new_call("f");
    connect.method = Method::CONNECT;
    let mut space = new_call("f");
    space.target = "/a b".to_owned();
    let mut long = new_call("f");
    long.target = format!("/{}", "a".repeat(70_000));
    for call in [connect, space, long] {
        assert_eq!(house.submit(call, "").await.unwrap_err().status(), 400);
    }
}

#[tokio::test]
async fn a_function_at_zero_is_woken_for_a_call() {
    let house = House::new().await;
    let server = Server::statuses(&[200]).await;
    house.put_asleep(spec("f", &[]), server.endpoint()).await;
    let call = house.submit(new_call("f"), "x").await.unwrap();
    assert_eq!(house.ends(&call, CallState::Done).await.attempts, 1);
}

#[tokio::test]
async fn no_more_calls_run_at_once_than_a_function_takes() {
    let house = House::new().await;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let server = {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        Server::start(move |_, _| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Response::new(Full::default())
            }
        })
    };
    let server = server.await;
    house.put(spec("f", &[(annotations::CONCURRENCY, "3")]), server.endpoint()).await;
    for _ in 0..40 {
        house.submit(new_call("f"), "x").await.unwrap();
    }
    find("all calls", async || (house.count(CallState::Done).await == 40).then_some(())).await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert_eq!(server.asked().len(), 40);
}

#[tokio::test]
async fn an_owner_with_many_calls_does_not_keep_another_waiting() {
    let house = House::with(QueueOptions { concurrency: 1, ..quick() }).await;
    let server = Server::statuses(&[200]).await;
    for spec in [owned("alice", "f"), owned("alice", "g"), owned("bob", "f")] {
        house.put(spec, server.endpoint()).await;
    }
    let named = |function: &str| {
        let mut call = new_call(function);
        call.target = format!("/{function}");
        call
    };
    for _ in 0..50 {
        house.submit(named("alice-f"), "").await.unwrap();
        house.submit(named("alice-g"), "").await.unwrap();
    }
    let before = server.asked().len();
    let bobs = house.submit(named("bob-f"), "").await.unwrap();
    house.ends(&bobs, CallState::Done).await;
    let asked = server.asked();
    let place = asked.iter().position(|asked| asked.target == "/bob-f").unwrap();
    assert!(place < before + 10, "bob's call was number {place}, {before} were made before it");
}

#[tokio::test]
async fn a_cancelled_call_is_not_made_or_is_broken_off() {
    let house = House::with(QueueOptions { concurrency: 1, ..quick() }).await;
    let gate = Arc::new(Semaphore::new(0));
    let server = {
        let gate = Arc::clone(&gate);
        Server::start(move |_, _| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Response::new(Full::default())
            }
        })
    };
    let server = server.await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let running = house.submit(new_call("f"), "running").await.unwrap();
    server.is_asked(1).await;
    let waiting = house.submit(new_call("f"), vec![1; 5000]).await.unwrap();
    assert_eq!(house.bodies().await, 1);
    assert!(house.queue.cancel(&waiting).await.unwrap());
    assert_eq!(house.bodies().await, 0);
    assert!(house.queue.cancel(&running).await.unwrap());
    let last = house.submit(new_call("f"), "last").await.unwrap();
    // The broken-off call gave its place to this one.
    assert_eq!(&server.is_asked(2).await[1].body[..], b"last");
    gate.add_permits(1);
    house.ends(&last, CallState::Done).await;
    assert_eq!(house.call(&running).await.state, CallState::Cancelled);
    assert_eq!(house.call(&waiting).await.state, CallState::Cancelled);
    assert!(!house.queue.cancel(&running).await.unwrap());
    house.is_idle("f").await;
}

#[tokio::test]
async fn a_long_answer_is_kept_in_part_and_read_whole() {
    let house = House::new().await;
    let server = Server::start(async |_, _| Response::new(Full::from(vec![b'a'; 100_000]))).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let call = house.submit(new_call("f"), "").await.unwrap();
    house.ends(&call, CallState::Done).await;
    let result = house.queue.result(&call).await.unwrap().unwrap();
    assert_eq!((result.body.len(), result.length, result.is_cut()), (4096, 100_000, true));
}

#[tokio::test]
async fn lists_are_chosen_and_paged() {
    let house = House::new().await;
    let server = Server::statuses(&[200]).await;
    house.put(owned("alice", "f"), server.endpoint()).await;
    house.put(spec("g", &[]), server.endpoint()).await;
    for function in ["alice-f", "g", "alice-f"] {
        house.submit(new_call(function), "").await.unwrap();
    }
    find("all calls", async || (house.count(CallState::Done).await == 3).then_some(())).await;
    let alice = CallFilter { owner: "alice".parse().ok(), ..CallFilter::default() };
    let alices = house.queue.list(alice.clone()).await.unwrap();
    assert_eq!(alices.len(), 2);
    assert!(alices[0].number > alices[1].number);
    let older = CallFilter { before: Some(alices[0].number), ..alice };
    assert_eq!(house.queue.list(older).await.unwrap(), alices[1..]);
    let of_g = CallFilter { function: Some(id("g")), ..CallFilter::default() };
    assert_eq!(house.queue.list(of_g).await.unwrap().len(), 1);
    let two = CallFilter { limit: 2, ..CallFilter::default() };
    assert_eq!(house.queue.list(two).await.unwrap().len(), 2);
}

#[tokio::test]
async fn ended_calls_are_forgotten_when_there_are_too_many() {
    let house = House::with(QueueOptions { keep_count: 3, ..quick() }).await;
    let server = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), server.endpoint()).await;
    let mut calls = Vec::new();
    for _ in 0..8 {
        calls.push(house.submit(new_call("f"), "").await.unwrap());
    }
    find("the last call", async || (server.asked().len() == 8).then_some(())).await;
    find("five to be forgotten", async || {
        (house.queue.list(CallFilter::default()).await.unwrap().len() == 3).then_some(())
    })
    .await;
    assert!(house.queue.result(&calls[0]).await.unwrap().is_none());
}

#[tokio::test]
async fn the_numbers_carry_the_names_that_dashboards_ask_for() {
    let house = House::new().await;
    let server = Server::statuses(&[404, 500]).await;
    house.put(spec("f", &[(annotations::RETRY_ATTEMPTS, "0")]), server.endpoint()).await;
    for state in [CallState::Done, CallState::Dead] {
        let call = house.submit(new_call("f"), "").await.unwrap();
        house.ends(&call, state).await;
    }
    house.is_idle("f").await;
    let mut registry = prometheus_client::registry::Registry::default();
    house.queue.register_metrics(&mut registry);
    house.invoker.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let worker = "queue_name=\"faas-request\",kubernetes_pod_name=\"updraft\"";
    for line in [
        format!("queue_worker_messages_submitted_total{{{worker}}} 2"),
        format!("queue_worker_messages_processed_total{{{worker}}} 2"),
        "queue_worker_dead_letters{queue_name=\"faas-request\",function_name=\"f.openfaas-fn\"} 1"
            .to_owned(),
        // A call counts as an invocation when it is made, not when it is handed in.
        "gateway_function_invocation_started{function_name=\"f.openfaas-fn\"} 2".to_owned(),
        "# TYPE queue_worker_pending_messages gauge".to_owned(),
        "# TYPE queue_worker_function_invocation_inflight gauge".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}
