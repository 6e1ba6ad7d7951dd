//! Who may call what: every route says it, and what a handler learns about its caller comes from
//! here only.
//!
//! An owner is told the same about another owner's things whether they exist or not: `403` where
//! the path names the owner, `404` where it names a number.

use axum::extract::{FromRequestParts, RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use updraft_model::OwnerName;
use updraft_store::access::{CHALLENGE, Denied, Principal};

use crate::answer::Failure;
use crate::{Host, Shared};

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody, without credentials. Nothing but the front page and the
    /// certificate that seals.
    Anyone,
    /// Everybody with credentials; the handler shows each what is theirs.
    Known,
    /// The owner that the path names, and the administrator.
    OwnerInPath,
    /// The administrator.
    Admin,
    /// As [`Self::OwnerInPath`], with answers that git understands.
    Git,
}

/// Whoever sent the request. Only behind a route that asked for credentials.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) Principal);

/// The owner that the path names, for whom the caller may act. Only behind
/// [`Access::OwnerInPath`].
#[derive(Debug, Clone)]
pub(crate) struct PathOwner(pub(crate) OwnerName);

impl Caller {
    /// `404` as for a thing that does not exist, unless it is the caller's.
    pub(crate) fn sees(
        &self,
        owner: &OwnerName,
        absent: impl FnOnce() -> Failure,
    ) -> Result<(), Failure> {
        if self.0.may_act_for(owner) { Ok(()) } else { Err(absent()) }
    }

    /// The owner whose things a list shows: the one asked for, if it may be; else the caller's
    /// own, or everybody's for the administrator.
    pub(crate) fn scope(&self, wanted: Option<&str>) -> Result<Option<OwnerName>, Failure> {
        match (&self.0, wanted.filter(|wanted| !wanted.is_empty())) {
            (Principal::Admin, None) => Ok(None),
            (Principal::Owner(own), None) => Ok(Some(own.clone())),
            (principal, Some(wanted)) => path_owner(principal, wanted).map(Some),
        }
    }
}

/// The owner of that name, if the caller may act for them.
fn path_owner(principal: &Principal, name: &str) -> Result<OwnerName, Failure> {
    let owner = OwnerName::new(name.to_ascii_lowercase());
    match (principal, owner) {
        (Principal::Admin, Err(error)) => Err(Failure::bad_request(error.to_string())),
        (principal, Ok(owner)) if principal.may_act_for(&owner) => Ok(owner),
        (Principal::Owner(own), _) => Err(forbidden(own, name)),
        (Principal::Admin, Ok(owner)) => Ok(owner),
    }
}

fn forbidden(own: &OwnerName, other: &str) -> Failure {
    Failure::new(StatusCode::FORBIDDEN, format!("you are `{own}` and may not act for `{other}`"))
        .hint("use a token of that owner: updraft token create --owner NAME")
}

/// Stands before every route but the open ones and git's.
pub(crate) async fn guard(
    State((access, host)): State<(Access, Shared)>,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    if comes_from_web_page(request.headers()) {
        let reason = "web pages may not use this API";
        return Failure::new(StatusCode::FORBIDDEN, reason).into_response();
    }
    let principal = match authenticate(&host, request.headers()).await {
        Ok(principal) => principal,
        Err(response) => return response,
    };
    match access {
        Access::Admin => {
            if let Principal::Owner(own) = &principal {
                return Failure::new(
                    StatusCode::FORBIDDEN,
                    format!("you are `{own}`; only `admin` may do this"),
                )
                .into_response();
            }
        }
        Access::OwnerInPath => {
            let name = params.iter().find(|(key, _)| *key == "owner").map_or("", |(_, name)| name);
            match path_owner(&principal, name) {
                Ok(owner) => drop(request.extensions_mut().insert(PathOwner(owner))),
                Err(failure) => return failure.into_response(),
            }
        }
        Access::Known | Access::Git | Access::Anyone => {}
    }
    request.extensions_mut().insert(Caller(principal));
    next.run(request).await
}

/// Whether a script or form of a web page sent the request. Pages of functions are served from the
/// loopback hosts too, and a browser that knows a password would send it along for them.
pub(crate) fn comes_from_web_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN)
        || headers.get("sec-fetch-site").is_some_and(|site| site != "none")
}

async fn authenticate(host: &Host, headers: &HeaderMap) -> Result<Principal, Response> {
    host.access.authenticate(headers).await.map_err(|denied| match denied {
        Denied::Store(error) => {
            tracing::error!(%error, "credentials could not be checked");
            let reason = "the credentials could not be checked";
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
        }
        denied => {
            let failure = Failure::new(StatusCode::UNAUTHORIZED, denied.to_string()).hint(
                "show a token (updraft token create --owner NAME) or the administrator's password",
            );
            let mut response = failure.into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
            response
        }
    })
}

/// A handler that asks for what its route's access does not give.
#[derive(Debug)]
pub(crate) struct NotGuarded;

impl IntoResponse for NotGuarded {
    fn into_response(self) -> Response {
        tracing::error!("a route asks for a caller that its access does not give");
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "this route is declared wrongly")
            .into_response()
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = NotGuarded;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NotGuarded> {
        parts.extensions.get().cloned().ok_or(NotGuarded)
    }
}

impl<S: Sync> FromRequestParts<S> for PathOwner {
    type Rejection = NotGuarded;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NotGuarded> {
        parts.extensions.get().cloned().ok_or(NotGuarded)
    }
}
