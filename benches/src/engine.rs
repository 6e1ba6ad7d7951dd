//! The engine's measurements: from nothing and from frozen to the first byte, and what many
//! functions cost that do nothing.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;
use updraft_engine::Engine;
use updraft_engine_local::RuntimeChoice;
use updraft_model::{FunctionId, annotations};
use updraft_tests::{Cloud, DataPlane, Repository, eventually};

use crate::load::{Target, paced, requests_per_second};
use crate::measure::{cloud_with_page, cpu_ticks, edge_target, resident_mib};
use crate::report::{Report, millis, percentile};

const MILLISECOND: Duration = Duration::from_millis(1);

/// A cloud that neither scales nor freezes what is measured.
const CALM: &str = "[scaler]\nfollow_load = false\nfreeze_after = \"0\"";

/// From nothing running to the whole first answer.
pub(crate) async fn cold_start(report: &mut Report, trials: usize) -> Result<()> {
    let (cloud, _repository, _) = cloud_with_page();
    let mut samples = cold_samples(&cloud, "bench-page", "/page", trials).await?;
    let (p50, p99) = (percentile(&mut samples, 50), percentile(&mut samples, 99));
    report.row(
        &format!("cold start, static binary, {trials} trials"),
        format!("p50 {}, p99 {}", millis(p50), millis(p99)),
        "p50 ≤ 12 ms, p99 ≤ 40 ms",
        Some(p50 <= 12 * MILLISECOND && p99 <= 40 * MILLISECOND),
    );
    let text = cloud.openfaas("GET", "/metrics", "").await.body;
    report.row("  its steps, mean", steps(&text), "", None);
    drop(cloud);

    let plane = DataPlane::start_with(RuntimeChoice::Runc).await;
    let id = plane.deploy("bench-runc", 1).await;
    let mut samples = cold_samples_inside(&plane, &id, trials / 4).await?;
    plane.stop().await;
    let (p50, p99) = (percentile(&mut samples, 50), percentile(&mut samples, 99));
    report.row(
        &format!("cold start with runc, static binary, {} trials", trials / 4),
        format!("p50 {}, p99 {}", millis(p50), millis(p99)),
        "p50 ≤ 30 ms",
        Some(p50 <= 30 * MILLISECOND),
    );

    let plane = DataPlane::start().await;
    let id = plane.deploy_with("bench-runsc", 1, &[(annotations::RUNTIME, "runsc")]).await;
    let mut samples = cold_samples_inside(&plane, &id, trials / 8).await?;
    let idle = plane.engine.usage(&id).await?;
    plane.stop().await;
    let (p50, p99) = (percentile(&mut samples, 50), percentile(&mut samples, 99));
    let memory = idle.map_or(0, |usage| usage.memory_bytes >> 20);
    report.row(
        &format!("cold start in gVisor, static binary, {} trials", trials / 8),
        format!("p50 {}, p99 {}; a replica takes {memory} MiB", millis(p50), millis(p99)),
        "",
        None,
    );

    let cloud = Cloud::start_with_base_images(&["debian", "python", "node"]);
    let token = cloud.token("bench");
    let repository = Repository::new();
    repository.copy_example("four-languages").commit("Four languages");
    repository.push(&cloud.git_url("bench", &token, "four")).expect_success();
    let stack = fs::read_to_string(repository.path().join("stack.yml"))?;
    let lines = stack.lines().zip(stack.lines().skip(1));
    let name = lines
        .filter(|(_, language)| language.trim() == "lang: python")
        .find_map(|(name, _)| name.trim().strip_suffix(':'))
        .context("the example has no function in Python")?;
    let (visible, path) = (format!("bench-{name}"), format!("/{name}"));
    let mut samples = cold_samples(&cloud, &visible, &path, trials / 4).await?;
    let (p50, p99) = (percentile(&mut samples, 50), percentile(&mut samples, 99));
    report.row(
        &format!("cold start, Python template, {} trials", trials / 4),
        format!("p50 {}, p99 {}", millis(p50), millis(p99)),
        "p50 ≤ 120 ms",
        Some(p50 <= 120 * MILLISECOND),
    );
    Ok(())
}

/// From nothing to the whole answer, through the data plane alone.
async fn cold_samples_inside(
    plane: &DataPlane,
    id: &FunctionId,
    trials: usize,
) -> Result<Vec<Duration>> {
    let mut samples = Vec::new();
    for _ in 0..trials {
        plane.engine.scale(id, 0).await?;
        eventually("the replica has gone", Duration::from_secs(20), async || {
            plane.engine.replicas(id).await.ok()?.is_empty().then_some(())
        })
        .await;
        let start = Instant::now();
        let answer = plane.call(id).await;
        anyhow::ensure!(answer.status == 200, "cold start: {} {}", answer.status, answer.body);
        samples.push(start.elapsed());
    }
    Ok(samples)
}

async fn cold_samples(
    cloud: &Cloud,
    visible: &str,
    path: &str,
    trials: usize,
) -> Result<Vec<Duration>> {
    let mut samples = Vec::new();
    for _ in 0..trials {
        let body = format!("{{\"serviceName\":\"{visible}\",\"replicas\":0}}");
        let route = format!("/system/scale-function/{visible}");
        let answer = cloud.openfaas("POST", &route, &body).await;
        anyhow::ensure!(answer.status == 202, "{}", answer.body);
        eventually("the replica has gone", Duration::from_secs(20), async || {
            let path = format!("/system/function/{visible}");
            let status = cloud.openfaas("GET", &path, "").await.json();
            status["availableReplicas"].is_null().then_some(())
        })
        .await;
        let start = Instant::now();
        let answer = cloud.get("bench.localhost", path).await;
        anyhow::ensure!(answer.status == 200, "cold start: {} {}", answer.status, answer.body);
        samples.push(start.elapsed());
    }
    Ok(samples)
}

/// The mean of each step of a start, from the server's own numbers.
fn steps(metrics: &str) -> String {
    let values = |suffix: &str| -> BTreeMap<&str, f64> {
        let start = format!("updraft_engine_start_seconds_{suffix}{{phase=\"");
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(start.as_str()));
        lines
            .filter_map(|line| line.split_once("\"} "))
            .filter_map(|(phase, value)| Some((phase, value.parse().ok()?)))
            .collect()
    };
    let (sums, counts) = (values("sum"), values("count"));
    let mean = |phase: &&str| {
        let count = counts.get(phase).copied().unwrap_or(0.0).max(1.0);
        format!("{phase} {:.2} ms", sums.get(phase).copied().unwrap_or(0.0) / count * 1000.0)
    };
    let order = ["image", "netns", "bundle", "mount", "runtime", "ready"];
    order.iter().map(mean).collect::<Vec<_>>().join(", ")
}

/// From a frozen replica to the whole first answer, through the data plane. As in real life the
/// connections to it were closed long before it was frozen.
pub(crate) async fn thaw(report: &mut Report, trials: usize) -> Result<()> {
    let plane = DataPlane::start_without_kept_connections().await;
    let id = plane.deploy("bench-thaw", 1).await;
    let mut samples = Vec::new();
    for _ in 0..trials {
        eventually("the function is frozen", Duration::from_secs(10), async || {
            plane.engine.freeze(&id).await.ok()?.then_some(())
        })
        .await;
        let start = Instant::now();
        let answer = plane.call(&id).await;
        anyhow::ensure!(answer.status == 200, "thaw: {} {}", answer.status, answer.body);
        samples.push(start.elapsed());
    }
    // What a call costs that comes after the same pause to a replica that was awake: processors
    // that have gone to sleep, and a new connection.
    let mut awake = Vec::new();
    for _ in 0..trials / 4 {
        tokio::time::sleep(5 * MILLISECOND).await;
        let start = Instant::now();
        let answer = plane.call(&id).await;
        anyhow::ensure!(answer.status == 200, "awake: {} {}", answer.status, answer.body);
        awake.push(start.elapsed());
    }
    plane.stop().await;
    let (p50, p99) = (percentile(&mut samples, 50), percentile(&mut samples, 99));
    report.row(
        &format!("thaw to the first answer, {trials} trials"),
        format!(
            "p50 {}, p99 {}; awake, after a pause, p50 {}",
            millis(p50),
            millis(p99),
            millis(percentile(&mut awake, 50))
        ),
        "p50 ≤ 0.5 ms, p99 ≤ 3 ms",
        Some(p50 <= MILLISECOND / 2 && p99 <= 3 * MILLISECOND),
    );
    Ok(())
}

/// What functions cost that are deployed and sleep.
pub(crate) async fn asleep(report: &mut Report, count: usize) -> Result<()> {
    let (mut cloud, _repository, _) = cloud_with_page();
    let body = "{\"serviceName\":\"bench-page\",\"replicas\":0}";
    cloud.openfaas("POST", "/system/scale-function/bench-page", body).await;
    let records = cloud.data_dir().join("engine/functions/openfaas-fn");
    let path = records.join("bench-page.json");
    let record =
        eventually("the record says that it sleeps", Duration::from_secs(10), async || {
            let record: serde_json::Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
            (record["replicas"] == 0).then_some(record)
        })
        .await;
    let resident = async |cloud: &mut Cloud| {
        cloud.signal(Signal::TERM);
        cloud.resume();
        // What the first calls build up is not the functions'.
        for _ in 0..20 {
            cloud.openfaas("GET", "/system/functions", "").await;
        }
        resident_mib(cloud.pid())
    };
    let before = resident(&mut cloud).await?;
    for number in 0..count {
        let mut record = record.clone();
        let name = format!("bench-sleeper-{number}");
        record["serving"]["spec"]["id"]["name"] = name.clone().into();
        fs::write(records.join(format!("{name}.json")), record.to_string())?;
    }
    let after = resident(&mut cloud).await?;
    let each = (after - before) * 1024.0 / count as f64;
    let mut samples = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        let answer = cloud.openfaas("GET", "/system/functions", "").await;
        samples.push(start.elapsed());
        let listed = answer.json().as_array().map_or(0, Vec::len);
        anyhow::ensure!(listed == count + 1, "{listed} functions are listed");
    }
    let list = percentile(&mut samples, 50);
    let ticks = cpu_ticks(cloud.pid())?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let percent = (cpu_ticks(cloud.pid())? - ticks) as f64 / 5.0;
    report.row(
        &format!("{count} functions asleep"),
        format!("list {}, {each:.1} KiB each, {percent:.2} % of a core", millis(list)),
        "list ≤ 50 ms, ≤ 20 KB each",
        Some(list <= 50 * MILLISECOND && each <= 20.0),
    );
    Ok(())
}

/// What functions cost that are frozen.
pub(crate) async fn frozen(report: &mut Report, count: usize) -> Result<()> {
    let plane = DataPlane::start().await;
    let mut ids = Vec::new();
    for number in 0..count {
        ids.push(plane.deploy(&format!("bench-frozen-{number}"), 1).await);
    }
    for id in &ids {
        eventually("the function is frozen", Duration::from_secs(10), async || {
            plane.engine.freeze(id).await.ok()?.then_some(())
        })
        .await;
    }
    let (before, _) = used(&plane, &ids).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (after, memory) = used(&plane, &ids).await?;
    plane.stop().await;
    let seconds = after - before;
    report.row(
        &format!("{count} functions frozen, 5 s"),
        format!(
            "{:.0} ms of processor time, {:.1} MiB of memory",
            seconds * 1000.0,
            memory as f64 / f64::from(1 << 20)
        ),
        "no processor time",
        Some(seconds < 0.001),
    );
    Ok(())
}

/// Processor seconds and bytes of all of them.
async fn used(plane: &DataPlane, ids: &[updraft_model::FunctionId]) -> Result<(f64, u64)> {
    let mut all = (0.0, 0);
    for id in ids {
        let usage = plane.engine.usage(id).await?.context("usage is not measured here")?;
        all = (all.0 + usage.cpu_seconds, all.1 + usage.memory_bytes);
    }
    Ok(all)
}

/// A page with shell scripts below it that work hard or misbehave, limited to half a processor.
fn push_scripts(cloud: &Cloud, repository: &Repository, owner: &str, name: &str) {
    let spin = "#!/busybox sh\necho 'Content-Type: text/plain'\necho\ni=0\n\
                while [ $i -lt 30000 ]; do i=$((i+1)); done\necho spun\n";
    let burn = "#!/busybox sh\necho 'Content-Type: text/plain'\necho\n\
                for i in 1 2 3 4; do (while :; do :; done) >/dev/null 2>&1 & done\necho burning\n";
    let fork = "#!/busybox sh\necho 'Content-Type: text/plain'\necho\n\
                bomb() { while :; do (sleep 1) & done; }\nbomb >/dev/null 2>&1 &\necho forking\n";
    let fill = "#!/busybox sh\necho 'Content-Type: text/plain'\necho\n\
                (while :; do dd if=/dev/zero of=/tmp/fill bs=1M count=60; done) >/dev/null 2>&1 &\necho filling\n";
    repository.copy_program("/bin/busybox", &format!("{name}/busybox"));
    for (script, text) in [("spin", spin), ("burn", burn), ("fork", fork), ("fill", fill)] {
        repository.write(&format!("{name}/www/cgi-bin/{script}"), text);
    }
    repository.write(&format!("{name}/www/index.html"), "page").write(
        &format!("{name}/Dockerfile"),
        "FROM scratch\nCOPY busybox /busybox\nCOPY busybox /bin/sleep\nCOPY busybox /bin/dd\n\
         COPY --chmod=755 www /www\nUSER 12000\n\
         CMD [\"/busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n",
    );
    let stack = format!(
        "version: 1.0\nprovider:\n  name: openfaas\nfunctions:\n  {name}:\n    \
         lang: dockerfile\n    handler: ./{name}\n    image: {name}:latest\n    \
         limits:\n      cpu: 500m\n      memory: 96Mi\n    annotations:\n      \
         com.openfaas.health.http.path: /index.html\n"
    );
    repository.write("stack.yml", stack).commit("Scripts");
    let token = cloud.token(owner);
    repository.push(&cloud.git_url(owner, &token, "scripts")).expect_success();
}

/// What a second replica adds to a function that only computes.
pub(crate) async fn shares(report: &mut Report) -> Result<()> {
    let cloud = Cloud::start_configured(CALM);
    let repository = Repository::new();
    push_scripts(&cloud, &repository, "bench", "busy");
    let target = Target { path: "/busy/cgi-bin/spin".to_owned(), ..edge_target(&cloud) };
    let mut rates = Vec::new();
    let mut processors = Vec::new();
    for replicas in [1, 2] {
        scale(&cloud, "bench-busy", replicas).await?;
        let time = Duration::from_secs(10);
        let (before, start) = (replicas_cpu_seconds(&cloud).await?, Instant::now());
        rates.push(requests_per_second(&target, 8, time).await?);
        let used = replicas_cpu_seconds(&cloud).await? - before;
        processors.push(used / start.elapsed().as_secs_f64());
    }
    let ratio = rates[1] / rates[0];
    report.row(
        "a function that computes, half a processor each",
        format!("1 replica {:.1}/s, 2 replicas {:.1}/s, ratio {ratio:.2}", rates[0], rates[1]),
        "≥ 1.8 × one",
        Some(ratio >= 1.8),
    );
    // Less than half a processor each: the machine had no more to give. More for each call: its
    // processors are slower when all of them work, as two threads of one core are.
    let cost = |run: usize| processors[run] / rates[run] * 1000.0;
    report.row(
        "  its processor time",
        format!(
            "{:.2} and {:.2} of a processor, {:.2} ms and {:.2} ms a call",
            processors[0],
            processors[1],
            cost(0),
            cost(1)
        ),
        "",
        None,
    );
    Ok(())
}

async fn scale(cloud: &Cloud, name: &str, replicas: u32) -> Result<()> {
    let body = format!("{{\"serviceName\":\"{name}\",\"replicas\":{replicas}}}");
    let route = format!("/system/scale-function/{name}");
    let answer = cloud.openfaas("POST", &route, &body).await;
    anyhow::ensure!(answer.status == 202, "{}", answer.body);
    let path = format!("/system/function/{name}");
    let listed = format!("/api/v1/replicas?function={name}");
    eventually("the replicas are as asked for", Duration::from_secs(30), async || {
        let status = cloud.openfaas("GET", &path, "").await.json();
        let ready = status["availableReplicas"].as_u64().unwrap_or(0);
        // Those that are to go run on for as long as they may take to end.
        let listed = cloud.openfaas("GET", &listed, "").await.json();
        let all = listed[0]["replicas"].as_array()?.len();
        (ready == u64::from(replicas) && all == replicas as usize).then_some(())
    })
    .await;
    Ok(())
}

/// Processor time of all replicas so far.
async fn replicas_cpu_seconds(cloud: &Cloud) -> Result<f64> {
    let text = cloud.openfaas("GET", "/metrics", "").await.body;
    let line = text.lines().find_map(|line| line.strip_prefix("updraft_engine_cpu_seconds_total "));
    Ok(line.context("the metrics tell no processor time")?.trim().parse()?)
}

/// A function beside one of another owner that burns processor time, forks and fills its memory.
pub(crate) async fn neighbour(report: &mut Report, time: Duration) -> Result<()> {
    let (cloud, _page, _) = cloud_with_page();
    let repository = Repository::new();
    push_scripts(&cloud, &repository, "mallory", "hostile");
    let target = edge_target(&cloud);
    let (mut before, mut during) = (Vec::new(), Vec::new());
    // In turn, the better of each: other work on the machine only slows down.
    for _ in 0..2 {
        scale(&cloud, "mallory-hostile", 0).await?;
        before.push(percentile(&mut paced(&target, 200, 4, time).await?, 99));
        scale(&cloud, "mallory-hostile", 1).await?;
        for misdeed in ["burn", "fork", "fill"] {
            let path = format!("/hostile/cgi-bin/{misdeed}");
            // Whether it still answers after that is its own affair: one that can start nothing any
            // more lets callers wait.
            let call = cloud.try_get("mallory.localhost", &path);
            drop(tokio::time::timeout(Duration::from_secs(2), call).await);
        }
        during.push(percentile(&mut paced(&target, 200, 4, time).await?, 99));
    }
    let rounds = |samples: &[Duration]| format!("{}, {}", millis(samples[0]), millis(samples[1]));
    let rounds = format!("rounds {} and {}", rounds(&before), rounds(&during));
    let (before, during) = (percentile(&mut before, 0), percentile(&mut during, 0));
    let moved = (during.as_secs_f64() / before.as_secs_f64() - 1.0) * 100.0;
    report.row(
        "a neighbour of a hostile function at 200/s",
        format!("p99 {} → {}, {moved:+.0} %; {rounds}", millis(before), millis(during)),
        "moved < 10 %",
        Some(moved < 10.0),
    );
    Ok(())
}
