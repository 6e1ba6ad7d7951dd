//! The listener's side: connections, their clocks, the watchdog's own paths, and the limit.
//!
//! Knows nothing of how a mode answers; it hands calls on and guards what surrounds them.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::auth::Authenticator;
use crate::body::Body;
use crate::call::{Call, ConnectionClock};
use crate::children::Children;
use crate::config::{Classic, CommandLine, Config};
use crate::files::Files;
use crate::inproc::Handler;
use crate::life::{Life, Place};
use crate::log::Log;
use crate::metrics::{Measured, Metrics};
use crate::socket::Socket;
use crate::traces::Traces;
use crate::upstream::Upstream;
use crate::{fork, inproc, proxy};

/// Most bytes of a request's or answer's head.
pub(crate) const HEADER_LIMIT: usize = 1024 * 1024;
/// What a call may take beyond `write_timeout` before its connection is cut, so that an answer
/// saying 504 still gets out.
const GRACE: Duration = Duration::from_secs(1);
/// Says in which component a failure arose.
pub(crate) const INTERNAL: HeaderName = HeaderName::from_static("x-openfaas-internal");
/// The component that refuses calls, as the original names it.
pub(crate) const MIDDLEWARE: HeaderValue = HeaderValue::from_static("faas-middleware");
pub(crate) const DURATION: HeaderName = HeaderName::from_static("x-duration-seconds");

/// What all calls share.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) log: Log,
    pub(crate) life: Arc<Life>,
    pub(crate) children: Arc<Children>,
    pub(crate) metrics: Arc<Metrics>,
    /// `None` lets every caller in.
    pub(crate) authenticator: Option<Authenticator>,
    /// `None` records no spans.
    pub(crate) traces: Option<Arc<Traces>>,
    pub(crate) target: Target,
}

/// Who answers calls.
pub(crate) enum Target {
    Http(Arc<Upstream>),
    Streaming(CommandLine),
    Serializing(CommandLine),
    Classic(CommandLine, Classic),
    Static(Files),
    InProcess(Handler),
}

/// Accepts connections until told to close, then lets each finish what it is doing. Every
/// connection holds a copy of `closing`: when all copies are gone, all connections are.
pub(crate) async fn accept(
    app: Arc<App>,
    listener: TcpListener,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.changed() => return,
        };
        match accepted {
            Ok((stream, _peer)) => {
                // Only delays answers if it fails.
                let _slower = stream.set_nodelay(true);
                tokio::spawn(serve(Arc::clone(&app), stream, closing.clone()));
            }
            Err(error) => {
                // Mostly too many open files: connections that end make room.
                app.log.line(format_args!("error: cannot accept a connection: {error}"));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(app: Arc<App>, stream: TcpStream, mut closing: watch::Receiver<bool>) {
    let clock = Arc::new(ConnectionClock::new());
    let stuck = Arc::new(AtomicBool::new(false));
    let io = Socket::watched(stream, Arc::clone(&stuck));
    let limit = app.config.answer_limit() + GRACE;
    let service = {
        let app = Arc::clone(&app);
        let clock = Arc::clone(&clock);
        service_fn(move |request| {
            let app = Arc::clone(&app);
            let clock = Arc::clone(&clock);
            async move { Ok::<_, Infallible>(answer(app, clock, request).await) }
        })
    };
    let mut builder = http1::Builder::new();
    builder
        .title_case_headers(true)
        .max_buf_size(HEADER_LIMIT + 64 * 1024)
        .max_header_size(HEADER_LIMIT)
        .timer(TokioTimer::new())
        .header_read_timeout(app.config.read_timeout);
    if let Some(most) = app.config.max_headers {
        builder.max_headers(most);
    }
    let mut connection = pin!(builder.serve_connection(io, service).with_upgrades());
    let mut alarm = pin!(tokio::time::sleep(limit));
    let mut told = false;
    loop {
        tokio::select! {
            // The connection first: in the common case nothing else is looked at.
            biased;
            _ended_either_way = connection.as_mut() => return,
            () = alarm.as_mut() => {
                let now = Instant::now();
                let end = clock.end();
                if !clock.busy() && !stuck.load(Ordering::Relaxed) {
                    alarm.as_mut().reset(now + limit);
                } else if end <= now {
                    return;
                } else {
                    alarm.as_mut().reset(end);
                }
            }
            _ = closing.changed(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn answer(
    app: Arc<App>,
    clock: Arc<ConnectionClock>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let begun = Instant::now();
    match request.uri().path() {
        "/_/health" => health(&app, &request),
        "/_/ready" => Box::pin(ready(&app, clock, request)).await,
        _ => {
            let measured = app.metrics.begin(request.method());
            match admit(&app, &mut request).await {
                Ok(place) => invoke(&app, Some((place, measured)), begun, clock, request).await,
                Err(response) => {
                    measured.end(response.status(), begun.elapsed());
                    *response
                }
            }
        }
    }
}

/// Gives the request a place among those in flight, or the answer that refuses it. The original
/// watchdogs differ in what they look at first.
async fn admit(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
) -> Result<Place, Box<Response<Body>>> {
    let place = || app.life.enter().map_err(|limit| Box::new(limit_reached(limit)));
    let Some(authenticator) = &app.authenticator else {
        return place();
    };
    if matches!(app.target, Target::Classic(..)) {
        Box::pin(authenticator.admit(request)).await?;
        return place();
    }
    let place = place()?;
    Box::pin(authenticator.admit(request)).await?;
    Ok(place)
}

/// Has the mode answer; `counted` is `None` for a probe, which neither takes a place nor is
/// measured.
async fn invoke(
    app: &Arc<App>,
    counted: Option<(Place, Measured)>,
    begun: Instant,
    clock: Arc<ConnectionClock>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let end = begun + app.config.answer_limit() + GRACE;
    let (place, measured) = counted.unzip();
    let mut call = Box::new(Call::begin(place, measured, clock, begun, end));
    if let Some(traces) = app.traces.as_ref().filter(|_| call.is_counted()) {
        call.trace(traces.begin(&mut request));
    }
    match &app.target {
        Target::Http(upstream) => proxy::call(app, upstream, request, call).await,
        Target::Streaming(command) => Box::pin(fork::streaming(app, command, request, call)).await,
        Target::Serializing(command) => {
            Box::pin(fork::serializing(app, command, request, call)).await
        }
        Target::Classic(command, settings) => {
            Box::pin(fork::classic(app, command, settings, request, call)).await
        }
        Target::Static(files) => {
            let response = Box::pin(files.serve(&request)).await;
            call.answered(response.status(), Some(-1));
            response.map(|body| body.with(call))
        }
        Target::InProcess(handler) => Box::pin(inproc::call(app, handler, request, call)).await,
    }
}

fn health(app: &App, request: &Request<Incoming>) -> Response<Body> {
    if request.method() != Method::GET {
        return method_not_allowed();
    }
    if app.life.healthy() {
        plain(StatusCode::OK, "OK")
    } else {
        status(StatusCode::SERVICE_UNAVAILABLE)
    }
}

async fn ready(
    app: &Arc<App>,
    clock: Arc<ConnectionClock>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    if request.method() != Method::GET {
        return method_not_allowed();
    }
    if !app.life.healthy() {
        return status(StatusCode::SERVICE_UNAVAILABLE);
    }
    if let Some(limit) = app.life.limit_reached() {
        return limit_reached(limit);
    }
    let Some(path) = &app.config.ready_path else {
        return status(StatusCode::OK);
    };
    match path.parse::<Uri>() {
        Ok(uri) => *request.uri_mut() = uri,
        Err(error) => {
            app.log.line(format_args!("error: ready_path `{path}` is no path: {error}"));
            return status(StatusCode::SERVICE_UNAVAILABLE);
        }
    }
    // Outside the limit: a probe must not take a caller's place.
    invoke(app, None, Instant::now(), clock, request).await
}

fn limit_reached(limit: usize) -> Response<Body> {
    let text = format!("Concurrent request limit exceeded. Max concurrent requests: {limit}\n");
    let mut response = plain(StatusCode::TOO_MANY_REQUESTS, &text);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(INTERNAL, MIDDLEWARE);
    response
}

fn method_not_allowed() -> Response<Body> {
    let mut response = status(StatusCode::METHOD_NOT_ALLOWED);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

/// An answer without a body.
pub(crate) fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// An answer with a text of ours.
pub(crate) fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::full(text.to_owned()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The time since `start` in seconds, for `X-Duration-Seconds`.
pub(crate) fn duration_header(start: Instant) -> HeaderValue {
    let micros = start.elapsed().as_micros();
    // Whole numbers print several times faster than fractions.
    HeaderValue::try_from(format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000))
        .unwrap_or(HeaderValue::from_static("0.000000"))
}
