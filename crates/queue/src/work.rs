//! One attempt at one call: make the request, take the answer in, say what it came to.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;
use updraft_invoke::{CALL_ID, Caller, Function, INTERNAL, InvokeBody, RequestBody, Scheme};
use updraft_store::queue::{
    Attempt, BodyPieces, CallRecord, CallState, LeasedCall, Outcome, StoredBody,
};

use crate::policy::{RetryPolicy, Verdict, jitter};
use crate::shared::{Shared, count, in_future};

/// Attempts that a crash may interrupt beyond those that the policy grants.
const INTERRUPTIONS: u32 = 5;

/// A call under way; dropped, however that comes, its place is free.
pub(crate) struct Held {
    shared: Arc<Shared>,
    number: i64,
    attempt: Attempt,
    function: updraft_model::FunctionId,
    hang_up: CancellationToken,
}

impl Held {
    pub(crate) fn new(shared: &Arc<Shared>, call: &LeasedCall) -> Self {
        Self {
            shared: Arc::clone(shared),
            number: call.record.number,
            attempt: call.attempt,
            function: call.record.function.clone(),
            hang_up: shared.hold(call),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.let_go(self.number, self.attempt, &self.function);
    }
}

/// What an attempt brought.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    /// Of the whole body.
    length: u64,
    /// Whether it is the platform that answered.
    internal: bool,
}

/// How an attempt ended.
enum End {
    Answered(Answer),
    /// Its body is gone: no attempt can be made.
    Bodiless(String),
    /// Somebody cancelled the call, or another worker has it.
    HungUp,
    /// What keeps its body is away: no attempt can be made now.
    Postponed,
    /// The queue stops.
    Abandoned,
}

/// How many calls of the function may run at once, when its spec says so: as many as its replicas
/// take, so that no call is sent that would only wait or be refused.
pub(crate) fn concurrency(function: &Function) -> Option<usize> {
    let each = function.spec().concurrency()?;
    Some(each.saturating_mul(function.ready().max(1)))
}

/// How often the call may be tried again, for those who are told of it.
pub(crate) fn policy_told(shared: &Shared, record: &CallRecord) -> u32 {
    let function = shared.invoker.find(&record.function.to_string());
    function.map_or(shared.options.retry.attempts, |function| {
        shared.options.retry.of(function.spec()).0.attempts
    })
}

/// Makes the attempt and records what it came to.
pub(crate) async fn make(held: Held, call: LeasedCall) {
    let shared = Arc::clone(&held.shared);
    let LeasedCall { attempt, record, head, body } = call;
    let Some(function) = shared.invoker.find(&record.function.to_string()) else {
        let reason = format!("function `{}` was removed", record.function.name);
        return end(&shared, attempt, &record, CallState::Dead, failed(reason)).await;
    };
    let (policy, warnings) = shared.options.retry.of(function.spec());
    for warning in warnings {
        tracing::warn!(function = %record.function, "{warning}; the default is used");
    }
    if record.attempts > policy.attempts.saturating_add(1 + INTERRUPTIONS) {
        let reason = "each attempt was interrupted by an end of the server".to_owned();
        return end(&shared, attempt, &record, CallState::Dead, failed(reason)).await;
    }
    let started = Instant::now();
    let ended = tokio::select! {
        ended = attempt_once(&shared, &function, &record, head, body) => ended,
        () = held.hang_up.cancelled() => End::HungUp,
        () = shared.abandoning.cancelled() => End::Abandoned,
    };
    let took = started.elapsed();
    match ended {
        End::HungUp => {}
        End::Abandoned => give_back(&shared, attempt, &record, Duration::ZERO).await,
        End::Postponed => give_back(&shared, attempt, &record, policy.min_wait).await,
        End::Bodiless(reason) => {
            end(&shared, attempt, &record, CallState::Dead, failed(reason)).await;
        }
        End::Answered(answer) => {
            count(&shared.counts.processed);
            answered(&shared, attempt, &record, &policy, answer, took).await;
        }
    }
}

fn failed(reason: String) -> Outcome {
    Outcome { status: None, reason: Some(reason), took: Duration::ZERO, answer: None }
}

async fn answered(
    shared: &Shared,
    attempt: Attempt,
    record: &CallRecord,
    policy: &RetryPolicy,
    answer: Answer,
    took: Duration,
) {
    let Answer { status, headers, body, length, internal } = answer;
    let verdict = policy.verdict(record.attempts, status, internal, &headers, jitter());
    let reason = match verdict {
        Verdict::Done => None,
        _ => Some(reason_of(status, internal, &body)),
    };
    let outcome = Outcome {
        status: Some(status.as_u16()),
        reason,
        took,
        answer: Some((headers, body, length)),
    };
    match verdict {
        Verdict::Done => end(shared, attempt, record, CallState::Done, outcome).await,
        Verdict::Dead => end(shared, attempt, record, CallState::Dead, outcome).await,
        Verdict::Later(wait) => give_back(shared, attempt, record, wait).await,
        Verdict::Again(wait) => {
            let due = in_future(wait);
            tracing::debug!(
                call = %record.id, function = %record.function, status = status.as_u16(),
                attempt = record.attempts, wait = wait.as_secs_f64(), "a call is to be made again"
            );
            match shared.store.retry(attempt, due, outcome).await {
                Ok(kept) => {
                    if kept {
                        count(&shared.counts.retried);
                        shared.lanes().due(&record.function, due.as_millisecond());
                    }
                }
                Err(error) => lost(record, &error),
            }
        }
    }
}

/// Why an answer does not do, for people.
fn reason_of(status: StatusCode, internal: bool, body: &[u8]) -> String {
    if !internal {
        return format!("the function answered {}", status.as_u16());
    }
    let told: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let reason = told.as_ref().and_then(|told| told.get("reason")?.as_str());
    match reason {
        Some(reason) => reason.chars().take(500).collect(),
        None => format!("the platform answered {}", status.as_u16()),
    }
}

/// Puts a call back whose attempt was none.
async fn give_back(shared: &Shared, attempt: Attempt, record: &CallRecord, wait: Duration) {
    let due = in_future(wait);
    match shared.store.release(attempt, due).await {
        Ok(_) => shared.lanes().due(&record.function, due.as_millisecond()),
        Err(error) => lost(record, &error),
    }
}

/// Ends a call for good.
async fn end(
    shared: &Shared,
    attempt: Attempt,
    record: &CallRecord,
    state: CallState,
    outcome: Outcome,
) {
    if state == CallState::Dead {
        tracing::warn!(
            call = %record.id, function = %record.function, attempts = record.attempts,
            reason = outcome.reason.as_deref().unwrap_or_default(), "a call became a dead letter"
        );
    }
    match shared.store.finish(attempt, state, outcome).await {
        Ok(false) => {}
        Ok(true) => {
            shared.lanes().gone(&record.function, 1, record.body_length);
            if state == CallState::Dead {
                shared.more_dead(&record.function, 1);
            }
            if record.callback.is_some() {
                shared.tell.notify_one();
            }
            shared.ended.notify_one();
        }
        Err(error) => lost(record, &error),
    }
}

/// What an attempt came to could not be recorded: its lease lapses and the call is made again.
fn lost(record: &CallRecord, error: &updraft_store::StoreError) {
    tracing::error!(%error, call = %record.id, "what a call came to cannot be recorded");
}

async fn attempt_once(
    shared: &Shared,
    function: &Arc<Function>,
    record: &CallRecord,
    head: updraft_store::queue::RequestHead,
    body: StoredBody,
) -> End {
    let body = match body {
        StoredBody::Inline(bytes) => RequestBody::from(bytes),
        StoredBody::Blob(name, length) => match shared.store.open_body(&name).await {
            Ok(Some(pieces)) => RequestBody::kept(KeptBody { pieces, left: length }),
            Ok(None) => return End::Bodiless("the body of the call is gone".to_owned()),
            Err(error) if error.is_unavailable() => return End::Postponed,
            Err(error) => return End::Bodiless(format!("{error}")),
        },
    };
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.headers_mut() = head.headers;
    if let Ok(id) = HeaderValue::try_from(record.id.as_str()) {
        request.headers_mut().insert(CALL_ID, id);
    }
    let client = head.client;
    let scheme = if client.tls { Scheme::Https } else { Scheme::Http };
    let caller = Caller::new(SocketAddr::new(client.address, 0), scheme);
    let caller = if client.authorized { caller.authorized() } else { caller };
    let response = shared.invoker.call(function, &head.target, request, &caller).await;
    End::Answered(take_answer(response, shared.options.result, function.timeout()).await)
}

/// Reads the whole answer and keeps its beginning.
async fn take_answer(response: Response<InvokeBody>, keep: usize, limit: Duration) -> Answer {
    let (head, mut body) = response.into_parts();
    let mut kept = BytesMut::new();
    let mut length = 0;
    let reading = async {
        while let Some(frame) = body.frame().await {
            let Ok(piece) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
            length += piece.len() as u64;
            let room = keep - kept.len();
            kept.extend_from_slice(&piece[..piece.len().min(room)]);
        }
        Ok::<(), String>(())
    };
    let broken = match tokio::time::timeout(limit, reading).await {
        Ok(Ok(())) => None,
        Ok(Err(reason)) => Some((StatusCode::BAD_GATEWAY, reason)),
        Err(_) => Some((
            StatusCode::GATEWAY_TIMEOUT,
            format!("the answer did not end within {}", updraft_model::format_duration(limit)),
        )),
    };
    if let Some((status, reason)) = broken {
        let told = serde_json::json!({ "component": "queue", "reason": reason }).to_string();
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (length, body) = (told.len() as u64, told.into());
        return Answer { status, headers, body, length, internal: true };
    }
    let internal = head.headers.contains_key(INTERNAL);
    Answer { status: head.status, headers: head.headers, body: kept.freeze(), length, internal }
}

/// A kept body on its way to the function.
struct KeptBody {
    pieces: BodyPieces,
    left: u64,
}

impl fmt::Debug for KeptBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptBody").field("left", &self.left).finish_non_exhaustive()
    }
}

impl Body for KeptBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let piece = match ready!(self.pieces.poll_next_unpin(context)) {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => {
                let short = format!("{} bytes of the kept body are missing", self.left);
                self.left = 0;
                return Poll::Ready(Some(Err(std::io::Error::other(short))));
            }
        };
        self.left = self.left.saturating_sub(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
