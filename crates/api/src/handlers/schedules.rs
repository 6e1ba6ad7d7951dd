//! What is called by the clock, when, and what came of it.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Query, State};

use crate::access::Caller;
use crate::answer::Failure;
use crate::{Shared, wire};

/// `owner=` chooses, of what is the caller's.
pub(crate) async fn list(
    State(host): State<Shared>,
    caller: Caller,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Vec<wire::Schedule>>, Failure> {
    let owner = caller.scope(query.get("owner").map(String::as_str))?;
    let schedules = host.schedules.list(owner.as_ref()).await?;
    Ok(Json(schedules.into_iter().map(Into::into).collect()))
}
