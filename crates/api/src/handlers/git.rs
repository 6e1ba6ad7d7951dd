//! The door of the git endpoint: who may push and fetch what. Git itself is behind it.
//!
//! Answers are plain text, which git prints behind `remote:`; a `401` makes it ask for, or fetch
//! from its helper, a user name and password.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use updraft_model::{OwnerName, RepositoryName};
use updraft_source::git::GitRequest;
use updraft_store::access::{ADMIN, CHALLENGE, Denied, Principal};

use crate::Shared;
use crate::access::comes_from_web_page;

pub(crate) async fn serve(
    State(host): State<Shared>,
    Path((owner, repository, path)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    if comes_from_web_page(request.headers()) {
        return text(StatusCode::FORBIDDEN, "web pages may not use git here".to_owned());
    }
    let principal = match host.access.authenticate(request.headers()).await {
        Ok(principal) => principal,
        Err(denied) => return refused(denied),
    };
    // People write names as their forge shows them.
    let owner = match (OwnerName::new(owner.to_ascii_lowercase()), principal) {
        (Ok(owner), principal) if principal.may_act_for(&owner) => owner,
        (Err(error), Principal::Admin) => return text(StatusCode::NOT_FOUND, error.to_string()),
        // The same whether that owner exists or not.
        (_, principal) => {
            let own = match &principal {
                Principal::Owner(own) => own.as_str(),
                Principal::Admin => ADMIN,
            };
            return text(
                StatusCode::FORBIDDEN,
                format!("you are `{own}` and have no access to repositories of `{owner}`"),
            );
        }
    };
    let repository =
        match RepositoryName::new(repository.strip_suffix(".git").unwrap_or(&repository)) {
            Ok(repository) => repository,
            Err(error) => return text(StatusCode::NOT_FOUND, error.to_string()),
        };
    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    let request = GitRequest { owner, repository, path, request };
    host.git.handle(request, Arc::clone(&host.sink)).await.map(Body::new)
}

fn refused(denied: Denied) -> Response {
    if let Denied::Store(error) = denied {
        tracing::error!(%error, "credentials could not be checked");
        return text(
            StatusCode::SERVICE_UNAVAILABLE,
            "the credentials could not be checked, try again".to_owned(),
        );
    }
    let mut response = text(
        StatusCode::UNAUTHORIZED,
        format!("{denied}; use the owner's name and a token (updraft token create --owner NAME)"),
    );
    response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
    response
}

fn text(status: StatusCode, mut text: String) -> Response {
    text.push('\n');
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    (status, [(header::CONTENT_TYPE, content_type)], text).into_response()
}
