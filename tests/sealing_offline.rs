//! Sealing without a server: what the command line takes and writes, and how the keys and the files
//! of a cluster move here and back.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use updraft_tests::CommandOutput;

/// A folder of somebody who has keys and certificates made by OpenSSL, as a cluster's operator may.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(desk.folder.path().join("data")).unwrap();
        desk
    }

    fn openssl(&self, words: &[&str]) {
        let mut command = Command::new("openssl");
        let output = command.args(words).current_dir(self.folder.path()).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }

    /// Makes `NAME.key` and `NAME.crt`.
    fn key(&self, name: &str) {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
        self.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            &key,
            "-subj",
            "/",
            "-days",
            "3650",
            "-sha256",
            "-out",
            &certificate,
        ]);
    }

    fn run_with(&self, words: &[&str], input: &str) -> CommandOutput {
        let mut updraft = Command::new(updraft_tests::binary())
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            .args(words)
            .current_dir(self.folder.path())
            .env_remove("SEALED_SECRETS_CERT")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who needs no input does not wait for it.
        drop(updraft.stdin.take().unwrap().write_all(input.as_bytes()));
        CommandOutput::from(updraft.wait_with_output().unwrap())
    }

    fn ok(&self, words: &[&str]) -> String {
        self.ok_with(words, "")
    }

    fn ok_with(&self, words: &[&str], input: &str) -> String {
        let output = self.run_with(words, input);
        assert_eq!(output.code, Some(0), "{words:?}: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    fn refused(&self, words: &[&str], input: &str) -> String {
        let output = self.run_with(words, input);
        assert_eq!(output.code, Some(1), "{words:?}: {}{}", output.stdout, output.stderr);
        output.stderr
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file)).unwrap()
    }

    fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        let path = self.folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Opens the one secret of a file with nothing but a private key.
    fn opened(&self, key: &str, file: &str) -> Value {
        let words = ["seal", "--recovery-unseal", "--recovery-private-key", key, "-f", file];
        serde_json::from_str(&self.ok(&words)).unwrap()
    }
}

/// The items of a plain secret.
fn items(secret: &Value) -> BTreeMap<String, Vec<u8>> {
    let data = secret["data"].as_object().unwrap();
    let item = |(key, value): (&String, &Value)| {
        (key.clone(), BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap())
    };
    data.iter().map(item).collect()
}

fn expected(pairs: &[(&str, &[u8])]) -> BTreeMap<String, Vec<u8>> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.to_vec())).collect()
}

/// The keys of a cluster's controller, as `kubectl get secret -o json` has them.
fn backup(desk: &Desk, name: &str) -> String {
    let encoded = |file: &str| BASE64_STANDARD.encode(desk.read(file));
    json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [{
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {
                "name": "sealed-secrets-keyx7k2p",
                "namespace": "kube-system",
                "creationTimestamp": "2021-03-04T05:06:07Z",
                "labels": {"sealedsecrets.bitnami.com/sealed-secrets-key": "active"},
            },
            "data": {
                "tls.crt": encoded(&format!("{name}.crt")),
                "tls.key": encoded(&format!("{name}.key")),
            },
        }],
    })
    .to_string()
}

#[test]
fn values_come_from_everywhere_and_open_with_the_private_key_alone() {
    let desk = Desk::new();
    desk.key("test");
    let all: Vec<u8> = (0..=255).collect();
    desk.write("tls.key", &all);
    desk.write("other", "of a file\n");
    desk.write(".env", "# of the shop\nexport URL=\"db://x\"\nTOKEN=t0ken\n");
    let seal = ["seal", "--cert", "test.crt", "--name", "alice-keys"];
    let told = desk.ok_with(
        &[
            &seal[..],
            &["--literal", "user=shop=1", "--from-file", "tls.key", "-i", "renamed=other"],
            &["--env-file", ".env", "--from-stdin", "from.stdin"],
        ]
        .concat(),
        "typed\n",
    );
    assert_eq!(
        told,
        "Sealing secret: alice-keys in namespace: openfaas-fn\n\nsecrets.yml written.\n"
    );
    let all_items = [
        ("TOKEN", &b"t0ken"[..]),
        ("URL", b"db://x"),
        ("from.stdin", b"typed\n"),
        ("renamed", b"of a file\n"),
        ("tls.key", &all),
        ("user", b"shop=1"),
    ];
    let plain = desk.opened("test.key", "secrets.yml");
    assert_eq!(items(&plain), expected(&all_items));
    assert_eq!(plain["metadata"]["name"], "alice-keys");

    // What is added leaves every other line as it is, comments too.
    let first = format!("# reviewed by bob\n{}", desk.read("secrets.yml"));
    desk.write("secrets.yml", &first);
    desk.ok(&[&seal[..], &["--literal", "more=1", "--remove", "user"]].concat());
    let second = desk.read("secrets.yml");
    let gone: Vec<_> = first.lines().filter(|line| !second.contains(*line)).collect();
    assert!(matches!(gone[..], [line] if line.trim().starts_with("user: ")), "{gone:?}");
    let mut now = expected(&all_items);
    now.remove("user");
    now.insert("more".to_owned(), b"1".to_vec());
    assert_eq!(items(&desk.opened("test.key", "secrets.yml")), now);

    // A bad literal stops everything and is not repeated.
    for bad in ["=hunter2", "hunter2"] {
        let refused = desk.refused(&[&seal[..], &["--literal", bad]].concat(), "");
        assert!(refused.contains("expected KEY=VALUE"), "{refused}");
        assert!(bad == "hunter2" || !refused.contains("hunter2"), "{refused}");
    }
    assert_eq!(desk.read("secrets.yml"), second);
}

/// As scripts call `kubeseal` and `faas-cli cloud seal`.
#[test]
fn the_flags_of_other_tools_mean_what_they_mean_there() {
    let desk = Desk::new();
    desk.key("test");
    // faas-cli cloud seal
    desk.write("api-key", "k3y");
    desk.ok(&[
        "seal",
        "--name",
        "alice-api",
        "-n",
        "shop",
        "-l",
        "a=1",
        "-i",
        "api-key",
        "-c",
        "test.crt",
        "-o",
        "out.yml",
    ]);
    let plain = desk.opened("test.key", "out.yml");
    assert_eq!(items(&plain), expected(&[("a", b"1"), ("api-key", b"k3y")]));
    assert_eq!(plain["metadata"]["namespace"], "shop");

    // kubeseal: a Secret on standard input, in both formats, with all that a cluster adds.
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/basic-auth",
        "metadata": {
            "name": "alice-db", "namespace": "openfaas-fn", "uid": "u-1", "resourceVersion": "7",
            "creationTimestamp": null, "labels": {"app": "shop"},
            "annotations": {
                "note": "kept",
                "kubectl.kubernetes.io/last-applied-configuration": "{\"password\":\"plain\"}",
            },
        },
        "data": {"username": BASE64_STANDARD.encode("u"), "password": BASE64_STANDARD.encode("old")},
        "stringData": {"password": "new"},
    })
    .to_string();
    for (format, first) in [("json", '{'), ("yaml", '-')] {
        let words = ["seal", "--cert", "test.crt", "--format", format];
        let sealed = desk.ok_with(&words, &secret);
        assert!(sealed.starts_with(first), "{sealed}");
        for word in ["u-1", "resourceVersion", "last-applied", "plain"] {
            assert!(!sealed.contains(word), "{word}: {sealed}");
        }
        desk.write("sealed", &sealed);
        let plain = desk.opened("test.key", "sealed");
        assert_eq!(items(&plain), expected(&[("password", b"new"), ("username", b"u")]));
        assert_eq!(plain["type"], "kubernetes.io/basic-auth");
        assert_eq!(plain["metadata"]["labels"]["app"], "shop");
        assert_eq!(plain["metadata"]["annotations"]["note"], "kept");
    }

    // --merge-into: the name, the namespace and the scope are those of the file.
    let wide = ["seal", "--cert", "test.crt", "--scope", "cluster-wide", "-w", "wide.json"];
    desk.ok_with(&wide, &secret);
    let more = secret.replace("alice-db", "ignored").replace("username", "more");
    desk.ok_with(&["seal", "--cert", "test.crt", "--merge-into", "wide.json"], &more);
    let plain = desk.opened("test.key", "wide.json");
    assert_eq!(plain["metadata"]["name"], "alice-db");
    let all = expected(&[("more", b"u"), ("password", b"new"), ("username", b"u")]);
    assert_eq!(items(&plain), all);
    assert!(desk.read("wide.json").starts_with('{'), "it stays JSON");

    // --raw: the value alone, without a line feed, to be pasted.
    let raw = ["seal", "--raw", "--cert", "test.crt", "--name", "alice-db"];
    let value = desk.ok_with(&raw, "pasted");
    assert!(value.starts_with("AQ") && value.trim_end() == value, "{value}");
    desk.write(
        "pasted.yml",
        format!(
            "apiVersion: bitnami.com/v1alpha1\nkind: SealedSecret\nmetadata:\n  name: alice-db\n  \
             namespace: openfaas-fn\nspec:\n  encryptedData:\n    v: {value}\n"
        ),
    );
    assert_eq!(items(&desk.opened("test.key", "pasted.yml")), expected(&[("v", b"pasted")]));

    // What scripts match.
    for (words, input, message) in [
        (&["seal", "--cert", "test.crt"][..], "", "no secrets found."),
        (&["seal", "--cert", "test.key"], &secret, "failed to read any certificates"),
        (&["seal", "--cert", "test.crt", "--format", "toml"], &secret, "unsupported output format"),
        (&["seal", "--raw", "--cert", "test.crt"], "v", "must provide the --name flag"),
        (&["seal", "--cert", "test.crt", "-n", "other"], &secret, "`openfaas-fn`"),
    ] {
        let refused = desk.refused(words, input);
        assert!(refused.contains(message), "{refused}");
    }
}

/// A cluster's keys open its files here; sealed again they need the cluster no more; and the keys go
/// back as the cluster has them.
#[test]
fn the_keys_of_a_cluster_open_its_files_here_and_ours_open_there() {
    let desk = Desk::new();
    desk.key("cluster");
    desk.write("keys.json", backup(&desk, "cluster"));
    // The repository, sealed for the cluster.
    for (file, name) in [("repo/secrets.yml", "alice-db"), ("repo/deploy/more.yml", "alice-more")] {
        desk.write(file, "# by hand\n");
        let words = ["seal", "--cert", "cluster.crt", "--name", name, "-l", "k=v", "-o", file];
        desk.ok(&words);
    }
    let refused = desk.run_with(&["keys", "doctor", "repo"], "");
    assert_eq!(refused.code, Some(1));
    assert!(refused.stdout.contains("none of 0 keys fits"), "{refused:?}");

    let told = desk.ok(&["keys", "import", "keys.json"]);
    assert!(told.starts_with("1 keys found, 1 of them new\n"), "{told}");
    desk.ok(&["keys", "renew"]);
    let keys: Value = serde_json::from_str(&desk.ok(&["--json", "keys", "list"])).unwrap();
    assert_eq!(keys.as_array().unwrap().len(), 2);
    assert_eq!((&keys[0]["seals"], &keys[1]["seals"]), (&json!(true), &json!(false)));
    assert_eq!(keys[1]["created"], "2021-03-04T05:06:07Z");
    let doctor: Value =
        serde_json::from_str(&desk.ok(&["--json", "keys", "doctor", "repo"])).unwrap();
    for row in doctor.as_array().unwrap() {
        let expected = (json!([keys[1]["fingerprint"]]), json!(false), json!(null));
        assert_eq!((row["keys"].clone(), row["newest"].clone(), row["error"].clone()), expected);
    }

    // The whole repository is sealed again, without a server.
    let old = keys[1]["fingerprint"].as_str().unwrap().to_owned();
    let refused = desk.refused(&["keys", "retire", &old, "--check", "repo"], "");
    assert!(refused.contains("alice-db") && refused.contains("alice-more"), "{refused}");
    let told = desk.ok(&["seal", "--re-encrypt", "repo"]);
    assert_eq!(told.matches(": 1 sealed again").count(), 2, "{told}");
    assert!(desk.read("repo/secrets.yml").starts_with("# by hand\n"));
    assert_eq!(desk.ok(&["seal", "--re-encrypt", "repo"]), "", "nothing is left to do");
    desk.ok(&["keys", "retire", &old, "--check", "repo"]);
    let doctor = desk.ok(&["keys", "doctor", "repo"]);
    assert_eq!(doctor.matches("opens with the newest key").count(), 2, "{doctor}");
    let refused = desk.run_with(
        &[
            "seal",
            "--recovery-unseal",
            "--recovery-private-key",
            "keys.json",
            "-f",
            "repo/secrets.yml",
        ],
        "",
    );
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("no key could decrypt secret (k)"), "{refused:?}");

    // The way back: what a cluster, or a recovery without any server, takes.
    let exported = desk.ok(&["keys", "export"]);
    desk.write("ours.yaml", &exported);
    for file in ["repo/secrets.yml", "repo/deploy/more.yml"] {
        assert_eq!(items(&desk.opened("ours.yaml", file)), expected(&[("k", b"v")]));
    }
    let elsewhere = Desk::new();
    elsewhere.write("ours.yaml", &exported);
    elsewhere.ok(&["keys", "import", "ours.yaml"]);
    let theirs: Value = serde_json::from_str(&elsewhere.ok(&["--json", "keys", "list"])).unwrap();
    assert_eq!(theirs[0]["fingerprint"], keys[0]["fingerprint"]);
    assert_eq!(theirs[1]["state"], "retired");
    let leftover = desk.folder.path().join("data");
    assert!(!holds(&leftover, "PRIVATE KEY"), "no key lies in the clear");
}

/// A backup is one file for whoever has the passphrase, on an empty machine too.
#[test]
fn a_backup_is_opened_by_its_passphrase_and_by_nothing_else() {
    let desk = Desk::new();
    desk.ok(&["keys", "renew"]);
    desk.write("cert.pem", desk.ok(&["keys", "certificate"]));
    desk.ok(&["seal", "--cert", "cert.pem", "--name", "alice-db", "-l", "k=v"]);
    desk.write("passphrase", "correct horse battery staple\n");
    desk.write("short", "short\n");
    let refused = desk.refused(&["keys", "backup", "--passphrase-file", "short", "k.age"], "");
    assert!(refused.contains("fewer than 12 characters"), "{refused}");
    desk.ok(&["keys", "backup", "--passphrase-file", "passphrase", "keys.age"]);
    let backup = desk.read("keys.age");
    assert!(backup.starts_with("-----BEGIN AGE ENCRYPTED FILE-----"), "{backup}");
    let again =
        desk.refused(&["keys", "backup", "--passphrase-file", "passphrase", "keys.age"], "");
    assert!(again.contains("cannot make keys.age"), "a backup is never written over: {again}");

    let empty = Desk::new();
    for file in ["keys.age", "secrets.yml", "passphrase"] {
        empty.write(file, desk.read(file));
    }
    empty.write("wrong", "correct horse battery stable\n");
    let wrong = empty.refused(&["keys", "restore", "--passphrase-file", "wrong", "keys.age"], "");
    assert!(wrong.contains("the backup does not open"), "{wrong}");
    empty.ok(&["keys", "restore", "--passphrase-file", "passphrase", "keys.age"]);
    let doctor = empty.ok(&["keys", "doctor", "."]);
    assert!(doctor.contains("alice-db (strict): opens with the newest key"), "{doctor}");
}

fn holds(folder: &Path, text: &str) -> bool {
    let mut command = Command::new("grep");
    command.args(["--recursive", "--quiet", "--text", "--fixed-strings", "--", text]);
    command.arg(folder).status().unwrap().success()
}
