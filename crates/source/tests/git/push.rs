//! Pushing and cloning.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use updraft_source::git::{Push, PushProgress, PushSink, PushVerdict, RefFailure, RefUpdate};

use crate::house::{BOUND, House, Reaction, git_in, run, stderr};

fn update(reference: &str, old: Option<&str>, new: Option<&str>) -> RefUpdate {
    RefUpdate {
        reference: reference.to_owned(),
        old: old.map(str::to_owned),
        new: new.map(str::to_owned),
    }
}

#[tokio::test]
async fn a_first_push_makes_the_repository_and_a_clone_brings_it_back() {
    let house = House::new().await;
    let missing = run(git_in(house.folder.path(), &["clone", &house.url(), "early"])).await;
    assert!(!missing.status.success());
    assert!(
        stderr(&missing).contains("there is no repository `alice/shop`"),
        "{}",
        stderr(&missing)
    );
    assert!(!house.bare().exists());

    let first = house.commit("hello.txt", b"hello").await;
    let pushed = house.push(&["main"]).await;
    assert!(pushed.status.success(), "{}", stderr(&pushed));
    let second = house.commit("more.txt", b"more").await;
    let pushed = house.push(&["main"]).await;
    assert!(pushed.status.success(), "{}", stderr(&pushed));

    let pushes = house.pushes();
    assert_eq!(pushes.len(), 2);
    assert_eq!(pushes[0].owner.as_str(), "alice");
    assert_eq!(pushes[0].repository.as_str(), "shop");
    assert_eq!(pushes[0].updates, [update("refs/heads/main", None, Some(&first))]);
    assert_eq!(pushes[1].updates, [update("refs/heads/main", Some(&first), Some(&second))]);

    for version in ["0", "1", "2"] {
        let protocol = format!("protocol.version={version}");
        let copy = format!("copy{version}");
        let arguments = ["-c", &protocol, "clone", "-q", &house.url(), &copy];
        let cloned = run(git_in(house.folder.path(), &arguments)).await;
        assert!(cloned.status.success(), "{}", stderr(&cloned));
        let copy = house.folder.path().join(copy);
        assert_eq!(std::fs::read(copy.join("more.txt")).unwrap(), b"more");
    }
}

#[tokio::test]
async fn two_refs_a_tag_a_forced_update_and_a_deletion_reach_the_sink() {
    let house = House::new().await;
    let first = house.commit("a", b"1").await;
    house.ok(&["branch", "side"]).await;
    house.ok(&["tag", "-a", "v1", "-m", "one"]).await;
    let tag = house.ok(&["rev-parse", "v1"]).await;
    let pushed = house.push(&["main", "side", "v1"]).await;
    assert!(pushed.status.success(), "{}", stderr(&pushed));
    let mut updates = house.pushes()[0].updates.clone();
    updates.sort_by(|one, other| one.reference.cmp(&other.reference));
    assert_eq!(
        updates,
        [
            update("refs/heads/main", None, Some(&first)),
            update("refs/heads/side", None, Some(&first)),
            update("refs/tags/v1", None, Some(&tag)),
        ]
    );

    house.ok(&["commit", "-q", "--amend", "-m", "again"]).await;
    let amended = house.head().await;
    assert!(!house.push(&["main"]).await.status.success(), "not without force");
    assert!(house.push(&["--force", "--atomic", "main"]).await.status.success());
    assert!(house.push(&[":side"]).await.status.success());
    // Only a ref moves, all objects are there.
    assert!(house.push(&["main:refs/heads/other"]).await.status.success());
    let pushes = house.pushes();
    assert_eq!(pushes[1].updates, [update("refs/heads/main", Some(&first), Some(&amended))]);
    assert_eq!(pushes[2].updates, [update("refs/heads/side", Some(&first), None)]);
    assert_eq!(pushes[3].updates, [update("refs/heads/other", None, Some(&amended))]);
}

#[tokio::test]
async fn push_options_reach_the_sink() {
    let house = House::new().await;
    house.commit("a", b"1").await;
    assert!(house.push(&["-o", "skip", "-o", "reason=two words", "main"]).await.status.success());
    assert_eq!(house.pushes()[0].options, ["skip", "reason=two words"]);
}

#[tokio::test]
async fn a_failed_deployment_makes_the_push_fail_and_keeps_the_commit() {
    let house = House::new().await;
    let first = house.commit("a", b"1").await;
    house.ok(&["branch", "side"]).await;
    let failed = PushVerdict::failed("refs/heads/main", "build of `hello` failed");
    house.react(Reaction::Say(&["building \x1b[31mhello", "exit 1"], failed));
    let pushed = house.push(&["main", "side"]).await;
    let text = stderr(&pushed);
    assert_eq!(pushed.status.code(), Some(1), "{text}");
    assert!(text.contains("remote: building [31mhello"), "{text}");
    assert!(text.contains("! [remote rejected] main -> main (build of `hello` failed)"), "{text}");
    assert!(text.contains("* [new branch]      side -> side"), "{text}");

    let second = house.commit("a", b"2").await;
    let pushed = house.push(&["main"]).await;
    assert!(pushed.status.success(), "{}", stderr(&pushed));
    assert_eq!(house.pushes()[1].updates, [update("refs/heads/main", Some(&first), Some(&second))]);
}

#[tokio::test]
async fn a_deployment_that_is_lost_counts_as_failed() {
    let mut house = House::new().await;
    house.commit("a", b"1").await;
    house.react(Reaction::Hand);
    let push = run(house.git(&["push", &house.url(), "main"]));
    let ((), pushed) = tokio::join!(async { drop(house.handed.recv().await.unwrap()) }, push);
    assert_eq!(pushed.status.code(), Some(1));
    assert!(stderr(&pushed).contains("lost sight of the deployment"), "{}", stderr(&pushed));
}

#[tokio::test]
async fn lines_arrive_while_the_deployment_goes_on() {
    let mut house = House::new().await;
    house.commit("a", b"1").await;
    house.react(Reaction::Hand);
    let mut command = house.git(&["push", &house.url(), "main"]);
    let mut client = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(client.stderr.take().unwrap()).lines();
    let reporter = house.handed.recv().await.unwrap();
    for number in 1..=3 {
        reporter.line(format!("step {number}")).await;
        let seen = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.trim_end() == format!("remote: step {number}") {
                    return;
                }
            }
            panic!("the client left before step {number}");
        };
        tokio::time::timeout(BOUND, seen).await.expect("the line must arrive at once");
        assert!(client.try_wait().unwrap().is_none(), "the push must still go on");
    }
    reporter.finish(PushVerdict::accepted());
    assert!(client.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_client_who_leaves_does_not_stop_the_deployment() {
    let mut house = House::new().await;
    house.commit("a", b"1").await;
    house.react(Reaction::Hand);
    let mut command = house.git(&["push", &house.url(), "main"]);
    let mut client = command.process_group(0).stderr(Stdio::null()).spawn().unwrap();
    let reporter = house.handed.recv().await.unwrap();
    // Git speaks HTTP through a helper program, which must leave as well.
    let group = rustix::process::Pid::from_raw(client.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    client.wait().await.unwrap();
    // More than fits anywhere: the reporter must not get stuck.
    let report = async {
        for number in 0..2000 {
            reporter.line(format!("step {number}")).await;
        }
        reporter.finish(PushVerdict::accepted());
    };
    tokio::time::timeout(BOUND, report).await.expect("nobody listens, nobody waits");
    assert!(house.server.drain(BOUND).await);
}

#[tokio::test]
async fn concurrent_pushes_are_all_kept_and_told_in_order() {
    let house = House::new().await;
    let mut expected = Vec::new();
    for number in 0..6 {
        let branch = format!("b{number}");
        house.commit("a", branch.as_bytes()).await;
        house.ok(&["branch", &branch]).await;
        expected.push(branch);
    }
    let arguments: Vec<[&str; 1]> = expected.iter().map(|branch| [branch.as_str()]).collect();
    let pushed =
        futures_util::future::join_all(arguments.iter().map(|branch| house.push(branch))).await;
    for pushed in pushed {
        assert!(pushed.status.success(), "{}", stderr(&pushed));
    }
    let mut seen: Vec<String> = house
        .pushes()
        .iter()
        .flat_map(|push| push.updates.clone())
        .map(|update| update.reference.trim_start_matches("refs/heads/").to_owned())
        .collect();
    seen.sort();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn of_two_pushes_to_one_ref_the_sink_hears_in_the_order_of_the_ref() {
    let house = House::new().await;
    house.commit("a", b"0").await;
    assert!(house.push(&["main"]).await.status.success());
    let base = house.head().await;
    let mut commits = Vec::new();
    for number in 0..5 {
        house.ok(&["reset", "-q", "--hard", &base]).await;
        commits.push(house.commit("a", format!("{number}+").as_bytes()).await);
    }
    let refspecs: Vec<String> = commits.iter().map(|commit| format!("+{commit}:main")).collect();
    let arguments: Vec<[&str; 1]> = refspecs.iter().map(|spec| [spec.as_str()]).collect();
    let pushed =
        futures_util::future::join_all(arguments.iter().map(|spec| house.push(spec))).await;
    let good = pushed.iter().filter(|pushed| pushed.status.success()).count();
    let pushes = house.pushes();
    assert_eq!(pushes.len(), good + 1, "told of each that moved the ref and of no other");
    for pair in pushes.windows(2) {
        assert_eq!(pair[0].updates[0].new, pair[1].updates[0].old);
    }
}

#[tokio::test]
async fn a_repository_whose_only_branch_is_master_can_be_cloned() {
    let house = House::new().await;
    house.commit("a", b"1").await;
    assert!(house.push(&["main:refs/heads/master"]).await.status.success());
    let head = updraft_source::git::head_branch(&house.bare()).await.unwrap();
    assert_eq!(head.as_deref(), Some("master"));
}

#[tokio::test]
async fn several_refs_may_fail_for_reasons_of_their_own() {
    let house = House::new().await;
    house.commit("a", b"1").await;
    house.ok(&["branch", "side"]).await;
    let failure = |reference: &str, reason: &str| RefFailure {
        reference: reference.to_owned(),
        reason: reason.to_owned(),
    };
    let failed = vec![failure("refs/heads/main", "one"), failure("refs/heads/side", "two")];
    house.react(Reaction::Say(&[], PushVerdict { failed }));
    let text = stderr(&house.push(&["main", "side"]).await);
    assert!(text.contains("main -> main (one)") && text.contains("side -> side (two)"), "{text}");
}

/// Does nothing but die, as a process does that is killed before it has recorded a push.
#[derive(Debug)]
struct DyingSink;

#[async_trait::async_trait]
impl PushSink for DyingSink {
    async fn pushed(&self, _push: Push) -> PushProgress {
        panic!("killed");
    }
}

#[tokio::test]
async fn a_push_that_was_taken_in_when_the_process_died_is_taken_up_by_the_next() {
    let mut house = House::new().await;
    let first = house.commit("a", b"1").await;
    house.set_sink(Arc::new(DyingSink));
    let pushed = house.push(&["-o", "x=y", "main", "main:refs/heads/side"]).await;
    assert!(!pushed.status.success(), "{}", stderr(&pushed));

    house.restart(|_| {}).await;
    let server = &house.server;
    let shop = ("alice".parse().unwrap(), "shop".parse().unwrap());
    assert_eq!(server.repositories().unwrap(), [shop]);
    assert_eq!(server.recover(&*house.sink).await.unwrap(), 1);
    let mut push = house.pushes().pop().unwrap();
    push.updates.sort_by(|one, other| one.reference.cmp(&other.reference));
    assert_eq!(push.options, ["x=y"]);
    assert_eq!(
        push.updates,
        [
            update("refs/heads/main", None, Some(&first)),
            update("refs/heads/side", None, Some(&first)),
        ]
    );
    assert_eq!(server.recover(&*house.sink).await.unwrap(), 0, "once is enough");
}

#[tokio::test]
async fn a_push_that_ended_as_it_should_is_not_taken_up_again() {
    let house = House::new().await;
    house.commit("a", b"1").await;
    assert!(house.push(&["main"]).await.status.success());
    house.ok(&["commit", "-q", "--amend", "--allow-empty", "-m", "other"]).await;
    assert!(!house.push(&["main"]).await.status.success(), "not a fast-forward");
    assert!(!house.push(&["HEAD:refs/heads/bad..name"]).await.status.success());
    assert_eq!(house.server.recover(&*house.sink).await.unwrap(), 0);
    assert_eq!(house.pushes().len(), 1);
}

#[tokio::test]
async fn many_pushes_do_not_leave_many_packs() {
    let house = House::with(|options| options.max_packs = 3).await;
    let packs = || {
        let entries = std::fs::read_dir(house.bare().join("objects/pack")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "pack")).count()
    };
    for number in 0..5 {
        house.commit("a", format!("{number}").as_bytes()).await;
        assert!(house.push(&["main"]).await.status.success());
    }
    let tidy = async {
        while packs() > 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(BOUND, tidy).await.expect("packs become fewer");
    let copy = house.folder.path().join("copy");
    house.ok(&["clone", "-q", &house.url(), copy.to_str().unwrap()]).await;
    assert_eq!(std::fs::read(copy.join("a")).unwrap(), b"4");
}
