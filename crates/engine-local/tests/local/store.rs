//! The engine on images of the real store.

use std::sync::Arc;
use std::time::Duration;

use updraft_engine::{Engine, Wake};
use updraft_engine_local::{LocalEngine, RuntimeChoice};
use updraft_images::testing::{TEST_HTTP, TestStore};
use updraft_model::{FunctionId, FunctionSpec};

use crate::harness::{Instance, answer};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_the_store_runs_and_its_revision_keeps_its_content() {
    let (images, image) = TestStore::with_test_image().await;
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let open = || LocalEngine::open(instance.options.clone(), Arc::new(images.store()));
    let engine = open().await.unwrap();
    let id = FunctionId::in_default("stored".parse().unwrap());
    let spec = FunctionSpec::new(id.clone(), TEST_HTTP.parse().unwrap());
    let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    engine.wait_ready(&id, revision, Duration::from_secs(30)).await.unwrap();
    let address = engine.endpoints().borrow()[&id].ready[0].address;
    assert!(!answer(address, "/").await.is_empty());
    engine.shutdown().await;
    drop(engine);

    let record = instance.options.state.join("functions/openfaas-fn/stored.json");
    let record = std::fs::read(record).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["serving"]["image"], image.id.to_string());
    // Everything stops, as at a reboot; the next start finds the image by its content.
    LocalEngine::destroy(&instance.options).await.unwrap();
    let engine = open().await.unwrap();
    engine.wait_ready(&id, revision, Duration::from_secs(30)).await.unwrap();
    assert_eq!(engine.apply(spec, Wake::AtLeastMinimum).await.unwrap(), revision);
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}
