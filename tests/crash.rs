//! The process is killed at any moment of a push, and the push ends as if nothing had happened.

use std::net::SocketAddr;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use updraft_tests::{Cloud, Connection, Repository, Traces, eventually, fixture, sweep_leftovers};

const LIMIT: Duration = Duration::from_secs(30);

/// How often the replica that ran before is asked, the server running or not.
const ASKING: Duration = Duration::from_millis(5);

/// Waits until a page of the owner `demo` says `text`.
async fn page_says(cloud: &Cloud, path: &str, text: &str) {
    eventually(&format!("{path} says {text}"), LIMIT, async || {
        let answer = cloud.try_get("demo.localhost", path).await.ok()?;
        (answer.body == text).then_some(())
    })
    .await;
}

/// Waits until the newest push is over; returns how it ended.
async fn newest_push_ends(cloud: &Cloud) -> String {
    eventually("the push ends", LIMIT, async || {
        let is_final =
            |state: &String| ["ready", "failed", "superseded", "cancelled"].contains(&&**state);
        cloud.newest_push_state().filter(is_final)
    })
    .await
}

/// A cloud with a function `page` that is pushed again and again, and one, `steady`, that never
/// changes.
struct World {
    cloud: Cloud,
    url: String,
    repository: Repository,
    pushes: usize,
    /// The one replica of `steady`.
    replica: String,
    over: Arc<AtomicBool>,
    asking: JoinHandle<usize>,
}

impl World {
    fn new() -> Self {
        // The replica that is asked past the server would freeze under the question.
        let cloud = Cloud::start_configured("[scaler]\nfreeze_after = \"0\"");
        let token = cloud.token("demo");
        let url = cloud.git_url("demo", &token, "site");
        let repository = Repository::new();
        let page = fixture::site(&repository, "page", "before");
        let steady = fixture::site(&repository, "steady", "steady");
        fixture::stack(&repository, &[page, steady]);
        repository.commit("Before");
        repository.push(&url).expect_success();
        let (replica, address) = steady_replica(&cloud);
        let over = Arc::new(AtomicBool::new(false));
        let asking = tokio::spawn(ask(address, Arc::clone(&over)));
        Self { cloud, url, repository, pushes: 1, replica, over, asking }
    }

    /// Changes the page and begins to push it.
    fn begin_push(&mut self, text: &str) -> Child {
        self.pushes += 1;
        self.repository.write("page/index.html", text).commit(text);
        self.repository.start_push(&self.url)
    }

    /// Starts the server again; all must be as if it had never ended.
    async fn resume(&mut self, text: &str) {
        self.cloud.resume();
        // What ran before goes on at once, without a new start.
        assert_eq!(self.cloud.get("demo.localhost", "/steady").await.body, "steady");
        assert_eq!(newest_push_ends(&self.cloud).await, "ready");
        self.all_is_well(text).await;
    }

    async fn all_is_well(&self, text: &str) {
        let cloud = &self.cloud;
        assert_eq!(cloud.get("demo.localhost", "/page").await.body, text);
        assert_eq!(steady_replica(cloud).0, self.replica, "it was adopted, not started anew");
        let releases = cloud.json(&["releases", "demo/page"]);
        assert_eq!(releases.as_array().map(Vec::len), Some(self.pushes), "{releases}");
    }

    /// What so many functions with a replica each, and nothing under way, do not need.
    fn leftovers(&self, functions: usize) -> Vec<String> {
        let data_dir = self.cloud.data_dir();
        let traces = self.cloud.traces();
        let mut left: Vec<String> = Vec::new();
        let programs = ["buildah", "git", "crun", "runc"];
        left.extend(
            traces
                .of_kind("process ")
                .into_iter()
                .filter(|line| {
                    let command = line.split(' ').nth(2).unwrap_or_default();
                    programs.iter().any(|program| command.ends_with(program))
                })
                .map(str::to_owned),
        );
        let instance = std::fs::read_to_string(data_dir.join("instance")).expect("it has an id");
        let replicas = format!("/run/updraft-{}/engine/replicas", instance.trim());
        let replicas = names_in(replicas.as_ref());
        if replicas.len() != functions {
            left.push(format!("replicas {replicas:?}"));
        }
        // The bridge, a device of each replica, and the two that are kept ready.
        let devices = traces.of_kind("network device ");
        if devices.len() > functions + 3 {
            left.push(format!("{devices:?}"));
        }
        left.extend(names_in(&data_dir.join("work")));
        left
    }

    /// No question that the steady replica was asked remained without its answer, and nothing is
    /// left of what was cut short.
    async fn end(self, functions: usize) {
        // A replica that was replaced takes its time to end what it was asked for.
        eventually("nothing is left of what was cut short", LIMIT, async || {
            self.leftovers(functions).is_empty().then_some(())
        })
        .await;
        self.over.store(true, Ordering::Relaxed);
        let answers = self.asking.await.expect("every question was answered");
        assert!(answers > 100, "it was asked");
    }
}

fn names_in(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Name and address of the replica of `steady`.
fn steady_replica(cloud: &Cloud) -> (String, SocketAddr) {
    let list = cloud.json(&["list"]);
    let functions = list.as_array().expect("a list");
    let steady = functions.iter().find(|function| function["name"] == "steady");
    let replica = &steady.unwrap_or_else(|| panic!("no steady in {list}"))["ready"][0];
    let text = |field: &str| replica[field].as_str().unwrap_or_else(|| panic!("{list}")).to_owned();
    (text("name"), text("address").parse().expect("an address"))
}

/// Asks a replica past the server, until it is over; returns how often.
async fn ask(replica: SocketAddr, over: Arc<AtomicBool>) -> usize {
    let mut answers = 0;
    while !over.load(Ordering::Relaxed) {
        let mut connection =
            Connection::open(replica).await.expect("the replica takes connections");
        let answer = connection.get("demo.localhost", "/").await.expect("the replica answers");
        assert_eq!((answer.status, answer.body.as_str()), (200, "steady"));
        answers += 1;
        tokio::time::sleep(ASKING).await;
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_killed_in_any_state_ends_well() {
    let mut world = World::new();
    let states = ["received", "cloned", "planned", "building", "released", "deploying", "ready"];
    for pair in states.windows(2) {
        let &[state, next] = pair else { unreachable!("windows of two") };
        let text = format!("killed when {state}");
        world.cloud.hold_pushes_before(next);
        let log_before = world.cloud.server_log().len();
        let mut git = world.begin_push(&text);
        eventually(&format!("the work of a push that is {state} is done"), LIMIT, async || {
            let refused = world.cloud.server_log()[log_before..].contains("cannot be recorded");
            (refused && world.cloud.newest_push_state().as_deref() == Some(state)).then_some(())
        })
        .await;
        world.cloud.kill();
        git.wait().expect("git can be waited for");
        assert_eq!(world.cloud.newest_push_state().as_deref(), Some(state));
        world.cloud.let_pushes_go();
        world.resume(&text).await;
    }
    // And just after it is ready.
    let mut git = world.begin_push("killed when ready");
    eventually("the push is ready", LIMIT, async || {
        let state = world.cloud.newest_push_state();
        let is_new = world.cloud.pushes() == world.pushes;
        (is_new && state.as_deref() == Some("ready")).then_some(())
    })
    .await;
    world.cloud.kill();
    git.wait().expect("git can be waited for");
    world.resume("killed when ready").await;
    world.end(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_ends_well_whenever_the_process_is_killed() {
    let mut world = World::new();
    // Later and later, so that the kill falls between any two steps.
    for (round, delay) in [0, 20, 45, 70, 100, 150, 250, 400, 700].into_iter().enumerate() {
        let text = format!("round {round}");
        let mut git = world.begin_push(&text);
        tokio::time::sleep(Duration::from_millis(delay)).await;
        world.cloud.kill();
        git.wait().expect("git can be waited for");
        world.cloud.resume();

        assert_eq!(world.cloud.get("demo.localhost", "/steady").await.body, "steady");
        // Whatever git was told, pushing again settles it; a received push needs no second one.
        let is_received = world
            .repository
            .git(&["ls-remote", &world.url, "refs/heads/main"])
            .starts_with(world.repository.git(&["rev-parse", "HEAD"]).trim());
        if !is_received {
            world.repository.push(&world.url).expect_success();
        }
        page_says(&world.cloud, "/page", &text).await;
        assert_eq!(newest_push_ends(&world.cloud).await, "ready");
        world.all_is_well(&text).await;
    }
    world.end(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_killed_while_a_new_replica_gets_ready_is_deployed_after_the_start() {
    let mut world = World::new();
    let slow = fixture::binary(&world.repository, "slow", "ready at last");
    // Takes connections, and says only after a while that it is ready.
    let dockerfile = world.repository.path().join("slow/Dockerfile");
    let text = std::fs::read_to_string(&dockerfile).unwrap();
    let script = "/busybox sleep 3; exec /busybox httpd -f -p 8080 -h /www";
    let (before, _) = text.split_once("CMD").unwrap();
    world.repository.write(
        "slow/Dockerfile",
        format!("{before}CMD [\"/busybox\", \"sh\", \"-c\", \"{script}\"]\n"),
    );
    let page = fixture::site(&world.repository, "page", "with a slow one");
    let steady = fixture::site(&world.repository, "steady", "steady");
    fixture::stack(&world.repository, &[page, steady, slow]);
    world.repository.commit("Add a slow one");
    world.pushes += 1;

    let mut git = world.repository.start_push(&world.url);
    eventually("the slow one starts", LIMIT, async || {
        let starts =
            world.cloud.traces().of_kind("process ").iter().any(|line| line.contains("sleep 3"));
        starts.then_some(())
    })
    .await;
    assert_eq!(world.cloud.newest_push_state().as_deref(), Some("deploying"));
    world.cloud.kill();
    git.wait().expect("git can be waited for");
    world.cloud.resume();
    assert_eq!(newest_push_ends(&world.cloud).await, "ready");
    page_says(&world.cloud, "/slow/index.html", "ready at last").await;
    page_says(&world.cloud, "/page", "with a slow one").await;
    assert_eq!(steady_replica(&world.cloud).0, world.replica);
    world.end(3).await;
}

#[tokio::test]
async fn a_push_killed_in_its_build_is_built_after_the_start() {
    let mut cloud = Cloud::start();
    let token = cloud.token("demo");
    let url = cloud.git_url("demo", &token, "slow");
    let repository = Repository::new();
    let entry = fixture::binary(&repository, "slow", "built");
    let dockerfile = std::fs::read_to_string(repository.path().join("slow/Dockerfile")).unwrap();
    let slow = dockerfile.replace("USER", "RUN [\"/busybox\", \"sleep\", \"2\"]\nUSER");
    repository.write("slow/Dockerfile", slow);
    fixture::stack(&repository, &[entry]);
    repository.commit("Build slowly");

    let mut git = repository.start_push(&url);
    let build = |cloud: &Cloud| -> Vec<String> {
        let traces = cloud.traces();
        let processes = traces.of_kind("process ").into_iter();
        processes.filter(|line| line.contains("buildah")).map(str::to_owned).collect()
    };
    eventually("the build runs", LIMIT, async || (!build(&cloud).is_empty()).then_some(())).await;
    assert_eq!(cloud.newest_push_state().as_deref(), Some("building"));
    cloud.kill();
    git.wait().expect("git can be waited for");
    eventually("the build ends with the process", LIMIT, async || {
        build(&cloud).is_empty().then_some(())
    })
    .await;
    cloud.resume();
    page_says(&cloud, "/slow/index.html", "built").await;
    let releases = cloud.json(&["releases", "demo/slow"]);
    assert_eq!(releases.as_array().map(Vec::len), Some(1), "{releases}");
}

#[tokio::test]
async fn replicas_outlive_the_process_and_are_taken_over() {
    let mut cloud = Cloud::start();
    let token = cloud.token("demo");
    let repository = Repository::new();
    let page = fixture::site(&repository, "page", "still here");
    fixture::stack(&repository, &[page]);
    repository.commit("Stay");
    repository.push(&cloud.git_url("demo", &token, "site")).expect_success();
    let replica =
        |cloud: &Cloud| cloud.json(&["list"])[0]["ready"][0]["name"].as_str().map(str::to_owned);
    let before = replica(&cloud);
    assert!(before.is_some());

    cloud.kill();
    cloud.resume();
    assert_eq!(cloud.get("demo.localhost", "/page").await.body, "still here");
    assert_eq!(replica(&cloud), before, "the replica was adopted, not started anew");

    // A service manager's stop leaves replicas running too.
    assert_eq!(cloud.signal(rustix::process::Signal::TERM), Some(0));
    cloud.resume();
    assert_eq!(replica(&cloud), before);

    // Ctrl-C stops them and leaves nothing on the machine; the next start brings the function
    // back.
    assert_eq!(cloud.signal(rustix::process::Signal::INT), Some(0));
    assert!(cloud.traces().0.is_empty(), "{:#?}", cloud.traces());
    cloud.resume();
    page_says(&cloud, "/page", "still here").await;
    assert_ne!(replica(&cloud), before);
}

#[tokio::test]
async fn a_killed_test_run_leaves_nothing_that_the_next_one_trips_over() {
    let cloud = Cloud::start();
    let token = cloud.token("demo");
    let repository = Repository::new();
    let page = fixture::site(&repository, "page", "left behind");
    fixture::stack(&repository, &[page]);
    repository.commit("Leave");
    repository.push(&cloud.git_url("demo", &token, "site")).expect_success();

    let (folder, traces) = cloud.abandon();
    for kind in ["process", "mount", "network device", "firewall table", "control group", "folder"]
    {
        assert!(!traces.of_kind(kind).is_empty(), "no {kind} in {traces:#?}");
    }
    sweep_leftovers();
    assert!(!folder.exists(), "{} is still there", folder.display());
}

#[tokio::test]
async fn a_cloud_whose_data_directory_was_removed_is_cleared_away_by_the_next_that_starts() {
    let mut cloud = Cloud::start();
    let token = cloud.token("demo");
    let repository = Repository::new();
    let page = fixture::site(&repository, "page", "forgotten");
    fixture::stack(&repository, &[page]);
    repository.commit("Forget");
    repository.push(&cloud.git_url("demo", &token, "site")).expect_success();
    cloud.kill();
    // Out of its place is as good as removed, and lets the test clear up after it.
    let (data_dir, moved) = (cloud.data_dir(), cloud.data_dir().with_extension("moved"));
    std::fs::rename(&data_dir, &moved).unwrap();
    let kinds = ["process", "network device", "firewall table", "control group", "folder"];
    let traces = Traces::of(&moved);
    for kind in kinds {
        assert!(!traces.of_kind(kind).is_empty(), "no {kind} in {traces:#?}");
    }

    let other = Cloud::start();
    eventually("nothing of it is left", Duration::from_mins(2), async || {
        let left = Traces::of(&moved);
        kinds.iter().all(|kind| left.of_kind(kind).is_empty()).then_some(())
    })
    .await;
    // The one that cleared up is untouched, and the other can be brought back.
    assert!(!other.traces().of_kind("control group").is_empty());
    std::fs::rename(&moved, &data_dir).unwrap();
    cloud.resume();
    page_says(&cloud, "/page", "forgotten").await;
}
