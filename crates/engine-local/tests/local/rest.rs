//! Functions that rest on this machine: what is remembered of them, and where their memory goes.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use updraft_engine::{Availability, Engine};
use updraft_engine_local::{LocalEngine, RuntimeChoice};
use updraft_model::FunctionId;

use crate::harness::{Instance, answer, until};
use crate::hostile::{deploy, owned};

async fn freeze(engine: &LocalEngine, id: &FunctionId) {
    until("the function is frozen", || async { engine.freeze(id).await.unwrap() }).await;
}

fn address(engine: &LocalEngine, id: &FunctionId) -> Option<SocketAddr> {
    Some(engine.endpoints().borrow()[id].ready.first()?.address)
}

/// Ends a function's only replica by its own hand and waits for the next one.
async fn crash(engine: &LocalEngine, id: &FunctionId) {
    let before = engine.get(id).await.unwrap().unwrap().restarts;
    let asked = tokio::spawn(answer(address(engine, id).unwrap(), "/exit/3"));
    asked.await.unwrap_err();
    until("another replica is ready", async || {
        let status = engine.get(id).await.unwrap().unwrap();
        status.restarts > before && status.available_replicas == 1
    })
    .await;
}

async fn is_in_trouble(engine: &LocalEngine, id: &FunctionId) -> bool {
    let status = engine.get(id).await.unwrap().unwrap();
    assert_eq!(status.trouble.is_some(), status.message.is_some());
    status.trouble.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_forgotten_by_doing_well_and_not_by_resting() {
    let mut instance = Instance::new(RuntimeChoice::Detect).await;
    instance.options.steady_after = Duration::from_secs(2);
    let engine = instance.open().await;
    let (resting, awake) = (owned("alice"), owned("bob"));
    deploy(&engine, &resting).await;
    deploy(&engine, &awake).await;
    // On a busy machine a function may have done well for long enough before it is frozen.
    loop {
        crash(&engine, &resting.id).await;
        freeze(&engine, &resting.id).await;
        if is_in_trouble(&engine, &resting.id).await {
            break;
        }
        engine.wake(&resting.id).await.unwrap();
    }
    // Whoever failed later and does well since is forgiven later than it would be.
    crash(&engine, &awake.id).await;
    until("the other's failure is forgotten", async || !is_in_trouble(&engine, &awake.id).await)
        .await;
    let frozen = engine.endpoints().borrow()[&resting.id].availability.clone();
    assert_eq!(frozen, Availability::Frozen);
    assert!(is_in_trouble(&engine, &resting.id).await);
    engine.wake(&resting.id).await.unwrap();
    until("it has done well", async || !is_in_trouble(&engine, &resting.id).await).await;
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}

/// Compressed memory of this machine as swap, for one test. Its label tells whose it is.
struct Swap(String);

const LABEL: &str = "updraft-";

fn run(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

impl Swap {
    /// Nothing where the kernel makes no such devices.
    fn new() -> Option<Self> {
        Self::clear_leftovers();
        let number = fs::read_to_string("/sys/class/zram-control/hot_add").ok()?;
        let swap = Self(format!("zram{}", number.trim()));
        let (name, device) = (swap.0.clone(), swap.device());
        let about = Path::new("/sys/block").join(name);
        fs::write(about.join("disksize"), "128M").unwrap();
        if !Path::new(&device).exists() {
            let numbers = fs::read_to_string(about.join("dev")).unwrap();
            let (major, minor) = numbers.trim().split_once(':').unwrap();
            run("mknod", &[&device, "b", major, minor]).unwrap();
        }
        let label = format!("{LABEL}{}", std::process::id());
        run("mkswap", &["--label", &label, &device]).unwrap();
        run("swapon", &[&device]).unwrap();
        Some(swap)
    }

    fn device(&self) -> String {
        format!("/dev/{}", self.0)
    }

    /// Takes away those of tests that were killed.
    fn clear_leftovers() {
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        let devices = swaps.lines().filter_map(|line| line.split_whitespace().next());
        for name in devices.filter_map(|device| device.strip_prefix("/dev/zram")) {
            let swap = Self(format!("zram{name}"));
            let told = run("swaplabel", &[&swap.device()]).unwrap_or_default();
            let owner = told.split(LABEL).nth(1).and_then(|told| told.split_whitespace().next());
            if owner.is_none_or(|owner| Path::new("/proc").join(owner).exists()) {
                std::mem::forget(swap);
            }
        }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        run("swapoff", &[&self.device()]);
        let number = self.0.trim_start_matches("zram");
        fs::write(Path::new("/sys/block").join(&self.0).join("reset"), "1").unwrap();
        fs::write("/sys/class/zram-control/hot_remove", number).unwrap();
    }
}

/// The first process of the only replica.
fn process(instance: &Instance) -> u64 {
    let replicas = instance.options.run.join("replicas");
    let folder = fs::read_dir(replicas).unwrap().next().unwrap().unwrap().path();
    let record = fs::read(folder.join("replica.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    record["process"][0].as_u64().unwrap()
}

/// How much of a process is in memory and in swap, in KiB.
fn sizes(pid: u64) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    (of("VmRSS:"), of("VmSwap:"))
}

/// The file that says how much swap a process may have, where the kernel counts that.
fn swap_limit(pid: u64) -> Option<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let root = Path::new("/sys/fs/cgroup");
    let files = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        match controllers {
            "" => Some(root.join(path).join("memory.swap.max")),
            "memory" => Some(root.join("memory").join(path).join("memory.memsw.limit_in_bytes")),
            _ => None,
        }
    });
    files.into_iter().find(|file| file.is_file())
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_of_a_function_that_rests_goes_to_swap_and_comes_back() {
    const HELD: u64 = 32 << 10;
    let swap = Swap::new();
    let mut instance = Instance::new(RuntimeChoice::Detect).await;
    instance.options.reclaim_after = Duration::from_millis(100);
    let engine = instance.open().await;
    let spec = owned("alice");
    let at = deploy(&engine, &spec).await;
    let pid = process(&instance);
    let facts = engine.status().facts;
    let told = facts.iter().find(|fact| fact.subject == "memory of frozen replicas").unwrap();
    let (Some(_swap), Some(limit)) = (swap, swap_limit(pid)) else {
        // A kernel that makes no compressed memory, or does not count the swap of groups.
        assert!(told.found.contains("stays in memory"), "{}", told.found);
        engine.shutdown().await;
        drop(engine);
        return instance.destroy().await;
    };
    assert!(told.found.contains("goes to swap"), "{}", told.found);
    assert_eq!(answer(at, &format!("/hold/{}", HELD >> 10)).await, (HELD << 10).to_string());
    assert!(sizes(pid).0 > HELD, "{:?}", sizes(pid));
    let allowed = fs::read_to_string(&limit).unwrap();
    freeze(&engine, &spec.id).await;
    until("its memory is in swap", async || sizes(pid).1 > HELD / 2).await;
    until("it may not swap again", async || fs::read_to_string(&limit).unwrap() == allowed).await;
    engine.wake(&spec.id).await.unwrap();
    until("it is awake", async || address(&engine, &spec.id) == Some(at)).await;
    assert_eq!(answer(at, "/count").await, (HELD << 10).to_string());
    assert_eq!(process(&instance), pid);
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}
