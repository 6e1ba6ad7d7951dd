//! What the local engine is told when it is opened, and why opening can fail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use updraft_engine::Version;
use updraft_model::{EgressPolicy, FunctionSpec, Sandbox, Tenant};

use crate::logs::Limits;

/// Which OCI runtime runs the replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeChoice {
    /// `crun`, or `runc` where crun is missing or does not work on this machine.
    Detect,
    /// `crun` and nothing else.
    Crun,
    /// `runc` and nothing else.
    Runc,
}

/// The users and groups of the machine that tenants are given ranges of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserRange {
    /// The first of them.
    pub first: u32,
    /// How many. Each tenant takes 65 536, and as many are kept for trials.
    pub count: u32,
}

impl UserRange {
    /// Above what distributions, login managers and systemd give out by themselves, and below
    /// the numbers that some programs take for negative.
    pub const USUAL: Self = Self { first: 0x7000_0000, count: 0x0ffe_0000 };

    pub(crate) fn ranges(self) -> u32 {
        self.count.min(u32::MAX - self.first) / crate::tenants::USERS
    }
}

/// What tenants may reach at most; functions can only narrow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressOptions {
    /// Every tenant that is not named.
    pub of_all: EgressPolicy,
    /// Tenants that are named.
    pub of: BTreeMap<Tenant, EgressPolicy>,
}

impl Default for EgressOptions {
    fn default() -> Self {
        Self { of_all: EgressPolicy::open(), of: BTreeMap::new() }
    }
}

impl EgressOptions {
    /// What a packet of a function has to please: its tenant's policy, and its own.
    pub(crate) fn policies(&self, tenant: &Tenant, own: Option<EgressPolicy>) -> Vec<EgressPolicy> {
        let mut policies = vec![self.of.get(tenant).unwrap_or(&self.of_all).clone()];
        policies.extend(own.filter(|own| *own != policies[0]));
        policies
    }
}

/// Which sandboxes tenants run in at least; functions can only ask for a stronger one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxOptions {
    /// Every tenant that is not named.
    pub of_all: Sandbox,
    /// Tenants that are named.
    pub of: BTreeMap<Tenant, Sandbox>,
}

impl SandboxOptions {
    /// The sandbox of a function: the stronger of what its tenant is given and what it asks for.
    pub(crate) fn of(&self, spec: &FunctionSpec) -> Sandbox {
        let given = self.of.get(&spec.tenant()).copied().unwrap_or(self.of_all);
        given.max(spec.sandbox())
    }

    pub(crate) fn ask_for_gvisor(&self) -> bool {
        self.of.values().chain([&self.of_all]).any(|sandbox| *sandbox == Sandbox::Gvisor)
    }
}

/// How gVisor gets hold of the system calls of its functions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GvisorPlatform {
    /// As the installed `runsc` does by itself.
    #[default]
    Usual,
    /// By signals; releases since 2023.
    Systrap,
    /// By following processes; slow, and possible everywhere.
    Ptrace,
    /// By the machine's support for virtual machines.
    Kvm,
}

impl std::fmt::Display for GvisorPlatform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Usual => "default",
            Self::Systrap => "systrap",
            Self::Ptrace => "ptrace",
            Self::Kvm => "kvm",
        })
    }
}

/// Everything the local engine needs to know. Paths are given by the caller; the engine invents
/// none.
#[derive(Debug, Clone)]
pub struct LocalEngineOptions {
    /// Tells several instances on one machine apart: 8 lower-case hexadecimal digits. Network
    /// devices, the firewall table and the cgroup carry it.
    pub instance: String,
    /// Desired state and secrets, kept over reboots.
    pub state: PathBuf,
    /// File of the key that encrypts the secrets; made when it is missing.
    pub machine_key: PathBuf,
    /// Log files of replicas, one folder for each namespace and function.
    pub logs: PathBuf,
    /// What does not outlive the machine's boot, below `/run`.
    pub run: PathBuf,
    /// Which runtime to use.
    pub runtime: RuntimeChoice,
    /// How Updraft's version is told to clients.
    pub version: Version,
    /// How long a replica may take until it answers its readiness probe.
    pub ready_limit: Duration,
    /// How long open requests of a replica that is to go are waited for.
    pub drain_limit: Duration,
    /// How long a replica may take to end after SIGTERM before it is killed.
    pub stop_grace: Duration,
    /// How long all replicas of a function must do well, and not frozen, until its earlier failures
    /// are forgotten.
    pub steady_after: Duration,
    /// How long a function is frozen before its memory is put out to swap, where there is any.
    pub reclaim_after: Duration,
    /// Memory limit of a replica whose spec names none, in bytes.
    pub default_memory_bytes: u64,
    /// Processor limit of a replica whose spec names none, in thousandths of a processor.
    pub default_cpu_millis: Option<u64>,
    /// What Updraft's own process gets of processor and disk where functions together get 100;
    /// 0 leaves it in the control group that it was started in.
    pub own_weight: u32,
    /// Most processes and threads in one replica.
    pub process_limit: u32,
    /// Size of `/tmp` and `/dev/shm`, in bytes each; what is in them counts as memory.
    pub tmp_bytes: u64,
    /// How much a replica may write to its own copy of the root, in bytes; counts as memory.
    pub root_bytes: u64,
    /// Size at which a replica's log file loses its older half, in bytes.
    pub log_bytes: u64,
    /// Most bytes of the logs of one function's running replicas together, and again of those that
    /// have ended.
    pub function_log_bytes: u64,
    /// How many ended replicas of a function keep their log files.
    pub kept_logs: usize,
    /// Network namespaces kept ready so that a start does not wait for one.
    pub spare_networks: usize,
    /// Users that tenants are given ranges of.
    pub users: UserRange,
    /// What tenants may reach.
    pub egress: EgressOptions,
    /// Which sandboxes tenants run in.
    pub sandboxes: SandboxOptions,
    /// The program of gVisor, which need not be there.
    pub gvisor_program: &'static str,
    /// What gVisor stands on.
    pub gvisor_platform: GvisorPlatform,
    /// The port on which the gateway's door for functions will be opened, at
    /// [`gateway_address`](crate::LocalEngine::gateway_address); nothing keeps it shut.
    pub gateway_port: Option<u16>,
    /// Most bytes a second of all replicas of a tenant together, each way; 0 for no limit.
    pub bandwidth: u64,
    /// Most connections that all replicas of a tenant together have open to the outside and to
    /// the gateway, those included that the kernel has not yet forgotten; 0 for no limit.
    pub connections: u32,
    /// How often the names in egress policies are looked up again.
    pub names_again: Duration,
}

impl LocalEngineOptions {
    /// Options with the usual limits, below the data directory `data` and the volatile directory
    /// `run` of this instance.
    pub fn new(instance: impl Into<String>, data: &Path, run: &Path) -> Self {
        Self {
            instance: instance.into(),
            state: data.join("engine"),
            machine_key: data.join("secrets/machine-key"),
            logs: data.join("logs"),
            run: run.join("engine"),
            runtime: RuntimeChoice::Detect,
            version: Version {
                release: env!("CARGO_PKG_VERSION").to_owned(),
                sha: "unknown".to_owned(),
            },
            ready_limit: Duration::from_mins(1),
            drain_limit: Duration::from_mins(5),
            stop_grace: Duration::from_secs(10),
            steady_after: Duration::from_mins(1),
            // Most rests are shorter.
            reclaim_after: Duration::from_secs(30),
            default_memory_bytes: 256 << 20,
            default_cpu_millis: None,
            own_weight: 0,
            process_limit: 256,
            tmp_bytes: 64 << 20,
            root_bytes: 256 << 20,
            log_bytes: 8 << 20,
            function_log_bytes: 32 << 20,
            kept_logs: 5,
            spare_networks: 2,
            users: UserRange::USUAL,
            egress: EgressOptions::default(),
            sandboxes: SandboxOptions::default(),
            gvisor_program: "runsc",
            gvisor_platform: GvisorPlatform::Usual,
            gateway_port: None,
            bandwidth: 125_000_000,
            connections: 8192,
            names_again: Duration::from_mins(1),
        }
    }

    /// Refuses an instance name that cannot be part of device and table names.
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let fits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if self.instance.len() != 8 || !self.instance.bytes().all(fits) {
            return Err(OpenError::Instance(self.instance.clone()));
        }
        if self.users.first == 0 || self.users.ranges() < 2 {
            return Err(OpenError::Users);
        }
        Ok(())
    }

    pub(crate) fn log_limits(&self) -> Limits {
        Limits {
            replica: self.log_bytes,
            function: self.function_log_bytes,
            // The other half is for what is written before the next look.
            farthest: self.file_bytes() / 2,
        }
    }

    /// Longest file of a replica: no shorter than its folders have room for, and the only bound
    /// on its log while no Updraft is there to rotate it.
    pub(crate) fn file_bytes(&self) -> u64 {
        let room = self.root_bytes.max(self.tmp_bytes).saturating_add(4096);
        room.max(self.log_bytes.saturating_mul(4))
    }

    pub(crate) fn record_folder(&self) -> PathBuf {
        self.state.join("functions")
    }

    pub(crate) fn replica_folder(&self) -> PathBuf {
        self.run.join("replicas")
    }

    pub(crate) fn runtime_folder(&self) -> PathBuf {
        self.run.join("runtime")
    }

    pub(crate) fn mounted_secrets(&self) -> PathBuf {
        self.run.join("secrets")
    }

    pub(crate) fn cgroup(&self) -> String {
        format!("updraft-{}", self.instance)
    }

    /// The group of Updraft's own process. Named unlike [`Self::cgroup`], in which everything is
    /// a replica's.
    pub(crate) fn own_group(&self) -> String {
        format!("updraft-self-{}", self.instance)
    }

    /// How the names of the host's ends of replicas' devices begin.
    pub(crate) fn devices(&self) -> String {
        format!("ud{}", self.instance)
    }

    pub(crate) fn bridge(&self) -> String {
        format!("updraft{}", self.instance)
    }

    pub(crate) fn table(&self) -> String {
        format!("updraft_{}", self.instance)
    }
}

/// Why the local engine could not be opened or cleared away. The fault is the machine's or the
/// operator's; each message says what to do.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The instance's name does not fit.
    #[error("instance `{0}` must be 8 lower-case hexadecimal digits")]
    Instance(String),
    /// Another process holds this state.
    #[error("another Updraft runs with `{}`, stop it or choose another data directory", .0.display())]
    InUse(PathBuf),
    /// The process may not do what an engine must.
    #[error("the local engine needs root to make containers, start Updraft with sudo")]
    NotRoot,
    /// Control groups cannot limit what functions use.
    #[error("control groups cannot hold functions to their limits: {0}")]
    Cgroups(String),
    /// No OCI runtime works here.
    #[error(
        "no container runtime works on this machine: {0}; install crun or runc (Debian: `apt-get install crun`)"
    )]
    Runtime(String),
    /// A file or folder of the engine could not be used.
    #[error("cannot {doing} `{}`", path.display())]
    File {
        /// What was attempted, for instance `create`.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A stored record cannot be read.
    #[error("record `{}` cannot be read, repair it or move it away: {reason}", path.display())]
    Record {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There are not enough users to give to tenants.
    #[error(
        "`isolation.users` has room for no tenant, each needs 65536 users and as many are kept for trials"
    )]
    Users,
    /// The network could not be set up.
    #[error("cannot {doing}: {reason}")]
    Network {
        /// What was attempted.
        doing: String,
        /// Why it failed.
        reason: String,
    },
}

impl OpenError {
    pub(crate) fn file(
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }

    pub(crate) fn network(doing: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let doing = doing.into();
        move |error| Self::Network { doing, reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use updraft_model::{FunctionId, annotations};

    fn spec() -> FunctionSpec {
        FunctionSpec::new("f".parse().map(FunctionId::in_default).unwrap(), "i".parse().unwrap())
    }

    #[test]
    fn a_function_may_ask_for_a_stronger_sandbox_and_never_for_a_weaker_one() {
        let mut spec = spec();
        let mut options = SandboxOptions::default();
        assert_eq!(options.of(&spec), Sandbox::Kernel);
        spec.annotations.insert(annotations::RUNTIME.into(), "runsc".into());
        assert_eq!(options.of(&spec), Sandbox::Gvisor);
        spec.annotations.insert(annotations::RUNTIME.into(), "default".into());
        options.of.insert(spec.tenant(), Sandbox::Gvisor);
        assert_eq!(options.of(&spec), Sandbox::Gvisor);
    }

    #[test]
    fn a_function_narrows_what_its_tenant_may_reach_and_never_widens_it() {
        let tenant = spec().tenant();
        let mut options = EgressOptions::default();
        assert_eq!(options.policies(&tenant, None), [EgressPolicy::open()]);
        assert_eq!(options.policies(&tenant, Some(EgressPolicy::open())), [EgressPolicy::open()]);
        options.of.insert(tenant.clone(), EgressPolicy::closed());
        let both = [EgressPolicy::closed(), EgressPolicy::open()];
        assert_eq!(options.policies(&tenant, Some(EgressPolicy::open())), both);
    }
}
