//! Who we are, whether we are up, and where people find the pages.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use http::{StatusCode, header};

use super::Parts;
use crate::answer::Failure;
use crate::wire::{Info, VersionInfo};

/// The architecture by the name that the function store of OpenFaaS filters by.
const ARCHITECTURE: &str = match std::env::consts::ARCH.as_bytes() {
    b"aarch64" => "arm64",
    b"arm" => "armhf",
    _ => std::env::consts::ARCH,
};

pub(crate) async fn health() -> &'static str {
    "OK"
}

pub(crate) async fn front() -> Redirect {
    Redirect::temporary("/ui/")
}

/// There is no portal here: people find the pages of the platform on the system host.
pub(crate) async fn portal(State(parts): Parts) -> Redirect {
    Redirect::temporary(&format!("{}/", parts.system_url.trim_end_matches('/')))
}

pub(crate) async fn info(State(parts): Parts) -> Response {
    let info = Info {
        provider: parts.engine.info().into(),
        version: VersionInfo::from(parts.version.clone()),
        arch: ARCHITECTURE,
    };
    Json(info).into_response()
}

/// The description of every route; it says nothing of this installation, so anybody may read it.
pub(crate) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], crate::OPENAPI).into_response()
}

pub(crate) async fn metrics(State(parts): Parts) -> Response {
    match updraft_metrics::encode(&parts.metrics) {
        Ok(text) => ([(header::CONTENT_TYPE, updraft_metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics could not be written");
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written")
                .into_response()
        }
    }
}
