//! Asynchronous calls: accept one for the queue, cancel one.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use updraft_invoke::{CALL_ID, Caller, Failure as CallFailure, Scheme};
use updraft_queue::{CallId, NewCall, SubmitError};
use updraft_store::access::Principal;

use super::Parts;
use crate::GatewayParts;
use crate::answer::{Failure, with_causes};

/// What the path of a submission begins with.
const PREFIX: &str = "/async-function/";

const CALLBACK: HeaderName = HeaderName::from_static("x-callback-url");
const START_TIME: HeaderName = HeaderName::from_static("x-start-time");

/// `POST /async-function/<name>[/path][?query]`: 202 once the call is on the disk.
///
/// Path and query go on as they came, so they are read from the raw target.
pub(crate) async fn submit(State(parts): Parts, request: Request) -> Response {
    let headers = request.headers().clone();
    match accept(&parts, request).await {
        Ok(id) => accepted(&id),
        Err(failure) => {
            let call_id = updraft_invoke::call_id(&headers);
            failure.into_response(&call_id).map(Body::new)
        }
    }
}

async fn accept(parts: &GatewayParts, request: Request) -> Result<CallId, CallFailure> {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    let (name, rest) = split(target.strip_prefix(PREFIX).unwrap_or_default());
    let function = parts.invoker.find(name).ok_or_else(|| parts.invoker.unknown(name))?;
    let callback = callback(&head.headers)?;
    let peer = head.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    let peer = peer.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    // Whoever may not call a function may not have it called either.
    let body = parts.invoker.authorize(&function, &head.headers, body).await?;
    let call = NewCall {
        function: function.id().clone(),
        method: head.method,
        target: rest.to_owned(),
        headers: head.headers,
        caller: Caller::new(peer, Scheme::Http).authorized(),
        callback,
    };
    parts.queue.submit(call, body).await.map_err(|error| {
        if let SubmitError::Queue(cause) = &error {
            tracing::error!(error = %with_causes(cause), "an asynchronous call was not kept");
        }
        let failure = CallFailure::new(error.status(), "queue", error.to_string());
        CallFailure { retry_after: error.retry_after(), ..failure }
    })
}

/// The name, and what follows it: empty, or from a `/` or `?` on.
fn split(target: &str) -> (&str, &str) {
    target.split_at(target.find(['/', '?']).unwrap_or(target.len()))
}

fn callback(headers: &HeaderMap) -> Result<Option<Uri>, CallFailure> {
    let Some(value) = headers.get(CALLBACK) else { return Ok(None) };
    let wrong = |reason: String| {
        let reason = format!("X-Callback-Url is no address that can be told: {reason}");
        CallFailure::new(StatusCode::BAD_REQUEST, "gateway", reason)
    };
    let text = value.to_str().map_err(|_| wrong("it holds signs beyond ASCII".to_owned()))?;
    match text.trim() {
        "" => Ok(None),
        text if !escapes_are_whole(text) => {
            Err(wrong("a `%` is not followed by two digits of a byte".to_owned()))
        }
        text => text.parse().map(Some).map_err(|error: http::uri::InvalidUri| {
            wrong(format!("{error}; write one such as https://example.com/done"))
        }),
    }
}

/// Whether every `%` begins an escape.
fn escapes_are_whole(text: &str) -> bool {
    let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_hexdigit);
    text.split('%').skip(1).all(|rest| {
        let bytes = rest.as_bytes();
        is_digit(bytes.first()) && is_digit(bytes.get(1))
    })
}

fn accepted(id: &CallId) -> Response {
    let mut response = StatusCode::ACCEPTED.into_response();
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        headers.insert(CALL_ID, id);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if let Ok(now) = HeaderValue::from_str(&now.as_nanos().to_string()) {
        headers.insert(START_TIME, now);
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    response
}

/// `DELETE /async-function/<call-id>`: ends a call that waits or runs. The administrator may, and
/// the owner of the function that is called; whose it is not is not told that it is there.
pub(crate) async fn cancel(
    State(parts): Parts,
    Path(id): Path<String>,
    axum::Extension(principal): axum::Extension<Principal>,
) -> Result<StatusCode, Failure> {
    let unknown =
        || Failure::new(StatusCode::NOT_FOUND, "there is no call of that id, or it is forgotten");
    let id: CallId = id.parse().map_err(|_| unknown())?;
    let record = parts.queue.call(&id).await.map_err(|error| failed(&error))?;
    let record = record.ok_or_else(unknown)?;
    let may = match (&principal, &record.owner) {
        (Principal::Admin, _) => true,
        (caller, Some(owner)) => caller.may_act_for(owner),
        (_, None) => false,
    };
    if !may {
        return Err(unknown());
    }
    match parts.queue.cancel(&id).await {
        Ok(true) => {
            tracing::info!(call = %id, function = %record.function, "an asynchronous call was cancelled");
            Ok(StatusCode::ACCEPTED)
        }
        Ok(false) => Err(Failure::new(
            StatusCode::CONFLICT,
            format!("the call `{id}` has ended already, there is nothing to cancel"),
        )),
        Err(error) => Err(failed(&error)),
    }
}

fn failed(error: &updraft_queue::QueueError) -> Failure {
    tracing::error!(error = %with_causes(error), "an asynchronous call could not be looked up");
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_target_is_what_follows_the_name_as_it_came() {
        for (target, name, rest) in [
            ("f", "f", ""),
            ("f/", "f", "/"),
            ("f.ns?a=b", "f.ns", "?a=b"),
            ("f/a%2Fb//c/../d?x=%20&y", "f", "/a%2Fb//c/../d?x=%20&y"),
            ("", "", ""),
        ] {
            assert_eq!(split(target), (name, rest), "{target}");
        }
    }

    #[test]
    fn a_callback_is_absent_empty_readable_or_refused() {
        let read = |value: &[u8]| {
            let value = HeaderValue::from_bytes(value).unwrap();
            callback(&HeaderMap::from_iter([(CALLBACK, value)]))
        };
        assert_eq!(callback(&HeaderMap::new()), Ok(None));
        assert_eq!(read(b" "), Ok(None));
        assert_eq!(read(b"http://example.com/a?b").unwrap().unwrap().path(), "/a");
        assert_eq!(read(b"http://example.com/%2Fa").unwrap().unwrap().path(), "/%2Fa");
        let wrong =
            [b"http://a b/".as_slice(), b"http://[::1", b"\xff", b"http://a/%zz", b"http://a/%2"];
        for wrong in wrong {
            let failure = read(wrong).unwrap_err();
            assert_eq!(failure.status, StatusCode::BAD_REQUEST);
            assert!(failure.reason.contains("X-Callback-Url"), "{}", failure.reason);
        }
    }

    proptest! {
        #[test]
        fn name_and_rest_make_up_the_target(target in "[ -~]{0,60}") {
            let (name, rest) = split(&target);
            prop_assert_eq!(format!("{name}{rest}"), target.clone());
            prop_assert!(!name.contains(['/', '?']));
        }
    }
}
