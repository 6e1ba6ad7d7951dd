//! What runs: replicas one by one, and the engine below them.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Query, State};
use updraft_engine::EngineError;

use crate::access::Caller;
use crate::answer::Failure;
use crate::{Shared, wire};

/// `owner=` and `function=` (its visible name, or `<name>.<namespace>`) choose, of what is the
/// caller's.
pub(crate) async fn replicas(
    State(host): State<Shared>,
    caller: Caller,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Vec<wire::FunctionReplicas>>, Failure> {
    let owner = caller.scope(query.get("owner").map(String::as_str))?;
    let wanted = query.get("function").map(String::as_str).filter(|name| !name.is_empty());
    let mut shown = Vec::new();
    for namespace in host.engine.list_namespaces().await? {
        for status in host.engine.list(&namespace.name).await? {
            let id = status.spec.id.clone();
            let is_meant =
                wanted.is_none_or(|wanted| id.name.as_str() == wanted || id.to_string() == wanted);
            if !is_meant || (owner.is_some() && status.spec.owner() != owner) {
                continue;
            }
            match host.engine.replicas(&id).await {
                Ok(replicas) => shown.push(wire::FunctionReplicas::new(status, replicas)),
                // Removed since it was listed.
                Err(EngineError::UnknownFunction(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    if let (Some(wanted), true) = (wanted, shown.is_empty()) {
        return Err(Failure::absent(format!("there is no function `{wanted}`"))
            .hint("`updraft list` shows the functions that are there"));
    }
    Ok(Json(shown))
}

pub(crate) async fn status(State(host): State<Shared>) -> Json<wire::Engine> {
    let mut status = host.engine.status();
    status.facts.extend(host.facts.iter().cloned());
    Json(status.into())
}
