//! Log lines as JSON objects, one a line, for collectors that read those.
//!
//! Only formats: the text of others always becomes one escaped string, so that no line of a
//! function can pass for one of ours.

use http::HeaderMap;
use serde::Serialize;

use super::AccessLine;
use super::text::append_rfc3339;

/// Longest id that is taken from a request.
const MAX_ID: usize = 256;

/// By what the lines of one call are found again.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Correlation {
    #[serde(skip_serializing_if = "Option::is_none")]
    call_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

impl Correlation {
    /// `X-Call-Id`, and the trace in `traceparent` (<https://www.w3.org/TR/trace-context/>).
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name| {
            let value = headers.get(name)?.to_str().ok()?;
            (!value.is_empty() && value.len() <= MAX_ID).then_some(value)
        };
        let trace_id = text("traceparent").and_then(|parent| parent.split('-').nth(1));
        Self {
            call_id: text("x-call-id").map(str::to_owned),
            trace_id: trace_id.filter(|id| is_trace_id(id)).map(str::to_owned),
        }
    }
}

fn is_trace_id(id: &str) -> bool {
    id.len() == 32
        && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && id.bytes().any(|byte| byte != b'0')
}

#[derive(Serialize)]
struct Line<'a> {
    source: &'a str,
    level: &'a str,
    message: &'a str,
    #[serde(flatten)]
    correlation: Option<&'a Correlation>,
}

#[derive(Serialize)]
struct Access<'a> {
    source: &'a str,
    level: &'a str,
    method: &'a str,
    path: String,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<i64>,
    seconds: f64,
    #[serde(flatten)]
    correlation: Option<&'a Correlation>,
}

/// Appends a text from `watchdog`, `stdout` or `stderr`.
pub(super) fn message(
    buffer: &mut Vec<u8>,
    source: &str,
    text: &str,
    correlation: Option<&Correlation>,
) {
    let (level, text) = match text.strip_prefix("error: ") {
        Some(rest) if source == "watchdog" => ("error", rest),
        _ => ("info", text),
    };
    append(buffer, &Line { source, level, message: text, correlation });
}

/// Appends what an access line tells.
pub(super) fn access(buffer: &mut Vec<u8>, access: &AccessLine<'_>) {
    let failed = access.status.is_server_error();
    let line = Access {
        source: "access",
        level: if failed { "error" } else { "info" },
        method: access.method.as_str(),
        path: access.uri.to_string(),
        status: access.status.as_u16(),
        bytes: Some(access.size).filter(|&size| size >= 0),
        seconds: access.took.as_secs_f64(),
        correlation: access.correlation,
    };
    append(buffer, &line);
}

/// Appends the object with the time as its first field.
fn append(buffer: &mut Vec<u8>, object: &impl Serialize) {
    buffer.extend_from_slice(b"{\"time\":\"");
    append_rfc3339(buffer);
    buffer.extend_from_slice(b"\",");
    let begun = buffer.len();
    // Strings and numbers into memory: nothing here can fail.
    let _infallible = serde_json::to_writer(&mut *buffer, object);
    // The object's own brace stands behind the time.
    buffer.remove(begun);
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method, StatusCode, Uri};
    use serde_json::{Value, json};

    use super::*;

    fn headers(call_id: &'static str, traceparent: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("x-call-id", HeaderValue::from_static(call_id));
        headers.insert("traceparent", HeaderValue::from_static(traceparent));
        headers
    }

    fn parsed(write: impl FnOnce(&mut Vec<u8>)) -> Value {
        let mut buffer = Vec::new();
        write(&mut buffer);
        assert!(!buffer.contains(&b'\n'));
        let mut value: Value = serde_json::from_slice(&buffer).unwrap();
        let time = value.as_object_mut().unwrap().remove("time").unwrap();
        assert_eq!(time.as_str().unwrap().len(), "2026-01-31T12:00:00.000Z".len());
        value
    }

    #[test]
    fn messages_are_one_escaped_object_with_the_ids_of_their_call() {
        const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let correlation = Correlation::of(&headers("c-1", TRACE));
        let text = "a \"quote\"\nand a line";
        assert_eq!(
            parsed(|buffer| message(buffer, "stderr", text, Some(&correlation))),
            json!({
                "source": "stderr", "level": "info", "message": text,
                "call_id": "c-1", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            })
        );
        assert_eq!(
            parsed(|buffer| message(buffer, "watchdog", "error: no", None)),
            json!({ "source": "watchdog", "level": "error", "message": "no" })
        );
    }

    #[test]
    fn ids_that_are_none_are_left_out() {
        for trace in ["", "00", "00-xyz-1-01", "00-00000000000000000000000000000000-1-01"] {
            let correlation = Correlation::of(&headers("", trace));
            assert_eq!(serde_json::to_value(&correlation).unwrap(), json!({}), "{trace}");
        }
    }

    #[test]
    fn access_lines_have_a_field_for_each_fact() {
        let uri: Uri = "/a?b".parse().unwrap();
        let line = |size| AccessLine {
            method: &Method::GET,
            uri: &uri,
            status: StatusCode::BAD_GATEWAY,
            with_reason: true,
            size,
            took: std::time::Duration::from_millis(250),
            call_id: None,
            correlation: None,
        };
        let mut expected = json!({
            "source": "access", "level": "error", "method": "GET", "path": "/a?b",
            "status": 502, "bytes": 39, "seconds": 0.25,
        });
        assert_eq!(parsed(|buffer| access(buffer, &line(39))), expected);
        expected.as_object_mut().unwrap().remove("bytes");
        assert_eq!(parsed(|buffer| access(buffer, &line(-1))), expected);
    }
}
