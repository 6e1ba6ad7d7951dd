//! Sealed secrets, whole: sealed with the command line, committed, pushed, read by a function; lost
//! with the machine and brought back from a backup; and their values nowhere else.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use updraft_tests::{Cloud, Repository};

const PASSWORD: &str = "c4nary-7f3a91-of-the-vault";

/// What every image holds, to show that a search reaches images.
const MARKER: &str = "m4rker-52be0c-of-the-image";

/// A function that shows every file it can read, `/var/openfaas/secrets` among them.
fn reader(repository: &Repository) {
    repository
        .copy_program("/bin/busybox", "reader/busybox")
        .write("reader/www/_/health", "OK")
        .write("reader/www/marker", MARKER)
        .write(
            "reader/Dockerfile",
            "FROM scratch\n\
             COPY busybox /busybox\n\
             COPY www /\n\
             USER 12000\n\
             EXPOSE 8080\n\
             CMD [\"/busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/\"]\n",
        )
        .write(
            "stack.yml",
            "version: 1.0\nprovider:\n  name: openfaas\nfunctions:\n  reader:\n    \
             lang: dockerfile\n    handler: ./reader\n    image: reader:latest\n    \
             secrets:\n      - vault\n",
        );
}

/// Seals the password into the repository's `secrets.yml` with the cloud's certificate.
fn seal(cloud: &Cloud, repository: &Repository) {
    let folder = tempfile::tempdir().unwrap();
    let value = folder.path().join("password");
    fs::write(&value, PASSWORD).unwrap();
    let file = format!("password={}", value.display());
    let output = repository.path().join("secrets.yml").display().to_string();
    cloud.run_ok(&["seal", "--name", "alice-vault", "--from-file", &file, "-o", &output]);
}

async fn shown(cloud: &Cloud) -> (u16, String) {
    let answer = cloud.get("alice.localhost", "/reader/var/openfaas/secrets/password").await;
    (answer.status, answer.body)
}

#[tokio::test]
async fn a_lost_machine_is_replaced_and_what_was_committed_opens_again() {
    let cloud = Cloud::start();
    let repository = Repository::new();
    reader(&repository);
    seal(&cloud, &repository);
    let committed = fs::read_to_string(repository.path().join("secrets.yml")).unwrap();
    assert!(committed.contains("kind: SealedSecret") && !committed.contains(PASSWORD));
    repository.commit("A function with a secret");
    repository.push(&cloud.git_url("alice", &cloud.token("alice"), "shop")).expect_success();
    assert_eq!(shown(&cloud).await, (200, PASSWORD.to_owned()));

    let safe = tempfile::tempdir().unwrap();
    let [passphrase, backup] =
        ["passphrase", "keys.age"].map(|name| safe.path().join(name).display().to_string());
    fs::write(&passphrase, "correct horse battery staple\n").unwrap();
    cloud.run_ok(&["keys", "backup", "--passphrase-file", &passphrase, &backup]);
    drop(cloud);

    let cloud = Cloud::start();
    let url = cloud.git_url("alice", &cloud.token("alice"), "shop");
    let push = repository.push(&url).expect_failure();
    assert!(push.output.contains("alice-vault not taken"), "{}", push.output);
    assert_ne!(shown(&cloud).await.0, 200);

    cloud.run_ok(&["keys", "restore", "--passphrase-file", &passphrase, &backup]);
    repository.write("README", "after the fire").commit("Push again");
    repository.push(&url).expect_success();
    assert_eq!(shown(&cloud).await, (200, PASSWORD.to_owned()));
}

/// Logs and traces of everything, the database, images, answers; core files have a test of their own.
#[tokio::test]
async fn a_value_is_found_nowhere_but_in_the_memory_of_its_function() {
    let cloud = Cloud::start_telling_all();
    let repository = Repository::new();
    reader(&repository);
    seal(&cloud, &repository);
    repository.commit("A function with a secret");
    let token = cloud.token("alice");
    let url = cloud.git_url("alice", &token, "shop");
    let mut told = vec![repository.push(&url).expect_success().output];
    cloud.run_ok(&["keys", "renew"]);
    cloud.run_ok(&["secrets", "set", "--owner", "alice", "by-hand", "--literal", PASSWORD_ITEM]);
    assert_eq!(shown(&cloud).await, (200, PASSWORD.to_owned()));

    // A push that cannot be taken speaks of the same secret.
    let file = repository.path().join("secrets.yml");
    let good = fs::read_to_string(&file).unwrap();
    let bad = good.replacen("password: Ag", "password: Bg", 1);
    assert_ne!(good, bad);
    fs::write(&file, bad).unwrap();
    repository.commit("Damaged");
    told.push(repository.push(&url).expect_failure().output);
    fs::write(&file, good).unwrap();

    let server = format!("http://{}", cloud.address());
    let file = file.display().to_string();
    for words in [&["--validate", "-f", &file][..], &["--re-encrypt", &file]] {
        let asked = [&["--server", &server, "--token", &token, "seal"], words].concat();
        told.push(cloud.run_ok(&asked));
    }
    told.push(fs::read_to_string(&file).unwrap());
    for words in [
        &["secrets", "list", "--owner", "alice"][..],
        &["secrets", "describe", "--owner", "alice", "vault"],
        &["secrets", "describe", "--owner", "alice", "by-hand"],
        &["secrets", "diff", "--owner", "alice", "shop", &file],
        &["keys", "list"],
        &["list"],
        &["releases", "alice/reader"],
        &["replicas"],
        &["logs", "alice/reader"],
    ] {
        told.push(cloud.run_ok(&[&["--json"], words].concat()));
        told.push(cloud.run_ok(words));
    }
    for path in
        ["/system/functions", "/system/function/alice-reader", "/system/secrets", "/metrics"]
    {
        told.push(cloud.openfaas("GET", path, "").await.body);
    }
    let log = cloud.server_log();
    assert!(log.contains(" TRACE ") && log.contains("alice"), "everything was logged");
    told.push(log);

    let data = cloud.data_dir();
    let encoded = BASE64_STANDARD.encode(PASSWORD);
    for form in [PASSWORD, &encoded] {
        assert!(told.iter().all(|text| !text.contains(form)), "`{form}` was told");
        assert_eq!(files_with(&data, form), "", "`{form}` lies on the disk");
    }
    // The search reaches the database and the layers of images.
    let database = files_with(&data, "alice-vault");
    assert!(database.lines().any(|file| file.contains("updraft.db")), "{database}");
    let image = files_with(&data, MARKER);
    assert!(image.lines().any(|file| file.contains("/containers/")), "{image}");
    // What is not on the disk lies in memory, for the one function that has it.
    let traces = cloud.traces();
    let [volatile] = traces.of_kind("folder")[..] else { panic!("{traces:?}") };
    let volatile = Path::new(volatile.trim_start_matches("folder "));
    let in_memory = files_with(volatile, PASSWORD);
    let files: Vec<_> = in_memory.lines().collect();
    assert_eq!(files.len(), 1, "{in_memory}");
    assert!(Path::new(files[0]).starts_with(volatile.join("engine/secrets")), "{in_memory}");
    let kind = rustix::fs::statfs(files[0]).unwrap().f_type;
    assert_eq!(kind, TMPFS, "it lies in memory");
    assert_eq!(files_with(volatile, &encoded), "");
}

/// A core file would hold what a process knew. Updraft's may not be written, and a function's not
/// either: it would lie on the disk of the machine.
#[tokio::test]
async fn a_crash_leaves_no_core_file_with_a_value() {
    let mut cloud = Cloud::start();
    let repository = Repository::new();
    reader(&repository);
    repository.write(
        "reader/www/cgi-bin/crash",
        "#!/busybox sh\ncd /tmp\nvalue=$(/busybox cat /var/openfaas/secrets/password)\n\
         echo \"$value\" > /tmp/there\nkill -ABRT $$\n",
    );
    let script = repository.path().join("reader/www/cgi-bin/crash");
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    seal(&cloud, &repository);
    repository.commit("A function with a secret that it crashes with");
    repository.push(&cloud.git_url("alice", &cloud.token("alice"), "shop")).expect_success();
    assert_eq!(shown(&cloud).await, (200, PASSWORD.to_owned()));

    // A process of our own shows that a core would be written, and would be found; the system may
    // put cores elsewhere, or hand them to a program, where there is nothing to see.
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let elsewhere = Path::new(pattern.trim()).parent().filter(|parent| parent.is_absolute());
    if !pattern.starts_with(['|', '@', '/']) {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("ulimit -c unlimited; value={PASSWORD}; kill -ABRT $$");
        let ended = Command::new("sh").args(["-c", &script]).current_dir(folder.path()).status();
        assert!(ended.unwrap().core_dumped(), "a process that may leave a core does");
        assert!(!files_with(folder.path(), PASSWORD).is_empty(), "the search finds it");
    }

    // The function's process may leave none, its helpers neither.
    let processes = processes_with(PASSWORD);
    assert!(!processes.is_empty(), "the function's process is there");
    for process in &processes {
        let limits = fs::read_to_string(process.join("limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let words: Vec<_> = core.split_whitespace().collect();
        assert_eq!(words[4..6], ["1", "1"], "{core}");
    }
    // An answer that breaks off or says what is wrong: both are a crash.
    drop(cloud.try_get("alice.localhost", "/reader/cgi-bin/crash").await);
    let root = processes[0].join("root");
    assert_eq!(fs::read_to_string(root.join("tmp/there")).unwrap().trim(), PASSWORD, "it ran");
    let in_memory = files_with(&root.join("tmp"), PASSWORD);
    assert_eq!(in_memory.trim(), root.join("tmp/there").display().to_string());

    // Updraft itself held the value when it was opened.
    let crash = cloud.crash();
    assert_eq!(crash.signal(), Some(rustix::process::Signal::ABORT.as_raw()));
    assert!(!crash.core_dumped(), "Updraft left a core file");
    for place in
        [Some(cloud.data_dir().as_path()), std::env::current_dir().ok().as_deref(), elsewhere]
    {
        let cores = place.map(|place| cores_with(place, PASSWORD)).unwrap_or_default();
        assert!(cores.is_empty(), "{cores:?}");
    }
    assert_eq!(files_with(&cloud.data_dir(), PASSWORD), "");
}

/// A live server says what opens, and seals again with its newest key; the old one may go when
/// nothing that was pushed needs it.
#[tokio::test]
async fn a_live_server_validates_and_seals_again_and_an_old_key_goes_when_nothing_needs_it() {
    let mut cloud = Cloud::start();
    let repository = Repository::new();
    reader(&repository);
    seal(&cloud, &repository);
    repository.commit("A function with a secret");
    let token = cloud.token("alice");
    let url = cloud.git_url("alice", &token, "shop");
    repository.push(&url).expect_success();

    let file = repository.path().join("secrets.yml").display().to_string();
    let server = format!("http://{}", cloud.address());
    let ask = |words: &[&str]| {
        cloud.run(&[&["--server", &server, "--token", &token, "seal"], words].concat())
    };
    // As `updraft seal --fetch-cert > pub-cert.pem` runs: the shell has made the file already.
    let empty = tempfile::tempdir().unwrap();
    fs::write(empty.path().join("pub-cert.pem"), "").unwrap();
    let fetching = Command::new(updraft_tests::binary())
        .args(["--server", &server, "seal", "--fetch-cert"])
        .current_dir(empty.path())
        .output()
        .unwrap();
    let certificate = String::from_utf8(fetching.stdout).unwrap();
    assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"), "{certificate}");
    assert_eq!(certificate, cloud.get("system.localhost", "/v1/cert.pem").await.body);
    let valid = ask(&["--validate", "-f", &file]);
    assert_eq!((valid.code, valid.stdout.trim()), (Some(0), "every sealed secret opens"));
    let numbers = cloud.openfaas("GET", "/metrics", "").await.body;
    for row in [
        "condition_info{namespace=\"openfaas-fn\",name=\"alice-vault\",condition=\"Synced\",\
         ss_app_kubernetes_io_instance=\"\"} 1\n",
        "http_requests_total{path=\"/v1/verify\",code=\"200\",method=\"POST\"} 1\n",
        "unseal_requests_total 2\n",
    ] {
        let row = format!("sealed_secrets_controller_{row}");
        assert!(numbers.contains(&row), "{row}: {numbers}");
    }
    // Moved to another name it does not open, and nobody is told more than that.
    let moved = repository.path().join("moved.yml");
    let text = fs::read_to_string(&file).unwrap().replace("alice-vault", "alice-other");
    fs::write(&moved, text).unwrap();
    let refused = ask(&["--validate", "-f", moved.to_str().unwrap()]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("unable to decrypt sealed secret: alice-other"), "{refused:?}");
    fs::remove_file(moved).unwrap();

    let old = cloud.json(&["keys", "list"])[0].clone();
    let key = old["fingerprint"].as_str().unwrap();
    assert_eq!(old["needed_by"], serde_json::json!(["alice-vault"]));
    // As the original controller: a signal makes a new key at once.
    let pid = rustix::process::Pid::from_raw(cloud.pid().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    let end = Instant::now() + BOUND;
    while cloud.json(&["keys", "list"]).as_array().unwrap().len() < 2 {
        assert!(Instant::now() < end, "no new key: {}", cloud.server_log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let refused = cloud.run(&["keys", "retire", key]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("still need the key") && refused.stderr.contains("alice-vault")
    );

    let before = fs::read_to_string(&file).unwrap();
    let sealed = ask(&["--re-encrypt", &file]);
    assert_eq!(sealed.code, Some(0), "{sealed:?}");
    assert_ne!(fs::read_to_string(&file).unwrap(), before);
    // Not pushed yet: what is in force needs the old key, and so it stays.
    assert_eq!(cloud.run(&["keys", "retire", key]).code, Some(1));
    repository.commit("Sealed again");
    repository.push(&url).expect_success();
    let retired =
        cloud.run_ok(&["keys", "retire", key, "--check", repository.path().to_str().unwrap()]);
    assert!(
        retired.contains("is retired") && retired.contains("not at other branches"),
        "{retired}"
    );
    // The running server goes by it: what the old key sealed opens no more, the rest does.
    let stale = repository.path().join("stale.yml");
    fs::write(&stale, before).unwrap();
    assert_eq!(ask(&["--validate", "-f", stale.to_str().unwrap()]).code, Some(1));
    assert_eq!(ask(&["--validate", "-f", &file]).code, Some(0));
    assert_eq!(shown(&cloud).await, (200, PASSWORD.to_owned()));
    cloud.kill();
    cloud.resume();
    assert_eq!(shown(&cloud).await, (200, PASSWORD.to_owned()));
}

/// Four people push a new item 25 times each while the key is renewed; half of them never fetch the
/// new certificate.
#[tokio::test]
async fn a_renewal_in_the_middle_of_a_hundred_pushes_to_a_whole_cloud_loses_nothing() {
    const PEOPLE: usize = 4;
    const PUSHES: usize = 25;
    let cloud = Cloud::start();
    let token = cloud.token("alice");
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("pub-cert.pem");
    fs::write(&first, cloud.run_ok(&["seal", "--fetch-cert"])).unwrap();
    let pushed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for person in 0..PEOPLE {
            let (cloud, token, first, pushed) = (&cloud, &token, &first, &pushed);
            scope.spawn(move || {
                let repository = Repository::new();
                let url = cloud.git_url("alice", token, &format!("keys{person}"));
                let file = repository.path().join("secrets.yml").display().to_string();
                for number in 0..PUSHES {
                    let name = format!("alice-k{person}");
                    let item = format!("i{person}-{number}=v{person}-{number}");
                    let mut words = vec!["seal", "--name", &name, "--literal", &item, "-o", &file];
                    if person % 2 == 0 {
                        words.extend(["--cert", first.to_str().unwrap()]);
                    }
                    cloud.run_ok(&words);
                    repository.commit(&item);
                    repository.push(&url).expect_success();
                    pushed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            let end = Instant::now() + BOUND;
            while pushed.load(Ordering::Relaxed) < PEOPLE * PUSHES / 2 {
                assert!(Instant::now() < end, "only {pushed:?} pushes");
                std::thread::sleep(Duration::from_millis(20));
            }
            cloud.run_ok(&["keys", "renew"]);
        });
    });
    assert_eq!(pushed.load(Ordering::Relaxed), PEOPLE * PUSHES);
    let keys = cloud.json(&["keys", "list"]);
    assert_eq!(keys.as_array().unwrap().len(), 2);
    assert_eq!(keys[0]["needed_by"], serde_json::json!(["alice-k1", "alice-k3"]));
    let all = serde_json::json!(["alice-k0", "alice-k1", "alice-k2", "alice-k3"]);
    assert_eq!(keys[1]["needed_by"], all, "items from before the renewal are in all of them");

    // A function reads every item of them.
    let repository = Repository::new();
    reader(&repository);
    let stack = fs::read_to_string(repository.path().join("stack.yml")).unwrap();
    let secrets = "      - k0\n      - k1\n      - k2\n      - k3\n";
    repository.write("stack.yml", stack.replace("      - vault\n", secrets));
    repository.commit("Read them");
    repository.push(&cloud.git_url("alice", &token, "shop")).expect_success();
    for person in 0..PEOPLE {
        for number in 0..PUSHES {
            let path = format!("/reader/var/openfaas/secrets/i{person}-{number}");
            let answer = cloud.get("alice.localhost", &path).await;
            assert_eq!((answer.status, answer.body), (200, format!("v{person}-{number}")));
        }
    }
}

/// Longest wait for anything; a loaded machine is slow.
const BOUND: Duration = Duration::from_mins(5);

/// What the kernel calls the file system in memory.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// The processes, as folders of `/proc`, whose file of the secret holds the value.
fn processes_with(value: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let process = entry.unwrap().path();
        let secret = process.join("root/var/openfaas/secrets/password");
        if fs::read_to_string(secret).is_ok_and(|text| text == value) {
            found.push(process);
        }
    }
    found
}

/// Files right in a folder that are named like a core and hold a text.
fn cores_with(folder: &Path, text: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_core = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.contains("core") && !files_with(path, text).is_empty()
    };
    entries.filter(|path| path.is_file()).filter(is_core).collect()
}

/// The same value as an item, set by hand.
const PASSWORD_ITEM: &str = "password=c4nary-7f3a91-of-the-vault";

/// Names of the files below a folder that hold a text.
fn files_with(folder: &Path, text: &str) -> String {
    let found = Command::new("grep")
        .args(["--recursive", "--files-with-matches", "--text", "--fixed-strings", "--", text])
        .arg(folder)
        .output()
        .unwrap();
    // A file may go while it is read, which grep tells of and goes on.
    assert!(found.status.code().is_some());
    String::from_utf8(found.stdout).unwrap()
}
