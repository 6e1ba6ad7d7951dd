//! The OCI bundle of one replica: what the container may do, see and use.
//!
//! Everything here is for everybody: there is no switch for a function to be less contained.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use updraft_model::{FunctionSpec, Sandbox};

use crate::image::ImageProcess;
use crate::tenants::{IdRange, USERS};
use crate::user::User;

/// System calls a replica may make.
const SECCOMP: &str = include_str!("seccomp.json");

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where functions look for their secrets: today, and where older ones do.
pub(crate) const SECRETS: [&str; 2] = ["/var/openfaas/secrets", "/run/secrets"];

/// What replicas see of the machine's `/sys`: how many processors there are, and how large pages.
const SHOWN_OF_SYS: [&str; 2] = ["/sys/devices/system/cpu", "/sys/kernel/mm/transparent_hugepage"];

/// Most open files of a replica.
const OPEN_FILES: u64 = 65_536;

/// The length of a scheduling period, in microseconds: how long a replica that has had its share
/// waits at most, and how long one that comes back can be in the way of others. The usual tenth of
/// a second makes both felt.
const CPU_PERIOD: u64 = 20_000;

/// What a container is made of.
#[derive(Debug)]
pub(crate) struct Bundle<'a> {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: &'a str,
    pub(crate) user: &'a User,
    /// What the machine calls the users of the container.
    pub(crate) users: IdRange,
    pub(crate) hostname: &'a str,
    pub(crate) root: PathBuf,
    pub(crate) read_only_root: bool,
    /// The network namespace to enter; a new one without.
    pub(crate) network: Option<String>,
    /// Whose kernel it is to run on.
    pub(crate) sandbox: Sandbox,
    /// The filter of system calls as the runtime has compiled it before, in base64: it does so
    /// at every start otherwise.
    pub(crate) compiled_filter: Option<&'a str>,
    pub(crate) cgroup: String,
    pub(crate) limits: Limits,
    /// Files and folders of the host to show read-only: source and place in the container.
    pub(crate) binds: Vec<(PathBuf, &'static str)>,
}

/// How much of each resource a replica may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: u64,
    /// Whether the machine can count swap, which is then not given at all.
    pub(crate) swap_limit: bool,
    /// Whether connections have a limit of their own for what they hold in the kernel.
    pub(crate) sockets_apart: bool,
    pub(crate) cpu_millis: Option<u64>,
    pub(crate) processes: u32,
    pub(crate) tmp_bytes: u64,
    /// Longest file: what bounds the log even while nobody rotates it.
    pub(crate) file_bytes: u64,
}

/// A processor limit as the kernel keeps it: so much of each period, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuShare {
    pub(crate) quota: u64,
    pub(crate) period: u64,
}

/// The words of the command line: entry point, then command.
///
/// # Errors
/// A sentence for people when the image declares neither.
pub(crate) fn args(process: &ImageProcess) -> Result<Vec<String>, String> {
    let args: Vec<_> = process.entrypoint.iter().chain(&process.cmd).cloned().collect();
    if args.is_empty() {
        return Err("the image declares no command, give it a CMD or ENTRYPOINT".to_owned());
    }
    Ok(args)
}

/// The environment: the image's, the spec's over it, and what the platform tells.
pub(crate) fn environment(
    process: &ImageProcess,
    spec: &FunctionSpec,
    user: &User,
) -> Vec<(String, String)> {
    let mut env =
        vec![("PATH".to_owned(), DEFAULT_PATH.to_owned()), ("HOME".to_owned(), user.home.clone())];
    let mut set = |name: &str, value: &str| match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((name.to_owned(), value.to_owned())),
    };
    process.env.iter().for_each(|(name, value)| set(name, value));
    spec.environment.iter().for_each(|(name, value)| set(name, value));
    spec.timeout_variables().for_each(|(name, value)| set(name, &value));
    if let Some(process) = &spec.process {
        set("fprocess", process);
    }
    set("OPENFAAS_NAME", spec.id.name.as_str());
    set("OPENFAAS_NAMESPACE", spec.id.namespace.as_str());
    env
}

/// The names under which functions of OpenFaaS know the gateway.
const GATEWAY_NAMES: &str = "gateway.openfaas gateway gateway.openfaas.svc.cluster.local";

/// `/etc/hosts` of a replica; `gateway` is the address of the gateway's door, if it may use it.
pub(crate) fn hosts(hostname: &str, address: Ipv4Addr, gateway: Option<Ipv4Addr>) -> String {
    let door = gateway.map(|gateway| format!("{gateway}\t{GATEWAY_NAMES}\n")).unwrap_or_default();
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{hostname}\n{door}"
    )
}

/// `/etc/resolv.conf` of replicas: the host's name servers, without those only the host reaches.
pub(crate) fn resolver(host: &str) -> String {
    let usable = |line: &&str| {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => words
                .next()
                .and_then(|server| server.parse::<std::net::IpAddr>().ok())
                .is_some_and(|server| server.is_ipv4() && !server.is_loopback()),
            Some("search" | "options" | "domain") => true,
            _ => false,
        }
    };
    host.lines().filter(usable).flat_map(|line| [line, "\n"]).collect()
}

impl Bundle<'_> {
    /// The bundle's `config.json`.
    pub(crate) fn config(&self) -> Value {
        let env: Vec<_> = self.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let open_files = open_files();
        let file_bytes = self.limits.file_bytes;
        let cwd = if self.working_dir.starts_with('/') { self.working_dir } else { "/" };
        let network = match &self.network {
            Some(path) => json!({ "type": "network", "path": path }),
            None => json!({ "type": "network" }),
        };
        // Of crun(1); other runtimes read the filter itself.
        let annotations = match self.compiled_filter {
            Some(filter) => json!({ "run.oci.seccomp_bpf_data": filter }),
            None => json!({}),
        };
        let mapping = json!({ "containerID": 0, "hostID": self.users.first, "size": USERS });
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {
                    "uid": self.user.uid,
                    "gid": self.user.gid,
                    "additionalGids": self.user.groups,
                },
                "args": self.args,
                "env": env,
                "cwd": cwd,
                "noNewPrivileges": true,
                "oomScoreAdj": 100,
                "capabilities": {
                    "bounding": [], "effective": [], "inheritable": [],
                    "permitted": [], "ambient": [],
                },
                // A core would hold the function's secrets. Where the system hands cores to a
                // program, a limit of 0 is not heeded; 1 is, and is too little for a file.
                "rlimits": [
                    { "type": "RLIMIT_NOFILE", "soft": open_files, "hard": open_files },
                    { "type": "RLIMIT_CORE", "soft": 1, "hard": 1 },
                    { "type": "RLIMIT_FSIZE", "soft": file_bytes, "hard": file_bytes },
                ],
            },
            "root": {
                "path": self.root,
                // A sandbox's is made so from outside.
                "readonly": self.read_only_root && self.sandbox == Sandbox::Kernel,
            },
            "hostname": self.hostname,
            "annotations": annotations,
            "mounts": self.mounts(),
            "linux": {
                "cgroupsPath": self.cgroup,
                "resources": self.limits.resources(),
                "namespaces": [
                    { "type": "pid" },
                    { "type": "ipc" },
                    { "type": "uts" },
                    { "type": "mount" },
                    { "type": "cgroup" },
                    network,
                    { "type": "user" },
                ],
                "uidMappings": [mapping],
                "gidMappings": [mapping],
                "seccomp": seccomp(),
                "maskedPaths": [
                    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore",
                    "/proc/keys", "/proc/key-users", "/proc/latency_stats", "/proc/sched_debug",
                    "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
                ],
                "readonlyPaths": [
                    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys",
                ],
            },
        })
    }

    fn mounts(&self) -> Vec<Value> {
        let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
        let size = format!("size={}", self.limits.tmp_bytes);
        let memory = ["nosuid", "nodev", "mode=1777", "nr_inodes=16384", &size];
        let shared = ["nosuid", "nodev", "noexec", "mode=1777", "nr_inodes=16384", &size];
        let terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
        let mut mounts = vec![
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"]),
            mount("/dev/pts", "devpts", &terminals),
            mount("/dev/shm", "tmpfs", &shared),
            mount("/tmp", "tmpfs", &memory),
        ];
        if self.sandbox == Sandbox::Gvisor {
            // Made up by the sandbox, of itself.
            mounts.push(mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]));
        } else {
            // A view of the machine's devices is nobody's business, and could not be mounted by
            // who does not own the network namespace: only what language runtimes look for.
            let options = ["nosuid", "noexec", "nodev", "mode=755", "size=64k"];
            mounts.push(mount("/sys", "tmpfs", &options));
            mounts.extend(SHOWN_OF_SYS.iter().filter(|path| Path::new(path).exists()).map(
                |path| {
                    json!({
                        "destination": path,
                        "type": "bind",
                        "source": path,
                        "options": ["bind", "ro", "nosuid", "nodev", "noexec", "rprivate"],
                    })
                },
            ));
        }
        mounts.extend(self.binds.iter().map(|(source, destination)| {
            json!({
                "destination": destination,
                "type": "bind",
                "source": source,
                "options": ["bind", "ro", "nosuid", "nodev", "noexec", "rprivate"],
            })
        }));
        mounts
    }
}

impl Limits {
    /// How much of how long a scheduling period, where there is a limit.
    pub(crate) fn cpu(&self) -> Option<CpuShare> {
        self.cpu_millis.map(|millis| {
            let millis = millis.max(1);
            // The kernel takes no quota under a millisecond; small ones are of longer periods.
            let period = CPU_PERIOD.max(1_000_000_u64.div_ceil(millis));
            CpuShare { quota: millis.saturating_mul(period) / 1000, period }
        })
    }

    /// Memory for what connections hold in the kernel, in bytes, where that is counted apart: a
    /// quarter of what the replica has, and always some.
    pub(crate) fn socket_bytes(&self) -> Option<u64> {
        self.sockets_apart.then(|| (self.memory_bytes / 4).max(4 << 20))
    }

    fn resources(&self) -> Value {
        let mut memory = json!({ "limit": self.memory_bytes });
        if self.swap_limit {
            // Memory and swap together: no more than memory alone.
            memory["swap"] = json!(self.memory_bytes);
        }
        let mut resources = json!({
            "memory": memory,
            "pids": { "limit": self.processes },
            "devices": [{ "allow": false, "access": "rwm" }],
        });
        if let Some(CpuShare { quota, period }) = self.cpu() {
            resources["cpu"] = json!({ "quota": quota, "period": period });
        }
        resources
    }
}

/// Not above what Updraft itself has: where it may not raise a limit, neither may a runtime.
fn open_files() -> u64 {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES)
}

/// The filter, for the machine's own instructions only: each further architecture would cost
/// every start some milliseconds. A program of another one (32-bit ones included) is ended at
/// its first system call.
fn seccomp() -> Value {
    let mut filter: Value = serde_json::from_str(SECCOMP)
        .unwrap_or_else(|error| unreachable!("a test reads it: {error}"));
    let native = match std::env::consts::ARCH {
        "aarch64" => "SCMP_ARCH_AARCH64",
        "riscv64" => "SCMP_ARCH_RISCV64",
        _ => "SCMP_ARCH_X86_64",
    };
    filter["architectures"] = json!([native]);
    filter
}

/// Writes a file that a container shows: readable for its user, whatever our umask.
pub(crate) fn write_shown(path: &Path, text: &str) -> std::io::Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

/// Writes `config.json` into a bundle's folder.
pub(crate) fn write(folder: &Path, bundle: &Bundle<'_>) -> std::io::Result<()> {
    std::fs::write(folder.join("config.json"), serde_json::to_vec(&bundle.config())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User { uid: 100, gid: 101, groups: vec![], home: "/home/app".into() }
    }

    #[test]
    fn the_spec_overrides_the_image_and_the_platform_overrides_both() {
        let process = ImageProcess {
            env: vec![("PATH".into(), "/x".into()), ("fprocess".into(), "cat".into())],
            ..ImageProcess::default()
        };
        let mut spec = FunctionSpec::new(
            "f".parse().map(updraft_model::FunctionId::in_default).unwrap(),
            "i".parse().unwrap(),
        );
        spec.environment.insert("OPENFAAS_NAME".into(), "forged".into());
        spec.environment.insert("a".into(), "b".into());
        spec.process = Some("env".into());
        spec.annotations.insert(updraft_model::annotations::TIMEOUT.into(), "90".into());
        let env = environment(&process, &spec, &user());
        let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("PATH"), Some("/x"));
        assert_eq!(get("HOME"), Some("/home/app"));
        assert_eq!(get("fprocess"), Some("env"));
        assert_eq!(get("a"), Some("b"));
        assert_eq!(get("exec_timeout"), Some("1m30s"));
        assert_eq!(get("OPENFAAS_NAME"), Some("f"));
        assert_eq!(get("OPENFAAS_NAMESPACE"), Some("openfaas-fn"));
    }

    #[test]
    fn a_container_has_no_capability_and_every_namespace() {
        let user = user();
        let bundle = Bundle {
            args: vec!["x".into()],
            env: vec![],
            working_dir: "",
            user: &user,
            users: IdRange { first: 131_072 },
            hostname: "h",
            root: "/r".into(),
            read_only_root: true,
            network: Some("/proc/1/fd/3".into()),
            sandbox: Sandbox::Kernel,
            compiled_filter: Some("AAAA"),
            cgroup: "/g".into(),
            limits: Limits {
                memory_bytes: 1,
                swap_limit: true,
                sockets_apart: true,
                cpu_millis: Some(250),
                processes: 5,
                tmp_bytes: 7,
                file_bytes: 9,
            },
            binds: vec![],
        };
        let share = |millis| {
            let share = Limits { cpu_millis: Some(millis), ..bundle.limits }.cpu().unwrap();
            (share.quota, share.period)
        };
        assert_eq!([share(50), share(4000)], [(1_000, 20_000), (80_000, 20_000)]);
        // What the kernel takes: no quota under a millisecond, no period over a second.
        assert_eq!([share(3), share(0)], [(1_000, 333_334), (1_000, 1_000_000)]);
        let config = bundle.config();
        for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
            assert_eq!(config["process"]["capabilities"][set], json!([]), "{set}");
        }
        assert_eq!(config["process"]["noNewPrivileges"], true);
        assert_eq!(config["root"]["readonly"], true);
        assert_eq!(config["linux"]["namespaces"].as_array().unwrap().len(), 7);
        assert_eq!(config["linux"]["uidMappings"][0]["hostID"], 131_072);
        assert_eq!(config["linux"]["resources"]["cpu"]["quota"], 5_000);
        assert_eq!(config["linux"]["resources"]["memory"]["swap"], 1);
        assert_eq!(config["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(config["annotations"]["run.oci.seccomp_bpf_data"], "AAAA");
    }

    #[test]
    fn name_servers_that_only_the_host_reaches_are_left_out() {
        let host = "# x\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch a.b\nnameserver ::1\n";
        assert_eq!(resolver(host), "nameserver 192.0.2.1\nsearch a.b\n");
    }

    #[test]
    fn an_image_without_a_command_is_told() {
        assert!(args(&ImageProcess::default()).unwrap_err().contains("CMD"));
    }
}
