//! Functions whose image a registry gives to those it knows only.

use std::sync::Arc;
use std::time::Duration;

use updraft_engine::{Engine, EngineError, SecretValue, Wake};
use updraft_engine_local::{LocalEngine, RuntimeChoice};
use updraft_images::testing::{TEST_HTTP, TestRegistry, TestStore};
use updraft_model::{FunctionId, FunctionSpec, annotations};

use crate::harness::{Instance, answer};

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_runs_with_the_secret_that_its_function_names() {
    let (source, _) = TestStore::with_test_image().await;
    let registry = TestRegistry::start(source.folder());
    let image = registry.push(&source, TEST_HTTP, "private/app:1").await;
    let images = TestStore::online().await;
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = LocalEngine::open(instance.options.clone(), Arc::new(images.store()));
    let engine = engine.await.unwrap();
    let id = FunctionId::in_default("private".parse().unwrap());
    let mut spec = FunctionSpec::new(id.clone(), image);
    let limit = Duration::from_secs(30);

    // Without a word about credentials it is told what to do.
    let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    let error = engine.wait_ready(&id, revision, limit).await.unwrap_err();
    assert!(error.to_string().contains("updraft.pull-secret"), "{error}");

    // A secret that is not there, or is none for this, is told before anything is done.
    spec.annotations.insert(annotations::PULL_SECRET.to_owned(), "registry".to_owned());
    let error = engine.apply(spec.clone(), Wake::Keep).await.unwrap_err();
    assert!(matches!(error, EngineError::MissingSecrets { .. }), "{error}");
    let name = "registry".parse().unwrap();
    engine.create_secret(&id.namespace, &name, SecretValue::new("user:pw")).await.unwrap();
    let error = engine.apply(spec.clone(), Wake::Keep).await.unwrap_err();
    assert!(matches!(error, EngineError::Invalid(_)), "{error}");

    // A wrong password is told with the function, and put right by the secret alone.
    let wrong = SecretValue::new(registry.wrong_credentials());
    engine.update_secret(&id.namespace, &name, wrong).await.unwrap();
    let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    let error = engine.wait_ready(&id, revision, limit).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(!error.to_string().contains("tunafish"), "{error}");
    let right = SecretValue::new(registry.credentials());
    engine.update_secret(&id.namespace, &name, right).await.unwrap();
    let revision = engine.apply(spec, Wake::Keep).await.unwrap();
    engine.wait_ready(&id, revision, limit).await.unwrap();
    let address = engine.endpoints().borrow()[&id].ready[0].address;
    assert!(!answer(address, "/").await.is_empty());

    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}
