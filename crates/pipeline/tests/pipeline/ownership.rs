//! Whose function is whose.

use updraft_model::{FunctionId, FunctionSpec};
use updraft_pipeline::{PushState, SubmitError};

use crate::world::{World, function, owner, stack};

const DOCKERFILE: &str = "FROM scratch\n";

#[test]
fn a_second_repository_cannot_take_a_function_and_is_told_who_has_it() {
    let world = World::new();
    world.push(&[("stack.yml", &stack(&["hello"])), ("hello/Dockerfile", DOCKERFILE)]);
    let story = world.push_to(
        "alice",
        "blog",
        &[
            ("stack.yml", &stack(&["hello", "post"])),
            ("hello/Dockerfile", "FROM scratch\n# other\n"),
            ("post/Dockerfile", DOCKERFILE),
        ],
    );
    assert_eq!(story.state(), PushState::Failed);
    let text = story.text();
    assert!(text.contains("hello (dockerfile) belongs to repository shop"), "{text}");
    assert!(text.contains("repository `shop` of alice declares a function of that name"), "{text}");
    assert_eq!(world.live("post"), Some(1));
    let spec = world.engine.spec("alice-hello").unwrap();
    assert_eq!(spec.labels["com.openfaas.cloud.git-repo"], "shop");

    // Nor does the second one's clean-up remove what is the first one's.
    world.push_to("alice", "blog", &[("stack.yml", &stack(&["post"]))]);
    assert_eq!(world.engine.names(), ["alice-hello", "alice-post"]);
    // Once the first gives it up, the second may have it.
    world.push(&[("stack.yml", &stack(&["other"])), ("other/Dockerfile", DOCKERFILE)]);
    let story = world.push_to("alice", "blog", &[("stack.yml", &stack(&["hello", "post"]))]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    assert_eq!(world.live("hello"), Some(2));
}

#[test]
fn a_deployment_of_somebody_else_is_never_overwritten() {
    let foreign = |labels: &[(&str, &str)]| {
        let id = FunctionId::in_default(function("alice-hello"));
        let mut spec = FunctionSpec::new(id, "localhost/theirs:1".parse().unwrap());
        spec.labels.extend(labels.iter().map(|(key, value)| ((*key).into(), (*value).into())));
        spec
    };
    let owner_label = "com.openfaas.cloud.git-owner";
    for (labels, told) in [
        (&[][..], "did not come by a push"),
        (&[(owner_label, "bob")][..], "belongs to owner `bob`"),
        (
            &[(owner_label, "alice"), ("com.openfaas.cloud.git-repo", "old")][..],
            "belongs to repository `old`",
        ),
    ] {
        let world = World::new();
        let theirs = foreign(labels);
        world.engine.put(theirs.clone());
        let story = world.push(&[
            ("stack.yml", &stack(&["hello", "mine"])),
            ("hello/Dockerfile", DOCKERFILE),
            ("mine/Dockerfile", DOCKERFILE),
        ]);
        assert_eq!(story.state(), PushState::Failed);
        assert!(story.text().contains(told), "{}", story.text());
        assert_eq!(world.engine.spec("alice-hello"), Some(theirs.clone()));
        assert_eq!((world.live("hello"), world.live("mine")), (None, Some(1)));
        assert_eq!(world.builder.take_built(), ["mine"]);

        // It is not removed either when the function leaves the stack.
        let story = world.push(&[("stack.yml", &stack(&["mine"]))]);
        assert_eq!(story.state(), PushState::Ready, "{}", story.text());
        assert_eq!(world.engine.spec("alice-hello"), Some(theirs));
    }
}

#[test]
fn an_image_that_was_built_for_another_owner_is_refused() {
    let world = World::new();
    world.run(world.store.ensure_owner(&owner("bob"))).unwrap();
    let text = |image: &str| {
        format!(
            "provider:\n  name: openfaas\nfunctions:\n  x:\n    skip_build: true\n    image: {image}\n"
        )
    };
    let story = world.push(&[("stack.yml", &text("localhost/bob/shop-secret:latest"))]);
    assert_eq!(story.state(), PushState::Failed);
    assert!(story.text().contains("belongs to owner `bob`"), "{}", story.text());
    assert!(world.engine.names().is_empty());
    let story = world.push(&[("stack.yml", &text("localhost/alice/shop-mine:latest"))]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
}

#[test]
fn an_owner_that_could_be_confused_with_another_cannot_push() {
    let world = World::new();
    world.run(world.store.ensure_owner(&owner("alice"))).unwrap();
    let commit = "0".repeat(40);
    let refused =
        world.run(world.pipeline().submit(crate::world::request("alice-shop", "x", &commit)));
    assert!(matches!(refused, Err(SubmitError::Owner(_))), "{refused:?}");
}

#[test]
fn what_is_no_commit_or_ref_is_refused() {
    let world = World::new();
    let submit = |commit: &str, reference: &str| {
        let mut request = crate::world::request("alice", "shop", commit);
        request.reference = reference.to_owned();
        world.run(world.pipeline().submit(request))
    };
    for commit in ["", "main", "--upload-pack=x", &"g".repeat(40), &"0".repeat(41)] {
        let refused = submit(commit, "refs/heads/main");
        assert!(matches!(refused, Err(SubmitError::Commit(_))), "{refused:?}");
    }
    for reference in ["main", "refs/heads/a\nb", ""] {
        let refused = submit(&"0".repeat(40), reference);
        assert!(matches!(refused, Err(SubmitError::Reference(_))), "{refused:?}");
    }
    assert!(world.run(world.store.unfinished_pushes()).unwrap().is_empty());
}
