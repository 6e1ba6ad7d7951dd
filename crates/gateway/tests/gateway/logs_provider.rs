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
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use updraft_gateway::{Authentication, Service, ServiceUrl};

use crate::harness::{ADMIN, Gateway};

type Asked = Arc<Mutex<Vec<(Uri, HeaderMap)>>>;

/// A service that answers as the test says, and what it was asked.
async fn service<F>(answer: F) -> (Service, Asked)
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
    (Service::open(url.parse().unwrap(), None).unwrap(), asked)
}

async fn gateway(provider: Service) -> Gateway {
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
    let gateway = gateway(Service::open(nobody.parse().unwrap(), None).unwrap()).await;
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

#[tokio::test]
async fn over_tls_the_service_is_asked_when_its_certificate_is_believed_and_not_otherwise() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/loki/", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let service = service_fn(async |request: Request<Incoming>| {
                Ok::<_, Infallible>(Response::new(request.uri().to_string()))
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, made.cert.pem()).unwrap();
    let url: ServiceUrl = url.parse().unwrap();
    let believed = gateway(Service::open(url.clone(), Some(&roots)).unwrap()).await;
    let answer = believed.get("/system/logs?name=f").await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, "/loki/system/logs?name=f"));
    let doubted = gateway(Service::open(url, None).unwrap()).await;
    doubted.get("/system/logs?name=f").await.fails(500, "log request failed");
}
