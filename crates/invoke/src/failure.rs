//! What a caller is told when it is not the function that answers.

use std::fmt::Write as _;

use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde_json::json;

use crate::body::InvokeBody;
use crate::headers::{CALL_ID, call_id};

/// Marks an answer that the platform made, so that a queue may try again.
pub const INTERNAL: HeaderName = HeaderName::from_static("x-openfaas-internal");

/// The type of gRPC's bodies, or what it begins with.
const GRPC: &str = "application/grpc";

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer of the platform in place of the function's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status.
    pub status: StatusCode,
    /// Which part of Updraft speaks.
    pub component: &'static str,
    /// What happened and what to do, for people.
    pub reason: String,
    /// The function's visible name, when one is known.
    pub function: Option<String>,
    /// Seconds after which trying again makes sense.
    pub retry_after: Option<u32>,
    /// What to show for being let in, where that is what is missing.
    pub challenge: Option<HeaderValue>,
}

impl Failure {
    /// A failure without a function and without advice on when to try again.
    pub fn new(status: StatusCode, component: &'static str, reason: impl Into<String>) -> Self {
        Self {
            status,
            component,
            reason: reason.into(),
            function: None,
            retry_after: None,
            challenge: None,
        }
    }

    pub(crate) fn invoke(status: StatusCode, function: &str, reason: impl Into<String>) -> Self {
        Self { function: Some(function.to_owned()), ..Self::new(status, "invoke", reason) }
    }

    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The answer to a request with these headers, in the form that its sender reads: as gRPC has
    /// it for a gRPC client, else as [`Self::into_response`].
    pub fn answer(self, headers: &HeaderMap) -> Response<InvokeBody> {
        self.answer_as(headers.get(CONTENT_TYPE), &call_id(headers))
    }

    /// The answer to a request with a body of this type.
    pub(crate) fn answer_as(
        self,
        kind: Option<&HeaderValue>,
        call_id: &HeaderValue,
    ) -> Response<InvokeBody> {
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(GRPC.as_bytes())) {
            self.into_grpc(call_id)
        } else {
            self.into_response(call_id)
        }
    }

    /// The answer: JSON that names component, reason and call, and the function if there is one.
    pub fn into_response(self, call_id: &HeaderValue) -> Response<InvokeBody> {
        let call = call_id.to_str().unwrap_or_default();
        let mut told = json!({
            "component": self.component,
            "reason": self.reason,
            "call_id": call,
        });
        if let Some(function) = &self.function {
            told["function"] = function.as_str().into();
        }
        let mut response = Response::new(InvokeBody::whole(format!("{told}\n")));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.mark(response, call_id)
    }

    /// The answer in the headers alone, with status 200: gRPC clients look at nothing else.
    /// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
    fn into_grpc(self, call_id: &HeaderValue) -> Response<InvokeBody> {
        let mut response = Response::new(InvokeBody::whole(""));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
        headers.insert(GRPC_STATUS, grpc_status(self.status).into());
        let message = match &self.function {
            Some(function) => format!("{}: {function}: {}", self.component, self.reason),
            None => format!("{}: {}", self.component, self.reason),
        };
        if let Ok(message) = HeaderValue::try_from(percent_encoded(&message)) {
            headers.insert(GRPC_MESSAGE, message);
        }
        self.mark(response, call_id)
    }

    fn mark(
        self,
        mut response: Response<InvokeBody>,
        call_id: &HeaderValue,
    ) -> Response<InvokeBody> {
        let headers = response.headers_mut();
        headers.insert(INTERNAL, HeaderValue::from_static("gateway"));
        headers.insert(CALL_ID, call_id.clone());
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(challenge) = self.challenge {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// The status of gRPC that says the same.
/// <https://github.com/grpc/grpc/blob/master/doc/statuscodes.md>
fn grpc_status(status: StatusCode) -> u16 {
    match status {
        StatusCode::BAD_REQUEST => 3,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => 4,
        StatusCode::FORBIDDEN => 7,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => 8,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => 12,
        StatusCode::INTERNAL_SERVER_ERROR => 13,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => 14,
        StatusCode::UNAUTHORIZED => 16,
        _ => 2,
    }
}

/// A message as `grpc-message` writes it: printable ASCII, the rest and `%` by their bytes.
fn percent_encoded(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_grpc_message_is_printable_ascii() {
        assert_eq!(percent_encoded("50% of `f`"), "50%25 of `f`");
        assert_eq!(percent_encoded("a\nb\u{e4}"), "a%0Ab%C3%A4");
    }

    proptest! {
        #[test]
        fn every_grpc_message_is_a_header_value_and_reads_back(message in "\\PC{0,40}") {
            let text = percent_encoded(&message);
            prop_assert!(HeaderValue::try_from(text.as_str()).is_ok());
            let mut bytes = Vec::new();
            let mut rest = text.as_bytes();
            while let [first, after @ ..] = rest {
                if *first == b'%' {
                    let digits = std::str::from_utf8(&after[..2]).unwrap();
                    bytes.push(u8::from_str_radix(digits, 16).unwrap());
                    rest = &after[2..];
                } else {
                    bytes.push(*first);
                    rest = after;
                }
            }
            prop_assert_eq!(bytes, message.as_bytes());
        }
    }
}
