//! Answers: plain-text failures, the statuses of engine errors, and bodies within bounds.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, Uri, header};
use updraft_engine::{Engine, EngineError};

use crate::place::PlaceError;
use crate::wire::DecodeError;

/// The longest a client may take to send a request body.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A request that was not carried out: the status and one line of plain text.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    text: String,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// `404` without a body.
    pub(crate) fn absent() -> Self {
        Self::new(StatusCode::NOT_FOUND, "")
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self { status, mut text } = self;
        let body = if text.is_empty() {
            Body::empty()
        } else {
            text.push('\n');
            Body::from(text)
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        Self::bad_request(format!("failed to unmarshal request: {error}"))
    }
}

/// The answer to a path that is no route. A path that is one but for doubled slashes or dots is
/// sent there with a status that keeps method and body.
pub(crate) fn not_served(uri: &Uri) -> Response {
    let cleaned = clean_path(uri.path());
    if cleaned != uri.path() && cleaned.starts_with("/system/") {
        let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
        if let Ok(location) = HeaderValue::from_str(&format!("{cleaned}{query}")) {
            return (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, location)])
                .into_response();
        }
    }
    Failure::new(StatusCode::NOT_FOUND, "404 page not found").into_response()
}

/// The path without empty, `.` and `..` segments; a slash at the end stays.
fn clean_path(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let mut cleaned = String::with_capacity(path.len());
    for segment in &kept {
        cleaned.push('/');
        cleaned.push_str(segment);
    }
    if cleaned.is_empty() || path.ends_with('/') {
        cleaned.push('/');
    }
    cleaned
}

/// Reads a whole request body of at most `limit` bytes.
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

/// The answer to a place that cannot hold functions.
pub(crate) async fn place_failure(engine: &dyn Engine, error: PlaceError) -> Failure {
    match error {
        PlaceError::Cluster(namespace) => Failure::new(
            StatusCode::UNAUTHORIZED,
            format!("unable to list within the {namespace} namespace"),
        ),
        PlaceError::Namespace(_) => unknown_namespace(engine).await,
        PlaceError::Name(_) => Failure::absent(),
        PlaceError::Contradiction { .. } => Failure::bad_request(error.to_string()),
    }
}

async fn unknown_namespace(engine: &dyn Engine) -> Failure {
    let valid = match engine.list_namespaces().await {
        Ok(namespaces) => namespaces
            .iter()
            .map(|info| info.name.as_str().to_owned())
            .collect::<Vec<_>>()
            .join(", "),
        Err(error) => return engine_failure_of(&error),
    };
    Failure::bad_request(format!("valid namespaces are: {valid}"))
}

/// The answer to an engine's error. Where the namespace is what is wrong, the valid ones are told.
pub(crate) async fn engine_failure(engine: &dyn Engine, error: EngineError) -> Failure {
    match error {
        EngineError::UnknownNamespace(_) => unknown_namespace(engine).await,
        error => engine_failure_of(&error),
    }
}

/// The table of statuses; the text of an engine's own failure names what was attempted, and the
/// causes go to the log only.
fn engine_failure_of(error: &EngineError) -> Failure {
    let status = match error {
        EngineError::UnknownFunction(_)
        | EngineError::UnknownNamespace(_)
        | EngineError::UnknownSecret { .. } => StatusCode::NOT_FOUND,
        EngineError::NamespaceExists(_)
        | EngineError::SecretExists { .. }
        | EngineError::Superseded(_) => StatusCode::CONFLICT,
        EngineError::MissingSecrets { .. } => {
            return Failure::bad_request(format!("unable to fetch secrets: {error}"));
        }
        EngineError::Invalid(_) | EngineError::InvalidSpec(_) | EngineError::Image { .. } => {
            StatusCode::BAD_REQUEST
        }
        EngineError::Engine { .. } if error.is_for_want_of_space() => {
            tracing::error!(error = %with_causes(error), "the disk is full");
            return Failure::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!("{error}: the server's disk is full, so nothing was changed"),
            );
        }
        EngineError::NotReady { .. } | EngineError::Engine { .. } => {
            tracing::error!(error = %with_causes(error), "the engine failed a gateway request");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    Failure::new(status, error.to_string())
}

/// The error and what lies below it, for the log.
pub(crate) fn with_causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_lose_empty_and_dotted_segments() {
        let check = |path, cleaned: &str| assert_eq!(clean_path(path), cleaned, "{path}");
        check("//system//functions", "/system/functions");
        check("/system/./functions", "/system/functions");
        check("/x/../system/functions", "/system/functions");
        check("/../../system/namespace/", "/system/namespace/");
        check("//", "/");
    }
    proptest! {
        #[test]
        fn a_clean_path_is_rooted_on_this_host_and_stays_as_it_is(path in "/[a-c./]{0,30}") {
            let cleaned = clean_path(&path);
            prop_assert!(cleaned.starts_with('/') && !cleaned.contains("//"), "{cleaned}");
            prop_assert!(!cleaned.split('/').any(|segment| segment == ".."), "{cleaned}");
            prop_assert_eq!(clean_path(&cleaned), cleaned);
        }
    }
}
