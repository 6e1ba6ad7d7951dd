//! How the machine is shared out among tenants that all want more than there is.

use std::time::Duration;

use updraft_engine::{Engine, Wake};
use updraft_engine_local::RuntimeChoice;
use updraft_model::{FunctionId, FunctionSpec, labels};

use crate::harness::{Instance, answer, app, until};

/// Replicas of the tenant who wants much, and of the other. Either keeps two processors busy.
const MANY: u32 = 6;
const FEW: u32 = 2;

fn owned(owner: &str, replicas: u32) -> FunctionSpec {
    let name = format!("{owner}-busy").parse().unwrap();
    let mut spec = FunctionSpec::new(FunctionId::in_default(name), app());
    spec.labels.insert(labels::GIT_OWNER.into(), owner.into());
    spec.labels.insert("com.openfaas.scale.min".into(), replicas.to_string());
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_more_replicas_gets_no_more_of_the_processor() {
    if std::thread::available_parallelism().unwrap().get() > FEW as usize {
        // More processors than a tenant with few replicas can use: nobody has to share.
        eprintln!("this machine has too many processors to be short of them");
        return;
    }
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
