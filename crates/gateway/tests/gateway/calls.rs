//! `/async-function/…`.

use axum::body::Body;
use serde_json::Value;
use updraft_queue::{CallFilter, CallId, CallRecord, CallState};

use crate::harness::{ADMIN, Answer, Gateway};

/// A gateway with the function `f`, and one of alice's.
async fn with_functions() -> Gateway {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"f","image":"i"}"#).await;
    let pushed = r#"{"service":"alice-g","image":"i","labels":{
        "com.openfaas.cloud.git-owner":"alice","com.openfaas.cloud.git-repo":"site"}}"#;
    gateway.deploy(pushed).await;
    gateway.is_callable("f", true).await;
    gateway.is_callable("alice-g", true).await;
    gateway
}

async fn record(gateway: &Gateway, answer: &Answer) -> CallRecord {
    answer.succeeds(202);
    assert!(!answer.headers["x-start-time"].is_empty());
    let id: CallId = answer.headers["x-call-id"].to_str().unwrap().parse().unwrap();
    gateway.queue.call(&id).await.unwrap().unwrap()
}

async fn kept(gateway: &Gateway) -> usize {
    gateway.queue.list(CallFilter::default()).await.unwrap().len()
}

fn refusal(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/json");
    let told: Value = serde_json::from_str(&answer.text).unwrap();
    assert_eq!(told["call_id"], answer.headers["x-call-id"].to_str().unwrap());
    told
}

#[tokio::test]
async fn a_call_is_kept_with_path_and_query_as_they_came() {
    let gateway = with_functions().await;
    for (path, target) in [
        ("/async-function/f", "/"),
        ("/async-function/f/", "/"),
        ("/async-function/f?a=%20b", "/?a=%20b"),
        ("/async-function/f.openfaas-fn/a%2Fb//c/../d?x=1&x", "/a%2Fb//c/../d?x=1&x"),
    ] {
        let call = record(&gateway, &gateway.send("POST", path, &[], "body").await).await;
        assert_eq!((call.target.as_str(), call.method.as_str()), (target, "POST"), "{path}");
        assert_eq!((call.function.to_string().as_str(), call.body_length), ("f.openfaas-fn", 4));
    }
}

#[tokio::test]
async fn the_callers_call_id_and_callback_are_kept() {
    let gateway = with_functions().await;
    let headers = [("x-call-id", "my-call"), ("x-callback-url", "https://example.com/done?x")];
    let answer = gateway.send("POST", "/async-function/f", &headers, "").await;
    assert_eq!(answer.headers["x-call-id"], "my-call");
    let call = record(&gateway, &answer).await;
    assert_eq!(call.callback.unwrap().url, "https://example.com/done?x");
    // Ids stand in logs and files, and belong to one call each.
    for id in ["my-call", "../../etc/passwd", &"x".repeat(1000), "a b"] {
        let answer = gateway.send("POST", "/async-function/f", &[("x-call-id", id)], "").await;
        assert_ne!(record(&gateway, &answer).await.id.as_str(), id);
    }
}

#[tokio::test]
async fn an_unknown_function_is_404_and_nothing_is_kept() {
    let gateway = with_functions().await;
    for name in ["gone", "f.nowhere", ".openfaas-fn", "F", "a%2Fb"] {
        let told =
            refusal(&gateway.send("POST", &format!("/async-function/{name}"), &[], "x").await, 404);
        assert!(told["reason"].as_str().unwrap().contains("does not exist"), "{told}");
    }
    assert_eq!(kept(&gateway).await, 0);
}

#[tokio::test]
async fn a_callback_that_cannot_be_read_is_400_and_nothing_is_kept() {
    let gateway = with_functions().await;
    for url in [
        "http://a b/",
        "http://[::1",
        "ftp://example.com/x",
        "/only/a/path",
        "mailto:a@b",
        "https://name:password@example.com/",
    ] {
        let answer =
            gateway.send("POST", "/async-function/f", &[("x-callback-url", url)], "x").await;
        refusal(&answer, 400);
    }
    assert_eq!(kept(&gateway).await, 0);
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413_and_nothing_is_kept() {
    let gateway = with_functions().await;
    let answer = gateway.send("POST", "/async-function/f", &[], vec![0; (1 << 20) + 1]).await;
    assert!(refusal(&answer, 413)["reason"].as_str().unwrap().contains("1048576"));
    // And one whose length is not told before.
    let pieces = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0; 1 << 16]));
    let pieces = futures_util::StreamExt::take(pieces, 20);
    let answer = gateway.send("POST", "/async-function/f", &[], Body::from_stream(pieces)).await;
    refusal(&answer, 413);
    assert_eq!(kept(&gateway).await, 0);
    let fits = gateway.send("POST", "/async-function/f", &[], vec![0; 1 << 20]).await;
    assert_eq!(record(&gateway, &fits).await.body_length, 1 << 20);
}

#[tokio::test]
async fn only_post_submits() {
    let gateway = with_functions().await;
    for method in ["GET", "PUT", "PATCH", "OPTIONS"] {
        gateway.send(method, "/async-function/f", &[], "").await.succeeds(405);
        gateway.send(method, "/async-function/f/path", &[], "").await.succeeds(405);
    }
    gateway.send("DELETE", "/async-function/f/path", &[], "").await.succeeds(405);
    gateway.get("/async-function/").await.fails(404, "404 page not found");
}

#[tokio::test]
async fn a_private_function_is_checked_before_its_call_is_kept() {
    let gateway = Gateway::new().await;
    gateway
        .call("POST", "/system/secrets", r#"{"name":"key","value":"sesame"}"#)
        .await
        .succeeds(202);
    let private = r#"{"service":"p","image":"i","secrets":["key"],"annotations":{
        "updraft.auth":"token","updraft.auth-secret":"key"}}"#;
    gateway.deploy(private).await;
    gateway.is_callable("p", true).await;
    for headers in [&[][..], &[("authorization", "Bearer wrong")]] {
        refusal(&gateway.send("POST", "/async-function/p", headers, "x").await, 401);
    }
    assert_eq!(kept(&gateway).await, 0);
    let headers = [("authorization", "Bearer sesame")];
    record(&gateway, &gateway.send("POST", "/async-function/p", &headers, "x").await).await;
}

#[tokio::test]
async fn the_administrator_and_the_functions_owner_cancel() {
    let gateway = with_functions().await;
    let submit = async |name: &str| {
        let answer = gateway.send("POST", &format!("/async-function/{name}"), &[], "").await;
        record(&gateway, &answer).await.id
    };
    let cancel = async |credentials: Option<&str>, id: &CallId| {
        gateway.call_as(credentials, "DELETE", &format!("/async-function/{id}"), "").await
    };
    let (nobodys, alices, another) =
        (submit("f").await, submit("alice-g").await, submit("alice-g").await);
    for id in [&nobodys, &alices] {
        cancel(None, id).await.fails(401, "invalid credentials");
        cancel(Some("Bearer guessed"), id).await.fails(401, "invalid credentials");
    }
    // Alice does not learn whether somebody else's call is there.
    let foreign = cancel(Some(&gateway.owner), &nobodys).await;
    let absent = cancel(Some(&gateway.owner), &"no-such-call".parse().unwrap()).await;
    assert_eq!((foreign.status, &foreign.text), (absent.status, &absent.text));
    foreign.fails_with(404, "no call of that id");

    cancel(Some(&gateway.owner), &alices).await.succeeds(202);
    cancel(Some(ADMIN), &another).await.succeeds(202);
    cancel(Some(ADMIN), &nobodys).await.succeeds(202);
    for id in [&alices, &another, &nobodys] {
        let state = gateway.queue.call(id).await.unwrap().unwrap().state;
        assert_eq!(state, CallState::Cancelled);
    }
    cancel(Some(ADMIN), &nobodys).await.fails_with(409, "has ended already");
}
