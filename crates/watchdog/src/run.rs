//! From start to exit: the child, the listener, readiness, SIGTERM and draining.
//!
//! One straight function; it owns the order of things and leaves calls to `server`.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use nix::sys::signal::Signal;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::auth::Authenticator;
use crate::children::{Child, Children, Exit, Streams};
use crate::config::{CommandLine, Config, Mode};
use crate::duration::format_go;
use crate::files::Files;
use crate::inproc::Handler;
use crate::life::Life;
use crate::lines;
use crate::log::{Log, Stream};
use crate::metrics::{self, Metrics};
use crate::server::{self, App, Target};
use crate::traces::Traces;
use crate::upstream::Upstream;

/// How long the child may take to end after it was asked to.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// How long the last lines of an ended child may take to arrive.
const LAST_LINES: Duration = Duration::from_millis(500);
/// How long the last spans may take to reach the collector.
const LAST_SPANS: Duration = Duration::from_secs(1);
/// How long a function may take to answer at `ready_path`.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// When a start is slow enough to say so.
const SLOW_START: Duration = Duration::from_secs(5);
/// How often a quiet drain looks whether calls still come.
const QUIET: Duration = Duration::from_millis(100);

/// The version as the first log line and `-version` show it.
pub(crate) fn version_line() -> String {
    let sha = option_env!("UPDRAFT_GIT_SHA").unwrap_or("unknown");
    format!("Version: {}\tSHA: {sha}", env!("CARGO_PKG_VERSION"))
}

/// Whether the lock file of these settings exists: what `-run-healthcheck` reports.
pub(crate) fn lock_file_exists(temporary_folder: Option<String>) -> bool {
    let folder = temporary_folder.filter(|folder| !folder.is_empty());
    std::path::Path::new(folder.as_deref().unwrap_or("/tmp")).join(".lock").is_file()
}

/// The one long-lived process of mode http.
struct Function {
    child_group: Arc<crate::children::Group>,
    exit: oneshot::Receiver<Exit>,
    /// Kept open for as long as the function runs: some programs end when their input does.
    _stdin: tokio::net::unix::pipe::Sender,
    copiers: Copiers,
}

/// The tasks that log the function's output and, where it is apart, its errors.
type Copiers = (JoinHandle<()>, Option<JoinHandle<()>>);

/// Runs the watchdog until the function ends or a signal asks it to; the result is the exit code
/// of the process.
pub(crate) async fn run(config: Config, handler: Option<Handler>, log: Log) -> ExitCode {
    match try_run(config, handler, &log).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            log.line(format_args!("{reason}"));
            ExitCode::FAILURE
        }
    }
}

async fn try_run(config: Config, handler: Option<Handler>, log: &Log) -> Result<(), String> {
    let begun = Instant::now();
    announce(&config, log);
    let problem = |what: &'static str| move |cause: io::Error| format!("{what}: {cause}");
    let children = Children::start().map_err(problem("cannot watch processes"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(problem("cannot watch signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(problem("cannot watch signals"))?;

    let life = Arc::new(Life::new(config.lock_file.clone(), config.max_inflight));
    life.remove_lock_file();
    let listener = listen(config.port).await.map_err(|cause| {
        format!("cannot listen on port {}: {cause}; set `port` to a free one", config.port)
    })?;
    let metrics = Arc::new(Metrics::default());
    let metrics_listener = match config.metrics_port {
        None => None,
        Some(port) => Some(listen(port).await.map_err(|cause| {
            format!(
                "cannot serve metrics on port {port}: {cause}; set `metrics_port` to a free one, or to 0 for no metrics"
            )
        })?),
    };
    let authenticator = match &config.jwt_auth {
        None => None,
        Some(settings) => {
            let started = Authenticator::start(settings, log).await;
            Some(started.map_err(|cause| {
                format!(
                    "cannot start jwt_auth: {cause}; check that the gateway runs and `jwt_auth_authority`"
                )
            })?)
        }
    };
    let mut function = None;
    let target = match &config.mode {
        Mode::Http { command, upstream } => {
            function = Some(start_function(&children, command, &config, log)?);
            Target::Http(Arc::new(Upstream::new(upstream.clone(), config.max_headers)))
        }
        Mode::Streaming { command } => Target::Streaming(command.clone()),
        Mode::Serializing { command } => Target::Serializing(command.clone()),
        Mode::Classic { command, settings } => Target::Classic(command.clone(), settings.clone()),
        Mode::Static { root } => Target::Static(Files::open(root).map_err(|cause| {
            format!("cannot serve {}: {cause}; set `static_path`", root.display())
        })?),
        Mode::InProcess => Target::InProcess(handler.ok_or(
            "mode inproc runs a handler compiled into the watchdog, which this binary has not: use mode http with `fprocess` and `upstream_url`",
        )?),
    };
    let traces = config.traces.as_ref().map(|settings| Traces::start(settings, log));
    if let Ok(address) = listener.local_addr() {
        log.line(format_args!("Listening on port: {}", address.port()));
    }
    let serving_metrics = metrics_listener.map(|listener| {
        if let Ok(address) = listener.local_addr() {
            log.line(format_args!("Metrics listening on port: {}", address.port()));
        }
        tokio::spawn(metrics::serve(Arc::clone(&metrics), listener))
    });
    let (life_here, log_here) = (Arc::clone(&life), log.clone());
    let app = Arc::new(App {
        config,
        log: log_here,
        life: life_here,
        children,
        metrics,
        authenticator,
        traces,
        target,
    });
    let (closing, closed) = watch::channel(false);
    let accepting = tokio::spawn(server::accept(Arc::clone(&app), listener, closed));
    let becoming_ready = tokio::spawn(become_ready(Arc::clone(&app), begun));

    let early_sigterm = function
        .as_ref()
        .filter(|_| app.config.early_sigterm)
        .map(|function| Arc::clone(&function.child_group));
    let drained = tokio::select! {
        exit = ended(&mut function, &app) => Err(exit),
        drained = async {
            tokio::select! {
                _ = terminate.recv() => {
                    if let Some(group) = &early_sigterm {
                        group.signal(Signal::SIGTERM);
                    }
                    leave(&app).await;
                    drain(&app, closing).await;
                }
                _ = interrupt.recv() => life.begin_leaving(),
            }
        } => Ok(drained),
    };
    becoming_ready.abort();
    accepting.abort();
    if let Some(serving) = serving_metrics {
        serving.abort();
    }
    life.begin_leaving();
    if let Err(exit) = drained {
        if let Some(function) = function {
            last_lines(function.copiers).await;
        }
        return Err(format!("Forked function has terminated: {exit}"));
    }
    if let Some(function) = function {
        stop(function).await;
    }
    if let Some(traces) = &app.traces {
        let _too_slow = tokio::time::timeout(LAST_SPANS, traces.send_waiting()).await;
    }
    log.line(format_args!("Exiting. Active connections: {}", life.active()));
    Ok(())
}

fn announce(config: &Config, log: &Log) {
    log.line(format_args!("{}", version_line()));
    let process = config.mode.command().map_or("", |command| &command.text);
    log.line(format_args!("Watchdog mode: {}\tfprocess: \"{process}\"", config.mode.name()));
    let print = |duration: Option<Duration>| format_go(duration.unwrap_or_default());
    log.line(format_args!(
        "Timeouts: read: {} write: {} hard: {} health: {}",
        print(config.read_timeout),
        print(config.write_timeout),
        print(config.exec_timeout),
        format_go(config.healthcheck_interval),
    ));
}

async fn listen(port: u16) -> io::Result<TcpListener> {
    // One socket takes both families; where the kernel has no IPv6, the other remains.
    match TcpListener::bind(("::", port)).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await,
    }
}

fn start_function(
    children: &Children,
    command: &CommandLine,
    config: &Config,
    log: &Log,
) -> Result<Function, String> {
    let child = children.spawn(command, [], Streams::Apart).map_err(|cause| {
        format!("cannot start the function `{}`: {cause}; check `fprocess`", command.text)
    })?;
    let Child { group, stdin, stdout, stderr, exit } = child;
    let style = config.line_style();
    let out = tokio::spawn(lines::copy(stdout, log.clone(), Stream::Stdout, style, None));
    let err = stderr
        .map(|stderr| tokio::spawn(lines::copy(stderr, log.clone(), Stream::Stderr, style, None)));
    Ok(Function { child_group: group, exit, _stdin: stdin, copiers: (out, err) })
}

/// Waits until the function takes connections and says at `ready_path` that it is ready, then
/// reports health.
async fn become_ready(app: Arc<App>, begun: Instant) {
    if let Target::Http(upstream) = &app.target
        && !app.config.early_ready
    {
        let mut told = false;
        while let Err(missing) = is_ready(upstream, app.config.ready_path.as_deref()).await {
            let waited = begun.elapsed();
            if waited > SLOW_START && !told {
                told = true;
                app.log
                    .line(format_args!("the function is not ready after {waited:.0?}: {missing}"));
            }
            // Quick programs listen within milliseconds, and each of them is a cold start's.
            let pause = match waited {
                early if early < Duration::from_millis(200) => Duration::from_millis(1),
                early if early < Duration::from_secs(2) => Duration::from_millis(5),
                _ => Duration::from_millis(50),
            };
            tokio::time::sleep(pause).await;
        }
    }
    app.metrics.ready_after(begun.elapsed());
    if let Some(path) = app.life.lock_file() {
        app.log.line(format_args!("Writing lock-file to: {}", path.display()));
    }
    if let Err(cause) = app.life.begin_accepting() {
        app.log.line(format_args!(
            "error: cannot write the lock file, so health stays bad: {cause}; mount a writable /tmp, or set `suppress_lock=true`"
        ));
    }
}

/// Whether the function can take calls, or what it lacks.
async fn is_ready(upstream: &Arc<Upstream>, path: Option<&str>) -> Result<(), String> {
    let Some(path) = path else {
        return upstream.dial().await.map(drop).map_err(|cause| {
            format!("cannot connect to it at {}: {cause}", upstream.address.authority)
        });
    };
    match tokio::time::timeout(PROBE_TIMEOUT, upstream.probe(path)).await {
        Ok(Ok(status)) if status.is_success() || status.is_redirection() => Ok(()),
        Ok(Ok(status)) => Err(format!("it answers {status} at {path}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err(format!("it does not answer at {path}")),
    }
}

/// The end of the function; never comes where there is none, or where it was asked to end first.
async fn ended(function: &mut Option<Function>, app: &App) -> Exit {
    let Some(running) = function else { return std::future::pending().await };
    let exit = (&mut running.exit).await.unwrap_or(Exit::Code(-1));
    if app.config.early_sigterm && app.life.is_leaving() {
        if let Some(ended) = function.take() {
            last_lines(ended.copiers).await;
        }
        return std::future::pending().await;
    }
    exit
}

/// Turns health bad and goes on serving, so that whoever sends calls here can stop doing so.
async fn leave(app: &App) {
    let wait = app.config.healthcheck_interval;
    app.log.line(format_args!("SIGTERM: no new connections in {}", format_go(wait)));
    if let Some(path) = app.life.lock_file() {
        app.log.line(format_args!("Removing lock-file : {}", path.display()));
    }
    app.life.begin_leaving();
    if !app.config.quiet_drain {
        tokio::time::sleep(wait).await;
        return;
    }
    let end = Instant::now() + wait;
    loop {
        let begun = app.life.begun();
        let left = end.saturating_duration_since(Instant::now());
        tokio::time::sleep(QUIET.min(left)).await;
        let quiet = app.life.begun() == begun && app.life.active() == 0;
        if quiet || Instant::now() >= end {
            return;
        }
    }
}

/// Stops listening and waits for the calls under way, up to `write_timeout`.
async fn drain(app: &App, closing: watch::Sender<bool>) {
    app.log
        .line(format_args!("No new connections allowed, draining: {} requests", app.life.active()));
    closing.send_replace(true);
    let _too_slow = tokio::time::timeout(app.config.answer_limit(), closing.closed()).await;
}

/// Asks the function to end, and makes it.
async fn stop(mut function: Function) {
    function.child_group.signal(Signal::SIGTERM);
    let asked = tokio::time::timeout(STOP_GRACE, &mut function.exit).await;
    if asked.is_err() {
        function.child_group.signal(Signal::SIGKILL);
    }
    last_lines(function.copiers).await;
}

async fn last_lines((stdout, stderr): Copiers) {
    let both = async { tokio::join!(stdout, OptionFuture::from(stderr)) };
    let _still_open = tokio::time::timeout(LAST_LINES, both).await;
}
