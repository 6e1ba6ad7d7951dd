//! The listener, and what it does with each request.

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use axum::extract::ConnectInfo;
use futures_util::FutureExt;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tower::ServiceExt;
use updraft_invoke::{
    Caller, Failure, Function, InvokeBody, Invoker, RequestBody, Scheme, TunnelGuard,
};

use crate::body::EdgeBody;
use crate::connection::{Connections, Entry, Patience, Phase, Verdict, WatchedStream};
use crate::host::{Host, HostError};
use crate::hurried::Hurried;
use crate::lanes::Lanes;
use crate::route::{Place, Root, Site};

/// How long to wait after the system refused a new connection, for instance for want of files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What the edge puts together.
pub struct EdgeParts {
    /// The way to functions.
    pub invoker: Arc<Invoker>,
    /// The OpenFaaS API; checks credentials itself.
    pub gateway: axum::Router,
    /// The platform's own API, pages and git; checks credentials itself.
    pub system: axum::Router,
    /// The domain below which owners have their hosts.
    pub root: Root,
    /// The door for functions, if there is one.
    pub inside: Option<Inside>,
    /// What strangers may use up.
    pub limits: EdgeLimits,
}

/// The door through which functions come in: it leads to the gateway and nowhere else, whatever
/// host a request names. A function is no administrator because it runs on the same machine.
#[derive(Clone)]
pub struct Inside {
    /// The address of this machine that only functions connect to.
    pub address: IpAddr,
    /// The OpenFaaS API as functions see it; checks credentials itself.
    pub gateway: axum::Router,
}

impl fmt::Debug for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inside").field("address", &self.address).finish_non_exhaustive()
    }
}

impl fmt::Debug for EdgeParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeParts")
            .field("root", &self.root)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// What strangers may use up.
#[derive(Debug, Clone)]
pub struct EdgeLimits {
    /// Threads that serve connections.
    pub lanes: usize,
    /// Connections at once; more wait in the system's queue.
    pub connections: usize,
    /// How long the head of a request may take (half as much again before it is noticed).
    pub head: Duration,
    /// How long a connection may stay open without a request.
    pub idle: Duration,
    /// How long a caller may take no byte of an answer, and send none of a body that the control
    /// plane reads. Bodies for functions keep to the function's timeout.
    pub stall: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// How long open requests may go on after shutdown has begun.
    pub grace: Duration,
}

impl EdgeLimits {
    /// What suits most installations.
    pub fn usual() -> Self {
        Self {
            lanes: std::thread::available_parallelism().map_or(1, usize::from),
            connections: affordable_connections(),
            head: Duration::from_secs(30),
            idle: Duration::from_secs(75),
            stall: Duration::from_mins(2),
            head_bytes: 1024 * 1024,
            streams: 200,
            grace: Duration::from_secs(10),
        }
    }
}

/// As many as the process may have files for: each connection may need another one to a replica,
/// and the rest of the platform needs some too.
fn affordable_connections() -> usize {
    const RESERVED: u64 = 512;
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let affordable = files.map_or(u64::MAX, |files| files.saturating_sub(RESERVED) / 2);
    usize::try_from(affordable).unwrap_or(usize::MAX).clamp(64, 20_000)
}

/// The front door.
pub struct Edge {
    parts: EdgeParts,
    server: auto::Builder<TokioExecutor>,
    /// The event loop of the control plane, which connections do not run on.
    control: Handle,
}

impl Edge {
    /// Puts the door together; [`Self::serve`] opens it. The gateway and the system answer on the
    /// Tokio runtime that this is called in.
    pub fn new(parts: EdgeParts) -> Arc<Self> {
        let limits = &parts.limits;
        let mut server = auto::Builder::new(TokioExecutor::new());
        // Without a timer of hyper's for HTTP/1: the watch over each connection covers the time
        // before the protocol is known as well, and sets no timer for each request.
        server.http1().max_buf_size(limits.head_bytes.max(8192)).header_read_timeout(None);
        server
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .keep_alive_timeout(Duration::from_secs(20))
            .enable_connect_protocol()
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(
                u32::try_from(limits.head_bytes).unwrap_or(u32::MAX).min(64 * 1024),
            )
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(100)
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(1024 * 1024);
        Arc::new(Self { parts, server, control: Handle::current() })
    }

    /// Starts the threads that serve. The future accepts connections until `shutdown`, then lets
    /// open requests end within the grace period, and closes what is left, tunnels included.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let lanes = Lanes::start(self.parts.limits.lanes)?;
        Ok(self.accept(lanes, listener, shutdown))
    }

    async fn accept(
        self: Arc<Self>,
        lanes: Lanes,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) {
        let tasks = TaskTracker::new();
        let connections = Arc::new(Connections::default());
        let places = Arc::new(Semaphore::new(self.parts.limits.connections));
        let accepting = async {
            loop {
                let place = Arc::clone(&places).acquire_owned().await;
                let (stream, peer) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) if is_of_one_connection(&error) => continue,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept connections, trying again");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                        continue;
                    }
                };
                // Its events come to the lane from now on, not here.
                let Ok(stream) = stream.into_std() else { continue };
                let edge = Arc::clone(&self);
                let entry = connections.enter();
                lanes.spawn(&tasks, async move {
                    if let Ok(stream) = TcpStream::from_std(stream) {
                        edge.serve_connection(stream, peer, entry).await;
                    }
                    drop(place);
                });
            }
        };
        shutdown.run_until_cancelled(accepting).await;
        drop(listener);
        tasks.close();
        connections.tell(Phase::Leaving);
        if timeout(self.parts.limits.grace, tasks.wait()).await.is_err() {
            tracing::warn!(open = tasks.len(), "closing connections that are still open");
        }
        connections.tell(Phase::Cut);
        tasks.wait().await;
        self.parts.invoker.close_tunnels().await;
        // The lanes' threads end at once now, with nothing left to do.
        drop(lanes);
    }

    async fn serve_connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, entry: Entry) {
        // Peers that vanished are noticed.
        let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
        let limits = &self.parts.limits;
        let activity = &entry.activity;
        let caller = Caller::new(peer, Scheme::Http);
        let is_inside = self.parts.inside.as_ref().is_some_and(|inside| {
            stream.local_addr().is_ok_and(|own| own.ip().to_canonical() == inside.address)
        });
        let stream = WatchedStream::new(stream, Arc::clone(activity));
        let tick = Patience::tick(limits.head);
        let mut patience = Patience::new(Arc::clone(activity), limits);
        let service = service_fn(|mut request: Request<Incoming>| {
            let busy = activity.begin(request.version() == Version::HTTP_2);
            if is_extended_connect(&request) {
                // The answer ends when the tunnel begins, and the connection is in use until it ends.
                let guard = TunnelGuard(Arc::new(activity.begin(true)));
                request.extensions_mut().insert(guard);
            }
            let (edge, caller) = (Arc::clone(&self), caller.clone());
            async move {
                let inside = edge.parts.inside.as_ref().filter(|_| is_inside);
                let response = edge.answer(request, &caller, peer, inside).await;
                Ok::<_, Infallible>(response.map(|body| body.keeping(busy)))
            }
        });
        let mut serving = pin!(self.server.serve_connection_with_upgrades(stream, service));
        let mut look = pin!(sleep_until(Instant::now() + tick));
        let mut set = false;
        let (mut told, mut leaving) = (false, false);
        let outcome = poll_fn(|context| {
            // Once is enough: a task is woken through the same waker all its life. The same
            // holds for the timer, until it is set again.
            if !set {
                set = true;
                activity.waker.register(context.waker());
                if look.as_mut().poll(context).is_ready() {
                    context.waker().wake_by_ref();
                }
            }
            loop {
                if let Poll::Ready(outcome) = serving.as_mut().poll(context) {
                    return Poll::Ready(outcome);
                }
                match entry.phase() {
                    Phase::Leaving if !told => {
                        told = true;
                        leaving = true;
                        // Being told used the waker up, and there may be more to tell.
                        activity.waker.register(context.waker());
                        serving.as_mut().graceful_shutdown();
                        continue;
                    }
                    Phase::Cut => return Poll::Ready(Ok(())),
                    Phase::Open | Phase::Leaving => {}
                }
                if !look.is_elapsed() {
                    return Poll::Pending;
                }
                look.as_mut().reset(Instant::now() + tick);
                if look.as_mut().poll(context).is_ready() {
                    context.waker().wake_by_ref();
                }
                match patience.look() {
                    Verdict::Keep => {}
                    Verdict::Retire if !leaving => {
                        leaving = true;
                        serving.as_mut().graceful_shutdown();
                    }
                    Verdict::Retire | Verdict::Close => return Poll::Ready(Ok(())),
                }
            }
        })
        .await;
        if let Err(error) = outcome {
            tracing::trace!(%peer, %error, "a connection ended early");
        }
    }

    /// Answers one request, whatever happens.
    async fn answer(
        &self,
        request: Request<Incoming>,
        caller: &Caller,
        peer: SocketAddr,
        inside: Option<&Inside>,
    ) -> Response<EdgeBody> {
        AssertUnwindSafe(self.route(request, caller, peer, inside))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| {
                tracing::error!("a request ended in a panic; this is a defect of Updraft");
                let reason = "this request met a defect of the platform";
                refuse(StatusCode::INTERNAL_SERVER_ERROR, reason, &HeaderMap::new())
            })
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        caller: &Caller,
        peer: SocketAddr,
        inside: Option<&Inside>,
    ) -> Response<EdgeBody> {
        let invoker = &self.parts.invoker;
        let function: Result<Arc<Function>, Failure>;
        let from: usize;
        {
            let (uri, headers) = (request.uri(), request.headers());
            let is_connect = *request.method() == Method::CONNECT;
            if is_connect && !is_extended_connect(&request) {
                let reason = "CONNECT is not served here";
                return refuse(StatusCode::METHOD_NOT_ALLOWED, reason, headers);
            }
            let host = match Host::of(uri, headers, request.version()) {
                Ok(host) => Some(host),
                Err(HostError::Missing) if request.version() < Version::HTTP_11 => None,
                Err(error) => return refuse(StatusCode::BAD_REQUEST, error.to_string(), headers),
            };
            let named =
                host.as_ref().map_or(Site::Unknown, |host| Site::of(host, &self.parts.root));
            let site = if inside.is_some() { Site::Gateway } else { named };
            let path = uri.path();
            let place = Place::of(site, path);
            match place {
                Place::Function { name, rest } => {
                    function = invoker.find(name).ok_or_else(|| invoker.unknown(name));
                    from = path.len() - rest.len();
                }
                Place::Owned { owner, function: own_name, rest } => {
                    function = invoker.find_owned(owner, own_name).ok_or_else(|| {
                        let shown: String = own_name.chars().take(128).collect();
                        let reason = format!("`{owner}` has no function `{shown}`");
                        Failure::new(StatusCode::NOT_FOUND, "edge", reason)
                    });
                    from = path.len() - rest.len();
                }
                _ if is_connect
                    && !matches!(place, Place::Function { .. } | Place::Owned { .. }) =>
                {
                    let reason = "CONNECT leads to functions only";
                    return refuse(StatusCode::METHOD_NOT_ALLOWED, reason, headers);
                }
                Place::Health => return health(&request),
                Place::OwnerRoot => {
                    let reason = "name a function of this owner: /<function>";
                    return refuse(StatusCode::NOT_FOUND, reason, headers);
                }
                Place::Preview => {
                    let reason = "there is no such preview";
                    return refuse(StatusCode::NOT_FOUND, reason, headers);
                }
                Place::Unknown => {
                    let reason = "this host is not served here";
                    return refuse(StatusCode::NOT_FOUND, reason, headers);
                }
                Place::Gateway => {
                    let gateway = inside.map_or(&self.parts.gateway, |inside| &inside.gateway);
                    return self.relay(gateway, request, peer).await;
                }
                Place::System => {
                    return self.relay(&self.parts.system, request, peer).await;
                }
            }
        }
        match function {
            Ok(function) => {
                let target = request.uri().clone();
                let rest = rest_of(&target, from);
                let request = request.map(RequestBody::from);
                invoker.call(&function, rest, request, caller).await.map(EdgeBody::from)
            }
            Err(failure) => failure.answer(request.headers()).map(EdgeBody::from),
        }
    }

    /// Lets the control plane answer, on its own threads. Boxed, so that waiting connections do
    /// not hold room for it.
    fn relay(
        &self,
        router: &axum::Router,
        mut request: Request<Incoming>,
        peer: SocketAddr,
    ) -> futures_util::future::BoxFuture<'static, Response<EdgeBody>> {
        request.extensions_mut().insert(ConnectInfo(peer));
        let limit = self.parts.limits.stall;
        let call_id = updraft_invoke::call_id(request.headers());
        let (head, body) = request.into_parts();
        let (body, late) = Hurried::new(body, limit);
        let request = Request::from_parts(head, axum::body::Body::new(body));
        // A caller who leaves ends it.
        let answer = router.clone().oneshot(request);
        let answer = AbortOnDropHandle::new(self.control.spawn(answer));
        let refuse = move |status, reason: String| {
            Failure::new(status, "edge", reason).into_response(&call_id).map(EdgeBody::from)
        };
        Box::pin(async move {
            match answer.await {
                // Whatever the control plane made of half a body.
                Ok(Ok(_)) if late.load(Ordering::Acquire) => {
                    let limit = updraft_model::format_duration(limit);
                    let reason = format!("the request body stood still for {limit}");
                    refuse(StatusCode::REQUEST_TIMEOUT, reason)
                }
                Ok(Ok(response)) => response.map(EdgeBody::from),
                Err(error) => {
                    if let Ok(panic) = error.try_into_panic() {
                        resume_unwind(panic);
                    }
                    let reason = "the platform is shutting down".to_owned();
                    refuse(StatusCode::SERVICE_UNAVAILABLE, reason)
                }
            }
        })
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge").field("parts", &self.parts).finish_non_exhaustive()
    }
}

/// Path from byte `from` on, and the query, both raw.
fn rest_of(uri: &http::Uri, from: usize) -> &str {
    uri.path_and_query().and_then(|target| target.as_str().get(from..)).unwrap_or_default()
}

/// Whether a failed accept says something about that connection only.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Whether a stream of HTTP/2 asks to become a tunnel (RFC 8441).
fn is_extended_connect(request: &Request<Incoming>) -> bool {
    *request.method() == Method::CONNECT && request.extensions().get::<Protocol>().is_some()
}

fn refuse(
    status: StatusCode,
    reason: impl Into<String>,
    headers: &HeaderMap,
) -> Response<EdgeBody> {
    Failure::new(status, "edge", reason).answer(headers).map(EdgeBody::from)
}

fn health(request: &Request<Incoming>) -> Response<EdgeBody> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let reason = "only GET and HEAD are served here";
        let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, reason, request.headers());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let mut response = Response::new(InvokeBody::whole("OK"));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.map(EdgeBody::from)
}
