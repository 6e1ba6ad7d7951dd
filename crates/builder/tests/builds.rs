//! Builds with the real `buildah` on a real store.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use updraft_builder::{
    BuildError, BuildLimits, BuildRequest, BuildahBuilder, Builder as _, BuiltImage, LineSink,
};
use updraft_images::testing::{TEST_HTTP, TestStore};
use updraft_images::{ImageStore, ImageStoreOptions};
use updraft_model::Digest;

/// A build of this Dockerfile with `context` around it.
fn request(context: PathBuf, name: &str, dockerfile: &str) -> BuildRequest {
    fs::create_dir_all(&context).unwrap();
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    BuildRequest {
        context,
        context_digest: Digest::from_bytes([1; 32]),
        tag: format!("localhost/test/{name}:1").parse().unwrap(),
        build_args: BTreeMap::new(),
        limits: BuildLimits {
            time: Duration::from_mins(10),
            memory_bytes: 512 << 20,
            files: 1_000_000,
            disk_bytes: 4 << 30,
            processes: 200,
        },
        cancel: CancellationToken::new(),
    }
}

struct Bench {
    test: TestStore,
    builder: BuildahBuilder,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    async fn new() -> Self {
        let (test, _) = TestStore::with_test_image().await;
        let builder = BuildahBuilder::new(test.store()).unwrap();
        Self { test, builder, lines: Arc::default() }
    }

    fn request(&self, name: &str, dockerfile: &str) -> BuildRequest {
        request(self.test.folder().join(name), name, dockerfile)
    }

    fn sink(&self) -> LineSink {
        let lines = self.lines.clone();
        Arc::new(move |line: &str| lines.lock().unwrap().push(line.to_owned()))
    }

    async fn build(&self, request: &BuildRequest) -> Result<BuiltImage, BuildError> {
        self.lines.lock().unwrap().clear();
        let sink = self.sink();
        self.builder.build(request, &sink).await
    }

    /// Builds one `RUN` line on the test image and gives back its output.
    async fn run(&self, command: &str) -> Vec<String> {
        let words: Vec<&str> = command.split(' ').collect();
        let file = format!("FROM {TEST_HTTP}\nRUN {}\n", serde_json_list(&words));
        let built = self.build(&self.request("run", &file)).await;
        let lines = self.lines();
        assert!(built.is_ok(), "{built:?}\n{lines:#?}");
        lines
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    async fn tree(&self, built: &BuiltImage) -> PathBuf {
        let image = self.test.store().resolve(&built.image).await.unwrap().unwrap();
        assert_eq!(image.id, built.id);
        self.test.store().mount(&image).await.unwrap()
    }
}

fn serde_json_list(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    format!("[\"/test-http\", {}]", quoted.join(", "))
}

fn run(command: &str) -> String {
    let words: Vec<&str> = command.split(' ').collect();
    format!("FROM {TEST_HTTP}\nRUN {}\n", serde_json_list(&words))
}

#[tokio::test]
async fn a_build_copies_runs_and_names_what_it_made() {
    let bench = Bench::new().await;
    let file = format!(
        "ARG BASE={TEST_HTTP}\nFROM $BASE AS first\nARG WORD\nCOPY . /app/\n\
         RUN [\"/test-http\", \"say\", \"hello\"]\n\
         FROM scratch\nARG WORD\nENV SAID=$WORD\nCOPY --from=first /app/file /file\nCOPY --from={TEST_HTTP} /test-http /x\n"
    );
    let mut request = bench.request("copies", &file);
    fs::write(request.context.join("file"), "content").unwrap();
    request.build_args.insert("WORD".into(), "a b;$(c)".into());
    let built = bench.build(&request).await.unwrap();
    let lines = bench.lines();
    assert!(lines.iter().any(|line| line == "hello"), "{lines:#?}");
    assert!(
        lines.iter().any(|line| line.contains("FROM") && line.contains(TEST_HTTP)),
        "{lines:#?}"
    );
    let tree = bench.tree(&built).await;
    assert_eq!(fs::read_to_string(tree.join("file")).unwrap(), "content");
    assert!(tree.join("x").is_file());
    let image = bench.test.store().resolve(&built.image).await.unwrap().unwrap();
    assert!(image.config.env.contains(&("SAID".into(), "a b;$(c)".into())), "{:?}", image.config);
    // What builds are given beyond the context stays out of the image.
    assert!(image.config.env.iter().all(|(name, _)| !name.contains("CERT")), "{:?}", image.config);
    assert!(bench.builder.exists(&built).await.unwrap());
    let other = BuiltImage { id: Digest::from_bytes([7; 32]), ..built };
    assert!(!bench.builder.exists(&other).await.unwrap());
}

#[tokio::test]
async fn an_unchanged_build_gives_the_same_image_and_a_changed_one_reuses_its_layers() {
    let bench = Bench::new().await;
    let file = format!(
        "FROM {TEST_HTTP}\nCOPY list /list\nRUN [\"/test-http\", \"say\", \"it runs\"]\nCOPY code /code\n"
    );
    let request = bench.request("cached", &file);
    fs::write(request.context.join("list"), "1").unwrap();
    fs::write(request.context.join("code"), "1").unwrap();
    let first = bench.build(&request).await.unwrap();
    let runs = || bench.lines().iter().filter(|line| *line == "it runs").count();
    assert_eq!(runs(), 1, "{:#?}", bench.lines());
    let start = Instant::now();
    let second = bench.build(&request).await.unwrap();
    eprintln!("measured: unchanged build {:?}", start.elapsed());
    assert_eq!(second, first);
    fs::write(request.context.join("code"), "2").unwrap();
    let start = Instant::now();
    let third = bench.build(&request).await.unwrap();
    eprintln!("measured: build with one file changed {:?}", start.elapsed());
    assert_ne!(third.id, first.id);
    assert_eq!(runs(), 0, "{:#?}", bench.lines());
    let ours = bench.lines().iter().any(|line| line.contains("cache ") || line.contains("CERT"));
    assert!(!ours, "{:#?}", bench.lines());
    assert_eq!(fs::read_to_string(bench.tree(&third).await.join("code")).unwrap(), "2");
    // The image that lost its name is still there for a rollback.
    assert!(bench.builder.exists(&first).await.unwrap());
    let start = Instant::now();
    let image = bench.test.store().resolve(&third.image).await.unwrap().unwrap();
    eprintln!("measured: resolve {:?}", start.elapsed());
    bench.test.store().unmount(&image.id).await.unwrap();
    let start = Instant::now();
    bench.test.store().mount(&image).await.unwrap();
    eprintln!("measured: mount {:?}", start.elapsed());
}

#[tokio::test]
async fn the_key_follows_context_arguments_and_base_images() {
    let bench = Bench::new().await;
    let sink = bench.sink();
    let request =
        bench.request("key", &format!("FROM {TEST_HTTP}\nCOPY --from=localhost/other /a /a\n"));
    let missing = bench.builder.key(&request, &sink).await.unwrap_err();
    assert!(matches!(&missing, BuildError::BaseImage { line: 2, .. }), "{missing}");
    assert!(missing.to_string().contains("localhost/other"), "{missing}");
    let base = bench.build(&bench.request("base", "FROM scratch\nLABEL a=1\n")).await.unwrap();
    let store = bench.test.store();
    let base = store.resolve(&base.image).await.unwrap().unwrap();
    store.tag(&base, &"localhost/other".parse().unwrap()).await.unwrap();

    let key = bench.builder.key(&request, &sink).await.unwrap();
    assert_eq!(bench.builder.key(&request, &sink).await.unwrap(), key);
    let mut other = request.clone();
    other.context_digest = Digest::from_bytes([2; 32]);
    assert_ne!(bench.builder.key(&other, &sink).await.unwrap(), key);
    let mut other = request.clone();
    other.build_args.insert("A".into(), "1".into());
    assert_ne!(bench.builder.key(&other, &sink).await.unwrap(), key);
    let new = bench.build(&bench.request("base", "FROM scratch\nLABEL a=2\n")).await.unwrap();
    let new = store.resolve(&new.image).await.unwrap().unwrap();
    store.tag(&new, &"localhost/other".parse().unwrap()).await.unwrap();
    assert_ne!(bench.builder.key(&request, &sink).await.unwrap(), key);
}

#[tokio::test]
async fn a_failing_step_is_named_with_its_exit_code_and_last_lines() {
    let bench = Bench::new().await;
    let file = format!(
        "FROM {TEST_HTTP}\nRUN [\"/test-http\", \"say\", \"before\"]\nRUN [\"/test-http\", \"exit\", \"3\"]\n"
    );
    let error = bench.build(&bench.request("fails", &file)).await.unwrap_err();
    let BuildError::Failed { step: Some(step), exit_code: Some(code), log_tail } = &error else {
        panic!("{error:?}")
    };
    assert!(step.contains("exit") && step.starts_with("RUN"), "{step}");
    assert_ne!(*code, 0);
    assert!(log_tail.iter().any(|line| line == "before"), "{log_tail:#?}");
    assert!(log_tail.len() <= 30);
    assert!(error.is_authors());
}

#[tokio::test]
async fn a_cancelled_build_ends_with_all_its_processes() {
    let bench = Bench::new().await;
    let request = bench.request("cancelled", &run(&format!("sleep {}", word(1))));
    let cancel = request.cancel.clone();
    let watched = async {
        let running = || processes(&word(1)) > 0;
        until("the step runs", running).await;
        cancel.cancel();
    };
    let (built, ()) = tokio::join!(bench.build(&request), watched);
    assert!(matches!(built, Err(BuildError::Cancelled)), "{built:?}");
    assert_eq!(processes(&word(1)), 0);
    // The store is not locked and not damaged, and what the build left goes with the next one.
    bench.run("say still").await;
    let containers = bench.test.store().root().join("overlay-containers/containers.json");
    assert_eq!(fs::read_to_string(containers).unwrap().trim(), "[]");
}

#[tokio::test]
async fn a_dropped_build_ends_with_all_its_processes() {
    let bench = Bench::new().await;
    let request = bench.request("dropped", &run(&format!("sleep {}", word(2))));
    {
        let build = bench.build(&request);
        let running = until("the step runs", || processes(&word(2)) > 0);
        tokio::pin!(build);
        tokio::select! {
            built = &mut build => panic!("{built:?}"),
            () = running => {}
        }
    }
    until("all processes are gone", || processes(&word(2)) == 0).await;
}

/// Set in the process that plays the platform: what its build waits for, and the store's folders.
const PLAYED: &str = "UPDRAFT_TEST_PLAYS_THE_PLATFORM";

#[tokio::test]
async fn a_killed_platform_takes_its_builds_with_it_and_the_next_one_clears_up() {
    const NAME: &str = "a_killed_platform_takes_its_builds_with_it_and_the_next_one_clears_up";
    if let Ok(played) = std::env::var(PLAYED) {
        let [word, root, run_root, context] =
            played.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let mut options = ImageStoreOptions::new(root.into(), run_root.into());
        options.offline = true;
        let builder = BuildahBuilder::new(ImageStore::open(options).await.unwrap()).unwrap();
        let request = request(context.into(), "killed", &run(&format!("sleep {word}")));
        let built = builder.build(&request, &(Arc::new(|_: &str| ()) as LineSink)).await;
        panic!("nobody killed it: {built:?}");
    }
    let (test, _) = TestStore::with_test_image().await;
    let (root, run_root) = (test.store().root().to_owned(), test.store().run_root().to_owned());
    let context = test.folder().join("killed");
    let folders = [&root, &run_root, &context].map(|folder| folder.display().to_string());
    let mut platform = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(PLAYED, format!("{} {}", word(4), folders.join(" ")))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("the step runs", || processes(&word(4)) > 0).await;
    platform.kill().unwrap();
    platform.wait().unwrap();
    until("all processes are gone", || processes(&word(4)) == 0).await;
    let containers = || fs::read_to_string(root.join("overlay-containers/containers.json"));
    assert_ne!(containers().unwrap().trim(), "[]", "its working container stays");
    let groups = || {
        let pid = format!("-{}-", platform.id());
        let trees = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|tree| tree.path());
        trees
            .chain([PathBuf::from("/sys/fs/cgroup")])
            .filter_map(|tree| fs::read_dir(tree).ok())
            .flat_map(|groups| groups.flatten().map(|group| group.file_name()))
            .filter_map(|name| name.into_string().ok())
            .filter(|name| name.starts_with("updraft-build-") && name.contains(&pid))
            .count()
    };
    let builder = BuildahBuilder::new(test.store()).unwrap();
    assert_eq!(fs::read_dir(root.join("updraft-builds")).unwrap().count(), 0);
    // The kernel may take a moment to let go of them; every start looks again.
    let start = || BuildahBuilder::new(test.store()).is_ok() && groups() == 0;
    until("its control groups are gone", start).await;
    let bench = Bench { test, builder, lines: Arc::default() };
    bench.run("say next").await;
    assert_eq!(containers().unwrap().trim(), "[]");
}

#[tokio::test]
async fn a_build_that_takes_too_long_is_ended_with_what_it_left_running() {
    let bench = Bench::new().await;
    let mut request = bench.request("slow", &run("flood"));
    request.limits.time = Duration::from_secs(2);
    let error = bench.build(&request).await.unwrap_err();
    assert!(matches!(error, BuildError::TimedOut { .. }), "{error:?}");
    let total: usize = bench.lines().iter().map(String::len).sum();
    assert!(total < 10 << 20, "{total}");
}

#[tokio::test]
async fn what_a_step_leaves_running_does_not_outlive_the_build() {
    let bench = Bench::new().await;
    bench.run(&format!("linger {}", word(3))).await;
    assert_eq!(processes(&word(3)), 0);
}

#[tokio::test]
async fn a_build_that_eats_too_much_memory_is_told_so() {
    let bench = Bench::new().await;
    let mut request = bench.request("memory", &run("eat 2000"));
    request.limits.memory_bytes = 200 << 20;
    let error = bench.build(&request).await.unwrap_err();
    assert!(matches!(error, BuildError::OutOfMemory { .. }), "{error:?}");
    assert!(error.to_string().contains("200 MiB"), "{error}");
}

#[tokio::test]
async fn a_build_that_starts_too_many_processes_fails() {
    let bench = Bench::new().await;
    let mut request = bench.request("processes", &run("fork 500"));
    request.limits.processes = 100;
    let error = bench.build(&request).await.unwrap_err();
    assert!(error.log_tail().iter().any(|line| line.contains("no more processes")), "{error:?}");
}

#[tokio::test]
async fn a_build_that_fills_the_disk_is_ended() {
    let bench = Bench::new().await;
    let mut request = bench.request("disk", &run("fill /big 3000"));
    request.limits.disk_bytes = 100 << 20;
    let error = bench.build(&request).await.unwrap_err();
    assert!(matches!(error, BuildError::DiskFull { .. }), "{error:?}");
}

#[tokio::test]
async fn a_build_that_makes_too_many_files_is_ended() {
    let bench = Bench::new().await;
    let mut request = bench.request("files", &run("files /many"));
    request.limits.files = 2_000;
    let error = bench.build(&request).await.unwrap_err();
    assert!(matches!(error, BuildError::DiskFull { .. }), "{error:?}");
    assert!(error.to_string().contains("2000 files"), "{error}");
}

#[tokio::test]
async fn a_build_sees_no_other_process_no_device_and_no_file_of_the_machine() {
    let bench = Bench::new().await;
    let processes = bench.run("list /proc").await;
    let count = processes
        .iter()
        .filter_map(|line| line.strip_prefix("/proc/"))
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .count();
    assert!(count < 10, "{processes:#?}");
    let devices = bench.run("list /dev").await;
    let devices: Vec<_> = devices.iter().filter_map(|line| line.strip_prefix("/dev/")).collect();
    assert!(devices.contains(&"null"), "{devices:?}");
    for device in devices {
        let harmless = [
            "null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm", "mqueue",
            "fd", "stdin", "stdout", "stderr", "updraft",
        ];
        assert!(harmless.contains(&device), "{device}");
    }
    let environment = bench.run("env").await.join("\n");
    assert!(!environment.contains("CARGO_MANIFEST_DIR"), "{environment}");
    let status = bench.run("read /proc/self/status").await.join("\n");
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let capabilities = u64::from_str_radix(line, 16).unwrap();
    // Making devices, changing the root, raw packets, mounting, loading modules, tracing.
    for forbidden in [27, 18, 13, 21, 16, 19] {
        assert_eq!(capabilities >> forbidden & 1, 0, "{forbidden} in {line}");
    }
}

#[tokio::test]
async fn root_certificates_are_readable_in_steps() {
    let bench = Bench::new().await;
    let environment = bench.run("env").await;
    let variable = environment.iter().find_map(|line| line.strip_prefix("SSL_CERT_FILE="));
    if Path::new("/etc/ssl/certs/ca-certificates.crt").is_file() {
        let file = variable.unwrap();
        let text = bench.run(&format!("read {file}")).await.join("\n");
        assert!(text.contains("BEGIN CERTIFICATE"));
        assert!(bench.run(&format!("writable {file}")).await.contains(&"read-only".to_owned()));
    }
}

#[tokio::test]
async fn links_in_a_context_cannot_bring_in_files_of_the_machine() {
    let bench = Bench::new().await;
    let secret = bench.test.folder().join("secret");
    fs::write(&secret, "secret").unwrap();
    let request = bench.request("links", &format!("FROM {TEST_HTTP}\nCOPY link /copied\n"));
    std::os::unix::fs::symlink(&secret, request.context.join("link")).unwrap();
    if let Ok(built) = bench.build(&request).await {
        let copied = bench.tree(&built).await.join("copied");
        assert_ne!(fs::read_to_string(copied).unwrap_or_default(), "secret");
    }
    let file = format!(
        "FROM {TEST_HTTP}\nRUN --mount=type=bind,source=link,target=/m [\"/test-http\", \"read\", \"/m\"]\n"
    );
    let mut bind = bench.request("links", &file);
    let error = bench.build(&bind).await.unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
    fs::write(bind.context.join("Dockerfile"), file.replace("source=link", "source=../secret"))
        .unwrap();
    let error = bench.build(&bind).await.unwrap_err();
    assert!(error.to_string().contains("leads out"), "{error}");
    // The Dockerfile itself may be no link either.
    bind.context = bench.test.folder().join("linked");
    fs::create_dir(&bind.context).unwrap();
    std::os::unix::fs::symlink(&secret, bind.context.join("Dockerfile")).unwrap();
    let error = bench.build(&bind).await.unwrap_err();
    assert!(matches!(error, BuildError::NoDockerfile { .. }), "{error}");
}

#[tokio::test]
async fn a_file_of_the_context_can_be_mounted_into_a_step() {
    let bench = Bench::new().await;
    let file = format!(
        "FROM {TEST_HTTP}\nRUN --mount=type=bind,source=dir/file,target=/m [\"/test-http\", \"read\", \"/m\"]\n"
    );
    let request = bench.request("mounted", &file);
    fs::create_dir(request.context.join("dir")).unwrap();
    fs::write(request.context.join("dir/file"), "mounted\n").unwrap();
    let built = bench.build(&request).await;
    assert!(built.is_ok(), "{built:?} {:#?}", bench.lines());
    assert!(bench.lines().contains(&"mounted".to_owned()), "{:#?}", bench.lines());
}

#[tokio::test]
async fn builds_run_side_by_side() {
    let bench = Arc::new(Bench::new().await);
    let builds: Vec<_> = (0..6)
        .map(|number| {
            let bench = bench.clone();
            tokio::spawn(async move {
                let file = format!(
                    "FROM {TEST_HTTP}\nCOPY file /file\nRUN [\"/test-http\", \"write\", \"/made\", \"{number}\"]\n"
                );
                let request = bench.request(&format!("side-{number}"), &file);
                fs::write(request.context.join("file"), "same").unwrap();
                let sink: LineSink = Arc::new(|_: &str| ());
                bench.builder.build(&request, &sink).await
            })
        })
        .collect();
    for (number, build) in builds.into_iter().enumerate() {
        let built = build.await.unwrap().unwrap();
        let made = fs::read_to_string(bench.tree(&built).await.join("made")).unwrap();
        assert_eq!(made, number.to_string());
    }
}

#[tokio::test]
async fn a_full_disk_is_told_before_a_build_starts() {
    let (test, _) = TestStore::with_test_image().await;
    let mut options =
        ImageStoreOptions::new(test.store().root().to_owned(), test.store().run_root().to_owned());
    options.free_bytes_min = u64::MAX;
    let store = ImageStore::open(options).await.unwrap();
    let builder = BuildahBuilder::new(store).unwrap();
    let bench = Bench { test, builder, lines: Arc::default() };
    let error = bench.build(&bench.request("full", &run("say x"))).await.unwrap_err();
    assert!(error.to_string().contains("free"), "{error}");
}

/// A number of milliseconds, long enough, that no other process of the machine has as argument.
fn word(number: u32) -> String {
    format!("9{number}{:08}", std::process::id())
}

/// Processes of the machine whose command line has this word.
fn processes(word: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|byte| *byte == 0).any(|part| part == word.as_bytes())).count()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_mins(3), "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
