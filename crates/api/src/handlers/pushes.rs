//! Pushes and what became of them.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Path, Query, State};
use updraft_model::RepositoryName;
use updraft_store::{Push, PushFilter, PushId, Store};

use super::limit;
use crate::access::Caller;
use crate::answer::Failure;
use crate::{Shared, wire};

/// `owner=`, `repository=` and `limit=` choose; newest first.
pub(crate) async fn list(
    State(parts): State<Shared>,
    caller: Caller,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Vec<wire::Push>>, Failure> {
    let owner = caller.scope(query.get("owner").map(String::as_str))?;
    let repository = query.get("repository").map(|name| RepositoryName::new(name.as_str()));
    let repository =
        repository.transpose().map_err(|error| Failure::bad_request(error.to_string()))?;
    let filter = PushFilter { owner, repository, limit: limit(&query)? };
    let pushes = parts.store.pushes(filter).await?;
    Ok(Json(pushes.into_iter().map(Into::into).collect()))
}

pub(crate) async fn describe(
    State(parts): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<wire::Push>, Failure> {
    Ok(Json(visible(&parts.store, &caller, &id).await?.into()))
}

async fn visible(store: &Store, caller: &Caller, id: &str) -> Result<Push, Failure> {
    let absent = || Failure::absent(format!("there is no push `{id}`"));
    let number: PushId = id.parse().map_err(|_| absent())?;
    let push = store.push(number).await?.ok_or_else(absent)?;
    caller.sees(&push.owner, absent)?;
    Ok(push)
}
