//! Sealed secrets that cannot be taken: what is told, and what goes on as it was.

use updraft_engine::Engine;
use updraft_model::Namespace;
use updraft_pipeline::PushState;
use updraft_seal::Scope;

use crate::sealing::{DOCKERFILE, held, items, name, sealed, sealer, stack_with, value, world};

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
    let broken = format!("|\n      {}\n      {}", &new[..100], &new[100..]);
    let opaque = "no key could decrypt secret (password)";
    let json_cut = format!(
        "{{\"apiVersion\": \"bitnami.com/v1alpha1\", \"kind\": \"SealedSecret\", \"metadata\": \
         {{\"name\": \"alice-db\"}}, \"spec\": {{\"encryptedData\": {{\"password\": \"{}",
        &new[..200]
    );
    let many: String = (0..1001).fold(db(&new), |file, key| file + &format!("    k{key}: AAAA\n"));
    let binary = [db("A").as_bytes(), &[0xff, 0x00, 0xfe], b"\n"].concat();
    let item = Some("password");
    for (what, file, expected, key) in [
        ("truncated, the value", db(cut).into(), opaque, item),
        ("truncated, in the value", db(&new[..=new.len() / 2 / 4 * 4]).into(), "base64", item),
        ("truncated, before the value", db("@").replace(": @\n", "").into(), "", None),
        ("truncated, JSON", json_cut.into(), "not valid JSON", item),
        ("bit-flipped", db(&flipped).into(), "it is damaged", item),
        ("oversized value", db(&"A".repeat(2 << 20)).into(), "larger than", item),
        ("oversized together", two_large.into(), "1572864 bytes", Some("second")),
        ("too many items", many.into(), "1000 are allowed", None),
        ("ten megabytes", db(&"A".repeat(10 << 20)).into(), "8388608 are allowed", item),
        ("ten megabytes of bytes", db(&"A".repeat((10 << 20) / 3 * 4)).into(), "8388608", item),
        ("wrong scope, namespace-wide", wide(Scope::NamespaceWide).into(), "scope `strict`", None),
        ("wrong scope, cluster-wide", wide(Scope::ClusterWide).into(), "scope `strict`", None),
        (
            "wrong scope, without the annotation",
            db(&value(&certificate, "openfaas-fn", b"new")).into(),
            "it was sealed namespace-wide",
            item,
        ),
        (
            "for another name",
            db(&value(&certificate, "openfaas-fn/alice-x", b"new")).into(),
            opaque,
            item,
        ),
        ("of another platform", db(&value(&stranger, strict, b"new")).into(), opaque, item),
        ("duplicate keys", (db(&new) + &format!("    password: {new}\n")).into(), "twice", item),
        ("invalid base64", db("\"no base64!\"").into(), "not valid base64", item),
        ("base64 with a line break", db(&broken).into(), "not valid base64", item),
        ("a number for a value", db("7").into(), "must be a text, this is a number", item),
        (
            "unknown apiVersion",
            db(&new).replace("v1alpha1", "v2").into(),
            "apiVersion `bitnami.com/v2`",
            None,
        ),
        ("binary bytes in the file", binary, "no UTF-8 text", item),
        (
            "a key that is no file name",
            db(&new).replace("password:", "\"pass/word\":").into(),
            "letters, digits",
            Some("pass/word"),
        ),
        (
            "elsewhere",
            db(&new).replace(" openfaas-fn", " kube-system").into(),
            "namespace `kube-system`",
            None,
        ),
        ("not YAML", b"metadata: [alice".to_vec(), "not valid YAML", None),
        (
            "two of one name",
            format!("{}---\n{}", db(&new), db(&new)).into(),
            "2 documents have this name",
            None,
        ),
        (
            "upper case",
            db(&new).replace("alice-db", "Alice-DB").into(),
            "seal it again as `alice-db`",
            None,
        ),
        (
            "names that collide after lower-casing",
            format!("{}---\n{}", db(&new), db(&new).replace("alice-db", "alice-DB")).into(),
            "2 documents have this name",
            None,
        ),
        (
            "unsealed",
            b"apiVersion: v1\nkind: Secret\nmetadata: {name: alice-db}\n".to_vec(),
            "not sealed",
            None,
        ),
        (
            "of another tool",
            b"version: v1\nalgorithm: nacl/box\nkey_id: abcdefgh\nsecrets: {k: AAAA}\n".to_vec(),
            "seal its values with `updraft seal`",
            None,
        ),
    ] {
        let file: Vec<u8> = file;
        std::fs::write(world.checkout("alice", "shop").join("secrets.yml"), &file).unwrap();
        let story = world.push(&[]);
        let text = story.text();
        assert_eq!(story.state(), PushState::Failed, "{what}: {text}");
        assert!(text.contains(expected), "{what}: {text}");
        assert!(text.contains("not taken: secrets.yml"), "{what}: {text}");
        assert!(text.contains("document 1"), "{what}: {text}");
        let told = |key: &str| {
            text.contains(&format!("({key})"))
                || text.contains(&format!("item `{key}`"))
                || text.contains(&format!("key `{key}`"))
        };
        assert!(key.is_none_or(told), "{what}: {text}");
        assert!(!text.contains(&new[..40]) && text.len() < 4000, "{what}: {text}");
        assert_eq!(held(&world, "alice-db"), Some(items(&[("password", "old")])), "{what}");
        assert!(world.engine.take_applied().is_empty(), "{what}: the function is left alone");
        assert!(text.contains("which these functions have: hello"), "{what}: {text}");
    }
    // What is somebody else's stays theirs, and who has it is nobody's business here.
    let theirs = sealed(&certificate, "bob-db", &[("k", "bob's")]);
    assert_eq!(world.push_to("bob", "keys", &[("secrets.yml", &theirs)]).state(), PushState::Ready);
    let story = world.push(&[("secrets.yml", &sealed(&certificate, "bob-db", &[("k", "v")]))]);
    let text = story.text();
    for told in ["secret bob-db not taken: secrets.yml, document 1", "must begin with `alice-`"] {
        assert!(text.contains(told), "{told}: {text}");
    }
    assert!(!text.contains("bob-db keeps"), "{text}");
    assert_eq!(story.state(), PushState::Failed);
    assert_eq!(held(&world, "bob-db"), Some(items(&[("k", "bob's")])));
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

#[test]
fn a_document_that_cannot_be_read_stops_no_other_of_its_file() {
    let (world, certificate) = world();
    let first = sealed(&certificate, "alice-a", &[("k", "1")])
        + &sealed(&certificate, "alice-b", &[("k", "1")])
        + &sealed(&certificate, "alice-c", &[("k", "1")]);
    assert_eq!(world.push(&[("secrets.yml", &first)]).state(), PushState::Ready);
    // One of another version, and one that was cut off.
    let unknown = sealed(&certificate, "alice-b", &[("k", "2")]).replace("v1alpha1", "v2");
    let cut = "---\napiVersion: bitnami.com/v1alpha1\nkind: SealedSecret\nmetadata:\n  name: alice-c\n\
               spec:\n  encryptedData:\n    k: AAAA\n    pass";
    let file = sealed(&certificate, "alice-a", &[("k", "2")]) + &unknown + cut;
    let story = world.push(&[("secrets.yml", &file)]);
    assert_eq!(story.state(), PushState::Failed);
    let text = story.text();
    for told in [
        "secret alice-b not taken: secrets.yml: document 2 (line 11): apiVersion `bitnami.com/v2`",
        "secret alice-b keeps its earlier value",
        "secrets not taken: secrets.yml: document 3 (line ",
        "item `pass`: not valid YAML",
        "what it brought before stays",
    ] {
        assert!(text.contains(told), "`{told}` is missing: {text}");
    }
    let now =
        ["alice-a", "alice-b", "alice-c"].map(|name| held(&world, name).unwrap()["k"].clone());
    assert_eq!(now, ["2", "1", "1"], "what is not named for sure is not gone");
}
