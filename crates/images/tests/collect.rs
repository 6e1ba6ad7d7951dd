//! Collecting images on a real store.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use updraft_images::testing::{TEST_HTTP, TestStore};
use updraft_images::{Budget, Image, ImageStore, Keep, Role, Step};
use updraft_model::{Digest, ImageRef};

fn name(text: &str) -> ImageRef {
    text.parse().unwrap()
}

fn keep(ids: &[Digest]) -> Keep {
    Keep { ids: ids.iter().copied().collect(), names: BTreeSet::from([name(TEST_HTTP)]) }
}

/// Nothing is too much.
const ROOMY: Budget = Budget {
    total_bytes: None,
    cache_bytes: u64::MAX,
    free_bytes: 0,
    unused_for: Duration::from_hours(24),
};
/// Whatever is not needed goes.
const TIGHT: Budget = Budget { unused_for: Duration::ZERO, ..ROOMY };

/// Builds an image of two steps, each with a file of its own.
async fn build(test: &TestStore, store: &ImageStore, number: usize, tag: &str) -> Image {
    let context = test.folder().join("context");
    fs::create_dir_all(&context).unwrap();
    fs::write(context.join("one"), format!("one {number}")).unwrap();
    fs::write(context.join("two"), format!("two {number}").repeat(10_000)).unwrap();
    let text = format!("FROM {TEST_HTTP}\nCOPY one /one\nCOPY two /two\n");
    fs::write(context.join("Dockerfile"), text).unwrap();
    let mut command = store.command();
    command.args(["build", "--quiet", "--layers", "--isolation", "chroot"]);
    command.args(["--pull=never", "--tag", tag]);
    if let Some(policy) = store.signature_policy() {
        command.arg("--signature-policy").arg(policy);
    }
    let output = command.arg(&context).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    store.resolve(&name(tag)).await.unwrap().unwrap()
}

async fn collect_all(store: &ImageStore, keep: &Keep, budget: &Budget) -> usize {
    let mut gone = 0;
    store.note_needed(keep).unwrap();
    while let Step::Went(some) = store.step(keep, budget, 3).await.unwrap() {
        assert!(some.len() <= 3);
        gone += some.len();
    }
    gone
}

#[tokio::test]
async fn what_is_needed_stays_and_the_rest_goes_in_small_steps() {
    let (test, base) = TestStore::with_test_image().await;
    let store = test.reopened(Duration::ZERO).await;
    let mut made = Vec::new();
    for number in 1..=4 {
        made.push(build(&test, &store, number, "localhost/owner/function:latest").await);
    }
    let live = made[3].id;
    // An earlier release, whose name a later build took.
    let earlier = made[1].id;
    let tree = store.mount(&made[1]).await.unwrap();
    let keep = keep(&[live, earlier]);
    let survey = store.survey(&keep).unwrap();
    let role = |id| survey.images.iter().find(|image| image.id == id).unwrap().role;
    assert_eq!(
        (role(live), role(earlier), role(made[0].id)),
        (Role::Needed, Role::Needed, Role::Cache)
    );
    assert!(survey.unneeded_bytes > 0 && survey.total_bytes > survey.unneeded_bytes);
    assert_eq!(collect_all(&store, &keep, &ROOMY).await, 0);
    let gone = collect_all(&store, &keep, &TIGHT).await;
    assert!(gone >= 2, "{gone}");
    let exists = async |id| store.resolve(&name("x").pinned(id)).await.unwrap().is_some();
    assert!(exists(live).await && exists(earlier).await && exists(base.id).await);
    assert!(!exists(made[0].id).await && !exists(made[2].id).await);
    assert!(fs::read_to_string(tree.join("one")).unwrap().contains("one 2"));
    let survey = store.survey(&keep).unwrap();
    assert_eq!((survey.unneeded_bytes, survey.loose_bytes), (0, 0));
}

#[tokio::test]
async fn a_named_image_goes_when_it_is_unused_for_long_or_the_budget_is_spent() {
    let (test, _) = TestStore::with_test_image().await;
    let store = test.reopened(Duration::ZERO).await;
    let old = build(&test, &store, 1, "localhost/by-hand:1").await;
    let young = build(&test, &store, 2, "localhost/by-hand:2").await;
    let keep = keep(&[]);
    let total = store.survey(&keep).unwrap().total_bytes;
    let budget = Budget { total_bytes: Some(total), ..ROOMY };
    assert_eq!(collect_all(&store, &keep, &budget).await, 0);
    // Asked for since: the other one is older now.
    store.resolve(&name("localhost/by-hand:1")).await.unwrap().unwrap();
    let budget = Budget { total_bytes: Some(total - 1), ..ROOMY };
    let would = store.would_go(&keep, &budget).unwrap();
    assert_eq!(would.iter().map(|gone| gone.id).collect::<Vec<_>>(), [young.id]);
    assert_eq!(collect_all(&store, &keep, &budget).await, 1);
    assert!(store.resolve(&name("x").pinned(young.id)).await.unwrap().is_none());
    assert_eq!(collect_all(&store, &keep, &TIGHT).await, 1);
    assert!(store.resolve(&name("x").pinned(old.id)).await.unwrap().is_none());
}

#[tokio::test]
async fn the_build_cache_has_a_share_and_the_oldest_of_it_goes_first() {
    let (test, _) = TestStore::with_test_image().await;
    let store = test.reopened(Duration::ZERO).await;
    let mut made = Vec::new();
    for number in 1..=3 {
        made.push(build(&test, &store, number, "localhost/cached").await);
    }
    let keep = keep(&[made[2].id]);
    let all = store.survey(&keep).unwrap().cache_bytes;
    assert!(all > 0);
    let budget = Budget { cache_bytes: all - 1, ..ROOMY };
    collect_all(&store, &keep, &budget).await;
    assert!(store.resolve(&name("x").pinned(made[0].id)).await.unwrap().is_none());
    assert!(store.resolve(&name("x").pinned(made[1].id)).await.unwrap().is_some());
    assert!(store.survey(&keep).unwrap().cache_bytes < all);
}

#[tokio::test]
async fn an_image_that_somebody_asked_for_is_left_until_its_lease_is_over() {
    let (test, _) = TestStore::with_test_image().await;
    let store = test.reopened(Duration::from_secs(2)).await;
    let asked = build(&test, &store, 1, "localhost/asked").await;
    let keep = keep(&[]);
    assert_eq!(collect_all(&store, &keep, &TIGHT).await, 0);
    let start = Instant::now();
    while collect_all(&store, &keep, &TIGHT).await == 0 {
        assert!(start.elapsed() < Duration::from_mins(1));
        tokio::task::yield_now().await;
    }
    assert!(store.resolve(&name("x").pinned(asked.id)).await.unwrap().is_none());
}

#[tokio::test]
async fn nothing_is_collected_while_something_builds_or_fetches() {
    let (test, _) = TestStore::with_test_image().await;
    let store = test.reopened(Duration::ZERO).await;
    build(&test, &store, 1, "localhost/one").await;
    let working = store.working().await;
    assert_eq!(store.step(&keep(&[]), &TIGHT, 9).await.unwrap(), Step::Busy);
    drop(working);
    assert!(matches!(store.step(&keep(&[]), &TIGHT, 9).await.unwrap(), Step::Went(_)));
}

#[tokio::test]
async fn layers_of_a_fetch_that_was_cut_off_go_and_those_of_images_stay() {
    let (test, kept) = TestStore::with_test_image().await;
    let store = test.reopened(Duration::ZERO).await;
    let cut = build(&test, &store, 1, "localhost/cut").await;
    // A fetch keeps layer after layer and lists the image at last. The steps below it that have
    // no name stay listed.
    let index = store.root().join("overlay-images/images.json");
    let mut listed: Vec<serde_json::Value> =
        serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    listed.retain(|record| record["id"] != cut.id.hex());
    fs::write(&index, serde_json::to_vec(&listed).unwrap()).unwrap();
    let ids = |store: &ImageStore| -> BTreeSet<Digest> {
        let survey = store.survey(&keep(&[kept.id])).unwrap();
        survey.images.iter().map(|image| image.id).collect()
    };
    let (before, loose) = (ids(&store), store.survey(&keep(&[kept.id])).unwrap().loose_bytes);
    assert!(loose > 50_000 && before.len() > 1, "{loose} {before:?}");

    // Young ones may be of a fetch in another process, and those of work under way are its own.
    assert_eq!(test.store().remove_loose(9).await.unwrap(), 0);
    let working = store.working().await;
    assert_eq!(store.remove_loose(9).await.unwrap(), 0);
    drop(working);
    assert_eq!(store.remove_loose(9).await.unwrap(), loose);
    assert_eq!(store.survey(&keep(&[kept.id])).unwrap().loose_bytes, 0);
    assert_eq!(ids(&store), before);
    assert!(store.mount(&kept).await.unwrap().join("test-http").is_file());
    assert_eq!(store.remove_loose(9).await.unwrap(), 0);
    assert!(!store.run_root().join("updraft-loose").exists());
    // What was cut off comes anew.
    let again = build(&test, &store, 1, "localhost/cut").await;
    assert!(store.mount(&again).await.unwrap().join("two").is_file());
}

/// Set in the process that is killed: the store's folders.
const COLLECTS: &str = "UPDRAFT_TEST_COLLECTS";

#[tokio::test]
async fn a_collection_killed_in_the_middle_leaves_a_store_that_works() {
    const NAME: &str = "a_collection_killed_in_the_middle_leaves_a_store_that_works";
    if let Ok(folders) = std::env::var(COLLECTS) {
        let (root, run_root) = folders.split_once(' ').unwrap();
        let mut options = updraft_images::ImageStoreOptions::new(root.into(), run_root.into());
        options.lease = Duration::ZERO;
        let store = ImageStore::open(options).await.unwrap();
        collect_all(&store, &keep(&[]), &TIGHT).await;
        return;
    }
    let (test, _) = TestStore::with_test_image().await;
    let store = test.reopened(Duration::ZERO).await;
    let folders = format!("{} {}", store.root().display(), store.run_root().display());
    for round in 0..4 {
        for number in 0..3 {
            build(&test, &store, 10 * round + number, &format!("localhost/n{number}")).await;
        }
        let before = store.list().await.unwrap().len();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .env(COLLECTS, &folders)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Killed with its `buildah`, at another moment each time.
        let start = Instant::now();
        let removing = || children(child.id()).iter().any(|pid| is_removing(*pid));
        while !removing() && child_runs(child.id()) {
            assert!(start.elapsed() < Duration::from_mins(1), "it does not begin");
        }
        let moment = Instant::now();
        while moment.elapsed() < Duration::from_millis(25 * round as u64) {
            std::hint::spin_loop();
        }
        for pid in children(child.id()) {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // Whatever is listed can be used, and building goes on.
        let after = store.list().await.unwrap();
        assert!(after.len() <= before);
        for image in &after {
            store.mount(image).await.unwrap();
            store.unmount(&image.id).await.unwrap();
        }
    }
    let last = build(&test, &store, 99, "localhost/last").await;
    assert!(store.mount(&last).await.unwrap().join("two").is_file());
    collect_all(&store, &keep(&[last.id]), &TIGHT).await;
    let survey = store.survey(&keep(&[last.id])).unwrap();
    assert_eq!(survey.unneeded_bytes, 0, "{survey:#?}");
}

fn children(pid: u32) -> Vec<u32> {
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    all
}

fn is_removing(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"rmi")
}

fn child_runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    Path::new("/proc").join(pid.to_string()).is_dir() && !stat.contains(") Z ")
}
