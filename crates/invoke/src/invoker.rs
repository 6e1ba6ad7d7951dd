//! The way of one request: stamp it, find a replica, exchange, hand the answer on.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use http_body_util::{Either, Full};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use updraft_engine::{Engine, SecretValue};
use updraft_model::{FunctionId, Protocol, SecretName, format_duration};

use crate::body::{AnswerKind, InvokeBody, RequestBody};
use crate::connection::{ExchangeError, Flow};
use crate::failure::Failure;
use crate::function::{Function, FunctionLoad};
use crate::headers::{self, Caller, Marks};
use crate::keys::{self, MissingKeys};
use crate::metrics::{Account, FunctionsCollector};
use crate::options::InvokeOptions;
use crate::replica::Replica;
use crate::search::{Found, Search};
use crate::table::Table;
use crate::tunnel::{self, CallerEnd, TunnelGuard};

/// Takes requests to functions.
pub struct Invoker {
    shared: Arc<Shared>,
    /// Follows the engine's table and closes cold connections; ends with the invoker.
    _following: [AbortOnDropHandle<()>; 2],
}

/// What requests and background tasks share.
pub(crate) struct Shared {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) options: InvokeOptions,
    pub(crate) table: Arc<ArcSwap<Table>>,
    /// Counts the changes of `table`, after each.
    pub(crate) changes: watch::Sender<u64>,
    served_by: HeaderValue,
    tunnels: TaskTracker,
    closing: CancellationToken,
}

impl Invoker {
    /// Starts to follow the engine. Must be called within a Tokio runtime.
    pub fn new(engine: Arc<dyn Engine>, options: InvokeOptions) -> Arc<Self> {
        let served_by = HeaderValue::try_from(format!("updraft/{}", options.version))
            .unwrap_or(HeaderValue::from_static("updraft"));
        let mut endpoints = engine.endpoints();
        let shared = Arc::new(Shared {
            engine,
            options,
            table: Arc::new(ArcSwap::from_pointee(Table::default())),
            changes: watch::Sender::new(0),
            served_by,
            tunnels: TaskTracker::new(),
            closing: CancellationToken::new(),
        });
        shared.publish(&endpoints.borrow_and_update().clone());
        let follow = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while endpoints.changed().await.is_ok() {
                    let table = endpoints.borrow_and_update().clone();
                    shared.publish(&table);
                }
            }
        });
        let sweep = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let limit = shared.options.idle_limit;
                let mut ticks = tokio::time::interval((limit / 4).max(Duration::from_millis(1)));
                loop {
                    let now = ticks.tick().await.into_std();
                    for function in shared.table.load_full().functions() {
                        for replica in &function.replicas {
                            replica.sweep(now, limit);
                        }
                    }
                }
            }
        });
        Arc::new(Self {
            shared,
            _following: [AbortOnDropHandle::new(follow), AbortOnDropHandle::new(sweep)],
        })
    }

    /// The function called `name` in the default namespace, or `name.namespace`.
    pub fn find(&self, name: &str) -> Option<Arc<Function>> {
        self.shared.table.load().by_name(name).map(Arc::clone)
    }

    /// The function that a push of `owner` deployed under the owner's own name for it.
    pub fn find_owned(&self, owner: &str, own_name: &str) -> Option<Arc<Function>> {
        self.shared.table.load().by_owner(owner, own_name).map(Arc::clone)
    }

    /// Why [`Self::find`] found nothing, with the name that was probably meant.
    pub fn unknown(&self, name: &str) -> Failure {
        let table = self.shared.table.load();
        let hint = match table.nearest(name) {
            Some(nearest) => format!(", did you mean `{nearest}`?"),
            None => String::new(),
        };
        let shown: String = name.chars().take(128).collect();
        Failure {
            function: Some(shown.clone()),
            ..Failure::new(
                StatusCode::NOT_FOUND,
                "invoke",
                format!("function `{shown}` does not exist{hint}"),
            )
        }
    }

    /// How many calls of the function have ended since this process first saw it.
    pub fn invocation_count(&self, id: &FunctionId) -> u64 {
        self.shared
            .table
            .load()
            .by_id(id)
            .map_or(0, |function| function.state.metrics.invocations())
    }

    /// What every known function carries now, for whoever scales them.
    pub fn loads(&self) -> Vec<FunctionLoad> {
        self.shared.table.load().functions().map(|function| function.load()).collect()
    }

    /// Counts the changes of the table that [`Self::find`] reads: wakes whoever follows functions.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Adds the numbers of all functions to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(FunctionsCollector(Arc::clone(&self.shared.table))));
    }

    /// The numbers of all functions as OpenMetrics text, for `/metrics`.
    pub fn metrics_text(&self) -> String {
        let mut registry = Registry::default();
        self.register_metrics(&mut registry);
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }

    /// Closes all tunnels and waits for their ends. Call it when no request is accepted any more.
    pub async fn close_tunnels(&self) {
        self.shared.closing.cancel();
        self.shared.tunnels.close();
        self.shared.tunnels.wait().await;
    }

    /// Takes `request` to `function` with `path` (the raw rest of the path and the query, as
    /// received) as its target. Always answers; what is not the function's own answer is JSON
    /// that says why.
    pub async fn call(
        &self,
        function: &Arc<Function>,
        path: &str,
        request: Request<RequestBody>,
        caller: &Caller,
    ) -> Response<InvokeBody> {
        let started = Instant::now();
        let marks = Marks::of(request.headers());
        let mut request = request;
        if function.gate.is_some() && !caller.authorized {
            match Box::pin(self.admit(function, request)).await {
                Ok(admitted) => request = admitted,
                Err(failure) => {
                    return failure.answer_as(marks.kind.as_ref(), &marks.call_id);
                }
            }
        }
        let mut account = Account::open(&function.state, started);
        match self.pass(function, path, request, caller, &marks, account, started).await {
            Ok(response) => response,
            Err((failure, returned)) => {
                account = returned;
                account.answered(failure.status);
                tracing::debug!(
                    function = %function.state.qualified,
                    status = failure.status.as_u16(),
                    reason = failure.reason,
                    "a call was not answered by its function"
                );
                failure.answer_as(marks.kind.as_ref(), &marks.call_id)
            }
        }
    }

    /// Checks what a private function asks of its callers, before anything of a request reaches
    /// it. Every function that is open lets every request pass. Returns the body: as it was, or
    /// whole where it had to be read.
    ///
    /// [`Self::call`] asks the same of every caller that is not
    /// [authorized](Caller::authorized) already.
    ///
    /// # Errors
    /// What to answer instead; the caller's fault, or that of the function's owner.
    pub async fn authorize<B>(
        &self,
        function: &Function,
        headers: &HeaderMap,
        body: B,
    ) -> Result<Either<B, Full<Bytes>>, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let Some(gate) = &function.gate else { return Ok(Either::Left(body)) };
        let (engine, options) = (&*self.shared.engine, &self.shared.options);
        let checked = gate.check(engine, options, function.timeout, headers, body).await;
        if checked.is_err() {
            function.state.metrics.denied.fetch_add(1, Ordering::Relaxed);
        }
        checked
    }

    /// The keys that the function's owner put into one of its secrets, one a line, as they are now.
    ///
    /// # Errors
    /// There are none, or they cannot be read.
    pub async fn keys(
        &self,
        function: &Function,
        secret: &SecretName,
    ) -> Result<Vec<SecretValue>, MissingKeys> {
        keys::read(&*self.shared.engine, &function.id().namespace, secret).await
    }

    async fn admit(
        &self,
        function: &Function,
        request: Request<RequestBody>,
    ) -> Result<Request<RequestBody>, Failure> {
        let (head, body) = request.into_parts();
        let body = match self.authorize(function, &head.headers, body).await? {
            Either::Left(body) => body,
            Either::Right(whole) => RequestBody::from(whole.into_inner().unwrap_or_default()),
        };
        Ok(Request::from_parts(head, body))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one call, used in this file only")]
    async fn pass(
        &self,
        function: &Arc<Function>,
        path: &str,
        mut request: Request<RequestBody>,
        caller: &Caller,
        marks: &Marks,
        mut account: Account,
        started: Instant,
    ) -> Result<Response<InvokeBody>, (Failure, Account)> {
        let shared = &self.shared;
        let name = &*function.state.name;
        let upgrade = headers::upgrade_asked(&request);
        let by_connect = headers::extended_connect(&request).is_some();
        let trusted = shared.options.trusted_proxies.contains(&caller.address());
        let prepared = target(path).and_then(|uri| {
            if by_connect {
                if function.spec().protocol() == Protocol::H2c {
                    let reason = "the function speaks HTTP/2 itself, whose connections are shared";
                    return Err(Failure::invoke(StatusCode::NOT_IMPLEMENTED, name, reason));
                }
                headers::written_as_upgrade(&mut request);
            } else if request.method() == Method::CONNECT {
                let reason = "CONNECT is not served here";
                return Err(Failure::invoke(StatusCode::METHOD_NOT_ALLOWED, name, reason));
            }
            headers::prepare_request(&mut request, caller, trusted, marks, upgrade.as_ref());
            *request.uri_mut() = uri;
            Ok(())
        });
        if let Err(failure) = prepared {
            return Err((failure, account));
        }
        let tunnel = upgrade.is_some().then(|| {
            let guard = request.extensions_mut().remove::<TunnelGuard>();
            CallerEnd { upgrade: hyper::upgrade::on(&mut request), guard }
        });
        request.extensions_mut().clear();
        let upload = request.body_mut().watch();

        let mut search = Search::new(Arc::clone(function), started);
        let (mut response, connection, replica, hold) = loop {
            let Found { replica, hold, mut connection, fresh } = match search.next(shared).await {
                Ok(found) => found,
                Err(failure) => return Err((failure, account)),
            };
            let (limit, since) = (search.function.timeout, search.waited.then_some(search.since));
            match connection.exchange(request, upload.as_deref(), limit, since).await {
                Ok(response) => break (response, connection, replica, hold),
                Err(ExchangeError::Unsent(unsent)) => {
                    request = *unsent;
                    if fresh && let Err(failure) = search.refused(shared, replica, "closed at once")
                    {
                        return Err((failure, account));
                    }
                }
                Err(error) => return Err((broken(name, &replica, limit, error), account)),
            }
        };

        let status = response.status();
        account.answered(status);
        headers::prepare_response(&mut response, marks, &shared.served_by, started.elapsed());
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let Some(caller) = tunnel else {
                let reason = format!(
                    "replica `{}` changed the protocol without being asked",
                    replica.endpoint.replica
                );
                return Err((Failure::invoke(StatusCode::BAD_GATEWAY, name, reason), account));
            };
            if by_connect {
                headers::written_as_connected(&mut response);
            }
            let (tunnels, closing) = (&shared.tunnels, shared.closing.clone());
            tunnel::open(caller, &mut response, connection, hold, account, tunnels, closing);
            return Ok(response.map(|_| InvokeBody::whole("")));
        }
        if by_connect && status.is_success() {
            // To the caller a success would be a tunnel.
            let shown = upgrade.as_ref().and_then(|it| it.to_str().ok()).unwrap_or_default();
            let reason = format!("the function answered {status} and did not change to `{shown}`");
            return Err((Failure::invoke(StatusCode::BAD_GATEWAY, name, reason), account));
        }
        let (head, incoming) = response.into_parts();
        let mut flow = Flow::new(incoming, connection, replica, hold, account, upload);
        poll_fn(|context| {
            flow.settle(context);
            Poll::Ready(())
        })
        .await;
        Ok(Response::from_parts(head, InvokeBody(AnswerKind::Flow(flow))))
    }
}

impl fmt::Debug for Invoker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invoker").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Shared {
    fn publish(self: &Arc<Self>, endpoints: &updraft_engine::EndpointTable) {
        let before = self.table.load_full();
        let next = Arc::new(before.next(endpoints, &self.options));
        // Whoever reads of a new version in the table finds the line renewed already.
        for function in next.functions() {
            if function.limit.is_some() || function.state.line.waiting() > 0 {
                function.state.renew(function);
            }
        }
        self.table.store(Arc::clone(&next));
        self.changes.send_modify(|count| *count += 1);
        for function in next.functions() {
            // Those in the line count on somebody to do this.
            if function.state.line.waiting() > 0 && function.rests() {
                drop(self.wake(function));
            }
        }
        for function in before.functions() {
            if function.limit.is_some() && next.by_name(&function.state.qualified).is_none() {
                function.state.disband();
            }
        }
    }
}

/// The request target for the replica: the raw path and query, never empty.
fn target(path: &str) -> Result<Uri, Failure> {
    let path = match path.as_bytes().first() {
        None => Ok(PathAndQuery::from_static("/")),
        Some(b'/') if path.len() == 1 => Ok(PathAndQuery::from_static("/")),
        Some(b'/') => PathAndQuery::try_from(path),
        Some(_) => PathAndQuery::try_from(format!("/{path}")),
    };
    path.map(Uri::from).map_err(|_| {
        Failure::new(StatusCode::BAD_REQUEST, "invoke", "the path has characters that no path has")
    })
}

/// What to tell a caller whose request reached a replica and brought no answer.
fn broken(name: &str, replica: &Replica, limit: Duration, error: ExchangeError) -> Failure {
    let replica = &replica.endpoint.replica;
    let limit = format_duration(limit);
    let (status, reason) = match error {
        ExchangeError::ReplicaSilent => (
            StatusCode::GATEWAY_TIMEOUT,
            format!("replica `{replica}` did not answer within {limit}, the function's timeout"),
        ),
        ExchangeError::CallerSilent => (
            StatusCode::REQUEST_TIMEOUT,
            format!("the request body stood still for {limit}, the function's timeout"),
        ),
        ExchangeError::Broken(error) => {
            tracing::warn!(
                function = name,
                %replica,
                error = &error as &dyn std::error::Error,
                "a replica broke off"
            );
            if error.is_user() {
                (StatusCode::BAD_REQUEST, "the request body broke off".to_owned())
            } else {
                let reason = format!("replica `{replica}` broke off before it answered");
                (StatusCode::BAD_GATEWAY, reason)
            }
        }
        ExchangeError::Unsent(_) => unreachable!("an unsent request is sent again"),
    };
    Failure::invoke(status, name, reason)
}
