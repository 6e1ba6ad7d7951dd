//! Who may come in: the question the gateway asks before it looks at a request.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::GatewayParts;
use crate::answer::Failure;

/// What the credentials of a request are worth here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The administrator: everything is allowed.
    Admin,
    /// Somebody known who is not the administrator: nothing here is theirs.
    Forbidden,
    /// No credentials, or wrong ones.
    Unknown,
}

/// Tells what credentials are worth.
#[async_trait]
pub trait Authority: Send + Sync + fmt::Debug + 'static {
    /// Looks at the `Authorization` header among `headers`.
    async fn admit(&self, headers: &HeaderMap) -> Admission;
}

/// Stands before every route that only the administrator may call.
pub(crate) async fn require_admin(
    State(parts): State<Arc<GatewayParts>>,
    request: Request,
    next: Next,
) -> Response {
    match parts.authority.admit(request.headers()).await {
        Admission::Admin => next.run(request).await,
        Admission::Forbidden => Failure::new(
            StatusCode::FORBIDDEN,
            "these credentials may not use the gateway's system routes, use the administrator's",
        )
        .into_response(),
        Admission::Unknown => unauthorized(),
    }
}

/// The answer that makes a client ask for, or give up on, its user name and password.
fn unauthorized() -> Response {
    let mut response = Response::new(Body::from("invalid credentials"));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Restricted\""));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
