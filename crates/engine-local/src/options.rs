//! What the local engine is told when it is opened, and why opening can fail.

use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use updraft_engine::Version;

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
    /// Memory limit of a replica whose spec names none, in bytes.
    pub default_memory_bytes: u64,
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
            default_memory_bytes: 256 << 20,
            process_limit: 256,
            tmp_bytes: 64 << 20,
            root_bytes: 256 << 20,
            log_bytes: 8 << 20,
            function_log_bytes: 32 << 20,
            kept_logs: 5,
            spare_networks: 2,
            users: UserRange::USUAL,
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
        Limits { replica: self.log_bytes, function: self.function_log_bytes }
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
