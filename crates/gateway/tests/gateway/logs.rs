//! `/system/logs`.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Request, Response, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{ADMIN, Gateway, id};

async fn with_lines() -> Gateway {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"f","image":"i"}"#).await;
    for (instance, time, text) in [
        ("f-1", "2026-01-01T00:00:01Z", "one"),
        ("f-2", "2026-01-01T00:00:02.123456789Z", "two \"quoted\"\ttab"),
        ("f-1", "2026-01-01T00:00:03Z", "three"),
    ] {
        gateway.engine.write_line(&id("f"), instance, time, text);
    }
    gateway
}

async fn lines(gateway: &Gateway, query: &str) -> Vec<Value> {
    let answer = gateway.get(&format!("/system/logs?{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/x-ndjson");
    answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn texts(gateway: &Gateway, query: &str) -> Vec<String> {
    let lines = lines(gateway, query).await;
    lines.iter().map(|line| line["text"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_log_that_is_not_followed_ends_by_itself() {
    let gateway = with_lines().await;
    let lines = lines(&gateway, "name=f&namespace=openfaas-fn&follow=false&tail=-1").await;
    assert_eq!(lines.len(), 3);
    assert_eq!(
        lines[1],
        json!({
            "name": "f",
            "namespace": "openfaas-fn",
            "instance": "f-2",
            "timestamp": "2026-01-01T00:00:02.123456789Z",
            "text": "two \"quoted\"\ttab",
        })
    );
}

#[tokio::test]
async fn tail_since_and_instance_choose_lines() {
    let gateway = with_lines().await;
    assert_eq!(texts(&gateway, "name=f&tail=1").await, ["three"]);
    assert_eq!(texts(&gateway, "name=f.openfaas-fn&tail=0").await.len(), 3);
    assert_eq!(texts(&gateway, "name=f&since=2026-01-01T00:00:03Z").await, ["three"]);
    assert_eq!(texts(&gateway, "name=f&since=2026-01-01T02:00:03%2B02:00").await, ["three"]);
    assert_eq!(texts(&gateway, "name=f&instance=f-2").await.len(), 1);
    assert_eq!(texts(&gateway, "name=f&instance=&since=&tail=&follow=").await.len(), 3);
}

#[tokio::test]
async fn of_a_repeated_key_the_last_value_counts() {
    let gateway = with_lines().await;
    assert_eq!(
        texts(&gateway, "name=g&name=f&tail=2&tail=1&follow=true&follow=false").await,
        ["three"]
    );
}

#[tokio::test]
async fn a_query_that_cannot_be_read_is_422() {
    let gateway = with_lines().await;
    for query in [
        "",
        "name=f&tail=x",
        "name=f&since=now",
        "name=f&follow=maybe",
        "name=f&tail=99999999999999999999",
    ] {
        let answer = gateway.get(&format!("/system/logs?{query}")).await;
        answer.fails_with(422, "could not parse the log request");
    }
}

#[tokio::test]
async fn logs_of_an_absent_function_are_404() {
    let gateway = with_lines().await;
    gateway.get("/system/logs?name=g").await.fails_with(404, "g.openfaas-fn");
}

async fn serve(gateway: &Gateway) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, gateway.router.clone()).into_future());
    address
}

async fn open(address: SocketAddr, path: &str) -> Response<Incoming> {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, "localhost")
        .header(header::AUTHORIZATION, ADMIN)
        .body(Empty::<Bytes>::new())
        .unwrap();
    sender.send_request(request).await.unwrap()
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.unwrap_or_else(|_| panic!("{what}"))
}

#[tokio::test]
async fn a_followed_log_brings_each_line_as_it_is_written_and_ends_with_the_client() {
    let gateway = with_lines().await;
    let address = serve(&gateway).await;
    let response = within(
        "the head comes before any line",
        open(address, "/system/logs?name=f&tail=1&follow=true"),
    );
    let mut body = response.await.into_body();
    let mut next = async || -> Value {
        let frame = within("the next line", body.frame()).await.unwrap().unwrap();
        serde_json::from_slice(&frame.into_data().unwrap()).unwrap()
    };
    assert_eq!(next().await["text"], "three");
    for text in ["four", "five"] {
        gateway.engine.write_line(&id("f"), "f-3", "2026-01-01T00:00:04Z", text);
        assert_eq!(next().await["text"], text);
    }
    assert_eq!(gateway.engine.open_logs.load(Ordering::SeqCst), 1);
    drop(body);
    let left = async {
        while gateway.engine.open_logs.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    };
    within("the engine's stream to be dropped with the client", left).await;
}

#[tokio::test]
async fn the_head_of_a_silent_log_comes_at_once() {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"quiet","image":"i"}"#).await;
    let address = serve(&gateway).await;
    let response = within("the head", open(address, "/system/logs?name=quiet&follow=1")).await;
    assert_eq!(response.headers()[header::TRANSFER_ENCODING], "chunked");
}
