//! Counts the requests of the gateway's own routes, under the names that OpenFaaS gives them.
//!
//! Labels are bounded: a path is a route of the table, a method one that the route serves. What
//! is no route is not counted, so that nobody makes series up.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds in seconds: the Prometheus default buckets.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The routes that a provider serves behind the gateway in OpenFaaS.
const PROVIDER: &[&str] = &[
    "/system/functions",
    "/system/function",
    "/system/scale-function",
    "/system/info",
    "/system/secrets",
    "/system/logs",
    "/system/namespaces",
    "/system/namespace",
];

/// The labels of the gateway's families.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GatewayLabels {
    method: &'static str,
    path: &'static str,
    status: u16,
}

/// The labels of the provider's families.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    method: &'static str,
    path: &'static str,
    code: u16,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The numbers of the gateway's routes. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct RequestMetrics(Arc<Families>);

struct Families {
    requests: Family<GatewayLabels, Counter>,
    seconds: Histograms<GatewayLabels>,
    provider_requests: Family<ProviderLabels, Counter>,
    provider_seconds: Histograms<ProviderLabels>,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self(Arc::new(Families {
            requests: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            provider_requests: Family::default(),
            provider_seconds: Family::new_with_constructor(histogram),
        }))
    }
}

impl fmt::Debug for RequestMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestMetrics")
    }
}

impl RequestMetrics {
    /// Adds the four families.
    pub fn register(&self, registry: &mut Registry) {
        let families = &*self.0;
        let help = "Requests of the gateway's own routes";
        registry.register("http_requests", help, families.requests.clone());
        let help = "Seconds until the answer of a gateway's own route began";
        registry.register("http_request_duration_seconds", help, families.seconds.clone());
        let help = "Requests of the routes that a provider serves";
        registry.register("provider_http_requests", help, families.provider_requests.clone());
        let help = "Seconds until the answer of a provider's route began";
        let seconds = families.provider_seconds.clone();
        registry.register("provider_http_request_duration_seconds", help, seconds);
    }

    fn record(&self, method: &'static str, path: &'static str, status: StatusCode, begun: Instant) {
        let families = &*self.0;
        let took = begun.elapsed().as_secs_f64();
        let path = path.find("/{*").map_or(path, |end| &path[..end]);
        let path = match path.trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        let status = status.as_u16();
        let labels = GatewayLabels { method, path, status };
        families.requests.get_or_create(&labels).inc();
        families.seconds.get_or_create(&labels).observe(took);
        let collapsed = path.find("/{").map_or(path, |end| &path[..end]);
        if PROVIDER.contains(&collapsed) {
            let labels = ProviderLabels { method, path: collapsed, code: status };
            families.provider_requests.get_or_create(&labels).inc();
            families.provider_seconds.get_or_create(&labels).observe(took);
        }
    }
}

/// Stands before every route; `path` is the route's as the table has it.
pub(crate) async fn count(
    State((metrics, path)): State<(RequestMetrics, &'static str)>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let method = name_of(request.method());
    let response = next.run(request).await;
    metrics.record(method, path, response.status(), begun);
    response
}

/// The methods that routes serve; a `HEAD` is answered where a `GET` is.
fn name_of(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
