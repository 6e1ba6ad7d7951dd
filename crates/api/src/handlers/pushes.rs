//! Pushes and what became of them.

use std::collections::HashMap;
use std::convert::Infallible;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use futures_util::StreamExt;
use updraft_model::RepositoryName;
use updraft_store::{Push, PushFilter, PushId, Store};

use super::limit;
use crate::access::Caller;
use crate::answer::{Failure, json_lines};
use crate::{Shared, wire};

/// `owner=`, `repository=` and `limit=` choose; newest first.
pub(crate) async fn list(
    State(host): State<Shared>,
    caller: Caller,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Vec<wire::Push>>, Failure> {
    let owner = caller.scope(query.get("owner").map(String::as_str))?;
    let repository = query.get("repository").map(|name| RepositoryName::new(name.as_str()));
    let repository =
        repository.transpose().map_err(|error| Failure::bad_request(error.to_string()))?;
    let filter = PushFilter { owner, repository, limit: limit(&query)? };
    let pushes = host.store.pushes(filter).await?;
    Ok(Json(pushes.into_iter().map(Into::into).collect()))
}

pub(crate) async fn describe(
    State(host): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<wire::Push>, Failure> {
    Ok(Json(visible(&host.store, &caller, &id).await?.into()))
}

/// The story of a push, one event a line, from number `from=` on (1 is the first); it goes on
/// until the push is over, and ends early when the server stops.
pub(crate) async fn events(
    State(host): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, Failure> {
    let push = visible(&host.store, &caller, &id).await?;
    let from = match query.get("from").map(String::as_str) {
        None | Some("") => 1,
        Some(text) => text.parse().map_err(|_| {
            Failure::bad_request(format!("from: `{text}` is no number of an event"))
        })?,
    };
    Ok(json_lines(host.pipeline.follow(push.id, from).map(Ok::<_, Infallible>)))
}

async fn visible(store: &Store, caller: &Caller, id: &str) -> Result<Push, Failure> {
    let absent = || Failure::absent(format!("there is no push `{id}`"));
    let number: PushId = id.parse().map_err(|_| absent())?;
    let push = store.push(number).await?.ok_or_else(absent)?;
    caller.sees(&push.owner, absent)?;
    Ok(push)
}
