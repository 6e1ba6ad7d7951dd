//! Private functions: what gets in, what does not, and what never reaches the function.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use sha2::Sha256;
use support::{
    Answer, House, Replica, annotated, endpoint, house, known, metric, raw, read_close, request,
    send, text, told, until,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use updraft_invoke::InvokeOptions;
use updraft_model::annotations::{AUTH, AUTH_SECRET, TIMEOUT};
use updraft_model::{FunctionSpec, SecretName};

fn private(auth: &str) -> FunctionSpec {
    let mut spec = annotated("f", &[(AUTH, auth), (AUTH_SECRET, "f-keys"), (TIMEOUT, "300ms")]);
    spec.secrets = vec![SecretName::new("f-keys").unwrap()];
    spec
}

/// A house with a private function that echoes, and how many requests have reached it.
async fn private_house(
    spec: FunctionSpec,
    options: impl FnOnce(&mut InvokeOptions),
) -> (House, Arc<AtomicUsize>, Replica) {
    let reached = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reached);
    let replica = Replica::http(move |request: Request<Incoming>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { text(request.into_body().collect().await.unwrap().to_bytes()) }
    })
    .await;
    let house = house(options, |_| {}).await;
    house.engine.ready(spec, &[&endpoint("r", replica.address)]);
    known(&house, "f").await;
    (house, reached, replica)
}

async fn with(house: &House, header: (&str, &str), body: &str) -> Answer {
    let asked = request("localhost", "/function/f").method("POST").header(header.0, header.1);
    send(house.address, asked.body(Full::from(body.to_owned())).unwrap()).await
}

fn signed(key: &str, body: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap().chain_update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

#[tokio::test]
async fn only_a_valid_token_reaches_the_function() {
    let (house, reached, _replica) = private_house(private("token"), |_| {}).await;
    house.engine.secret("f-keys", "  new-key \n\nold-key\n");
    for good in ["Bearer new-key", "bearer old-key"] {
        let (status, _, body) = with(&house, ("authorization", good), "hello").await;
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"hello"[..]));
    }
    for bad in ["", "Bearer", "Bearer ", "Bearer new-ke", "Bearer new-key2", "Basic new-key"] {
        let (status, headers, body) = with(&house, ("authorization", bad), "hello").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{bad}");
        assert_eq!(headers["www-authenticate"], "Bearer realm=\"f\"");
        let told = told(&body);
        assert_eq!((&told["component"], &told["function"]), (&"invoke".into(), &"f".into()));
        assert_eq!(told["call_id"], headers["x-call-id"].to_str().unwrap());
        assert!(!told.to_string().contains("key"), "{told}");
    }
    assert_eq!(with(&house, ("x-other", "1"), "").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(reached.load(Ordering::SeqCst), 2);
    // Who is not let in leaves no trace that could keep the function awake.
    assert_eq!(metric(&house, "gateway_function_invocation_started"), 2);
    assert_eq!(metric(&house, "updraft_function_denied_total"), 7);
    assert_eq!(house.engine.secret_reads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn only_a_body_signed_with_a_key_reaches_the_function() {
    let (house, reached, _replica) = private_house(private("hmac"), |_| {}).await;
    house.engine.secret("f-keys", "first\nsecond");
    for (name, key) in [("x-hub-signature-256", "first"), ("x-hmac-signature", "second")] {
        let (status, _, body) = with(&house, (name, &signed(key, "payload")), "payload").await;
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"payload"[..]));
    }
    let empty = with(&house, ("x-hmac-signature", &signed("first", "")), "").await;
    assert_eq!(empty.0, StatusCode::OK);
    let good = signed("first", "payload");
    for (name, value, body) in [
        ("x-hub-signature-256", good.as_str(), "payload "),
        ("x-hub-signature-256", &signed("third", "payload"), "payload"),
        ("x-hub-signature-256", &good[..good.len() - 2], "payload"),
        ("x-hub-signature-256", good.trim_start_matches("sha256="), "payload"),
        ("x-hub-signature", &good, "payload"),
        ("authorization", "Bearer first", "payload"),
    ] {
        let (status, headers, _) = with(&house, (name, value), body).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{name}: {value}");
        assert_eq!(headers["www-authenticate"], "HMAC-SHA256 realm=\"f\"");
    }
    assert_eq!(reached.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_signed_body_comes_whole_in_chunks_and_with_expect_too() {
    let (house, reached, _replica) = private_house(private("hmac"), |_| {}).await;
    house.engine.secret("f-keys", "key");
    let signature = signed("key", "payload");
    let answer = raw(
        house.address,
        format!(
            "POST /function/f HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Transfer-Encoding: chunked\r\nX-Hub-Signature-256: {signature}\r\n\r\n\
             3\r\npay\r\n4\r\nload\r\n0\r\nx-trailer: unsigned\r\n\r\n"
        )
        .as_bytes(),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("payload"), "{answer}");
    assert_eq!(reached.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_body_that_is_too_long_or_stands_still_is_given_up_before_it_costs_anything() {
    let (house, reached, _replica) =
        private_house(private("hmac"), |options| options.signed_body = 16).await;
    house.engine.secret("f-keys", "key");
    let long = "x".repeat(17);
    let (status, _, _) = with(&house, ("x-hmac-signature", &signed("key", &long)), &long).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let head = format!(
        "POST /function/f HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         X-Hmac-Signature: {}\r\n",
        signed("key", "12345678")
    );
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n11\r\n{long}\r\n0\r\n\r\n");
    let answer = raw(house.address, chunked.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let slow = format!("{head}Content-Length: 8\r\n\r\n1234");
    stream.write_all(slow.as_bytes()).await.unwrap();
    let answer = read_close(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("300ms"), "{answer}");
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_door_without_keys_stays_shut() {
    let (house, reached, _replica) =
        private_house(private("token"), |options| options.key_age = Duration::ZERO).await;
    let ask = async |header: (&str, &str)| with(&house, header, "").await;
    let (status, headers, body) = ask(("authorization", "Bearer x")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(headers.contains_key("retry-after"));
    assert!(told(&body)["reason"].as_str().unwrap().contains("`f-keys`"), "{body:?}");
    house.engine.secret("f-keys", " \n \n");
    assert_eq!(ask(("authorization", "Bearer x")).await.0, StatusCode::SERVICE_UNAVAILABLE);
    house.engine.secret("f-keys", "x");
    assert_eq!(ask(("authorization", "Bearer x")).await.0, StatusCode::OK);
    assert_eq!(reached.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn annotations_that_make_no_sense_shut_the_door() {
    for spec in [
        annotated("f", &[(AUTH, "tokn"), (AUTH_SECRET, "f-keys")]),
        annotated("f", &[(AUTH, "token")]),
        annotated("f", &[(AUTH, "token"), (AUTH_SECRET, "somebody-elses")]),
        annotated("f", &[(AUTH_SECRET, "f-keys")]),
    ] {
        let shown = format!("{:?}", spec.annotations);
        let (house, reached, _replica) = private_house(spec, |_| {}).await;
        house.engine.secret("somebody-elses", "x");
        house.engine.secret("f-keys", "x");
        let (status, _, _) = with(&house, ("authorization", "Bearer x"), "").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{shown}");
        assert_eq!(reached.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_key_that_was_replaced_is_refused_after_its_age_and_at_once_after_a_deployment() {
    let (house, _reached, replica) =
        private_house(private("token"), |options| options.key_age = Duration::from_millis(200))
            .await;
    house.engine.secret("f-keys", "one");
    assert_eq!(with(&house, ("authorization", "Bearer one"), "").await.0, StatusCode::OK);
    house.engine.secret("f-keys", "two");
    let started = std::time::Instant::now();
    while with(&house, ("authorization", "Bearer two"), "").await.0 != StatusCode::OK {
        assert!(started.elapsed() < Duration::from_secs(20), "the new key never counts");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let old = with(&house, ("authorization", "Bearer one"), "").await;
    assert_eq!(old.0, StatusCode::UNAUTHORIZED);

    let (house, _reached, _) = private_house(private("token"), |options| {
        options.key_age = Duration::from_hours(1);
    })
    .await;
    house.engine.secret("f-keys", "one");
    house.engine.ready(private("token"), &[&endpoint("r", replica.address)]);
    assert_eq!(with(&house, ("authorization", "Bearer one"), "").await.0, StatusCode::OK);
    house.engine.secret("f-keys", "two");
    let reads = || house.engine.secret_reads.load(Ordering::SeqCst);
    let before = house.invoker.find("f").unwrap();
    house.engine.ready(private("token"), &[&endpoint("r", replica.address)]);
    until("the table is new", || !Arc::ptr_eq(&before, &house.invoker.find("f").unwrap())).await;
    assert_eq!(with(&house, ("authorization", "Bearer two"), "").await.0, StatusCode::OK);
    assert!(reads() >= 2);
}

#[tokio::test]
async fn a_stranger_does_not_wake_a_private_function() {
    let house = support::plain_house().await;
    house.engine.secret("f-keys", "key");
    house.engine.put(private("token"), vec![], updraft_engine::Availability::Asleep);
    known(&house, "f").await;
    let (status, _, _) = with(&house, ("authorization", "Bearer wrong"), "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(house.engine.scale_calls(), 0);
}

#[tokio::test]
async fn a_submission_is_checked_by_the_same_door_and_its_call_not_again() {
    let (house, reached, _replica) = private_house(private("hmac"), |_| {}).await;
    house.engine.secret("f-keys", "key");
    let function = house.invoker.find("f").unwrap();
    let mut headers = http::HeaderMap::new();
    let refused = house.invoker.authorize(&function, &headers, Full::from("later")).await;
    assert_eq!(refused.unwrap_err().status, StatusCode::UNAUTHORIZED);
    headers.insert("x-hub-signature-256", signed("key", "later").parse().unwrap());
    let body = house.invoker.authorize(&function, &headers, Full::from("later")).await.unwrap();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "later");

    let caller = || {
        let peer = "192.0.2.1:1".parse().unwrap();
        updraft_invoke::Caller::new(peer, updraft_invoke::Scheme::Http)
    };
    let call = async |caller| {
        let body = updraft_invoke::RequestBody::from(Bytes::from("later"));
        let asked = Request::post("/").body(body).unwrap();
        house.invoker.call(&function, "/", asked, &caller).await.status()
    };
    assert_eq!(call(caller()).await, StatusCode::UNAUTHORIZED);
    assert_eq!(call(caller().authorized()).await, StatusCode::OK);
    assert_eq!(reached.load(Ordering::SeqCst), 1);
}
