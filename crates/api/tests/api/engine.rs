//! Replicas and the engine: who sees what of them.

use updraft_engine::{Engine, Wake};
use updraft_model::{FunctionId, FunctionSpec, labels};

use crate::harness::{Host, name, owner, refused};

async fn deployed(host: &Host, function: &str, of: Option<&str>) {
    let id = FunctionId::in_default(name(function));
    let mut spec = FunctionSpec::new(id, "localhost/x:1".parse().unwrap());
    if let Some(of) = of {
        spec.labels.insert(labels::GIT_OWNER.to_owned(), of.to_owned());
    }
    host.engine.apply(spec, Wake::Keep).await.unwrap();
}

#[tokio::test]
async fn owners_see_replicas_of_their_own_functions_alone() {
    let host = Host::start().await;
    deployed(&host, "alice-shop", Some("alice")).await;
    deployed(&host, "bob-shop", Some("bob")).await;
    deployed(&host, "figlet", None).await;
    let all = host.admin().replicas(None, None).await.unwrap();
    assert_eq!(all.len(), 3);
    let own = host.alice().replicas(None, None).await.unwrap();
    let functions: Vec<_> = own.iter().map(|function| function.function.as_str()).collect();
    assert_eq!(functions, ["alice-shop.openfaas-fn"]);
    assert_eq!((own[0].restarts, own[0].owner.clone()), (0, Some(owner("alice"))));
    for name in ["alice-shop", "alice-shop.openfaas-fn"] {
        assert_eq!(host.alice().replicas(None, Some(name)).await.unwrap().len(), 1);
    }
    refused(host.alice().replicas(None, Some("bob-shop")).await, 404, "no function");
    refused(host.alice().replicas(Some(&owner("bob")), None).await, 403, "may not act");
}

#[tokio::test]
async fn the_engine_is_told_to_the_administrator_alone() {
    let host = Host::start().await;
    let engine = host.admin().engine().await.unwrap();
    assert!(engine.facts.len() > 1);
    // What others found comes last.
    let builds = engine.facts.last().map(|fact| (fact.subject.as_str(), fact.degraded.as_deref()));
    assert_eq!(builds, Some(("builds", Some("as the test wants"))));
    refused(host.alice().engine().await, 403, "");
}
