//! The table of statuses that callers see, and what OpenFaaS's own suites pin down of a proxy.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use support::{
    Answer, Replica, annotated, bounded, endpoint, get, house, house_with, known, raw, read_close,
    request, send, spec, text, told, until,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use updraft_engine::Availability;
use updraft_model::annotations::{CONCURRENCY, QUEUE_LIMIT, TIMEOUT};

/// An answer of ours: names component, reason, function and call, and is marked as ours.
fn check_ours(situation: &str, (status, headers, body): &Answer, expected: u16, reason: &str) {
    assert_eq!(status.as_u16(), expected, "{situation}: {body:?}");
    assert_eq!(headers["x-openfaas-internal"], "gateway", "{situation}");
    assert_eq!(headers["content-type"], "application/json", "{situation}");
    let told = told(body);
    assert_eq!(told["component"], "invoke", "{situation}");
    assert_eq!(told["call_id"], headers["x-call-id"].to_str().unwrap(), "{situation}");
    assert!(told["function"].is_string(), "{situation}: {told}");
    assert!(told["reason"].as_str().unwrap().contains(reason), "{situation}: {told}");
}

#[tokio::test]
async fn each_situation_has_its_status_and_its_explanation() {
    let house = house(
        |options| {
            options.connect_limit = Duration::from_millis(100);
            options.wake_limit = Duration::from_millis(100);
            options.failing_patience = Duration::from_millis(20);
        },
        |_| {},
    )
    .await;
    let silent = Replica::raw(|mut stream| {
        Box::pin(async move { drop(support::read_close(&mut stream).await) })
    })
    .await;
    let dying = Replica::raw(|mut stream| {
        Box::pin(async move { drop(support::read_until(&mut stream, "\r\n\r\n").await) })
    })
    .await;
    let refusing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = endpoint("refusing", refusing.local_addr().unwrap());
    drop(refusing);
    let (mute, dead) = (endpoint("mute", silent.address), endpoint("dead", dying.address));
    house.engine.ready(annotated("silent", &[(TIMEOUT, "100ms")]), &[&mute]);
    house.engine.ready(spec("dying"), &[&dead]);
    house.engine.ready(spec("refusing"), &[&refused]);
    house.engine.put(spec("starting"), vec![], Availability::Starting);
    let failing = Availability::Failing("exit status 3".to_owned());
    house.engine.put(spec("failing"), vec![], failing);
    let limited = [(CONCURRENCY, "1"), (QUEUE_LIMIT, "0"), (TIMEOUT, "20s")];
    let busy = endpoint("busy", silent.address);
    house.engine.ready(annotated("busy", &limited), &[&busy]);
    known(&house, "busy").await;
    let address = house.address;
    let occupying = tokio::spawn(get(address, "127.0.0.1", "/function/busy"));
    until("the one call is under way", || busy.load.in_flight() == 1).await;
    for (situation, path, status, reason) in [
        ("it does not exist", "/function/unknown", 404, "`unknown` does not exist"),
        ("its name is empty but its namespace is not", "/function/.openfaas-fn", 404, "exist"),
        ("its name is no name", "/function/Not_A.Name!", 404, "exist"),
        ("it never answers", "/function/silent", 504, "100ms"),
        ("it dies before it answers", "/function/dying", 502, "`dead`"),
        ("it refuses connections", "/function/refusing", 502, "`refusing`"),
        ("it does not start in time", "/function/starting", 503, "100ms"),
        ("it cannot start", "/function/failing", 503, "exit status 3"),
        ("it has enough to do", "/function/busy", 429, "1 calls at once"),
    ] {
        check_ours(situation, &get(address, "127.0.0.1", path).await, status, reason);
    }
    occupying.abort();
}

/// Whoever asks for a stream is told of a failure like everybody else, and gets no empty 200.
#[tokio::test]
async fn a_stream_that_cannot_begin_is_a_failure_too() {
    let house = house(|options| options.connect_limit = Duration::from_millis(50), |_| {}).await;
    let dying = Replica::raw(|mut stream| {
        Box::pin(async move { drop(support::read_until(&mut stream, "\r\n\r\n").await) })
    })
    .await;
    house.engine.ready(spec("dying"), &[&endpoint("dead", dying.address)]);
    let refused = endpoint("refusing", "127.0.0.1:1".parse().unwrap());
    house.engine.ready(spec("refusing"), &[&refused]);
    known(&house, "refusing").await;
    let streams: [&[(&str, &str)]; 5] = [
        &[("accept", "text/event-stream")],
        &[("accept", "application/json, TEXT/EVENT-STREAM;q=0.9")],
        &[("accept", "application/x-ndjson")],
        &[("upgrade", "websocket"), ("connection", "upgrade")],
        &[("upgrade", "h2c"), ("connection", "upgrade")],
    ];
    for headers in streams {
        for (name, reason) in [("dying", "`dead`"), ("refusing", "`refusing`")] {
            let mut asked = request("127.0.0.1", &format!("/function/{name}"));
            for (name, value) in headers {
                asked = asked.header(*name, *value);
            }
            let answer = send(house.address, asked.body(Full::default()).unwrap()).await;
            check_ours(&format!("{name} with {headers:?}"), &answer, 502, reason);
        }
    }
}

#[tokio::test]
async fn what_the_function_answers_passes_unchanged() {
    let replica = Replica::http(|request: Request<Incoming>| async move {
        let code = request.uri().path()[1..].parse().unwrap();
        let mut response = text(if code == 204 { "" } else { "its own words" });
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        response
    })
    .await;
    let (house, _endpoint) = house_with(&replica).await;
    for code in [200, 204, 400, 401, 404, 408, 409, 422, 429, 500, 502, 503, 504] {
        let path = format!("/function/f/{code}");
        let (status, headers, body) = get(house.address, "127.0.0.1", &path).await;
        assert_eq!(status.as_u16(), code);
        assert_eq!(body, if code == 204 { "" } else { "its own words" });
        assert!(!headers.contains_key("x-openfaas-internal"), "{code}");
    }
}

#[tokio::test]
async fn the_path_behind_the_name_is_the_functions() {
    let replica = Replica::http(|request: Request<Incoming>| async move {
        text(format!("{} {}", request.method(), request.uri()))
    })
    .await;
    let (house, _endpoint) = house_with(&replica).await;
    for (path, seen) in [
        ("/function/f", "/"),
        ("/function/f/", "/"),
        ("/function/f/employees", "/employees"),
        ("/function/f/employees/100", "/employees/100"),
        ("/function/f.openfaas-fn", "/"),
        ("/function/f.openfaas-fn/employees", "/employees"),
        ("/function/f/a%2Fb%25%3F//c/./d/../e?q=%20&r", "/a%2Fb%25%3F//c/./d/../e?q=%20&r"),
        // What is no escape is the function's to judge.
        ("/function/f/100%/%zz?%", "/100%/%zz?%"),
        // A query names no namespace here; it is the function's.
        ("/function/f?namespace=other", "/?namespace=other"),
        ("/function/f.openfaas-fn/?namespace=other", "/?namespace=other"),
    ] {
        let asked = request("127.0.0.1", path).method("POST").body(Full::from("x")).unwrap();
        let (status, _, body) = send(house.address, asked).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(body, format!("POST {seen}"), "{path}");
    }
    // Beside the name itself nothing is a path to it, and no method changes that.
    for path in ["/function", "/function/", "/function//f", "/Function/f"] {
        let (status, headers, _) = get(house.address, "127.0.0.1", path).await;
        assert_eq!((status, headers.contains_key("location")), (StatusCode::OK, false), "{path}");
    }
    // The last dot splits, and only what is there is found.
    for path in
        ["/function/f.other", "/function/f.a.b", "/function/f.", "/function/f.f.openfaas-fn"]
    {
        assert_eq!(get(house.address, "127.0.0.1", path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn an_answer_without_a_type_gets_the_requests_or_plain_text() {
    let replica = Replica::http(|request: Request<Incoming>| async move {
        let typed = request.uri().path() == "/typed";
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut response: Response<support::Body> = text(body);
        if typed {
            response.headers_mut().insert("content-type", "image/png".parse().unwrap());
        }
        response
    })
    .await;
    let (house, _endpoint) = house_with(&replica).await;
    let kind = async |path: &str, sent: Option<&str>, body: &'static str| {
        let mut asked = request("127.0.0.1", path).method("POST");
        if let Some(sent) = sent {
            asked = asked.header("content-type", sent);
        }
        let (_, headers, _) = send(house.address, asked.body(Full::from(body)).unwrap()).await;
        headers.get("content-type").map(|kind| kind.to_str().unwrap().to_owned())
    };
    let json = Some("application/json");
    assert_eq!(kind("/function/f/typed", json, "x").await.as_deref(), Some("image/png"));
    assert_eq!(kind("/function/f", json, "x").await.as_deref(), json);
    assert_eq!(kind("/function/f", None, "x").await.as_deref(), Some("text/plain"));
    assert_eq!(kind("/function/f", json, "").await, None);
}

#[tokio::test]
async fn a_body_for_the_control_plane_may_not_stand_still() {
    let house = house(|_| {}, |limits| limits.stall = Duration::from_millis(150)).await;
    for path in ["/read", "/system/read"] {
        let host = if path == "/read" { "gateway.example.test" } else { "system.example.test" };
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 9\r\n\r\n"
        );
        let answer = raw(house.address, format!("{head}123456789").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("9 bytes"), "{answer}");
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(format!("{head}1234").as_bytes()).await.unwrap();
        let answer = read_close(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("150ms"), "{answer}");
    }
}

#[tokio::test]
async fn a_caller_who_takes_nothing_of_an_answer_is_cut_off() {
    let limits = |limits: &mut updraft_edge::EdgeLimits| {
        limits.head = Duration::from_millis(100);
        limits.stall = Duration::from_millis(300);
    };
    let house = house(|_| {}, limits).await;
    let replica = Replica::http(|_| async { text(vec![b'x'; 64 << 20]) }).await;
    let endpoint = endpoint("r", replica.address);
    house.engine.ready(spec("f"), &[&endpoint]);
    known(&house, "f").await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(b"GET /function/f HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    until("the answer has begun", || endpoint.load.in_flight() == 1).await;
    bounded("the replica is let go", async {
        while endpoint.load.in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
