//! The door of the git endpoint, with real git.

use std::path::Path;
use std::process::Output;

use tokio::process::Command;

use updraft_api::client::ListOptions;

use crate::harness::{Host, PASSWORD, name, owner};

/// A function that needs no build.
pub(crate) const STACK: &str =
    "functions:\n  page:\n    skip_build: true\n    image: localhost/page:1\n";

async fn git(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("git");
    command.args([
        "-c",
        "credential.helper=",
        "-c",
        "user.name=T",
        "-c",
        "user.email=t@example.com",
    ]);
    command.args(arguments).current_dir(folder).kill_on_drop(true);
    command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", folder);
    command.output().await.unwrap()
}

/// A repository with one commit.
async fn repository(host: &Host) -> std::path::PathBuf {
    let folder = host.folder.path().join("checkout");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("stack.yml"), STACK).unwrap();
    for arguments in [&["init", "-q", "-b", "main"][..], &["add", "."], &["commit", "-qm", "One"]] {
        let output = git(&folder, arguments).await;
        assert!(output.status.success(), "{output:?}");
    }
    folder
}

/// The pushes that were recorded, newest first.
async fn pushes(host: &Host) -> Vec<String> {
    let pushes = host.admin().pushes(&ListOptions::default()).await.unwrap();
    pushes.iter().map(|push| format!("{}/{}", push.owner, push.repository)).collect()
}

fn url(host: &Host, user: &str, secret: &str, repository: &str) -> String {
    let login = if user.is_empty() { String::new() } else { format!("{user}:{secret}@") };
    format!("http://{login}{}/git/{repository}", host.address)
}

#[tokio::test]
async fn an_owner_and_the_administrator_push_and_fetch() {
    let host = Host::start().await;
    let work = repository(&host).await;
    let own = url(&host, "alice", &host.alice_token, "alice/site.git");
    let pushed = git(&work, &["push", &own, "main"]).await;
    let shown = String::from_utf8_lossy(&pushed.stderr).into_owned();
    assert!(
        pushed.status.success() && shown.contains("http://alice.localhost:8080/page"),
        "{shown}"
    );
    let admin = url(&host, "admin", PASSWORD, "bob/site.git");
    assert!(git(&work, &["push", &admin, "main"]).await.status.success());
    assert_eq!(pushes(&host).await, ["bob/site", "alice/site"]);
    assert!(host.alice().function(&owner("alice"), &name("page")).await.unwrap().image.is_some());
    assert!(git(&work, &["clone", "-q", &own, "again"]).await.status.success());
    assert!(work.join("again/stack.yml").is_file());
}

#[tokio::test]
async fn a_repository_of_another_owner_is_closed_to_push_and_fetch() {
    let host = Host::start().await;
    let work = repository(&host).await;
    let admin = url(&host, "admin", PASSWORD, "bob/site.git");
    assert!(git(&work, &["push", "-q", &admin, "main"]).await.status.success());
    for (url, told) in [
        (
            url(&host, "alice", &host.alice_token, "bob/site.git"),
            "you are `alice` and have no access",
        ),
        (
            url(&host, "alice", &host.alice_token, "nobody/site.git"),
            "you are `alice` and have no access",
        ),
        (url(&host, "bob", &host.alice_token, "bob/site.git"), "wrong or revoked"),
        (url(&host, "", "", "bob/site.git"), ""),
    ] {
        for arguments in [&["push", &url, "main"][..], &["clone", &url, "copy"]] {
            let output = git(&work, arguments).await;
            let shown = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{shown}");
            assert!(shown.contains(told), "{shown}");
        }
    }
    assert_eq!(pushes(&host).await, ["bob/site"]);
}

#[tokio::test]
async fn names_that_cannot_be_are_not_found() {
    let host = Host::start().await;
    let work = repository(&host).await;
    for repository in ["alice/..git", "alice/%2e%2e.git", "Bad_Owner/site.git"] {
        let output =
            git(&work, &["push", &url(&host, "admin", PASSWORD, repository), "main"]).await;
        assert!(!output.status.success(), "{repository}");
    }
    assert!(pushes(&host).await.is_empty());
}
