//! The metrics of the gateway's own routes.

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use crate::harness::Gateway;

fn numbers(gateway: &Gateway) -> String {
    let mut registry = Registry::default();
    gateway.requests.register(&mut registry);
    let mut out = String::new();
    text::encode(&mut out, &registry).unwrap();
    out
}

#[tokio::test]
async fn requests_are_counted_by_method_route_and_status() {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"f","image":"i"}"#).await;
    for _ in 0..2 {
        gateway.get("/system/function/f").await;
    }
    gateway.get("/system/function/other").await;
    gateway.call_as(None, "GET", "/system/functions", "").await;
    let numbers = numbers(&gateway);
    for line in [
        r#"http_requests_total{method="POST",path="/system/functions",status="202"} 1"#,
        r#"http_requests_total{method="GET",path="/system/function/{name}",status="200"} 2"#,
        r#"http_requests_total{method="GET",path="/system/function/{name}",status="404"} 1"#,
        r#"http_requests_total{method="GET",path="/system/functions",status="401"} 1"#,
        r#"provider_http_requests_total{method="GET",path="/system/function",code="200"} 2"#,
        r#"http_request_duration_seconds_count{method="POST",path="/system/functions",status="202"} 1"#,
        r#"http_request_duration_seconds_bucket{le="+Inf",method="POST",path="/system/functions",status="202"} 1"#,
        r#"provider_http_request_duration_seconds_count{method="POST",path="/system/functions",code="202"} 1"#,
    ] {
        assert!(numbers.lines().any(|found| found == line), "{line} in\n{numbers}");
    }
}

#[tokio::test]
async fn no_caller_makes_series_up() {
    let gateway = Gateway::new().await;
    for number in 0..50 {
        gateway.call_as(None, "GET", &format!("/made-up-{number}"), "").await;
        gateway.get(&format!("/system/function/made-up-{number}")).await;
        gateway.call(&format!("VERB{number}"), "/system/functions", "").await;
    }
    gateway.call("POST", "/system/namespace/", "{}").await;
    gateway.get("/").await;
    let numbers = numbers(&gateway);
    assert!(!numbers.contains("made-up") && !numbers.contains("VERB"), "{numbers}");
    assert!(numbers.contains(r#"path="/system/namespace",status="400""#), "no slash at the end");
    assert!(numbers.contains(r#"{method="GET",path="/",status="307"}"#), "{numbers}");
    assert!(!numbers.contains(r#"provider_http_requests_total{method="GET",path="/","#));
}
