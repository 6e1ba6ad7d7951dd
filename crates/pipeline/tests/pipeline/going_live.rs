//! Pushes that succeed, partly or not at all.

use futures_util::StreamExt as _;
use updraft_model::FunctionId;
use updraft_pipeline::{PlannedAction, PushEventKind, PushState};
use updraft_store::BuildState;

use crate::builder::OnBuild;
use crate::engine::OnApply;
use crate::world::{World, function, owner, stack};

const DOCKERFILE: &str = "FROM scratch\n";

#[test]
fn a_push_builds_releases_and_deploys_every_function() {
    let world = World::new();
    let stack = stack(&["api", "hello"]);
    let story = world.push(&[
        ("stack.yml", &stack),
        ("api/Dockerfile", DOCKERFILE),
        ("hello/Dockerfile", DOCKERFILE),
    ]);
    assert_eq!(story.states(), PushState::ALL[1..7], "{}", story.text());
    assert_eq!(world.builder.take_built(), ["api", "hello"]);
    assert_eq!(world.engine.take_applied(), ["alice-api", "alice-hello"]);
    let text = story.text();
    for line in [
        "2 functions: api (dockerfile) build, hello (dockerfile) build",
        "hello | STEP 1/2: FROM scratch",
        "hello v1 is live: http://alice.localhost:8080/hello",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
    assert_eq!(story.verdict.unwrap().summary, "2 functions live");

    let spec = world.engine.spec("alice-hello").unwrap();
    let push = world.run(world.store.push(updraft_store::PushId::new(1)));
    let commit = push.unwrap().unwrap().commit;
    assert_eq!(spec.labels["com.openfaas.cloud.git-owner"], "alice");
    assert_eq!(spec.labels["com.openfaas.cloud.git-repo"], "shop");
    assert_eq!(spec.labels["com.openfaas.cloud.git-sha"], commit);
    assert_eq!(spec.annotations["updraft.release"], "1");
    assert!(spec.image.digest().is_some(), "{} is not pinned", spec.image);
    world.wait_for_no_leftovers();

    let builds = world.run(world.store.builds(Some(&owner("alice")), Some(&function("hello")), 9));
    let build = builds.unwrap().remove(0);
    assert_eq!(build.state, BuildState::Succeeded);
    let log = world.run(world.store.blobs().read(&build.log.unwrap(), 0, 1000)).unwrap().unwrap();
    assert_eq!(log, b"STEP 1/2: FROM scratch\nSTEP 2/2: COPY . .\n");
}

#[test]
fn only_what_changed_is_built_and_deployed() {
    let world = World::new();
    let stack = stack(&["api", "hello"]);
    world.push(&[
        ("stack.yml", &stack),
        ("api/Dockerfile", DOCKERFILE),
        ("hello/Dockerfile", DOCKERFILE),
    ]);
    world.builder.take_built();
    world.engine.take_applied();
    let story = world.push(&[("hello/message", "new")]);
    assert_eq!(story.state(), PushState::Ready);
    assert_eq!(world.builder.take_built(), ["hello"]);
    assert_eq!(world.engine.take_applied(), ["alice-hello"]);
    assert!(story.text().contains("api v1 is unchanged: http://alice.localhost:8080/api"));
    assert_eq!((world.live("api"), world.live("hello")), (Some(1), Some(2)));

    // The same once more: nothing is left to do, and that is a success.
    let story = world.push(&[]);
    assert_eq!(story.state(), PushState::Ready);
    assert!(world.builder.take_built().is_empty() && world.engine.take_applied().is_empty());
}

#[test]
fn an_earlier_state_that_comes_back_is_not_built_again() {
    let world = World::new();
    let stack = stack(&["hello"]);
    world.push(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE), ("hello/m", "1")]);
    world.push(&[("hello/m", "2")]);
    world.builder.take_built();
    let story = world.push(&[("hello/m", "1")]);
    assert!(world.builder.take_built().is_empty());
    assert!(story.text().contains("its image is used again"), "{}", story.text());
    assert_eq!(world.live("hello"), Some(3));
    let images: Vec<_> = [1, 3]
        .map(|number| {
            let (alice, hello) = (owner("alice"), function("hello"));
            world.run(world.store.release(&alice, &hello, number)).unwrap().unwrap().image
        })
        .into();
    assert_eq!(images[0], images[1]);

    // An image that is no longer there is built anew.
    world.builder.lose_images();
    world.push(&[]);
    assert_eq!(world.builder.take_built(), ["hello"]);
}

#[test]
fn a_changed_setting_makes_a_release_without_a_build() {
    let world = World::new();
    let plain = stack(&["hello"]);
    world.push(&[("stack.yml", &plain), ("hello/Dockerfile", DOCKERFILE)]);
    world.builder.take_built();
    let with_environment = format!("{plain}    environment:\n      greeting: hi\n");
    let story = world.push(&[("stack.yml", &with_environment)]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    assert!(world.builder.take_built().is_empty());
    assert_eq!(world.live("hello"), Some(2));
    assert_eq!(world.engine.spec("alice-hello").unwrap().environment["greeting"], "hi");
}

#[test]
fn what_the_engine_lost_is_deployed_again() {
    let world = World::new();
    let stack = stack(&["hello"]);
    world.push(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    let id = FunctionId::in_default(function("alice-hello"));
    world.run(updraft_engine::Engine::remove(&*world.engine, &id)).unwrap();
    let story = world.push(&[]);
    assert!(story.text().contains("hello v1 is live"), "{}", story.text());
    assert_eq!(world.releases("hello"), [1]);
    assert!(world.engine.spec("alice-hello").is_some());
}

#[test]
fn a_broken_build_leaves_the_others_updated_and_its_old_release_serving() {
    let world = World::new();
    let stack = stack(&["api", "hello"]);
    world.push(&[
        ("stack.yml", &stack),
        ("api/Dockerfile", DOCKERFILE),
        ("hello/Dockerfile", DOCKERFILE),
    ]);
    let lines: Vec<_> = (0..50).map(|number| format!("line {number}")).collect();
    let lines = [lines, vec!["ERROR: No matching distribution found for flaskk".into()]].concat();
    world.builder.on_build("hello", OnBuild::Fail(lines));
    let story = world.push(&[("api/m", "2"), ("hello/m", "2")]);
    assert_eq!(story.state(), PushState::Failed);
    assert_eq!(story.verdict.as_ref().unwrap().summary, "1 function live, 1 failed: hello (build)");
    assert_eq!((world.live("api"), world.live("hello")), (Some(2), Some(1)));
    assert_eq!(world.engine.spec("alice-hello").unwrap().annotations["updraft.release"], "1");
    let text = story.text();
    for line in [
        "hello failed: the build failed with exit code 1 at step `RUN false` (build)",
        "hello | last 30 lines of the build:",
        "hello |   ERROR: No matching distribution found for flaskk",
        "hello | hint: check the package's name and version in `requirements.txt`",
        "hello | v1 goes on serving",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
    assert!(!text.contains("hello |   line 20\n"), "more than the tail is shown as tail");

    world.builder.succeed("hello");
    let story = world.push(&[]);
    assert_eq!(story.state(), PushState::Ready);
    assert_eq!(world.live("hello"), Some(2));
}

#[test]
fn a_release_that_does_not_become_ready_leaves_the_old_one_serving() {
    let world = World::new();
    let stack = stack(&["hello"]);
    world.push(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    world.engine.on_apply("alice-hello", OnApply::Fail);
    let story = world.push(&[("hello/m", "2")]);
    assert_eq!(story.state(), PushState::Failed);
    assert_eq!(world.live("hello"), Some(1));
    assert_eq!(world.engine.spec("alice-hello").unwrap().annotations["updraft.release"], "1");
    let text = story.text();
    assert!(text.contains("hello failed: it did not become ready: exit code 1 (deploy)"), "{text}");
    assert!(text.contains("hint: add the missing package"), "{text}");

    // The same commit again, once the cause is gone: the release that waits goes live.
    world.engine.recover("alice-hello");
    assert_eq!(world.push(&[]).state(), PushState::Ready);
    assert_eq!((world.live("hello"), world.releases("hello")), (Some(2), vec![2, 1]));
}

#[test]
fn a_first_deployment_that_fails_leaves_nothing_half_deployed() {
    let world = World::new();
    let stack = stack(&["hello"]);
    world.engine.on_apply("alice-hello", OnApply::Fail);
    let story = world.push(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    assert_eq!(story.state(), PushState::Failed);
    assert!(world.engine.names().is_empty());
    assert_eq!(world.live("hello"), None);
}

#[test]
fn a_function_that_left_the_stack_is_removed() {
    let world = World::new();
    let two = stack(&["api", "hello"]);
    world.push(&[
        ("stack.yml", &two),
        ("api/Dockerfile", DOCKERFILE),
        ("hello/Dockerfile", DOCKERFILE),
    ]);
    let story = world.push(&[("stack.yml", &stack(&["hello"]))]);
    assert_eq!(story.state(), PushState::Ready);
    assert!(story.text().contains("api left the stack and is removed"), "{}", story.text());
    assert_eq!(world.engine.names(), ["alice-hello"]);
    assert_eq!(world.live("api"), None);

    // It comes back with its release numbers going on.
    world.push(&[("stack.yml", &two)]);
    assert_eq!(world.live("api"), Some(1));
}

#[test]
fn a_stack_that_does_not_parse_changes_nothing_and_says_where() {
    let world = World::new();
    let good = stack(&["hello"]);
    world.push(&[("stack.yml", &good), ("hello/Dockerfile", DOCKERFILE)]);
    let story = world.push(&[("stack.yml", "provider:\n  name: openfaas\nfunctions: [")]);
    assert_eq!(story.state(), PushState::Failed);
    assert!(story.text().contains("stack.yml:3:"), "{}", story.text());
    assert_eq!((world.engine.names(), world.live("hello")), (vec!["alice-hello".into()], Some(1)));

    let story = world.push(&[("stack.yml", "-")]);
    assert_eq!(story.state(), PushState::Failed);
    assert!(story.text().contains("no `stack.yml`"), "{}", story.text());
    assert!(story.text().contains("hint: "), "{}", story.text());
    assert_eq!(world.live("hello"), Some(1));
}

#[test]
fn a_function_with_a_wrong_template_or_handler_fails_alone() {
    let world = World::new();
    let text = format!(
        "{}  typo:\n    lang: pythn\n    handler: ./typo\n  gone:\n    lang: python\n    handler: ./gone\n",
        stack(&["hello"])
    );
    let story = world.push(&[
        ("stack.yml", &text),
        ("hello/Dockerfile", DOCKERFILE),
        ("typo/handler.py", "x"),
    ]);
    assert_eq!(story.state(), PushState::Failed);
    assert_eq!(world.live("hello"), Some(1));
    let text = story.text();
    assert!(text.contains("unknown template `pythn`"), "{text}");
    assert!(text.contains("python"), "{text}");
    let line = text.lines().find(|line| line.contains("stack.yml:") && line.contains("pythn"));
    assert!(line.is_some_and(|line| line.contains("typo failed: ")), "{text}");
    assert!(text.contains("gone failed: "), "{text}");
    let summary = &story.verdict.as_ref().unwrap().summary;
    assert_eq!(summary, "1 function live, 2 failed: gone (plan), typo (plan)");
}

#[test]
fn a_ready_image_is_deployed_without_a_build() {
    let world = World::new();
    let text = "provider:\n  name: openfaas\nfunctions:\n  cache:\n    skip_build: true\n    image: localhost/cache:1\n";
    let story = world.push(&[("stack.yml", text)]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    assert!(story.text().contains("1 function: cache ready image"), "{}", story.text());
    assert!(world.builder.take_built().is_empty());
    assert_eq!(world.engine.spec("alice-cache").unwrap().image.as_str(), "localhost/cache:1");
}

#[test]
fn a_missing_secret_is_named_as_the_owner_knows_it() {
    let world = World::new();
    let text = format!("{}    secrets:\n      - db\n", stack(&["hello"]));
    let files = [("stack.yml", text.as_str()), ("hello/Dockerfile", DOCKERFILE)];
    let story = world.push(&files);
    assert_eq!(story.state(), PushState::Failed);
    assert!(story.text().contains("waits: secret db not found (deploy)"), "{}", story.text());
    assert!(story.text().contains("updraft secrets set --owner alice NAME"), "{}", story.text());
    world.engine.add_secret("alice-db");
    assert_eq!(world.push(&[]).state(), PushState::Ready);
}

#[test]
fn a_push_to_another_branch_goes_nowhere_and_says_so() {
    let world = World::new();
    let stack = stack(&["hello"]);
    world.push(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    let commit = world.commit("alice", "shop", &[("hello/m", "2")]);
    let mut request = crate::world::request("alice", "shop", &commit);
    request.reference = "refs/heads/feature/x".to_owned();
    let id = world.run(world.pipeline().submit(request)).unwrap();
    let story = world.story(id);
    assert_eq!(story.state(), PushState::NothingToDo);
    let told = "feature/x is kept and not deployed; pushes to main go live";
    assert!(story.text().contains(told), "{}", story.text());
    assert!(story.verdict.unwrap().is_success());
    assert_eq!(world.live("hello"), Some(1));
}

#[test]
fn the_first_pushed_branch_is_live_unless_the_operator_says_which() {
    let world = World::new();
    let stack = stack(&["hello"]);
    let files = [("stack.yml", stack.as_str()), ("hello/Dockerfile", DOCKERFILE)];
    let push_trunk = |world: &World| {
        let commit = world.commit("alice", "shop", &files);
        let mut request = crate::world::request("alice", "shop", &commit);
        request.reference = "refs/heads/trunk".to_owned();
        world.story(world.run(world.pipeline().submit(request)).unwrap()).state()
    };
    assert_eq!(push_trunk(&world), PushState::Ready);
    assert_eq!(world.push(&[]).state(), PushState::NothingToDo);

    let world = World::with(|options| options.live_branches = vec!["main".to_owned()]);
    assert_eq!(push_trunk(&world), PushState::NothingToDo);
    assert_eq!(world.push(&[]).state(), PushState::Ready);
}

#[test]
fn old_releases_are_dropped_and_the_live_one_stays() {
    let world = World::with(|options| options.keep_releases = 2);
    let stack = stack(&["hello"]);
    world.push(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    for number in 2..=4 {
        world.push(&[("hello/m", &number.to_string())]);
    }
    assert_eq!(world.releases("hello"), [4, 3]);
}

#[test]
fn the_plan_is_told_to_programs_as_well() {
    let world = World::new();
    let stack = stack(&["hello"]);
    let story = world.push(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    let plan = story.events.iter().find_map(|event| match &event.kind {
        PushEventKind::Plan { functions, .. } => Some(functions.clone()),
        _ => None,
    });
    let plan = plan.unwrap();
    assert_eq!((plan[0].name.as_str(), &plan[0].action), ("hello", &PlannedAction::Build));
}

#[test]
fn a_story_can_be_followed_from_any_event_while_and_after_it_happens() {
    let world = World::new();
    world.builder.on_build("hello", OnBuild::Hang);
    let stack = stack(&["hello"]);
    let push = world.submit(&[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    world.run(world.builder.hanging(1));
    let during = world.pipeline().follow(push, 3);
    let (during, _) = world.run(async {
        let cancelled = async { world.pipeline().cancel(&owner("alice"), push) };
        futures_util::future::join(during.collect::<Vec<_>>(), cancelled).await
    });
    assert_eq!(during[0].seq, 3);
    let all = world.story(push).events;
    assert_eq!(during, all[2..]);
    let after = world.run(world.pipeline().follow(push, 3).collect::<Vec<_>>());
    assert_eq!(after, during);
    let nothing = world.pipeline().follow(updraft_pipeline::PushId::new(99), 1);
    assert!(world.run(nothing.collect::<Vec<_>>()).is_empty());
}
