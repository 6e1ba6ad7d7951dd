//! What the endpoint refuses, and how it says so.

use std::io::Write;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use updraft_source::git::{GitAccess, PushVerdict};

use crate::house::{BOUND, House, Reaction, run, stderr};

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}

/// Sends raw bytes, reads the whole answer.
async fn raw(house: &House, request: &[u8]) -> String {
    let talk = async {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::time::timeout(BOUND, talk).await.expect("the server must answer")
}

fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} /git/alice/shop.git/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

const RECEIVE: &str = "content-type: application/x-git-receive-pack-request\r\n";

#[tokio::test]
async fn a_push_larger_than_allowed_is_refused_with_its_reason() {
    let house = House::with(|options| options.max_push_bytes = 1024 * 1024).await;
    house.commit("noise", &noise(3 * 1024 * 1024)).await;
    let pushed = house.push(&["main"]).await;
    let text = stderr(&pushed);
    assert_eq!(pushed.status.code(), Some(1), "{text}");
    assert!(text.contains("remote: the push is larger than 1 MiB"), "{text}");
    assert!(text.contains("! [remote rejected] main -> main (the push is larger"), "{text}");
    house.assert_no_leftovers().await;
    assert!(house.pushes().is_empty());

    house.ok(&["rm", "-q", "noise"]).await;
    house.ok(&["commit", "-q", "--amend", "--allow-empty", "-m", "small"]).await;
    let pushed = house.push(&["main"]).await;
    assert!(pushed.status.success(), "{}", stderr(&pushed));
}

#[tokio::test]
async fn a_repository_larger_than_allowed_takes_no_more() {
    let house = House::with(|options| options.max_repository_bytes = 2 * 1024 * 1024).await;
    house.commit("one", &noise(1536 * 1024)).await;
    assert!(house.push(&["main"]).await.status.success());
    house.commit("two", &noise(1024 * 1024)).await;
    let pushed = house.push(&["main"]).await;
    let text = stderr(&pushed);
    assert_eq!(pushed.status.code(), Some(1), "{text}");
    assert!(text.contains("would grow beyond 2 MiB"), "{text}");
    // What is there can still be fetched and deleted.
    assert!(house.push(&["main~1:refs/heads/side"]).await.status.success());
    assert!(house.push(&[":side"]).await.status.success());
}

#[tokio::test]
async fn a_full_repository_takes_not_even_a_small_push_but_a_deletion() {
    let mut house = House::new().await;
    house.commit("a", b"1").await;
    assert!(house.push(&["main", "main:refs/heads/side"]).await.status.success());
    house.restart(|options| options.max_repository_bytes = 1).await;
    house.commit("a", b"2").await;
    let text = stderr(&house.push(&["main"]).await);
    assert!(text.contains("the repository would grow beyond 1 bytes"), "{text}");
    assert!(house.push(&[":side"]).await.status.success());
    assert_eq!(house.pushes().len(), 2);
}

#[tokio::test]
async fn objects_that_git_would_choke_on_are_refused() {
    let house = House::new().await;
    house.commit("a", b"1").await;
    let blob = house.ok(&["rev-parse", "HEAD:a"]).await;
    let mut command = house.git(&["mktree"]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(format!("100644 blob {blob}\t.git\n").as_bytes()).await.unwrap();
    drop(stdin);
    let tree = child.wait_with_output().await.unwrap().stdout;
    let tree = String::from_utf8(tree).unwrap();
    let commit = house.ok(&["commit-tree", tree.trim(), "-m", "evil"]).await;
    let pushed = house.push(&[&format!("{commit}:refs/heads/evil")]).await;
    let text = stderr(&pushed);
    assert!(!pushed.status.success() && text.contains("contains '.git'"), "{text}");
    assert!(house.pushes().is_empty());
}

#[tokio::test]
async fn a_shallow_clone_is_told_what_to_do() {
    let house = House::new().await;
    house.commit("a", b"1").await;
    house.commit("a", b"2").await;
    let source = format!("file://{}", house.clone_path().display());
    let shallow = house.folder.path().join("shallow");
    house.ok(&["clone", "-q", "--depth", "1", &source, shallow.to_str().unwrap()]).await;
    let pushed = run(crate::house::git_in(&shallow, &["push", &house.url(), "main"])).await;
    let text = stderr(&pushed);
    assert!(!pushed.status.success(), "{text}");
    assert!(text.contains("git fetch --unshallow"), "{text}");
}

#[tokio::test]
async fn gzipped_pushes_are_read_and_broken_ones_refused() {
    let house = House::new().await;
    let zero = "0".repeat(40);
    let command = format!("{zero} {} refs/heads/x\0report-status", "1".repeat(40));
    let body = format!("{:04x}{command}0000", command.len() + 4);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(body.as_bytes()).unwrap();
    let headers = format!("{RECEIVE}content-encoding: gzip\r\n");
    let packed = gzip.finish().unwrap();
    let answer = raw(&house, &request("POST", "git-receive-pack", &headers, &packed)).await;
    // Git read the ref, and misses the pack.
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("ng refs/heads/x"), "{answer}");

    let answer = raw(&house, &request("POST", "git-receive-pack", &headers, body.as_bytes())).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("is not"), "{answer}");
    let headers = format!("{RECEIVE}content-encoding: br\r\n");
    let answer = raw(&house, &request("POST", "git-receive-pack", &headers, b"")).await;
    assert!(answer.starts_with("HTTP/1.1 415"), "{answer}");
    assert!(house.pushes().is_empty());
}

#[tokio::test]
async fn what_is_no_git_request_gets_a_status_and_a_reason() {
    let house = House::new().await;
    for (bytes, status) in [
        (request("GET", "info/refs", "", b""), "403"),
        (request("GET", "info/refs?service=git-nothing", "", b""), "403"),
        (request("GET", "info/refs?service=git-upload-pack", "", b""), "404"),
        (request("GET", "objects/info/packs", "", b""), "404"),
        (request("GET", "HEAD", "", b""), "404"),
        (request("GET", "..%2f..%2fetc", "", b""), "404"),
        (request("GET", "git-receive-pack", "", b""), "405"),
        (request("POST", "git-receive-pack", "", b"0000"), "415"),
        (request("POST", "git-receive-pack", RECEIVE, b"hello world"), "400"),
        (request("POST", "git-receive-pack", RECEIVE, b""), "400"),
        // The question of a client with much to send.
        (request("POST", "git-receive-pack", RECEIVE, b"0000"), "200"),
    ] {
        let answer = raw(&house, &bytes).await;
        let asked = String::from_utf8_lossy(&bytes).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{asked}\n{answer}");
        assert!(answer.contains("cache-control: no-cache"), "{answer}");
    }
    assert!(!house.bare().exists());
}

#[tokio::test]
async fn an_advertisement_is_never_cached_and_names_its_service() {
    let house = House::new().await;
    let answer = raw(&house, &request("GET", "info/refs?service=git-receive-pack", "", b"")).await;
    assert!(answer.contains("content-type: application/x-git-receive-pack-advertisement"));
    assert!(answer.contains("001f# service=git-receive-pack\n0000"), "{answer}");
    assert!(answer.contains("report-status") && answer.contains("side-band-64k"), "{answer}");
}

#[tokio::test]
async fn a_push_that_breaks_off_changes_nothing() {
    let house = House::with(|options| options.idle_limit = Duration::from_millis(300)).await;
    let first = house.commit("a", b"1").await;
    assert!(house.push(&["main"]).await.status.success());
    let command = format!("{first} {} refs/heads/main\0report-status", "1".repeat(40));
    let body = format!("{:04x}{command}0000PACK", command.len() + 4);
    let head = format!(
        "POST /git/alice/shop.git/git-receive-pack HTTP/1.1\r\nhost: x\r\n{RECEIVE}content-length: 9999\r\n\r\n{body}"
    );
    let mut leaving = TcpStream::connect(house.address).await.unwrap();
    leaving.write_all(head.as_bytes()).await.unwrap();
    leaving.shutdown().await.unwrap();
    drop(leaving);
    let mut silent = TcpStream::connect(house.address).await.unwrap();
    silent.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    let answered = tokio::time::timeout(BOUND, silent.read_exact(&mut answer)).await;
    answered.expect("silence ends").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    assert!(house.server.drain(BOUND).await, "nothing may be left running");
    assert_eq!(house.pushes().len(), 1);
    house.assert_no_leftovers().await;
    let head = updraft_source::git::resolve(&house.bare(), "refs/heads/main").await.unwrap();
    assert_eq!(head, Some(first));
}

#[tokio::test]
async fn more_requests_than_allowed_are_told_to_come_back() {
    let house = House::with(|options| options.max_requests = 1).await;
    let head = format!(
        "POST /git/alice/shop.git/git-receive-pack HTTP/1.1\r\nhost: x\r\n{RECEIVE}content-length: 99\r\n\r\n"
    );
    let mut holding = TcpStream::connect(house.address).await.unwrap();
    holding.write_all(head.as_bytes()).await.unwrap();
    let ask = request("GET", "info/refs?service=git-receive-pack", "", b"");
    let busy = async {
        loop {
            let answer = raw(&house, &ask).await;
            if answer.starts_with("HTTP/1.1 503") {
                assert!(answer.contains("retry-after: 5"), "{answer}");
                return;
            }
        }
    };
    tokio::time::timeout(BOUND, busy).await.expect("the one place is taken");
    drop(holding);
    let free = async { while !raw(&house, &ask).await.starts_with("HTTP/1.1 200") {} };
    tokio::time::timeout(BOUND, free).await.expect("the place is free again");
}

#[tokio::test]
async fn a_long_deployment_blocks_no_other_request() {
    let mut house = House::with(|options| options.max_requests = 1).await;
    house.commit("a", b"1").await;
    house.react(Reaction::Hand);
    let push = tokio::spawn(run(house.git(&["push", &house.url(), "main"])));
    let reporter = house.handed.recv().await.unwrap();
    let copy = house.folder.path().join("copy");
    house.ok(&["clone", "-q", &house.url(), copy.to_str().unwrap()]).await;
    reporter.finish(PushVerdict::accepted());
    assert!(push.await.unwrap().status.success());
}

#[test]
fn reading_and_writing_are_told_apart() {
    for (path, query, access) in [
        ("info/refs", Some("service=git-upload-pack"), GitAccess::Read),
        ("info/refs", None, GitAccess::Read),
        ("info/refs", Some("service=git-receive-pack"), GitAccess::Write),
        ("info/refs", Some("a=b&service=git-receive-pack"), GitAccess::Write),
        ("git-upload-pack", None, GitAccess::Read),
        ("git-receive-pack", None, GitAccess::Write),
        ("config", None, GitAccess::Write),
    ] {
        assert_eq!(GitAccess::of(path, query), access, "{path} {query:?}");
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_push_and_keeps_what_was_there() {
    // A small disk in a mount namespace of this thread, which vanishes with it. The git that the
    // server starts sees it, too.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("this test needs root");
    let mount = |source: &str, target: &std::path::Path, flags, data: Option<&str>| {
        nix::mount::mount(Some(source), target, Some("tmpfs"), flags, data).unwrap();
    };
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let house = House::with(|options| {
        std::fs::create_dir(&options.repositories).unwrap();
        let none = nix::mount::MsFlags::empty();
        mount("updraft-test", &options.repositories, none, Some("size=2m"));
    })
    .await;
    let first = house.commit("a", b"1").await;
    assert!(house.push(&["main"]).await.status.success());
    house.commit("noise", &noise(4 * 1024 * 1024)).await;
    let pushed = house.push(&["main"]).await;
    let text = stderr(&pushed);
    assert_eq!(pushed.status.code(), Some(1), "{text}");
    assert!(text.contains("the server's disk is full"), "{text}");
    assert_eq!(house.pushes().len(), 1);
    let head = updraft_source::git::resolve(&house.bare(), "refs/heads/main").await.unwrap();
    assert_eq!(head.as_deref(), Some(first.as_str()));

    // A smaller push fits again: the broken one has left nothing behind.
    house.ok(&["reset", "-q", "--hard", &first]).await;
    house.commit("small", b"x").await;
    let pushed = house.push(&["main"]).await;
    assert!(pushed.status.success(), "{}", stderr(&pushed));
}

/// A push as a client without side bands would send it, with the pack that git makes.
async fn plain_push(house: &House, commit: &str) -> Vec<u8> {
    let mut command = house.git(&["pack-objects", "--revs", "--stdout", "-q"]);
    let piped = std::process::Stdio::piped;
    let mut child = command.stdin(piped()).stdout(piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(format!("{commit}\n").as_bytes()).await.unwrap();
    drop(stdin);
    let pack = child.wait_with_output().await.unwrap().stdout;
    let zero = "0".repeat(40);
    let line = format!("{zero} {commit} refs/heads/main\0 report-status");
    [format!("{:04x}{line}0000", line.len() + 4).as_bytes(), &pack].concat()
}

#[tokio::test]
async fn a_client_without_side_bands_gets_the_verdict() {
    let house = House::new().await;
    let commit = house.commit("a", b"1").await;
    let verdict = PushVerdict::failed("refs/heads/main", "the build failed");
    house.react(Reaction::Say(&["a line that it cannot take"], verdict));
    let body = plain_push(&house, &commit).await;
    let answer = raw(&house, &request("POST", "git-receive-pack", RECEIVE, &body)).await;
    assert!(answer.contains("unpack ok\n"), "{answer}");
    assert!(answer.contains("ng refs/heads/main the build failed\n0000"), "{answer}");
    assert!(!answer.contains("a line"), "{answer}");
    assert_eq!(house.pushes().len(), 1);
}

#[tokio::test]
async fn a_gzipped_push_with_a_pack_is_taken_in() {
    let house = House::new().await;
    let commit = house.commit("a", b"1").await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain_push(&house, &commit).await).unwrap();
    let headers = format!("{RECEIVE}content-encoding: gzip\r\n");
    let body = gzip.finish().unwrap();
    let answer = raw(&house, &request("POST", "git-receive-pack", &headers, &body)).await;
    assert!(answer.contains("ok refs/heads/main\n0000"), "{answer}");
    let head = updraft_source::git::resolve(&house.bare(), "refs/heads/main").await.unwrap();
    assert_eq!(head, Some(commit));
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_to_go_on() {
    let house = House::new().await;
    let commit = house.commit("a", b"1").await;
    let headers = format!("{RECEIVE}expect: 100-continue\r\n");
    let body = plain_push(&house, &commit).await;
    let whole = request("POST", "git-receive-pack", &headers, &body);
    let head = &whole[..whole.len() - body.len()];
    let talk = async {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(head).await.unwrap();
        let mut go_on = [0; 25];
        stream.read_exact(&mut go_on).await.unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(&body).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.contains("ok refs/heads/main\n0000"), "{answer}");
    };
    tokio::time::timeout(BOUND, talk).await.expect("the server must go on");
}

#[tokio::test]
async fn the_default_branch_cannot_be_deleted_by_mistake() {
    let house = House::new().await;
    house.commit("a", b"1").await;
    assert!(house.push(&["main"]).await.status.success());
    let text = stderr(&house.push(&[":main"]).await);
    assert!(text.contains("[remote rejected] main"), "{text}");
    assert_eq!(house.pushes().len(), 1);
}
