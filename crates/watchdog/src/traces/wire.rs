//! Spans in the JSON of OTLP over HTTP.
//!
//! Only formats. Ids are hexadecimal and times are text there, and a server's span is of kind 2.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Ended, Span};

/// One message with all these spans.
pub(super) fn message(service: &str, batch: &[Ended]) -> serde_json::Result<Vec<u8>> {
    let spans: Vec<Value> = batch.iter().map(span).collect();
    let scope = json!({ "name": "updraft-watchdog", "version": env!("CARGO_PKG_VERSION") });
    serde_json::to_vec(&json!({
        "resourceSpans": [{
            "resource": { "attributes": [text("service.name", service)] },
            "scopeSpans": [{ "scope": scope, "spans": spans }],
        }],
    }))
}

fn span(ended: &Ended) -> Value {
    let Ended { span, took, status } = ended;
    let Span { begun, trace, id, parent, method, path, call_id, .. } = span;
    let mut attributes = vec![
        text("http.request.method", method.as_str()),
        text("url.path", path),
        json!({
            "key": "http.response.status_code",
            "value": { "intValue": status.as_u16().to_string() },
        }),
    ];
    if let Some(call_id) = call_id {
        attributes.push(text("faas.invocation_id", call_id));
    }
    let mut value = json!({
        "traceId": format!("{trace:032x}"),
        "spanId": format!("{id:016x}"),
        "name": method.as_str(),
        "kind": 2,
        "startTimeUnixNano": nanos(*begun, Duration::ZERO),
        "endTimeUnixNano": nanos(*begun, *took),
        "attributes": attributes,
        "status": if status.is_server_error() { json!({ "code": 2 }) } else { json!({}) },
    });
    if let Some(parent) = parent {
        value["parentSpanId"] = format!("{parent:016x}").into();
    }
    value
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn nanos(begun: SystemTime, later: Duration) -> String {
    let since = begun.duration_since(UNIX_EPOCH).unwrap_or_default() + later;
    since.as_nanos().to_string()
}
