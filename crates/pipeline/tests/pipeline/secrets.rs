//! Sealed secrets that come with a push: whose they may be, what they replace, who starts afresh.

use jiff::Timestamp;
use updraft_engine::{Engine, SecretOrigin};
use updraft_model::Namespace;
use updraft_pipeline::{PushState, SecretOutcome};
use updraft_seal::Certificate;

use crate::sealing::{
    DOCKERFILE, held, items, name, outcomes, ring, sealed, stack_with, until, value, world,
    world_of, world_with,
};
use crate::world::owner;

#[test]
fn a_sealed_secret_comes_with_its_push_and_its_functions_start_afresh_when_it_changes() {
    let (world, certificate) = world();
    let first = sealed(&certificate, "alice-db", &[("user", "u1"), ("password", "p1")]);
    let stack = stack_with(&["db"]);
    let files = [
        ("stack.yml", stack.as_str()),
        ("hello/Dockerfile", DOCKERFILE),
        ("secrets.yml", first.as_str()),
    ];
    let story = world.push(&files);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    let told = "secret alice-db is new (secrets.yml: password, user)";
    assert!(story.text().contains(told), "{}", story.text());
    assert_eq!(held(&world, "alice-db"), Some(items(&[("user", "u1"), ("password", "p1")])));
    let known = world.run(world.engine.list_secrets(&Namespace::default())).unwrap().remove(0);
    let SecretOrigin::Sealed { repository, file, .. } = known.origin else { panic!("by hand") };
    assert_eq!((repository.as_str(), file.as_str()), ("shop", "secrets.yml"));
    world.engine.take_applied();

    // The same again does nothing to anybody.
    let story = world.push(&[("README", "x")]);
    assert_eq!(outcomes(&story), [("alice-db".to_owned(), SecretOutcome::Unchanged)]);
    assert!(world.engine.take_applied().is_empty());

    // An item less and another value: the set is replaced, and the function starts afresh
    // although nothing else has changed.
    let second = sealed(&certificate, "alice-db", &[("user", "u2")]);
    let story = world.push(&[("secrets.yml", &second)]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    assert_eq!(outcomes(&story), [("alice-db".to_owned(), SecretOutcome::Replaced)]);
    assert_eq!(held(&world, "alice-db"), Some(items(&[("user", "u2")])));
    assert_eq!(world.engine.take_applied(), ["alice-hello"]);
    assert!(story.text().contains("hello v1 is live"), "{}", story.text());
    for value in ["u1", "p1", "u2"] {
        assert!(!format!("{:?}", story.events).contains(value), "a value in the story");
    }
}

#[test]
fn secrets_come_from_every_file_that_the_stack_names_and_several_from_one() {
    let (world, certificate) = world();
    let two = sealed(&certificate, "alice-one", &[("one", "1")])
        + &sealed(&certificate, "alice-two", &[("two", "2")]);
    let more = sealed(&certificate, "alice-more", &[("more", "3")]);
    let stack = format!("{}sealed_secrets: [deploy/more.yml]\n", stack_with(&["one", "more"]));
    let story = world.push(&[
        ("stack.yml", stack.as_str()),
        ("hello/Dockerfile", DOCKERFILE),
        ("secrets.yml", &two),
        ("deploy/more.yml", &more),
    ]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    assert_eq!(outcomes(&story).len(), 3);
    let spec = world.engine.spec("alice-hello").unwrap();
    assert_eq!(spec.secrets, [name("alice-one"), name("alice-more")]);
}

/// `al` may not write what is `alice`'s, nor `alice` what is `al`'s, and two owners of which one
/// could pose as the other never exist.
#[test]
fn an_owner_has_secrets_of_exactly_that_name() {
    let (world, certificate) = world();
    for (who, secret, may) in [
        ("al", "alice-db", false),
        ("al", "al-db", true),
        ("alice", "al-db", false),
        ("alice", "alicedb", false),
        ("alice", "alice", false),
        ("alice", "alice-", false),
        ("alice", "bob-db", false),
        ("alice", "alice-al-db", true),
    ] {
        let file = sealed(&certificate, secret, &[("k", who)]);
        let story = world.push_to(who, "keys", &[("secrets.yml", &file)]);
        let expected = if may { PushState::Ready } else { PushState::Failed };
        assert_eq!(story.state(), expected, "{who} {secret}: {}", story.text());
        if !may {
            assert!(story.text().contains("secrets.yml, document 1"), "{}", story.text());
        }
    }
    assert_eq!(held(&world, "al-db"), Some(items(&[("k", "al")])));
    let commit = world.commit("alice-b", "keys", &[("secrets.yml", "")]);
    let request = crate::world::request("alice-b", "keys", &commit);
    let refused = world.run(world.pipeline().submit(request)).unwrap_err().to_string();
    assert!(refused.contains("alice"), "{refused}");
}

#[test]
fn wider_scopes_are_taken_where_the_operator_allows_them() {
    let (world, certificate) = world_with(|options| options.wider_scopes = true);
    let sealed = value(&certificate, "", b"anywhere");
    let file = format!(
        "apiVersion: bitnami.com/v1alpha1\nkind: SealedSecret\nmetadata:\n  name: alice-wide\n  \
         annotations: {{ sealedsecrets.bitnami.com/cluster-wide: \"true\" }}\nspec:\n  \
         encryptedData: {{ k: {sealed} }}\n"
    );
    let story = world.push(&[("secrets.yml", &file)]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    assert_eq!(held(&world, "alice-wide"), Some(items(&[("k", "anywhere")])));
}

#[test]
fn a_repository_may_hold_secrets_alone_and_functions_of_others_start_afresh() {
    let (world, certificate) = world();
    let push_keys = |plain: &str| {
        let file = sealed(&certificate, "alice-db", &[("k", plain)]);
        world.push_to("alice", "keys", &[("secrets.yaml", &file)])
    };
    assert_eq!(push_keys("1").state(), PushState::Ready);
    let stack = stack_with(&["db"]);
    world.push(&[("stack.yml", stack.as_str()), ("hello/Dockerfile", DOCKERFILE)]);
    world.engine.take_applied();
    let story = push_keys("2");
    let told = "hello v1 of repository shop is started afresh with alice-db";
    assert!(story.text().contains(told), "{}", story.text());
    assert_eq!(world.engine.take_applied(), ["alice-hello"]);
    // Another repository cannot take it over by chance.
    let other = sealed(&certificate, "alice-db", &[("k", "3")]);
    let story = world.push(&[("secrets.yml", &other)]);
    let told = "repository `keys` has a document of this name already";
    assert!(story.text().contains(told), "{}", story.text());
    assert_eq!(held(&world, "alice-db"), Some(items(&[("k", "2")])));
    // Who loses the stack file does not lose the functions.
    let story = world.push(&[("stack.yml", "-")]);
    assert!(story.text().contains("no `stack.yml`"), "{}", story.text());
    assert!(world.engine.spec("alice-hello").is_some());
}

#[test]
fn a_secret_that_left_the_repository_goes_once_no_function_has_it() {
    let (world, certificate) = world();
    let file = sealed(&certificate, "alice-db", &[("k", "v")]);
    let stack = stack_with(&["db"]);
    world.push(&[
        ("stack.yml", stack.as_str()),
        ("hello/Dockerfile", DOCKERFILE),
        ("secrets.yml", &file),
    ]);
    world.engine.add_secret("alice-by-hand");
    let story = world.push(&[("secrets.yml", "-")]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    let told = "alice-db left the repository and stays, because these functions have it: hello";
    assert!(story.text().contains(told), "{}", story.text());
    assert!(held(&world, "alice-db").is_some());
    // A file that cannot be read is no file without secrets.
    let without = crate::world::stack(&["hello"]);
    let story = world.push(&[("stack.yml", &without), ("secrets.yml", "\t{")]);
    assert_eq!(story.state(), PushState::Failed);
    assert!(held(&world, "alice-db").is_some());
    let story = world.push(&[("secrets.yml", "-")]);
    assert!(
        story.text().contains("alice-db left the repository and is removed"),
        "{}",
        story.text()
    );
    assert_eq!(held(&world, "alice-db"), None);
    assert!(held(&world, "alice-by-hand").is_some(), "what was set by hand is no repository's");
}

#[test]
fn templates_are_filled_in_and_what_could_steer_the_platform_is_left_out() {
    let (world, certificate) = world();
    let file = sealed(&certificate, "alice-db", &[("password", "p")])
        + "  template:\n    type: Opaque\n    immutable: true\n    metadata:\n      labels: { app: shop, \
           com.openfaas.scale.max: \"9\" }\n    data:\n      url: 'db://u:{{ .password }}@h'\n";
    let story = world.push(&[("secrets.yml", &file)]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    let told = "label `com.openfaas.scale.max` of its template is left out";
    assert!(story.text().contains(told), "{}", story.text());
    assert_eq!(held(&world, "alice-db"), Some(items(&[("password", "p"), ("url", "db://u:p@h")])));
    let known = world.run(world.engine.list_secrets(&Namespace::default())).unwrap().remove(0);
    assert_eq!(
        known.labels.into_iter().collect::<Vec<_>>(),
        [("app".to_owned(), "shop".to_owned())]
    );
    // It says of itself that it never changes.
    let other = sealed(&certificate, "alice-db", &[("password", "q")]);
    let story = world.push(&[("secrets.yml", &other)]);
    assert!(story.text().contains("immutable"), "{}", story.text());
    assert_eq!(story.state(), PushState::Failed);
}

#[test]
fn a_function_waits_for_its_secret_and_starts_by_itself_whoever_brings_it() {
    let (mut world, certificate) = world();
    let stack = stack_with(&["db"]);
    let files = [("stack.yml", stack.as_str()), ("hello/Dockerfile", DOCKERFILE)];
    let story = world.push(&files);
    assert_eq!(story.state(), PushState::Failed);
    assert!(story.text().contains("waits: secret db not found"), "{}", story.text());
    assert_eq!(world.live("hello"), None);
    // It waits in the next process too.
    world.kill();
    world.start();
    world.engine.add_secret("alice-db");
    until("the function is live", || world.live("hello") == Some(1));

    let stack = stack_with(&["db", "more"]);
    let story = world.push(&[("stack.yml", &stack)]);
    assert!(story.text().contains("waits: secret more not found"), "{}", story.text());
    assert!(story.text().contains("v1 goes on serving"), "{}", story.text());
    let file = sealed(&certificate, "alice-more", &[("k", "v")]);
    let story = world.push_to("alice", "keys", &[("secrets.yml", &file)]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    until("the function is live", || world.live("hello") == Some(2));
}

#[test]
fn what_was_set_by_hand_is_replaced_with_a_warning() {
    let (world, certificate) = world();
    world.run(world.store.ensure_owner(&owner("alice"))).unwrap();
    world.engine.add_secret("alice-db");
    let file = sealed(&certificate, "alice-db", &[("k", "v")]);
    let story = world.push(&[("secrets.yml", &file)]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    assert!(
        story.text().contains("was set by hand, the sealed one replaces it"),
        "{}",
        story.text()
    );
}

#[test]
fn a_renewal_of_the_key_in_the_middle_of_a_hundred_pushes_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ring = ring(folder.path(), true);
    let world = world_of(&ring);
    let first = ring.certificate().unwrap();
    let mut all = String::new();
    let mut pushes = Vec::new();
    std::thread::scope(|scope| {
        let mut renewing = None;
        for number in 0..100 {
            if number == 50 {
                // Beside the pushes, as by the clock.
                renewing = Some(scope.spawn(|| ring.renew(Timestamp::now()).unwrap()));
            }
            // Half of the people never fetch the new certificate.
            let newest = ring.certificate().unwrap();
            let certificate = if number % 2 == 0 { &first } else { &newest };
            all += &sealed(certificate, &format!("alice-s{number}"), &[("k", &number.to_string())]);
            pushes.push(world.submit(&[("secrets.yml", &all)]));
            if number % 10 == 9 {
                world.story(*pushes.last().unwrap());
            }
        }
        drop(renewing.map(|renewing| renewing.join().unwrap()));
    });
    let last = world.story(*pushes.last().unwrap());
    assert_eq!(last.state(), PushState::Ready, "{}", last.text());
    for push in pushes {
        let state = world.story(push).state();
        assert!(matches!(state, PushState::Ready | PushState::Superseded), "{state}");
    }
    assert_ne!(ring.certificate().unwrap().fingerprint(), first.fingerprint());
    for number in 0..100 {
        let expected = Some(items(&[("k", &number.to_string())]));
        assert_eq!(held(&world, &format!("alice-s{number}")), expected, "{number}");
    }
}

#[test]
fn after_a_fire_the_keys_and_the_repository_bring_the_secrets_back() {
    let folder = tempfile::tempdir().unwrap();
    let open = |place: &str| ring(&folder.path().join(place), true);
    let ring = open("before");
    let file = sealed(&ring.certificate().unwrap(), "alice-db", &[("password", "p")]);
    let stack = stack_with(&["db"]);
    let files = [
        ("stack.yml", stack.as_str()),
        ("hello/Dockerfile", DOCKERFILE),
        ("secrets.yml", file.as_str()),
    ];
    let world = world_of(&ring);
    assert_eq!(world.push(&files).state(), PushState::Ready);
    // A renewal after the backup's time makes no difference to what was sealed before.
    let backup = ring.pairs();
    ring.renew(Timestamp::now()).unwrap();
    drop((world, ring));
    std::fs::remove_dir_all(folder.path().join("before")).unwrap();

    // An empty machine with keys of its own opens nothing, and says so.
    let ring = open("after");
    let world = world_of(&ring);
    let story = world.push(&files);
    assert_eq!(story.state(), PushState::Failed);
    assert!(story.text().contains("no key could decrypt secret (password)"), "{}", story.text());
    assert!(story.text().contains("waits: secret db not found"), "{}", story.text());
    // With the backup it does, and whoever waited runs.
    assert_eq!(ring.add(&backup).unwrap(), 1);
    let story = world.push(&[]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    assert_eq!(held(&world, "alice-db"), Some(items(&[("password", "p")])));
    assert_eq!(world.engine.spec("alice-hello").unwrap().secrets, [name("alice-db")]);
}

#[test]
fn what_becomes_of_secrets_is_counted_and_the_keys_they_need_are_taken_down() {
    let folder = tempfile::tempdir().unwrap();
    let ring = ring(folder.path(), true);
    let mut registry = prometheus_client::registry::Registry::default();
    ring.register_metrics(&mut registry, "test");
    let counted = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    };
    let world = world_of(&ring);
    let old = ring.certificate().unwrap();
    let push = |certificate: &Certificate, names: &[&str]| {
        let of = |name: &&str| sealed(certificate, name, &[("k", "v")]);
        let file: String = names.iter().map(of).collect();
        world.push(&[("secrets.yml", &file)])
    };
    assert_eq!(push(&old, &["alice-a", "alice-b"]).state(), PushState::Ready);
    let labels = |name: &str| {
        format!(
            "sealed_secrets_controller_condition_info{{namespace=\"openfaas-fn\",\
             name=\"{name}\",condition=\"Synced\",ss_app_kubernetes_io_instance=\"\"}}"
        )
    };
    for name in ["alice-a", "alice-b"] {
        assert!(counted().contains(&format!("{} 1\n", labels(name))), "{}", counted());
    }
    assert_eq!(ring.uses(old.fingerprint()).unwrap(), ["alice-a", "alice-b"]);

    // What cannot be opened is counted as failed, and goes on needing the key it was opened with.
    ring.renew(Timestamp::now()).unwrap();
    let (_, stranger) = crate::sealing::sealer();
    assert_eq!(push(&stranger, &["alice-a"]).state(), PushState::Failed);
    assert!(counted().contains(&format!("{} -1\n", labels("alice-a"))), "{}", counted());
    let errors = "unseal_errors_total{reason=\"unseal\",namespace=\"openfaas-fn\"} 1\n";
    assert!(counted().contains(errors), "{}", counted());
    assert!(!counted().contains("alice-b"), "it left the repository: {}", counted());
    assert_eq!(ring.uses(old.fingerprint()).unwrap(), ["alice-a"]);

    // Sealed again with the newest it needs the old key no more.
    assert_eq!(push(&ring.certificate().unwrap(), &["alice-a"]).state(), PushState::Ready);
    assert!(counted().contains(&format!("{} 1\n", labels("alice-a"))), "{}", counted());
    assert!(ring.uses(old.fingerprint()).unwrap().is_empty());
    // Another repository may not have the name, a file that is none is told as such.
    let file = sealed(&ring.certificate().unwrap(), "alice-a", &[("k", "v")]);
    world.push_to("alice", "other", &[("secrets.yml", &file)]);
    world.push_to("alice", "other", &[("secrets.yml", "\t{")]);
    for reason in ["unmanaged", "fetch"] {
        let error = format!("unseal_errors_total{{reason=\"{reason}\",namespace=");
        assert!(counted().contains(&error), "{reason}: {}", counted());
    }
    push(&old, &[]);
    assert!(!counted().contains("alice-a"), "{}", counted());
}
