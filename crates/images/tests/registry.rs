//! Images from a real registry that asks who somebody is.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

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

/// Set in the process that plays a server on a machine with settings of its own.
const PLAYED: &str = "UPDRAFT_TEST_PLAYS_A_MACHINE";

/// Runs this test again in a process whose machine has these settings.
fn play(test: &str, part: &str, settings: &[(&str, &Path)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test]).env(PLAYED, part).envs(settings.iter().copied());
    let output = command.output().unwrap();
    let (said, warned) = (output.stdout, output.stderr);
    let told = [String::from_utf8_lossy(&said), String::from_utf8_lossy(&warned)].concat();
    assert!(output.status.success(), "{part}: {told}");
    assert!(told.contains("1 passed"), "{told}");
}

/// The image under a name of which no registry knows.
async fn fetched(name: &str) -> Result<(), ImageError> {
    let test = TestStore::online().await;
    test.store().ensure(&name.parse().unwrap(), &quiet).await.map(drop)
}

#[tokio::test]
async fn mirrors_blocked_registries_policies_and_logins_of_the_machine_count() {
    const NAME: &str = "mirrors_blocked_registries_policies_and_logins_of_the_machine_count";
    const MIRRORED: &str = "far.example/private/app:1";
    if let Ok(part) = std::env::var(PLAYED) {
        match part.as_str() {
            "all is well" => fetched(MIRRORED).await.unwrap(),
            "no login" => {
                let refused = fetched(MIRRORED).await.unwrap_err();
                assert!(refused.to_string().contains("far.example"), "{refused}");
            }
            "blocked" => {
                let refused = fetched("blocked.example/app:1").await.unwrap_err();
                assert!(refused.to_string().contains("blocked"), "{refused}");
            }
            "a policy" => {
                let refused = fetched(MIRRORED).await.unwrap_err();
                assert!(refused.to_string().contains("policy"), "{refused}");
            }
            other => panic!("{other}"),
        }
        return;
    }
    let (source, _) = TestStore::with_test_image().await;
    let registry = TestRegistry::start(source.folder());
    registry.push(&source, TEST_HTTP, "private/app:1").await;
    let folder = source.folder();
    let settings = folder.join("registries.conf");
    let address = registry.address();
    fs::write(
        &settings,
        format!(
            "[[registry]]\nprefix = \"far.example\"\nlocation = \"far.invalid\"\n\
             [[registry.mirror]]\nlocation = \"{address}\"\ninsecure = true\n\
             [[registry]]\nprefix = \"blocked.example\"\nlocation = \"{address}\"\n\
             blocked = true\n"
        ),
    )
    .unwrap();
    let (login, none) = (folder.join("auth.json"), folder.join("none.json"));
    fs::write(&login, registry.login()).unwrap();
    fs::write(&none, "{}").unwrap();
    let (home, strict) = (folder.join("home"), folder.join("strict"));
    fs::create_dir_all(&home).unwrap();
    fs::create_dir_all(strict.join(".config/containers")).unwrap();
    let policy = strict.join(".config/containers/policy.json");
    fs::write(policy, r#"{"default":[{"type":"reject"}]}"#).unwrap();
    for (part, login, home) in [
        ("all is well", &login, &home),
        ("no login", &none, &home),
        ("blocked", &login, &home),
        ("a policy", &login, &strict),
    ] {
        play(
            NAME,
            part,
            &[
                ("CONTAINERS_REGISTRIES_CONF", &settings),
                ("REGISTRY_AUTH_FILE", login),
                ("HOME", home),
            ],
        );
    }
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
