//! The server itself, and the front page of its host.

use axum::Json;
use axum::extract::State;

use crate::{Shared, wire};

/// What a person sees who opens the system host.
pub(crate) async fn front() -> &'static str {
    "This is Updraft.\n\
     Push to /git/OWNER/REPOSITORY.git, or use the `updraft` command, which talks to /api/v1.\n"
}

pub(crate) async fn describe(State(parts): State<Shared>) -> Json<wire::Server> {
    let engine = parts.engine.info();
    Json(wire::Server {
        release: parts.version.release.clone(),
        commit: parts.version.sha.clone(),
        engine: format!("{} {}", engine.provider, engine.version.release),
        root: parts.root.clone(),
    })
}
