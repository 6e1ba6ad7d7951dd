//! The server itself, and the front page of its host.

use axum::Json;
use axum::extract::State;

use crate::{Shared, wire};

/// What a person sees who opens the system host.
pub(crate) async fn front() -> &'static str {
    "This is Updraft.\n\
     Push to /git/OWNER/REPOSITORY.git, or use the `updraft` command, which talks to /api/v1.\n"
}

pub(crate) async fn describe(State(host): State<Shared>) -> Json<wire::Server> {
    let engine = host.engine.info();
    Json(wire::Server {
        release: host.version.release.clone(),
        commit: host.version.sha.clone(),
        engine: format!("{} {}", engine.provider, engine.version.release),
        root: host.root.clone(),
    })
}
