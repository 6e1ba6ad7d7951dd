//! Functions in gVisor: who gets it, what of it is on the machine, and what it is refused for.
//! That it keeps what everybody is promised is the conformance suite's to say.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use updraft_engine::{Engine, EngineError, Wake};
use updraft_engine_local::{GvisorPlatform, LocalEngine, RuntimeChoice};
use updraft_model::{FunctionSpec, Namespace, ResourceSet, Sandbox, annotations};

use crate::harness::{Instance, answer, until};
use crate::hostile::{deploy, owned};

/// A function that asks for gVisor.
fn asking(owner: &str) -> FunctionSpec {
    let mut spec = owned(owner);
    spec.annotations.insert(annotations::RUNTIME.into(), "runsc".into());
    spec
}

/// What kernel a function believes to run on.
async fn kernel(address: SocketAddr) -> String {
    answer(address, "/read/proc/version").await
}

/// What the engine's status says of gVisor.
fn found(engine: &LocalEngine) -> String {
    let facts = engine.status().facts;
    facts.into_iter().find(|fact| fact.subject == "gVisor").unwrap().found
}

/// The groups of the instance's replicas in the freezer or, with version 2, everywhere.
fn groups(instance: &Instance) -> Vec<PathBuf> {
    let name = format!("updraft-{}", instance.options.instance);
    let trees = ["freezer", ""].map(|tree| Path::new("/sys/fs/cgroup").join(tree).join(&name));
    let tenants = trees.into_iter().flat_map(fs::read_dir).flatten().flatten();
    let tenants = tenants.filter(|entry| entry.file_name().to_string_lossy().contains("tenant-"));
    let replicas = tenants.flat_map(|tenant| fs::read_dir(tenant.path())).flatten().flatten();
    replicas.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Processes in the instance's groups.
fn processes(instance: &Instance) -> Vec<u32> {
    let lists = groups(instance).into_iter().map(|group| group.join("cgroup.procs"));
    let lists = lists.map(|list| fs::read_to_string(list).unwrap_or_default());
    lists.flat_map(|list| list.lines().map(|id| id.parse().unwrap()).collect::<Vec<_>>()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_or_its_tenant_asks_for_a_kernel_of_its_own_and_gets_it() {
    let mut instance = Instance::new(RuntimeChoice::Detect).await;
    instance.options.sandboxes.of.insert("owner/carol".parse().unwrap(), Sandbox::Gvisor);
    let engine = instance.open().await;
    let machines = fs::read_to_string("/proc/version").unwrap();
    let plain = deploy(&engine, &owned("alice")).await;
    assert_eq!(kernel(plain).await, machines);
    for spec in [asking("bob"), owned("carol")] {
        let own = kernel(deploy(&engine, &spec).await).await;
        assert_ne!(own, machines, "{}", spec.id);
        assert!(own.starts_with("Linux version "), "{own}");
    }
    assert!(found(&engine).starts_with("runsc version "), "{}", found(&engine));
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_sandbox_is_the_machines_root_and_nothing_of_it_stays() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let spec = asking("alice");
    let address = deploy(&engine, &spec).await;
    assert_eq!(answer(address, "/").await, "hello");
    let status = answer(address, "/read/proc/self/status").await;
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:"] {
        let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
        assert_eq!(u64::from_str_radix(line.trim(), 16), Ok(0), "{set}");
    }
    let inside = processes(&instance);
    assert!(inside.len() >= 2, "the sandbox and who holds its files: {inside:?}");
    for process in inside {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let users = status.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default();
        assert!(!users.split('\t').any(|user| user == "0"), "{process} has {users}");
    }
    engine.remove(&spec.id).await.unwrap();
    let kept = instance.options.run.join("runtime/runsc");
    until("nothing is left of the sandbox", async || {
        groups(&instance).is_empty() && fs::read_dir(&kept).unwrap().next().is_none()
    })
    .await;
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_goes_on_without_updraft_and_is_taken_over_as_it_is() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let spec = asking("alice");
    let address = deploy(&engine, &spec).await;
    assert_eq!(answer(address, "/write/tmp/mark").await, "");
    engine.shutdown().await;
    drop(engine);
    assert_eq!(answer(address, "/read/tmp/mark").await, "written");
    let engine = instance.open().await;
    assert_eq!(engine.endpoints().borrow()[&spec.id].ready[0].address, address);
    assert_eq!(answer(address, "/read/tmp/mark").await, "written");
    // It was not tried: nobody asked for a start.
    assert!(found(&engine).starts_with("installed"), "{}", found(&engine));
    engine.scale(&spec.id, 0).await.unwrap();
    until("all of it has ended", async || processes(&instance).is_empty()).await;
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_not_installed_is_refused_with_what_to_do() {
    let mut instance = Instance::new(RuntimeChoice::Detect).await;
    instance.options.gvisor_program = "updraft-runsc-of-nobody";
    let engine = instance.open().await;
    let refused = engine.apply(asking("alice"), Wake::Keep).await.unwrap_err();
    assert!(matches!(refused, EngineError::Invalid(_)), "{refused:?}");
    let told = refused.to_string();
    assert!(told.contains("install it") && told.contains("updraft.runtime"), "{told}");
    assert!(found(&engine).contains("not installed"), "{}", found(&engine));
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_does_not_work_is_told_and_nothing_runs_without() {
    let mut instance = Instance::new(RuntimeChoice::Detect).await;
    // A program that knows its version and nothing else.
    instance.options.gvisor_program = "nft";
    instance.options.gvisor_platform = GvisorPlatform::Ptrace;
    instance.options.sandboxes.of_all = Sandbox::Gvisor;
    let engine = instance.open().await;
    let refused = engine.apply(owned("alice"), Wake::Keep).await.unwrap_err();
    assert!(refused.to_string().contains("does not work on this machine"), "{refused}");
    let facts = engine.status().facts;
    let fact = facts.iter().find(|fact| fact.subject == "gVisor").unwrap();
    assert!(fact.degraded.as_deref().is_some_and(|told| told.contains("refused")), "{fact:?}");
    assert!(engine.list(&Namespace::default()).await.unwrap().is_empty());
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_file_that_could_not_be_seen_is_refused() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let mut spec = asking("alice");
    spec.annotations.insert(annotations::PROBE.into(), "lock".into());
    let refused = engine.apply(spec.clone(), Wake::Keep).await.unwrap_err();
    assert!(matches!(refused, EngineError::Invalid(_)), "{refused:?}");
    assert!(refused.to_string().contains("lock file"), "{refused}");
    // With a path to ask nothing is looked for inside.
    spec.annotations.insert(annotations::HEALTH_PATH.into(), "/_/health".into());
    assert_eq!(answer(deploy(&engine, &spec).await, "/").await, "hello");
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_takes_too_much_memory_is_ended_and_told() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let mut spec = asking("alice");
    let memory = Some("32Mi".parse().unwrap());
    spec.limits = Some(ResourceSet { memory, ..ResourceSet::default() });
    let address = deploy(&engine, &spec).await;
    assert_eq!(answer(address, "/memory/8").await, "2048");
    // Its answer never comes.
    let bomb = tokio::spawn(async move { answer(address, "/memory/256").await });
    until("it is told", async || {
        let status = engine.get(&spec.id).await.unwrap().unwrap();
        status.message.is_some_and(|message| message.contains("memory"))
    })
    .await;
    bomb.abort();
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}
