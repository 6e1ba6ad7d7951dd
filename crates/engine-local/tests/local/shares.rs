//! How the machine is shared out among tenants that all want more than there is.

use std::fs;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use updraft_engine::{Engine, Wake};
use updraft_engine_local::RuntimeChoice;
use updraft_model::{FunctionId, FunctionSpec, labels};

use crate::harness::{Instance, answer, app, until};

/// Replicas of the tenant who wants much, and of the other.
const MANY: u32 = 6;
const FEW: u32 = 2;

fn owned(owner: &str, replicas: u32) -> FunctionSpec {
    let name = format!("{owner}-busy").parse().unwrap();
    let mut spec = FunctionSpec::new(FunctionId::in_default(name), app());
    spec.labels.insert(labels::GIT_OWNER.into(), owner.into());
    spec.labels.insert("com.openfaas.scale.min".into(), replicas.to_string());
    spec
}

/// Puts all replicas on one and the same processor, so that they have to share it on every machine
/// and no balancing between processors comes into it.
fn share_one_processor(instance: &Instance) {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    for folder in fs::read_dir(instance.options.run.join("replicas")).unwrap().flatten() {
        let record = fs::read_to_string(folder.path().join("replica.json")).unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        let tasks = fs::read_dir(format!("/proc/{}/task", record["process"][0])).unwrap();
        for task in tasks.flatten() {
            let task = task.file_name().into_string().unwrap().parse().unwrap();
            // What answers the probes may have ended meanwhile; what spins is begun by the first.
            let _ = sched_setaffinity(Pid::from_raw(task), &one);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_more_replicas_gets_no_more_of_the_processor() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let mut addresses = Vec::new();
    let specs = [owned("greedy", MANY), owned("modest", FEW)];
    for (spec, replicas) in specs.iter().zip([MANY, FEW]) {
        let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
        engine.wait_ready(&spec.id, revision, Duration::from_secs(30)).await.unwrap();
        until("all replicas are ready", || async {
            engine.endpoints().borrow()[&spec.id].ready.len() == replicas as usize
        })
        .await;
        let table = engine.endpoints().borrow().clone();
        addresses.extend(table[&spec.id].ready.iter().map(|endpoint| endpoint.address));
    }
    share_one_processor(&instance);
    let used = async || {
        let mut both = [0.0; 2];
        for (used, spec) in both.iter_mut().zip(&specs) {
            *used = engine.usage(&spec.id).await.unwrap().unwrap().cpu_seconds;
        }
        both
    };
    let before = used().await;
    let calls: Vec<_> = addresses
        .into_iter()
        .map(|address| tokio::spawn(async move { answer(address, "/spin/6000").await }))
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    let now = used().await;
    let [greedy, modest] = [now[0] - before[0], now[1] - before[1]];
    // By replicas it would be a quarter.
    let share = modest / (greedy + modest);
    assert!(share > 0.38, "{modest:.2} s of {greedy:.2} s and {modest:.2} s");
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}
