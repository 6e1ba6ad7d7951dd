//! The OpenFaaS REST API over any engine: what `faas-cli` and the OpenFaaS client libraries call.
//!
//! A request comes from the edge, is let in or not by the [`Access`] of its route, read leniently as Go's decoder
//! would ([`wire`]), turned into the words of the model and handed to the [`Engine`]. Errors are
//! plain text, as the clients print them. The gateway keeps no state, never invokes a function
//! and never answers `204`, which `faas-cli` takes for a failure.
//!
//! Every route stands in one table with who may call it ([`routes`]); there is no other way in.

mod access;
mod answer;
mod handlers;
mod place;
mod proxy;
mod requests;
mod route;
mod service;
pub mod wire;

use std::fmt;
use std::sync::Arc;

use axum::Router;
use prometheus_client::registry::Registry;
use updraft_engine::{Engine, Version};
use updraft_invoke::Invoker;
use updraft_model::FunctionId;
use updraft_queue::Queue;
use updraft_scaler::Scaler;

pub use proxy::AuthProxy;
pub use requests::RequestMetrics;
pub use route::{Access, Route, routes};
pub use service::{OpenServiceError, Service, ServiceError, ServiceUrl, ServiceUrlError};

/// The `OpenAPI` 3.1 document of every route, as `/system/openapi.json` serves it.
pub const OPENAPI: &str = include_str!("../openapi.json");

/// How often each function was called, as the data plane counted it.
pub trait InvocationCounts: Send + Sync + fmt::Debug + 'static {
    /// Invocations of the function since counting began; 0 for one that was never called.
    fn count(&self, id: &FunctionId) -> u64;
}

/// What the routes of the administrator ask for.
#[derive(Debug, Clone)]
pub enum Authentication {
    /// The administrator's password.
    Password,
    /// A service of the operator's, which decides alone.
    Proxy(AuthProxy),
    /// Nothing: whoever reaches the listener is the administrator.
    Off,
}

/// What the gateway is made of.
#[derive(Debug, Clone)]
pub struct GatewayParts {
    /// What runs the functions.
    pub engine: Arc<dyn Engine>,
    /// The numbers behind `invocationCount`.
    pub invocations: Arc<dyn InvocationCounts>,
    /// Tells who is calling.
    pub access: updraft_store::access::Access,
    /// Whether that is asked.
    pub authentication: Authentication,
    /// Who is asked for logs in place of the engine, where somebody is.
    pub logs_provider: Option<Service>,
    /// Where requests are counted.
    pub requests: RequestMetrics,
    /// Updraft's own version, for `/system/info`.
    pub version: Version,
    /// Knows the functions that can be called, and who may call them.
    pub invoker: Arc<Invoker>,
    /// Keeps asynchronous calls.
    pub queue: Arc<Queue>,
    /// What `/metrics` shows.
    pub metrics: Arc<Registry>,
    /// Heeds alerts.
    pub scaler: Arc<Scaler>,
    /// Address of the system host, such as `http://system.localhost:8080`, without a slash at the
    /// end: where people who look for the OpenFaaS portal are sent.
    pub system_url: String,
}

/// The OpenFaaS API as a router: `/system/*`, `/healthz`, `/` and `/ui/*`.
///
/// `/function/*` is not among them: invocations never pass here.
pub fn router(parts: GatewayParts) -> Router {
    route::assemble(Arc::new(parts))
}
