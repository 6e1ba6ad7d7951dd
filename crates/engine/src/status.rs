//! What an engine tells about itself and about what it runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use updraft_model::{FunctionSpec, Namespace};

use crate::ReplicaId;

/// Numbers the specs applied to one function, upwards; a later one is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(pub u64);

/// What an engine can do beyond running replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Replicas can be frozen and thawed.
    pub freeze: bool,
    /// Zero replicas can be woken by a request.
    pub scale_to_zero: bool,
    /// Replicas go on without Updraft and are adopted by its next start.
    pub survives_restart: bool,
}

/// Who the engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// The provider's name as OpenFaaS clients see it.
    pub provider: String,
    /// What orchestrates: `containers`, `swarm`, `kubernetes`.
    pub orchestration: String,
    /// The engine's version.
    pub version: Version,
}

/// A release and the commit it was built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// For instance `0.1.0`.
    pub release: String,
    /// The commit id.
    pub sha: String,
}

/// What is desired and what runs for one function.
#[derive(Debug, Clone)]
pub struct FunctionStatus {
    /// The desired spec: the one being rolled out, else the one that serves. Its labels hold
    /// `faas_function`.
    pub spec: FunctionSpec,
    /// The revision of that spec.
    pub revision: Revision,
    /// Replicas desired.
    pub replicas: u32,
    /// Replicas that are ready.
    pub available_replicas: u32,
    /// When the function was first applied.
    pub created_at: Timestamp,
    /// Why replicas are missing or a roll-out was given up, for people; nothing when all is well.
    pub message: Option<String>,
    /// How often a replica ended without being asked to, since the function was first applied.
    pub restarts: u64,
    /// The newest of those ends.
    pub last_exit: Option<ReplicaExit>,
    /// Set while the serving revision's replicas fail; gone once they have been well for a while.
    pub trouble: Option<Trouble>,
}

/// How a replica ended that nobody had asked to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaExit {
    /// Which replica.
    pub replica: ReplicaId,
    /// The revision it ran.
    pub revision: Revision,
    /// When that was noticed.
    pub at: Timestamp,
    /// What happened, as a sentence for whoever wrote the function.
    pub reason: String,
    /// The exit code of its first process, where it is known.
    pub code: Option<i32>,
    /// The signal that ended its first process, where it is known.
    pub signal: Option<i32>,
    /// The kernel ended it because it needed more memory than its limit.
    pub out_of_memory: bool,
    /// The last lines it wrote, oldest first.
    pub log_tail: Vec<String>,
}

/// Replicas that fail one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Failures in a row.
    pub failures: u32,
    /// When the next start is tried, while the engine holds it back.
    pub next_start: Option<Timestamp>,
}

/// Where a replica is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaState {
    /// It is being made, or has not answered yet.
    Starting,
    /// It takes requests.
    Ready,
    /// It was ready and says that it is not for now; it gets no requests until it is again.
    Unready,
    /// It keeps its memory, uses no processor and is thawed by a request.
    Frozen,
    /// It ends the requests it has, or was told to end.
    Leaving,
}

impl ReplicaState {
    /// The word for it: `starting`, `ready`, `unready`, `frozen` or `leaving`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Frozen => "frozen",
            Self::Leaving => "leaving",
        }
    }
}

/// One replica as its engine sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaStatus {
    /// Its name.
    pub id: ReplicaId,
    /// The revision it runs.
    pub revision: Revision,
    /// Where it is in its life.
    pub state: ReplicaState,
    /// Where its HTTP server listens, once it has answered.
    pub address: Option<SocketAddr>,
    /// When its start began.
    pub started_at: Timestamp,
    /// Requests on it now.
    pub in_flight: usize,
    /// What it uses; nothing while it is being made, or when the engine cannot tell.
    pub usage: Option<Usage>,
}

/// What an engine found on its machine or cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineStatus {
    /// One thing each, in the order in which people want to read them.
    pub facts: Vec<Fact>,
}

/// One thing that an engine found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// What was looked at, in a word or two.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What works less well because of it, and what to do; nothing when all is well.
    pub degraded: Option<String>,
}

impl Fact {
    /// Something that is as it should be.
    pub fn good(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { subject: subject.into(), found: found.into(), degraded: None }
    }

    /// Something that is worse than it could be, and why that matters.
    pub fn degraded(
        subject: impl Into<String>,
        found: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self { degraded: Some(why.into()), ..Self::good(subject, found) }
    }
}

/// What the replicas of one function use, together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Seconds of one processor used by the replicas that are there, since each started. Falls
    /// when a replica goes: two readings with the same replicas give the load between them.
    pub cpu_seconds: f64,
    /// Bytes of memory in use, without what the kernel can drop at once.
    pub memory_bytes: u64,
    /// Replicas read.
    pub replicas: u32,
}

/// One line that a replica wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Which replica.
    pub instance: ReplicaId,
    /// When the engine saw it written, or the replica's own time stamp where the engine keeps one.
    pub timestamp: Timestamp,
    /// The line without its line feed; bytes that are no UTF-8 are replaced.
    pub text: String,
}

/// A namespace and what clients noted on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceInfo {
    /// Its name.
    pub name: Namespace,
    /// Labels, as given.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations, as given.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}
