//! Sealed secrets, whole: sealed with the command line, committed, pushed, read by a function; lost
//! with the machine and brought back from a backup; and their values nowhere else.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use updraft_tests::{Cloud, Repository};

const PASSWORD: &str = "c4nary-7f3a91-of-the-vault";

/// A function that shows every file it can read, `/var/openfaas/secrets` among them.
fn reader(repository: &Repository) {
    repository
        .copy_program("/bin/busybox", "reader/busybox")
        .write("reader/www/_/health", "OK")
        .write(
            "reader/Dockerfile",
            "FROM scratch\n\
             COPY busybox /busybox\n\
             COPY www /\n\
             USER 12000\n\
             EXPOSE 8080\n\
             CMD [\"/busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/\"]\n",
        )
        .write(
            "stack.yml",
            "version: 1.0\nprovider:\n  name: openfaas\nfunctions:\n  reader:\n    \
             lang: dockerfile\n    handler: ./reader\n    image: reader:latest\n    \
             secrets:\n      - vault\n",
        );
}

/// Seals the password into the repository's `secrets.yml` with the cloud's certificate.
fn seal(cloud: &Cloud, repository: &Repository) {
    let folder = tempfile::tempdir().unwrap();
    let value = folder.path().join("password");
    fs::write(&value, PASSWORD).unwrap();
    let file = format!("password={}", value.display());
    let output = repository.path().join("secrets.yml").display().to_string();
    cloud.run_ok(&["seal", "--name", "alice-vault", "--from-file", &file, "-o", &output]);
}

async fn shown(cloud: &Cloud) -> (u16, String) {
    let answer = cloud.get("alice.localhost", "/reader/var/openfaas/secrets/password").await;
    (answer.status, answer.body)
}

#[tokio::test]
async fn a_lost_machine_is_replaced_and_what_was_committed_opens_again() {
    let cloud = Cloud::start();
    let repository = Repository::new();
    reader(&repository);
    seal(&cloud, &repository);
    let committed = fs::read_to_string(repository.path().join("secrets.yml")).unwrap();
    assert!(committed.contains("kind: SealedSecret") && !committed.contains(PASSWORD));
    repository.commit("A function with a secret");
    repository.push(&cloud.git_url("alice", &cloud.token("alice"), "shop")).expect_success();
    assert_eq!(shown(&cloud).await, (200, PASSWORD.to_owned()));

    let safe = tempfile::tempdir().unwrap();
    let [passphrase, backup] =
        ["passphrase", "keys.age"].map(|name| safe.path().join(name).display().to_string());
    fs::write(&passphrase, "correct horse battery staple\n").unwrap();
    cloud.run_ok(&["keys", "backup", "--passphrase-file", &passphrase, &backup]);
    drop(cloud);

    let cloud = Cloud::start();
    let url = cloud.git_url("alice", &cloud.token("alice"), "shop");
    let push = repository.push(&url).expect_failure();
    assert!(push.output.contains("alice-vault not taken"), "{}", push.output);
    assert_ne!(shown(&cloud).await.0, 200);

    cloud.run_ok(&["keys", "restore", "--passphrase-file", &passphrase, &backup]);
    repository.write("README", "after the fire").commit("Push again");
    repository.push(&url).expect_success();
    assert_eq!(shown(&cloud).await, (200, PASSWORD.to_owned()));
}

#[tokio::test]
async fn a_value_is_found_nowhere_but_in_the_memory_of_its_function() {
    let cloud = Cloud::start();
    let repository = Repository::new();
    reader(&repository);
    seal(&cloud, &repository);
    repository.commit("A function with a secret");
    let url = cloud.git_url("alice", &cloud.token("alice"), "shop");
    let push = repository.push(&url).expect_success();
    cloud.run_ok(&["keys", "renew"]);
    cloud.run_ok(&["secrets", "set", "--owner", "alice", "by-hand", "--literal", PASSWORD_ITEM]);
    assert_eq!(shown(&cloud).await, (200, PASSWORD.to_owned()));

    let mut told = vec![push.output, cloud.server_log()];
    for words in [
        &["secrets", "list", "--owner", "alice"][..],
        &["secrets", "describe", "--owner", "alice", "vault"],
        &["secrets", "describe", "--owner", "alice", "by-hand"],
        &["list"],
        &["releases", "alice/reader"],
        &["replicas"],
        &["logs", "alice/reader"],
    ] {
        told.push(cloud.run_ok(&[&["--json"], words].concat()));
        told.push(cloud.run_ok(words));
    }
    for path in ["/system/functions", "/system/secrets", "/metrics"] {
        told.push(cloud.openfaas("GET", path, "").await.body);
    }
    let encoded = BASE64_STANDARD.encode(PASSWORD);
    for form in [PASSWORD, &encoded] {
        assert!(told.iter().all(|text| !text.contains(form)), "`{form}` was told");
        let found = files_with(&cloud.data_dir(), form);
        assert!(found.is_empty(), "`{form}` is in {found}");
    }
    let names = files_with(&cloud.data_dir(), "alice-vault");
    assert!(!names.is_empty(), "the search finds what is there");
}

/// The same value as an item, set by hand.
const PASSWORD_ITEM: &str = "password=c4nary-7f3a91-of-the-vault";

/// Names of the files below a folder that hold a text.
fn files_with(folder: &Path, text: &str) -> String {
    let found = Command::new("grep")
        .args(["--recursive", "--files-with-matches", "--text", "--fixed-strings", "--", text])
        .arg(folder)
        .output()
        .unwrap();
    // A file may go while it is read, which grep tells of and goes on.
    assert!(found.status.code().is_some());
    String::from_utf8(found.stdout).unwrap()
}
