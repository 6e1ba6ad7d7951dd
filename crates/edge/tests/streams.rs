//! Bodies on their way: streamed both ways, tunnelled, and never kept.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use support::{
    Body, PieceSender, Pieces, Replica, bounded, connect, connect_http2, house_with, piece, pieces,
    read_close, read_until, request, text, until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};

async fn next(body: &mut Incoming) -> Option<String> {
    loop {
        let frame = bounded("a piece of the body", body.frame()).await?.unwrap();
        let data = frame.into_data().unwrap();
        // HTTP/2 may end a body with an empty frame.
        if !data.is_empty() {
            return Some(String::from_utf8(data.to_vec()).unwrap());
        }
    }
}

/// A replica that sends its request body back piece by piece.
async fn echo() -> Replica {
    Replica::http(|request| async move {
        Response::new(request.into_body().map_err(std::io::Error::other).boxed())
    })
    .await
}

/// A replica whose answers the test sends piece by piece.
async fn directed() -> (Replica, mpsc::Receiver<PieceSender>) {
    let (hand_out, handed) = mpsc::channel(16);
    let replica = Replica::http(move |_| {
        let hand_out = hand_out.clone();
        async move {
            let (sender, body) = pieces();
            hand_out.send(sender).await.unwrap();
            let mut response = Response::new(body.boxed());
            let kind = "text/event-stream".parse().unwrap();
            response.headers_mut().insert("content-type", kind);
            response
        }
    })
    .await;
    (replica, handed)
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_sent() {
    let (replica, mut handed) = directed().await;
    let (house, endpoint) = house_with(&replica).await;
    let mut sender = connect::<Empty<Bytes>>(house.address).await;
    let asked = request("localhost", "/function/f").body(Empty::new()).unwrap();
    let response = bounded("the head", sender.send_request(asked)).await.unwrap();
    let events = handed.recv().await.unwrap();
    let mut body = response.into_body();
    for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        events.send(piece(event)).await.unwrap();
        assert_eq!(next(&mut body).await.unwrap(), event);
        assert_eq!(endpoint.load.in_flight(), 1);
    }
    drop(events);
    assert_eq!(next(&mut body).await, None);
    until("the replica is free", || endpoint.load.in_flight() == 0).await;
}

#[tokio::test]
async fn both_bodies_stream_at_the_same_time_over_http1_and_http2() {
    let replica = echo().await;
    let (house, _endpoint) = house_with(&replica).await;
    let mut one = connect::<Pieces>(house.address).await;
    let mut two = connect_http2::<Pieces>(house.address).await;
    for version in [1, 2] {
        let (upload, body) = pieces();
        let response = if version == 1 {
            let asked = request("localhost", "/function/f").method("POST").body(body).unwrap();
            bounded("the head", one.send_request(asked)).await
        } else {
            let target = "http://localhost/function/f";
            let asked = Request::builder().method("POST").uri(target).body(body).unwrap();
            bounded("the head", two.send_request(asked)).await
        };
        let mut body = response.unwrap().into_body();
        for text in ["one", "two", "three"] {
            upload.send(piece(text)).await.unwrap();
            assert_eq!(next(&mut body).await.as_deref(), Some(text));
        }
        drop(upload);
        assert_eq!(next(&mut body).await, None);
    }
}

#[tokio::test]
async fn an_upload_goes_on_while_the_caller_does_not_read_the_answer() {
    // Answers at once with more than all buffers hold, and reads the request beside it.
    let received = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&received);
    let replica = Replica::http(move |request: Request<Incoming>| {
        let counted = Arc::clone(&counted);
        async move {
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(Ok(frame)) = body.frame().await {
                    counted.fetch_add(frame.into_data().map_or(0, |d| d.len()), Ordering::SeqCst);
                }
            });
            text(vec![b'x'; 32 << 20])
        }
    })
    .await;
    let (house, _endpoint) = house_with(&replica).await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let size = 32 << 20;
    let head =
        format!("POST /function/f HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = vec![b'y'; 64 << 10];
    bounded("the whole upload is taken", async {
        for _ in 0..size / chunk.len() {
            stream.write_all(&chunk).await.unwrap();
        }
    })
    .await;
    until("the replica has it", || received.load(Ordering::SeqCst) == size).await;
}

#[tokio::test]
async fn big_bodies_pass_in_constant_memory() {
    let replica = echo().await;
    let (house, _endpoint) = house_with(&replica).await;
    let total: u64 = 512 << 20;
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let mut sender = connect::<Pieces>(house.address).await;
    let (upload, body) = pieces();
    tokio::spawn(async move {
        let chunk = Bytes::from(vec![b'z'; 256 << 10]);
        for _ in 0..total / chunk.len() as u64 {
            upload.send(Ok(Frame::data(chunk.clone()))).await.unwrap();
        }
    });
    let asked = request("localhost", "/function/f")
        .method("POST")
        .header("content-length", total)
        .body(body)
        .unwrap();
    let response = sender.send_request(asked).await.unwrap();
    assert!(!response.headers().contains_key("transfer-encoding") || response.status() == 200);
    let mut body = response.into_body();
    let before = resident();
    let (mut read, mut most) = (0, 0);
    while let Some(frame) = bounded("the body flows", body.frame()).await {
        read += frame.unwrap().into_data().unwrap().len() as u64;
        most = most.max(resident());
    }
    assert_eq!(read, total);
    assert!(most - before < 64 << 20, "grew by {} MiB", (most - before) >> 20);
}

/// A replica that speaks a protocol of its own after `101`: sends back what it gets.
async fn upgrading() -> Replica {
    Replica::http(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["connection"], "upgrade");
        let protocol = request.headers()["upgrade"].clone();
        let mut response = text("");
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
        response.headers_mut().insert("upgrade", protocol);
        tokio::spawn(async move {
            let mut io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            io.write_all(b"hello ").await.unwrap();
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

const UPGRADE: &[u8] = b"GET /function/f/chat HTTP/1.1\r\nHost: localhost\r\n\
    Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\nearly ";

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_that_holds_the_replica_and_closes_half_by_half() {
    let replica = upgrading().await;
    let (house, endpoint) = house_with(&replica).await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(UPGRADE).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
    assert!(head.contains("x-call-id"), "{head}");
    read_until(&mut stream, "hello early ").await;
    for word in ["one ", "two "] {
        stream.write_all(word.as_bytes()).await.unwrap();
        read_until(&mut stream, word).await;
        assert_eq!(endpoint.load.in_flight(), 1);
    }
    stream.shutdown().await.unwrap();
    assert_eq!(read_close(&mut stream).await, "bye");
    until("the replica is free", || endpoint.load.in_flight() == 0).await;
    assert_eq!(house.invoker.invocation_count(&support::spec("f").id), 1);
}

#[tokio::test]
async fn an_upgrade_that_the_function_declines_is_an_ordinary_answer() {
    let replica = Replica::http(|_| async { text("no") }).await;
    let (house, endpoint) = house_with(&replica).await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    for _ in 0..2 {
        let asked = &UPGRADE[..UPGRADE.len() - "early ".len()];
        stream.write_all(asked).await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\nno").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    until("the replica is free", || endpoint.load.in_flight() == 0).await;
    assert_eq!(replica.connections(), 1);
}

#[tokio::test]
async fn a_change_of_protocol_that_nobody_asked_for_is_not_passed_on() {
    let replica = Replica::raw(|mut stream| {
        Box::pin(async move {
            read_until(&mut stream, "\r\n\r\n").await;
            let answer =
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            drop(read_close(&mut stream).await);
        })
    })
    .await;
    let (house, endpoint) = house_with(&replica).await;
    let (status, _, _) = support::call(house.address).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    until("the replica is free", || endpoint.load.in_flight() == 0).await;
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let seen: Arc<Mutex<Option<HeaderMap>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let replica = Replica::http(move |request: Request<Incoming>| {
        let noted = Arc::clone(&noted);
        async move {
            assert_eq!(request.headers()["te"], "trailers");
            let collected = request.into_body().collect().await.unwrap();
            *noted.lock().await = collected.trailers().cloned();
            let (sender, body) = pieces();
            tokio::spawn(async move {
                sender.send(piece("answer")).await.unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("x-sum", "43".parse().unwrap());
                sender.send(Ok(Frame::trailers(trailers))).await.unwrap();
            });
            let mut response = Response::new(body.boxed());
            response.headers_mut().insert("trailer", "x-sum".parse().unwrap());
            response
        }
    })
    .await;
    let (house, _endpoint) = house_with(&replica).await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream
        .write_all(
            b"POST /function/f HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nConnection: te, close\r\n\
              Trailer: x-check\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-check: 42\r\n\r\n",
        )
        .await
        .unwrap();
    let answer = read_close(&mut stream).await;
    assert!(answer.contains("answer") && answer.ends_with("x-sum: 43\r\n\r\n"), "{answer}");
    assert_eq!(seen.lock().await.as_ref().unwrap()["x-check"], "42");
}

#[tokio::test]
async fn continue_is_said_only_when_a_replica_wants_the_body() {
    let replica = Replica::http(|request: Request<Incoming>| async move {
        assert!(!request.headers().contains_key("expect"));
        let body = request.into_body().collect().await.unwrap().to_bytes();
        text(body)
    })
    .await;
    let (house, _endpoint) = house_with(&replica).await;
    let ask = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        )
    };
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(ask("/function/f").as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.unwrap();
    let answer = read_until(&mut stream, "\r\n\r\nbody").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(ask("/function/unknown").as_bytes()).await.unwrap();
    let answer = read_close(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

#[tokio::test]
async fn a_caller_who_leaves_ends_the_call() {
    let (replica, mut handed) = directed().await;
    let (house, endpoint) = house_with(&replica).await;
    // While the answer streams.
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(b"GET /function/f HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let events = handed.recv().await.unwrap();
    events.send(piece("first")).await.unwrap();
    read_until(&mut stream, "first").await;
    drop(stream);
    bounded("the replica sees the caller leave", events.closed()).await;
    until("the replica is free", || endpoint.load.in_flight() == 0).await;

    // Before there is an answer, and by closing one half only.
    let silent =
        Replica::raw(|mut stream| Box::pin(async move { drop(read_close(&mut stream).await) }))
            .await;
    let (house, endpoint) = house_with(&silent).await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(b"GET /function/f HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    until("the replica is called", || endpoint.load.in_flight() == 1).await;
    stream.shutdown().await.unwrap();
    until("the replica is free", || endpoint.load.in_flight() == 0).await;
    let id = support::spec("f").id;
    until("the call is counted", || house.invoker.invocation_count(&id) == 1).await;
    assert!(house.invoker.metrics_text().contains("code=\"499\"} 1"));
}

#[tokio::test]
async fn an_early_answer_to_a_long_upload_arrives_and_frees_the_replica() {
    let replica = Replica::http(|_: Request<Incoming>| async {
        let mut response: Response<Body> = text("too big");
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        response
    })
    .await;
    let (house, endpoint) = house_with(&replica).await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let head =
        "POST /function/f HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\nstart";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, "too big").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    until("the replica is free", || endpoint.load.in_flight() == 0).await;
    let (status, _, _) = support::send(
        house.address,
        request("localhost", "/function/f").body(Full::default()).unwrap(),
    )
    .await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

/// No client of ours can be sent one: hyper has no way to write any but `100 Continue`.
#[tokio::test]
async fn informational_answers_end_here_and_the_final_one_arrives() {
    let replica = Replica::raw(|mut stream| {
        Box::pin(async move {
            loop {
                read_until(&mut stream, "\r\n\r\n").await;
                let answers = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
                    HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n\
                    HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone";
                stream.write_all(answers).await.unwrap();
            }
        })
    })
    .await;
    let (house, endpoint) = support::one_lane_house_with(&replica).await;
    for _ in 0..2 {
        let asked = b"GET /function/f HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let answer = support::raw(house.address, asked).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("done"), "{answer}");
        assert!(!answer.contains("HTTP/1.1 1") && !answer.contains("preload"), "{answer}");
        until("the replica is free", || endpoint.load.in_flight() == 0).await;
    }
    assert_eq!(replica.connections(), 1, "the connection is used again");
}

#[tokio::test]
async fn a_function_does_not_run_ahead_of_a_caller_who_reads_slowly() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let replica = Replica::http(move |_| {
        let counted = Arc::clone(&counted);
        async move {
            let (sender, body) = pieces();
            tokio::spawn(async move {
                let line = Bytes::from(format!("{{\"line\":\"{}\"}}\n", "x".repeat(64 << 10)));
                while sender.send(Ok(Frame::data(line.clone()))).await.is_ok() {
                    counted.fetch_add(line.len(), Ordering::SeqCst);
                }
            });
            let mut response = Response::new(body.boxed());
            let kind = "application/x-ndjson".parse().unwrap();
            response.headers_mut().insert("content-type", kind);
            response
        }
    })
    .await;
    let (house, endpoint) = house_with(&replica).await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(b"GET /function/f HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let stands_still = async || {
        bounded("the function has to wait", async {
            let mut before = usize::MAX;
            while before != sent.load(Ordering::SeqCst) || before == 0 {
                before = sent.load(Ordering::SeqCst);
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
            before
        })
        .await
    };
    let ahead = stands_still().await;
    assert!(ahead < 32 << 20, "{} MiB ahead of a caller who has read nothing", ahead >> 20);
    let mut read = vec![0; 8 << 20];
    bounded("the caller reads", stream.read_exact(&mut read)).await.unwrap();
    let later = stands_still().await;
    assert!(later > ahead, "reading lets the function go on");
    drop(stream);
    until("the replica is free", || endpoint.load.in_flight() == 0).await;
}
