//! One call on its way through the watchdog: its place, its clock and its access line.
//!
//! A call ends when its answer has left (or the client has gone), so it travels inside the body of
//! the answer; dropping it gives back the place, counts the call and writes the line.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use tokio::time::{Instant, Sleep};

use crate::life::Place;
use crate::log::{AccessLine, Correlation, Log};
use crate::metrics::Measured;
use crate::traces::Span;

/// How the status stands in the access line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusStyle {
    /// `200 OK`, as in mode http.
    Text,
    /// `200`, as in the forking modes.
    Number,
}

/// What a connection's driver must know about the call on it.
#[derive(Debug)]
pub(crate) struct ConnectionClock {
    /// A call is under way.
    busy: AtomicBool,
    /// When the call under way (or the last one) must have been answered.
    end: Mutex<Instant>,
}

impl ConnectionClock {
    pub(crate) fn new() -> Self {
        Self { busy: AtomicBool::new(false), end: Mutex::new(Instant::now()) }
    }

    fn begin(&self, end: Instant) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = end;
        self.busy.store(true, Ordering::Relaxed);
    }

    pub(crate) fn busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    pub(crate) fn end(&self) -> Instant {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call; see the module.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) started: Instant,
    /// Until it is answered 504: that is what a client that went away leaves behind.
    status: StatusCode,
    place: Option<Place>,
    measured: Option<Measured>,
    connection: Arc<ConnectionClock>,
    access: Option<Access>,
    /// On the heap, as most watchdogs record none.
    span: Option<Box<Span>>,
}

#[derive(Debug)]
struct Access {
    log: Log,
    method: Method,
    uri: Uri,
    style: StatusStyle,
    /// Bytes of the answer; negative when unknown.
    size: i64,
    counting: bool,
    call_id: Option<HeaderValue>,
    correlation: Option<Arc<Correlation>>,
}

impl Call {
    /// Begins a call that must be answered by `end`; one without a place and without a measure is
    /// a probe's.
    pub(crate) fn begin(
        place: Option<Place>,
        measured: Option<Measured>,
        connection: Arc<ConnectionClock>,
        started: Instant,
        end: Instant,
    ) -> Self {
        connection.begin(end);
        Self {
            started,
            status: StatusCode::GATEWAY_TIMEOUT,
            place,
            measured,
            connection,
            access: None,
            span: None,
        }
    }

    /// Asks for an access line, unless a Kubernetes probe is calling.
    pub(crate) fn log_access(
        &mut self,
        log: &Log,
        request: &Parts,
        style: StatusStyle,
        with_call_id: bool,
    ) {
        let from_probe = request
            .headers
            .get(header::USER_AGENT)
            .is_some_and(|agent| agent.as_bytes().starts_with(b"kube-probe"));
        if from_probe {
            return;
        }
        let call_id = with_call_id.then(|| {
            request
                .headers
                .get("x-call-id")
                .cloned()
                .unwrap_or_else(|| HeaderValue::from_static("none"))
        });
        self.access = Some(Access {
            log: log.clone(),
            method: request.method.clone(),
            uri: request.uri.clone(),
            style,
            size: 0,
            counting: false,
            call_id,
            correlation: log.correlation(&request.headers),
        });
    }

    /// Notes the answer; a `size` of `None` counts the bytes that pass.
    pub(crate) fn answered(&mut self, status: StatusCode, size: Option<i64>) {
        self.status = status;
        if let Some(access) = &mut self.access {
            access.size = size.unwrap_or(0);
            access.counting = size.is_none();
        }
    }

    pub(crate) fn passed(&mut self, bytes: usize) {
        if let Some(access) = self.access.as_mut().filter(|access| access.counting) {
            access.size += i64::try_from(bytes).unwrap_or(0);
        }
    }

    /// The answer broke off after its head had been sent.
    pub(crate) fn broke_off(&mut self, error: &io::Error) {
        self.status = match error.kind() {
            io::ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
    }

    /// Whether it is a caller's and no probe's.
    pub(crate) fn is_counted(&self) -> bool {
        self.measured.is_some()
    }

    /// Has the span end together with the call.
    pub(crate) fn trace(&mut self, span: Option<Span>) {
        self.span = span.map(Box::new);
    }

    /// The call has become a tunnel: draining does not wait for it.
    pub(crate) fn tunnelled(&mut self) {
        if let Some(place) = &mut self.place {
            place.no_longer_awaited();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.connection.busy.store(false, Ordering::Relaxed);
        let took = self.started.elapsed();
        if let Some(measured) = self.measured.take() {
            measured.end(self.status, took);
        }
        if let Some(span) = self.span.take() {
            span.end(self.status, took);
        }
        let Some(access) = &self.access else { return };
        access.log.access(&AccessLine {
            method: &access.method,
            uri: &access.uri,
            status: self.status,
            with_reason: access.style == StatusStyle::Text,
            size: access.size,
            took,
            call_id: access.call_id.as_ref(),
            correlation: access.correlation.as_deref(),
        });
    }
}

/// A moment by which something must be done; costs a timer only once somebody has to wait.
#[derive(Debug)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    pub(crate) fn new(at: Option<Instant>) -> Self {
        Self { at, sleep: None }
    }

    pub(crate) fn after(start: Instant, limit: Option<Duration>) -> Self {
        Self::new(limit.and_then(|limit| start.checked_add(limit)))
    }

    /// Makes it so long from now.
    pub(crate) fn put_off(&mut self, limit: Duration) {
        self.at = Instant::now().checked_add(limit);
        if let (Some(at), Some(sleep)) = (self.at, &mut self.sleep) {
            sleep.as_mut().reset(at);
        }
    }

    /// Whether the moment has passed; wakes the task when it does.
    pub(crate) fn poll_passed(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(at) = self.at else { return false };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        matches!(sleep.as_mut().poll(cx), Poll::Ready(()))
    }
}
