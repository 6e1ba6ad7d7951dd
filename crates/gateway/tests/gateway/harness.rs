//! A gateway over an engine that only remembers, and a way to call it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tower::ServiceExt;
use updraft_engine::Version;
use updraft_gateway::{
    Authentication, GatewayParts, InvocationCounts, RequestMetrics, Service, router,
};
use updraft_invoke::{InvokeOptions, Invoker};
use updraft_model::FunctionId;
use updraft_queue::{
    CallbackOptions, Queue, QueueOptions, QueueParts, SigningKey, SqliteCallStore,
};
use updraft_scaler::{Scaler, ScalerOptions, ScalerParts};
use updraft_store::Store;
use updraft_store::access::Access;

use crate::memory_engine::MemoryEngine;

/// `Basic admin:password`.
pub(crate) const ADMIN: &str = "Basic YWRtaW46cGFzc3dvcmQ=";
/// Every function whose name begins with `busy` was called 42 times.
#[derive(Debug)]
struct Busy;

impl InvocationCounts for Busy {
    fn count(&self, id: &FunctionId) -> u64 {
        if id.name.as_str().starts_with("busy") { 42 } else { 0 }
    }
}

pub(crate) struct Gateway {
    /// The credentials of somebody who is not the administrator.
    pub(crate) owner: String,
    // Holds the store's files for as long as the test runs.
    _folder: tempfile::TempDir,
    pub(crate) engine: Arc<MemoryEngine>,
    pub(crate) requests: RequestMetrics,
    pub(crate) queue: Arc<Queue>,
    pub(crate) invoker: Arc<Invoker>,
    pub(crate) router: Router,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/json");
        serde_json::from_str(&self.text).unwrap()
    }

    /// Asserts a plain-text failure.
    pub(crate) fn fails(&self, status: u16, text: &str) {
        assert_eq!((self.status.as_u16(), self.text.trim_end()), (status, text));
        assert_eq!(self.headers[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    }

    /// Asserts a plain-text failure that holds `part`.
    pub(crate) fn fails_with(&self, status: u16, part: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert!(self.text.contains(part), "{}", self.text);
    }

    pub(crate) fn succeeds(&self, status: u16) {
        assert_eq!((self.status.as_u16(), self.text.as_str()), (status, ""));
    }
}

impl Gateway {
    pub(crate) async fn new() -> Self {
        Self::with(Authentication::Password).await
    }

    pub(crate) async fn with(authentication: Authentication) -> Self {
        Self::with_services(authentication, None).await
    }

    pub(crate) async fn with_services(
        authentication: Authentication,
        logs_provider: Option<Service>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let password = folder.path().join("basic-auth-password");
        std::fs::write(&password, "password\n").unwrap();
        let store =
            Store::open(&folder.path().join("updraft.db"), &folder.path().join("blobs")).unwrap();
        let token = store.create_token(&"alice".parse().unwrap(), "test").await.unwrap();
        let engine = MemoryEngine::new();
        let requests = RequestMetrics::default();
        let invoker = Invoker::new(engine.clone(), InvokeOptions::new("0.1.0"));
        let folder_of_calls = folder.path().join("calls");
        let calls =
            SqliteCallStore::open(&folder.path().join("queue.db"), &folder_of_calls).unwrap();
        let callback = CallbackOptions::usual("localhost", 8080, SigningKey::new([7; 32]), "0.1.0");
        let queue = Queue::start(QueueParts {
            store: Arc::new(calls),
            invoker: Arc::clone(&invoker),
            options: QueueOptions { body: 1 << 20, ..QueueOptions::usual(callback) },
        });
        let queue = queue.await.unwrap();
        let scaler = Scaler::start(ScalerParts {
            engine: engine.clone(),
            invoker: Arc::clone(&invoker),
            backlog: Arc::new(|_| 0),
            options: ScalerOptions::default(),
        });
        let mut metrics = Registry::default();
        scaler.register_metrics(&mut metrics);
        let router = router(GatewayParts {
            engine: engine.clone(),
            invoker: Arc::clone(&invoker),
            queue: Arc::clone(&queue),
            metrics: Arc::new(metrics),
            scaler,
            invocations: Arc::new(Busy),
            access: Access::open(store, &password).unwrap(),
            authentication,
            logs_provider,
            requests: requests.clone(),
            version: Version { release: "0.1.0".to_owned(), sha: "0123abc".to_owned() },
            system_url: "http://system.localhost:8080".to_owned(),
        });
        let owner = format!("Bearer {}", token.secret.expose());
        Self { owner, _folder: folder, engine, requests, queue, invoker, router }
    }

    /// Calls as the administrator.
    pub(crate) async fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        self.call_as(Some(ADMIN), method, path, body.to_owned()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, "").await
    }

    /// Deploys and expects success.
    pub(crate) async fn deploy(&self, body: &str) {
        self.call("POST", "/system/functions", body).await.succeeds(202);
    }

    /// Waits until the data plane knows a function, or no longer does.
    pub(crate) async fn is_callable(&self, name: &str, callable: bool) {
        let mut changes = self.invoker.changes();
        let known = async {
            while self.invoker.find(name).is_some() != callable {
                changes.changed().await.unwrap();
            }
        };
        let what = "the data plane follows the engine";
        tokio::time::timeout(Duration::from_secs(10), known).await.expect(what);
    }

    pub(crate) async fn call_as(
        &self,
        authorization: Option<&str>,
        method: &str,
        path: &str,
        body: impl Into<Body>,
    ) -> Answer {
        let headers: Vec<_> = authorization
            .map(|value| (header::AUTHORIZATION.as_str(), value))
            .into_iter()
            .collect();
        self.send(method, path, &headers, body).await
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.uri(path).body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answer { status: head.status, headers: head.headers, text }
    }
}

/// The function of that name in the default namespace.
pub(crate) fn id(name: &str) -> FunctionId {
    FunctionId::in_default(name.parse().unwrap())
}
