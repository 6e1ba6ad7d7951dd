//! Asynchronous calls: how many are taken, how soon they arrive, and none lost to `kill -9`.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use updraft_tests::images::alpine;
use updraft_tests::{Cloud, Nats, eventually};

use crate::report::{Report, millis, percentile};

const IMAGE: &str = "functions/alpine:latest";

/// Callers at once.
const CONNECTIONS: usize = 64;

/// Calls in one page of a list.
const PAGE: usize = 1000;

/// A cloud with the function `echo`, configured so.
async fn cloud(queue: &str) -> Result<Cloud> {
    let mut cloud = Cloud::start_with_images(&[alpine(&[IMAGE])], &[]);
    std::fs::write(cloud.data_dir().join("bench.toml"), format!("[queue]\n{queue}\n"))?;
    let function = json!({"service": "echo", "image": IMAGE, "envProcess": "cat"});
    let answer = cloud.openfaas("POST", "/system/functions", &function.to_string()).await;
    ensure!(matches!(answer.status, 200 | 202), "{}: {}", answer.status, answer.body);
    cloud.kill();
    start(&mut cloud)?;
    Ok(cloud)
}

fn start(cloud: &mut Cloud) -> Result<()> {
    let config = cloud.data_dir().join("bench.toml");
    cloud.try_resume(&["--no-example", "--config", config.to_str().context("a path is text")?])
}

/// One kept connection that submits calls.
struct Submitter(SendRequest<Full<Bytes>>);

impl Submitter {
    async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Submits a call and returns its id.
    async fn submit(&mut self, callback: Option<&str>, body: &Bytes) -> Result<String> {
        let mut request = Request::post("/async-function/echo").header("host", "127.0.0.1");
        if let Some(callback) = callback {
            request = request.header("x-callback-url", callback);
        }
        self.0.ready().await?;
        let response = self.0.send_request(request.body(Full::new(body.clone()))?).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        ensure!(head.status == 202, "{}: {}", head.status, String::from_utf8_lossy(&body));
        let id = head.headers.get("x-call-id").context("an accepted call has an id")?;
        Ok(id.to_str()?.to_owned())
    }
}

/// Submits until `enough`; returns the ids.
async fn flood(
    address: SocketAddr,
    body: Bytes,
    enough: impl Fn(usize) -> bool + Clone + Send + 'static,
) -> Result<Vec<String>> {
    let mut callers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (enough, body) = (enough.clone(), body.clone());
        callers.spawn(async move {
            let mut submitter = Submitter::connect(address).await?;
            let mut ids = Vec::new();
            while !enough(ids.len()) {
                ids.push(submitter.submit(None, &body).await?);
            }
            Ok::<_, anyhow::Error>(ids)
        });
    }
    let mut ids = Vec::new();
    for caller in callers.join_all().await {
        ids.extend(caller?);
    }
    Ok(ids)
}

/// Durable accepts a second, bodies of 1 KiB, while one call at a time is made: in the embedded
/// queue, and in a NATS server on the same cores.
pub(crate) async fn accepts(report: &mut Report, time: Duration) -> Result<()> {
    let embedded = accepted_a_second("concurrency = 1", time).await?;
    report.row(
        &format!("queue: durable accepts, 1 KiB, {CONNECTIONS} callers"),
        format!("{embedded:.0}/s"),
        "≥ 10 000/s",
        Some(embedded >= 10_000.0),
    );
    let nats = Nats::start();
    let config =
        format!("concurrency = 1\nbackend = 'nats'\n[queue.nats]\nservers = ['{}']", nats.url());
    let broker = accepted_a_second(&config, time).await?;
    report.row(
        "queue: the same, kept by NATS JetStream",
        format!("{broker:.0}/s ({:.2} × embedded)", broker / embedded),
        "no budget",
        None,
    );
    Ok(())
}

async fn accepted_a_second(config: &str, time: Duration) -> Result<f64> {
    let cloud = cloud(config).await?;
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
    });
    let begun = Instant::now();
    let enough = move |_| over.load(Ordering::Relaxed);
    let accepted = flood(cloud.address(), Bytes::from(vec![b'x'; 1024]), enough).await?;
    Ok(accepted.len() as f64 / begun.elapsed().as_secs_f64())
}

/// From the submission to the callback, one call at a time on an idle queue: the way through the
/// function and one exchange more.
pub(crate) async fn latency(report: &mut Report, calls: usize) -> Result<()> {
    let cloud = cloud("callback_allow = ['127.0.0.0/8']").await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let (tell, mut told) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            // A callback without a body comes in one piece.
            let read = stream.read(&mut request).await;
            let at = Instant::now();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            let answered = read.is_ok() && stream.write_all(answer).await.is_ok();
            if answered && tell.send(at).await.is_err() {
                return;
            }
        }
    });
    let mut submitter = Submitter::connect(cloud.address()).await?;
    let mut samples = Vec::new();
    for _ in 0..calls {
        let begun = Instant::now();
        submitter.submit(Some(&url), &Bytes::new()).await?;
        let at = tokio::time::timeout(Duration::from_secs(30), told.recv()).await?;
        samples.push(at.context("the receiver has ended")?.duration_since(begun));
    }
    let (p50, p99) = (percentile(&mut samples, 50), percentile(&mut samples, 99));
    report.row(
        &format!("queue: submission to callback, idle, forking `cat`, {calls} calls"),
        format!("p50 {}, p99 {}", millis(p50), millis(p99)),
        "p50 ≤ 5 ms",
        Some(p50 <= Duration::from_millis(5)),
    );
    Ok(())
}

/// So many calls queued, the process killed five times while it makes them: each is made.
pub(crate) async fn kills(report: &mut Report, calls: usize) -> Result<()> {
    const KILLS: usize = 5;
    let mut cloud = cloud("keep_count = 1000000").await?;
    let left = Arc::new(AtomicUsize::new(calls));
    let one_less = |left: usize| left.checked_sub(1);
    let enough =
        move |_| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err();
    let accepted = flood(cloud.address(), Bytes::from(vec![b'x'; 1024]), enough).await?;
    let begun = Instant::now();
    for kill in 0..KILLS {
        let waiting = accepted.len() * (KILLS - kill) / (KILLS + 1);
        drained(&cloud, waiting as f64).await;
        cloud.kill();
        start(&mut cloud)?;
    }
    drained(&cloud, 0.0).await;
    let took = begun.elapsed();
    let (mut done, mut repeated) = (HashSet::new(), 0);
    let mut before = String::new();
    loop {
        let mut arguments = vec!["calls", "list", "--state", "done", "--limit", "1000"];
        if !before.is_empty() {
            arguments.extend(["--before", before.as_str()]);
        }
        let page = cloud.json(&arguments);
        let page: &[Value] = page.as_array().map_or(&[], Vec::as_slice);
        for call in page {
            done.insert(call["id"].as_str().unwrap_or_default().to_owned());
            repeated += usize::from(call["attempts"].as_u64() > Some(1));
        }
        before = page.last().map_or_else(String::new, |call| call["number"].to_string());
        if page.len() < PAGE {
            break;
        }
    }
    let lost = accepted.iter().filter(|id| !done.contains(*id)).count();
    report.row(
        &format!("queue: {} calls, killed -9 {KILLS} times", accepted.len()),
        format!("{lost} lost, {repeated} repeated with their id, {:.0} s", took.as_secs_f64()),
        "none lost",
        Some(lost == 0 && done.len() == accepted.len()),
    );
    Ok(())
}

/// Waits until no more than so many calls wait or run.
async fn drained(cloud: &Cloud, left: f64) {
    eventually("the calls are made", Duration::from_mins(30), async || {
        let metrics = cloud.openfaas("GET", "/metrics", "").await.body;
        let sum = |name: &str| -> f64 {
            let values = metrics.lines().filter(|line| line.starts_with(name));
            values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let waiting = sum("queue_worker_pending_messages{");
        let running = sum("queue_worker_function_invocation_inflight{");
        (waiting + running <= left).then_some(())
    })
    .await;
}
