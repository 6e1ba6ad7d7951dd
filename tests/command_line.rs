//! The command line as a person uses it: a function's life without git, and what is printed.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use updraft_tests::{Cloud, Repository, eventually, fixture};

#[tokio::test]
async fn a_new_function_is_pushed_called_and_removed_without_git() {
    let cloud = Cloud::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    cloud.run_ok(&["new", "--lang", "static", "--folder", path, "page"]);
    fs::write(folder.path().join("page/index.html"), "no forge").unwrap();

    let pushed = cloud.run_ok(&["push", "--owner", "alice", "--repo", "pages", path]);
    assert!(pushed.contains("alice.localhost"), "{pushed}");
    assert_eq!(cloud.get("alice.localhost", "/page").await.body, "no forge");
    assert_eq!(cloud.run_ok(&["invoke", "alice/page"]).trim(), "no forge");

    let list = cloud.run_ok(&["list"]);
    assert!(list.contains("alice") && list.contains("page"), "{list}");
    cloud.run_ok(&["remove", "alice/page"]);
    assert_eq!(cloud.get("alice.localhost", "/page").await.status, 404);
    assert_eq!(cloud.run(&["remove", "alice/page"]).code, Some(1));
}

#[tokio::test]
async fn what_a_stack_file_gets_wrong_in_scaling_and_schedules_is_told_by_push_and_list() {
    let cloud = Cloud::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    cloud.run_ok(&["new", "--lang", "static", "--folder", path, "page"]);
    let stack = folder.path().join("stack.yml");
    let text = fs::read_to_string(&stack).unwrap().replace(
        "handler: ./page\n",
        "handler: ./page\n    labels:\n      com.openfaas.scale.type: happiness\n    \
         annotations:\n      topic: cron-function\n      schedule: now and then\n",
    );
    assert!(text.contains("now and then"), "{text}");
    fs::write(&stack, text).unwrap();
    let pushed = cloud.run_ok(&["push", "--owner", "alice", "--repo", "pages", path]);
    let listed = cloud.run_ok(&["list"]);
    for (told, text) in [("push", &pushed), ("list", &listed)] {
        for part in
            ["warning: ", "`com.openfaas.scale.type` cannot be `happiness`", "`now and then`"]
        {
            assert!(text.contains(part), "{told} without {part}:\n{text}");
        }
    }
    assert_eq!(cloud.get("alice.localhost", "/page").await.status, 200, "it runs all the same");
}

#[tokio::test]
async fn a_failed_push_of_the_working_tree_exits_with_one() {
    let cloud = Cloud::start();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("stack.yml"), "functions: 1\n").unwrap();
    let path = folder.path().to_str().unwrap();
    let push = cloud.run(&["push", "--owner", "alice", "--repo", "pages", path]);
    assert_eq!(push.code, Some(1), "{}", push.stdout);
    assert!(format!("{}{}", push.stdout, push.stderr).contains("stack.yml"));
}

#[tokio::test]
async fn what_a_function_writes_is_followed() {
    let cloud = Cloud::start();
    let token = cloud.token("demo");
    let repository = Repository::new();
    let entry = fixture::binary(&repository, "web", "logged");
    let dockerfile = fs::read_to_string(repository.path().join("web/Dockerfile")).unwrap();
    repository.write("web/Dockerfile", dockerfile.replace("\"-f\"", "\"-f\", \"-vv\""));
    fixture::stack(&repository, &[entry]);
    repository.commit("Log");
    repository.push(&cloud.git_url("demo", &token, "web")).expect_success();

    let mut follower = Command::new(updraft_tests::binary())
        .arg("--data-dir")
        .arg(cloud.data_dir())
        .args(["logs", "--follow", "demo/web"])
        .stdin(Stdio::null())
        .stdout(fs::File::create(repository.path().join("followed")).unwrap())
        .spawn()
        .unwrap();
    assert_eq!(cloud.get("demo.localhost", "/web/index.html?mark=4711").await.body, "logged");
    eventually("the request is in the log", Duration::from_secs(20), async || {
        let followed = fs::read_to_string(repository.path().join("followed")).ok()?;
        (!followed.is_empty()).then_some(())
    })
    .await;
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[tokio::test]
async fn secrets_are_set_listed_by_name_and_unset() {
    let cloud = Cloud::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "s3cr3t-canary").unwrap();
    cloud.token("alice");
    let path = file.path().to_str().unwrap();
    cloud.run_ok(&["secrets", "set", "--owner", "alice", "api-key", "--from-file", path]);
    let listed = cloud.run_ok(&["secrets", "list", "--owner", "alice"]);
    assert!(listed.contains("api-key") && !listed.contains("s3cr3t"), "{listed}");
    cloud.run_ok(&["secrets", "unset", "--owner", "alice", "api-key"]);
    assert!(!cloud.run_ok(&["secrets", "list", "--owner", "alice"]).contains("api-key"));
    assert!(!cloud.server_log().contains("s3cr3t-canary"));
}

#[tokio::test]
async fn a_revoked_token_opens_nothing() {
    let cloud = Cloud::start();
    let token = cloud.token("alice");
    let push = |token: &str| {
        let repository = Repository::new();
        let page = fixture::site(&repository, "page", "pushed");
        fixture::stack(&repository, &[page]);
        repository.commit("Page");
        repository.push(&cloud.git_url("alice", token, "pages"))
    };
    push(&token).expect_success();
    let tokens = cloud.json(&["token", "list", "--owner", "alice"]);
    assert!(!tokens.to_string().contains(&token), "a token is shown once");
    let id = tokens[0]["id"].to_string();
    cloud.run_ok(&["token", "revoke", id.trim_matches('"')]);
    push(&token).expect_failure();
}

#[test]
fn completion_scripts_name_the_commands() {
    let output =
        Command::new(updraft_tests::binary()).args(["completion", "bash"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("rollback"));
}

#[test]
fn a_command_without_a_server_says_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(updraft_tests::binary())
        .arg("--data-dir")
        .arg(folder.path())
        .arg("list")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("updraft up"), "{stderr}");
}
