//! Keys of sealed secrets: the certificate for everybody, and for those who may act for a
//! secret's owner whether it opens, and the same sealed with the newest key.
//!
//! The last two are asked questions about what others may have written, so they tell no more than
//! the original does: yes or no, never why, and not often.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use updraft_model::Namespace;
use updraft_seal::{Document, Format, Limits, ResealError, Scope, SealedSecret, parse_documents};
use updraft_store::access::Principal;

use crate::access::Caller;
use crate::answer::{Failure, read_body};
use crate::{Host, Shared};

/// One request every so often, for each caller and path.
const INTERVAL: Duration = Duration::from_millis(500);

/// Requests that may come at once after a silence.
const BURST: u32 = 2;

/// Callers that are remembered; owners are made by the administrator, so there are not many.
const CALLERS_MAX: usize = 10_000;

/// Lets each caller through so many times a second (GCRA). Callers are known by their
/// credentials, never by a header that they could write themselves.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    /// When the next request of a caller would be on time.
    due: Mutex<HashMap<(&'static str, String), Instant>>,
}

impl RateLimit {
    /// How long the caller has to wait, if it may not go on.
    pub(crate) fn check(
        &self,
        path: &'static str,
        caller: &str,
        now: Instant,
    ) -> Result<(), Duration> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if due.len() >= CALLERS_MAX {
            due.retain(|_, due| *due > now);
        }
        let due = due.entry((path, caller.to_owned())).or_insert(now);
        let next = (*due).max(now);
        let early = next.duration_since(now);
        let allowed = INTERVAL * (BURST - 1);
        if let Some(wait) = early.checked_sub(allowed).filter(|wait| !wait.is_zero()) {
            return Err(wait);
        }
        *due = next + INTERVAL;
        Ok(())
    }
}

/// The newest certificate. It is public: it seals and opens nothing.
pub(crate) async fn certificate(State(host): State<Shared>) -> Result<Response, Failure> {
    let began = Instant::now();
    let keys = Arc::clone(&host.keys);
    let certificate = blocking(move || keys.certificate()).await?;
    let answer = match certificate {
        Ok(certificate) => {
            let kind = HeaderValue::from_static("application/x-pem-file");
            Ok(([(header::CONTENT_TYPE, kind)], certificate.to_pem().to_owned()).into_response())
        }
        Err(error) => Err(Failure::internal(&error)),
    };
    counted(&host, "/v1/cert.pem", "GET", began, answer)
}

/// Whether a sealed secret opens: 200 or 409.
pub(crate) async fn verify(
    State(host): State<Shared>,
    Caller(principal): Caller,
    body: Body,
) -> Result<Response, Failure> {
    let began = Instant::now();
    let answer = verified(&host, &principal, body).await;
    counted(&host, "/v1/verify", "POST", began, answer)
}

async fn verified(host: &Shared, principal: &Principal, body: Body) -> Result<Response, Failure> {
    let secret = secret_of(host, principal, "/v1/verify", body).await?;
    let keys = Arc::clone(&host.keys);
    match blocking(move || keys.unseal(&secret)).await? {
        Ok(_) => Ok(StatusCode::OK.into_response()),
        Err(error) => Err(Failure::new(StatusCode::CONFLICT, error.opaque())),
    }
}

/// A sealed secret, sealed with the newest key: the same name, namespace and scope.
pub(crate) async fn rotate(
    State(host): State<Shared>,
    Caller(principal): Caller,
    body: Body,
) -> Result<Response, Failure> {
    let began = Instant::now();
    let answer = rotated(&host, &principal, body).await;
    counted(&host, "/v1/rotate", "POST", began, answer)
}

async fn rotated(host: &Shared, principal: &Principal, body: Body) -> Result<Response, Failure> {
    let secret = secret_of(host, principal, "/v1/rotate", body).await?;
    let keys = Arc::clone(&host.keys);
    match blocking(move || keys.reseal(&secret)).await? {
        Ok(sealed) => {
            let kind = HeaderValue::from_static("application/json");
            Ok(([(header::CONTENT_TYPE, kind)], sealed.to_text(Format::Json)).into_response())
        }
        Err(error) => {
            let reason = match error {
                ResealError::Unseal(error) => error.opaque(),
                ResealError::Seal(error) => error.to_string(),
            };
            Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, reason))
        }
    }
}

/// The one sealed secret of a body, if the caller may ask about it now.
async fn secret_of(
    host: &Host,
    principal: &Principal,
    path: &'static str,
    body: Body,
) -> Result<SealedSecret, Failure> {
    let caller = match principal {
        Principal::Admin => "",
        Principal::Owner(owner) => owner.as_str(),
    };
    if let Err(wait) = host.rate_limit.check(path, caller, Instant::now()) {
        let wait = wait.as_millis().div_ceil(1000).max(1);
        let reason = format!("too many requests, try again in {wait} s");
        return Err(Failure::new(StatusCode::TOO_MANY_REQUESTS, reason));
    }
    let limits = Limits { file_bytes: 4 << 20, documents: 1, ..Limits::usual() };
    let body = read_body(body, limits.file_bytes).await?;
    let unreadable = |reason: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, reason);
    let mut documents =
        parse_documents(&body, limits).map_err(|error| unreadable(error.to_string()))?;
    let secret = match (documents.pop(), documents.is_empty()) {
        (Some(Document::Sealed(secret)), true) => *secret,
        (None, _) => return Err(Failure::bad_request("there is no sealed secret in the body")),
        _ => return Err(unreadable("the body must be one sealed secret".to_owned())),
    };
    if let Principal::Owner(owner) = principal {
        let name = secret.name.to_ascii_lowercase();
        let own = name
            .strip_prefix(owner.as_str())
            .is_some_and(|rest| rest.len() > 1 && rest.starts_with('-'));
        let here = secret
            .namespace
            .as_deref()
            .is_none_or(|namespace| namespace == Namespace::default().as_str());
        if !own || !here || secret.scope != Scope::Strict {
            let reason = format!(
                "you are `{owner}` and may ask about strict secrets in `{}` whose names begin with `{owner}-`",
                Namespace::default()
            );
            return Err(Failure::new(StatusCode::FORBIDDEN, reason));
        }
    }
    Ok(secret.or_in_namespace(Namespace::default().as_str()))
}

fn counted(
    host: &Host,
    path: &'static str,
    method: &'static str,
    began: Instant,
    answer: Result<Response, Failure>,
) -> Result<Response, Failure> {
    let status = match &answer {
        Ok(response) => response.status(),
        Err(failure) => failure.status(),
    };
    host.keys.metrics().request(path, method, status.as_u16(), began.elapsed());
    answer
}

/// RSA takes milliseconds and up: it runs beside the threads that serve.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::internal(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_at_once_then_two_a_second_and_each_caller_for_itself() {
        let limit = RateLimit::default();
        let start = Instant::now();
        let check = |caller: &str, milliseconds| {
            limit.check("/v1/verify", caller, start + Duration::from_millis(milliseconds))
        };
        assert_eq!((check("a", 0), check("a", 0)), (Ok(()), Ok(())));
        assert!(check("a", 0).is_err());
        assert!(check("a", 400).is_err());
        assert_eq!(check("b", 0), Ok(()));
        assert_eq!(check("a", 500), Ok(()));
        assert!(check("a", 500).is_err());
        assert_eq!(limit.check("/v1/rotate", "a", start), Ok(()));
    }
}
