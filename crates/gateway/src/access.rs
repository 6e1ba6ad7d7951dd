//! Who may come in: the question the gateway asks before it looks at a request.
//!
//! Only the operator may: the API knows no owners, and whoever deploys through it can take any
//! function's name.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use updraft_store::access::{Denied, Principal};

use crate::GatewayParts;
use crate::answer::Failure;

/// Stands before every route that only the administrator may call.
pub(crate) async fn require_admin(
    State(parts): State<Arc<GatewayParts>>,
    request: Request,
    next: Next,
) -> Response {
    match parts.access.authenticate(request.headers()).await {
        Ok(Principal::Admin) => next.run(request).await,
        Ok(Principal::Owner(owner)) => Failure::new(
            StatusCode::FORBIDDEN,
            format!("`{owner}` may not use the gateway's system routes, only `admin` may"),
        )
        .into_response(),
        Err(Denied::Missing | Denied::Malformed | Denied::Wrong) => unauthorized(),
        Err(Denied::Store(error)) => {
            tracing::error!(%error, "credentials could not be checked");
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the credentials could not be checked")
                .into_response()
        }
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
