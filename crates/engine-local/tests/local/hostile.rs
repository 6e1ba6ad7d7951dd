//! The hostile battery: a function that runs as root in its container tries to get at the
//! machine, at its neighbours and at the platform. Each attack has its refusal, and a neighbour of
//! another tenant goes on answering.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use updraft_engine::{Engine, EngineError, SecretValue, Wake};
use updraft_engine_local::{LocalEngine, RuntimeChoice};
use updraft_model::{FunctionId, FunctionSpec, Namespace, SecretName, annotations, labels};

use crate::harness::{Instance, answer, app, status, until};

/// Two tenants on one machine, one of them hostile.
pub(crate) struct Battlefield {
    pub(crate) instance: Instance,
    pub(crate) engine: Arc<LocalEngine>,
    pub(crate) attacker: SocketAddr,
    pub(crate) neighbour: SocketAddr,
}

/// A function of an owner.
pub(crate) fn owned(owner: &str) -> FunctionSpec {
    let name = format!("{owner}-function").parse().unwrap();
    let mut spec = FunctionSpec::new(FunctionId::in_default(name), app());
    spec.labels.insert(labels::GIT_OWNER.into(), owner.into());
    spec
}

pub(crate) async fn deploy(engine: &LocalEngine, spec: &FunctionSpec) -> SocketAddr {
    let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    engine.wait_ready(&spec.id, revision, Duration::from_mins(1)).await.unwrap();
    engine.endpoints().borrow()[&spec.id].ready[0].address
}

impl Battlefield {
    pub(crate) async fn new() -> Self {
        Self::on(|_| {}, |_| {}).await
    }

    /// On an instance that is different, or with an attacker that is.
    pub(crate) async fn on(
        differ: impl FnOnce(&mut Instance),
        change: impl FnOnce(&mut FunctionSpec),
    ) -> Self {
        let mut instance = Instance::new(RuntimeChoice::Detect).await;
        instance.arm();
        instance.user = "0";
        instance.options.tmp_bytes = 16 << 20;
        instance.options.root_bytes = 32 << 20;
        instance.options.log_bytes = 1 << 20;
        instance.options.process_limit = 64;
        instance.options.ready_limit = Duration::from_secs(30);
        differ(&mut instance);
        let engine = instance.open().await;
        let mut hostile = owned("mallory");
        change(&mut hostile);
        let attacker = deploy(&engine, &hostile).await;
        let neighbour = deploy(&engine, &owned("alice")).await;
        Self { instance, engine, attacker, neighbour }
    }

    /// What came of an attack: its words, joined as the app wants them.
    pub(crate) async fn attack(&self, words: &[&str]) -> String {
        let path = format!("/attack/{}", words.join("//").replace(' ', "%20"));
        answer(self.attacker, &path).await.trim().to_owned()
    }

    /// Holds every attack to its expected outcome.
    async fn refused(&self, attacks: &[(&[&str], &str)]) {
        for (words, expected) in attacks {
            assert_eq!(self.attack(words).await, *expected, "{words:?}");
        }
    }

    /// The first process of the attacker's container, as the machine counts.
    pub(crate) fn pid(&self) -> u32 {
        let folder = self.instance.options.run.join("replicas");
        let folders = fs::read_dir(folder).unwrap();
        let record = folders
            .map(|entry| fs::read_to_string(entry.unwrap().path().join("replica.json")).unwrap())
            .find(|record| record.contains("mallory"))
            .unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        u32::try_from(record["process"][0].as_u64().unwrap()).unwrap()
    }

    /// The neighbour answers, whatever was done; then all is taken away.
    pub(crate) async fn end(self) {
        assert_eq!(answer(self.neighbour, "/").await, "hello");
        self.engine.shutdown().await;
        drop(self.engine);
        self.instance.destroy().await;
    }
}

const NOT_PERMITTED: &str = "1";
const DENIED: &str = "13";
const NO_SPACE: &str = "28";
const READ_ONLY: &str = "30";
const NO_SUCH_CALL: &str = "38";

#[tokio::test(flavor = "multi_thread")]
async fn root_inside_is_nobody_outside_and_nobody_to_another_tenant() {
    let field = Battlefield::new().await;
    assert_eq!(field.attack(&["ids"]).await, "0 0");
    let owner = |pid: u32| fs::metadata(format!("/proc/{pid}")).unwrap().uid();
    let own = owner(field.pid());
    assert!(own >= 0x7000_0000, "root inside is user {own} outside");
    let map = fs::read_to_string(format!("/proc/{}/uid_map", field.pid())).unwrap();
    let map: Vec<u32> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(map, [0, own, 65_536]);
    let tenants = fs::read_to_string(field.instance.options.state.join("tenants.json")).unwrap();
    let tenants: serde_json::Value = serde_json::from_str(&tenants).unwrap();
    assert_eq!(tenants["ranges"]["owner/mallory"], own);
    assert_ne!(tenants["ranges"]["owner/alice"], own);
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_ends_at_the_limit_of_processes() {
    let field = Battlefield::new().await;
    let outcome = field.attack(&["bomb"]).await;
    let (error, count) = outcome.split_once(' ').unwrap();
    assert_eq!(error, "11", "{outcome}");
    assert!(count.parse::<u32>().unwrap() < 64, "{outcome}");
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_bomb_ends_its_own_replica_alone() {
    let field = Battlefield::new().await;
    let pid = field.pid();
    let mut stream = tokio::net::TcpStream::connect(field.attacker).await.unwrap();
    let request = b"GET /hold/1000 HTTP/1.1\r\nHost: function\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, request).await.unwrap();
    until("the kernel ends the replica", async || !Path::new(&format!("/proc/{pid}")).exists())
        .await;
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filling_the_disk_ends_where_the_replicas_own_room_does() {
    let field = Battlefield::new().await;
    for (file, room) in [("/tmp/fill", 16), ("/dev/shm/fill", 16), ("/fill", 32)] {
        let outcome = field.attack(&["fill", file]).await;
        let (error, megabytes) = outcome.split_once(' ').unwrap();
        assert_eq!(error, NO_SPACE, "{file}: {outcome}");
        assert!(megabytes.parse::<u32>().unwrap() <= room, "{file}: {outcome}");
    }
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filling_the_log_ends_at_its_bound() {
    let field = Battlefield::new().await;
    // Ended by a signal at the longest file a replica may have, or rotated on the way: one such
    // file and the part before it are the most there can be, even while nobody rotates.
    drop(field.attack(&["flood", "200"]).await);
    let folder = field.instance.options.logs.join("openfaas-fn/mallory-function");
    let files = fs::read_dir(&folder).unwrap().flatten();
    let size: u64 = files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum();
    // One that was rotated just now has lost its older half.
    assert!((1 << 18..=66 << 20).contains(&size), "the log has {size} bytes");
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filling_a_file_system_with_empty_files_ends_at_its_bound() {
    let field = Battlefield::new().await;
    for (folder, most) in [("/tmp", 16_384), ("/dev/shm", 16_384), ("/", 65_536)] {
        let outcome = field.attack(&["inodes", folder]).await;
        let (error, count) = outcome.split_once(' ').unwrap();
        assert_eq!(error, NO_SPACE, "{folder}: {outcome}");
        assert!(count.parse::<u32>().unwrap() <= most, "{folder}: {outcome}");
    }
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_and_new_namespaces_are_refused() {
    let field = Battlefield::new().await;
    let user = 0x1000_0000.to_string();
    field
        .refused(&[
            (&["call", "mount", "none", "/tmp", "tmpfs", "0", "0"], NOT_PERMITTED),
            (&["call", "mount", "none", "/tmp", "proc", "0", "0"], NOT_PERMITTED),
            (&["call", "mount", "/", "/tmp", "none", "4096", "0"], NOT_PERMITTED),
            (&["call", "umount2", "/etc/hosts", "2"], NOT_PERMITTED),
            (&["call", "pivot_root", "/tmp", "/tmp"], NOT_PERMITTED),
            (&["call", "mount_setattr", "0", "/", "0", "0", "0"], NOT_PERMITTED),
            (&["call", "unshare", &user], NOT_PERMITTED),
            (&["call", "unshare", "131072"], NOT_PERMITTED),
            (&["call", "setns", "0", "0"], NOT_PERMITTED),
            (&["call", "clone", &user, "0", "0", "0", "0"], NO_SUCH_CALL),
            (&["call", "clone3", "0", "0"], NO_SUCH_CALL),
        ])
        .await;
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_processes_cannot_be_traced_and_those_outside_not_even_seen() {
    let field = Battlefield::new().await;
    field
        .refused(&[
            (&["attach"], NOT_PERMITTED),
            (&["call", "process_vm_readv", "1", "0", "0", "0", "0", "0"], NOT_PERMITTED),
            (&["call", "pidfd_getfd", "0", "0", "0"], NOT_PERMITTED),
        ])
        .await;
    // The app and the attack itself.
    assert_eq!(field.attack(&["processes"]).await, "2");
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernels_keyrings_are_out_of_reach() {
    let field = Battlefield::new().await;
    field
        .refused(&[
            (&["call", "keyctl", "0", "-4", "0"], NOT_PERMITTED),
            (&["call", "add_key", "user", "k", "v", "1", "-4"], NOT_PERMITTED),
            (&["call", "request_key", "user", "k", "", "0"], NOT_PERMITTED),
            (&["open", "<", "/proc/keys"], "empty"),
        ])
        .await;
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_only_attacks_make_are_refused() {
    let field = Battlefield::new().await;
    field
        .refused(&[
            (&["call", "bpf", "0", "0", "0"], NOT_PERMITTED),
            (&["call", "userfaultfd", "1"], NOT_PERMITTED),
            (&["call", "io_uring_setup", "1", "0"], NOT_PERMITTED),
            (&["call", "perf_event_open", "0", "0", "0", "0", "0"], NOT_PERMITTED),
            (&["call", "init_module", "0", "0", "0"], NOT_PERMITTED),
            (&["call", "kexec_load", "0", "0", "0", "0"], NOT_PERMITTED),
            (&["call", "reboot", "0", "0", "0", "0"], NOT_PERMITTED),
            (&["call", "swapon", "/tmp", "0"], NOT_PERMITTED),
            (&["call", "open_by_handle_at", "0", "0", "0"], NOT_PERMITTED),
            (&["call", "sethostname", "x", "1"], NOT_PERMITTED),
            (&["call", "settimeofday", "0", "0"], NOT_PERMITTED),
        ])
        .await;
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_sockets_and_other_families_are_refused() {
    let field = Battlefield::new().await;
    field
        .refused(&[
            (&["socket", "2", "3", "1"], NOT_PERMITTED),
            (&["socket", "2", "3", "255"], NOT_PERMITTED),
            (&["socket", "17", "3", "768"], NO_SUCH_CALL),
            (&["socket", "38", "5", "0"], NO_SUCH_CALL),
            (&["socket", "40", "1", "0"], NO_SUCH_CALL),
            // The kernel's firewall speaks over netlink, as routes do.
            (&["socket", "16", "3", "12"], NO_SUCH_CALL),
            (&["socket", "16", "3", "0"], "done"),
        ])
        .await;
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_below_1024_cannot_be_bound() {
    let field = Battlefield::new().await;
    field.refused(&[(&["bind", "80"], DENIED), (&["bind", "8181"], "done")]).await;
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proc_and_sys_lead_nowhere() {
    let field = Battlefield::new().await;
    field
        .refused(&[
            (&["open", ">", "/proc/sys/kernel/core_pattern"], READ_ONLY),
            (&["open", ">", "/proc/sys/vm/overcommit_memory"], READ_ONLY),
            (&["open", ">", "/sys/kernel/mm/transparent_hugepage/enabled"], DENIED),
            (&["open", ">", "/sys/new"], READ_ONLY),
            (&["list", "/sys"], "devices kernel"),
            (&["list", "/sys/kernel"], "mm"),
            (&["list", "/sys/devices"], "system"),
            // The host's secrets are behind no root that a process here has.
            (&["open", "<", "/proc/1/root/etc/shadow"], "2"),
        ])
        .await;
    // Not every kernel has all of them.
    let there = |path: &str| Path::new(path).exists();
    for path in ["/proc/kcore", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats"] {
        let expected = if there(path) { "empty" } else { "2" };
        assert_eq!(field.attack(&["open", "<", path]).await, expected, "{path}");
    }
    let expected = if there("/proc/sysrq-trigger") { READ_ONLY } else { "2" };
    assert_eq!(field.attack(&["open", ">", "/proc/sysrq-trigger"]).await, expected);
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cgroups_cannot_be_reached_let_alone_left() {
    let field = Battlefield::new().await;
    field
        .refused(&[
            (&["list", "/sys/fs/cgroup"], "2"),
            (&["call", "mount", "none", "/tmp", "cgroup2", "0", "0"], NOT_PERMITTED),
            (&["call", "mount", "none", "/tmp", "cgroup", "0", "memory"], NOT_PERMITTED),
            // Of the namespace of cgroups nothing above the own group is told.
            (&["open", ">", "/proc/self/cgroup"], DENIED),
        ])
        .await;
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn device_nodes_cannot_be_made() {
    let field = Battlefield::new().await;
    let (block, character) = (0o60_666.to_string(), 0o20_666.to_string());
    field
        .refused(&[
            (&["call", "mknodat", "-100", "/tmp/disk", &block, "2048"], NOT_PERMITTED),
            (&["call", "mknodat", "-100", "/tmp/memory", &character, "257"], NOT_PERMITTED),
            (&["open", "<", "/dev/kmsg"], "2"),
            (&["open", "<", "/dev/mem"], "2"),
        ])
        .await;
    let devices = field.attack(&["list", "/dev"]).await;
    // `core` is a link to the file that is empty here.
    let usual = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    for device in devices.split(' ') {
        assert!(usual.split(' ').any(|known| known == device), "/dev/{device} is there");
    }
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_are_to_run_as_root_do_not() {
    // Whoever owns the image is root of his own container, so the attack is another user's.
    let field = Battlefield::on(|instance| instance.user = "app", |_| {}).await;
    assert_eq!(field.attack(&["setuid"]).await, "1000 1000");
    let escalated = field.attack(&["escalate"]).await;
    assert_ne!(escalated.split(' ').nth(1), Some("0"), "{escalated}");
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_where_secrets_belong_leads_them_nowhere_outside() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    instance.arm();
    let engine = instance.open().await;
    let name = SecretName::new("mallory-key").unwrap();
    let value = SecretValue::new(b"precious".to_vec());
    engine.create_secret(&Namespace::default(), &name, value).await.unwrap();
    let mut hostile = owned("mallory");
    hostile.secrets = vec![name];
    // The link is followed inside the container, where its end is missing.
    let revision = engine.apply(hostile.clone(), Wake::Keep).await.unwrap();
    let ready = engine.wait_ready(&hostile.id, revision, Duration::from_mins(1)).await;
    assert!(ready.unwrap_err().to_string().contains("secrets"));
    let target = instance.data.join("not-for-functions");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    // Where it leads to a place inside, they are there and nowhere else.
    let link = instance.data.join("image/var/openfaas/secrets");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/home", &link).unwrap();
    hostile.environment.insert("again".into(), "yes".into());
    let attacker = deploy(&engine, &hostile).await;
    assert_eq!(answer(attacker, "/read/home/mallory-key").await, "precious");
    assert!(!Path::new("/home/mallory-key").exists());
    let neighbour = deploy(&engine, &owned("alice")).await;
    assert_eq!(answer(neighbour, "/").await, "hello");
    assert_eq!(status(neighbour, "/read/home/mallory-key").await, 500);
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_not_installed_is_refused_with_what_to_do() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let installed = Command::new("runsc").arg("--version").output().is_ok();
    let mut spec = owned("alice");
    spec.annotations.insert(annotations::RUNTIME.into(), "runsc".into());
    if installed {
        let address = deploy(&engine, &spec).await;
        assert_eq!(answer(address, "/").await, "hello");
    } else {
        let refused = engine.apply(spec, Wake::Keep).await.unwrap_err();
        assert!(matches!(refused, EngineError::Invalid(_)), "{refused:?}");
        let told = refused.to_string();
        assert!(told.contains("install it") && told.contains("updraft.runtime"), "{told}");
    }
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}
