//! The format's test vectors, read both ways, and everything that must not open.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod reference;

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reference::{CLUSTER, EMPTY, NAMESPACE, STRICT, test_certificate, test_key};
use sha2::Digest;
use updraft_seal::{
    Certificate, Document, Hints, Limits, OpenedSecret, OpeningKey, PrivateKey, SealedSecret,
    UnsealError, parse_documents, seal_value, unseal_with_keys,
};

fn sealed(text: &str) -> SealedSecret {
    let mut documents = parse_documents(text.as_bytes(), Limits::usual()).unwrap();
    match documents.remove(0) {
        Document::Sealed(secret) => *secret,
        Document::Other(other) => panic!("{other:?}"),
    }
}

fn object(name: &str, annotation: &str, value: &str) -> SealedSecret {
    let annotations = match annotation {
        "" => String::new(),
        scope => format!(", annotations: {{sealedsecrets.bitnami.com/{scope}: \"true\"}}"),
    };
    sealed(&format!(
        "apiVersion: bitnami.com/v1alpha1\nkind: SealedSecret\n\
         metadata: {{name: {name}, namespace: openfaas-fn{annotations}}}\n\
         spec:\n  encryptedData: {{alexellis-api: \"{value}\"}}\n  \
         template: {{metadata: {{labels: {{app: demo}}}}, type: Opaque}}\n"
    ))
}

fn open(secret: &SealedSecret) -> Result<OpenedSecret, UnsealError> {
    let key = test_key();
    let keys = [OpeningKey { key: &key, in_use: true }];
    unseal_with_keys(&keys, secret, &Hints::default(), Limits::usual())
}

fn opaque(secret: &SealedSecret) -> String {
    open(secret).unwrap_err().opaque()
}

const REFUSED: &str = "no key could decrypt secret (alexellis-api)";

#[test]
fn the_reference_values_open_in_their_scopes() {
    for (annotation, value, expected) in [
        ("", STRICT, &b"s3cr3t-v4lue"[..]),
        ("namespace-wide", NAMESPACE, b"s3cr3t-v4lue"),
        ("cluster-wide", CLUSTER, b"s3cr3t-v4lue"),
        ("", EMPTY, b""),
    ] {
        let opened = open(&object("alexellis-api", annotation, value)).unwrap();
        assert_eq!(opened.items["alexellis-api"].expose(), expected, "{annotation}");
        assert_eq!(opened.labels["app"], "demo");
        assert_eq!(opened.kind.as_deref(), Some("Opaque"));
    }
    open(&object("any-other", "namespace-wide", NAMESPACE)).unwrap();
    open(&object("any-other", "cluster-wide", CLUSTER)).unwrap();
}

#[test]
fn everything_that_must_not_open_gives_the_same_sentence() {
    let strict = STANDARD.decode(STRICT).unwrap();
    let encode = |bytes: &[u8]| STANDARD.encode(bytes);
    let flipped = |at: usize| {
        let mut bytes = strict.clone();
        bytes[at] ^= 1;
        encode(&bytes)
    };
    let mut prefix = strict.clone();
    prefix[..2].copy_from_slice(&[0xff, 0xff]);
    let other = PrivateKey::generate(2048).unwrap();
    let lifetime = jiff::SignedDuration::from_hours(1);
    let other = other.certify("", jiff::Timestamp::now(), lifetime).unwrap();
    let foreign = seal_value(&other, b"openfaas-fn/alexellis-api", b"s3cr3t-v4lue").unwrap();
    for (what, value) in [
        ("one byte", encode(&strict[..1])),
        ("no payload", encode(&strict[..258])),
        ("last byte flipped", flipped(strict.len() - 1)),
        ("first byte of the key part flipped", flipped(2)),
        ("first byte of the payload flipped", flipped(258)),
        ("length", encode(&prefix)),
        ("another key", foreign),
        ("nothing", String::new()),
    ] {
        assert_eq!(opaque(&object("alexellis-api", "", &value)), REFUSED, "{what}");
    }
    assert_eq!(opaque(&object("other", "", STRICT)), REFUSED);
    assert_eq!(opaque(&object("alexellis-api", "namespace-wide", STRICT)), REFUSED);
    assert_eq!(opaque(&object("alexellis-api", "cluster-wide", STRICT)), REFUSED);
    let broken = format!("{}\\n{}", &STRICT[..60], &STRICT[60..]);
    let reason = opaque(&object("alexellis-api", "", &broken));
    assert!(reason.contains("not valid base64") && reason.contains("(alexellis-api)"), "{reason}");
}

#[test]
fn the_owner_is_told_why() {
    let key = test_key();
    let keys = [OpeningKey { key: &key, in_use: true }];
    let why = |secret: &SealedSecret, hints: &Hints| {
        unseal_with_keys(&keys, secret, hints, Limits::usual()).unwrap_err().to_string()
    };
    let none = Hints::default();
    let check = |reason: String, words: &str| {
        assert!(reason.starts_with(REFUSED) && reason.contains(words), "{words}: {reason}");
    };
    let hints = Hints { names: vec!["alexellis-api".into()], ..Hints::default() };
    check(why(&object("api", "", STRICT), &hints), "sealed for the name `alexellis-api`");
    check(why(&object("api", "", STRICT), &none), "none of 1 keys fits");
    check(why(&object("api", "", NAMESPACE), &none), "it was sealed namespace-wide");
    check(why(&object("api", "", CLUSTER), &none), "it was sealed cluster-wide");
    check(why(&object("alexellis-api", "cluster-wide", STRICT), &none), "it was sealed strict");
    let mut elsewhere = object("alexellis-api", "", STRICT);
    elsewhere.namespace = Some("default".into());
    check(why(&elsewhere, &none), "sealed for the namespace `openfaas-fn`");
    elsewhere.namespace = None;
    check(why(&elsewhere, &none), "`metadata.namespace` is missing");
    let mut damaged = STANDARD.decode(STRICT).unwrap();
    damaged[270] ^= 4;
    check(why(&object("alexellis-api", "", &STANDARD.encode(damaged)), &none), "it is damaged");
    let retired = [OpeningKey { key: &key, in_use: false }];
    let secret = object("alexellis-api", "", STRICT);
    let error = unseal_with_keys(&retired, &secret, &none, Limits::usual()).unwrap_err();
    check(error.to_string(), "taken out of use");
    assert_eq!(error.opaque(), REFUSED);
}

#[test]
fn the_fingerprint_is_that_of_ssh() {
    let expected = "SHA256:n0EibSngZ//NCtXwTTJHWIVE4NUkeLh/m0aL6GCb/6M";
    assert_eq!(test_key().fingerprint(), expected);
    assert_eq!(test_certificate().fingerprint(), expected);
}

#[test]
fn a_private_key_is_written_as_it_was_read() {
    let read = PrivateKey::from_pem(reference::TEST_KEY.as_bytes()).unwrap();
    assert_eq!(read.to_pem().as_str(), reference::TEST_KEY);
}

fn openssl(folder: &std::path::Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output();
    let output = output.expect("openssl is in Debian's package `openssl`");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What `node` answers to cases, one after the other.
fn with_node(task: &serde_json::Value) -> Vec<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/other.mjs");
    let mut node = Command::new("node")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node is in Debian's package `nodejs`");
    node.stdin.take().unwrap().write_all(task.to_string().as_bytes()).unwrap();
    let output = node.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// An implementation that is not ours, of the format as it is published, goes both ways with ours.
#[test]
fn another_implementation_opens_what_we_seal_and_seals_what_we_open() {
    let key = test_key();
    let certificate = test_certificate();
    let plain =
        [vec![], b"s3cr3t-v4lue".to_vec(), (0..=255).collect(), vec![b'x'; 1 << 20]].into_iter();
    let labels = ["openfaas-fn/alexellis-api", "openfaas-fn", ""];
    let cases: Vec<(&str, Vec<u8>)> =
        plain.flat_map(|plain| labels.map(|label| (label, plain.clone()))).collect();
    let ask = |what: &str, key: &str, values: Vec<String>| {
        let cases = cases.iter().zip(values);
        let cases: Vec<_> = cases
            .map(|((label, _), value)| serde_json::json!({"label": label, "value": value}))
            .collect();
        with_node(&serde_json::json!({"what": what, "key": key, "cases": cases}))
    };

    let ours = cases
        .iter()
        .map(|(label, plain)| seal_value(&certificate, label.as_bytes(), plain).unwrap());
    let opened = ask("open", &key.to_pem(), ours.collect());
    let theirs = cases.iter().map(|(_, plain)| STANDARD.encode(plain));
    let sealed = ask("seal", certificate.to_pem(), theirs.collect());
    assert_eq!((opened.len(), sealed.len()), (cases.len(), cases.len()));
    for (((label, plain), opened), sealed) in cases.iter().zip(opened).zip(sealed) {
        let size = plain.len();
        assert!(STANDARD.decode(opened).unwrap() == *plain, "{label}, {size} bytes");
        let annotation = match *label {
            "" => "cluster-wide",
            "openfaas-fn" => "namespace-wide",
            _ => "",
        };
        let opened = open(&object("alexellis-api", annotation, &sealed)).unwrap();
        assert!(opened.items["alexellis-api"].expose() == plain, "{label}, {size} bytes");
    }
    let (label, reference) = ("openfaas-fn/alexellis-api", STRICT);
    let case = serde_json::json!([{"label": label, "value": reference}]);
    let task = serde_json::json!({"what": "open", "key": &*key.to_pem(), "cases": case});
    assert_eq!(with_node(&task), [STANDARD.encode("s3cr3t-v4lue")]);
}

#[test]
fn the_key_of_the_values_is_the_published_one() {
    let body = |pem: &str| {
        let lines: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        hex::encode(sha2::Sha256::digest(STANDARD.decode(lines).unwrap()))
    };
    let private = "64c64810d9ef5d17da0c37eca83aa171110c00fc82982cb7e3ca3523b20f89b9";
    assert_eq!(body(&test_key().to_pem()), private);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ours.crt"), test_certificate().to_pem()).unwrap();
    let public = openssl(folder.path(), &["x509", "-in", "ours.crt", "-noout", "-pubkey"]);
    let expected = "af49aba87f04ba0a43b33453ab6bf310bd41d5c0188b74db932a6a9c7c226e94";
    assert_eq!(body(std::str::from_utf8(&public).unwrap()), expected);
}

/// Another implementation opens the key part of what we sealed, and gives the session key of the
/// reference values.
#[test]
fn openssl_agrees_about_the_key_part() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("test.pem"), reference::TEST_KEY).unwrap();
    let unwrap = |label: &str, value: &str| {
        let sealed = STANDARD.decode(value).unwrap();
        std::fs::write(folder.path().join("rsa.bin"), &sealed[2..258]).unwrap();
        let options = ["rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"];
        let label = format!("rsa_oaep_label:{}", hex::encode(label));
        let mut words = vec!["pkeyutl", "-decrypt", "-inkey", "test.pem", "-in", "rsa.bin"];
        for option in options.into_iter().chain((label.len() > 15).then_some(&*label)) {
            words.extend(["-pkeyopt", option]);
        }
        openssl(folder.path(), &words)
    };
    let strict = "openfaas-fn/alexellis-api";
    for (label, value, session_key) in [
        (strict, STRICT, "f475b16d1a37932ad06d57b6dad1d6e46294703eeea81ed19a30678176b61155"),
        (
            "openfaas-fn",
            NAMESPACE,
            "8bf7f8183af57f3853518dcc1674e83a05c5c41ea31db12a67061e6799887d93",
        ),
        ("", CLUSTER, "840493713b4c2fc12a9a3a06d75905f7e9dc68b53989a0a5d4934462eeeabce1"),
    ] {
        assert_eq!(hex::encode(unwrap(label, value)), session_key, "{label}");
    }

    let ours = seal_value(&test_certificate(), b"openfaas-fn/alexellis-api", b"v").unwrap();
    assert_eq!(unwrap(strict, &ours).len(), 32);
    let again = seal_value(&test_certificate(), b"openfaas-fn/alexellis-api", b"v").unwrap();
    assert_ne!(unwrap(strict, &ours), unwrap(strict, &again), "a session key is used once");
}

#[test]
fn certificates_made_by_openssl_and_by_us_have_the_same_profile() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("test.pem"), reference::TEST_KEY).unwrap();
    openssl(
        folder.path(),
        &[
            "req", "-x509", "-new", "-key", "test.pem", "-subj", "/", "-days", "3650", "-sha256",
            "-out", "test.crt",
        ],
    );
    let theirs = std::fs::read(folder.path().join("test.crt")).unwrap();
    let theirs = Certificate::from_pem(&theirs).unwrap();
    let ours = test_certificate();
    assert_eq!(theirs.fingerprint(), ours.fingerprint());

    std::fs::write(folder.path().join("ours.crt"), ours.to_pem()).unwrap();
    let text = openssl(folder.path(), &["x509", "-in", "ours.crt", "-noout", "-text"]);
    let text = String::from_utf8(text).unwrap();
    for line in [
        "Signature Algorithm: sha256WithRSAEncryption",
        "X509v3 Basic Constraints: critical\n                CA:TRUE",
        "X509v3 Key Usage: critical\n                Encipher Only",
        "Subject: \n",
        "Issuer: \n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    openssl(folder.path(), &["verify", "-CAfile", "ours.crt", "-partial_chain", "ours.crt"]);
}

#[test]
fn what_an_expired_or_foreign_certificate_is_told() {
    let key = test_key();
    let long_ago = "2020-01-01T00:00:00Z".parse().unwrap();
    let expired = key.certify("", long_ago, jiff::SignedDuration::from_hours(24)).unwrap();
    let error = expired.check_time(jiff::Timestamp::now()).unwrap_err().to_string();
    assert!(
        error.starts_with("failed to encrypt using an expired certificate on January 2, 2020"),
        "{error}"
    );
    let error = Certificate::from_pem(b"hello").unwrap_err().to_string();
    assert!(error.starts_with("failed to read any certificates"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    openssl(
        folder.path(),
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "k.pem",
            "-subj",
            "/",
            "-out",
            "ec.crt",
        ],
    );
    let ec = std::fs::read(folder.path().join("ec.crt")).unwrap();
    let error = Certificate::from_pem(&ec).unwrap_err().to_string();
    assert!(error.starts_with("expected RSA public key but found"), "{error}");
}
