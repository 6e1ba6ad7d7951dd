//! The server is asked to end while it is busy: it ends soon, in order and with exit code 0.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use updraft_tests::{Cloud, Repository, eventually, fixture};

const LIMIT: Duration = Duration::from_secs(30);

/// How long a busy server may take to end.
const END_LIMIT: Duration = Duration::from_secs(15);

/// A cloud with the page `page`, the URL its repository is pushed to, and that repository.
fn cloud_with_page() -> (Cloud, String, Repository) {
    let cloud = Cloud::start();
    let token = cloud.token("demo");
    let url = cloud.git_url("demo", &token, "site");
    let repository = Repository::new();
    let page = fixture::site(&repository, "page", "steady");
    fixture::stack(&repository, &[page]);
    repository.commit("Steady");
    repository.push(&url).expect_success();
    (cloud, url, repository)
}

/// Ends the server; it must end well and soon.
fn end(cloud: &mut Cloud, signal: Signal) {
    let begin = Instant::now();
    assert_eq!(cloud.signal(signal), Some(0), "{}", cloud.server_log());
    assert!(begin.elapsed() < END_LIMIT, "it took {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_ends_does_not_hold_up_the_end() {
    let (mut cloud, ..) = cloud_with_page();
    for signal in [Signal::TERM, Signal::INT] {
        let mut stream = TcpStream::connect(cloud.address()).await.unwrap();
        let head = "POST /page HTTP/1.1\r\nhost: demo.localhost\r\ncontent-length: 1000000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&[b'x'; 1000]).await.unwrap();
        end(&mut cloud, signal);
        // The connection is over, with or without an answer.
        let mut rest = Vec::new();
        let over = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
        assert!(over.is_ok(), "the connection hangs");
        cloud.resume();
        assert_eq!(cloud.get("demo.localhost", "/page").await.body, "steady");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_under_way_is_told_of_the_end_and_goes_on_after_the_start() {
    let (mut cloud, url, repository) = cloud_with_page();
    for (round, signal) in [Signal::TERM, Signal::INT].into_iter().enumerate() {
        let text = format!("slow {round}");
        let page = fixture::site(&repository, "page", &text);
        let slow = fixture::binary(&repository, "slow", &text);
        let dockerfile =
            std::fs::read_to_string(repository.path().join("slow/Dockerfile")).unwrap();
        let run = format!("RUN [\"/busybox\", \"sleep\", \"3{round}\"]\nUSER");
        repository.write("slow/Dockerfile", dockerfile.replace("USER", &run));
        fixture::stack(&repository, &[page, slow]);
        repository.commit(&text);
        let pushing = tokio::task::spawn_blocking({
            let folder = repository.path().to_owned();
            let url = url.clone();
            move || Command::new("git").current_dir(folder).args(["push", &url, "main"]).output()
        });
        eventually("the build runs", LIMIT, async || {
            let is_building = cloud.newest_push_state().as_deref() == Some("building");
            let runs =
                cloud.traces().of_kind("process ").iter().any(|line| line.contains("buildah"));
            (is_building && runs).then_some(())
        })
        .await;
        end(&mut cloud, signal);
        let push = pushing.await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&push.stderr).into_owned();
        assert!(!push.status.success(), "git must not be told that it is live: {said}");

        // Nobody wants to wait for it: what is pushed next takes its place.
        cloud.resume();
        assert_eq!(cloud.newest_push_state().as_deref(), Some("building"));
        let page = fixture::site(&repository, "page", "steady");
        fixture::stack(&repository, &[page]);
        repository.commit("Steady again");
        repository.push(&url).expect_success();
        assert_eq!(cloud.get("demo.localhost", "/page").await.body, "steady");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_ends_at_once_and_the_next_start_tidies_up() {
    let (mut cloud, ..) = cloud_with_page();
    let mut stream = TcpStream::connect(cloud.address()).await.unwrap();
    let head = "POST /page HTTP/1.1\r\nhost: demo.localhost\r\ncontent-length: 1000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let pid = i32::try_from(cloud.pid()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    eventually("it stops", LIMIT, async || cloud.server_log().contains("stopping").then_some(()))
        .await;
    let begin = Instant::now();
    let code = cloud.signal(Signal::INT);
    // It may have been done already.
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
    assert!(begin.elapsed() < Duration::from_secs(2), "it took {:?}", begin.elapsed());
    cloud.resume();
    assert_eq!(cloud.get("demo.localhost", "/page").await.body, "steady");
}
