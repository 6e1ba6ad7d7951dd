//! The table of headers: what goes on to the function and what comes back, row by row.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use http::HeaderMap;
use http_body_util::Full;
use serde_json::{Map, Value, json};
use support::{House, Replica, house_with, raw, request, send, text};

/// A replica that tells which headers it saw, each with its values in their order.
async fn seeing() -> Replica {
    Replica::http(|request| async move {
        let mut seen = Map::new();
        for name in request.headers().keys() {
            let values = request.headers().get_all(name).iter().map(|v| v.to_str().unwrap());
            seen.insert(name.to_string(), values.collect());
        }
        text(Value::Object(seen).to_string())
    })
    .await
}

async fn seen_of(house: &House, headers: &[(&str, &str)], body: &'static str) -> Value {
    let mut asked = request("127.0.0.1:8080", "/function/f").method("POST");
    for (name, value) in headers {
        asked = asked.header(*name, *value);
    }
    let (_, _, body) = send(house.address, asked.body(Full::from(body)).unwrap()).await;
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn headers_of_the_hop_and_those_that_fool_programs_stay_here() {
    let replica = seeing().await;
    let (house, _endpoint) = house_with(&replica).await;
    for (name, value) in [
        ("connection", "close"),
        ("proxy-connection", "keep-alive"),
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authorization", "Basic eA=="),
        ("te", "gzip"),
        ("upgrade", "websocket"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
        // Behind CGI it becomes HTTP_PROXY.
        ("proxy", "http://evil.test"),
        ("expect", "100-continue"),
    ] {
        let seen = seen_of(&house, &[(name, value)], "x").await;
        assert_eq!(seen.get(name), None, "{name}: {value}");
        assert_eq!(seen["content-length"], json!(["1"]), "the length is kept beside {name}");
        assert_eq!(seen.get("transfer-encoding"), None);
    }
    let chunked = b"POST /function/f HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\
        Connection: close\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    let answer = raw(house.address, chunked).await;
    // Of unknown length it goes on in chunks of our own making.
    assert!(answer.contains(r#""transfer-encoding":["chunked"]"#), "{answer}");
    assert!(!answer.contains("content-length\":"), "{answer}");
}

#[tokio::test]
async fn everything_else_goes_on_as_it_came() {
    let replica = seeing().await;
    let (house, _endpoint) = house_with(&replica).await;
    for (name, value) in [
        ("authorization", "Basic YWRtaW46eA=="),
        ("cookie", "a=1; b=2"),
        ("user-agent", "somebody/1"),
        ("accept-encoding", "gzip, br"),
        ("content-encoding", "zstd"),
        ("content-type", "application/json; charset=latin1"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "vendor=value"),
        ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"),
        ("range", "bytes=0-9"),
        ("if-none-match", "\"x\""),
        ("origin", "https://a.test"),
        ("x-real-ip", "192.0.2.9"),
        ("x-callback-url", "http://a.test/"),
        ("x-http-method-override", "DELETE"),
        ("x-empty", ""),
    ] {
        let seen = seen_of(&house, &[(name, value)], "x").await;
        assert_eq!(seen[name], json!([value]), "{name}");
    }
    let twice = [("x-twice", "one"), ("x-twice", "two"), ("X-Twice", "one")];
    assert_eq!(seen_of(&house, &twice, "").await["x-twice"], json!(["one", "two", "one"]));
}

#[tokio::test]
async fn nothing_is_added_but_what_tells_of_the_call() {
    let replica = seeing().await;
    let (house, _endpoint) = house_with(&replica).await;
    let seen = seen_of(&house, &[], "").await;
    let names: Vec<&str> = seen.as_object().unwrap().keys().map(String::as_str).collect();
    // Above all no credentials of the platform's own, and no program that nobody named.
    let told = ["x-call-id", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
    let expected = [&["content-length", "host"], &told[..], &["x-start-time"]].concat();
    assert!(names.iter().all(|name| expected.contains(name)), "{names:?}");
    assert!(told.iter().all(|name| names.contains(name)), "{names:?}");
    assert_eq!(seen["x-forwarded-for"], json!(["127.0.0.1"]), "an address without a port");
    assert_eq!(seen["host"], json!(["127.0.0.1:8080"]), "the caller's, not the replica's");
}

#[tokio::test]
async fn of_an_answer_the_hops_headers_stay_here_and_the_rest_passes() {
    const SENT: [(&str, &str); 12] = [
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("upgrade", "h2c"),
        ("proxy-connection", "close"),
        ("x-call-id", "the function's own"),
        ("x-start-time", "1"),
        ("x-served-by", "the function"),
        ("server", "gunicorn"),
        ("www-authenticate", "Bearer"),
        ("access-control-allow-origin", "*"),
        ("location", "http://elsewhere.test/"),
        ("x-openfaas-internal", "watchdog"),
    ];
    let replica = Replica::http(|_| async {
        let mut answer = text("x");
        for (name, value) in SENT {
            answer.headers_mut().insert(name, value.parse().unwrap());
        }
        answer
    })
    .await;
    let (house, _endpoint) = house_with(&replica).await;
    let asked = request("127.0.0.1", "/function/f").header("x-call-id", "mine");
    let (_, headers, _): (_, HeaderMap, _) =
        send(house.address, asked.body(Full::default()).unwrap()).await;
    for name in ["keep-alive", "proxy-authenticate", "upgrade", "proxy-connection"] {
        assert!(!headers.contains_key(name), "{name}");
    }
    for (name, value) in &SENT[7..] {
        assert_eq!(headers[*name], *value);
    }
    // What names the call is ours to say, once.
    for (name, value) in [("x-call-id", "mine"), ("x-served-by", "updraft/test")] {
        let values: Vec<_> = headers.get_all(name).iter().collect();
        assert_eq!(values, [value], "{name}");
    }
    assert_eq!(headers.get_all("x-start-time").iter().count(), 1);
    assert_ne!(headers["x-start-time"], "1");
}
