//! Asks somebody else who may come in: a service of the operator's own, for instance one that
//! logs people in.
//!
//! It is sent a `GET` with the caller's headers, and the caller's body where that is wanted. 200
//! lets the caller in as the administrator; every other answer goes back to the caller as it is,
//! so that it can ask for credentials or send a browser elsewhere. One that cannot be asked lets
//! nobody in.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Full, Limited};

use crate::answer::Failure;
use crate::service::{Service, ServiceError, end_to_end};

/// How long the service may take for its whole answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest refusal that is passed on.
const REFUSAL_LIMIT: usize = 256 << 10;

/// Who is asked, and what about.
#[derive(Debug, Clone)]
pub struct AuthProxy {
    /// The service.
    pub service: Service,
    /// Whether it is sent the caller's body too.
    pub pass_body: bool,
}

impl AuthProxy {
    /// Whether a request with these headers, and this body where that is sent along, may come in;
    /// else what to answer.
    pub(crate) async fn ask(&self, headers: &HeaderMap, body: Bytes) -> Result<(), Response> {
        let answer = tokio::time::timeout(PATIENCE, self.exchange(headers, body)).await;
        let unanswered = match answer {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(refusal))) => return Err(refusal),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        let service = self.service.authority();
        tracing::error!(service, error = unanswered, "cannot ask who may come in");
        let text = "the authentication service could not be asked";
        Err(Failure::new(StatusCode::BAD_GATEWAY, text).into_response())
    }

    /// Nothing when the service says yes, else its answer.
    async fn exchange(
        &self,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Option<Response>, ServiceError> {
        let (target, body) = (self.service.target().clone(), Full::new(body));
        let (answer, _connection) = self.service.get(target, headers.clone(), body).await?;
        let (head, body) = answer.into_parts();
        if head.status == StatusCode::OK {
            return Ok(None);
        }
        let body = Limited::new(body, REFUSAL_LIMIT).collect().await?.to_bytes();
        let mut refusal = Response::new(Body::from(body));
        *refusal.status_mut() = head.status;
        *refusal.headers_mut() = end_to_end(head.headers);
        Ok(Some(refusal))
    }
}
