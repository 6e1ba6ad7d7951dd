//! Answers: failures as JSON with a reason and a hint, and streams of JSON lines.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use updraft_engine::{EngineError, Fault};
use updraft_queue::QueueError;
use updraft_store::{BlobError, EnsureOwnerError, StoreError};

use crate::wire;

/// The largest JSON body, far above any real one.
const JSON_LIMIT: usize = 1 << 20;

/// The longest a client may take to send a small body.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A request that was not carried out.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    reason: String,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), hint: None }
    }

    pub(crate) fn bad_request(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    pub(crate) fn absent(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) const fn status(&self) -> StatusCode {
        self.status
    }

    /// Puts what was attempted before the reason.
    pub(crate) fn because(mut self, attempted: &str) -> Self {
        self.reason = format!("{attempted}: {}", self.reason);
        self
    }

    /// A fault of the machine or ours: the causes go to the log, not into the answer.
    pub(crate) fn internal(error: &(dyn StdError + 'static)) -> Self {
        tracing::error!(error = %with_causes(error), "an API request failed");
        if is_for_want_of_space(error) {
            let reason = "the server's disk is full, so nothing was changed";
            return Self::new(StatusCode::INSUFFICIENT_STORAGE, reason).hint(
                "its operator sees with `updraft disk` what uses it; try again once there is space",
            );
        }
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            .hint("the server's log tells more")
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let detail = wire::FailureDetail { reason: self.reason, hint: self.hint };
        (self.status, Json(wire::Failure { error: detail })).into_response()
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::internal(&error)
    }
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        Self::internal(&error)
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        Self::internal(&error)
    }
}

impl From<EnsureOwnerError> for Failure {
    fn from(error: EnsureOwnerError) -> Self {
        match error {
            EnsureOwnerError::Collision { .. } => {
                Self::new(StatusCode::CONFLICT, error.to_string())
            }
            EnsureOwnerError::Store(error) => error.into(),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let status = match &error {
            EngineError::UnknownFunction(_)
            | EngineError::UnknownNamespace(_)
            | EngineError::UnknownSecret { .. } => StatusCode::NOT_FOUND,
            EngineError::NamespaceExists(_)
            | EngineError::SecretExists { .. }
            | EngineError::Superseded(_) => StatusCode::CONFLICT,
            error if error.fault() == Fault::Engine => return Self::internal(error),
            error if error.fault() == Fault::Function => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _written = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// Whether a full disk is at the bottom of a failure.
fn is_for_want_of_space(error: &(dyn StdError + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (**error).source()).any(|error| {
        let store = error.downcast_ref::<StoreError>();
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(store, Some(StoreError::Full { .. }))
            || matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    })
}

/// Reads a whole body of at most `limit` bytes.
pub(crate) async fn read_body(body: Body, limit: usize) -> Result<Bytes, Failure> {
    match tokio::time::timeout(BODY_TIME, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_too_long(&error) => Err(Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request body is larger than {limit} bytes"),
        )),
        Ok(Err(_)) => Err(Failure::bad_request("the request body ended early")),
        Err(_) => Err(Failure::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request body did not arrive within {} s", BODY_TIME.as_secs()),
        )),
    }
}

fn is_too_long(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Reads a JSON body.
pub(crate) async fn read_json<T: DeserializeOwned>(body: Body) -> Result<T, Failure> {
    let body = read_body(body, JSON_LIMIT).await?;
    serde_json::from_slice(&body)
        .map_err(|error| Failure::bad_request(format!("the request body cannot be read: {error}")))
}

/// Streams values as JSON, one a line. An error breaks the body off, so that nobody takes half a
/// story for a whole one.
pub(crate) fn json_lines<T, E>(
    values: impl Stream<Item = Result<T, E>> + Send + 'static,
) -> Response
where
    T: Serialize,
    E: StdError + Send + Sync + 'static,
{
    let lines = values.map(|value| {
        let value = value.inspect_err(|error| tracing::warn!(%error, "a stream broke off"))?;
        let mut json = serde_json::to_vec(&value)?;
        json.push(b'\n');
        Ok::<_, Box<dyn StdError + Send + Sync>>(Bytes::from(json))
    });
    streamed("application/x-ndjson", Body::from_stream(lines))
}

/// A body that comes bit by bit and must not be kept by anybody on the way.
pub(crate) fn streamed(content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_as_such_wherever_it_was_met() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let folder = StoreError::Folder { path: "/a".into(), source: full() };
        let record = StoreError::Full { doing: "record the push" };
        for error in [folder, record] {
            let failure = Failure::from(error);
            assert_eq!(failure.status(), StatusCode::INSUFFICIENT_STORAGE);
            assert!(failure.reason.contains("disk is full"), "{}", failure.reason);
        }
        let other = Failure::from(StoreError::Closed { doing: "record the push" });
        assert_eq!(other.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
