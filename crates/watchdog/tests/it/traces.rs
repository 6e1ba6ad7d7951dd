//! Spans of calls, as a collector of traces receives them.

use std::sync::mpsc;

use serde_json::Value;

use crate::support::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector that takes messages, and the spans in them.
fn collector() -> (String, mpsc::Receiver<Value>) {
    let (taken, takes) = mpsc::channel();
    let port = function(move |stream, head| {
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        assert_eq!(header(head, "content-type").unwrap(), "application/json");
        let message: Value = serde_json::from_str(&read_sized(stream, head)).unwrap();
        let resource = &message["resourceSpans"][0];
        let service = &resource["resource"]["attributes"][0];
        assert_eq!(service["key"], "service.name");
        assert_eq!(service["value"]["stringValue"], "env.dev");
        for span in resource["scopeSpans"][0]["spans"].as_array().unwrap() {
            taken.send(span.clone()).unwrap();
        }
        answer(stream, "{}")
    });
    (format!("http://127.0.0.1:{port}"), takes)
}

fn watchdog(endpoint: &str, script: &str) -> Watchdog {
    let variables = [
        ("mode", "serializing"),
        ("updraft_traces_endpoint", endpoint),
        ("OPENFAAS_NAME", "env"),
        ("OPENFAAS_NAMESPACE", "dev"),
    ];
    let watchdog = Watchdog::script(script, &variables);
    watchdog.wait_healthy();
    watchdog
}

fn attribute(span: &Value, key: &str) -> Value {
    let attributes = span["attributes"].as_array().unwrap();
    let found = attributes.iter().find(|attribute| attribute["key"] == key);
    found.unwrap_or_else(|| panic!("no {key} in {span}"))["value"].clone()
}

#[test]
fn a_call_is_a_span_below_the_callers_and_above_the_functions() {
    let (endpoint, spans) = collector();
    let watchdog = watchdog(&endpoint, "echo $Http_Traceparent; exit ${Http_X_Exit:-0}");
    let caller = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\nX-Call-Id: c-1\r\n");
    let reply = watchdog.get_with("/a/b?secret=1", &caller);
    let span = spans.recv_timeout(PATIENCE).unwrap();
    assert_eq!((&span["traceId"], &span["parentSpanId"]), (&TRACE.into(), &PARENT.into()));
    assert_eq!((&span["kind"], &span["name"]), (&2.into(), &"GET".into()));
    // The function's own spans are children of this one.
    let told = reply.body.trim_end();
    assert_eq!(told, format!("00-{TRACE}-{}-01", span["spanId"].as_str().unwrap()));
    assert_ne!(span["spanId"], PARENT);
    assert_eq!(attribute(&span, "http.request.method")["stringValue"], "GET");
    // Queries may hold what nobody else should read.
    assert_eq!(attribute(&span, "url.path")["stringValue"], "/a/b");
    assert_eq!(attribute(&span, "http.response.status_code")["intValue"], "200");
    assert_eq!(attribute(&span, "faas.invocation_id")["stringValue"], "c-1");
    assert_eq!(span["status"], serde_json::json!({}));
    let nanos = |field: &str| span[field].as_str().unwrap().parse::<u128>().unwrap();
    assert!(nanos("endTimeUnixNano") >= nanos("startTimeUnixNano"));

    // Without a caller's trace one begins here, and a failure is marked as such.
    watchdog.get_with("/", "X-Exit: 3\r\ntracestate: a=b\r\n");
    let span = spans.recv_timeout(PATIENCE).unwrap();
    assert_eq!(span.get("parentSpanId"), None);
    assert_ne!(span["traceId"], TRACE);
    assert_eq!(span["status"], serde_json::json!({ "code": 2 }));
}

#[test]
fn what_the_caller_does_not_record_and_probes_are_no_spans() {
    let (endpoint, spans) = collector();
    let watchdog = watchdog(&endpoint, "echo $Http_Traceparent");
    let unrecorded = format!("00-{TRACE}-{PARENT}-00");
    let reply = watchdog.get_with("/not", &format!("traceparent: {unrecorded}\r\n"));
    assert_eq!(reply.body.trim_end(), unrecorded);
    watchdog.get("/_/ready");
    watchdog.get("/recorded");
    let span = spans.recv_timeout(PATIENCE).unwrap();
    assert_eq!(attribute(&span, "url.path")["stringValue"], "/recorded");
}

#[test]
fn the_last_spans_are_sent_before_the_end_and_a_collector_that_is_gone_fails_no_call() {
    let (endpoint, spans) = collector();
    let mut last = watchdog(&endpoint, "true");
    last.get("/last");
    // SIGINT ends at once, without waiting for more calls.
    nix::sys::signal::kill(last.pid(), nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(last.wait_exit(), Some(0));
    assert_eq!(
        attribute(&spans.recv_timeout(PATIENCE).unwrap(), "url.path")["stringValue"],
        "/last"
    );

    let gone = watchdog("http://127.0.0.1:1", "true");
    assert_eq!(gone.get("/").status, 200);
    gone.wait_line("error: spans are lost, the collector at 127.0.0.1:1 does not take them: ");
    assert_eq!(gone.get("/").status, 200);
}

#[test]
fn a_collector_that_cannot_be_dialled_ends_the_start_with_a_reason() {
    let variables = [("fprocess", "cat"), ("updraft_traces_endpoint", "https://collector")];
    let (code, text) = run_to_end(&[], &variables);
    assert_eq!(code, Some(1));
    assert!(text.contains("cannot use updraft_traces_endpoint `https://collector`"), "{text}");
}
