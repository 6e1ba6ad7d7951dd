//! Mode http: each call is passed to the one long-lived child, bodies streaming both ways.
//!
//! Keeps the request as it came (method, raw path and query, headers, `Host`), takes only the
//! headers that concern one connection, and says in status and headers when the failure is ours.

mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;

use crate::body::{Body, Upload};
use crate::call::{Call, Deadline, StatusStyle};
use crate::duration::parse_go;
use crate::server::{App, DURATION, INTERNAL, duration_header, plain};
use crate::upstream::{SendError, Upstream};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Programs behind CGI-like servers would take it for the outgoing proxy.
const PROXY: HeaderName = HeaderName::from_static("proxy");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const COMPONENT: HeaderValue = HeaderValue::from_static("of-watchdog");

/// Passes one call to the function.
pub(crate) async fn call(
    app: &Arc<App>,
    upstream: &Arc<Upstream>,
    mut request: Request<Incoming>,
    mut call: Box<Call>,
) -> Response<Body> {
    let client_upgrade =
        wants_websocket(request.headers()).then(|| hyper::upgrade::on(&mut request));
    let (mut parts, incoming) = request.into_parts();
    call.log_access(&app.log, &parts, StatusStyle::Text, app.config.log_call_id);
    let streaming = client_upgrade.is_some() || wants_events(&parts.headers);
    let limit = match app.config.exec_timeout {
        _ if streaming => None,
        longest if app.config.x_timeout => call_limit(&parts.headers, longest),
        longest => longest,
    };
    // The head of the answer must come before the whole answer is overdue anyway.
    let answer_limit = app.config.answer_limit();
    let head_limit = limit.map_or(answer_limit, |limit| limit.min(answer_limit));

    let websocket = client_upgrade.is_some().then(|| HeaderValue::from_static("websocket"));
    strip_hop_by_hop(&mut parts.headers);
    // Our server has answered an expectation already.
    parts.headers.remove(header::EXPECT);
    parts.headers.remove(PROXY);
    if let Some(websocket) = websocket {
        parts.headers.insert(header::UPGRADE, websocket);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    if !parts.headers.contains_key(header::HOST)
        && let Ok(authority) = HeaderValue::from_str(&upstream.address.authority)
    {
        parts.headers.insert(header::HOST, authority);
    }
    parts.uri = upstream_uri(&upstream.address.prefix, &parts.uri);
    parts.version = Version::HTTP_11;

    let upload_deadline = Deadline::after(call.started, app.config.read_timeout);
    let mut upload = Upload::Passing(incoming, upload_deadline);
    if app.config.buffer_request {
        upload = match Box::pin(Limited::new(upload, app.config.max_buffer).collect()).await {
            Ok(collected) => Upload::Full(collected.to_bytes()),
            Err(error) => {
                let status = unreadable(&*error);
                call.answered(status, Some(0));
                return plain(status, &format!("cannot read the request: {error}\n"))
                    .map(|body| body.with(call));
            }
        };
        parts.headers.remove(header::CONTENT_LENGTH);
    }

    let sent = upstream.send(Request::from_parts(parts, upload));
    let answer = match tokio::time::timeout_at(call.started + head_limit, sent).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            app.log.line(format_args!("error: {error}"));
            let status = match (&error, streaming) {
                (SendError::Caller(_), _) => StatusCode::BAD_REQUEST,
                (_, true) => StatusCode::BAD_GATEWAY,
                (_, false) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            return failure(status, call);
        }
        Err(_elapsed) => {
            app.log
                .line(format_args!("error: the function has not answered within {head_limit:?}"));
            return failure(StatusCode::GATEWAY_TIMEOUT, call);
        }
    };
    let (mut response, lease) = answer;

    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = client_upgrade else {
            app.log.line(format_args!("error: the function switched protocols unasked"));
            return failure(StatusCode::BAD_GATEWAY, call);
        };
        let function = hyper::upgrade::on(&mut response);
        let (mut parts, _no_body) = response.into_parts();
        strip_hop_by_hop(&mut parts.headers);
        parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        call.answered(parts.status, Some(0));
        call.tunnelled();
        let idle = app.config.stream_idle_timeout;
        tokio::spawn(tunnel::run(client, function, call, idle, app.log.clone()));
        return Response::from_parts(parts, Body::empty());
    }

    let (mut parts, incoming) = response.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_11;
    if !streaming {
        parts.headers.insert(DURATION, duration_header(call.started));
    }
    let size = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(-1);
    call.answered(parts.status, Some(size));
    let deadline = Deadline::after(call.started, limit);
    let idle = app.config.stream_idle_timeout.filter(|_| streaming);
    Response::from_parts(parts, Body::relay(incoming, deadline, idle, lease).with(call))
}

/// An answer of ours in place of the function's: no body, and headers that say whose it is.
pub(crate) fn failure(status: StatusCode, mut call: Box<Call>) -> Response<Body> {
    call.answered(status, Some(0));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(DURATION, duration_header(call.started));
    response.headers_mut().insert(INTERNAL, COMPONENT);
    response.map(|body| body.with(call))
}

fn unreadable(error: &(dyn std::error::Error + 'static)) -> StatusCode {
    if error.is::<LengthLimitError>() {
        StatusCode::PAYLOAD_TOO_LARGE
    } else if error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
    {
        StatusCode::REQUEST_TIMEOUT
    } else {
        StatusCode::BAD_REQUEST
    }
}

/// The limit for one call: `exec_timeout`, or a shorter `X-Timeout` of the caller.
pub(crate) fn call_limit(headers: &HeaderMap, exec_timeout: Option<Duration>) -> Option<Duration> {
    let longest = exec_timeout?;
    let asked = headers
        .get("x-timeout")
        .and_then(|value| parse_go(value.to_str().ok()?))
        .filter(|asked| !asked.is_zero() && *asked <= longest);
    Some(asked.unwrap_or(longest))
}

fn wants_websocket(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn wants_events(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|value| {
        let value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        value.contains("text/event-stream") || value.contains("application/x-ndjson")
    })
}

/// Takes the headers that concern one connection only, those that `Connection` names included.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in
        [KEEP_ALIVE, PROXY_CONNECTION, header::TE, header::TRANSFER_ENCODING, header::UPGRADE]
    {
        headers.remove(name);
    }
}

/// Path and query exactly as received, after the prefix of the upstream's own path.
fn upstream_uri(prefix: &str, uri: &Uri) -> Uri {
    let own = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    if prefix.is_empty() {
        return Uri::from(own);
    }
    format!("{prefix}{own}").parse::<PathAndQuery>().map_or_else(|_| Uri::from(own), Uri::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn x_timeout_counts_only_when_it_parses_and_shortens() {
        let ten = Some(Duration::from_secs(10));
        let check = |value, limit, expected| {
            assert_eq!(call_limit(&headers(&[("x-timeout", value)]), limit), expected, "{value}");
        };
        check("2s", ten, Some(Duration::from_secs(2)));
        check("10s", ten, ten);
        check("11s", ten, ten);
        check("5", ten, ten);
        check("junk", ten, ten);
        check("-1s", ten, ten);
        check("2s", None, None);
    }

    #[test]
    fn streams_are_recognised_anywhere_in_accept_whatever_the_case() {
        assert!(wants_events(&headers(&[("accept", "text/html, Text/Event-Stream;q=1")])));
        assert!(wants_events(&headers(&[("accept", "application/x-ndjson")])));
        assert!(!wants_events(&headers(&[("accept", "application/json")])));
        assert!(!wants_events(&headers(&[])));
    }

    #[test]
    fn hop_by_hop_headers_go_and_all_others_stay() {
        let mut map = headers(&[
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-connection", "close"),
            ("authorization", "kept"),
            ("x-call-id", "kept"),
        ]);
        strip_hop_by_hop(&mut map);
        let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "x-call-id"]);
    }

    #[test]
    fn the_raw_request_uri_is_kept_behind_the_upstreams_own_path() {
        let check = |prefix, uri: &str, expected: &str| {
            assert_eq!(upstream_uri(prefix, &uri.parse().unwrap()).to_string(), expected);
        };
        check("", "/a%2Fb//c?x=1&y=%20", "/a%2Fb//c?x=1&y=%20");
        check("/base", "/a%2Fb?x", "/base/a%2Fb?x");
        check("", "http://host.example/p?q", "/p?q");
    }
}
