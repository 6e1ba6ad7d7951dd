//! `updraft up`: the crates put together into one running cloud.
//!
//! Order is the point: everything that can refuse is asked before anything is touched, the
//! listener is bound before the first record is opened, and `ready:` is printed when every door
//! is open.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use prometheus_client::registry::Registry;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use updraft_api::ApiParts;
use updraft_builder::{BuildLimits, BuildPolicy, BuildahBuilder, Builder};
use updraft_edge::{Edge, EdgeLimits, EdgeParts, Inside};
use updraft_engine::{Engine, Fact, Version};
use updraft_engine_local::{LocalEngine, LocalEngineOptions};
use updraft_gateway::{
    AuthProxy, Authentication, GatewayParts, InvocationCounts, RequestMetrics, Service, ServiceUrl,
};
use updraft_invoke::{InvokeOptions, Invoker};
use updraft_model::{CpuQuantity, FunctionId, FunctionName, FunctionSpec, OwnerName, ResourceSet};
use updraft_pipeline::{
    GitSink, Housekeeper, HousekeeperParts, MakeRoom, Pipeline, PipelineOptions, PipelineParts,
    UrlOf,
};
use updraft_queue::{
    CallStore, Queue, QueueOptions, QueueParts, ScheduleParts, Schedules, SigningKey,
    SqliteCallStore,
};
use updraft_queue_nats::NatsCallStore;
use updraft_scaler::{Scaler, ScalerOptions, ScalerParts};
use updraft_seal::KeyRing;
use updraft_source::context::ContextLimits;
use updraft_source::git::{ContentLimits, GitServer, GitServerOptions};
use updraft_source::template::Templates;
use updraft_store::Store;
use updraft_store::access::Access;

use crate::cli::{Global, Up};
use crate::command::{self, images};
use crate::config::{Config, GatewayConfig, QueueBackend};
use crate::data_dir::{self, DataDir, ServerRecord};
use crate::key_ring;
use crate::output::Output;
use crate::shutdown::{Reason, Signals};
use crate::{COMMIT, RELEASE, WATCHDOG, abandoned, doctor, example};

/// Connections that the system queues while the server is busy accepting others.
const BACKLOG: u32 = 4096;

/// How long pushes that are being received may go on after a signal.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

pub(crate) async fn run(global: &Global, up: &Up, output: Output) -> Result<()> {
    let config = Config::load(up)?;
    // The broker may come later; calls are refused until then.
    doctor::require(&doctor::examine(&global.data_dir))?;
    let listener = bind(config.listen)?;
    let address = listener.local_addr().context("cannot read the listener's address")?;
    let metrics_listener = config.metrics.listen.map(bind).transpose();
    let metrics_listener = metrics_listener.context("metrics.listen cannot be used")?;
    let data_dir = DataDir::create(&global.data_dir)?;
    let _lock = data_dir.lock()?;
    let _volatile = data_dir.claim_volatile()?;
    let mut signals = Signals::listen()?;
    raise_file_limit();
    leave_no_core();

    let cloud = tokio::select! {
        cloud = Cloud::assemble(&data_dir, &config, address) => cloud?,
        _ = signals.next() => return Ok(()),
    };
    let closing = CancellationToken::new();
    let inside = inside_listener(&cloud, &config, address)?;
    let inside = inside
        .map(|listener| Arc::clone(&cloud.edge).serve(listener, closing.clone()))
        .transpose()
        .context("cannot start the threads that serve functions")?
        .map(tokio::spawn);
    let serving = Arc::clone(&cloud.edge)
        .serve(listener, closing.clone())
        .context("cannot start the threads that serve connections")?;
    let serving = tokio::spawn(async move {
        serving.await;
        if let Some(inside) = inside
            && let Err(error) = inside.await
        {
            tracing::error!(%error, "the door for functions failed");
        }
    });
    let metrics = metrics_listener.map(|listener| {
        let registry = Arc::clone(&cloud.metrics);
        tokio::spawn(updraft_metrics::serve(listener, registry, closing.clone()))
    });
    data_dir.announce(&ServerRecord {
        address,
        root: config.root.as_str().to_owned(),
        pid: std::process::id(),
    })?;
    cloud.tell_ready(&data_dir, &config, address, output)?;
    tokio::spawn(abandoned::sweep(Path::new(data_dir::RUN)));

    let with_example = !up.no_example;
    let reason = tokio::select! {
        reason = signals.next() => reason,
        reason = async {
            if with_example {
                example::show(&data_dir, config.root.as_str(), address, output).await;
            }
            std::future::pending().await
        } => reason,
    };
    tracing::info!(?reason, "stopping");
    closing.cancel();
    if let Some(metrics) = metrics {
        // A scraper that keeps its connection does not keep the server.
        metrics.abort();
    }
    tokio::select! {
        stopped = cloud.stop(&data_dir, serving, reason) => stopped?,
        _ = signals.next() => bail!("stopped at once at the second signal; the next start tidies up"),
    }
    data_dir.retract();
    Ok(())
}

/// Binds before anything is touched, so that a taken port changes nothing.
fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| {
        format!(
            "cannot listen on {address}; choose another address with --listen, or stop what uses it"
        )
    })
}

/// A core file of a crash would hold keys and secrets that were in memory. Nothing that is started
/// from here leaves one either.
fn leave_no_core() {
    // A limit of 0 is not heeded where the system hands cores to a program; 1 is, and is too little
    // for a file (core(5), `fs/coredump.c`).
    let none = Rlimit { current: Some(1), maximum: Some(1) };
    let limited = setrlimit(Resource::Core, none)
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    if let Err(error) = limited {
        tracing::warn!(%error, "a crash may leave a core file, which would hold secrets");
    }
}

/// The door for functions: their own address of this machine, unless the listener has it already.
fn inside_listener(
    cloud: &Cloud,
    config: &Config,
    outside: SocketAddr,
) -> Result<Option<TcpListener>> {
    let door = SocketAddr::from((cloud.engine.gateway_address(), config.isolation.gateway_port));
    let covered = outside.ip().is_unspecified() && outside.port() == door.port();
    if door.port() == 0 || covered {
        return Ok(None);
    }
    bind(door).map(Some).context(
        "functions cannot reach the gateway; choose another port as isolation.gateway_port, or 0 for none",
    )
}

/// Each connection is a file, and systems let a process open few unless it asks for more.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// What keeps asynchronous calls.
async fn call_store(
    data_dir: &DataDir,
    config: &Config,
    options: &QueueOptions,
) -> Result<Arc<dyn CallStore>> {
    Ok(match config.queue.backend {
        QueueBackend::Sqlite => {
            Arc::new(SqliteCallStore::open(&data_dir.queue(), &data_dir.queue_blobs())?)
        }
        QueueBackend::Nats => {
            let (nats, index) = (&config.queue.nats, data_dir.queue_index());
            let options = nats.options(data_dir.instance(), &index, options.lease)?;
            let store = NatsCallStore::open(options).await;
            Arc::new(store.context("asynchronous calls cannot be kept by NATS")?)
        }
    })
}

/// The running parts.
struct Cloud {
    edge: Arc<Edge>,
    engine: Arc<LocalEngine>,
    pipeline: Arc<Pipeline>,
    housekeeper: Arc<Housekeeper>,
    queue: Arc<Queue>,
    schedules: Arc<Schedules>,
    /// Renews the keys of sealed secrets.
    renewal: JoinHandle<()>,
    scaler: Arc<Scaler>,
    metrics: Arc<Registry>,
    git: GitServer,
    access: Access,
}

/// What the gateway reports as `invocationCount` is what the data plane counted.
#[derive(Debug)]
struct Counted(Arc<Invoker>);

impl InvocationCounts for Counted {
    fn count(&self, id: &FunctionId) -> u64 {
        self.0.invocation_count(id)
    }
}

impl Cloud {
    async fn assemble(data_dir: &DataDir, config: &Config, address: SocketAddr) -> Result<Self> {
        let version = Version { release: RELEASE.to_owned(), sha: COMMIT.to_owned() };
        let store = Store::open(&data_dir.database(), &data_dir.blobs())?;
        let access = Access::open(store.clone(), &data_dir.admin_password())?;
        let keys = key_ring::open(data_dir, config.keys.options(data_dir.machine_key())?).await?;
        let images = images::open_with(data_dir, &config.images).await?;
        let engine_options = engine_options(data_dir, Some(config));
        let engine = LocalEngine::open(engine_options, Arc::new(images.clone())).await?;
        let engine = Arc::new(engine);
        let shared_engine: Arc<dyn Engine> = Arc::<LocalEngine>::clone(&engine);
        let builder = BuildahBuilder::with_policy(images.clone(), build_policy(config))?;
        let facts = build_facts(&builder.degraded());
        let builder: Arc<dyn Builder> = Arc::new(builder);
        let templates = Templates::new(WATCHDOG.into(), config.push.repository_templates);
        let git = GitServer::new(GitServerOptions {
            max_push_bytes: config.push.size,
            max_repository_bytes: config.push.repository_size,
            ..GitServerOptions::new(data_dir.repositories())
        });
        let git = git.await?;
        let url: UrlOf = Arc::new(function_url(config, address));
        let housekeeper = Housekeeper::start(HousekeeperParts {
            images,
            store: store.clone(),
            engine: Arc::clone(&shared_engine),
            folders: data_dir.measured(),
            options: config.images.options(),
        });
        let room = Arc::clone(&housekeeper);
        let make_room: MakeRoom = Arc::new(move || {
            let room = Arc::clone(&room);
            Box::pin(async move { room.make_room().await })
        });
        let pipeline = Pipeline::start(PipelineParts {
            store: store.clone(),
            engine: Arc::clone(&shared_engine),
            builder,
            templates,
            unsealer: Arc::<KeyRing>::clone(&keys),
            repositories: data_dir.repositories(),
            work: data_dir.work(),
            options: PipelineOptions {
                make_room: Some(make_room),
                ..pipeline_options(config, Arc::clone(&url))
            },
        });
        let pipeline = pipeline.await?;
        // Pushes that git took in just before a crash, and that nobody has heard of since.
        git.recover(&GitSink::new(Arc::clone(&pipeline))).await?;
        let invoker = Invoker::new(
            Arc::clone(&shared_engine),
            InvokeOptions {
                timeout: config.function.timeout,
                longest_timeout: config.function.longest_timeout,
                ..InvokeOptions::new(RELEASE)
            },
        );
        let options = config.queue.options(
            config.root.as_str(),
            address.port(),
            SigningKey::open(&data_dir.callback_key())?,
        )?;
        let queue = Queue::start(QueueParts {
            store: call_store(data_dir, config, &options).await?,
            invoker: Arc::clone(&invoker),
            options,
        });
        let queue = queue.await?;
        let schedules = Schedules::start(ScheduleParts {
            queue: Arc::clone(&queue),
            invoker: Arc::clone(&invoker),
            record: data_dir.schedules(),
        });
        let schedules = schedules.context("the record of schedules cannot be read")?;
        let backlog = {
            let queue = Arc::clone(&queue);
            move |id: &FunctionId| queue.backlog(id)
        };
        let scaler = Scaler::start(ScalerParts {
            engine: Arc::clone(&shared_engine),
            invoker: Arc::clone(&invoker),
            backlog: Arc::new(backlog),
            options: scaler_options(config),
        });
        let requests = RequestMetrics::default();
        let mut metrics = Registry::default();
        updraft_metrics::register_process(&mut metrics);
        invoker.register_metrics(&mut metrics);
        scaler.register_metrics(&mut metrics);
        queue.register_metrics(&mut metrics);
        engine.register_metrics(&mut metrics);
        keys.register_metrics(&mut metrics, RELEASE);
        requests.register(&mut metrics);
        housekeeper.register_metrics(&mut metrics);
        let metrics = Arc::new(metrics);
        let gateway_parts = GatewayParts {
            engine: Arc::clone(&shared_engine),
            metrics: Arc::clone(&metrics),
            scaler: Arc::clone(&scaler),
            invoker: Arc::clone(&invoker),
            queue: Arc::clone(&queue),
            invocations: Arc::new(Counted(Arc::clone(&invoker))),
            access: access.clone(),
            authentication: authentication(&config.gateway)?,
            logs_provider: service(config.gateway.logs_provider_url.as_ref(), &config.gateway)?,
            requests,
            version: version.clone(),
            system_url: format!("http://system.{}:{}", config.root.as_str(), address.port()),
        };
        // Functions are on this machine and are nobody's administrators: a gateway that asks
        // nobody for a password, because only this machine reaches it, asks them.
        let inside = match gateway_parts.authentication {
            Authentication::Off => Authentication::Password,
            ref asked => asked.clone(),
        };
        let inside = Inside {
            address: engine.gateway_address().into(),
            gateway: updraft_gateway::router(GatewayParts {
                authentication: inside,
                ..gateway_parts.clone()
            }),
        };
        let gateway = updraft_gateway::router(gateway_parts);
        let system = updraft_api::router(ApiParts {
            store,
            keys: Arc::clone(&keys),
            pipeline: Arc::clone(&pipeline),
            housekeeper: Some(Arc::clone(&housekeeper)),
            engine: shared_engine,
            queue: Arc::clone(&queue),
            schedules: Arc::clone(&schedules),
            scaler: Arc::clone(&scaler),
            access: access.clone(),
            git: git.clone(),
            work: data_dir.work(),
            max_upload_bytes: config.push.size,
            upload_limits: content_limits(config),
            url,
            gateway_url: format!("http://{address}"),
            facts,
            root: config.root.as_str().to_owned(),
            version,
        });
        let edge = Edge::new(EdgeParts {
            invoker,
            gateway,
            system,
            root: config.root.clone(),
            inside: Some(inside),
            limits: EdgeLimits::usual(),
        });
        let renewal = key_ring::keep_renewed(keys)?;
        Ok(Self {
            edge,
            engine,
            pipeline,
            housekeeper,
            queue,
            schedules,
            renewal,
            scaler,
            metrics,
            git,
            access,
        })
    }

    /// Says that every door is open; the password only when it was just made.
    fn tell_ready(
        &self,
        data_dir: &DataDir,
        config: &Config,
        address: SocketAddr,
        output: Output,
    ) -> Result<()> {
        let (root, port) = (&config.root.as_str(), address.port());
        output.line(&format!(
            "ready: http://{address} (functions on http://OWNER.{root}:{port}/FUNCTION)"
        ))?;
        let password = data_dir.admin_password();
        if self.access.password_was_generated() {
            let text = std::fs::read_to_string(&password)
                .with_context(|| format!("cannot read {}", password.display()))?;
            output.line(&format!(
                "user admin, password {} (shown this once, kept in {})",
                text.trim(),
                password.display()
            ))?;
        }
        Ok(())
    }

    /// Ends in the order of dependence: no new requests, no new work, then the engine.
    async fn stop(self, data_dir: &DataDir, serving: JoinHandle<()>, reason: Reason) -> Result<()> {
        serving.await.context("the listener failed")?;
        if !self.git.drain(DRAIN_LIMIT).await {
            tracing::warn!("pushes were still under way; the next start goes on with them");
        }
        self.renewal.abort();
        self.schedules.shutdown().await;
        self.queue.shutdown().await;
        self.pipeline.shutdown().await;
        self.housekeeper.shutdown().await;
        self.scaler.shutdown().await;
        self.engine.shutdown().await;
        if reason == Reason::Interrupt {
            drop(self);
            command::down::clear_machine(data_dir).await?;
        }
        Ok(())
    }
}

/// The engine's options; the limits of functions are the configuration's, where there is one.
pub(crate) fn engine_options(data_dir: &DataDir, config: Option<&Config>) -> LocalEngineOptions {
    let usual = LocalEngineOptions::new(data_dir.instance(), data_dir.root(), &data_dir.volatile());
    let usual = LocalEngineOptions {
        version: Version { release: RELEASE.to_owned(), sha: COMMIT.to_owned() },
        machine_key: data_dir.machine_key(),
        ..usual
    };
    let Some(config) = config else { return usual };
    LocalEngineOptions {
        default_memory_bytes: config.function.memory,
        default_cpu_millis: default_cpu_millis(config),
        own_weight: config.isolation.own_weight,
        process_limit: config.function.processes,
        ready_limit: config.function.ready,
        log_bytes: config.log.replica_size,
        function_log_bytes: config.log.function_size,
        users: config.isolation.users,
        egress: config.isolation.egress(),
        sandboxes: config.isolation.sandboxes(),
        gvisor_platform: config.isolation.runsc_platform,
        bandwidth: config.isolation.bandwidth,
        connections: config.isolation.connections,
        gateway_port: Some(config.isolation.gateway_port).filter(|port| *port > 0),
        ..usual
    }
}

/// The processor limit of functions that name none: what the configuration says, else all of the
/// machine but an eighth, so that no single replica takes all there is.
fn default_cpu_millis(config: &Config) -> Option<u64> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let most = u64::try_from(processors).unwrap_or(1).saturating_mul(875);
    let wanted = config.function.cpu.as_ref().map_or(most, CpuQuantity::millicores);
    Some(wanted).filter(|millis| *millis > 0)
}

/// Where a function of an owner is called.
fn function_url(
    config: &Config,
    address: SocketAddr,
) -> impl Fn(&OwnerName, &FunctionName) -> String + Send + Sync + 'static {
    let (root, port) = (config.root.as_str().to_owned(), address.port());
    move |owner, function| format!("http://{owner}.{root}:{port}/{function}")
}

/// The pipeline's options: the configuration's limits over the usual ones.
fn pipeline_options(config: &Config, url: UrlOf) -> PipelineOptions {
    let (build, push, function) = (&config.build, &config.push, &config.function);
    let usual = PipelineOptions::new(url);
    PipelineOptions {
        live_branches: push.live_branches.clone(),
        parallel_builds: build.parallel,
        build_limits: BuildLimits {
            time: build.time,
            memory_bytes: build.memory,
            disk_bytes: build.disk,
            files: build.files,
            processes: build.processes,
        },
        checkout_limits: content_limits(config),
        context_limits: ContextLimits {
            files: push.files as u64,
            total_bytes: push.checkout_size,
            file_bytes: push.file_size,
            ..usual.context_limits
        },
        mistakes: Arc::new(mistakes(scaler_options(config))),
        default_limits: ResourceSet {
            memory: function.memory.to_string().parse().ok(),
            ..usual.default_limits
        },
        ready_limit: function.ready,
        wider_scopes: config.keys.wider_scopes,
        keep_build_logs: build.keep_logs,
        max_build_log_bytes: build.log_size,
        ..usual
    }
}

/// How builds are kept apart, for `updraft engine status`.
fn build_facts(degraded: &[String]) -> Vec<Fact> {
    const SUBJECT: &str = "builds";
    if degraded.is_empty() {
        return vec![Fact::good(SUBJECT, doctor::BUILDS_APART)];
    }
    degraded
        .iter()
        .map(|why| Fact::degraded(SUBJECT, "less apart than they could be", why))
        .collect()
}

/// What builds may reach and build on.
fn build_policy(config: &Config) -> BuildPolicy {
    let mut policy = BuildPolicy { egress: config.build.egress.clone(), ..BuildPolicy::default() };
    policy.shared_owners.extend(config.build.shared_owners.iter().cloned());
    policy
}

/// What a function's labels and annotations get wrong, for whoever pushes it.
fn mistakes(
    scaler: ScalerOptions,
) -> impl Fn(&FunctionSpec) -> Vec<String> + Send + Sync + 'static {
    move |spec| {
        let mut found = updraft_scaler::mistakes(spec, &scaler);
        found.extend(updraft_queue::mistakes(spec));
        found
    }
}

/// What the administrator's routes of the gateway ask for.
fn authentication(config: &GatewayConfig) -> Result<Authentication> {
    Ok(match service(config.auth_proxy_url.as_ref(), config)? {
        Some(service) => {
            Authentication::Proxy(AuthProxy { service, pass_body: config.auth_proxy_pass_body })
        }
        None if config.authentication => Authentication::Password,
        None => Authentication::Off,
    })
}

/// A service that the gateway asks, where the configuration names one.
fn service(url: Option<&ServiceUrl>, config: &GatewayConfig) -> Result<Option<Service>> {
    let open = |url: &ServiceUrl| Service::open(url.clone(), config.service_roots.as_deref());
    url.map(open).transpose().context("a service in the configuration's [gateway] cannot be asked")
}

/// The scaler's options; everything in the configuration has the same name.
fn scaler_options(config: &Config) -> ScalerOptions {
    let scaler = &config.scaler;
    ScalerOptions {
        follow_load: scaler.follow_load,
        tick: scaler.tick,
        max: scaler.max,
        target: scaler.target,
        calls: scaler.calls,
        in_flight: scaler.in_flight,
        down_window: scaler.down_window,
        manual_hold: scaler.manual_hold,
        freeze_after: Some(scaler.freeze_after).filter(|after| !after.is_zero()),
        scale_to_zero: scaler.scale_to_zero,
        zero_after: scaler.zero_after,
    }
}

/// What a working tree may hold, however it came.
fn content_limits(config: &Config) -> ContentLimits {
    ContentLimits {
        max_files: config.push.files,
        max_bytes: config.push.checkout_size,
        max_file_bytes: config.push.file_size,
        ..ContentLimits::default()
    }
}
