//! What goes wrong is told clearly, and nothing is lost: what ran before goes on serving.

use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use updraft_tests::{Cloud, Repository, fixture};

/// A cloud in which `demo/page` says `steady`, and the repository it came from.
fn cloud_with_page() -> (Cloud, Repository, String) {
    let cloud = Cloud::start();
    let token = cloud.token("demo");
    let url = cloud.git_url("demo", &token, "site");
    let repository = Repository::new();
    let page = fixture::site(&repository, "page", "steady");
    fixture::stack(&repository, &[page]);
    repository.commit("Steady");
    repository.push(&url).expect_success();
    (cloud, repository, url)
}

/// Pushes what is wrong; the push must fail and say each of `words`, and the page must go on.
async fn refused(cloud: &Cloud, repository: &Repository, url: &str, words: &[&str]) {
    repository.commit("Something is wrong");
    let push = repository.push(url).expect_failure();
    for word in words {
        assert!(push.output.contains(word), "`{word}` is not in: {}", push.output);
    }
    assert_eq!(cloud.get("demo.localhost", "/page").await.body, "steady");
}

#[tokio::test]
async fn an_unknown_template_is_answered_with_the_nearest_one() {
    let (cloud, repository, url) = cloud_with_page();
    let stack = std::fs::read_to_string(repository.path().join("stack.yml")).unwrap();
    repository.write("stack.yml", stack.replace("lang: static", "lang: pyton"));
    refused(&cloud, &repository, &url, &["pyton", "python"]).await;
}

#[tokio::test]
async fn a_broken_stack_file_is_shown_at_its_line() {
    let (cloud, repository, url) = cloud_with_page();
    repository.write(
        "stack.yml",
        "version: 1.0\nprovider:\n  name: openfaas\nfunctions:\n  page:\n    lang: [static\n",
    );
    refused(&cloud, &repository, &url, &["stack.yml:", "lang: [static"]).await;
}

#[tokio::test]
async fn a_handler_outside_the_repository_is_refused() {
    let (cloud, repository, url) = cloud_with_page();
    let stack = std::fs::read_to_string(repository.path().join("stack.yml")).unwrap();
    repository.write("stack.yml", stack.replace("handler: ./page", "handler: ../../etc"));
    refused(&cloud, &repository, &url, &["stack.yml:7", "../../etc"]).await;
}

#[tokio::test]
async fn a_symlink_out_of_the_repository_is_refused() {
    let (cloud, repository, url) = cloud_with_page();
    symlink("/etc/passwd", repository.path().join("page/passwd")).unwrap();
    refused(&cloud, &repository, &url, &["passwd"]).await;
}

#[tokio::test]
async fn a_file_of_a_gigabyte_is_refused_with_the_limit() {
    let (cloud, repository, url) = cloud_with_page();
    let big = std::fs::File::create(repository.path().join("page/big")).unwrap();
    big.set_len(1 << 30).unwrap();
    refused(&cloud, &repository, &url, &["page/big", "1 GiB", "128 MiB are allowed"]).await;
}

#[tokio::test]
async fn a_hundred_thousand_files_are_refused_with_the_limit() {
    let (cloud, repository, url) = cloud_with_page();
    for folder in 0..100 {
        for file in 0..1000 {
            repository.write(&format!("page/{folder}/{file}"), "");
        }
    }
    refused(&cloud, &repository, &url, &["20000"]).await;
}

#[tokio::test]
async fn an_owner_who_could_be_mistaken_for_another_is_refused() {
    let (cloud, ..) = cloud_with_page();
    let refusal = cloud.run(&["token", "create", "--owner", "demo-page"]);
    assert_eq!(refusal.code, Some(1));
    assert!(refusal.stderr.contains("demo"), "{}", refusal.stderr);
    let reserved = cloud.run(&["token", "create", "--owner", "system"]);
    assert_eq!(reserved.code, Some(1));
    assert!(reserved.stderr.contains("reserved"), "{}", reserved.stderr);
}

#[tokio::test]
async fn a_function_of_another_repository_is_not_taken_over() {
    let (cloud, _, first_url) = cloud_with_page();
    let second = Repository::new();
    let page = fixture::site(&second, "page", "usurper");
    fixture::stack(&second, &[page]);
    let url = first_url.replace("/site.git", "/other.git");
    refused(&cloud, &second, &url, &["page", "site"]).await;
}

#[tokio::test]
async fn a_push_to_another_owners_repository_is_refused() {
    let (cloud, repository, _) = cloud_with_page();
    let mallory = cloud.token("mallory");
    let own_name = format!("http://mallory:{mallory}@{}/git/demo/site.git", cloud.address());
    refused(&cloud, &repository, &own_name, &[]).await;
    let false_name = format!("http://demo:{mallory}@{}/git/demo/site.git", cloud.address());
    refused(&cloud, &repository, &false_name, &[]).await;
    let nobody = format!("http://{}/git/demo/site.git", cloud.address());
    refused(&cloud, &repository, &nobody, &[]).await;
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let output =
        updraft(folder.path()).args(["up", "--no-example", "--listen", &address]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&address) && stderr.contains("--listen"), "{stderr}");
}

#[test]
fn a_second_server_on_one_data_directory_is_kept_out() {
    let mut cloud = Cloud::start();
    let second = cloud.run(&["up", "--no-example", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert!(second.stderr.contains("another Updraft runs on"), "{}", second.stderr);
    assert!(second.stderr.contains("--data-dir"), "{}", second.stderr);
    assert!(cloud.runs(), "the first goes on");
}

#[test]
fn a_configuration_that_is_wrong_is_shown_with_the_right_word() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("updraft.toml");
    std::fs::write(&config, "[build]\nparalel = 2\n").unwrap();
    let refused = |arguments: &[&str]| {
        let mut command = updraft(&folder.path().join("data"));
        let output = command
            .args(["up", "--no-example", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        stderr
    };
    let stderr = refused(&["--config", config.to_str().unwrap()]);
    assert!(stderr.contains("line 2") && stderr.contains("did you mean `parallel`?"), "{stderr}");
    let stderr = refused(&["--config", "/not/there.toml"]);
    assert!(stderr.contains("/not/there.toml"), "{stderr}");
    let stderr = refused(&["--root", "not a name"]);
    assert!(stderr.contains("not a name"), "{stderr}");
    assert!(!folder.path().join("data").exists(), "nothing was touched");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        let mounted = Command::new("mount").args(arguments).arg(folder.path()).status();
        assert!(mounted.unwrap().success(), "a read-only file system can be mounted");
    };
    mount(&["-t", "tmpfs", "-o", "ro", "updraft-test"]);
    let data_dir = folder.path().join("data");
    let output =
        updraft(&data_dir).args(["up", "--no-example", "--listen", "127.0.0.1:0"]).output();
    let unmounted = Command::new("umount").arg(folder.path()).status();
    let output = output.unwrap();
    assert!(unmounted.unwrap().success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(data_dir.to_str().unwrap()), "{stderr}");
    assert!(stderr.to_lowercase().contains("read-only"), "{stderr}");
}

#[test]
fn without_root_it_says_so_and_touches_nothing() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let binary = updraft_tests::binary();
    let copy = folder.path().join("updraft");
    std::fs::copy(binary, &copy).unwrap();
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["up", "--no-example", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(folder.path().join("data"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("root"), "{stderr}");
    assert!(!folder.path().join("data").exists());
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("bin");
    std::fs::create_dir(&programs).unwrap();
    for program in ["/usr/bin/git", "/usr/bin/crun", "/usr/sbin/nft"] {
        let name = std::path::Path::new(program).file_name().unwrap();
        symlink(program, programs.join(name)).unwrap();
    }
    let output = updraft(&folder.path().join("data"))
        .args(["up", "--no-example", "--listen", "127.0.0.1:0"])
        .env("PATH", &programs)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("apt-get install buildah"), "{stderr}");
}

#[test]
fn wrong_usage_exits_with_two() {
    let folder = tempfile::tempdir().unwrap();
    let output = updraft(folder.path()).arg("no-such-command").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn a_full_disk_fails_the_push_and_nothing_else() {
    let mut cloud = Cloud::on_a_disk_of(1 << 30);
    cloud.try_resume(&["--no-example"]).unwrap();
    let token = cloud.token("demo");
    let url = cloud.git_url("demo", &token, "site");
    let repository = Repository::new();
    let page = fixture::site(&repository, "page", "steady");
    fixture::stack(&repository, &[page]);
    repository.commit("Steady");
    repository.push(&url).expect_success();

    let filler = cloud.data_dir().join("filler");
    std::fs::write(&filler, vec![1; 900 << 20]).unwrap();
    repository.write("page/index.html", "no room");
    refused(&cloud, &repository, &url, &["disk"]).await;

    std::fs::remove_file(&filler).unwrap();
    repository.write("page/index.html", "room again").commit("Room again");
    repository.push(&url).expect_success();
    assert_eq!(cloud.get("demo.localhost", "/page").await.body, "room again");
}

fn updraft(data_dir: &std::path::Path) -> Command {
    let mut command = Command::new(updraft_tests::binary());
    command.arg("--data-dir").arg(data_dir).stdin(Stdio::null());
    command
}
