//! WebSockets over HTTP/2 (RFC 8441): a stream of the caller's becomes a tunnel to a function that
//! knows `Upgrade` of HTTP/1.1.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use support::{
    House, Replica, annotated, bounded, connect_http2, endpoint, house, house_with, known, raw,
    text, told, until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use updraft_engine::Endpoint;
use updraft_model::annotations::PROTOCOL;

type Caller = SendRequest<Empty<Bytes>>;

/// A replica that changes its protocol when it is asked to by what HTTP/1.1 has for that, and
/// sends back what it gets.
async fn echoing() -> Replica {
    Replica::http(|request: Request<Incoming>| async move {
        let headers = request.headers();
        assert_eq!((request.method(), request.version()), (&Method::GET, Version::HTTP_11));
        assert_eq!(headers["connection"], "upgrade");
        assert_eq!(headers["sec-websocket-key"].len(), 24, "sixteen bytes in Base64");
        assert_eq!(headers["sec-websocket-protocol"], "chat");
        let mut response = text("");
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let answered = response.headers_mut();
        answered.insert("connection", "Upgrade".parse().unwrap());
        answered.insert("upgrade", headers["upgrade"].clone());
        answered.insert("sec-websocket-accept", "x".parse().unwrap());
        answered.insert("sec-websocket-protocol", "chat".parse().unwrap());
        answered.insert("x-path", request.uri().to_string().parse().unwrap());
        tokio::spawn(async move {
            let mut io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            let mut buffer = [0; 1024];
            while let Ok(read @ 1..) = io.read(&mut buffer).await {
                io.write_all(&buffer[..read]).await.unwrap();
            }
            io.write_all(b"bye").await.unwrap();
        });
        response
    })
    .await
}

/// A connection whose server has said what it can.
async fn caller(address: SocketAddr) -> Caller {
    let mut caller = connect_http2::<Empty<Bytes>>(address).await;
    let asked = Request::get("http://localhost/healthz").body(Empty::new()).unwrap();
    assert_eq!(bounded("an answer", caller.send_request(asked)).await.unwrap().status(), 200);
    caller
}

async fn open(caller: &mut Caller, path: &str) -> Response<Incoming> {
    let mut asked = Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri(format!("http://localhost{path}"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .body(Empty::new())
        .unwrap();
    asked.extensions_mut().insert(Protocol::from_static("websocket"));
    bounded("an answer", caller.send_request(asked)).await.unwrap()
}

async fn tunnel(response: Response<Incoming>) -> TokioIo<Upgraded> {
    TokioIo::new(bounded("the tunnel opens", hyper::upgrade::on(response)).await.unwrap())
}

async fn says(tunnel: &mut TokioIo<Upgraded>, words: &str) {
    tunnel.write_all(words.as_bytes()).await.unwrap();
    let mut read = vec![0; words.len()];
    bounded("the echo", tunnel.read_exact(&mut read)).await.unwrap();
    assert_eq!(read, words.as_bytes());
}

async fn echoing_house() -> (House, Arc<Endpoint>) {
    house_with(&echoing().await).await
}

#[tokio::test]
async fn a_stream_becomes_a_tunnel_beside_others_and_closes_half_by_half() {
    let (house, endpoint) = echoing_house().await;
    let mut caller = caller(house.address).await;
    let response = open(&mut caller, "/function/f/chat?room=1").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-path"], "/chat?room=1");
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    assert!(response.headers().contains_key("x-call-id"));
    for gone in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(!response.headers().contains_key(gone), "{gone} has no place in HTTP/2");
    }
    let mut one = tunnel(response).await;
    let response = open(&mut caller, "/function/f").await;
    let mut two = tunnel(response).await;
    for words in ["first", "and then"] {
        says(&mut one, words).await;
        says(&mut two, words).await;
    }
    assert_eq!(endpoint.load.in_flight(), 2);
    one.shutdown().await.unwrap();
    let mut rest = String::new();
    bounded("the other half closes", one.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "bye");
    until("one replica is free", || endpoint.load.in_flight() == 1).await;
    drop(two);
    until("both are free", || endpoint.load.in_flight() == 0).await;
    assert!(house.invoker.metrics_text().contains("code=\"101\"} 2"));
}

#[tokio::test]
async fn a_quiet_tunnel_keeps_its_connection_open() {
    let replica = echoing().await;
    let house = house(
        |_| {},
        |limits| {
            limits.head = Duration::from_millis(40);
            limits.idle = Duration::from_millis(40);
        },
    )
    .await;
    let endpoint = endpoint("r", replica.address);
    house.engine.ready(support::spec("f"), &[&endpoint]);
    known(&house, "f").await;
    let mut sender = caller(house.address).await;
    let mut quiet = tunnel(open(&mut sender, "/function/f").await).await;
    // One that carries nothing is told to go within the same time.
    let idle = caller(house.address).await;
    until("an idle connection is closed", || idle.is_closed()).await;
    until("and another one", {
        let idle = caller(house.address).await;
        move || idle.is_closed()
    })
    .await;
    says(&mut quiet, "still there").await;
}

#[tokio::test]
async fn a_function_that_does_not_change_its_protocol_is_told_of() {
    let replica = Replica::http(|request: Request<Incoming>| async move {
        let mut answer = text("no websocket here");
        *answer.status_mut() = request.uri().path()[1..].parse().unwrap();
        answer
    })
    .await;
    let (house, endpoint) = house_with(&replica).await;
    let mut caller = caller(house.address).await;
    // What refuses goes through; what seems to agree would be a tunnel that leads nowhere.
    for (path, status) in [("/function/f/403", 403), ("/function/f/426", 426)] {
        let response = open(&mut caller, path).await;
        assert_eq!(response.status(), status);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "no websocket here");
    }
    let response = open(&mut caller, "/function/f/200").await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let reason = told(&body)["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("200 OK") && reason.contains("`websocket`"), "{reason}");
    until("the replica is free", || endpoint.load.in_flight() == 0).await;
}

#[tokio::test]
async fn connect_leads_to_functions_and_to_nothing_else() {
    let (house, _endpoint) = echoing_house().await;
    let h2c = endpoint("h2c", "127.0.0.1:1".parse().unwrap());
    house.engine.ready(annotated("grpc", &[(PROTOCOL, "h2c")]), &[&h2c]);
    known(&house, "grpc").await;
    let mut caller = caller(house.address).await;
    for (path, status) in [
        ("/healthz", 405),
        ("/system/functions", 405),
        ("/api/v1/functions", 405),
        ("/function/unknown", 404),
        ("/function/grpc", 501),
    ] {
        let response = open(&mut caller, path).await;
        assert_eq!(response.status(), status, "{path}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(told(&body)["reason"].is_string(), "{path}");
    }
    // Without a protocol it would make a proxy of us.
    let asked = Request::connect("elsewhere.test:443").body(Empty::new()).unwrap();
    let response = bounded("an answer", caller.send_request(asked)).await.unwrap();
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    let plain = b"CONNECT /function/f HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = raw(house.address, plain).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
}
