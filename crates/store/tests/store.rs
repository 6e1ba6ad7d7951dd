//! The store as its users see it, on real files.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use serde_json::json;
use tempfile::TempDir;
use updraft_model::{Digest, FunctionId, FunctionName, FunctionSpec, OwnerName, RepositoryName};
use updraft_store::{
    Advance, BuildResult, BuildState, CreateTokenError, EnsureOwnerError, NewBuild, NewEvent,
    NewPush, NewRelease, PinnedTo, PushFilter, PushId, PushState, Store, StoreError,
};

fn open(folder: &Path) -> Store {
    Store::open(&folder.join("updraft.db"), &folder.join("blobs")).unwrap()
}

fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    (folder, store)
}

fn owner(name: &str) -> OwnerName {
    OwnerName::new(name).unwrap()
}

fn repository(name: &str) -> RepositoryName {
    RepositoryName::new(name).unwrap()
}

fn function(name: &str) -> FunctionName {
    FunctionName::new(name).unwrap()
}

fn key(byte: u8) -> Digest {
    Digest::from_bytes([byte; 32])
}

fn new_push(commit: &str) -> NewPush {
    NewPush {
        owner: owner("alice"),
        repository: repository("shop"),
        reference: "refs/heads/main".into(),
        commit: commit.into(),
        upload: None,
    }
}

fn new_release(push: PushId, commit: &str) -> NewRelease {
    let id = FunctionId::in_default(function("alice-cart"));
    NewRelease {
        push,
        owner: owner("alice"),
        function: function("cart"),
        commit: commit.into(),
        image_id: Some(key(9)),
        spec: FunctionSpec::new(id, format!("localhost/alice/shop-cart:{commit}").parse().unwrap()),
    }
}

fn event(text: &str) -> NewEvent {
    NewEvent { at: Timestamp::now(), body: json!({ "v": 1, "text": text }) }
}

#[tokio::test]
async fn a_push_is_remembered_with_its_state_detail_and_events() {
    let (folder, store) = store();
    let first = store.record_push(new_push("aa")).await.unwrap();
    let second = store.record_push(new_push("bb")).await.unwrap();
    assert_eq!((first.unfinished.len(), second.unfinished.as_slice()), (0, &[first.id][..]));
    let newest = |reference| {
        let (store, alice, shop) = (store.clone(), owner("alice"), repository("shop"));
        async move { store.newest_push(&alice, &shop, reference).await.unwrap() }
    };
    assert_eq!(newest("refs/heads/main").await.map(|push| push.id), Some(second.id));
    assert_eq!(newest("refs/heads/other").await, None);

    let moved = store
        .advance_push(
            first.id,
            PushState::Received,
            PushState::Planned,
            Some(json!({"plan": 1})),
            vec![event("one"), event("two")],
        )
        .await
        .unwrap();
    assert_eq!(moved, Advance::Moved { first_seq: 1 });
    assert_eq!(store.append_events(first.id, vec![event("three")]).await.unwrap(), 3);
    let again = store
        .advance_push(first.id, PushState::Received, PushState::Cloned, None, vec![event("no")])
        .await
        .unwrap();
    assert_eq!(again, Advance::Elsewhere(PushState::Planned));

    drop(store);
    let store = open(folder.path());
    let push = store.push(first.id).await.unwrap().unwrap();
    assert_eq!((push.state, push.detail), (PushState::Planned, Some(json!({"plan": 1}))));
    let seqs: Vec<_> = store.events(first.id, 2).await.unwrap().iter().map(|e| e.seq).collect();
    assert_eq!(seqs, [2, 3]);
    assert_eq!(store.unfinished_pushes().await.unwrap().len(), 2);

    store
        .advance_push(first.id, PushState::Planned, PushState::Failed, None, vec![])
        .await
        .unwrap();
    let push = store.push(first.id).await.unwrap().unwrap();
    assert!(push.finished_at.is_some() && push.detail.is_some());
    assert_eq!(store.unfinished_pushes().await.unwrap().len(), 1);
    let filter = PushFilter { owner: Some(owner("alice")), repository: None, limit: 1 };
    assert_eq!(store.pushes(filter).await.unwrap()[0].id, second.id);
}

#[tokio::test]
async fn an_event_of_no_push_is_refused() {
    let (_folder, store) = store();
    assert!(store.append_events(PushId::new(1), vec![event("x")]).await.is_err());
    assert!(store.push(PushId::new(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_function_belongs_to_the_first_repository_that_declares_it() {
    let (_folder, store) = store();
    let alice = owner("alice");
    for name in ["shop", "blog"] {
        store.ensure_repository(&alice, &repository(name)).await.unwrap();
    }
    let claim = |repo: &str, names: &[&str]| {
        let names = names.iter().map(|name| function(name)).collect();
        let (alice, repo, store) = (alice.clone(), repository(repo), store.clone());
        async move { store.claim_functions(&alice, &repo, names).await.unwrap() }
    };
    assert!(claim("shop", &["cart"]).await.is_empty());
    assert!(claim("shop", &["cart", "pay"]).await.is_empty());
    let taken = claim("blog", &["cart", "post"]).await;
    assert_eq!(taken.into_iter().collect::<Vec<_>>(), [(function("cart"), repository("shop"))]);

    let blog = repository("blog");
    assert!(!store.give_up_function(&alice, &blog, &function("cart")).await.unwrap());
    let shop = repository("shop");
    assert!(store.give_up_function(&alice, &shop, &function("cart")).await.unwrap());
    assert!(claim("blog", &["cart"]).await.is_empty());
    let names: Vec<_> = store
        .declared_functions(&alice, Some(&blog))
        .await
        .unwrap()
        .into_iter()
        .map(|declared| declared.name)
        .collect();
    assert_eq!(names, [function("cart"), function("post")]);
}

#[tokio::test]
async fn release_numbers_are_never_given_twice() {
    let (_folder, store) = store();
    let (alice, cart) = (owner("alice"), function("cart"));
    let mut pushes = Vec::new();
    for commit in ["aa", "bb", "cc", "dd"] {
        let push = store.record_push(new_push(commit)).await.unwrap().id;
        store.claim_functions(&alice, &repository("shop"), vec![cart.clone()]).await.unwrap();
        let made = store.create_releases(vec![new_release(push, commit)]).await.unwrap();
        let again = store.create_releases(vec![new_release(push, commit)]).await.unwrap();
        assert_eq!(made, again);
        pushes.push(push);
    }
    store.set_live(&alice, &cart, 1, PinnedTo::ThisRelease).await.unwrap();
    let dropped = store.prune_releases(&alice, &cart, 1).await.unwrap();
    assert_eq!(dropped.iter().map(|r| r.number).collect::<Vec<_>>(), [2, 3]);
    let live = store.live(&alice, &cart).await.unwrap().unwrap();
    assert_eq!((live.release, live.pinned), (1, PinnedTo::ThisRelease));
    assert!(store.set_live(&alice, &cart, 2, PinnedTo::Newest).await.is_err());

    assert!(store.give_up_function(&alice, &repository("shop"), &cart).await.unwrap());
    assert!(store.live(&alice, &cart).await.unwrap().is_none());
    assert_eq!(store.prune_releases(&alice, &cart, 0).await.unwrap().len(), 2);
    store.claim_functions(&alice, &repository("shop"), vec![cart.clone()]).await.unwrap();
    let next = store.create_releases(vec![new_release(pushes[0], "ee")]).await.unwrap();
    assert_eq!(next[0].number, 5);
    assert_eq!(store.releases(&alice, &cart, 10).await.unwrap(), next);
}

#[tokio::test]
async fn releases_of_one_push_are_made_all_or_none() {
    let (_folder, store) = store();
    let push = store.record_push(new_push("aa")).await.unwrap().id;
    let (alice, cart) = (owner("alice"), function("cart"));
    store.claim_functions(&alice, &repository("shop"), vec![cart.clone()]).await.unwrap();
    let mut unknown = new_release(push, "aa");
    unknown.function = function("never-declared");
    assert!(store.create_releases(vec![new_release(push, "aa"), unknown]).await.is_err());
    assert!(store.releases(&alice, &cart, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_build_is_found_by_its_key_once_it_succeeded() {
    let (_folder, store) = store();
    let push = store.record_push(new_push("aa")).await.unwrap().id;
    let (alice, cart) = (owner("alice"), function("cart"));
    store.claim_functions(&alice, &repository("shop"), vec![cart.clone()]).await.unwrap();
    let new =
        |byte| NewBuild { push, owner: alice.clone(), function: cart.clone(), key: key(byte) };
    let failed = store.start_build(new(1)).await.unwrap();
    let reason = "no such package".to_owned();
    store.finish_build(failed.id, BuildResult::Failed { reason: reason.clone() }).await.unwrap();
    assert!(store.build_by_key(&alice, &cart, key(1)).await.unwrap().is_none());

    let running = store.start_build(new(1)).await.unwrap();
    assert_eq!((running.state, running.finished_at), (BuildState::Running, None));
    let image: updraft_model::ImageRef = "localhost/alice/shop-cart:1".parse().unwrap();
    let succeeded = BuildResult::Succeeded { image: image.clone(), image_id: key(7) };
    store.finish_build(running.id, succeeded).await.unwrap();
    // The end of a build is told once; a late cancellation does not undo it.
    store.finish_build(running.id, BuildResult::Cancelled).await.unwrap();
    let found = store.build_by_key(&alice, &cart, key(1)).await.unwrap().unwrap();
    assert_eq!((found.id, found.image), (running.id, Some((image, key(7)))));

    let interrupted = store.start_build(new(2)).await.unwrap();
    store.cancel_running_builds().await.unwrap();
    let builds = store.builds_of_push(push).await.unwrap();
    assert_eq!(
        builds.iter().map(|build| build.state).collect::<Vec<_>>(),
        [BuildState::Failed, BuildState::Succeeded, BuildState::Cancelled]
    );
    assert_eq!(builds[0].reason.as_deref(), Some(reason.as_str()));
    assert_eq!(store.builds(Some(&alice), Some(&cart), 1).await.unwrap()[0].id, interrupted.id);
}

#[tokio::test]
async fn old_build_logs_go_and_their_records_stay() {
    let (_folder, store) = store();
    let push = store.record_push(new_push("aa")).await.unwrap().id;
    let (alice, cart) = (owner("alice"), function("cart"));
    store.claim_functions(&alice, &repository("shop"), vec![cart.clone()]).await.unwrap();
    let mut logs = Vec::new();
    for byte in 0..3 {
        let new = NewBuild { push, owner: alice.clone(), function: cart.clone(), key: key(byte) };
        let build = store.start_build(new).await.unwrap();
        let log = build.log.unwrap();
        store.blobs().create(&log, 100).await.unwrap().line("hello").unwrap();
        store.finish_build(build.id, BuildResult::Cancelled).await.unwrap();
        logs.push(log);
    }
    store.prune_build_logs(&alice, &cart, 1).await.unwrap();
    let builds = store.builds_of_push(push).await.unwrap();
    assert_eq!(builds.iter().filter(|build| build.log.is_some()).count(), 1);
    assert_eq!(store.blobs().read(&logs[0], 0, 9).await.unwrap(), None);
    assert_eq!(store.blobs().read(&logs[2], 0, 9).await.unwrap().unwrap(), b"hello\n");
}

#[tokio::test]
async fn the_live_branch_is_decided_once() {
    let (_folder, store) = store();
    let (alice, shop) = (owner("alice"), repository("shop"));
    let made = store.ensure_repository(&alice, &shop).await.unwrap();
    assert_eq!(made.live_branch, None);
    assert_eq!(store.decide_live_branch(&alice, &shop, "main").await.unwrap(), "main");
    assert_eq!(store.decide_live_branch(&alice, &shop, "other").await.unwrap(), "main");
    let read = store.repository(&alice, &shop).await.unwrap().unwrap();
    assert_eq!(read.live_branch.as_deref(), Some("main"));
    assert_eq!(store.repositories(&alice).await.unwrap(), [read]);
}

#[tokio::test]
async fn a_token_is_told_once_and_not_kept() {
    let (folder, store) = store();
    let alice = owner("alice");
    let token = store.create_token(&alice, "laptop").await.unwrap();
    let secret = token.secret.expose();
    assert!(secret.starts_with("updraft_") && secret.len() >= 8 + 43, "{}", secret.len());
    assert_eq!(store.verify_token(secret).await.unwrap(), Some(alice.clone()));
    assert_eq!(store.verify_token("updraft_wrong").await.unwrap(), None);
    let listed = store.tokens(Some(&alice)).await.unwrap();
    assert_eq!((listed[0].name.as_str(), listed[0].id), ("laptop", token.id));
    assert!(listed[0].last_used.is_some());
    assert!(matches!(store.create_token(&alice, "").await, Err(CreateTokenError::Name)));
    // Nothing on the disk holds the token, not even the write-ahead log.
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let content = std::fs::read(&path).unwrap();
            let found = content.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "{}", path.display());
        }
    }
}

#[tokio::test]
async fn an_owner_that_could_be_confused_with_another_is_refused() {
    let (_folder, store) = store();
    store.ensure_owner(&owner("stefan")).await.unwrap();
    store.ensure_owner(&owner("stefan")).await.unwrap();
    let refused = store.ensure_owner(&owner("stefan-prodan")).await;
    let Err(EnsureOwnerError::Collision { existing, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(existing, owner("stefan"));
    assert!(matches!(
        store.create_token(&owner("stefan-prodan"), "x").await,
        Err(CreateTokenError::Owner(EnsureOwnerError::Collision { .. }))
    ));
    let mut push = new_push("aa");
    push.owner = owner("stefan-prodan");
    assert!(matches!(store.record_push(push).await, Err(EnsureOwnerError::Collision { .. })));
    assert_eq!(store.owners().await.unwrap().len(), 1);
}

#[tokio::test]
async fn of_two_colliding_owners_made_at_once_by_two_writers_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    // Two stores have a connection and a writer each, as two processes have.
    let (one, two) = (open(folder.path()), open(folder.path()));
    for round in 0..20 {
        let (short, long) = (owner(&format!("o{round}")), owner(&format!("o{round}-x")));
        let (a, b) = tokio::join!(one.ensure_owner(&short), two.ensure_owner(&long));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    }
    assert_eq!(one.owners().await.unwrap().len(), 20);
}

#[test]
fn stores_opened_at_once_on_nothing_migrate_it_once() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| open(folder.path()));
        }
    });
}

/// Plays both parts: started again with the variable set, it writes until it is killed.
#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    const FOLDER: &str = "UPDRAFT_TEST_STORE_FOLDER";
    if let Some(folder) = std::env::var_os(FOLDER) {
        let store = open(Path::new(&folder));
        for number in 0.. {
            let push = store.record_push(new_push(&number.to_string())).await.unwrap();
            store.append_events(push.id, vec![event("written")]).await.unwrap();
            println!("\nacknowledged {}", push.id);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_was_acknowledged_survives_kill_9", "--nocapture"])
        .env(FOLDER, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut acknowledged: Vec<PushId> = Vec::new();
    for line in lines {
        if let Some(id) = line.strip_prefix("acknowledged ") {
            acknowledged.push(id.parse().unwrap());
            if acknowledged.len() == 25 {
                child.kill().unwrap();
            }
        }
    }
    child.wait().unwrap();
    assert!(acknowledged.len() >= 25);
    let store = open(folder.path());
    for id in acknowledged {
        assert!(store.push(id).await.unwrap().is_some(), "push {id} is lost");
        assert_eq!(store.events(id, 1).await.unwrap().len(), 1, "the event of push {id} is lost");
    }
    store.record_push(new_push("after")).await.unwrap();
}

#[test]
fn a_database_of_a_newer_version_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let file = folder.path().join("updraft.db");
    let connection = rusqlite::Connection::open(&file).unwrap();
    connection.pragma_update(None, "user_version", 1000).unwrap();
    drop(connection);
    let refused = Store::open(&file, &folder.path().join("blobs"));
    assert!(matches!(refused, Err(StoreError::TooNew { .. })), "{refused:?}");
}

/// The sample stays for ever: a database that version 1 wrote must open in every later version.
#[tokio::test]
async fn a_database_of_version_1_opens_with_all_that_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(folder.path().join("updraft.db")).unwrap();
    connection.execute_batch(include_str!("samples/v1.sql")).unwrap();
    drop(connection);
    let store = open(folder.path());
    let (alice, cart) = (owner("alice"), function("cart"));
    assert_eq!(
        store.verify_token("updraft_sample").await.unwrap(),
        Some(alice.clone()),
        "the token"
    );
    let push = store.push(PushId::new(1)).await.unwrap().unwrap();
    assert_eq!((push.state, push.commit.as_str()), (PushState::Ready, "aa"));
    assert_eq!(store.events(push.id, 1).await.unwrap().len(), 2);
    assert_eq!(store.builds_of_push(push.id).await.unwrap()[0].state, BuildState::Succeeded);
    let release = store.release(&alice, &cart, 1).await.unwrap().unwrap();
    assert_eq!(release.spec.environment["greeting"], "hello");
    let live = store.live(&alice, &cart).await.unwrap().unwrap();
    assert_eq!((live.release, live.pinned), (1, PinnedTo::Newest));
    let next = store.record_push(new_push("bb")).await.unwrap();
    let made = store.create_releases(vec![new_release(next.id, "bb")]).await.unwrap();
    assert_eq!(made[0].number, 2);
}

#[tokio::test]
async fn a_newer_push_is_one_that_takes_the_place() {
    let (_folder, store) = store();
    let record = |reference: &str, upload: Option<&str>| {
        let mut push = new_push("aa");
        push.reference = reference.to_owned();
        push.upload = upload.map(Into::into);
        let store = store.clone();
        async move { store.record_push(push).await.unwrap().id }
    };
    let main = record("refs/heads/main", None).await;
    record("refs/heads/other", None).await;
    assert_eq!(store.newer_push(main).await.unwrap(), None);
    let upload = record("refs/uploads/tree", Some("/x")).await;
    assert_eq!(store.newer_push(main).await.unwrap(), Some(upload));
    let newer = record("refs/heads/main", None).await;
    assert_eq!(store.newer_push(upload).await.unwrap(), Some(newer));
    assert_eq!(store.newer_push(newer).await.unwrap(), None);
}

#[tokio::test]
async fn old_stories_go_and_their_pushes_stay() {
    let (_folder, store) = store();
    let mut pushes = Vec::new();
    for _ in 0..3 {
        let push = store.record_push(new_push("aa")).await.unwrap().id;
        let (from, to) = (PushState::Received, PushState::Failed);
        store.advance_push(push, from, to, None, vec![event("end")]).await.unwrap();
        pushes.push(push);
    }
    let unfinished = store.record_push(new_push("aa")).await.unwrap().id;
    store.append_events(unfinished, vec![event("begin")]).await.unwrap();
    store.prune_events(&owner("alice"), &repository("shop"), 1).await.unwrap();
    let mut left = Vec::new();
    for push in pushes.iter().chain([&unfinished]) {
        left.push(store.events(*push, 1).await.unwrap().len());
    }
    assert_eq!(left, [0, 0, 1, 1]);
    assert!(store.push(pushes[0]).await.unwrap().is_some());
}

#[tokio::test]
async fn images_of_releases_and_of_pushes_under_way_are_in_use() {
    let (_folder, store) = store();
    let push = store.record_push(new_push("aa")).await.unwrap().id;
    let (alice, cart) = (owner("alice"), function("cart"));
    store.claim_functions(&alice, &repository("shop"), vec![cart.clone()]).await.unwrap();
    store.create_releases(vec![new_release(push, "aa")]).await.unwrap();
    let new = NewBuild { push, owner: alice, function: cart, key: key(1) };
    let build = store.start_build(new).await.unwrap();
    let image = "localhost/alice/shop-cart:1".parse().unwrap();
    let succeeded = BuildResult::Succeeded { image, image_id: key(7) };
    store.finish_build(build.id, succeeded).await.unwrap();
    let in_use = async |keep, since| {
        let needed = store.images_in_use(keep, since).await.unwrap();
        needed.ids.into_iter().collect::<Vec<_>>()
    };
    let (now, ever) = (jiff::Timestamp::MAX, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(in_use(1, now).await, [key(7), key(9)]);
    let (from, to) = (PushState::Received, PushState::Failed);
    store.advance_push(push, from, to, None, vec![]).await.unwrap();
    assert_eq!(in_use(1, now).await, [key(9)]);
    // Outside of the window by number, inside by age, and live.
    assert_eq!(in_use(0, now).await, []);
    assert_eq!(in_use(0, ever).await, [key(9)]);
    let (alice, cart) = (owner("alice"), function("cart"));
    store.set_live(&alice, &cart, 1, PinnedTo::Newest).await.unwrap();
    assert_eq!(in_use(0, now).await, [key(9)]);
}
