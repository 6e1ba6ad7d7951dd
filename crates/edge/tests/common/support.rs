//! An engine that runs nothing, replicas that are small servers, and callers, for tests.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use updraft_edge::{Edge, EdgeLimits, EdgeParts, Inside, Root};
use updraft_engine::{
    Availability, Capabilities, Endpoint, EndpointTable, Engine, EngineError, EngineInfo, Expect,
    FunctionEndpoints, FunctionStatus, LogLine, LogQuery, NamespaceInfo, PutSecret, ReplicaId,
    ReplicaLoad, Revision, SecretChange, SecretContent, SecretInfo, SecretItems, SecretValue,
    Version, Wake,
};
use updraft_invoke::{InvokeOptions, Invoker};
use updraft_model::{FunctionId, FunctionName, FunctionSpec, Namespace, SecretName, labels};

/// No test takes longer; what it waits for did not happen.
pub async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .unwrap_or_else(|_| panic!("timed out: {what}"))
}

/// Waits until `condition` holds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    bounded(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

type OnScale = Box<dyn Fn(&Double, &FunctionId, u32) -> Result<(), EngineError> + Send + Sync>;

/// An engine whose table the test writes.
pub struct Double {
    table: watch::Sender<EndpointTable>,
    pub scales: Mutex<Vec<(FunctionId, u32)>>,
    on_scale: Mutex<Option<OnScale>>,
    pub secrets: Mutex<HashMap<SecretName, SecretValue>>,
    pub secret_reads: AtomicUsize,
}

impl std::fmt::Debug for Double {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Double")
    }
}

impl Double {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            table: watch::Sender::new(Arc::new(HashMap::new())),
            scales: Mutex::new(Vec::new()),
            on_scale: Mutex::new(None),
            secrets: Mutex::default(),
            secret_reads: AtomicUsize::new(0),
        })
    }

    pub fn put(&self, spec: FunctionSpec, ready: Vec<Arc<Endpoint>>, availability: Availability) {
        self.table.send_modify(|table| {
            let mut next = HashMap::clone(table);
            let id = spec.id.clone();
            let endpoints =
                FunctionEndpoints { spec: Arc::new(spec), ready, availability, resting: None };
            next.insert(id, Arc::new(endpoints));
            *table = Arc::new(next);
        });
    }

    pub fn ready(&self, spec: FunctionSpec, ready: &[&Arc<Endpoint>]) {
        self.put(spec, ready.iter().map(|e| Arc::clone(e)).collect(), Availability::Ready);
    }

    pub fn remove(&self, id: &FunctionId) {
        self.table.send_modify(|table| {
            let mut next = HashMap::clone(table);
            next.remove(id);
            *table = Arc::new(next);
        });
    }

    pub fn on_scale(
        &self,
        action: impl Fn(&Self, &FunctionId, u32) -> Result<(), EngineError> + Send + Sync + 'static,
    ) {
        *self.on_scale.lock().unwrap() = Some(Box::new(action));
    }

    pub fn secret(&self, name: &str, value: &str) {
        let name = SecretName::new(name).unwrap();
        self.secrets.lock().unwrap().insert(name, SecretValue::new(value));
    }

    pub fn scale_calls(&self) -> usize {
        self.scales.lock().unwrap().len()
    }
}

fn absent<T>() -> Result<T, EngineError> {
    Err(EngineError::Invalid("this engine runs nothing".to_owned()))
}

#[async_trait]
impl Engine for Double {
    fn capabilities(&self) -> Capabilities {
        Capabilities { freeze: false, scale_to_zero: true, survives_restart: false }
    }
    fn info(&self) -> EngineInfo {
        let version = Version { release: "0".into(), sha: "0".into() };
        EngineInfo { provider: "double".into(), orchestration: "containers".into(), version }
    }
    async fn apply_if(&self, _: FunctionSpec, _: Wake, _: Expect) -> Result<Revision, EngineError> {
        absent()
    }
    async fn wait_ready(
        &self,
        _: &FunctionId,
        _: Revision,
        _: Duration,
    ) -> Result<(), EngineError> {
        absent()
    }
    async fn remove(&self, _: &FunctionId) -> Result<(), EngineError> {
        absent()
    }
    async fn list(&self, _: &Namespace) -> Result<Vec<FunctionStatus>, EngineError> {
        absent()
    }
    async fn get(&self, _: &FunctionId) -> Result<Option<FunctionStatus>, EngineError> {
        absent()
    }
    async fn wake(&self, id: &FunctionId) -> Result<(), EngineError> {
        let minimum = self.table.borrow().get(id).map_or(1, |function| function.spec.scale_min());
        self.scale(id, minimum).await
    }
    async fn scale(&self, id: &FunctionId, replicas: u32) -> Result<(), EngineError> {
        self.scales.lock().unwrap().push((id.clone(), replicas));
        match &*self.on_scale.lock().unwrap() {
            Some(action) => action(self, id, replicas),
            None => Ok(()),
        }
    }
    fn endpoints(&self) -> watch::Receiver<EndpointTable> {
        self.table.subscribe()
    }
    async fn logs(
        &self,
        _: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, EngineError>>, EngineError> {
        absent()
    }
    async fn list_secrets(&self, _: &Namespace) -> Result<Vec<SecretInfo>, EngineError> {
        absent()
    }
    async fn read_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<SecretItems, EngineError> {
        self.secret_reads.fetch_add(1, Ordering::SeqCst);
        let held = self.secrets.lock().unwrap().get(name).cloned();
        held.map(|value| SecretItems::single(name, value)).ok_or_else(|| {
            EngineError::UnknownSecret { namespace: namespace.clone(), name: name.clone() }
        })
    }
    async fn put_secret(
        &self,
        _: &Namespace,
        _: &SecretName,
        _: SecretContent,
        _: PutSecret,
    ) -> Result<SecretChange, EngineError> {
        absent()
    }
    async fn remove_secret(&self, _: &Namespace, _: &SecretName) -> Result<(), EngineError> {
        absent()
    }
    async fn list_namespaces(&self) -> Result<Vec<NamespaceInfo>, EngineError> {
        absent()
    }
    async fn create_namespace(&self, _: NamespaceInfo) -> Result<(), EngineError> {
        absent()
    }
    async fn update_namespace(&self, _: NamespaceInfo) -> Result<(), EngineError> {
        absent()
    }
    async fn remove_namespace(&self, _: &Namespace) -> Result<(), EngineError> {
        absent()
    }
    async fn shutdown(&self) {}
}

/// A spec in the default namespace.
pub fn spec(name: &str) -> FunctionSpec {
    let id = FunctionId::in_default(FunctionName::new(name).unwrap());
    FunctionSpec::new(id, "localhost/test:1".parse().unwrap())
}

/// A spec in the default namespace with annotations.
pub fn annotated(name: &str, annotations: &[(&str, &str)]) -> FunctionSpec {
    let mut spec = spec(name);
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    spec.annotations = annotations.iter().map(owned).collect();
    spec
}

/// The number in one line of the metrics of function `f`, 0 when there is none.
pub fn metric(house: &House, name: &str) -> u64 {
    let start = format!("{name}{{function_name=\"f.openfaas-fn\"}} ");
    let text = house.invoker.metrics_text();
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.map_or(0, |number| number.parse().unwrap())
}

/// A spec that a push of `owner` deployed.
pub fn owned(owner: &str, name: &str) -> FunctionSpec {
    let mut spec = spec(&format!("{owner}-{name}"));
    spec.labels = BTreeMap::from([(labels::GIT_OWNER.to_owned(), owner.to_owned())]);
    spec
}

pub fn endpoint(replica: &str, address: SocketAddr) -> Arc<Endpoint> {
    let load = Arc::new(ReplicaLoad::default());
    Arc::new(Endpoint { replica: ReplicaId::new(replica), address, load })
}

pub type Body = BoxBody<Bytes, std::io::Error>;

pub fn text(body: impl Into<Bytes>) -> Response<Body> {
    Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed())
}

/// A replica: a small HTTP server with the connections it was asked for counted.
pub struct Replica {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Replica {
    /// Answers each request with `handler`.
    pub async fn http<H, F>(handler: H) -> Self
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::raw(move |stream| {
            let handler = handler.clone();
            Box::pin(async move {
                let service = service_fn(move |request| {
                    let answer = handler(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                drop(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await,
                );
            })
        })
        .await
    }

    /// Answers each request with `handler`, speaking HTTP/2 by prior knowledge and granting so
    /// many streams at once.
    pub async fn http2<H, F>(streams: u32, handler: H) -> Self
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::raw(move |stream| {
            let handler = handler.clone();
            Box::pin(async move {
                let service = service_fn(move |request| {
                    let answer = handler(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                server.max_concurrent_streams(streams);
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            })
        })
        .await
    }

    /// Gives each connection to `serve`.
    pub async fn raw(
        serve: impl Fn(TcpStream) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                stream.set_nodelay(true).unwrap();
                tokio::spawn(serve(stream));
            }
        });
        Self { address, connections, accepting }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Stops listening; open connections go on.
    pub async fn stop(self) {
        self.accepting.abort();
        drop(self.accepting.await);
    }
}

/// An edge with everything behind it.
pub struct House {
    pub address: SocketAddr,
    pub engine: Arc<Double>,
    pub invoker: Arc<Invoker>,
    pub shutdown: CancellationToken,
    pub serving: AbortOnDropHandle<()>,
}

pub async fn house(
    options: impl FnOnce(&mut InvokeOptions),
    limits: impl FnOnce(&mut EdgeLimits),
) -> House {
    house_with_inside(options, limits, None).await
}

/// As [`house`], with a door for functions.
pub async fn house_with_inside(
    options: impl FnOnce(&mut InvokeOptions),
    limits: impl FnOnce(&mut EdgeLimits),
    inside: Option<Inside>,
) -> House {
    let engine = Double::new();
    let mut chosen = InvokeOptions::new("test");
    options(&mut chosen);
    let mut chosen_limits = EdgeLimits::usual();
    limits(&mut chosen_limits);
    let invoker = Invoker::new(Arc::clone(&engine) as Arc<dyn Engine>, chosen);
    let count = |body: Bytes| async move { format!("{} bytes", body.len()) };
    let answer = |text: &'static str| {
        axum::Router::new()
            .route("/read", axum::routing::post(count))
            .route("/system/read", axum::routing::post(count))
            .fallback(move || async move { text })
    };
    let gateway = answer("gateway")
        .route("/panic", axum::routing::get(|| async { panic!("as the test wants") as () }));
    let edge = Edge::new(EdgeParts {
        invoker: Arc::clone(&invoker),
        gateway,
        system: answer("system"),
        root: Root::new("example.test").unwrap(),
        inside,
        limits: chosen_limits,
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(edge.serve(listener, shutdown.clone()).unwrap());
    House { address, engine, invoker, shutdown, serving: AbortOnDropHandle::new(serving) }
}

pub async fn plain_house() -> House {
    house(|_| {}, |_| {}).await
}

/// A house with function `f` ready on one replica.
pub async fn house_with(replica: &Replica) -> (House, Arc<Endpoint>) {
    let house = plain_house().await;
    let endpoint = place(&house, replica).await;
    (house, endpoint)
}

/// The same, with all connections on one lane: they share the connections to the replica.
pub async fn one_lane_house_with(replica: &Replica) -> (House, Arc<Endpoint>) {
    let house = house(|_| {}, |limits| limits.lanes = 1).await;
    let endpoint = place(&house, replica).await;
    (house, endpoint)
}

async fn place(house: &House, replica: &Replica) -> Arc<Endpoint> {
    let endpoint = endpoint("replica-1", replica.address);
    house.engine.ready(spec("f"), &[&endpoint]);
    known(house, "f").await;
    endpoint
}

/// Waits until the data plane has read of a function.
pub async fn known(house: &House, name: &str) {
    until("the function shows in the table", || house.invoker.find(name).is_some()).await;
}

/// A connection of a caller.
pub type Sender<B> = hyper::client::conn::http1::SendRequest<B>;

pub async fn connect<B>(address: SocketAddr) -> Sender<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move { drop(connection.with_upgrades().await) });
    sender
}

pub type Answer = (StatusCode, HeaderMap, Bytes);

pub fn request(host: &str, path: &str) -> http::request::Builder {
    Request::builder().uri(path).header("host", host)
}

/// One request on a connection of its own.
pub async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    bounded("an answer", async {
        let mut sender = connect(address).await;
        let response = sender.send_request(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, head.headers, body)
    })
    .await
}

pub async fn get(address: SocketAddr, host: &str, path: &str) -> Answer {
    send(address, request(host, path).body(Full::default()).unwrap()).await
}

/// Calls function `f` through the gateway.
pub async fn call(address: SocketAddr) -> Answer {
    get(address, "127.0.0.1", "/function/f").await
}

/// Sends bytes as they are and reads until the other side closes or has nothing more for 300 ms
/// after something came.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    read_close(&mut stream).await
}

/// Reads until the other side closes.
pub async fn read_close(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    bounded("the other side closes", async { drop(stream.read_to_end(&mut read).await) }).await;
    String::from_utf8_lossy(&read).into_owned()
}

/// Reads until `end` has come.
pub async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    bounded(&format!("`{end}` comes"), async {
        while !String::from_utf8_lossy(&read).contains(end) {
            let mut byte = [0];
            match stream.read(&mut byte).await {
                Ok(1) => read.push(byte[0]),
                _ => panic!("closed after {:?}", String::from_utf8_lossy(&read)),
            }
        }
    })
    .await;
    String::from_utf8_lossy(&read).into_owned()
}

/// An HTTP/2 connection by prior knowledge.
pub async fn connect_http2<B>(address: SocketAddr) -> hyper::client::conn::http2::SendRequest<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(async move { drop(connection.await) });
    sender
}

/// What our own answers say.
pub fn told(body: &Bytes) -> serde_json::Value {
    serde_json::from_slice(body).unwrap_or_else(|_| panic!("not JSON: {body:?}"))
}

/// A body that the test sends piece by piece.
pub struct Pieces(tokio::sync::mpsc::Receiver<std::io::Result<Frame<Bytes>>>);

pub type PieceSender = tokio::sync::mpsc::Sender<std::io::Result<Frame<Bytes>>>;

pub fn pieces() -> (PieceSender, Pieces) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    (sender, Pieces(receiver))
}

#[expect(clippy::unnecessary_wraps, reason = "what a `PieceSender` takes")]
pub fn piece(text: &'static str) -> std::io::Result<Frame<Bytes>> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<std::io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context)
    }
}
