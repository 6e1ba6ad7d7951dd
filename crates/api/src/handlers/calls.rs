//! Asynchronous calls: what waits, what came of it, and what is to become of dead letters.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use updraft_model::{FunctionId, FunctionName, Namespace};
use updraft_queue::{CallFilter, CallId, CallRecord, CallState};

use super::limit;
use crate::access::{Caller, PathOwner};
use crate::answer::Failure;
use crate::{Host, Shared, wire};

type QueryMap = Query<HashMap<String, String>>;

fn text<'a>(query: &'a HashMap<String, String>, key: &str) -> Option<&'a str> {
    query.get(key).map(String::as_str).filter(|text| !text.is_empty())
}

/// What `owner=` and `function=` (`name` or `name.namespace`) let through, of what is the caller's.
fn filter(caller: &Caller, query: &HashMap<String, String>) -> Result<CallFilter, Failure> {
    let function = text(query, "function").map(function_id).transpose()?;
    let owner = caller.scope(text(query, "owner"))?;
    Ok(CallFilter { function, owner, ..CallFilter::default() })
}

fn function_id(text: &str) -> Result<FunctionId, Failure> {
    let wrong = |error: updraft_model::NameError| Failure::bad_request(error.to_string());
    let (name, namespace) = match text.rsplit_once('.') {
        Some((name, namespace)) => (name, Namespace::new(namespace).map_err(wrong)?),
        None => (text, Namespace::default()),
    };
    Ok(FunctionId { name: FunctionName::new(name).map_err(wrong)?, namespace })
}

/// `state=`, `function=`, `owner=` choose; newest first, `limit=` of them, those before the one
/// numbered `before=`.
pub(crate) async fn list(
    State(host): State<Shared>,
    caller: Caller,
    Query(query): QueryMap,
) -> Result<Json<Vec<wire::Call>>, Failure> {
    let state: Option<CallState> = match text(&query, "state") {
        None => None,
        Some(text) => {
            Some(text.parse().map_err(|error| Failure::bad_request(format!("state: {error}")))?)
        }
    };
    let before = match text(&query, "before") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| {
            Failure::bad_request(format!("before: `{text}` is no number of a call"))
        })?),
    };
    let limit = limit(&query)?;
    let filter = CallFilter { state, before, limit, ..filter(&caller, &query)? };
    let calls = host.queue.list(filter).await?;
    Ok(Json(calls.into_iter().map(Into::into).collect()))
}

/// The call, if it is the caller's to see.
async fn visible(host: &Host, caller: &Caller, id: &str) -> Result<CallRecord, Failure> {
    let absent = || {
        Failure::absent(format!("there is no call `{id}`")).hint(
            "calls that have ended are kept for a while only; `updraft calls list` shows them",
        )
    };
    let parsed: CallId = id.parse().map_err(|_| absent())?;
    let call = host.queue.call(&parsed).await?.ok_or_else(absent)?;
    match &call.owner {
        Some(owner) => caller.sees(owner, absent)?,
        // A function of nobody is the administrator's.
        None if caller.scope(None)?.is_some() => return Err(absent()),
        None => {}
    }
    Ok(call)
}

pub(crate) async fn describe(
    State(host): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<wire::Call>, Failure> {
    Ok(Json(visible(&host, &caller, &id).await?.into()))
}

/// What the function answered. As JSON, so that a browser never takes it for a page of ours.
pub(crate) async fn result(
    State(host): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<wire::CallResult>, Failure> {
    let call = visible(&host, &caller, &id).await?;
    match host.queue.result(&call.id).await? {
        Some(result) => Ok(Json(result.into())),
        None => Err(Failure::absent(match call.state {
            CallState::Queued | CallState::Running => {
                format!("call `{id}` has not been answered yet, it is {}", call.state)
            }
            state => format!("call `{id}` has no answer, it is {state}"),
        })),
    }
}

pub(crate) async fn cancel(
    State(host): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    let call = visible(&host, &caller, &id).await?;
    if host.queue.cancel(&call.id).await? {
        return Ok(StatusCode::OK);
    }
    Err(conflict(&host, call, "only a call that waits or runs can be cancelled").await)
}

pub(crate) async fn redrive(
    State(host): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    let call = visible(&host, &caller, &id).await?;
    if host.queue.redrive(&call.id).await? {
        return Ok(StatusCode::OK);
    }
    Err(conflict(&host, call, "only a dead letter can be made again").await)
}

pub(crate) async fn discard(
    State(host): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    let call = visible(&host, &caller, &id).await?;
    if host.queue.discard(&call.id).await? {
        return Ok(StatusCode::OK);
    }
    Err(conflict(&host, call, "a call that waits or runs must be cancelled first").await)
}

/// Why a call is not in the state for it.
async fn conflict(host: &Host, call: CallRecord, rule: &str) -> Failure {
    let state = match host.queue.call(&call.id).await {
        Ok(Some(call)) => call.state,
        _ => call.state,
    };
    Failure::new(StatusCode::CONFLICT, format!("call `{}` is {state}", call.id)).hint(rule)
}

/// `function=` and `owner=` choose.
pub(crate) async fn redrive_all(
    State(host): State<Shared>,
    caller: Caller,
    Query(query): QueryMap,
) -> Result<Json<wire::Redriven>, Failure> {
    let calls = host.queue.redrive_all(filter(&caller, &query)?).await?;
    Ok(Json(wire::Redriven { calls }))
}

pub(crate) async fn key_of_owner(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
) -> Json<wire::CallbackKey> {
    let key = host.queue.callback_key(Some(&owner));
    Json(wire::CallbackKey { key: wire::Hidden::new(key.expose()) })
}

pub(crate) async fn key_of_nobody(State(host): State<Shared>) -> Json<wire::CallbackKey> {
    let key = host.queue.callback_key(None);
    Json(wire::CallbackKey { key: wire::Hidden::new(key.expose()) })
}
