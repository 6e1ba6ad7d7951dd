//! Functions that speak HTTP/2, gRPC servers above all.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use support::{
    House, PieceSender, Pieces, Replica, annotated, bounded, call, connect_http2, endpoint, known,
    piece, pieces, plain_house, text, told, until,
};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use updraft_engine::Endpoint;
use updraft_model::FunctionSpec;
use updraft_model::annotations::{PROTOCOL, TIMEOUT};

fn h2c() -> FunctionSpec {
    annotated("f", &[(PROTOCOL, "h2c"), (TIMEOUT, "10s")])
}

async fn h2c_house(replica: &Replica) -> (House, Arc<Endpoint>) {
    let house = plain_house().await;
    let endpoint = endpoint("replica-1", replica.address);
    house.engine.ready(h2c(), &[&endpoint]);
    known(&house, "f").await;
    (house, endpoint)
}

/// A call as gRPC makes it, by a caller who speaks HTTP/2.
fn grpc<B>(method: &str, body: B) -> Request<B> {
    Request::post(format!("http://localhost/function/f/greeter.Greeter/{method}"))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "5S")
        .body(body)
        .unwrap()
}

fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

#[tokio::test]
async fn a_grpc_call_passes_with_its_trailers_in_both_directions() {
    let replica = Replica::http2(100, |request: Request<Incoming>| async move {
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.uri(), "http://localhost/greeter.Greeter/Hello");
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.headers()["grpc-timeout"], "5S");
        assert_eq!(request.headers()["x-forwarded-for"], "127.0.0.1");
        for absent in ["connection", "host", "upgrade", "transfer-encoding"] {
            assert!(!request.headers().contains_key(absent), "{absent}");
        }
        let collected = request.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["x-check"], "42");
        let (sender, body) = pieces();
        let message = collected.to_bytes();
        tokio::spawn(async move {
            sender.send(Ok(Frame::data(message))).await.unwrap();
            let trailers = trailers(&[("grpc-status", "0"), ("grpc-message", "fine")]);
            sender.send(Ok(Frame::trailers(trailers))).await.unwrap();
        });
        let mut response = Response::new(body.boxed());
        let kind = "application/grpc".parse().unwrap();
        response.headers_mut().insert("content-type", kind);
        response
    })
    .await;
    let (house, endpoint) = h2c_house(&replica).await;
    let mut sender = connect_http2::<Pieces>(house.address).await;
    let (upload, body) = pieces();
    let answer = sender.send_request(grpc("Hello", body));
    upload.send(piece("\0\0\0\0\u{3}abc")).await.unwrap();
    upload.send(Ok(Frame::trailers(trailers(&[("x-check", "42")])))).await.unwrap();
    let answer = bounded("the head", answer).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    assert!(answer.headers().contains_key("x-call-id"));
    let collected = bounded("the body", answer.into_body().collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(collected.trailers().unwrap()["grpc-message"], "fine");
    assert_eq!(collected.to_bytes(), "\0\0\0\0\u{3}abc");
    until("the replica is free", || endpoint.load.in_flight() == 0).await;
}

#[tokio::test]
async fn an_answer_of_trailers_only_stays_one() {
    let replica = Replica::http2(100, |_| async {
        let mut response = text("");
        response.headers_mut().extend(trailers(&[("grpc-status", "12")]));
        response
    })
    .await;
    let (house, _endpoint) = h2c_house(&replica).await;
    let mut sender = connect_http2::<Empty<Bytes>>(house.address).await;
    let answer = bounded("the head", sender.send_request(grpc("No", Empty::new()))).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["grpc-status"]),
        (StatusCode::OK, &"12".parse().unwrap())
    );
    let collected = answer.into_body().collect().await.unwrap();
    assert!(collected.trailers().is_none() && collected.to_bytes().is_empty());
}

#[tokio::test]
async fn messages_go_to_and_fro_while_the_call_lasts() {
    let replica = Replica::http2(100, |request: Request<Incoming>| async move {
        Response::new(request.into_body().map_err(std::io::Error::other).boxed())
    })
    .await;
    let (house, endpoint) = h2c_house(&replica).await;
    let mut sender = connect_http2::<Pieces>(house.address).await;
    let (upload, body) = pieces();
    let answer = bounded("the head", sender.send_request(grpc("Chat", body))).await.unwrap();
    let mut body = answer.into_body();
    for text in ["one", "two", "three"] {
        upload.send(piece(text)).await.unwrap();
        let frame = bounded("a message", body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
        assert_eq!(endpoint.load.in_flight(), 1);
    }
    drop(upload);
    while let Some(frame) = bounded("the end", body.frame()).await {
        assert!(frame.unwrap().into_data().unwrap().is_empty());
    }
    until("the replica is free", || endpoint.load.in_flight() == 0).await;
}

/// A replica that keeps every call until it is let go.
async fn gated(streams: u32) -> (Replica, Arc<Semaphore>) {
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let replica = Replica::http2(streams, move |_| {
        let gate = Arc::clone(&gate);
        async move {
            drop(gate.acquire().await);
            text("done")
        }
    })
    .await;
    (replica, go)
}

#[tokio::test]
async fn many_calls_share_a_connection_and_more_than_it_takes_get_another() {
    for (streams, connections) in [(200, 1), (20, 5)] {
        let (replica, go) = gated(streams).await;
        let (house, endpoint) = h2c_house(&replica).await;
        let mut sender = connect_http2::<Empty<Bytes>>(house.address).await;
        let mut calls = Vec::new();
        for _ in 0..100 {
            calls.push(tokio::spawn(sender.send_request(grpc("Wait", Empty::new()))));
        }
        until("all are there", || endpoint.load.in_flight() == 100).await;
        until("the connections are open", || replica.connections() == connections).await;
        go.close();
        for call in calls {
            let answer = bounded("an answer", call).await.unwrap().unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "done");
        }
        assert_eq!(replica.connections(), connections);
    }
}

#[tokio::test]
async fn callers_of_http1_are_served_too() {
    let replica = Replica::http2(100, |request: Request<Incoming>| async move {
        text(request.into_body().collect().await.unwrap().to_bytes())
    })
    .await;
    let (house, _endpoint) = h2c_house(&replica).await;
    let asked = support::request("localhost", "/function/f").method("POST");
    let asked = asked.header("connection", "upgrade").header("upgrade", "websocket");
    let (status, headers, body) =
        support::send(house.address, asked.body(Full::from("hello")).unwrap()).await;
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"hello"[..]));
    assert_eq!(headers["content-length"], "5");
}

#[tokio::test]
async fn a_caller_who_leaves_ends_the_stream_and_not_the_connection() {
    let (hand_out, mut handed) = mpsc::channel::<PieceSender>(4);
    let replica = Replica::http2(100, move |_| {
        let hand_out = hand_out.clone();
        async move {
            let (sender, body) = pieces();
            hand_out.send(sender).await.unwrap();
            Response::new(body.boxed())
        }
    })
    .await;
    let (house, endpoint) = h2c_house(&replica).await;
    let mut sender = connect_http2::<Empty<Bytes>>(house.address).await;
    for _ in 0..2 {
        let answer = sender.send_request(grpc("Watch", Empty::new()));
        let answer = bounded("the head", answer).await.unwrap();
        let events = handed.recv().await.unwrap();
        events.send(piece("first")).await.unwrap();
        let mut body = answer.into_body();
        assert_eq!(
            bounded("it", body.frame()).await.unwrap().unwrap().into_data().unwrap(),
            "first"
        );
        drop(body);
        bounded("the replica sees the caller leave", events.closed()).await;
        until("the replica is free", || endpoint.load.in_flight() == 0).await;
    }
    assert_eq!(replica.connections(), 1);
}

#[tokio::test]
async fn a_silent_replica_is_a_504_and_one_that_is_no_http2_server_a_502() {
    let (silent, _go) = gated(100).await;
    let house = plain_house().await;
    let endpoint = endpoint("silent", silent.address);
    house.engine.ready(annotated("f", &[(PROTOCOL, "h2c"), (TIMEOUT, "150ms")]), &[&endpoint]);
    known(&house, "f").await;
    let (status, _, body) = call(house.address).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    assert!(told(&body)["reason"].as_str().unwrap().contains("150ms"), "{body:?}");
    assert_eq!(endpoint.load.in_flight(), 0);

    let http1 = Replica::http(|_| async { text("no") }).await;
    let house =
        support::house(|options| options.connect_limit = Duration::from_millis(200), |_| {}).await;
    house.engine.ready(h2c(), &[&support::endpoint("replica-1", http1.address)]);
    known(&house, "f").await;
    let (status, _, body) = call(house.address).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(told(&body)["reason"].as_str().unwrap().contains("replica-1"), "{body:?}");
}

#[tokio::test]
async fn a_replica_that_breaks_off_is_seen_and_the_next_call_connects_anew() {
    let (hand_out, mut handed) = mpsc::channel::<PieceSender>(4);
    let replica = Replica::http2(100, move |request: Request<Incoming>| {
        let hand_out = hand_out.clone();
        async move {
            if request.uri().path().ends_with("/Break") {
                let (sender, body) = pieces();
                hand_out.send(sender).await.unwrap();
                return Response::new(body.boxed());
            }
            text("whole")
        }
    })
    .await;
    let (house, endpoint) = h2c_house(&replica).await;
    let mut sender = connect_http2::<Empty<Bytes>>(house.address).await;
    let answer = sender.send_request(grpc("Break", Empty::new()));
    let answer = bounded("the head", answer).await.unwrap();
    let breaking = handed.recv().await.unwrap();
    breaking.send(piece("part")).await.unwrap();
    let mut body = answer.into_body();
    assert_eq!(bounded("it", body.frame()).await.unwrap().unwrap().into_data().unwrap(), "part");
    breaking.send(Err(std::io::Error::other("gone"))).await.unwrap();
    assert!(bounded("the cut", body.collect()).await.is_err());
    until("the replica is free", || endpoint.load.in_flight() == 0).await;
    let answer = sender.send_request(grpc("Whole", Empty::new()));
    assert_eq!(bounded("the head", answer).await.unwrap().status(), StatusCode::OK);

    // The process dies and another listens at its address.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&served);
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let counted = Arc::clone(&counted);
            let service = hyper::service::service_fn(move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
                async { Ok::<_, std::convert::Infallible>(text("again")) }
            });
            let executor = hyper_util::rt::TokioExecutor::new();
            let connection = hyper::server::conn::http2::Builder::new(executor)
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            // Ends the connection after each request, politely.
            let mut told = 0;
            loop {
                let step = tokio::time::timeout(Duration::from_millis(5), connection.as_mut());
                if step.await.is_ok() {
                    break;
                }
                if served.load(Ordering::SeqCst) > told {
                    told = usize::MAX;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    });
    let house = plain_house().await;
    house.engine.ready(h2c(), &[&support::endpoint("r", address)]);
    known(&house, "f").await;
    let (status, _, body) = call(house.address).await;
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"again"[..]));
    serving.abort();
}
