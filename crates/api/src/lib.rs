//! `/api/v1`, through which the command line and other programs see and steer the platform, the
//! typed [`client`] for it, and the door of the git endpoint.
//!
//! A request comes from the edge on the system host, shows who it is, and may touch only what is
//! theirs: owners their own, the administrator everything. What it asks for is read from the
//! store and the engine or handed to the pipeline. The API decides nothing about builds and
//! deployments, and what it answers is JSON, failures included.

mod access;
mod answer;
pub mod client;
mod handlers;
mod route;
pub mod wire;

use std::fmt;
use std::sync::Arc;

use axum::Router;
use updraft_engine::{Engine, Version};
use updraft_model::{FunctionName, OwnerName};
use updraft_source::git::{GitServer, PushSink};
use updraft_store::Store;

pub use access::Access;
pub use route::{Route, routes};

/// Tells where a function of an owner is called.
pub type FunctionUrl = Arc<dyn Fn(&OwnerName, &FunctionName) -> String + Send + Sync>;

/// What the API is made of.
#[derive(Clone)]
pub struct ApiParts {
    /// The records.
    pub store: Store,
    /// What runs the functions.
    pub engine: Arc<dyn Engine>,
    /// Tells who is calling.
    pub access: updraft_store::access::Access,
    /// The git endpoint.
    pub git: GitServer,
    /// Who is told about pushes that come through git.
    pub sink: Arc<dyn PushSink>,
    /// Where a function of an owner is called.
    pub url: FunctionUrl,
    /// Address of the OpenFaaS gateway, such as `http://127.0.0.1:8080`, without a slash at the
    /// end: where functions of nobody are called.
    pub gateway_url: String,
    /// The root domain, such as `localhost`.
    pub root: String,
    /// Updraft's own version.
    pub version: Version,
}

impl fmt::Debug for ApiParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiParts")
            .field("engine", &self.engine)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

type Shared = Arc<ApiParts>;

/// The system host as a router: `/api/v1/*`, `/git/*` and a front page.
pub fn router(parts: ApiParts) -> Router {
    route::assemble(&Arc::new(parts))
}
