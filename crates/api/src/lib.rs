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
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use tokio::sync::Semaphore;
use updraft_engine::{Engine, Fact, Version};
use updraft_pipeline::{GitSink, Housekeeper, Pipeline, UrlOf};
use updraft_queue::{Queue, Schedules};
use updraft_scaler::Scaler;
use updraft_seal::KeyRing;
use updraft_source::git::{ContentLimits, GitServer, PushSink};
use updraft_store::Store;

use handlers::keys::RateLimit;

pub use access::Access;
pub use route::{Route, routes};

/// Uploads that are received at the same time; more are told to come back.
const UPLOADS_AT_ONCE: usize = 16;

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
    /// What makes pushes live, rolls back and removes.
    pub pipeline: Arc<Pipeline>,
    /// What keeps the disk from filling; nothing where images are not kept on this machine.
    pub housekeeper: Option<Arc<Housekeeper>>,
    /// Asynchronous calls.
    pub queue: Arc<Queue>,
    /// What calls functions by the clock.
    pub schedules: Arc<Schedules>,
    /// Knows how functions are scaled.
    pub scaler: Arc<Scaler>,
    /// The keys of sealed secrets.
    pub keys: Arc<KeyRing>,
    /// The pipeline's work folder, where uploads are unpacked.
    pub work: PathBuf,
    /// Most bytes of an upload, as sent.
    pub max_upload_bytes: u64,
    /// What an upload may hold, unpacked.
    pub upload_limits: ContentLimits,
    /// Where a function of an owner is called.
    pub url: UrlOf,
    /// Address of the OpenFaaS gateway, such as `http://127.0.0.1:8080`, without a slash at the
    /// end: where functions of nobody are called.
    pub gateway_url: String,
    /// What other parts of the server found on the machine, told with what the engine did.
    pub facts: Vec<Fact>,
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

/// What every handler works with.
#[derive(Debug)]
struct Host {
    parts: ApiParts,
    /// Takes the pushes that come through git.
    sink: Arc<dyn PushSink>,
    /// One permit an upload that is being received.
    uploads: Arc<Semaphore>,
    /// How often a caller may ask about sealed secrets.
    rate_limit: RateLimit,
}

impl Deref for Host {
    type Target = ApiParts;

    fn deref(&self) -> &ApiParts {
        &self.parts
    }
}

type Shared = Arc<Host>;

/// The system host as a router: `/api/v1/*`, `/v1/*` of sealed secrets, `/git/*` and a front page.
pub fn router(parts: ApiParts) -> Router {
    let sink = Arc::new(GitSink::new(Arc::clone(&parts.pipeline)));
    route::assemble(&Arc::new(Host {
        parts,
        sink,
        uploads: Arc::new(Semaphore::new(UPLOADS_AT_ONCE)),
        rate_limit: RateLimit::default(),
    }))
}
