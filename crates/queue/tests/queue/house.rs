//! A queue over a record of its own, functions that are small servers, and what they were asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use updraft_engine::{Endpoint, ReplicaId, ReplicaLoad};
use updraft_invoke::{Caller, Function, InvokeOptions, Invoker, Scheme};
use updraft_model::{FunctionId, FunctionName, FunctionSpec, labels};
use updraft_queue::{
    CallFilter, CallId, CallRecord, CallState, CallbackOptions, NewCall, Queue, QueueOptions,
    QueueParts, RetryPolicy, SigningKey, SubmitError,
};

use crate::backend::Backend;
use crate::double::Double;

pub(crate) const KEY: SigningKey = SigningKey::new([7; 32]);

/// The port that the platform pretends to listen on.
const OWN_PORT: u16 = 8080;

/// No test takes longer; what it waits for did not happen.
pub(crate) async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Waits until `found` gives something.
pub(crate) async fn find<T, F: Future<Output = Option<T>>>(what: &str, found: impl Fn() -> F) -> T {
    bounded(what, async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
}

pub(crate) struct House {
    folder: TempDir,
    pub(crate) backend: Backend,
    pub(crate) engine: Arc<Double>,
    pub(crate) invoker: Arc<Invoker>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) options: QueueOptions,
}

/// Options under which everything comes quickly.
pub(crate) fn quick() -> QueueOptions {
    let callback = CallbackOptions::usual("cloud.test", OWN_PORT, KEY, "1.2.3");
    let callback = CallbackOptions {
        allow: vec!["127.0.0.0/8".parse().unwrap()],
        time: Duration::from_secs(5),
        retry: RetryPolicy {
            attempts: 3,
            min_wait: Duration::from_millis(10),
            max_wait: Duration::from_millis(40),
            ..callback.retry.clone()
        },
        ..callback
    };
    QueueOptions {
        inline_body: 1024,
        body: 1 << 20,
        result: 4096,
        body_patience: Duration::from_millis(300),
        drain: Duration::from_secs(5),
        retry: RetryPolicy {
            attempts: 2,
            min_wait: Duration::from_millis(10),
            max_wait: Duration::from_millis(40),
            ..RetryPolicy::default()
        },
        ..QueueOptions::usual(callback)
    }
}

impl House {
    pub(crate) async fn new() -> Self {
        Self::with(quick()).await
    }

    pub(crate) async fn with(options: QueueOptions) -> Self {
        Self::over(Backend::start(), options).await
    }

    pub(crate) async fn over(backend: Backend, options: QueueOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = Double::new();
        let (invoker, queue) = open(&backend, &folder, &engine, &options).await;
        Self { folder, backend, engine, invoker, queue, options }
    }

    /// Ends the queue and starts one on what it left.
    pub(crate) async fn restart(&mut self) {
        self.queue.shutdown().await;
        let opened = open(&self.backend, &self.folder, &self.engine, &self.options);
        (self.invoker, self.queue) = opened.await;
    }

    /// Puts a function with these replicas and waits until the data plane knows.
    pub(crate) async fn put(&self, spec: FunctionSpec, ready: Vec<Arc<Endpoint>>) {
        self.engine.put(spec.clone(), ready);
        self.known(&spec.id, |found| found.is_some_and(|found| **found.spec() == spec)).await;
    }

    pub(crate) async fn put_asleep(&self, spec: FunctionSpec, woken: Vec<Arc<Endpoint>>) {
        self.engine.put_asleep(spec.clone(), woken);
        self.known(&spec.id, |found| found.is_some()).await;
    }

    pub(crate) async fn take_away(&self, id: &FunctionId) {
        self.engine.take_away(id);
        self.known(id, |found| found.is_none()).await;
    }

    async fn known(&self, id: &FunctionId, right: impl Fn(Option<Arc<Function>>) -> bool) {
        let name = id.to_string();
        find("the data plane to know", async || right(self.invoker.find(&name)).then_some(()))
            .await;
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// How many long bodies are kept.
    pub(crate) async fn bodies(&self) -> usize {
        self.backend.bodies(self.folder.path()).await
    }

    pub(crate) async fn submit(
        &self,
        call: NewCall,
        body: impl Into<Bytes>,
    ) -> Result<CallId, SubmitError> {
        self.queue.submit(call, Full::new(body.into())).await
    }

    pub(crate) async fn call(&self, id: &CallId) -> CallRecord {
        self.queue.call(id).await.unwrap().unwrap()
    }

    /// Waits until the call is in the state.
    pub(crate) async fn ends(&self, id: &CallId, state: CallState) -> CallRecord {
        let what = format!("call {id} to be {state}");
        find(&what, async || {
            let call = self.queue.call(id).await.unwrap()?;
            (call.state == state).then_some(call)
        })
        .await
    }

    /// Waits until no call of the function waits or runs: the count follows the record.
    pub(crate) async fn is_idle(&self, function: &str) {
        let idle = || self.queue.backlog(&id(function)) == 0;
        find("nothing to wait or run", async || idle().then_some(())).await;
    }

    pub(crate) async fn count(&self, state: CallState) -> usize {
        let filter = CallFilter { state: Some(state), limit: 1000, ..CallFilter::default() };
        self.queue.list(filter).await.unwrap().len()
    }
}

async fn open(
    backend: &Backend,
    folder: &TempDir,
    engine: &Arc<Double>,
    options: &QueueOptions,
) -> (Arc<Invoker>, Arc<Queue>) {
    let store = backend.open(folder.path(), options.lease).await;
    let invoker = Invoker::new(Arc::<Double>::clone(engine), InvokeOptions::new("1.2.3"));
    let parts = QueueParts { store, invoker: Arc::clone(&invoker), options: options.clone() };
    (invoker, Queue::start(parts).await.unwrap())
}

pub(crate) fn id(function: &str) -> FunctionId {
    FunctionId::in_default(FunctionName::new(function).unwrap())
}

pub(crate) fn spec(function: &str, annotations: &[(&str, &str)]) -> FunctionSpec {
    let mut spec = FunctionSpec::new(id(function), "localhost/test:1".parse().unwrap());
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    spec.annotations = annotations.iter().map(owned).collect();
    spec
}

pub(crate) fn owned(owner: &str, function: &str) -> FunctionSpec {
    let mut spec = spec(&format!("{owner}-{function}"), &[]);
    spec.labels.insert(labels::GIT_OWNER.to_owned(), owner.to_owned());
    spec
}

pub(crate) fn new_call(function: &str) -> NewCall {
    NewCall {
        function: id(function),
        method: Method::POST,
        target: "/".to_owned(),
        headers: HeaderMap::new(),
        caller: Caller::new("192.0.2.1:99".parse().unwrap(), Scheme::Http),
        callback: None,
    }
}

/// What a server was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) at: std::time::Instant,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// A server that remembers what it was asked.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
    _accepting: AbortOnDropHandle<()>,
}

impl Server {
    /// Answers the request of that number, from 0 on.
    pub(crate) async fn start<F>(answer: impl Fn(usize, Asked) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&asked));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                    async move {
                        let (head, body) = request.into_parts();
                        let asked = Asked {
                            method: head.method,
                            target: head.uri.to_string(),
                            headers: head.headers,
                            body: body.collect().await.unwrap().to_bytes(),
                            at: std::time::Instant::now(),
                        };
                        let number = {
                            let mut seen = seen.lock().unwrap();
                            seen.push(asked.clone());
                            seen.len() - 1
                        };
                        Ok::<_, Infallible>(answer(number, asked).await)
                    }
                });
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, asked, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// Answers each request with the next of the statuses, the last one for ever.
    pub(crate) async fn statuses(statuses: &'static [u16]) -> Self {
        Self::start(move |number, _| {
            let status = statuses[number.min(statuses.len() - 1)];
            let body = Full::from(format!("answer {number}"));
            async move { Response::builder().status(status).body(body).unwrap() }
        })
        .await
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until it was asked so often.
    pub(crate) async fn is_asked(&self, times: usize) -> Vec<Asked> {
        find(&format!("request {times}"), async || {
            let asked = self.asked();
            (asked.len() >= times).then_some(asked)
        })
        .await
    }

    pub(crate) fn endpoint(&self) -> Vec<Arc<Endpoint>> {
        let load = Arc::new(ReplicaLoad::default());
        let replica = ReplicaId::new(self.address.to_string());
        vec![Arc::new(Endpoint { replica, address: self.address, load })]
    }
}
