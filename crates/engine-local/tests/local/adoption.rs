//! Replicas outlive Updraft, and an instance can be taken off the machine whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use updraft_engine::{Availability, Engine, ReplicaId, Wake};
use updraft_engine_local::{LocalEngine, OpenError, RuntimeChoice};
use updraft_model::{FunctionId, FunctionSpec, ResourceSet};

use crate::harness::{Instance, answer, app, until};

fn spec(name: &str) -> FunctionSpec {
    FunctionSpec::new(FunctionId::in_default(name.parse().unwrap()), app())
}

async fn deploy(engine: &LocalEngine, spec: &FunctionSpec, replicas: u32) {
    let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    engine.wait_ready(&spec.id, revision, Duration::from_secs(30)).await.unwrap();
    engine.scale(&spec.id, replicas).await.unwrap();
    until_ready(engine, &spec.id, replicas).await;
}

fn replicas(engine: &LocalEngine, id: &FunctionId) -> Vec<ReplicaId> {
    let table = engine.endpoints().borrow().clone();
    let ready = table.get(id).map(|entry| entry.ready.clone()).unwrap_or_default();
    ready.iter().map(|endpoint| endpoint.replica.clone()).collect()
}

async fn until_ready(engine: &LocalEngine, id: &FunctionId, count: u32) {
    until("the replicas are ready", || async { replicas(engine, id).len() == count as usize })
        .await;
}

async fn close(engine: Arc<LocalEngine>) {
    engine.shutdown().await;
    drop(engine);
}

fn note_of(instance: &Instance, replica: &ReplicaId) -> serde_json::Value {
    let path = instance.options.run.join("replicas").join(replica.as_str()).join("replica.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_answer_while_updraft_is_away_and_are_adopted_by_its_next_start() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let spec = spec("survivor");
    deploy(&engine, &spec, 2).await;
    let before = replicas(&engine, &spec.id);
    let address = engine.endpoints().borrow()[&spec.id].ready[0].address;
    // No orderly end: as after a kill.
    drop(engine);
    assert_eq!(answer(address, "/").await, "hello");

    let engine = instance.open().await;
    // Once the engine is open its replicas are in the table: nobody waits for a probe.
    assert_eq!(replicas(&engine, &spec.id), before);
    assert_eq!(engine.report().adopted, 2);
    assert_eq!(answer(address, "/").await, "hello");

    // An adopted replica is looked after like any other.
    engine.scale(&spec.id, 1).await.unwrap();
    until_ready(&engine, &spec.id, 1).await;
    let pid = note_of(&instance, &replicas(&engine, &spec.id)[0])["process"][0].as_i64().unwrap();
    kill(pid);
    let left = replicas(&engine, &spec.id);
    until("the killed replica is replaced", || async {
        let now = replicas(&engine, &spec.id);
        now.len() == 1 && now != left
    })
    .await;
    close(engine).await;
    instance.destroy().await;
}

fn kill(pid: i64) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_while_updraft_was_away_is_started_again_and_what_sleeps_sleeps_on() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let (awake, asleep) = (spec("awake"), spec("asleep"));
    deploy(&engine, &awake, 1).await;
    deploy(&engine, &asleep, 0).await;
    let before = replicas(&engine, &awake.id);
    close(engine).await;
    kill(note_of(&instance, &before[0])["process"][0].as_i64().unwrap());
    // A start that was cut off leaves a note without a process.
    let cut_off = instance.options.run.join("replicas/cut-off");
    fs::create_dir(&cut_off).unwrap();
    let mut note = note_of(&instance, &before[0]);
    note["process"] = serde_json::Value::Null;
    fs::write(cut_off.join("replica.json"), note.to_string()).unwrap();

    let engine = instance.open().await;
    until_ready(&engine, &awake.id, 1).await;
    assert_ne!(replicas(&engine, &awake.id), before);
    assert!(!cut_off.exists());
    // The end that nobody saw is counted and told; what was cut off never ran.
    let status = engine.get(&awake.id).await.unwrap().unwrap();
    let exit = status.last_exit.unwrap();
    assert_eq!((status.restarts, &exit.replica), (1, &before[0]));
    assert!(exit.reason.contains("while Updraft was away"), "{}", exit.reason);
    assert_eq!(exit.log_tail, ["conformance app starts"]);
    assert_eq!((exit.code, exit.signal, exit.out_of_memory), (None, None, false));
    let status = engine.get(&asleep.id).await.unwrap().unwrap();
    assert_eq!((status.replicas, status.available_replicas), (0, 0));
    close(engine).await;
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ran_out_of_memory_while_updraft_was_away_is_told_so() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let mut spec = spec("glutton");
    let memory = Some("32Mi".parse().unwrap());
    spec.limits = Some(ResourceSet { memory, ..ResourceSet::default() });
    deploy(&engine, &spec, 1).await;
    let before = replicas(&engine, &spec.id);
    let address = engine.endpoints().borrow()[&spec.id].ready[0].address;
    let pid = note_of(&instance, &before[0])["process"][0].as_i64().unwrap();
    close(engine).await;
    // The connection breaks when the kernel ends the function.
    let asked = tokio::spawn(crate::harness::answer(address, "/memory/256"));
    asked.await.unwrap_err();
    until("it has ended", || async { has_ended(pid) }).await;
    let engine = instance.open().await;
    until_ready(&engine, &spec.id, 1).await;
    let status = engine.get(&spec.id).await.unwrap().unwrap();
    let exit = status.last_exit.unwrap();
    assert_eq!((status.restarts, &exit.replica), (1, &before[0]));
    assert!(exit.out_of_memory && exit.reason.contains("memory"), "{exit:?}");
    close(engine).await;
    instance.destroy().await;
}

/// Gone, or a leftover that nobody has waited for yet.
fn has_ended(pid: i64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_every_deployment_comes_back_to_its_count() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let (two, one) = (spec("two"), spec("one"));
    deploy(&engine, &two, 2).await;
    deploy(&engine, &one, 1).await;
    let old = replicas(&engine, &one.id);
    close(engine).await;
    // Where the volatile folder outlives a boot, the notes are of another one.
    let path = instance.options.run.join("replicas").join(old[0].as_str()).join("replica.json");
    let mut note = note_of(&instance, &old[0]);
    note["boot"] = "another".into();
    fs::write(&path, note.to_string()).unwrap();
    let engine = instance.open().await;
    assert_eq!(engine.report().adopted, 2);
    until_ready(&engine, &one.id, 1).await;
    assert_ne!(replicas(&engine, &one.id), old);
    close(engine).await;
    // Where it does not, nothing is left at all.
    LocalEngine::destroy(&instance.options).await.unwrap();
    let engine = instance.open().await;
    assert_eq!(engine.report().adopted, 0);
    until_ready(&engine, &two.id, 2).await;
    until_ready(&engine, &one.id, 1).await;
    close(engine).await;
    instance.destroy().await;
}

/// What of an instance can be seen on the machine.
fn traces(instance: &Instance) -> Vec<String> {
    let name = &instance.options.instance;
    let mut found = Vec::new();
    for (program, args) in [
        ("ip", vec!["-o", "link"]),
        ("nft", vec!["list", "tables"]),
        ("findmnt", vec!["-rn", "-o", "TARGET"]),
    ] {
        let output = std::process::Command::new(program).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        found.extend(text.lines().filter(|line| line.contains(name)).map(str::to_owned));
    }
    let groups = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    let groups = groups.map(|entry| entry.path().join(format!("updraft-{name}")));
    let run = Path::new("/run").join(format!("updraft-{name}"));
    let paths = groups.chain([run, format!("/sys/fs/cgroup/updraft-{name}").into()]);
    found.extend(paths.filter(|path| path.exists()).map(|path| path.display().to_string()));
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn destroying_an_instance_leaves_nothing_of_it_and_nothing_of_others_is_touched() {
    let one = Instance::new(RuntimeChoice::Detect).await;
    let other = Instance::new(RuntimeChoice::Detect).await;
    let (engine, other_engine) = (one.open().await, other.open().await);
    let spec = spec("twin");
    deploy(&engine, &spec, 2).await;
    deploy(&other_engine, &spec, 1).await;
    assert_ne!(engine.report().subnet, other_engine.report().subnet);
    let address = other_engine.endpoints().borrow()[&spec.id].ready[0].address;

    let again = LocalEngine::destroy(&one.options).await.unwrap_err();
    assert!(matches!(again, OpenError::InUse(_)), "{again}");
    // Without an orderly end, as after a kill.
    drop(engine);
    assert!(!traces(&one).is_empty());
    LocalEngine::destroy(&one.options).await.unwrap();
    assert_eq!(traces(&one), Vec::<String>::new());
    LocalEngine::destroy(&one.options).await.unwrap();

    assert_eq!(answer(address, "/").await, "hello");
    close(other_engine).await;
    one.destroy().await;
    other.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_engines_cannot_share_one_state() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let error = instance.try_open().await.unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    close(engine).await;
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_replica_leaves_no_file_no_device_and_no_cgroup() {
    for runtime in [RuntimeChoice::Crun, RuntimeChoice::Runc] {
        let instance = Instance::new(runtime).await;
        let engine = instance.open().await;
        let spec = spec("passing");
        deploy(&engine, &spec, 3).await;
        engine.scale(&spec.id, 0).await.unwrap();
        let kept = instance.options.run.join("replicas");
        until("the folders are gone", || async { fs::read_dir(&kept).unwrap().count() == 0 }).await;
        let name = format!("updraft-{}", instance.options.instance);
        let groups = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let groups = groups
            .map(|entry| entry.path().join(&name))
            .chain([Path::new("/sys/fs/cgroup").join(&name)]);
        for group in groups.filter(|group| group.is_dir()) {
            // The tenant's own group waits a while for the next replica.
            let left: Vec<_> = folders_in(&group).iter().flat_map(|one| folders_in(one)).collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let program = if runtime == RuntimeChoice::Crun { "crun" } else { "runc" };
        let state = instance.options.run.join("runtime").join(program);
        assert_eq!(fs::read_dir(state).unwrap().count(), 0);
        // The bridge and the spare namespaces' devices are all that is left.
        until("the devices of ended replicas are gone", || async {
            let bridge = format!("updraft{}", instance.options.instance);
            let ports = fs::read_dir(format!("/sys/class/net/{bridge}/brif"));
            ports.unwrap().count() <= instance.options.spare_networks
        })
        .await;
        close(engine).await;
        instance.destroy().await;
    }
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

async fn freeze(engine: &LocalEngine, id: &FunctionId) {
    until("the function is frozen", || async { engine.freeze(id).await.unwrap() }).await;
}

fn availability(engine: &LocalEngine, id: &FunctionId) -> Availability {
    engine.endpoints().borrow()[id].availability.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_frozen_when_updraft_was_killed_is_adopted_and_thawed_on_demand() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let (spec, removed) = (spec("dozing"), spec("dropped"));
    deploy(&engine, &spec, 2).await;
    deploy(&engine, &removed, 1).await;
    let before = replicas(&engine, &spec.id);
    freeze(&engine, &spec.id).await;
    freeze(&engine, &removed.id).await;
    drop(engine);

    let engine = instance.open().await;
    assert_eq!(engine.report().adopted, 3);
    assert_eq!(availability(&engine, &spec.id), Availability::Frozen);
    until("both are known again", || async {
        engine.get(&spec.id).await.unwrap().unwrap().available_replicas == 2
    })
    .await;
    assert_eq!(availability(&engine, &spec.id), Availability::Frozen);
    // What is adopted frozen can be removed without being woken first.
    engine.remove(&removed.id).await.unwrap();
    let notes = || fs::read_dir(instance.options.run.join("replicas")).unwrap().count();
    until("the removed one is gone", || async { notes() == 2 }).await;
    engine.wake(&spec.id).await.unwrap();
    until_ready(&engine, &spec.id, 2).await;
    assert_eq!(replicas(&engine, &spec.id), before);
    let endpoint = Arc::clone(&engine.endpoints().borrow()[&spec.id].ready[0]);
    assert!(endpoint.load.lease().is_some());
    assert_eq!(answer(endpoint.address, "/").await, "hello");
    close(engine).await;
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rest_that_a_crash_cut_off_ends_at_the_next_start() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let spec = spec("half");
    deploy(&engine, &spec, 2).await;
    let before = replicas(&engine, &spec.id);
    freeze(&engine, &spec.id).await;
    close(engine).await;
    let name = format!("updraft-{}", instance.options.instance);
    let root = Path::new("/sys/fs/cgroup");
    let instances = [root.join("freezer").join(&name), root.join(&name)];
    let tenants = instances.iter().flat_map(|instance| folders_in(instance));
    let mut groups = tenants.map(|tenant| tenant.join(before[0].to_string()));
    let group = groups.find(|group| group.is_dir()).unwrap();
    let (one, two) = (group.join("freezer.state"), group.join("cgroup.freeze"));
    if one.is_file() {
        fs::write(one, "THAWED").unwrap();
    } else {
        fs::write(two, "0").unwrap();
    }
    let engine = instance.open().await;
    until_ready(&engine, &spec.id, 2).await;
    assert_eq!(replicas(&engine, &spec.id), before);
    for endpoint in &engine.endpoints().borrow().clone()[&spec.id].ready {
        assert_eq!(answer(endpoint.address, "/").await, "hello");
    }
    close(engine).await;
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_with_frozen_replicas_is_destroyed_like_any_other() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let spec = spec("icy");
    deploy(&engine, &spec, 2).await;
    freeze(&engine, &spec.id).await;
    drop(engine);
    LocalEngine::destroy(&instance.options).await.unwrap();
    assert_eq!(traces(&instance), Vec::<String>::new());
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_replica_that_dies_is_replaced() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let spec = spec("mortal");
    deploy(&engine, &spec, 2).await;
    let before = replicas(&engine, &spec.id);
    freeze(&engine, &spec.id).await;
    kill(note_of(&instance, &before[0])["process"][0].as_i64().unwrap());
    // With version 1 of the freezer the end shows only when somebody wakes the function.
    engine.wake(&spec.id).await.unwrap();
    until("another replica has taken its place", || async {
        let now = replicas(&engine, &spec.id);
        now.len() == 2 && !now.contains(&before[0]) && now.contains(&before[1])
    })
    .await;
    close(engine).await;
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_and_records_of_the_first_version_are_taken_over() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let spec = spec("veteran");
    deploy(&engine, &spec, 2).await;
    let before = replicas(&engine, &spec.id);
    close(engine).await;
    // As the first version wrote them: without what was added since.
    let older = |path: &Path, added: &[&str]| {
        let mut record: serde_json::Value =
            serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let fields = record.as_object_mut().unwrap();
        for field in added {
            fields.remove(*field);
        }
        fields.insert("version".to_owned(), 1.into());
        fs::write(path, record.to_string()).unwrap();
    };
    let record = instance.options.state.join("functions/openfaas-fn/veteran.json");
    older(&record, &["exits", "last_exit"]);
    for replica in &before {
        let folder = instance.options.run.join("replicas").join(replica.as_str());
        older(&folder.join("replica.json"), &["started_at"]);
    }
    let engine = instance.open().await;
    assert_eq!(engine.report().adopted, 2);
    until_ready(&engine, &spec.id, 2).await;
    assert_eq!(replicas(&engine, &spec.id), before);
    let told = engine.replicas(&spec.id).await.unwrap();
    assert!(told.iter().all(|replica| replica.started_at.as_second() > 0), "{told:?}");
    engine.scale(&spec.id, 1).await.unwrap();
    until_ready(&engine, &spec.id, 1).await;
    let written: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    assert_eq!((&written["version"], &written["replicas"]), (&2.into(), &1.into()));
    close(engine).await;
    instance.destroy().await;
}

/// A tunnel holds its replica as a request does; the data plane's own tests show that.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_end_does_not_hold_a_replaced_replica_for_ever() {
    let mut instance = Instance::new(RuntimeChoice::Detect).await;
    instance.options.drain_limit = Duration::from_millis(700);
    let engine = instance.open().await;
    let spec = spec("endless");
    deploy(&engine, &spec, 1).await;
    let old = Arc::clone(&engine.endpoints().borrow()[&spec.id].ready[0]);
    let lease = old.load.lease().unwrap();
    let begin = Instant::now();
    engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    until_gone(&engine, &spec.id, &old.replica).await;
    assert!(begin.elapsed() >= instance.options.drain_limit);
    drop(lease);
    close(engine).await;
    instance.destroy().await;
}

async fn until_gone(engine: &LocalEngine, id: &FunctionId, replica: &ReplicaId) {
    until("the old replica is gone", || async {
        let told = engine.replicas(id).await.unwrap();
        !told.iter().any(|told| told.id == *replica)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_have_the_time_at_which_they_were_written() {
    use futures_util::StreamExt;
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let spec = spec("punctual");
    deploy(&engine, &spec, 1).await;
    let address = engine.endpoints().borrow()[&spec.id].ready[0].address;
    let query = |follow| updraft_engine::LogQuery {
        id: spec.id.clone(),
        instance: None,
        since: None,
        tail: None,
        follow,
    };
    let mut followed = engine.logs(query(true)).await.unwrap();
    let mut errors = Vec::new();
    for number in 0..20 {
        let before = jiff::Timestamp::now();
        answer(address, &format!("/print/tick-{number}")).await;
        let after = jiff::Timestamp::now();
        let line = loop {
            let line = tokio::time::timeout(Duration::from_secs(30), followed.next()).await;
            let line = line.unwrap().unwrap().unwrap();
            if line.text == format!("tick-{number}") {
                break line;
            }
        };
        // Zero while the line was being written, else how far off it is.
        let early = (before.as_microsecond() - line.timestamp.as_microsecond()).max(0);
        let late = (line.timestamp.as_microsecond() - after.as_microsecond()).max(0);
        errors.push(early.max(late));
    }
    errors.sort_unstable();
    // A busy machine may be late often, not always. Who looks four times a second would be: the
    // next line is printed right after a look has found the one before.
    assert!(errors[2] < 50_000, "off by microseconds: {errors:?}");
    let all: Vec<_> = engine.logs(query(false)).await.unwrap().collect().await;
    let mut times: Vec<_> = all.iter().flatten().map(|line| line.timestamp).collect();
    assert!(times.is_sorted());
    times.dedup();
    assert!(times.len() > 15, "each line has a time of its own");
    close(engine).await;
    instance.destroy().await;
}
