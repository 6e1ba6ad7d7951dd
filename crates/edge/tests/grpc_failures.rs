//! What gRPC clients are told when it is not the function that answers.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use support::{
    Replica, annotated, bounded, connect_http2, endpoint, house, known, request, send, spec, until,
};
use updraft_engine::Availability;
use updraft_model::annotations::{AUTH, AUTH_SECRET, CONCURRENCY, PROTOCOL, QUEUE_LIMIT, TIMEOUT};

#[tokio::test]
async fn each_failure_is_a_grpc_status_with_its_reason_in_the_headers() {
    let house = house(
        |options| {
            options.connect_limit = Duration::from_millis(100);
            options.failing_patience = Duration::from_millis(20);
        },
        |_| {},
    )
    .await;
    let silent = Replica::http2(10, |_| std::future::pending()).await;
    let (mute, busy) = (endpoint("mute", silent.address), endpoint("busy", silent.address));
    let grpc = (PROTOCOL, "h2c");
    house.engine.ready(annotated("silent", &[grpc, (TIMEOUT, "100ms")]), &[&mute]);
    let limited = [grpc, (CONCURRENCY, "1"), (QUEUE_LIMIT, "0"), (TIMEOUT, "20s")];
    house.engine.ready(annotated("busy", &limited), &[&busy]);
    let failing = Availability::Failing("exit status 3, 100% sure\nreally".to_owned());
    house.engine.put(annotated("failing", &[grpc]), vec![], failing);
    let refused = endpoint("refusing", "127.0.0.1:1".parse().unwrap());
    house.engine.ready(annotated("refusing", &[grpc]), &[&refused]);
    let mut private = annotated("private", &[grpc, (AUTH, "token"), (AUTH_SECRET, "keys")]);
    private.secrets = vec!["keys".parse().unwrap()];
    house.engine.secret("keys", "sesame");
    house.engine.ready(private, &[&mute]);
    known(&house, "private").await;

    let mut caller = connect_http2::<Full<Bytes>>(house.address).await;
    let mut call = |name: &str, kind: &str| {
        let asked = Request::post(format!("http://localhost/function/{name}/pkg.Service/Method"))
            .version(Version::HTTP_2)
            .header("content-type", kind)
            .header("te", "trailers")
            .body(Full::from("message"))
            .unwrap();
        caller.send_request(asked)
    };
    let occupying = call("busy", "application/grpc");
    let occupying = tokio::spawn(occupying);
    until("the one call is under way", || busy.load.in_flight() == 1).await;
    for (name, kind, status, reason) in [
        ("unknown", "application/grpc", "12", "`unknown` does not exist"),
        ("silent", "application/grpc+proto", "4", "within 100ms"),
        ("busy", "application/grpc", "8", "1 calls at once"),
        ("failing", "application/grpc", "14", "exit status 3, 100%25 sure%0Areally"),
        ("refusing", "application/grpc", "14", "`refusing` takes no connection"),
        ("private", "application/grpc", "16", "private"),
    ] {
        let answer = bounded("an answer", call(name, kind)).await.unwrap();
        let (head, body) = answer.into_parts();
        assert_eq!(head.status, 200, "{name}: gRPC looks at no other status");
        assert_eq!(head.headers["content-type"], "application/grpc", "{name}");
        assert_eq!(head.headers["grpc-status"], status, "{name}");
        let message = head.headers["grpc-message"].to_str().unwrap();
        assert!(message.contains(reason), "{name}: {message}");
        assert_eq!(head.headers["x-openfaas-internal"], "gateway", "{name}");
        assert!(head.headers.contains_key("x-call-id"), "{name}");
        let body = body.collect().await.unwrap();
        assert!(body.trailers().is_none() && body.to_bytes().is_empty(), "{name}");
    }
    occupying.abort();
    // What is counted is the status that everybody else would get.
    let counted = house.invoker.metrics_text();
    let line =
        "gateway_function_invocation_total{function_name=\"silent.openfaas-fn\",code=\"504\"}";
    assert!(counted.contains(line), "{counted}");
}

#[tokio::test]
async fn callers_of_the_web_get_json_as_always() {
    let house = support::plain_house().await;
    house.engine.put(spec("f"), vec![], Availability::Starting);
    known(&house, "f").await;
    for kind in ["application/json", "application/x-grpc", "text/plain"] {
        let asked = request("localhost", "/function/unknown")
            .method("POST")
            .header("content-type", kind)
            .body(Full::default())
            .unwrap();
        let (status, headers, _) = send(house.address, asked).await;
        assert_eq!(
            (status.as_u16(), &headers["content-type"]),
            (404, &"application/json".parse().unwrap())
        );
        assert!(!headers.contains_key("grpc-status"), "{kind}");
    }
}
