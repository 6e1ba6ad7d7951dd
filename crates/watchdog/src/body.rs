//! The two kinds of bodies: what goes to the client, and what goes to the function.
//!
//! Both stream; neither holds more than the chunk that is passing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::call::{Call, Deadline};
use crate::upstream::Lease;

/// The body of an answer, with the call it answers.
pub(crate) struct Body {
    content: Content,
    call: Option<Box<Call>>,
}

enum Content {
    /// Known in full; empty is nothing.
    Full(Bytes),
    /// From the function of mode http.
    Relay(Box<Relay>),
    /// From a process or a file.
    Stream(BoxStream<'static, io::Result<Bytes>>, Option<u64>),
}

struct Relay {
    incoming: Incoming,
    deadline: Deadline,
    /// How long nothing may come, and until when that is.
    idle: Option<(Duration, Deadline)>,
    lease: Option<Lease>,
}

impl Body {
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        Self { content: Content::Full(bytes.into()), call: None }
    }

    pub(crate) fn empty() -> Self {
        Self::full(Bytes::new())
    }

    /// Passes on what the function sends, until the deadline or until nothing has come for `idle`;
    /// the connection goes back to the pool once the body has ended.
    pub(crate) fn relay(
        incoming: Incoming,
        deadline: Deadline,
        idle: Option<Duration>,
        lease: Lease,
    ) -> Self {
        let idle = idle.map(|limit| (limit, Deadline::after(Instant::now(), Some(limit))));
        let relay = Relay { incoming, deadline, idle, lease: Some(lease) };
        Self { content: Content::Relay(Box::new(relay)), call: None }
    }

    /// Passes on a stream, of exactly `size` bytes where that is known.
    pub(crate) fn stream(stream: BoxStream<'static, io::Result<Bytes>>, size: Option<u64>) -> Self {
        Self { content: Content::Stream(stream, size), call: None }
    }

    /// Lets the call end together with this body.
    pub(crate) fn with(mut self, call: Box<Call>) -> Self {
        self.call = Some(call);
        self
    }
}

impl Relay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(io::Error::other(error)))),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some((limit, deadline)) = &mut self.idle {
                    deadline.put_off(*limit);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.give_back();
                Poll::Ready(None)
            }
            Poll::Pending if self.is_over(cx) => {
                Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let idle = self.idle.as_mut().is_some_and(|(_, deadline)| deadline.poll_passed(cx));
        idle || self.deadline.poll_passed(cx)
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A body of known length is not polled once more after its last byte.
        if self.incoming.is_end_stream() {
            self.give_back();
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let polled = match &mut this.content {
            Content::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Content::Relay(relay) => relay.poll(cx),
            Content::Stream(stream, _) => {
                stream.poll_next_unpin(cx).map(|item| item.map(|chunk| chunk.map(Frame::data)))
            }
        };
        if let Some(call) = &mut this.call {
            match &polled {
                Poll::Ready(Some(Ok(frame))) => call.passed(frame.data_ref().map_or(0, Bytes::len)),
                Poll::Ready(Some(Err(error))) => call.broke_off(error),
                _ => {}
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Full(bytes) => bytes.is_empty(),
            Content::Relay(relay) => relay.incoming.is_end_stream(),
            Content::Stream(_, size) => *size == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Relay(relay) => relay.incoming.size_hint(),
            Content::Stream(_, Some(size)) => SizeHint::with_exact(*size),
            Content::Stream(_, None) => SizeHint::default(),
        }
    }
}

/// The body of a request on its way to the function.
pub(crate) enum Upload {
    /// As it arrives from the client, until the deadline.
    Passing(Incoming, Deadline),
    /// Read in full before.
    Full(Bytes),
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Passing(incoming, deadline) => match Pin::new(incoming).poll_frame(cx) {
                Poll::Ready(item) => Poll::Ready(item.map(|frame| frame.map_err(io::Error::other))),
                Poll::Pending if deadline.poll_passed(cx) => {
                    Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())))
                }
                Poll::Pending => Poll::Pending,
            },
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Passing(incoming, _) => incoming.is_end_stream(),
            Self::Full(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Passing(incoming, _) => incoming.size_hint(),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}
