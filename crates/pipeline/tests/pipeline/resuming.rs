//! A process that ends at any moment, and the next one that goes on.

use updraft_pipeline::{Origin, PushId, PushState};

use crate::builder::OnBuild;
use crate::engine::OnApply;
use crate::world::{World, repository, stack};

const DOCKERFILE: &str = "FROM scratch\n";

/// A push that hangs where `hang` makes it, and the place where it hangs.
fn hanging(hang: impl FnOnce(&World)) -> (World, PushId) {
    let world = World::new();
    let stack = stack(&["hello"]);
    world.push(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    world.builder.take_built();
    hang(&world);
    let push = world.submit(&[("hello/m", "2")]);
    (world, push)
}

/// Kills the process, lets everything succeed, and checks that the push ends as if nothing had
/// happened.
fn killed_there_it_still_goes_live(mut world: World, push: PushId, state: PushState) {
    world.kill();
    let found = {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(world.store.push(push)).unwrap().unwrap().state
    };
    assert_eq!(found, state);
    world.builder.succeed("hello");
    world.engine.recover("alice-hello");
    // What an earlier crash left, and what belongs to nobody.
    std::fs::create_dir_all(world.folder.path().join("work/999/checkout")).unwrap();
    world.start();
    let story = world.story(push);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    assert!(story.text().contains("Updraft was restarted"), "{}", story.text());
    assert_eq!((world.live("hello"), world.releases("hello")), (Some(2), vec![2, 1]));
    let spec = world.engine.spec("alice-hello").unwrap();
    assert_eq!(spec.annotations["updraft.release"], "2");
    world.wait_for_no_leftovers();
}

#[test]
fn killed_while_planning() {
    let (world, push) = hanging(|world| world.builder.on_build("hello", OnBuild::HangInKey));
    world.run(world.builder.hanging(1));
    killed_there_it_still_goes_live(world, push, PushState::Cloned);
}

#[test]
fn killed_while_building() {
    let (world, push) = hanging(|world| world.builder.on_build("hello", OnBuild::Hang));
    world.run(world.builder.hanging(1));
    killed_there_it_still_goes_live(world, push, PushState::Building);
}

#[test]
fn killed_while_deploying() {
    let (world, push) = hanging(|world| world.engine.on_apply("alice-hello", OnApply::Hang));
    world.run(world.engine.hanging(1));
    killed_there_it_still_goes_live(world, push, PushState::Deploying);
}

/// Puts a finished push back into `state`, with what is noted there, as a process leaves it that
/// is killed right after it wrote the state and before it did anything more.
#[test]
fn killed_right_after_any_state_was_written() {
    for state in &PushState::ALL[..6] {
        let mut world = World::new();
        let stack = stack(&["api", "hello"]);
        let push = world.submit(&[
            ("stack.yml", &stack),
            ("api/Dockerfile", DOCKERFILE),
            ("hello/Dockerfile", DOCKERFILE),
        ]);
        assert_eq!(world.story(push).state(), PushState::Ready);
        world.wait_for_no_leftovers();
        let built = world.builder.take_built().len();
        world.kill();
        let database = rusqlite::Connection::open(world.folder.path().join("updraft.db")).unwrap();
        database
            .execute(
                "UPDATE pushes SET state = ?1, finished_at = NULL,
                 detail = CASE WHEN ?2 THEN detail ELSE NULL END WHERE id = ?3",
                (
                    state.as_str(),
                    matches!(state, PushState::Released | PushState::Deploying),
                    push.number(),
                ),
            )
            .unwrap();
        database
            .execute(r#"DELETE FROM push_events WHERE body LIKE '%"kind":"finished"%'"#, [])
            .unwrap();
        database.execute("DELETE FROM environments", []).unwrap();
        drop(database);
        world.start();
        let story = world.story(push);
        assert_eq!(story.state(), PushState::Ready, "{state}: {}", story.text());
        for name in ["api", "hello"] {
            assert_eq!(world.releases(name), [1], "{state}");
            assert_eq!(world.live(name), Some(1), "{state}");
        }
        assert_eq!((built, world.builder.take_built().len()), (2, 0), "{state}: built again");
        world.wait_for_no_leftovers();
    }
}

#[test]
fn a_shutdown_leaves_pushes_where_the_next_start_goes_on() {
    let (mut world, push) = hanging(|world| world.builder.on_build("hello", OnBuild::Hang));
    world.run(world.builder.hanging(1));
    world.run(world.pipeline().shutdown());
    let refused = crate::world::request("alice", "shop", &"0".repeat(40));
    assert!(world.run(world.pipeline().submit(refused)).is_err());
    assert!(world.story(push).verdict.is_none());
    world.kill();
    world.builder.succeed("hello");
    world.start();
    assert_eq!(world.story(push).state(), PushState::Ready);
}

#[test]
fn an_older_push_does_not_win_by_a_restart() {
    let (mut world, first) = hanging(|world| world.builder.on_build("hello", OnBuild::Hang));
    world.run(world.builder.hanging(1));
    world.run(world.pipeline().shutdown());
    let commit = world.commit("alice", "shop", &[("hello/m", "3")]);
    let new = updraft_store::NewPush {
        owner: crate::world::owner("alice"),
        repository: repository("shop"),
        reference: "refs/heads/main".into(),
        commit: commit.clone(),
        upload: None,
    };
    let second = world.run(world.store.record_push(new)).unwrap().id;
    world.kill();
    world.builder.succeed("hello");
    world.start();
    assert_eq!(world.story(second).state(), PushState::Ready);
    assert_eq!(world.story(first).state(), PushState::Superseded);
    let spec = world.engine.spec("alice-hello").unwrap();
    assert_eq!(spec.labels["com.openfaas.cloud.git-sha"], commit);
}

#[test]
fn a_push_that_brings_the_process_down_each_time_is_given_up() {
    let (mut world, push) = hanging(|world| world.builder.on_build("hello", OnBuild::Hang));
    for round in 1..=6 {
        world.run(world.builder.hanging(round));
        world.kill();
        world.start();
        if round == 6 {
            break;
        }
    }
    let story = world.story(push);
    assert_eq!(story.state(), PushState::Failed);
    assert!(story.text().contains("was interrupted 5 times"), "{}", story.text());
    assert_eq!(world.live("hello"), Some(1));
}

#[test]
fn an_upload_goes_live_and_is_resumed_without_git() {
    let mut world = World::new();
    let folder = world.folder.path().join("work/upload-1");
    std::fs::create_dir_all(folder.join("hello")).unwrap();
    std::fs::write(folder.join("stack.yml"), stack(&["hello"])).unwrap();
    std::fs::write(folder.join("hello/Dockerfile"), DOCKERFILE).unwrap();
    let mut request = crate::world::request("alice", "shop", &"ab".repeat(32));
    request.origin = Origin::Upload { folder: folder.clone() };
    world.builder.on_build("hello", OnBuild::Hang);
    let push = world.run(world.pipeline().submit(request)).unwrap();
    world.run(world.builder.hanging(1));
    world.kill();
    world.builder.succeed("hello");
    world.start();
    let story = world.story(push);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    assert_eq!(world.live("hello"), Some(1));
    assert!(!folder.exists());
    world.wait_for_no_leftovers();
}

#[test]
fn a_push_that_was_left_behind_does_not_win_over_a_newer_one_that_is_over() {
    for hang in [(|world| world.builder.on_build("hello", OnBuild::Hang)) as fn(&World), |world| {
        world.engine.on_apply("alice-hello", OnApply::Hang);
    }] {
        let (mut world, first) = hanging(hang);
        let commit = world.commit("alice", "shop", &[("hello/m", "3")]);
        let new = updraft_store::NewPush {
            owner: crate::world::owner("alice"),
            repository: repository("shop"),
            reference: "refs/heads/main".into(),
            commit,
            upload: None,
        };
        let second = world.run(world.store.record_push(new)).unwrap().id;
        let (from, to) = (PushState::Received, PushState::Ready);
        world.run(world.store.advance_push(second, from, to, None, vec![])).unwrap();
        let states = async {
            loop {
                let state = world.store.push(first).await.unwrap().unwrap().state;
                if matches!(state, PushState::Building | PushState::Deploying) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        world.run(states);
        world.kill();
        world.builder.succeed("hello");
        world.engine.recover("alice-hello");
        world.start();
        assert_eq!(world.story(first).state(), PushState::Superseded);
        assert_eq!(world.live("hello"), Some(1));
    }
}

#[test]
fn a_push_goes_on_by_itself_once_the_store_can_be_written_again() {
    let world = World::new();
    let database = rusqlite::Connection::open(world.folder.path().join("updraft.db")).unwrap();
    // What a full disk does to a write, as far as the pipeline can see.
    database
        .execute_batch(
            "CREATE TRIGGER full BEFORE UPDATE ON pushes BEGIN SELECT RAISE(ABORT, 'full'); END",
        )
        .unwrap();
    let stack = stack(&["hello"]);
    let push = world.submit(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    assert!(world.story(push).verdict.is_none());
    database.execute_batch("DROP TRIGGER full").unwrap();
    let over = async {
        while !world.store.push(push).await.unwrap().unwrap().state.is_final() {
            tokio::task::yield_now().await;
        }
    };
    world.run(over);
    assert_eq!(world.story(push).state(), PushState::Ready);
}
