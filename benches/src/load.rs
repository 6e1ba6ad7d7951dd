//! Load on an HTTP server: as fast as it goes (`wrk`), or at a fixed rate on kept connections.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::process::Command;

/// Where requests go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    pub(crate) path: String,
}

/// Requests per second that `wrk` gets answered with so many connections.
pub(crate) async fn requests_per_second(
    target: &Target,
    connections: u32,
    time: Duration,
) -> Result<f64> {
    requests_per_second_from(None, target, connections, time).await
}

/// The same with the load coming from one core where one is given.
pub(crate) async fn requests_per_second_from(
    core: Option<&str>,
    target: &Target,
    connections: u32,
    time: Duration,
) -> Result<f64> {
    let mut command = Command::new(if core.is_some() { "taskset" } else { "wrk" });
    if let Some(core) = core {
        command.args(["-c", core, "wrk"]);
    }
    let output = command
        .args(["--threads", "1", "--connections", &connections.to_string()])
        .args(["--duration", &format!("{}s", time.as_secs())])
        .args(["--header", &format!("Host: {}", target.host)])
        .arg(format!("http://{}{}", target.address, target.path))
        .output()
        .await
        .context("cannot start wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("wrk saw failures on {}: {text}", target.address);
    }
    text.lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"))
        .and_then(|number| number.trim().parse().ok())
        .with_context(|| format!("wrk printed no rate: {text}"))
}

/// One kept connection.
pub(crate) struct Client {
    sender: SendRequest<Empty<Bytes>>,
    target: Target,
}

impl Client {
    /// Connects.
    pub(crate) async fn connect(target: &Target) -> Result<Self> {
        let stream = tokio::net::TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, target: target.clone() })
    }

    /// Sends one GET and reads the whole answer; returns how long that took.
    pub(crate) async fn get(&mut self) -> Result<Duration> {
        let request = hyper::Request::builder()
            .uri(self.target.path.as_str())
            .header("host", self.target.host.as_str())
            .body(Empty::new())?;
        let start = Instant::now();
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        answer.into_body().collect().await?;
        if !status.is_success() {
            bail!("{} answered {status}", self.target.path);
        }
        Ok(start.elapsed())
    }
}

/// Latencies of requests at a fixed rate, spread over kept connections. A request that should
/// have started earlier counts from then, so that a stall is not hidden.
pub(crate) async fn paced(
    target: &Target,
    per_second: u32,
    connections: u32,
    time: Duration,
) -> Result<Vec<Duration>> {
    let interval = Duration::from_secs(1) * connections / per_second;
    let start = Instant::now() + Duration::from_millis(50);
    let clients = (0..connections).map(|index| {
        let target = target.clone();
        tokio::spawn(async move {
            let mut client = Client::connect(&target).await?;
            let mut due = start + interval * index / connections;
            let mut latencies = Vec::new();
            while due < start + time {
                tokio::time::sleep_until(due.into()).await;
                // The timer's own lateness is not the server's: it has millisecond steps.
                let woken = Instant::now();
                let late = woken.saturating_duration_since(due);
                let stall = late.saturating_sub(Duration::from_millis(2));
                latencies.push(stall + client.get().await?);
                due += interval;
            }
            anyhow::Ok(latencies)
        })
    });
    let mut all = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        all.extend(client.await??);
    }
    Ok(all)
}
