//! Spans of calls, sent to a collector of traces when one is named.
//!
//! Follows <https://www.w3.org/TR/trace-context/> for who belongs to what, and OTLP over HTTP in
//! JSON (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>) for telling it. Memory is bounded, a
//! collector that is slow or gone holds up no call, and spans that find no room are dropped.

mod parent;
mod wire;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use tokio::sync::Notify;

use crate::body::Upload;
use crate::config::TraceSettings;
use crate::log::Log;
use crate::upstream::Upstream;
use parent::{Parent, TRACEPARENT, TRACESTATE};

/// Most spans that wait for the collector.
const MAX_WAITING: usize = 2048;
/// Most spans of one message.
const MAX_BATCH: usize = 256;
/// How long spans gather before they are sent.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take for one message.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// Most bytes of the collector's answer that are read.
const MAX_ANSWER: usize = 64 * 1024;
/// Longest path and longest id that are told.
const MAX_TEXT: usize = 1024;

/// All spans of one watchdog on their way to the collector.
pub(crate) struct Traces {
    service: String,
    collector: Arc<Upstream>,
    log: Log,
    waiting: Mutex<Waiting>,
    /// There is something to send.
    more: Notify,
    /// Where ids come from: seeded by the system, so that they are nobody else's.
    seed: RandomState,
    drawn: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    spans: Vec<Ended>,
    dropped: u64,
    /// The last message failed, and the log knows.
    failing: bool,
}

/// A call under way; `end` tells of it.
pub(crate) struct Span {
    traces: Arc<Traces>,
    begun: SystemTime,
    trace: u128,
    id: u64,
    parent: Option<u64>,
    method: Method,
    path: String,
    call_id: Option<String>,
}

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Span({:032x}-{:016x})", self.trace, self.id)
    }
}

struct Ended {
    span: Span,
    took: Duration,
    status: StatusCode,
}

impl Traces {
    /// Begins to send what will be recorded.
    pub(crate) fn start(settings: &TraceSettings, log: &Log) -> Arc<Self> {
        let traces = Arc::new(Self {
            service: settings.service.clone(),
            collector: Arc::new(Upstream::new(settings.collector.clone(), None)),
            log: log.clone(),
            waiting: Mutex::default(),
            more: Notify::new(),
            seed: RandomState::new(),
            drawn: AtomicU64::new(0),
        });
        tokio::spawn(Arc::clone(&traces).send_on());
        traces
    }

    /// A span for this call, as whose child the function's own will count; none where the caller
    /// has decided that this trace is not recorded.
    pub(crate) fn begin<B>(self: &Arc<Self>, request: &mut Request<B>) -> Option<Span> {
        let (method, path) = (request.method().clone(), shortened(request.uri().path()));
        let headers = request.headers_mut();
        let parent = headers.get(TRACEPARENT).and_then(Parent::parse);
        if parent.as_ref().is_some_and(|parent| !parent.sampled) {
            return None;
        }
        let (trace, parent) = if let Some(parent) = parent {
            (parent.trace, Some(parent.span))
        } else {
            headers.remove(TRACESTATE);
            ((u128::from(self.draw()) << 64) | u128::from(self.draw()), None)
        };
        let id = self.draw();
        if let Ok(value) = HeaderValue::try_from(format!("00-{trace:032x}-{id:016x}-01")) {
            headers.insert(TRACEPARENT, value);
        }
        let call_id = headers.get("x-call-id").and_then(|id| id.to_str().ok());
        Some(Span {
            traces: Arc::clone(self),
            begun: SystemTime::now(),
            trace,
            id,
            parent,
            method,
            path,
            call_id: call_id.map(shortened),
        })
    }

    /// A number that is not 0.
    fn draw(&self) -> u64 {
        self.seed.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed)).max(1)
    }

    async fn send_on(self: Arc<Self>) {
        loop {
            self.more.notified().await;
            tokio::time::sleep(GATHER).await;
            self.send_waiting().await;
        }
    }

    /// Sends all that waits; what the collector does not take is lost.
    pub(crate) async fn send_waiting(&self) {
        loop {
            let (batch, dropped) = {
                let mut waiting = self.waiting();
                let most = waiting.spans.len().min(MAX_BATCH);
                let batch: Vec<Ended> = waiting.spans.drain(..most).collect();
                (batch, std::mem::take(&mut waiting.dropped))
            };
            if dropped > 0 {
                self.log.line(format_args!("{dropped} spans were dropped: the collector is slow"));
            }
            if batch.is_empty() {
                return;
            }
            let sent = tokio::time::timeout(SEND_LIMIT, self.send(&batch)).await;
            let failed = match sent {
                Ok(Ok(())) => None,
                Ok(Err(reason)) => Some(reason),
                Err(_elapsed) => Some(format!("it has not answered within {SEND_LIMIT:?}")),
            };
            // Told once, not with each message.
            let told = std::mem::replace(&mut self.waiting().failing, failed.is_some());
            if let Some(reason) = failed.filter(|_| !told) {
                self.log.line(format_args!(
                    "error: spans are lost, the collector at {} does not take them: {reason}",
                    self.collector.address.authority
                ));
            }
        }
    }

    async fn send(&self, batch: &[Ended]) -> Result<(), String> {
        let message = wire::message(&self.service, batch).map_err(|error| error.to_string())?;
        let mut request = Request::new(Upload::Full(Bytes::from(message)));
        *request.method_mut() = Method::POST;
        let path = match self.collector.address.prefix.as_str() {
            "" => "/v1/traces",
            own => own,
        };
        *request.uri_mut() = path.parse().map_err(|_| format!("`{path}` is no path"))?;
        let host = HeaderValue::from_str(&self.collector.address.authority);
        request.headers_mut().insert(header::HOST, host.map_err(|error| error.to_string())?);
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json);
        let sent = self.collector.send(request).await;
        let (response, lease) = sent.map_err(|error| error.to_string())?;
        let status = response.status();
        let read = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        if read.is_ok() {
            lease.give_back();
        }
        if status.is_success() { Ok(()) } else { Err(format!("it answered {status}")) }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Span {
    /// The call has ended.
    pub(crate) fn end(self, status: StatusCode, took: Duration) {
        let traces = Arc::clone(&self.traces);
        let mut waiting = traces.waiting();
        if waiting.spans.len() >= MAX_WAITING {
            waiting.dropped += 1;
            return;
        }
        waiting.spans.push(Ended { span: self, took, status });
        drop(waiting);
        traces.more.notify_one();
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}
