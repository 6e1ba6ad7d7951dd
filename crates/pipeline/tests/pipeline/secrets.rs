//! Sealed secrets that come with a push: whose they may be, what they replace, who starts afresh,
//! and what is told when one cannot be taken.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use updraft_engine::{Engine, SecretItems, SecretOrigin};
use updraft_model::{Namespace, SecretName};
use updraft_pipeline::{PipelineOptions, PushEventKind, PushState, SecretOutcome, Unsealer};
use updraft_seal::{
    Certificate, Hints, KeyRing, KeyRingOptions, Limits, OpenedSecret, OpeningKey, PrivateKey,
    Scope, SealedSecret, SecretBytes, UnsealError, seal_value, unseal_with_keys,
};

use crate::world::{BOUND, Story, World, owner, stack};

const DOCKERFILE: &str = "FROM scratch\n";

/// The one key of a platform, of a size that tests can wait for.
#[derive(Debug)]
struct OneKey(PrivateKey);

impl Unsealer for OneKey {
    fn unseal(&self, secret: &SealedSecret, hints: &Hints) -> Result<OpenedSecret, UnsealError> {
        let key = OpeningKey { key: &self.0, in_use: true };
        unseal_with_keys(&[key], secret, hints, Limits::usual())
    }
}

fn sealer() -> (Arc<OneKey>, Certificate) {
    let key = PrivateKey::generate(2048).unwrap();
    let certificate = key.certify("", Timestamp::now(), SignedDuration::from_hours(1)).unwrap();
    (Arc::new(OneKey(key)), certificate)
}

/// A platform that opens what is sealed with the certificate.
fn world_with(change: fn(&mut PipelineOptions)) -> (World, Certificate) {
    let (key, certificate) = sealer();
    let mut world = World::with(change);
    world.kill();
    world.unsealer = key;
    world.start();
    (world, certificate)
}

fn world() -> (World, Certificate) {
    world_with(|_| {})
}

fn value(certificate: &Certificate, label: &str, value: &[u8]) -> String {
    seal_value(certificate, label.as_bytes(), &SecretBytes::new(value.to_vec())).unwrap()
}

/// A document in strict scope for the functions' namespace.
fn sealed(certificate: &Certificate, name: &str, items: &[(&str, &str)]) -> String {
    let label = format!("openfaas-fn/{name}");
    let mut text = format!(
        "---\napiVersion: bitnami.com/v1alpha1\nkind: SealedSecret\nmetadata:\n  name: {name}\n  \
         namespace: openfaas-fn\nspec:\n  encryptedData:\n"
    );
    for (key, plain) in items {
        let sealed = value(certificate, &label, plain.as_bytes());
        writeln!(text, "    {key}: {sealed}").unwrap();
    }
    text
}

/// A stack of one function `hello` with secrets.
fn stack_with(secrets: &[&str]) -> String {
    let mut text = stack(&["hello"]);
    text.push_str("    secrets:\n");
    for name in secrets {
        writeln!(text, "      - {name}").unwrap();
    }
    text
}

fn name(text: &str) -> SecretName {
    SecretName::new(text).unwrap()
}

fn held(world: &World, secret: &str) -> Option<BTreeMap<String, String>> {
    let items = world.run(world.engine.read_secret(&Namespace::default(), &name(secret))).ok()?;
    let text = |items: &SecretItems| {
        let items = items.iter();
        items
            .map(|(key, value)| {
                (key.to_string(), String::from_utf8_lossy(value.expose()).into_owned())
            })
            .collect()
    };
    Some(text(&items))
}

fn items(items: &[(&str, &str)]) -> BTreeMap<String, String> {
    items.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn outcomes(story: &Story) -> Vec<(String, SecretOutcome)> {
    let of = |event: &updraft_pipeline::PushEvent| match &event.kind {
        PushEventKind::SecretTaken { secret, outcome, .. } => Some((secret.to_string(), *outcome)),
        _ => None,
    };
    story.events.iter().filter_map(of).collect()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + BOUND;
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::yield_now();
    }
}

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

/// What may be wrong with a document, and what is told of it.
#[test]
fn what_cannot_be_taken_is_told_with_file_document_and_key_and_the_old_secret_stays() {
    let (world, certificate) = world();
    let (_, stranger) = sealer();
    let good = sealed(&certificate, "alice-db", &[("password", "old")]);
    let stack = stack_with(&["db"]);
    world.push(&[
        ("stack.yml", stack.as_str()),
        ("hello/Dockerfile", DOCKERFILE),
        ("secrets.yml", &good),
    ]);
    world.engine.take_applied();
    let strict = "openfaas-fn/alice-db";
    let db = |sealed: &str| {
        format!(
            "apiVersion: bitnami.com/v1alpha1\nkind: SealedSecret\nmetadata:\n  name: alice-db\n  \
             namespace: openfaas-fn\nspec:\n  encryptedData:\n    password: {sealed}\n"
        )
    };
    let new = value(&certificate, strict, b"new");
    let flipped = {
        let mut text = new.clone().into_bytes();
        let last = text.len() - 8;
        text[last] = if text[last] == b'A' { b'B' } else { b'A' };
        String::from_utf8(text).unwrap()
    };
    let cut = &new[..new.len() / 2 / 4 * 4];
    let wide = |scope: Scope| {
        let label = String::from_utf8(scope.label("openfaas-fn", "alice-db")).unwrap();
        let document = db(&value(&certificate, &label, b"new"));
        let annotation = scope.annotation().unwrap();
        document.replace("spec:", &format!("  annotations: {{ {annotation}: \"true\" }}\nspec:"))
    };
    let large = value(&certificate, strict, &vec![b'x'; 1 << 20]);
    let two_large = db(&large) + &format!("    second: {large}\n");
    let ten_megabytes = db(&"A".repeat(10 << 20));
    let opaque = "no key could decrypt secret (password)";
    for (what, file, expected) in [
        ("truncated", db(cut), opaque),
        ("bit-flipped", db(&flipped), opaque),
        ("of another platform", db(&value(&stranger, strict, b"new")), opaque),
        ("for another name", db(&value(&certificate, "openfaas-fn/alice-x", b"new")), opaque),
        ("no base64", db("\"no base64!\""), "password"),
        ("namespace-wide", wide(Scope::NamespaceWide), "seal it again in scope `strict`"),
        ("cluster-wide", wide(Scope::ClusterWide), "seal it again in scope `strict`"),
        ("too large", two_large, "1572864 bytes"),
        ("ten megabytes", ten_megabytes, "8 MiB are allowed"),
        ("no known version", db(&new).replace("v1alpha1", "v2"), "bitnami.com/v2"),
        ("a key twice", db(&new) + &format!("    password: {new}\n"), "password"),
        ("elsewhere", db(&new).replace(" openfaas-fn", " kube-system"), "`kube-system`"),
        ("not YAML", "\t{".to_owned(), "secrets.yml"),
        ("two of one name", format!("{}---\n{}", db(&new), db(&new)), "2 documents have this name"),
        ("upper case", db(&new).replace("alice-db", "Alice-DB"), "seal it again as `alice-db`"),
        (
            "one name in two cases",
            format!("{}---\n{}", db(&new), db(&new).replace("alice-db", "alice-DB")),
            "2 documents have this name",
        ),
        (
            "unsealed",
            "apiVersion: v1\nkind: Secret\nmetadata: {name: alice-db}\n".to_owned(),
            "not sealed",
        ),
    ] {
        let story = world.push(&[("secrets.yml", &file)]);
        let text = story.text();
        assert_eq!(story.state(), PushState::Failed, "{what}: {text}");
        assert!(text.contains(expected), "{what}: {text}");
        assert!(text.contains("secrets.yml"), "{what}: {text}");
        assert!(!text.contains("new\n") && text.len() < 4000, "{what}: {text}");
        assert_eq!(held(&world, "alice-db"), Some(items(&[("password", "old")])), "{what}");
        assert!(world.engine.take_applied().is_empty(), "{what}: the function is left alone");
        assert!(text.contains("not taken: "), "{what}: {text}");
        let whole_file =
            ["ten megabytes", "no known version", "a key twice", "not YAML", "too large"];
        if !whole_file.contains(&what) {
            assert!(text.contains("document 1"), "{what}: {text}");
        }
        assert!(text.contains("which these functions have: hello"), "{what}: {text}");
    }
    // What is right again is taken again, bytes of every kind included.
    let all: Vec<u8> = (0..=255).collect();
    let story = world.push(&[("secrets.yml", &db(&value(&certificate, strict, &all)))]);
    assert_eq!(story.state(), PushState::Ready, "{}", story.text());
    let read = world.run(world.engine.read_secret(&Namespace::default(), &name("alice-db")));
    assert_eq!(read.unwrap().get("password").unwrap().expose(), all);
}

#[test]
fn one_bad_document_stops_neither_the_others_nor_the_functions() {
    let (world, certificate) = world();
    let bad = sealed(&certificate, "alice-bad", &[("k", "v")])
        .replace("name: alice-bad", "name: alice-moved");
    let file = bad + &sealed(&certificate, "alice-good", &[("k", "v")]);
    let stack = stack_with(&["good"]);
    let story = world.push(&[
        ("stack.yml", stack.as_str()),
        ("hello/Dockerfile", DOCKERFILE),
        ("secrets.yml", &file),
    ]);
    assert_eq!(story.state(), PushState::Failed);
    assert_eq!(held(&world, "alice-good"), Some(items(&[("k", "v")])));
    assert_eq!(world.live("hello"), Some(1));
    let summary = story.verdict.unwrap().summary;
    assert_eq!(summary, "1 function live, 1 secret not taken: alice-moved");
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
    let machine_key = folder.path().join("machine-key");
    let options = KeyRingOptions { key_bits: 2048, ..KeyRingOptions::usual(machine_key) };
    let ring = Arc::new(KeyRing::open(&folder.path().join("keys"), options).unwrap());
    let mut world = World::new();
    world.kill();
    world.unsealer = Arc::<KeyRing>::clone(&ring);
    world.start();
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
    let open = |place: &str, make| {
        let machine_key = folder.path().join(place).join("machine-key");
        let usual = KeyRingOptions::usual(machine_key);
        let options = KeyRingOptions { key_bits: 2048, make, ..usual };
        Arc::new(KeyRing::open(&folder.path().join(place).join("keys"), options).unwrap())
    };
    let world_of = |ring: &Arc<KeyRing>| {
        let mut world = World::new();
        world.kill();
        world.unsealer = Arc::<KeyRing>::clone(ring);
        world.start();
        world
    };
    let ring = open("before", true);
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
    let ring = open("after", true);
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
