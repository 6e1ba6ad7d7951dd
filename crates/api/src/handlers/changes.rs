//! Changing what is live: rolling back, following pushes again, removing.
//!
//! A change that has begun is carried through although its caller leaves: half a change would be
//! worse than one that nobody waits for.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use http::StatusCode;
use tokio::task::JoinError;
use updraft_engine::EngineError;
use updraft_pipeline::{RemoveError, RollbackError};

use super::functions::function_name;
use crate::access::PathOwner;
use crate::answer::{Failure, read_json};
use crate::{Shared, wire};

/// Lines of a replica that did not come up that are told.
const LOG_TAIL: usize = 30;

pub(crate) async fn rollback(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
    Path((_, name)): Path<(String, String)>,
    body: Body,
) -> Result<Json<wire::Release>, Failure> {
    let function = function_name(&name)?;
    let request: wire::Rollback = read_json(body).await?;
    let change = async move {
        let pipeline = &host.pipeline;
        let release = match request {
            wire::Rollback::Previous => pipeline.rollback(&owner, &function, None).await?,
            wire::Rollback::To(number) => {
                pipeline.rollback(&owner, &function, Some(number)).await?
            }
            wire::Rollback::Unpin => pipeline.unpin(&owner, &function).await?,
        };
        tracing::info!(%owner, %function, release = release.number, "made live by hand");
        let live = host.store.live(&owner, &function).await?;
        Ok(Json(wire::Release::new(release, live.as_ref())))
    };
    tokio::spawn(change).await.unwrap_or_else(|error| Err(crashed(&error)))
}

pub(crate) async fn remove(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
    Path((_, name)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    let function = function_name(&name)?;
    let change = async move {
        host.pipeline.remove(&owner, &function).await?;
        tracing::info!(%owner, %function, "removed by hand");
        Ok(StatusCode::OK)
    };
    tokio::spawn(change).await.unwrap_or_else(|error| Err(crashed(&error)))
}

/// The answer when the work behind a request panicked.
pub(crate) fn crashed(error: &JoinError) -> Failure {
    Failure::internal(error)
}

impl From<RollbackError> for Failure {
    fn from(error: RollbackError) -> Self {
        let text = error.to_string();
        match error {
            RollbackError::UnknownFunction { .. } | RollbackError::UnknownRelease { .. } => {
                Self::absent(text)
            }
            RollbackError::NothingLive { .. }
            | RollbackError::NothingEarlier { .. }
            | RollbackError::Collected { .. }
            | RollbackError::Foreign(_) => Self::new(StatusCode::CONFLICT, text),
            RollbackError::Engine { source, .. } => not_running(&text, *source),
            RollbackError::Image { .. } => Self::internal(&error),
            RollbackError::Store(error) => error.into(),
        }
    }
}

/// What is told of a release that does not run: the reason, and what its replica last wrote.
fn not_running(text: &str, source: EngineError) -> Failure {
    if let EngineError::NotReady { reason, log_tail, .. } = source {
        let last = &log_tail[log_tail.len().saturating_sub(LOG_TAIL)..];
        let mut text = format!("{text}: {reason}");
        for line in last {
            text.push_str("\n  ");
            text.push_str(line);
        }
        return Failure::new(StatusCode::UNPROCESSABLE_ENTITY, text);
    }
    Failure::from(source).because(text)
}

impl From<RemoveError> for Failure {
    fn from(error: RemoveError) -> Self {
        let text = error.to_string();
        match error {
            RemoveError::UnknownFunction { .. } => Self::absent(text),
            RemoveError::Foreign(_) => Self::new(StatusCode::CONFLICT, text),
            RemoveError::Engine(error) => error.into(),
            RemoveError::Store(error) => error.into(),
        }
    }
}
