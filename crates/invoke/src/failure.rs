//! What a caller is told when it is not the function that answers.

use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde_json::json;

use crate::body::InvokeBody;
use crate::headers::CALL_ID;

/// Marks an answer that the platform made, so that a queue may try again.
pub const INTERNAL: HeaderName = HeaderName::from_static("x-openfaas-internal");

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

    /// The answer: JSON that names component, reason and call, and the function if there is one.
    pub fn into_response(self, call_id: &HeaderValue) -> Response<InvokeBody> {
        let call = call_id.to_str().unwrap_or_default();
        let mut told = json!({
            "component": self.component,
            "reason": self.reason,
            "call_id": call,
        });
        if let Some(function) = self.function {
            told["function"] = function.into();
        }
        let mut response = Response::new(InvokeBody::whole(format!("{told}\n")));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
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
