//! The bodies that pass through: towards the function and back.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use thiserror::Error;

use crate::connection::Flow;

/// Why a body ended before its end.
#[derive(Debug, Error)]
pub enum BodyError {
    /// The replica went away or broke the protocol; its fault.
    #[error("replica `{replica}` broke off its answer")]
    Replica {
        /// Which replica.
        replica: String,
        /// What was seen on the connection.
        #[source]
        source: hyper::Error,
    },
    /// The replica took back an answer that it had begun; its fault.
    #[error("replica `{replica}` cancelled its answer")]
    Cancelled {
        /// Which replica.
        replica: String,
    },
    /// Nothing moved for as long as the function's timeout allows.
    #[error("replica `{replica}` sent nothing for {}", updraft_model::format_duration(*.limit))]
    Stalled {
        /// Which replica.
        replica: String,
        /// The function's timeout.
        limit: Duration,
    },
    /// The caller went away or broke the protocol.
    #[error("the caller broke off the request")]
    Caller(#[source] hyper::Error),
    /// A body that the platform has kept cannot be read; the machine's fault.
    #[error("the kept request body cannot be read")]
    Kept(#[source] std::io::Error),
}

/// What a caller sends.
#[derive(Debug)]
pub struct RequestBody {
    kind: RequestKind,
    upload: Option<Arc<Upload>>,
}

#[derive(Debug)]
enum RequestKind {
    Incoming(Incoming),
    Whole(Option<Bytes>),
    Kept(KeptBody),
}

/// A body that comes from the platform itself, piece by piece.
struct KeptBody(Pin<Box<dyn Body<Data = Bytes, Error = std::io::Error> + Send + Sync>>);

impl fmt::Debug for KeptBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptBody")
    }
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        Self { kind: RequestKind::Incoming(body), upload: None }
    }
}

impl From<Bytes> for RequestBody {
    fn from(bytes: Bytes) -> Self {
        let whole = (!bytes.is_empty()).then_some(bytes);
        Self { kind: RequestKind::Whole(whole), upload: None }
    }
}

impl RequestBody {
    /// A body that the platform has kept and reads as it is sent.
    pub fn kept(
        body: impl Body<Data = Bytes, Error = std::io::Error> + Send + Sync + 'static,
    ) -> Self {
        Self { kind: RequestKind::Kept(KeptBody(Box::pin(body))), upload: None }
    }

    /// Notes from now on how the body moves, unless there is none.
    pub(crate) fn watch(&mut self) -> Option<Arc<Upload>> {
        if self.upload.is_none() && !self.is_end_stream() {
            self.upload = Some(Arc::new(Upload::new()));
        }
        self.upload.clone()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match &mut this.kind {
            RequestKind::Whole(bytes) => {
                if let Some(upload) = &this.upload {
                    upload.note(false, true);
                }
                Poll::Ready(bytes.take().map(|all| Ok(Frame::data(all))))
            }
            RequestKind::Incoming(body) => {
                let polled = Pin::new(&mut *body).poll_frame(context);
                if let Some(upload) = &this.upload {
                    let last = match &polled {
                        Poll::Pending | Poll::Ready(Some(Ok(_))) => false,
                        Poll::Ready(None | Some(Err(_))) => true,
                    };
                    upload.note(polled.is_pending(), last || body.is_end_stream());
                }
                polled.map(|frame| frame.map(|frame| frame.map_err(BodyError::Caller)))
            }
            RequestKind::Kept(KeptBody(body)) => {
                let polled = body.as_mut().poll_frame(context);
                if let Some(upload) = &this.upload {
                    let last = matches!(&polled, Poll::Ready(None | Some(Err(_))));
                    upload.note(polled.is_pending(), last || body.is_end_stream());
                }
                polled.map(|frame| frame.map(|frame| frame.map_err(BodyError::Kept)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            RequestKind::Incoming(body) => body.is_end_stream(),
            RequestKind::Whole(bytes) => bytes.is_none(),
            RequestKind::Kept(KeptBody(body)) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            RequestKind::Incoming(body) => body.size_hint(),
            RequestKind::Kept(KeptBody(body)) => body.size_hint(),
            RequestKind::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}

/// How a request body moves, told by the body to whoever watches the clock.
#[derive(Debug)]
pub(crate) struct Upload {
    start: Instant,
    /// Milliseconds from `start` to the last piece.
    moved: AtomicU64,
    /// Whether the replica would take more and the caller has sent none.
    starved: AtomicBool,
    /// Whether the last piece has passed.
    done: AtomicBool,
}

impl Upload {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            moved: AtomicU64::new(0),
            starved: AtomicBool::new(false),
            done: AtomicBool::new(false),
        }
    }

    fn note(&self, pending: bool, done: bool) {
        self.done.store(done, Ordering::Relaxed);
        self.starved.store(pending, Ordering::Relaxed);
        if !pending {
            let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.moved.store(elapsed, Ordering::Relaxed);
        }
    }

    /// When the last piece passed.
    pub(crate) fn moved_at(&self) -> Instant {
        self.start + Duration::from_millis(self.moved.load(Ordering::Relaxed))
    }

    /// Whether the whole body has passed.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// Whether it is the caller who keeps everybody waiting.
    pub(crate) fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed)
    }
}

/// What a caller gets.
#[derive(Debug)]
pub struct InvokeBody(pub(crate) AnswerKind);

#[derive(Debug)]
pub(crate) enum AnswerKind {
    Whole(Option<Bytes>),
    Flow(Flow),
}

impl InvokeBody {
    /// A body of ours, whole.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self(AnswerKind::Whole((!bytes.is_empty()).then_some(bytes)))
    }
}

impl Body for InvokeBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            AnswerKind::Whole(bytes) => Poll::Ready(bytes.take().map(|all| Ok(Frame::data(all)))),
            AnswerKind::Flow(flow) => flow.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            AnswerKind::Whole(bytes) => bytes.is_none(),
            AnswerKind::Flow(flow) => flow.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            AnswerKind::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            AnswerKind::Flow(flow) => flow.size_hint(),
        }
    }
}
