//! Who we are, whether we are up, and where people find the pages.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};

use super::Parts;
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
