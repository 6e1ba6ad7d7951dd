//! Who may come in: the question the gateway asks before it looks at a request.
//!
//! Only the operator may: the API knows no owners, and whoever deploys through it can take any
//! function's name. An operator alone on a machine may switch the password off; web pages stay out
//! all the same.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use updraft_store::access::{Denied, Principal};

use crate::answer::{Failure, read_body};
use crate::handlers::DESCRIPTION_LIMIT;
use crate::proxy::AuthProxy;
use crate::{Authentication, GatewayParts};

/// Stands before every route that only the administrator may call.
pub(crate) async fn require_admin(
    State(parts): State<Arc<GatewayParts>>,
    request: Request,
    next: Next,
) -> Response {
    let (principal, request) = principal(&parts, request).await;
    match principal {
        Ok(Principal::Admin) => next.run(request).await,
        Ok(Principal::Owner(owner)) => Failure::new(
            StatusCode::FORBIDDEN,
            format!("`{owner}` may not use the gateway's system routes, only `admin` may"),
        )
        .into_response(),
        Err(refusal) => refusal,
    }
}

/// Stands before routes that owners may call too; the handler finds out who it is.
pub(crate) async fn require_account(
    State(parts): State<Arc<GatewayParts>>,
    request: Request,
    next: Next,
) -> Response {
    let (principal, mut request) = principal(&parts, request).await;
    match principal {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(refusal) => refusal,
    }
}

/// Who sent the request; and the request, which may have been read for that.
async fn principal(
    parts: &GatewayParts,
    mut request: Request,
) -> (Result<Principal, Response>, Request) {
    let mut body = Bytes::new();
    if let Authentication::Proxy(AuthProxy { pass_body: true, .. }) = &parts.authentication {
        match read_body(std::mem::take(request.body_mut()), DESCRIPTION_LIMIT).await {
            Ok(read) => body = read,
            Err(failure) => return (Err(failure.into_response()), request),
        }
        *request.body_mut() = Body::from(body.clone());
    }
    (known(parts, request.headers(), body).await, request)
}

async fn known(
    parts: &GatewayParts,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Principal, Response> {
    if comes_from_web_page(headers) {
        let text = "web pages may not use the system routes";
        return Err(Failure::new(StatusCode::FORBIDDEN, text).into_response());
    }
    match &parts.authentication {
        Authentication::Password => {}
        Authentication::Proxy(proxy) => {
            return proxy.ask(headers, body).await.map(|()| Principal::Admin);
        }
        Authentication::Off => return Ok(Principal::Admin),
    }
    parts.access.authenticate(headers).await.map_err(|denied| match denied {
        Denied::Missing | Denied::Malformed | Denied::Wrong => unauthorized(),
        Denied::Store(error) => {
            tracing::error!(%error, "credentials could not be checked");
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the credentials could not be checked")
                .into_response()
        }
    })
}

/// Whether a script or form of a web page sent the request. Pages of functions are served from the
/// same host as this API, and a browser that knows the password would send it along for them.
fn comes_from_web_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN)
        || headers.get("sec-fetch-site").is_some_and(|site| site != "none")
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
