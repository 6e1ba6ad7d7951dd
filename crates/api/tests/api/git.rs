//! The door of the git endpoint, with real git.

use std::path::Path;
use std::process::Output;

use tokio::process::Command;

use crate::harness::{Host, PASSWORD};

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
    let folder = host.folder.path().join("work");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("file"), "content").unwrap();
    for arguments in [&["init", "-q", "-b", "main"][..], &["add", "."], &["commit", "-qm", "One"]] {
        let output = git(&folder, arguments).await;
        assert!(output.status.success(), "{output:?}");
    }
    folder
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
    assert!(pushed.status.success() && shown.contains("seen by the sink"), "{shown}");
    let admin = url(&host, "admin", PASSWORD, "bob/site.git");
    assert!(git(&work, &["push", &admin, "main"]).await.status.success());
    let pushes: Vec<_> = {
        let pushes = host.sink.0.lock().unwrap();
        pushes.iter().map(|push| format!("{}/{}", push.owner, push.repository)).collect()
    };
    assert_eq!(pushes, ["alice/site", "bob/site"]);
    assert!(git(&work, &["clone", "-q", &own, "again"]).await.status.success());
    assert!(work.join("again/file").is_file());
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
    assert_eq!(host.sink.0.lock().unwrap().len(), 1);
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
    assert!(host.sink.0.lock().unwrap().is_empty());
}
