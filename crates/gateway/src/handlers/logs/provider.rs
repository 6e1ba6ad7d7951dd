//! Logs from elsewhere: a service of the operator's that keeps what functions wrote and answers
//! the same question. Its lines are passed on as they come.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use http_body::{Body as HttpBody, Frame};
use http_body_util::Empty;
use hyper::body::Incoming;
use tokio_util::task::AbortOnDropHandle;

use super::as_lines;
use crate::answer::Failure;
use crate::service::{Service, ServiceError};

/// How long the service may take until its lines begin; what it sends may last.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks the service what was asked here. `query` is what stood behind the `?`.
pub(super) async fn relay(provider: &Service, query: &str) -> Result<Response, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!(service = provider.authority(), %error, "logs could not be asked for");
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "log request failed")
    };
    let path = provider.target().path().trim_end_matches('/');
    let target: Uri =
        format!("{path}/system/logs?{query}").parse().map_err(|error| failed(&error))?;
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/x-ndjson"));
    let asked =
        tokio::time::timeout(PATIENCE, provider.get(target, headers, Empty::<Bytes>::new()));
    let (answer, connection) = match asked.await {
        Ok(Ok(answered)) => answered,
        Ok(Err(error)) => return Err(failed(&error)),
        Err(_) => return Err(failed(&format!("no answer within {} s", PATIENCE.as_secs()))),
    };
    match answer.status() {
        StatusCode::OK => {
            let lines = Lines { incoming: answer.into_body(), _connection: connection };
            Ok(as_lines(Body::new(lines)))
        }
        status @ (StatusCode::NOT_FOUND | StatusCode::NOT_IMPLEMENTED) => Err(Failure::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("the service that keeps logs answered {}", status.as_u16()),
        )),
        status => Err(Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("unknown log request error ({})", status.as_u16()),
        )),
    }
}

/// What the service sends; its connection ends when nobody reads any more.
struct Lines {
    incoming: Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = ServiceError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ServiceError>>> {
        Pin::new(&mut self.incoming).poll_frame(context).map_err(ServiceError::from)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }
}
