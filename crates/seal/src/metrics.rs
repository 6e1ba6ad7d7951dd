//! What is counted about opening, under the names that the original's dashboards know.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Namespaces with numbers of their own; strangers write the names.
const NAMESPACES_MAX: usize = 50;

/// Secrets with a state of their own.
const SECRETS_MAX: usize = 10_000;

/// What is counted about opening.
#[derive(Debug, Clone)]
pub struct SealMetrics {
    requests: Counter,
    errors: Family<ErrorLabels, Counter>,
    conditions: Family<ConditionLabels, Gauge>,
    http_requests: Family<HttpLabels, Counter>,
    http_times: Family<HttpTimeLabels, Histogram, fn() -> Histogram>,
    namespaces: Arc<Mutex<BTreeSet<String>>>,
    secrets: Arc<Mutex<BTreeSet<(String, String)>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    reason: &'static str,
    namespace: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabels {
    namespace: String,
    name: String,
    condition: &'static str,
    ss_app_kubernetes_io_instance: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpLabels {
    path: &'static str,
    code: u32,
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpTimeLabels {
    path: &'static str,
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    revision: String,
}

/// Why a sealed secret did not become a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorReason {
    /// It could not be had.
    Fetch,
    /// Its state could not be kept.
    Status,
    /// A secret of that name belongs to somebody else.
    Unmanaged,
    /// It does not open.
    Unseal,
    /// The opened secret could not be kept.
    Update,
}

impl ErrorReason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Status => "status",
            Self::Unmanaged => "unmanaged",
            Self::Unseal => "unseal",
            Self::Update => "update",
        }
    }
}

impl Default for SealMetrics {
    fn default() -> Self {
        Self {
            requests: Counter::default(),
            errors: Family::default(),
            conditions: Family::default(),
            http_requests: Family::default(),
            http_times: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 14))
            }),
            namespaces: Arc::default(),
            secrets: Arc::default(),
        }
    }
}

impl SealMetrics {
    pub(crate) fn register(&self, registry: &mut Registry, revision: &str) {
        let registry = registry.sub_registry_with_prefix("sealed_secrets_controller");
        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create(&BuildLabels { revision: revision.to_owned() }).set(1);
        registry.register("build_info", "The version, as a label", build);
        let requests = self.requests.clone();
        registry.register("unseal_requests", "Sealed secrets that were to be opened", requests);
        let errors = self.errors.clone();
        registry.register("unseal_errors", "Sealed secrets that did not become secrets", errors);
        let conditions = self.conditions.clone();
        registry.register("condition_info", "1 in force, -1 failed, 0 not known", conditions);
        let requests = self.http_requests.clone();
        registry.register("http_requests", "Requests about keys and sealed secrets", requests);
        let times = self.http_times.clone();
        registry.register("http_request_duration_seconds", "How long they took", times);
    }

    /// Counts one opening.
    pub(crate) fn count(&self, namespace: &str, opened: bool) {
        self.requests.inc();
        if !opened {
            self.error(ErrorReason::Unseal, namespace);
        }
    }

    /// Counts one answered request about keys or sealed secrets.
    pub fn request(&self, path: &'static str, method: &'static str, code: u16, time: Duration) {
        self.http_requests.get_or_create(&HttpLabels { path, code: code.into(), method }).inc();
        self.http_times.get_or_create(&HttpTimeLabels { path, method }).observe(time.as_secs_f64());
    }

    /// Counts a sealed secret that did not become a secret for another reason than its keys.
    pub fn error(&self, reason: ErrorReason, namespace: &str) {
        let namespace = self.bounded(namespace);
        self.errors.get_or_create(&ErrorLabels { reason: reason.as_str(), namespace }).inc();
    }

    /// Tells whether a secret is in force: `Some(true)`, failed: `Some(false)`, or not known.
    pub fn condition(&self, namespace: &str, name: &str, in_force: Option<bool>) {
        let place = (namespace.to_owned(), name.to_owned());
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        if !secrets.contains(&place) && secrets.len() >= SECRETS_MAX {
            return;
        }
        secrets.insert(place);
        self.conditions.get_or_create(&condition(namespace, name)).set(match in_force {
            Some(true) => 1,
            Some(false) => -1,
            None => 0,
        });
    }

    /// Forgets a secret that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.remove(&(namespace.to_owned(), name.to_owned()));
        self.conditions.remove(&condition(namespace, name));
    }

    fn bounded(&self, namespace: &str) -> String {
        let mut known = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(namespace) || known.len() < NAMESPACES_MAX {
            known.insert(namespace.to_owned());
            return namespace.to_owned();
        }
        "other".to_owned()
    }
}

fn condition(namespace: &str, name: &str) -> ConditionLabels {
    ConditionLabels {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        condition: "Synced",
        ss_app_kubernetes_io_instance: "",
    }
}
