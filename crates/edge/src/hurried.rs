//! A request body on its way to the control plane, which must not stand still.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that breaks off when nothing of it comes for too long.
pub(crate) struct Hurried {
    body: Incoming,
    limit: Duration,
    /// Runs while somebody waits for the next piece.
    timer: Option<Pin<Box<Sleep>>>,
    late: Arc<AtomicBool>,
}

impl Hurried {
    /// The body, and what tells afterwards whether it was too slow.
    pub(crate) fn new(body: Incoming, limit: Duration) -> (Self, Arc<AtomicBool>) {
        let late = Arc::new(AtomicBool::new(false));
        (Self { body, limit, timer: None, late: Arc::clone(&late) }, late)
    }
}

impl Body for Hurried {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.timer = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(this.limit)));
        if timer.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        this.late.store(true, Ordering::Release);
        Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
