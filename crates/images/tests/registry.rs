//! Images from a real registry that asks who somebody is.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

use updraft_images::testing::{TEST_HTTP, TestRegistry, TestStore};
use updraft_images::{ImageError, RegistryCredentials};

fn quiet(_: &str) {}

fn credentials(text: &str) -> RegistryCredentials {
    RegistryCredentials::parse(text.as_bytes()).unwrap()
}

/// Files with credentials that lie around.
fn auth_files(run_root: &Path) -> usize {
    fs::read_dir(run_root.join("updraft-auth")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_private_image_is_fetched_with_the_right_credentials_and_no_others() {
    let (source, made) = TestStore::with_test_image().await;
    let registry = TestRegistry::start(source.folder());
    let image = registry.push(&source, TEST_HTTP, "private/app:1").await;
    let test = TestStore::online().await;
    let store = test.store();

    let refused = store.ensure(&image, &quiet).await.unwrap_err();
    assert!(matches!(refused, ImageError::Refused { known: false, .. }), "{refused}");
    assert!(refused.to_string().contains("`updraft.pull-secret`"), "{refused}");
    let wrong = credentials(&registry.wrong_credentials());
    let refused = store.ensure_as(&image, Some(&wrong), &quiet).await.unwrap_err();
    assert!(matches!(refused, ImageError::Refused { known: true, .. }), "{refused}");
    assert!(!refused.to_string().contains("tunafish"), "{refused}");
    assert_eq!(store.resolve(&image).await.unwrap(), None);

    let right = credentials(&registry.credentials());
    let fetched = store.ensure_as(&image, Some(&right), &quiet).await.unwrap();
    assert_eq!(fetched.config.cmd, made.config.cmd);
    assert!(store.mount(&fetched).await.unwrap().join("test-http").is_file());
    assert_eq!(auth_files(store.run_root()), 0);

    let absent = format!("{}/private/none:1", registry.address()).parse().unwrap();
    let missing = store.ensure_as(&absent, Some(&right), &quiet).await.unwrap_err();
    assert!(matches!(missing, ImageError::Missing { .. }), "{missing}");
    let pinned =
        format!("{}/private/app@{}", registry.address(), "sha256:".to_owned() + &"0".repeat(64));
    let missing = store.ensure_as(&pinned.parse().unwrap(), Some(&right), &quiet).await;
    assert!(missing.is_err());
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_told() {
    let test = TestStore::online().await;
    // Nobody listens on the first port.
    let image = "127.0.0.1:1/x:1".parse().unwrap();
    let missing = test.store().ensure(&image, &quiet).await.unwrap_err();
    assert!(matches!(missing, ImageError::Missing { .. }), "{missing}");
    assert!(missing.to_string().contains("connection refused"), "{missing}");
}
