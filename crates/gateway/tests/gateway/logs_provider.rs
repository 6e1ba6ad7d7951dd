//! `/system/logs` where a service of the operator's keeps the logs.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tower::ServiceExt;
use updraft_gateway::{Authentication, ServiceUrl};

use crate::harness::{ADMIN, Gateway};

type Asked = Arc<Mutex<Vec<(Uri, HeaderMap)>>>;

/// A service that answers as the test says, and what it was asked.
async fn service<F>(answer: F) -> (ServiceUrl, Asked)
where
    F: Fn() -> Response + Clone + Send + Sync + 'static,
{
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    let router = axum::Router::new().fallback(move |uri: Uri, headers: HeaderMap| {
        seen.lock().unwrap().push((uri, headers));
        let answer = answer();
        async move { answer }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keeper/", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router).into_future());
    (url.parse().unwrap(), asked)
}

async fn gateway(provider: ServiceUrl) -> Gateway {
    Gateway::with_services(Authentication::Password, Some(provider)).await
}

#[tokio::test]
async fn the_service_is_asked_what_was_asked_here_and_its_lines_pass() {
    let lines = "{\"name\":\"f\",\"text\":\"one\"}\n{\"name\":\"f\",\"text\":\"two\"}\n";
    let (provider, asked) = service(move || lines.into_response()).await;
    let gateway = gateway(provider).await;
    let query = "name=f&namespace=openfaas-fn&tail=5&since=2026-01-01T00%3A00%3A00Z&follow=false";
    let answer = gateway.get(&format!("/system/logs?{query}")).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, lines));
    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/x-ndjson");
    // What cannot be read is refused here, and so is who may not ask.
    gateway.get("/system/logs?name=f&tail=x").await.fails_with(422, "could not parse");
    gateway.call_as(None, "GET", "/system/logs?name=f", "").await.fails(401, "invalid credentials");
    let asked = asked.lock().unwrap();
    let [(uri, headers)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(uri.to_string(), format!("/keeper/system/logs?{query}"));
    assert!(!headers.contains_key("authorization"), "the password is nobody else's");
}

#[tokio::test]
async fn what_the_service_refuses_is_told_as_openfaas_tells_it() {
    for (status, told, text) in [
        (404, 501, "answered 404"),
        (501, 501, "answered 501"),
        (500, 500, "unknown log request error (500)"),
        (429, 500, "unknown log request error (429)"),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let (provider, _) = service(move || status.into_response()).await;
        gateway(provider).await.get("/system/logs?name=f").await.fails_with(told, text);
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let gateway = gateway(nobody.parse().unwrap()).await;
    gateway.get("/system/logs?name=f").await.fails(500, "log request failed");
}

/// Neither side's end leaves the other open.
#[tokio::test]
async fn lines_come_as_they_are_written_and_each_side_ends_the_other() {
    let (hand_out, mut handed) = mpsc::unbounded_channel::<mpsc::Sender<&'static str>>();
    let (provider, _) = service(move || {
        let (sender, lines) = mpsc::channel(1);
        hand_out.send(sender).unwrap();
        let lines = tokio_stream::wrappers::ReceiverStream::new(lines);
        Body::from_stream(lines.map(|line| Ok::<_, Infallible>(Bytes::from(line)))).into_response()
    })
    .await;
    let gateway = gateway(provider).await;
    let open = async || {
        let request = Request::get("/system/logs?name=f&follow=true")
            .header(header::AUTHORIZATION, ADMIN)
            .body(Body::empty());
        gateway.router.clone().oneshot(request.unwrap()).await.unwrap().into_body()
    };
    let bounded = async |what: &str, future: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        tokio::time::timeout(Duration::from_secs(10), future).await.expect(what);
    };
    let mut body = open().await;
    let writer = handed.recv().await.unwrap();
    for line in ["one\n", "two\n"] {
        writer.send(line).await.unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), line);
    }
    drop(body);
    bounded("the service sees the client leave", Box::pin(async move { writer.closed().await }))
        .await;
    let mut body = open().await;
    let writer = handed.recv().await.unwrap();
    drop(writer);
    assert!(body.frame().await.is_none(), "the service's end is the client's");
}
