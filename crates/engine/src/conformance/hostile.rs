//! The hostile battery: a function that runs as root in its own world, as far as it can tell, tries
//! to get at the machine below it and at its neighbours. Each attack has its refusal, and a
//! neighbour of another tenant goes on answering as if nothing had been.

use std::sync::Arc;

use futures_util::StreamExt;
use updraft_model::FunctionSpec;

use super::{Harness, Judge, attack_path};
use crate::{LogQuery, ReplicaId};

/// How the kernel refuses a call: not permitted, denied, no such call.
const REFUSED: [&str; 3] = ["1", "13", "38"];

/// How it refuses a kind of socket: or no such protocol, type or family.
const NO_SOCKET: [&str; 6] = ["1", "13", "38", "93", "94", "97"];

/// How it refuses a file: or not there, no such device, read-only, or with nothing in it.
const NO_FILE: [&str; 8] = ["1", "2", "5", "6", "13", "19", "30", "empty"];

/// Two tenants, one of them hostile.
struct Field<H> {
    judge: Arc<Judge<H>>,
    attacker: FunctionSpec,
    neighbour: FunctionSpec,
    untouched: ReplicaId,
}

impl<H: Harness> Field<H> {
    async fn new(judge: Arc<Judge<H>>) -> Self {
        let mut attacker = judge.owned("mallory", "mallory-function");
        attacker.image = judge.harness.root_image();
        let neighbour = judge.owned("alice", "alice-function");
        judge.deploy(&attacker).await;
        judge.deploy(&neighbour).await;
        let untouched = judge.first_replica(&neighbour.id);
        Self { judge, attacker, neighbour, untouched }
    }

    /// What came of an attack.
    async fn attack(&self, words: &[&str]) -> String {
        self.judge.attack(&self.attacker, words).await
    }

    async fn refused(&self, expected: &[&str], attacks: &[&[&str]]) {
        for words in attacks {
            let outcome = self.attack(words).await;
            assert!(expected.contains(&outcome.as_str()), "{words:?} came to `{outcome}`");
        }
    }

    /// What came of an attack that goes on until something stops it: how often it went well.
    async fn stopped(&self, words: &[&str]) -> u64 {
        let outcome = self.attack(words).await;
        let (error, count) = outcome.split_once(' ').expect("an error and a number");
        assert_ne!(error, "0", "nothing stopped {words:?}: {outcome}");
        count.parse().unwrap()
    }

    /// The neighbour answers, whatever was done, and has never stopped to.
    async fn end(self) {
        let id = &self.neighbour.id;
        assert_eq!(self.judge.body(id, "/").await, "hello");
        assert_eq!(self.judge.first_replica(id), self.untouched);
        let status = self.judge.status(id).await;
        assert_eq!((status.restarts, status.message), (0, None));
    }
}

impl<H: Harness> Judge<H> {
    /// What came of an attack: `done`, or the number of the error, or what it is to tell.
    pub(super) async fn attack(&self, spec: &FunctionSpec, words: &[&str]) -> String {
        self.body(&spec.id, &attack_path(words)).await.trim().to_owned()
    }
}

/// Processes are counted, and threads with them.
pub async fn a_fork_bomb_ends_at_the_limit_of_processes<H: Harness>(judge: Arc<Judge<H>>) {
    let field = Field::new(judge).await;
    let forked = field.stopped(&["bomb"]).await;
    let most = field.judge.harness.bounds().processes;
    assert!(forked < u64::from(most), "{forked} processes");
    let spec = field.judge.owned("mallory", "mallory-threads");
    field.judge.deploy(&spec).await;
    let threads = field.judge.body(&spec.id, &format!("/threads/{}", most * 2)).await;
    let threads: u32 = threads.parse().unwrap();
    assert!(threads > 0 && threads < most, "{threads} threads");
    field.end().await;
}

/// A function has a memory limit also when nobody gave it one.
pub async fn a_memory_bomb_ends_its_own_replica_alone<H: Harness>(judge: Arc<Judge<H>>) {
    let field = Field::new(judge).await;
    let id = &field.attacker.id;
    let before = field.judge.first_replica(id);
    let megabytes = field.judge.harness.bounds().memory_bytes >> 19;
    assert!(field.judge.try_call(id, &format!("/hold/{megabytes}")).await.is_err());
    field.judge.until_replaced(id, &before).await;
    assert!(field.judge.last_exit(id).await.out_of_memory);
    field.end().await;
}

/// Wherever a function may write, there is only so much room.
pub async fn filling_the_disk_ends_where_the_replicas_own_room_does<H: Harness>(
    judge: Arc<Judge<H>>,
) {
    let field = Field::new(judge).await;
    let bounds = field.judge.harness.bounds();
    for (file, room) in [
        ("/tmp/fill", bounds.tmp_bytes),
        ("/dev/shm/fill", bounds.tmp_bytes),
        ("/fill", bounds.root_bytes),
    ] {
        let megabytes = field.stopped(&["fill", file]).await;
        assert!((megabytes << 20) <= room, "{file}: {megabytes} MiB");
    }
    field.end().await;
}

/// Files without content are counted too.
pub async fn filling_a_file_system_with_empty_files_ends_at_its_bound<H: Harness>(
    judge: Arc<Judge<H>>,
) {
    let field = Field::new(judge).await;
    let most = field.judge.harness.bounds().files;
    for folder in ["/tmp", "/dev/shm", "/"] {
        let files = field.stopped(&["inodes", folder]).await;
        assert!(files <= u64::from(most), "{folder}: {files} files");
    }
    field.end().await;
}

/// Who writes without end keeps the newest lines, and costs nobody else a line.
pub async fn a_flooded_log_is_cut_and_the_newest_lines_are_kept<H: Harness>(judge: Arc<Judge<H>>) {
    let field = Field::new(judge).await;
    let most = field.judge.harness.bounds().log_bytes;
    let (attacker, neighbour) = (field.attacker.id.clone(), field.neighbour.id.clone());
    let lines = async |id| {
        let query = LogQuery { id, instance: None, since: None, tail: None, follow: false };
        let lines = field.judge.engine().logs(query).await.unwrap();
        lines.map(|line| line.unwrap().text).collect::<Vec<_>>().await
    };
    field.judge.body(&neighbour, "/print/of-the-neighbour").await;
    let megabytes = ((most * 12) >> 20).max(1).to_string();
    assert_eq!(field.attack(&["flood", &megabytes]).await, "done");
    field.judge.body(&attacker, "/print/after-the-flood").await;
    field
        .judge
        .until("the newest line is there and the log is short enough", || async {
            let lines = lines(attacker.clone()).await;
            let bytes: usize = lines.iter().map(|line| line.len() + 1).sum();
            bytes as u64 <= most && lines.iter().any(|line| line == "after-the-flood")
        })
        .await;
    assert!(lines(neighbour).await.iter().any(|line| line == "of-the-neighbour"));
    field.end().await;
}

/// No file system is mounted or taken away, and no world of one's own begun.
pub async fn mounts_and_new_namespaces_are_refused<H: Harness>(judge: Arc<Judge<H>>) {
    let field = Field::new(judge).await;
    let user = 0x1000_0000.to_string();
    field
        .refused(
            &REFUSED,
            &[
                &["call", "mount", "none", "/tmp", "tmpfs", "0", "0"],
                &["call", "mount", "none", "/tmp", "proc", "0", "0"],
                &["call", "mount", "/", "/tmp", "none", "4096", "0"],
                &["call", "umount2", "/tmp", "2"],
                &["call", "pivot_root", "/tmp", "/tmp"],
                &["call", "mount_setattr", "0", "/", "0", "0", "0"],
                &["call", "unshare", &user],
                &["call", "unshare", "131072"],
                &["call", "setns", "0", "0"],
                &["call", "clone", &user, "0", "0", "0", "0"],
            ],
        )
        .await;
    field.end().await;
}

/// Not even a process of the same user.
pub async fn other_processes_cannot_be_traced<H: Harness>(judge: Arc<Judge<H>>) {
    let field = Field::new(judge).await;
    field
        .refused(
            &REFUSED,
            &[
                &["attach"],
                &["call", "process_vm_readv", "1", "0", "0", "0", "0", "0"],
                &["call", "pidfd_getfd", "0", "0", "0"],
            ],
        )
        .await;
    field.end().await;
}

/// Keyrings belong to users of the machine, whatever world they are in.
pub async fn the_kernels_keyrings_are_out_of_reach<H: Harness>(judge: Arc<Judge<H>>) {
    let field = Field::new(judge).await;
    field
        .refused(
            &REFUSED,
            &[
                &["call", "keyctl", "0", "-4", "0"],
                &["call", "add_key", "user", "k", "v", "1", "-4"],
                &["call", "request_key", "user", "k", "", "0"],
            ],
        )
        .await;
    field.refused(&NO_FILE, &[&["read", "/proc/keys"]]).await;
    field.end().await;
}

/// What no function has a use for and many holes of kernels were in.
pub async fn calls_that_only_attacks_make_are_refused<H: Harness>(judge: Arc<Judge<H>>) {
    let field = Field::new(judge).await;
    field
        .refused(
            &REFUSED,
            &[
                &["call", "bpf", "0", "0", "0"],
                &["call", "userfaultfd", "1"],
                &["call", "io_uring_setup", "1", "0"],
                &["call", "perf_event_open", "0", "0", "0", "0", "0"],
                &["call", "init_module", "0", "0", "0"],
                &["call", "kexec_load", "0", "0", "0", "0"],
                &["call", "reboot", "0", "0", "0", "0"],
                &["call", "swapon", "/tmp", "0"],
                &["call", "open_by_handle_at", "0", "0", "0"],
                &["call", "sethostname", "x", "1"],
                &["call", "settimeofday", "0", "0"],
            ],
        )
        .await;
    field.end().await;
}

/// Raw packets, other families, and the ways to talk to the kernel's own parts.
pub async fn raw_sockets_are_refused<H: Harness>(judge: Arc<Judge<H>>) {
    let field = Field::new(judge).await;
    field
        .refused(
            &NO_SOCKET,
            &[
                &["socket", "2", "3", "1"],
                &["socket", "2", "3", "255"],
                &["socket", "10", "3", "58"],
                &["socket", "17", "3", "768"],
                &["socket", "38", "5", "0"],
                &["socket", "40", "1", "0"],
                // The kernel's firewall.
                &["socket", "16", "3", "12"],
            ],
        )
        .await;
    field.end().await;
}

/// Who answers on a port below 1024 is taken for a service of the machine.
pub async fn ports_below_1024_cannot_be_bound<H: Harness>(judge: Arc<Judge<H>>) {
    let field = Field::new(judge).await;
    field.refused(&REFUSED, &[&["bind", "80"], &["bind", "1023"]]).await;
    assert_eq!(field.attack(&["bind", "8181"]).await, "done");
    field.end().await;
}

/// The kernel's own files show and take nothing.
pub async fn proc_and_sys_lead_nowhere<H: Harness>(judge: Arc<Judge<H>>) {
    let field = Field::new(judge).await;
    field
        .refused(
            &NO_FILE,
            &[
                &["write", "/proc/sys/kernel/core_pattern"],
                &["write", "/proc/sys/vm/overcommit_memory"],
                &["write", "/proc/sysrq-trigger"],
                &["write", "/sys/kernel/mm/transparent_hugepage/enabled"],
                &["write", "/sys/new"],
                // The machine's secrets are behind no root that a process here has.
                &["read", "/proc/1/root/etc/shadow"],
                &["read", "/proc/kcore"],
                &["read", "/proc/timer_list"],
                &["read", "/proc/sched_debug"],
                &["read", "/proc/latency_stats"],
            ],
        )
        .await;
    field.end().await;
}

/// Limits are the platform's to change.
pub async fn cgroups_cannot_be_reached_let_alone_left<H: Harness>(judge: Arc<Judge<H>>) {
    let field = Field::new(judge).await;
    field
        .refused(
            &NO_FILE,
            &[
                &["write", "/sys/fs/cgroup/cgroup.procs"],
                &["write", "/sys/fs/cgroup/memory.max"],
                &["write", "/sys/fs/cgroup/memory/tasks"],
                &["write", "/proc/self/cgroup"],
            ],
        )
        .await;
    field
        .refused(
            &REFUSED,
            &[
                &["call", "mount", "none", "/tmp", "cgroup2", "0", "0"],
                &["call", "mount", "none", "/tmp", "cgroup", "0", "memory"],
            ],
        )
        .await;
    field.end().await;
}

/// No disk, no memory of the machine, and no way to make a node that stands for one.
pub async fn device_nodes_cannot_be_made<H: Harness>(judge: Arc<Judge<H>>) {
    let field = Field::new(judge).await;
    let (block, character) = (0o60_666.to_string(), 0o20_666.to_string());
    field
        .refused(
            &REFUSED,
            &[
                &["call", "mknodat", "-100", "/tmp/disk", &block, "2048"],
                &["call", "mknodat", "-100", "/tmp/memory", &character, "257"],
            ],
        )
        .await;
    field.refused(&NO_FILE, &[&["read", "/dev/kmsg"], &["read", "/dev/mem"]]).await;
    let devices = field.attack(&["list", "/dev"]).await;
    // `core` is a link to a file that is empty here.
    let usual = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    for device in devices.split(' ') {
        assert!(usual.split(' ').any(|known| known == device), "/dev/{device} is there");
    }
    field.end().await;
}

/// A set-user-id bit means nothing, whether it comes with the image or is made by the function.
pub async fn programs_that_are_to_run_as_root_do_not<H: Harness>(judge: Arc<Judge<H>>) {
    let mut field = Field::new(judge).await;
    // Whoever owns the image is root of his own world, so the attack is another user's.
    field.attacker = field.judge.owned("mallory", "mallory-user");
    field.judge.deploy(&field.attacker).await;
    let user = field.attack(&["ids"]).await;
    assert!(!user.split(' ').any(|id| id == "0"), "it runs as {user}");
    assert_eq!(field.attack(&["setuid"]).await, user);
    let escalated = field.attack(&["escalate"]).await;
    assert_ne!(escalated.split(' ').nth(1), Some("0"), "{escalated}");
    field.end().await;
}
