//! The bodies of answers, whoever gives them.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::Either;
use http_body::{Body, Frame, SizeHint};
use updraft_invoke::InvokeBody;

use crate::connection::Busy;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An answer's body, which keeps its connection busy until it has ended.
pub(crate) struct EdgeBody {
    inner: Either<InvokeBody, axum::body::Body>,
    _busy: Option<Busy>,
}

impl From<InvokeBody> for EdgeBody {
    fn from(body: InvokeBody) -> Self {
        Self { inner: Either::Left(body), _busy: None }
    }
}

impl From<axum::body::Body> for EdgeBody {
    fn from(body: axum::body::Body) -> Self {
        Self { inner: Either::Right(body), _busy: None }
    }
}

impl EdgeBody {
    pub(crate) fn keeping(self, busy: Busy) -> Self {
        Self { inner: self.inner, _busy: Some(busy) }
    }
}

impl Body for EdgeBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.inner {
            Either::Left(body) => Pin::new(body).poll_frame(context).map_err(BoxError::from),
            Either::Right(body) => Pin::new(body).poll_frame(context).map_err(BoxError::from),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Either::Left(body) => body.is_end_stream(),
            Either::Right(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Either::Left(body) => body.size_hint(),
            Either::Right(body) => body.size_hint(),
        }
    }
}
