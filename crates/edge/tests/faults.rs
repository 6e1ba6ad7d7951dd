//! Replicas that refuse, fall silent, break off or are replaced, and callers that misbehave.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use support::{
    Replica, bounded, call, connect, endpoint, house, house_with, known, one_lane_house_with,
    piece, pieces, plain_house, raw, read_close, read_until, request, send, spec, text, told,
    until,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use updraft_model::annotations;

/// An address at which nobody listens.
async fn nobody() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Reads one request head and the body that `Content-Length` tells of, then does as told.
async fn read_request(stream: &mut TcpStream) -> String {
    read_until(stream, "\r\n\r\n").await
}

#[tokio::test]
async fn a_replica_that_refuses_is_passed_over_for_another() {
    let replica = Replica::http(|_| async { text("alive") }).await;
    let house = plain_house().await;
    let dead = endpoint("dead", nobody().await);
    let alive = endpoint("alive", replica.address);
    house.engine.ready(spec("f"), &[&dead, &alive]);
    known(&house, "f").await;
    for _ in 0..10 {
        let (status, _, body) = call(house.address).await;
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"alive"[..]));
    }
    assert_eq!((dead.load.in_flight(), alive.load.in_flight()), (0, 0));
}

#[tokio::test]
async fn a_replica_that_died_is_waited_out_until_the_engine_has_another() {
    let house = plain_house().await;
    let dead = endpoint("dead", nobody().await);
    house.engine.ready(spec("f"), &[&dead]);
    known(&house, "f").await;
    let calling = tokio::spawn(call(house.address));
    let count =
        || house.invoker.metrics_text().contains("inflight{function_name=\"f.openfaas-fn\"} 1");
    until("the call is under way", count).await;
    let replica = Replica::http(|_| async { text("risen") }).await;
    house.engine.ready(spec("f"), &[&endpoint("new", replica.address)]);
    let (status, _, body) = calling.await.unwrap();
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"risen"[..]));
}

#[tokio::test]
async fn a_function_whose_replicas_all_refuse_is_a_502_that_names_one() {
    let house = house(|options| options.connect_limit = Duration::from_millis(100), |_| {}).await;
    house.engine.ready(spec("f"), &[&endpoint("replica-7", nobody().await)]);
    known(&house, "f").await;
    let (status, headers, body) = call(house.address).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert_eq!(headers["x-openfaas-internal"], "gateway");
    let told = told(&body);
    assert_eq!((&told["component"], &told["function"]), (&"invoke".into(), &"f".into()));
    assert!(told["reason"].as_str().unwrap().contains("replica-7"), "{told}");
    assert_eq!(told["call_id"], headers["x-call-id"].to_str().unwrap());
}

#[tokio::test]
async fn a_replica_that_hangs_up_at_once_is_a_502_and_not_a_storm() {
    let replica = Replica::raw(|stream| {
        drop(stream);
        Box::pin(std::future::ready(()))
    })
    .await;
    let house = house(|options| options.connect_limit = Duration::from_millis(300), |_| {}).await;
    house.engine.ready(spec("f"), &[&endpoint("replica-7", replica.address)]);
    known(&house, "f").await;
    let (status, _, body) = call(house.address).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(told(&body)["reason"].as_str().unwrap().contains("replica-7"), "{body:?}");
    assert!(replica.connections() < 20, "{}", replica.connections());
}

#[tokio::test]
async fn a_body_that_was_sent_is_never_sent_again() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let replica = Replica::raw(move |mut stream| {
        let counted = Arc::clone(&counted);
        Box::pin(async move {
            read_request(&mut stream).await;
            counted.fetch_add(1, Ordering::SeqCst);
        })
    })
    .await;
    let (house, endpoint) = house_with(&replica).await;
    for method in ["POST", "GET"] {
        let body = Full::from(if method == "POST" { "precious" } else { "" });
        let asked = request("localhost", "/function/f").method(method).body(body).unwrap();
        let before = requests.load(Ordering::SeqCst);
        let (status, _, body) = send(house.address, asked).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY);
        let reason = told(&body)["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains("replica-1") && reason.contains("before it answered"), "{reason}");
        assert_eq!(requests.load(Ordering::SeqCst), before + 1);
    }
    assert_eq!(endpoint.load.in_flight(), 0);
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_caller_too() {
    for head in
        ["Content-Length: 100\r\n\r\npart", "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"]
    {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let replica = Replica::raw(move |mut stream| {
            let counted = Arc::clone(&counted);
            Box::pin(async move {
                read_request(&mut stream).await;
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = format!("HTTP/1.1 200 OK\r\n{head}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            })
        })
        .await;
        let (house, endpoint) = house_with(&replica).await;
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(b"GET /function/f HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let answer = read_close(&mut stream).await;
        // A cut that comes with the head may leave nothing to send.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(!answer.contains("\r\n0\r\n"), "the cut must show: {answer}");
        until("the replica is free", || endpoint.load.in_flight() == 0).await;
        assert_eq!(requests.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn an_answer_that_is_no_http_is_a_502() {
    for nonsense in
        ["SSH-2.0-x\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"]
    {
        let replica = Replica::raw(move |mut stream| {
            Box::pin(async move {
                read_request(&mut stream).await;
                stream.write_all(nonsense.as_bytes()).await.unwrap();
                drop(read_close(&mut stream).await);
            })
        })
        .await;
        let (house, _endpoint) = house_with(&replica).await;
        let (status, _, _) = call(house.address).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{nonsense}");
    }
}

#[tokio::test]
async fn a_connection_that_the_replica_closed_while_idle_is_not_used_again() {
    let closed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&closed);
    let replica = Replica::raw(move |mut stream| {
        let counted = Arc::clone(&counted);
        Box::pin(async move {
            read_request(&mut stream).await;
            // Looks kept alive and is not.
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            drop(stream);
            counted.fetch_add(1, Ordering::SeqCst);
        })
    })
    .await;
    let (house, _endpoint) = house_with(&replica).await;
    for index in 1..=20 {
        let (status, _, _) = call(house.address).await;
        assert_eq!(status, StatusCode::OK);
        until("the replica has closed", || closed.load(Ordering::SeqCst) == index).await;
        assert_eq!(replica.connections(), index);
    }
}

#[tokio::test]
async fn idle_connections_are_closed_before_the_replica_would() {
    let closed = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&closed);
    let replica = Replica::raw(move |mut stream| {
        let noted = Arc::clone(&noted);
        Box::pin(async move {
            read_request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            drop(read_close(&mut stream).await);
            noted.store(true, Ordering::SeqCst);
        })
    })
    .await;
    let house = house(|options| options.idle_limit = Duration::from_millis(50), |_| {}).await;
    house.engine.ready(spec("f"), &[&endpoint("r", replica.address)]);
    known(&house, "f").await;
    assert_eq!(call(house.address).await.0, StatusCode::OK);
    until("the idle connection is closed", || closed.load(Ordering::SeqCst)).await;
}

#[tokio::test]
async fn connections_are_used_again_after_every_kind_of_body() {
    let replica = Replica::http(|request: Request<Incoming>| async move {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        match path.as_str() {
            "/chunked" => {
                let (sender, chunks) = pieces();
                tokio::spawn(async move {
                    sender.send(piece("a")).await.unwrap();
                    sender.send(piece("b")).await.unwrap();
                });
                http::Response::new(chunks.boxed())
            }
            "/big" => text(vec![b'x'; 1 << 20]),
            "/empty" => text(""),
            "/204" => {
                let mut response = text("");
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            _ => text(body),
        }
    })
    .await;
    let (house, _endpoint) = one_lane_house_with(&replica).await;
    for round in 0..3 {
        for path in ["/chunked", "/big", "/empty", "/204", "/echo"] {
            for body in ["", "short", &"long".repeat(100_000)] {
                let asked = request("localhost", &format!("/function/f{path}"))
                    .method("POST")
                    .body(Full::from(body.to_owned()))
                    .unwrap();
                let (status, _, got) = send(house.address, asked).await;
                assert!(status.is_success());
                if path == "/echo" {
                    assert_eq!(got.len(), body.len());
                }
                assert_eq!(replica.connections(), 1, "round {round} {path} {}", body.len());
            }
        }
    }
}

#[tokio::test]
async fn a_function_that_does_not_answer_is_a_504_that_names_the_limit() {
    let replica = Replica::raw(|mut stream| {
        Box::pin(async move {
            read_request(&mut stream).await;
            drop(read_close(&mut stream).await);
        })
    })
    .await;
    let house = plain_house().await;
    let mut slow = spec("f");
    slow.annotations.insert(annotations::TIMEOUT.to_owned(), "150ms".to_owned());
    let endpoint = endpoint("r", replica.address);
    house.engine.ready(slow, &[&endpoint]);
    known(&house, "f").await;
    let (status, _, body) = call(house.address).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    let reason = told(&body)["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("150ms"), "{reason}");
    assert_eq!(endpoint.load.in_flight(), 0);
    // And a caller who does not go on sending is told so.
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let head = b"POST /function/f HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\npart";
    stream.write_all(head).await.unwrap();
    let answer = read_close(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn the_timeout_is_for_standing_still_and_not_for_the_whole_answer() {
    let replica = Replica::http(|_| async {
        let (sender, body) = pieces();
        tokio::spawn(async move {
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                if sender.send(piece("tick ")).await.is_err() {
                    return;
                }
            }
            // Then silence, with the answer still open.
            sender.closed().await;
        });
        http::Response::new(body.boxed())
    })
    .await;
    let house = plain_house().await;
    let mut slow = spec("f");
    slow.annotations.insert(annotations::TIMEOUT.to_owned(), "500ms".to_owned());
    house.engine.ready(slow, &[&endpoint("r", replica.address)]);
    known(&house, "f").await;
    let answer = raw(house.address, b"GET /function/f HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(answer.matches("tick ").count(), 8, "{answer}");
    assert!(!answer.ends_with("0\r\n\r\n"), "a stalled answer must not look whole: {answer}");
}

#[tokio::test]
async fn work_goes_to_the_replica_with_the_least_to_do() {
    let house = plain_house().await;
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let mut replicas = Vec::new();
    let mut endpoints = Vec::new();
    for index in 0..4 {
        let release = Arc::clone(&release);
        let replica = Replica::http(move |_| {
            let release = Arc::clone(&release);
            async move {
                drop(release.acquire().await);
                text("")
            }
        })
        .await;
        endpoints.push(endpoint(&format!("r{index}"), replica.address));
        replicas.push(replica);
    }
    house.engine.ready(spec("f"), &endpoints.iter().collect::<Vec<_>>());
    known(&house, "f").await;
    let total = || endpoints.iter().map(|endpoint| endpoint.load.in_flight()).sum::<usize>();
    let mut calls = Vec::new();
    for index in 1..=40 {
        calls.push(tokio::spawn(call(house.address)));
        until("the call is under way", || total() == index).await;
    }
    let loads: Vec<_> = endpoints.iter().map(|endpoint| endpoint.load.in_flight()).collect();
    assert_eq!(loads, [10, 10, 10, 10]);
    release.close();
    for call in calls {
        assert_eq!(call.await.unwrap().0, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_replaced_under_load_without_a_failed_request() {
    let house = Arc::new(plain_house().await);
    let replica = |index: usize| async move {
        let replica = Replica::http(|request: Request<Incoming>| async move {
            text(request.into_body().collect().await.unwrap().to_bytes())
        })
        .await;
        let endpoint = endpoint(&format!("r{index}"), replica.address);
        (replica, endpoint)
    };
    let (mut serving, mut current) = replica(0).await;
    house.engine.ready(spec("f"), &[&current]);
    known(&house, "f").await;
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (house, stop) = (Arc::clone(&house), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut sender = connect::<Full<Bytes>>(house.address).await;
                let mut calls = 0;
                while !stop.load(Ordering::SeqCst) {
                    let asked = request("localhost", "/function/f")
                        .method("POST")
                        .body(Full::from("payload"))
                        .unwrap();
                    sender.ready().await.unwrap();
                    let response = bounded("an answer", sender.send_request(asked)).await.unwrap();
                    assert_eq!(response.status(), StatusCode::OK);
                    let body = response.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(&body[..], b"payload");
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    let id = spec("f").id;
    for index in 1..=30 {
        let before = house.invoker.invocation_count(&id);
        until("calls go on", || house.invoker.invocation_count(&id) > before + 20).await;
        let (next_serving, next) = replica(index).await;
        if index % 3 == 0 {
            // The harder order: the door closes before the table changes.
            current.load.close();
        }
        house.engine.ready(spec("f"), &[&next]);
        assert_eq!(bounded("drained", current.load.drain(Duration::from_secs(30))).await, 0);
        std::mem::replace(&mut serving, next_serving).stop().await;
        current = next;
    }
    stop.store(true, Ordering::SeqCst);
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    assert!(calls > 600, "{calls}");
}
