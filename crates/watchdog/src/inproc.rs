//! Mode inproc: the handler is compiled into the program, and this library is the watchdog around
//! it: the same variables, paths, limits, metrics and log lines, and no process behind.
//!
//! The binary of this crate has no handler and refuses the mode; a program of your own calls
//! [`start`](crate::start) with one.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use http::{Request, Response, StatusCode};
use http_body_util::BodyDataStream;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::body::Body;
use crate::call::{Call, StatusStyle};
use crate::proxy::{call_limit, failure};
use crate::server::{App, DURATION, duration_header};

/// A body as it passes, and its size where that is known.
type Answer = (BoxStream<'static, io::Result<Bytes>>, Option<u64>);

/// A handler of HTTP calls, for [`start`](crate::start).
///
/// ```no_run
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use updraft_watchdog::Handler;
///
/// async fn handle<B>(request: Request<B>) -> Response<Full<Bytes>> {
///     Response::new(Full::from(format!("{} {}\n", request.method(), request.uri())))
/// }
///
/// fn main() -> std::process::ExitCode {
///     updraft_watchdog::start(Some(Handler::new(handle)))
/// }
/// ```
pub struct Handler(
    Box<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Answer>> + Send + Sync>,
);

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handler")
    }
}

impl Handler {
    /// Wraps a function. It is dropped in the middle of a call when the time of the call is over or
    /// the caller has gone; a panic in it is an answer of 500 and ends nothing else.
    pub fn new<F, B>(handle: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Self(Box::new(move |request| handle(request).map(|response| response.map(erase)).boxed()))
    }
}

fn erase<B>(body: B) -> Answer
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let size = body.size_hint().exact();
    (BodyDataStream::new(body).map_err(io::Error::other).boxed(), size)
}

/// Has the handler answer one call.
pub(crate) async fn call(
    app: &Arc<App>,
    handler: &Handler,
    request: Request<Incoming>,
    mut call: Box<Call>,
) -> Response<Body> {
    let (parts, incoming) = request.into_parts();
    call.log_access(&app.log, &parts, StatusStyle::Number, app.config.log_call_id);
    let limit = match app.config.exec_timeout {
        longest if app.config.x_timeout => call_limit(&parts.headers, longest),
        longest => longest,
    };
    let answer_limit = app.config.answer_limit();
    let end = call.started + limit.map_or(answer_limit, |limit| limit.min(answer_limit));
    let request = Request::from_parts(parts, incoming);
    // Inside, so that a handler that panics before its first wait is caught as well.
    let answered = AssertUnwindSafe(async { (handler.0)(request).await }).catch_unwind();
    let response = match tokio::time::timeout_at(end, answered).await {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => {
            app.log.line(format_args!("error: the handler panicked"));
            return failure(StatusCode::INTERNAL_SERVER_ERROR, call);
        }
        Err(_elapsed) => {
            let took = call.started.elapsed();
            app.log.line(format_args!("error: the handler has not answered within {took:.1?}"));
            return failure(StatusCode::GATEWAY_TIMEOUT, call);
        }
    };
    let (mut parts, (body, size)) = response.into_parts();
    parts.headers.insert(DURATION, duration_header(call.started));
    call.answered(parts.status, size.map(|size| i64::try_from(size).unwrap_or(-1)));
    let body = if limit.is_some() { until(end, body) } else { body };
    Response::from_parts(parts, Body::stream(body, size).with(call))
}

/// The stream, cut off with an error at this moment.
fn until(
    end: Instant,
    body: BoxStream<'static, io::Result<Bytes>>,
) -> BoxStream<'static, io::Result<Bytes>> {
    stream::unfold(Some(body), move |rest| async move {
        let mut rest = rest?;
        match tokio::time::timeout_at(end, rest.next()).await {
            Ok(item) => item.map(|item| {
                let rest = item.is_ok().then_some(rest);
                (item, rest)
            }),
            Err(_elapsed) => Some((Err(io::ErrorKind::TimedOut.into()), None)),
        }
    })
    .boxed()
}
