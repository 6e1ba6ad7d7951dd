//! Several pushes at once: the newest wins, never an older one.

use updraft_pipeline::{PushState, SubmitError};
use updraft_store::BuildState;

use crate::builder::OnBuild;
use crate::world::{World, owner, stack};

const DOCKERFILE: &str = "FROM scratch\n";

#[test]
fn a_newer_push_cancels_the_build_of_an_older_one() {
    let world = World::new();
    world.builder.on_build("hello", OnBuild::Hang);
    let stack = stack(&["hello"]);
    let first = world.submit(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    world.run(world.builder.hanging(1));
    world.builder.succeed("hello");
    let second = world.submit(&[("hello/m", "2")]);
    let (first, second) = (world.story(first), world.story(second));
    assert_eq!((first.state(), second.state()), (PushState::Superseded, PushState::Ready));
    assert!(first.verdict.as_ref().unwrap().is_success());
    assert!(first.text().contains("push 2 is newer"), "{}", first.text());
    assert_eq!(world.releases("hello"), [1]);
    let builds = world.run(world.store.builds(Some(&owner("alice")), None, 9)).unwrap();
    let states: Vec<_> = builds.iter().map(|build| build.state).collect();
    assert_eq!(states, [BuildState::Succeeded, BuildState::Cancelled]);
    world.wait_for_no_leftovers();
}

#[test]
fn of_many_pushes_in_a_row_the_last_one_is_live() {
    let world = World::new();
    let stack = stack(&["hello"]);
    world.write("alice", "shop", &[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    let pushes: Vec<_> =
        (0..10).map(|number| world.submit(&[("hello/m", &number.to_string())])).collect();
    let states: Vec<_> = pushes.iter().map(|push| world.story(*push).state()).collect();
    assert_eq!(states[9], PushState::Ready);
    let others = [PushState::Ready, PushState::Superseded];
    assert!(states.iter().all(|state| others.contains(state)), "{states:?}");
    let last = world.run(world.store.push(pushes[9])).unwrap().unwrap();
    let spec = world.engine.spec("alice-hello").unwrap();
    assert_eq!(spec.labels["com.openfaas.cloud.git-sha"], last.commit);
}

#[test]
fn repositories_do_not_wait_for_each_other() {
    let world = World::new();
    world.builder.on_build("hello", OnBuild::Hang);
    let stack_hello = stack(&["hello"]);
    world.submit(&[("stack.yml", &stack_hello), ("hello/Dockerfile", DOCKERFILE)]);
    world.run(world.builder.hanging(1));
    let story = world.push_to(
        "bob",
        "blog",
        &[("stack.yml", &stack(&["post"])), ("post/Dockerfile", DOCKERFILE)],
    );
    assert_eq!(story.state(), PushState::Ready);
    world.run(world.pipeline().shutdown());
}

#[test]
fn a_push_can_be_cancelled_by_its_owner() {
    let world = World::new();
    world.builder.on_build("hello", OnBuild::Hang);
    let stack = stack(&["hello"]);
    let push = world.submit(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    world.run(world.builder.hanging(1));
    assert!(!world.pipeline().cancel(&owner("bob"), push));
    assert!(world.pipeline().cancel(&owner("alice"), push));
    let story = world.story(push);
    assert_eq!(story.state(), PushState::Cancelled);
    assert!(!story.verdict.unwrap().is_success());
    assert!(world.engine.names().is_empty());
}

#[test]
fn an_owner_with_too_much_under_way_is_told_to_wait() {
    let world = World::with(|options| options.max_waiting_per_owner = 1);
    world.builder.on_build("hello", OnBuild::Hang);
    let stack = stack(&["hello"]);
    world.submit(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    world.run(world.builder.hanging(1));
    let commit = world.commit("alice", "blog", &[("stack.yml", &stack)]);
    let refused =
        world.run(world.pipeline().submit(crate::world::request("alice", "blog", &commit)));
    assert!(matches!(refused, Err(SubmitError::Busy { waiting: 1, .. })), "{refused:?}");
    let commit = world.commit("bob", "blog", &[("stack.yml", &stack)]);
    world.run(world.pipeline().submit(crate::world::request("bob", "blog", &commit))).unwrap();
    world.run(world.pipeline().shutdown());
}

#[test]
fn a_push_that_is_told_twice_is_one_push() {
    let world = World::new();
    world.builder.on_build("hello", OnBuild::Hang);
    let stack = stack(&["hello"]);
    let files = [("stack.yml", stack.as_str()), ("hello/Dockerfile", DOCKERFILE)];
    let commit = world.commit("alice", "shop", &files);
    let submit = || {
        let request = crate::world::request("alice", "shop", &commit);
        world.run(world.pipeline().submit(request)).unwrap()
    };
    let first = submit();
    world.run(world.builder.hanging(1));
    assert_eq!(submit(), first);
    world.run(world.pipeline().shutdown());
}
