//! Callers with bad intentions or bad software.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use support::{
    House, Replica, bounded, endpoint, house, house_with, known, raw, read_close, read_until, spec,
    text, until,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// A house with a function that counts the requests that reach it.
async fn counting() -> (House, Arc<AtomicUsize>) {
    let reached = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reached);
    let replica = Replica::http(move |request: Request<Incoming>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let lengths = request.headers().contains_key("content-length")
                && request.headers().contains_key("transfer-encoding");
            let smuggled = request.uri().path() == "/smuggled";
            text(if lengths || smuggled { "seen" } else { "" })
        }
    })
    .await;
    let (house, _endpoint) = house_with(&replica).await;
    (house, reached)
}

#[tokio::test]
async fn a_request_with_an_unclear_length_smuggles_nothing() {
    let smuggled = "GET /function/f/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for head in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4, 5",
        "Content-Length: +4",
        "Content-Length: -4",
        "Content-Length: 0x4",
        "Content-Length: 99999999999999999999999",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding : chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
    ] {
        let (house, reached) = counting().await;
        let asked = format!(
            "POST /function/f HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n0\r\n\r\n{smuggled}"
        );
        let answer = raw(house.address, asked.as_bytes()).await;
        // Where both lengths are given, chunks count and the connection ends, as HTTP/1.1 has it.
        let both = head.contains("Content-Length") && head.contains("Transfer-Encoding");
        let (status, most) = if both { ("200", 1) } else { ("400", 0) };
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head}: {answer}");
        assert!(!answer.contains("seen"), "{head}: {answer}");
        assert_eq!(reached.load(Ordering::SeqCst), most, "{head}");
    }
}

#[tokio::test]
async fn bad_chunks_never_look_like_a_whole_body() {
    for chunks in ["zz\r\nabc\r\n0\r\n\r\n", "3\r\nabcdef\r\n0\r\n\r\n", "fffffffffffffffff\r\n"] {
        let replica = Replica::http(|request: Request<Incoming>| async move {
            let whole = request.into_body().collect().await.is_ok();
            text(if whole { "whole" } else { "cut" })
        })
        .await;
        let (house, _endpoint) = house_with(&replica).await;
        let asked = format!(
            "POST /function/f HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
        );
        let answer = raw(house.address, asked.as_bytes()).await;
        assert!(!answer.contains("whole"), "{chunks}: {answer}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{chunks}: {answer}");
    }
}

#[tokio::test]
async fn heads_that_are_too_big_or_no_http_are_refused() {
    let house = house(|_| {}, |limits| limits.head_bytes = 64 * 1024).await;
    let big = format!(
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Big: {}\r\n\r\n",
        "x".repeat(80 * 1024)
    );
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    // The door may close before everything is written.
    drop(stream.write_all(big.as_bytes()).await);
    let answer = read_close(&mut stream).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many =
        format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(500));
    let answer = raw(house.address, many.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    for nonsense in ["\x16\x03\x01\x02\x00\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        let answer = raw(house.address, nonsense.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let fits = format!(
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Big: {}\r\n\r\n",
        "x".repeat(40 * 1024)
    );
    let answer = raw(house.address, fits.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn the_edge_is_no_open_proxy() {
    let (house, reached) = counting().await;
    let local = house.address;
    for asked in [
        "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\nConnection: close\r\n\r\n".to_owned(),
        format!("GET http://elsewhere.test/function/f HTTP/1.1\r\nHost: {local}\r\nConnection: close\r\n\r\n"),
        "GET /function/127.0.0.1:22/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_owned(),
        "GET /function/@127.0.0.1/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_owned(),
        "GET /function/f HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_owned(),
    ] {
        let answer = raw(house.address, asked.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(matches!(status, "400" | "404" | "405"), "{asked}: {answer}");
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn slow_heads_are_closed_and_slow_answers_are_not() {
    let limits = |limits: &mut updraft_edge::EdgeLimits| {
        limits.head = Duration::from_millis(100);
        limits.idle = Duration::from_millis(400);
    };
    let house = house(|_| {}, limits).await;
    let replica = Replica::http(|_| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        text("slow")
    })
    .await;
    house.engine.ready(spec("f"), &[&endpoint("r", replica.address)]);
    known(&house, "f").await;

    let mut silent = TcpStream::connect(house.address).await.unwrap();
    assert_eq!(read_close(&mut silent).await, "");

    let mut dripping = TcpStream::connect(house.address).await.unwrap();
    bounded("a head that drips is cut", async {
        dripping.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n").await.unwrap();
        while dripping.write_all(b"X: y\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;

    let mut second = TcpStream::connect(house.address).await.unwrap();
    second.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    read_until(&mut second, "\r\n\r\nOK").await;
    second.write_all(b"GET /heal").await.unwrap();
    assert_eq!(read_close(&mut second).await, "");

    let asked = b"GET /function/f HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = raw(house.address, asked).await;
    assert!(answer.ends_with("slow"), "{answer}");

    // An idle connection is retired, without an error in the middle of anything.
    let mut idle = TcpStream::connect(house.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(read_close(&mut idle).await.ends_with("OK"));
}

#[tokio::test]
async fn more_connections_than_allowed_wait_their_turn() {
    let house = house(|_| {}, |limits| limits.connections = 2).await;
    let ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut first = TcpStream::connect(house.address).await.unwrap();
    let mut second = TcpStream::connect(house.address).await.unwrap();
    for stream in [&mut first, &mut second] {
        stream.write_all(ask).await.unwrap();
        read_until(stream, "\r\n\r\nOK").await;
    }
    let mut third = TcpStream::connect(house.address).await.unwrap();
    third.write_all(ask).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(50), third.readable()).await;
    assert!(waiting.is_err(), "the third is served beside two others");
    drop(first);
    read_until(&mut third, "\r\n\r\nOK").await;
}

#[tokio::test]
async fn shutdown_lets_open_answers_end_and_cuts_what_does_not() {
    for grace in [Duration::from_secs(20), Duration::from_millis(50)] {
        let house = house(|_| {}, |limits| limits.grace = grace).await;
        let (hand_out, mut handed) = tokio::sync::mpsc::channel(1);
        let replica = Replica::http(move |_| {
            let hand_out = hand_out.clone();
            async move {
                let (sender, body) = support::pieces();
                hand_out.send(sender).await.unwrap();
                http::Response::new(body.boxed())
            }
        })
        .await;
        let replica_endpoint = endpoint("r", replica.address);
        house.engine.ready(spec("f"), &[&replica_endpoint]);
        known(&house, "f").await;
        let mut idle = TcpStream::connect(house.address).await.unwrap();
        idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        read_until(&mut idle, "\r\n\r\nOK").await;
        let mut open = TcpStream::connect(house.address).await.unwrap();
        open.write_all(b"GET /function/f HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let pieces = handed.recv().await.unwrap();
        pieces.send(support::piece("first ")).await.unwrap();
        read_until(&mut open, "first ").await;

        house.shutdown.cancel();
        assert_eq!(read_close(&mut idle).await, "");
        until("nobody listens any more", || std::net::TcpStream::connect(house.address).is_err())
            .await;
        if grace > Duration::from_secs(1) {
            assert!(!house.serving.is_finished());
            pieces.send(support::piece("last")).await.unwrap();
            drop(pieces);
            let rest = read_close(&mut open).await;
            assert!(rest.contains("last") && rest.ends_with("0\r\n\r\n"), "{rest}");
        } else {
            assert!(!read_close(&mut open).await.contains("0\r\n\r\n"));
        }
        // At once, and not only when somebody looks at the connection the next time.
        let ended = tokio::time::timeout(Duration::from_secs(5), house.serving);
        ended.await.expect("the edge has ended").unwrap();
        until("the replica is free", || replica_endpoint.load.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn shutdown_closes_tunnels_after_everything_else() {
    let house = house(|_| {}, |limits| limits.grace = Duration::from_secs(20)).await;
    let replica = Replica::raw(|mut stream| {
        Box::pin(async move {
            read_until(&mut stream, "\r\n\r\n").await;
            let answer = "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nopen";
            stream.write_all(answer.as_bytes()).await.unwrap();
            drop(read_close(&mut stream).await);
        })
    })
    .await;
    let replica_endpoint = endpoint("r", replica.address);
    house.engine.ready(spec("f"), &[&replica_endpoint]);
    known(&house, "f").await;
    let mut tunnel = TcpStream::connect(house.address).await.unwrap();
    let ask =
        b"GET /function/f HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    tunnel.write_all(ask).await.unwrap();
    read_until(&mut tunnel, "\r\n\r\nopen").await;
    assert_eq!(replica_endpoint.load.in_flight(), 1);
    house.shutdown.cancel();
    assert_eq!(read_close(&mut tunnel).await, "");
    bounded("the edge has ended", house.serving).await.unwrap();
    assert_eq!(replica_endpoint.load.in_flight(), 0);
}
