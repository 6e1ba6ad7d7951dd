//! The measurements, one function each.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use updraft_tests::{Cloud, Repository, eventually, fixture};

use crate::load::{Client, Target, paced, requests_per_second};
use crate::nginx::Nginx;
use crate::report::{Report, millis, percentile};

const MILLISECOND: Duration = Duration::from_millis(1);

/// A cloud with one function, `bench-page`, whose replica is the watchdog itself.
pub(crate) fn cloud_with_page() -> (Cloud, Repository, String) {
    // What is measured is one replica, some of the time past the server.
    let cloud = Cloud::start_configured("[scaler]\nfollow_load = false\nfreeze_after = \"0\"");
    let token = cloud.token("bench");
    let repository = Repository::new();
    let page = fixture::site(&repository, "page", "measured");
    fixture::stack(&repository, &[page]);
    repository.commit("Measure");
    let url = cloud.git_url("bench", &token, "page");
    repository.push(&url).expect_success();
    (cloud, repository, url)
}

/// From the start of `git push` to the first answer of the new release.
pub(crate) async fn push(report: &mut Report, pushes: usize) -> Result<()> {
    let (cloud, repository, url) = cloud_with_page();
    let mut samples = Vec::new();
    for number in 0..pushes {
        let text = format!("push number {number}");
        repository.write("page/index.html", &text).commit("Change");
        let start = Instant::now();
        let mut git = repository.start_push(&url);
        eventually("the pushed page answers", Duration::from_secs(30), async || {
            let answer = cloud.try_get("bench.localhost", "/page").await.ok()?;
            (answer.body == text).then_some(())
        })
        .await;
        samples.push(start.elapsed());
        git.wait()?;
    }
    let (p50, p95) = (percentile(&mut samples, 50), percentile(&mut samples, 95));
    report.row(
        &format!("push → live, {pushes} pushes"),
        format!("p50 {}, p95 {}", millis(p50), millis(p95)),
        "p50 ≤ 2 s, aim 1 s",
        Some(p50 <= Duration::from_secs(2)),
    );
    Ok(())
}

/// What edge and invoke add to a call of a warm replica at half of what the edge can serve, and
/// what nginx adds at the same rate.
pub(crate) async fn overhead(report: &mut Report, scale: usize) -> Result<()> {
    let (cloud, _repository, _) = cloud_with_page();
    let through_edge = edge_target(&cloud);
    let direct = replica_target(&cloud)?;
    let time = Duration::from_secs(12) / u32::try_from(scale)?;
    let capacity = requests_per_second(&through_edge, 50, Duration::from_secs(3)).await?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
    let half = ((capacity / 2.0) as u32).clamp(100, 20_000);
    let nginx = Nginx::start(direct.address)?;
    let through_nginx = Target { address: nginx.address(), ..direct.clone() };
    let mut direct_samples = paced(&direct, half, 8, time).await?;
    let mut nginx_samples = paced(&through_nginx, half, 8, time).await?;
    let mut edge_samples = paced(&through_edge, half, 8, time).await?;
    drop(nginx);
    let mut added = |samples: &mut [Duration], percent| {
        percentile(samples, percent).saturating_sub(percentile(&mut direct_samples, percent))
    };
    let (p50, p99) = (added(&mut edge_samples, 50), added(&mut edge_samples, 99));
    let (nginx_p50, nginx_p99) = (added(&mut nginx_samples, 50), added(&mut nginx_samples, 99));
    report.row(
        &format!("added to a warm call at {half}/s"),
        format!(
            "p50 {}, p99 {}; by nginx p50 {}, p99 {}",
            millis(p50),
            millis(p99),
            millis(nginx_p50),
            millis(nginx_p99)
        ),
        "p50 ≤ 0.1 ms, p99 ≤ 0.5 ms",
        Some(p50 <= MILLISECOND / 10 && p99 <= MILLISECOND / 2),
    );

    // One request at a time shows the way alone, without waiting behind others.
    let (mut direct, mut edge) =
        (Client::connect(&direct).await?, Client::connect(&through_edge).await?);
    let (mut direct_samples, mut edge_samples) = (Vec::new(), Vec::new());
    for _ in 0..4000 / scale {
        direct_samples.push(direct.get().await?);
        edge_samples.push(edge.get().await?);
    }
    let added =
        percentile(&mut edge_samples, 50).saturating_sub(percentile(&mut direct_samples, 50));
    report.row(
        "added to a warm call, one at a time",
        format!("p50 {}", millis(added)),
        "p50 ≤ 0.1 ms",
        Some(added <= MILLISECOND / 10),
    );
    Ok(())
}

/// Requests per second through the edge beside nginx in front of the same replica.
pub(crate) async fn throughput(report: &mut Report, scale: usize) -> Result<()> {
    let (cloud, _repository, _) = cloud_with_page();
    let through_edge = edge_target(&cloud);
    let direct = replica_target(&cloud)?;
    let nginx = Nginx::start(direct.address)?;
    let through_nginx = Target { address: nginx.address(), ..direct.clone() };
    let time = Duration::from_secs(8) / u32::try_from(scale)?;
    let bare = requests_per_second(&direct, 50, time).await?;
    report.row("the replica alone, 50 connections", format!("{bare:.0}/s"), "", None);
    for connections in [50, 500] {
        // Two interleaved rounds, the better of each: other work on the machine only slows down.
        let (mut ours, mut theirs) = (0_f64, 0_f64);
        for _ in 0..2 {
            theirs = theirs.max(requests_per_second(&through_nginx, connections, time).await?);
            ours = ours.max(requests_per_second(&through_edge, connections, time).await?);
        }
        report.row(
            &format!("proxy throughput, {connections} connections"),
            format!("{ours:.0}/s, nginx {theirs:.0}/s, ratio {:.2}", ours / theirs),
            "≥ 1.0 × nginx",
            Some(ours >= theirs),
        );
    }
    Ok(())
}

/// What the whole cloud costs while nothing happens.
pub(crate) async fn idle(report: &mut Report) -> Result<()> {
    let (cloud, _repository, _) = cloud_with_page();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = cpu_ticks(cloud.pid())?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let percent = (cpu_ticks(cloud.pid())? - before) as f64 / 10.0;
    let resident = resident_mib(cloud.pid())?;
    report.row(
        "idle, one function deployed",
        format!("{resident:.1} MiB resident, {percent:.2} % of a core"),
        "≤ 40 MB, ≤ 0.5 %",
        Some(resident <= 38.1 && percent <= 0.5),
    );
    Ok(())
}

/// Memory for each of many open connections that have made one call and now rest.
pub(crate) async fn connections(report: &mut Report, wanted: usize) -> Result<()> {
    let (cloud, _repository, _) = cloud_with_page();
    let target = edge_target(&cloud);
    // One for the caller and one for the replica, and some for the rest of the platform.
    let count = wanted.min((open_files(cloud.pid())?.saturating_sub(1024)) / 2);
    // What the first calls build up is not the connections'.
    let mut first = Client::connect(&target).await?;
    for _ in 0..1000 {
        first.get().await?;
    }
    let before = resident_mib(cloud.pid())?;
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let client = Client::connect(&target).await;
        let mut client = client.context("raise the limit of open files to measure this")?;
        client.get().await?;
        clients.push(client);
    }
    let each = (resident_mib(cloud.pid())? - before) * 1024.0 / count as f64;
    report.row(
        &format!("{count} open connections, idle"),
        format!("{each:.1} KiB each"),
        "flat",
        None,
    );
    // They are all still served.
    for client in clients.iter_mut().step_by(100) {
        client.get().await?;
    }
    Ok(())
}

/// How many files a process may have open.
fn open_files(pid: u32) -> Result<usize> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    soft.and_then(|soft| soft.parse().ok()).context("unreadable limits")
}

pub(crate) fn edge_target(cloud: &Cloud) -> Target {
    Target {
        address: cloud.address(),
        host: format!("bench.localhost:{}", cloud.address().port()),
        path: "/page".to_owned(),
    }
}

/// The one replica of the function, without anything of ours in between.
fn replica_target(cloud: &Cloud) -> Result<Target> {
    let replicas = cloud.json(&["list"]);
    let address = replicas[0]["ready"][0]["address"]
        .as_str()
        .with_context(|| format!("no replica in {replicas}"))?;
    let address: SocketAddr = address.parse()?;
    Ok(Target { address, host: "bench.localhost".to_owned(), path: "/".to_owned() })
}

/// User and system time of a process so far, in hundredths of a second.
pub(crate) fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("unreadable /proc stat")?;
    let ticks = |index: usize| fields.split(' ').nth(index).and_then(|field| field.parse().ok());
    let (user, system): (Option<u64>, Option<u64>) = (ticks(11), ticks(12));
    Ok(user.context("no user time")? + system.context("no system time")?)
}

pub(crate) fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 =
        line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmRSS")?.parse()?;
    Ok(kib / 1024.0)
}
