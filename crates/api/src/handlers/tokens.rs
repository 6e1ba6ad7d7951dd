//! Tokens and owners: the administrator's alone.

use std::collections::HashMap;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use updraft_store::{CreateTokenError, TokenId};

use crate::access::Caller;
use crate::answer::{Failure, read_json};
use crate::{Shared, wire};

pub(crate) async fn list(
    State(host): State<Shared>,
    caller: Caller,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Vec<wire::Token>>, Failure> {
    let owner = caller.scope(query.get("owner").map(String::as_str))?;
    let tokens = host.store.tokens(owner.as_ref()).await?;
    Ok(Json(tokens.into_iter().map(Into::into).collect()))
}

pub(crate) async fn create(
    State(host): State<Shared>,
    body: Body,
) -> Result<(StatusCode, Json<wire::NewToken>), Failure> {
    let request: wire::CreateToken = read_json(body).await?;
    match host.store.create_token(&request.owner, &request.name).await {
        Ok(made) => {
            tracing::info!(owner = %request.owner, token = %made.id, "token made");
            let token = wire::NewToken {
                id: made.id,
                owner: request.owner,
                token: wire::Hidden::new(made.secret.expose()),
            };
            Ok((StatusCode::CREATED, Json(token)))
        }
        Err(CreateTokenError::Owner(error)) => Err(error.into()),
        Err(error @ CreateTokenError::Name) => Err(Failure::bad_request(error.to_string())),
        Err(error @ CreateTokenError::Random(_)) => Err(Failure::internal(&error)),
    }
}

pub(crate) async fn revoke(
    State(host): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    let absent = || Failure::absent(format!("there is no token `{id}`"));
    let number: TokenId = id.parse().map_err(|_| absent())?;
    let tokens = host.store.tokens(None).await?;
    let token = tokens.into_iter().find(|token| token.id == number).ok_or_else(absent)?;
    if !host.store.revoke_token(&token.owner, token.id).await? {
        return Err(absent());
    }
    tracing::info!(owner = %token.owner, token = %token.id, "token revoked");
    Ok(StatusCode::OK)
}

pub(crate) async fn owners(State(host): State<Shared>) -> Result<Json<Vec<wire::Owner>>, Failure> {
    let owners = host.store.owners().await?;
    Ok(Json(owners.into_iter().map(Into::into).collect()))
}

pub(crate) async fn create_owner(
    State(host): State<Shared>,
    body: Body,
) -> Result<(StatusCode, Json<wire::Owner>), Failure> {
    let request: wire::Owner = read_json(body).await?;
    host.store.ensure_owner(&request.name).await?;
    let owner = host.store.owner(&request.name).await?;
    let owner = owner.ok_or_else(|| Failure::absent("the owner is gone again"))?;
    Ok((StatusCode::CREATED, Json(owner.into())))
}
