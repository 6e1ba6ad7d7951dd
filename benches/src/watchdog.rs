//! The watchdog alone: what it costs in front of a server, and what starting a process for each
//! call costs beside doing only that.
//!
//! Everything that is measured runs on one core and the load comes from another, so that numbers of
//! one run can be compared. Parts that need a process of their own are this very program, started
//! with the name of a part.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use crate::load::{Target, requests_per_second_from};
use crate::measure::cpu_ticks;
use crate::report::Report;

/// The parts this program can be started as.
const HANDLER: &str = "part-handler";
const FORK_LOOP: &str = "part-fork-loop";
/// The core of what is measured, and that of everything else.
const MEASURED: &str = "0";
const OTHERS: &str = "1";
const CONNECTIONS: u32 = 32;
/// What an idle watchdog may hold.
const RESIDENT_KIB: u64 = 4096;

/// Plays a part if this process was started for one.
pub(crate) fn play_part() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, HANDLER, address] => serve(address.parse()?)?,
        [_, FORK_LOOP, millis] => fork_loop(Duration::from_millis(millis.parse()?))?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// All rows of the watchdog.
pub(crate) async fn watchdog(report: &mut Report, scale: usize) -> Result<()> {
    let time = Duration::from_secs(8) / u32::try_from(scale)?;
    mode_http(report, time).await?;
    forking(report, time).await
}

/// Requests per second through the watchdog beside those of the function called directly.
async fn mode_http(report: &mut Report, time: Duration) -> Result<()> {
    let direct_address = free_address()?;
    let direct = Part::start(MEASURED, HANDLER, &direct_address.to_string())?;
    wait_for(direct_address)?;

    let behind = free_address()?;
    let program = std::env::current_exe()?;
    let process = format!("taskset -c {OTHERS} {} {HANDLER} {behind}", program.display());
    let url = format!("http://{behind}");
    let variables = [("mode", "http"), ("fprocess", &process), ("upstream_url", &url)];
    let watchdog = Watchdog::start(&variables)?;
    let idle = watchdog.resident_kib()?;

    // Interleaved, the better of each. A core's worth of work is what counts: other work on the
    // machine takes wall time from both, but not from one alone.
    let (mut ours, mut bare) = (Rate::default(), Rate::default());
    for _ in 0..3 {
        bare = bare.better(load(direct_address, direct.process.id(), time / 2).await?);
        ours = ours.better(load(watchdog.address, watchdog.process.id(), time / 2).await?);
    }
    drop(direct);
    let ratio = ours.per_core_second / bare.per_core_second;
    report.row(
        &format!("watchdog, mode http, one core, {CONNECTIONS} connections"),
        format!("{ours}, the function alone {bare}, ratio {ratio:.2}"),
        "≥ 0.4 × the function alone",
        Some(ratio >= 0.4),
    );
    let loaded = watchdog.resident_kib()?;
    report.row(
        "watchdog, resident",
        format!("{idle} KiB idle, {loaded} KiB after the load"),
        "≤ 4 MB idle",
        Some(idle <= RESIDENT_KIB),
    );
    Ok(())
}

/// Processes per second in the forking modes beside a loop that only starts and awaits them.
async fn forking(report: &mut Report, time: Duration) -> Result<()> {
    let bare = bare_forks(time / 2)?;
    for mode in ["serializing", "streaming", "classic"] {
        let watchdog = Watchdog::start(&[("mode", mode), ("fprocess", "cat")])?;
        let rate = requests(watchdog.address, 4, time / 2).await?;
        report.row(
            &format!("watchdog, mode {mode}, `cat`, one core"),
            format!("{rate:.0}/s, a bare loop {bare:.0}/s, ratio {:.2}", rate / bare),
            "",
            None,
        );
    }
    Ok(())
}

fn bare_forks(time: Duration) -> Result<f64> {
    let output = Command::new("taskset")
        .args(["-c", MEASURED])
        .arg(std::env::current_exe()?)
        .args([FORK_LOOP, &time.as_millis().to_string()])
        .output()
        .context("cannot start taskset")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("the loop printed `{text}`"))
}

/// Starts `cat` again and again, as the forking modes do, with nothing around it.
fn fork_loop(time: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut started = 0_u32;
    while begun.elapsed() < time {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        drop(child.stdin.take());
        let mut output = Vec::new();
        if let Some(stdout) = &mut child.stdout {
            stdout.read_to_end(&mut output)?;
        }
        child.wait()?;
        started += 1;
    }
    writeln!(std::io::stdout(), "{}", f64::from(started) / begun.elapsed().as_secs_f64())?;
    Ok(())
}

/// The function: a small server that answers every request alike.
fn serve(address: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        loop {
            let (stream, _peer) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let service = service_fn(async |_: Request<hyper::body::Incoming>| {
                    let body = Full::new(Bytes::from_static(b"hello, world\n"));
                    Ok::<_, Infallible>(Response::new(body))
                });
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    eprintln!("the function: {error}");
                }
            });
        }
    })
}

/// A process that is ended when this is dropped.
struct Part {
    process: Child,
}

impl Part {
    fn start(core: &str, part: &str, argument: &str) -> Result<Self> {
        let process = Command::new("taskset")
            .args(["-c", core])
            .arg(std::env::current_exe()?)
            .args([part, argument])
            .spawn()
            .context("cannot start taskset")?;
        Ok(Self { process })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            eprintln!("cannot end a part: {error}");
        }
    }
}

/// A watchdog on its core; asked to end when dropped, so that it takes its function along.
struct Watchdog {
    process: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Watchdog {
    fn start(variables: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = free_address()?;
        let process = Command::new("taskset")
            .args(["-c", MEASURED])
            .arg(binary()?)
            .env("TMPDIR", folder.path())
            .env("port", address.port().to_string())
            .env("metrics_port", "0")
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start taskset")?;
        let watchdog = Self { process, address, folder };
        let lock_file = watchdog.folder.path().join(".lock");
        wait_until("the watchdog is healthy", || lock_file.is_file())?;
        Ok(watchdog)
    }

    fn resident_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        Ok(line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmRSS")?.parse()?)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let asked = Command::new("kill").args(["-INT", &self.process.id().to_string()]).status();
        if let Err(error) = asked.and_then(|_| self.process.wait()) {
            eprintln!("cannot end the watchdog: {error}");
        }
    }
}

/// The static binary that `updraft` carries: the newest that its build has left.
fn binary() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let builds = program.parent().context("no folder of this program")?.join("build");
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for build in std::fs::read_dir(&builds).with_context(|| format!("no {}", builds.display()))? {
        let targets = build?.path().join("out/watchdog");
        for target in std::fs::read_dir(targets).into_iter().flatten() {
            let binary = target?.path().join("release/fwatchdog");
            if let Ok(metadata) = binary.metadata() {
                found.push((metadata.modified()?, binary));
            }
        }
    }
    let newest = found.into_iter().max().map(|(_, path)| path);
    newest.with_context(|| format!("no watchdog below {}: build updraft first", builds.display()))
}

/// How many requests were answered.
#[derive(Debug, Default, Clone, Copy)]
struct Rate {
    /// In a second of the measured process's own time: what a whole core would serve.
    per_core_second: f64,
    /// In a second of the clock on the wall.
    per_second: f64,
}

impl Rate {
    fn better(self, other: Self) -> Self {
        if other.per_core_second > self.per_core_second { other } else { self }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0}/core s ({:.0}/s)", self.per_core_second, self.per_second)
    }
}

async fn load(address: SocketAddr, pid: u32, time: Duration) -> Result<Rate> {
    let before = cpu_ticks(pid)?;
    let begun = Instant::now();
    let per_second = requests(address, CONNECTIONS, time).await?;
    let took = begun.elapsed().as_secs_f64();
    // The kernel counts in hundredths of a second.
    let used = (cpu_ticks(pid)? - before) as f64 / 100.0;
    Ok(Rate { per_core_second: per_second * took / used.max(0.01), per_second })
}

async fn requests(address: SocketAddr, connections: u32, time: Duration) -> Result<f64> {
    let target = Target { address, host: "function.example".to_owned(), path: "/".to_owned() };
    let time = time.max(Duration::from_secs(1));
    requests_per_second_from(Some(OTHERS), &target, connections, time).await
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn wait_for(address: SocketAddr) -> Result<()> {
    wait_until("the function listens", || std::net::TcpStream::connect(address).is_ok())
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        if Instant::now() > end {
            bail!("waited in vain until {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
