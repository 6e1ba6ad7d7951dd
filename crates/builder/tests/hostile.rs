//! Builds that try to get out: each attempt is refused, and neighbours go on.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use updraft_builder::{
    BuildError, BuildLimits, BuildPolicy, BuildRequest, BuildahBuilder, Builder as _, BuiltImage,
    Egress, LineSink,
};
use updraft_images::testing::{TEST_HTTP, TestStore};
use updraft_images::{Budget, Keep, Step};
use updraft_model::Digest;

struct Bench {
    test: TestStore,
    builder: BuildahBuilder,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    async fn new(egress: Egress) -> Self {
        let (test, _) = TestStore::with_test_image().await;
        let policy = BuildPolicy { egress, ..BuildPolicy::default() };
        let builder = BuildahBuilder::with_policy(test.store(), policy).unwrap();
        Self { test, builder, lines: Arc::default() }
    }

    fn request(&self, owner: &str, name: &str, dockerfile: &str) -> BuildRequest {
        let context = self.test.folder().join(format!("{owner}-{name}"));
        fs::create_dir_all(&context).unwrap();
        fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        BuildRequest {
            context,
            context_digest: Digest::from_bytes([1; 32]),
            tag: format!("localhost/{owner}/{name}:1").parse().unwrap(),
            build_args: BTreeMap::new(),
            limits: BuildLimits {
                time: Duration::from_mins(10),
                memory_bytes: 256 << 20,
                files: 1_000_000,
                disk_bytes: 1 << 30,
                processes: 100,
            },
            cancel: CancellationToken::new(),
        }
    }

    async fn build(&self, request: &BuildRequest) -> Result<BuiltImage, BuildError> {
        self.lines.lock().unwrap().clear();
        let lines = self.lines.clone();
        let sink: LineSink =
            Arc::new(move |line: &str| lines.lock().unwrap().push(line.to_owned()));
        self.builder.build(request, &sink).await
    }

    fn lines(&self, start: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter_map(|line| line.strip_prefix(start)).map(str::to_owned).collect()
    }

    /// Runs the attack with these arguments in a build.
    async fn attack(&self, arguments: &[String]) -> BuiltImage {
        let words: Vec<String> = std::iter::once("/attack".to_owned())
            .chain(arguments.iter().cloned())
            .map(|word| format!("{word:?}"))
            .collect();
        let file = format!("FROM {TEST_HTTP}\nCOPY attack /attack\nRUN [{}]\n", words.join(", "));
        let request = self.request("mallory", "attack", &file);
        fs::copy(program(self.test.folder()), request.context.join("attack")).unwrap();
        let built = self.build(&request).await;
        built.unwrap_or_else(|error| panic!("{error}\n{:#?}", self.lines.lock().unwrap()))
    }
}

/// The attack as a static program.
fn program(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/attack.rs");
    let program = folder.join("attack");
    let mut command = Command::new("rustc");
    command.args(["--edition", "2024", "-C", "target-feature=+crt-static", "-C", "panic=abort"]);
    let output = command.arg("-o").arg(&program).arg(source).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

/// The address of this machine towards others.
fn own_address() -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: the kernel only looks the route up.
    socket.connect("192.0.2.1:9").unwrap();
    socket.local_addr().unwrap().ip().to_string()
}

/// A neighbour that answers, and remembers how many came and how long the slowest waited.
struct Neighbour {
    port: u16,
    came: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Neighbour {
    fn new() -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (came, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (came.clone(), stop.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                counted.fetch_add(1, Ordering::Relaxed);
                // Who asked may be gone.
                drop(stream.write_all(b"here"));
            }
        });
        Self { port, came, stop }
    }

    fn answers(&self) -> bool {
        let address = ([127, 0, 0, 1], self.port).into();
        let opened = TcpStream::connect_timeout(&address, Duration::from_secs(10));
        let mut text = String::new();
        opened.is_ok_and(|mut stream| stream.read_to_string(&mut text).is_ok()) && text == "here"
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.answers();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_step_reaches_nothing_of_the_machine() {
    let bench = Bench::new(Egress::Open).await;
    assert_eq!(bench.builder.degraded(), Vec::<String>::new());
    let neighbour = Neighbour::new();
    let canary = bench.test.folder().join("canary");
    fs::write(&canary, "the platform's key").unwrap();
    let other = bench.test.folder().join("other-build");
    fs::create_dir(&other).unwrap();
    let port = neighbour.port;
    let arguments = [
        format!("127.0.0.1:{port}"),
        format!("{}:{port}", own_address()),
        format!("[::1]:{port}"),
        "169.254.169.254:80".to_owned(),
        "[fe80::a9fe:a9fe]:80".to_owned(),
        "[fd00:ec2::254]:80".to_owned(),
        canary.display().to_string(),
        other.display().to_string(),
        bench.test.store().root().display().to_string(),
        bench.test.store().run_root().display().to_string(),
        "/etc/shadow".to_owned(),
    ];
    let built = bench.attack(&arguments).await;
    assert_eq!(bench.lines("TRIED "), ["true"], "{:#?}", bench.lines.lock().unwrap());
    assert_eq!(bench.lines("REACHED "), Vec::<String>::new());
    let users = bench.lines("USERS ");
    let users: Vec<&str> = users[0].split_whitespace().collect();
    assert_eq!(users, ["0", "2147352576", "65536"], "root of a build is nobody outside");
    assert_eq!(neighbour.came.load(Ordering::Relaxed), 0);
    assert!(neighbour.answers());
    // On the disk the build's files are root's, as those of any image.
    use std::os::unix::fs::MetadataExt as _;
    let image = bench.test.store().resolve(&built.image).await.unwrap().unwrap();
    let tree = bench.test.store().mount(&image).await.unwrap();
    assert_eq!(fs::metadata(tree.join("attack")).unwrap().uid(), 0);
    // What the platform's own process has in its environment stays there.
    assert!(std::env::var("CARGO_MANIFEST_DIR").is_ok());
    assert!(bench.lines.lock().unwrap().iter().all(|line| !line.contains("CARGO_MANIFEST_DIR")));
}

/// Starts a build that waits to be attacked; gives what it said about itself.
async fn victim(bench: &Bench, owner: &str, cancel: &CancellationToken) -> Victim {
    let file =
        format!("FROM {TEST_HTTP}\nCOPY attack /attack\nRUN [\"/attack\", \"victim\", \"7070\"]\n");
    let mut request = bench.request(owner, "victim", &file);
    request.cancel = cancel.clone();
    fs::copy(program(bench.test.folder()), request.context.join("attack")).unwrap();
    let context = request.context.clone();
    let (builder, lines) = (bench.builder.clone(), Arc::new(Mutex::new(Vec::new())));
    let sink: LineSink = {
        let lines: Arc<Mutex<Vec<String>>> = lines.clone();
        Arc::new(move |line: &str| lines.lock().unwrap().push(line.to_owned()))
    };
    let build = tokio::spawn(async move { builder.build(&request, &sink).await });
    let begin = Instant::now();
    let about = loop {
        let said = lines
            .lock()
            .unwrap()
            .iter()
            .find_map(|line| line.strip_prefix("VICTIM ").map(str::to_owned));
        if let Some(said) = said {
            break said;
        }
        assert!(!build.is_finished(), "{:#?}", lines.lock().unwrap());
        assert!(begin.elapsed() < Duration::from_mins(2), "the victim does not start");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let address = about.split(' ').next().unwrap().to_owned();
    assert!(about.ends_with("true"), "it has memory to share: {about}");
    Victim { build, lines, address, context }
}

struct Victim {
    build: tokio::task::JoinHandle<Result<BuiltImage, BuildError>>,
    lines: Arc<Mutex<Vec<String>>>,
    address: String,
    context: PathBuf,
}

impl Victim {
    fn count(&self, line: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|said| said.starts_with(line)).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_step_finds_nothing_of_another_running_build() {
    let bench = Bench::new(Egress::Open).await;
    let cancel = CancellationToken::new();
    let victim = victim(&bench, "alice", &cancel).await;
    let before = victim.count("WELL");
    let arguments = [
        format!("{}:7070", victim.address),
        victim.context.display().to_string(),
        bench.test.store().root().join("updraft-builds").display().to_string(),
    ];
    bench.attack(&arguments).await;
    assert_eq!(bench.lines("TRIED "), ["true"]);
    assert_eq!(bench.lines("REACHED "), Vec::<String>::new());
    assert_eq!(victim.count("VISITED"), 0);
    // It goes on as if nothing had been.
    let begin = Instant::now();
    while victim.count("WELL") < before + 3 {
        assert!(!victim.build.is_finished() && begin.elapsed() < Duration::from_mins(1));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cancel.cancel();
    assert!(matches!(victim.build.await.unwrap(), Err(BuildError::Cancelled)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_user_id_program_of_an_image_makes_nobody_root() {
    let bench = Bench::new(Egress::Closed).await;
    let file = format!(
        "FROM {TEST_HTTP}\nCOPY attack /attack\nRUN [\"/attack\", \"mark\", \"/attack\"]\n\
         USER 1000:1000\nRUN [\"/attack\"]\n"
    );
    let request = bench.request("mallory", "marked", &file);
    fs::copy(program(bench.test.folder()), request.context.join("attack")).unwrap();
    let built = bench.build(&request).await.unwrap();
    assert_eq!(bench.lines("TRIED "), ["true"]);
    assert_eq!(bench.lines("REACHED "), Vec::<String>::new());
    // It is marked, and that is all.
    let image = bench.test.store().resolve(&built.image).await.unwrap().unwrap();
    let tree = bench.test.store().mount(&image).await.unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(tree.join("attack")).unwrap().mode() & 0o7777, 0o6755);
}

/// A machine of a private network beside this one, gone when it is dropped.
struct Beside {
    address: std::net::Ipv4Addr,
    process: std::process::Child,
}

impl Beside {
    fn new() -> Self {
        let busybox = ["busybox", "nc", "-ll", "-p", "7071", "-e", "/bin/busybox", "true"];
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net"]).args(busybox);
        let process = command.spawn().unwrap();
        let this = Self { address: private_address(), process };
        let ip = |arguments: &str| {
            let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
            assert!(
                output.status.success(),
                "{arguments}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        let (pid, device) = (this.process.id(), format!("upt{}", this.process.id()));
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let begin = Instant::now();
        while fs::read_link(format!("/proc/{pid}/ns/net")).unwrap() == own {
            assert!(begin.elapsed() < Duration::from_mins(1), "it has no network of its own");
            std::thread::sleep(Duration::from_millis(5));
        }
        let here = std::net::Ipv4Addr::from_bits(this.address.to_bits() - 1);
        ip(&format!("link add {device} type veth peer name eth0 netns {pid}"));
        ip(&format!("addr add {here}/30 dev {device}"));
        ip(&format!("link set {device} up"));
        let inside = |arguments: &str| {
            let mut command = Command::new("nsenter");
            command.args(["--net", "--target", &pid.to_string(), "ip"]);
            assert!(command.args(arguments.split(' ')).status().unwrap().success());
        };
        inside(&format!("addr add {}/30 dev eth0", this.address));
        inside("link set eth0 up");
        inside(&format!("route add default via {here}"));
        this
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Its network goes with it, and the device here with that.
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// The second address of a pair that no other test has.
fn private_address() -> std::net::Ipv4Addr {
    let pair = std::process::id() % (1 << 14);
    std::net::Ipv4Addr::from_bits(u32::from_be_bytes([10, 217, 0, 0]) + pair * 4 + 2)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_network_is_open_to_builds_only_where_a_list_names_it() {
    let beside = Beside::new();
    let address = format!("{}:7071", beside.address);
    let begin = Instant::now();
    while TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(1)).is_err() {
        assert!(begin.elapsed() < Duration::from_mins(1), "it does not answer");
    }
    // A name that means this address, as one that was rebound, leads here too.
    for (egress, reached) in [
        (Egress::Open, false),
        (Egress::Only(vec!["public".parse().unwrap()]), false),
        (Egress::Only(vec![address.parse().unwrap()]), true),
    ] {
        let bench = Bench::new(egress.clone()).await;
        bench.attack(std::slice::from_ref(&address)).await;
        let told = bench.lines("REACHED ");
        let expected = if reached { vec![format!("reaching {address}")] } else { Vec::new() };
        assert_eq!(told, expected, "{egress:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_build_has_no_way_out_at_all() {
    let bench = Bench::new(Egress::Closed).await;
    let file = format!(
        "FROM {TEST_HTTP}\nRUN [\"/test-http\", \"list\", \"/sys/class/net\"]\nRUN [\"/test-http\", \"read\", \"/proc/net/route\"]\n"
    );
    bench.build(&bench.request("mallory", "closed", &file)).await.unwrap();
    let routes =
        bench.lines.lock().unwrap().iter().filter(|line| line.contains("00000000")).count();
    assert_eq!(routes, 0, "{:#?}", bench.lines.lock().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_in_a_build_leave_its_neighbours_answering() {
    let bench = Arc::new(Bench::new(Egress::Open).await);
    let neighbour = Neighbour::new();
    for (name, command) in [
        ("forks", "\"fork\", \"5000\""),
        ("memory", "\"eat\", \"3000\""),
        ("disk", "\"fill\", \"/big\", \"3000\""),
        ("files", "\"files\", \"/many\""),
    ] {
        let file = format!("FROM {TEST_HTTP}\nRUN [\"/test-http\", {command}]\n");
        let mut request = bench.request("mallory", name, &file);
        match name {
            "disk" => request.limits.disk_bytes = 100 << 20,
            "files" => request.limits.files = 2_000,
            _ => {}
        }
        let building = {
            let bench = bench.clone();
            tokio::spawn(async move { bench.build(&request).await.map(drop) })
        };
        let mut asked = 0;
        while !building.is_finished() {
            assert!(neighbour.answers(), "while {name}");
            asked += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let error = building.await.unwrap().unwrap_err();
        let expected = match name {
            "disk" | "files" => matches!(error, BuildError::DiskFull { .. }),
            _ => error.is_authors(),
        };
        assert!(expected, "{name}: {error}");
        assert!(asked > 0);
        // What it took is given back.
        let left = bench.test.store().root().join("updraft-builds");
        assert_eq!(fs::read_dir(left).unwrap().count(), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_owner_built_is_not_for_another_to_build_on() {
    let bench = Bench::new(Egress::Closed).await;
    let built = bench.build(&bench.request("alice", "secret", "FROM scratch\nLABEL a=1\n")).await;
    let built = built.unwrap();
    let by_id = format!("anything@{}", built.id);
    for name in ["localhost/alice/secret:1", "alice/secret:1", &by_id] {
        for file in
            [format!("FROM {name}\n"), format!("FROM {TEST_HTTP}\nCOPY --from={name} / /stolen\n")]
        {
            let error = bench.build(&bench.request("mallory", "thief", &file)).await.unwrap_err();
            assert!(error.to_string().contains("belongs to `alice`"), "{error}");
        }
    }
    let own = "FROM localhost/alice/secret:1\nLABEL b=1\n";
    bench.build(&bench.request("alice", "own", own)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_a_step_made_anew_is_new_for_builds_and_functions() {
    let bench = Bench::new(Egress::Closed).await;
    let file = format!(
        "FROM {TEST_HTTP}\nCOPY attack /attack\nCOPY one /folder/one\n\
         RUN [\"/attack\", \"again\", \"/folder\"]\nCOPY one /later\n\
         RUN [\"/test-http\", \"list\", \"/folder\"]\n"
    );
    let request = bench.request("alice", "folder", &file);
    fs::write(request.context.join("one"), "1").unwrap();
    fs::copy(program(bench.test.folder()), request.context.join("attack")).unwrap();
    let built = bench.build(&request).await.unwrap();
    assert_eq!(bench.lines("/folder/"), ["two"]);
    let image = bench.test.store().resolve(&built.image).await.unwrap().unwrap();
    let tree = bench.test.store().mount(&image).await.unwrap();
    let shown: Vec<_> = fs::read_dir(tree.join("folder")).unwrap().flatten().collect();
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert!(tree.join("folder/two").is_file());
}

/// Collects as hard as it can while images are built and recorded.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_built_and_recorded_is_never_collected_in_between() {
    let (test, _) = TestStore::with_test_image().await;
    let store = test.reopened(Duration::from_secs(5)).await;
    let builder = BuildahBuilder::new(store.clone()).unwrap();
    let bench = Arc::new(Bench { test, builder, lines: Arc::default() });
    let recorded: Arc<Mutex<Keep>> = Arc::default();
    recorded.lock().unwrap().names.insert(TEST_HTTP.parse().unwrap());
    let stop = CancellationToken::new();
    let collecting = {
        let (store, recorded, stop) = (store.clone(), recorded.clone(), stop.clone());
        tokio::spawn(async move {
            let budget = Budget {
                total_bytes: Some(0),
                cache_bytes: 0,
                free_bytes: 0,
                unused_for: Duration::ZERO,
            };
            let mut gone = 0;
            while !stop.is_cancelled() {
                let keep = recorded.lock().unwrap().clone();
                store.note_needed(&keep).unwrap();
                store.unmount_unneeded(&keep).await.unwrap();
                match store.step(&keep, &budget, 4).await.unwrap() {
                    Step::Went(some) => gone += some.len(),
                    Step::Busy | Step::Done => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
            gone
        })
    };
    let mut first = None;
    let mut last = None;
    for number in 1..=3 {
        // The same name each time: what it meant before is left to the collection.
        let file = format!(
            "FROM {TEST_HTTP}\nCOPY file /file\nRUN [\"/test-http\", \"say\", \"{}\"]\n",
            number % 2
        );
        let request = bench.request("alice", "pushed", &file);
        fs::write(request.context.join("file"), number.to_string()).unwrap();
        let built = bench.build(&request).await.unwrap();
        assert!(bench.builder.exists(&built).await.unwrap());
        {
            // One release is kept, as a window of one would.
            let mut keep = recorded.lock().unwrap();
            keep.ids.clear();
            keep.ids.insert(built.id);
        }
        let image = store.resolve(&built.image.pinned(built.id)).await.unwrap().unwrap();
        let tree = store.mount(&image).await.unwrap();
        assert_eq!(fs::read_to_string(tree.join("file")).unwrap(), number.to_string());
        first = first.or(Some(built.clone()));
        last = Some((built, tree));
    }
    let (first, (last, tree)) = (first.unwrap(), last.unwrap());
    let begin = Instant::now();
    while store.is_here(&first.image.pinned(first.id)).unwrap() {
        assert!(begin.elapsed() < Duration::from_mins(1), "nothing is collected");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    assert!(collecting.await.unwrap() > 0);
    assert!(store.is_here(&last.image.pinned(last.id)).unwrap());
    assert_eq!(fs::read_to_string(tree.join("file")).unwrap(), "3");
}
