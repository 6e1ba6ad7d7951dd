//! Earlier releases brought back, pinned and unpinned; functions removed by hand.

use updraft_pipeline::{PushState, RemoveError, RollbackError};
use updraft_store::PinnedTo;

use crate::engine::OnApply;
use crate::world::{World, function, owner, stack};

const DOCKERFILE: &str = "FROM scratch\n";

fn three_releases() -> World {
    let world = World::new();
    let stack = stack(&["hello"]);
    world.push(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    world.push(&[("hello/m", "2")]);
    world.push(&[("hello/m", "3")]);
    assert_eq!(world.live("hello"), Some(3));
    world.builder.take_built();
    world
}

fn rollback(world: &World, to: Option<u64>) -> Result<u64, RollbackError> {
    let (alice, hello) = (owner("alice"), function("hello"));
    let release = world.run(world.pipeline().rollback(&alice, &hello, to))?;
    Ok(release.number)
}

fn running(world: &World) -> String {
    world.engine.spec("alice-hello").unwrap().annotations["updraft.release"].clone()
}

#[test]
fn a_rollback_brings_the_release_before_back_without_a_build() {
    let world = three_releases();
    assert_eq!(rollback(&world, None).unwrap(), 2);
    assert_eq!((world.live("hello"), running(&world).as_str()), (Some(2), "2"));
    assert_eq!(rollback(&world, None).unwrap(), 1);
    assert_eq!(rollback(&world, Some(3)).unwrap(), 3);
    assert_eq!(running(&world), "3");
    assert!(world.builder.take_built().is_empty());
    assert_eq!(world.releases("hello"), [3, 2, 1]);
}

#[test]
fn a_rollback_pins_until_it_is_unpinned() {
    let world = three_releases();
    rollback(&world, None).unwrap();
    let story = world.push(&[("hello/m", "4")]);
    assert_eq!(story.state(), PushState::Ready);
    assert_eq!(world.builder.take_built(), ["hello"]);
    assert_eq!((world.live("hello"), world.releases("hello")), (Some(2), vec![4, 3, 2, 1]));
    assert_eq!(running(&world), "2");
    let text = story.text();
    assert!(text.contains("hello stays at v2, to which it was rolled back"), "{text}");
    assert!(text.contains("updraft rollback alice/hello --unpin"), "{text}");

    let (alice, hello) = (owner("alice"), function("hello"));
    let release = world.run(world.pipeline().unpin(&alice, &hello)).unwrap();
    assert_eq!((release.number, running(&world).as_str()), (4, "4"));
    let live = world.run(world.store.live(&alice, &hello)).unwrap().unwrap();
    assert_eq!(live.pinned, PinnedTo::Newest);
    world.push(&[("hello/m", "5")]);
    assert_eq!(world.live("hello"), Some(5));
}

#[test]
fn a_rollback_that_does_not_run_leaves_what_serves() {
    let world = three_releases();
    world.engine.on_apply("alice-hello", OnApply::Fail);
    let failed = rollback(&world, Some(1));
    assert!(matches!(failed, Err(RollbackError::Engine { number: 1, .. })), "{failed:?}");
    assert_eq!((world.live("hello"), running(&world).as_str()), (Some(3), "3"));
    let alice = owner("alice");
    let live = world.run(world.store.live(&alice, &function("hello"))).unwrap().unwrap();
    assert_eq!(live.pinned, PinnedTo::Newest);
}

#[test]
fn a_rollback_to_nowhere_says_why() {
    let world = three_releases();
    assert!(matches!(rollback(&world, Some(9)), Err(RollbackError::UnknownRelease { .. })));
    rollback(&world, Some(1)).unwrap();
    assert!(matches!(rollback(&world, None), Err(RollbackError::NothingEarlier { live: 1, .. })));
    let (alice, other) = (owner("alice"), function("other"));
    let unknown = world.run(world.pipeline().rollback(&alice, &other, None));
    assert!(matches!(unknown, Err(RollbackError::UnknownFunction { .. })));
    let unknown = world.run(world.pipeline().unpin(&owner("bob"), &function("hello")));
    assert!(matches!(unknown, Err(RollbackError::UnknownFunction { .. })));
}

#[test]
fn a_removed_function_is_gone_and_comes_back_with_the_next_push() {
    let world = three_releases();
    let (alice, hello) = (owner("alice"), function("hello"));
    world.run(world.pipeline().remove(&alice, &hello)).unwrap();
    assert!(world.engine.names().is_empty());
    assert_eq!(world.live("hello"), None);
    let again = world.run(world.pipeline().remove(&alice, &hello));
    assert!(matches!(again, Err(RemoveError::UnknownFunction { .. })));
    assert_eq!(world.push(&[]).state(), PushState::Ready);
    assert_eq!(running(&world), "3");
}
