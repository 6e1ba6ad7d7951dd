//! The JSON of what runs: replicas one by one, how they ended, and what the engine found.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use updraft_engine::{EngineStatus, FunctionStatus, ReplicaStatus};
use updraft_model::OwnerName;

/// A function with its replicas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionReplicas {
    /// The function, `<name>.<namespace>`.
    pub function: String,
    /// Whose it is; absent for one that came through the OpenFaaS API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerName>,
    /// How often a replica ended without being asked to, since the function was first deployed.
    pub restarts: u64,
    /// The newest of those ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ReplicaExit>,
    /// Present while replicas fail one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
    /// The replicas, oldest first.
    pub replicas: Vec<ReplicaDetail>,
}

/// One replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaDetail {
    /// The engine's name for it; log lines carry it.
    pub name: String,
    /// `starting`, `ready`, `unready`, `frozen` or `leaving`.
    pub state: String,
    /// The revision of the function that it runs, counted by the engine.
    pub revision: u64,
    /// Where its HTTP server listens, reachable from this machine only; absent until it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// When its start began.
    pub started_at: Timestamp,
    /// Requests on it now.
    pub in_flight: usize,
    /// Seconds of one processor it has used; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// Memory in use; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// How a replica ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaExit {
    /// Its name.
    pub replica: String,
    /// The revision it ran.
    pub revision: u64,
    /// When that was noticed.
    pub at: Timestamp,
    /// What happened, one sentence.
    pub reason: String,
    /// The exit code, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether it needed more memory than its limit.
    pub out_of_memory: bool,
    /// The last lines it wrote, oldest first.
    pub log_tail: Vec<String>,
}

/// Replicas that fail one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Failures in a row.
    pub failures: u32,
    /// When the next start is tried, while it is held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start: Option<Timestamp>,
}

/// What the engine found on its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// One thing each.
    pub facts: Vec<Fact>,
}

/// One thing that the engine found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What works less well because of it, and what to do; absent when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

impl FunctionReplicas {
    /// A function's status and its replicas together.
    pub(crate) fn new(status: FunctionStatus, replicas: Vec<ReplicaStatus>) -> Self {
        Self {
            owner: status.spec.owner(),
            function: status.spec.id.to_string(),
            restarts: status.restarts,
            last_exit: status.last_exit.map(Into::into),
            trouble: status.trouble.map(|trouble| Trouble {
                failures: trouble.failures,
                next_start: trouble.next_start,
            }),
            replicas: replicas.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<ReplicaStatus> for ReplicaDetail {
    fn from(replica: ReplicaStatus) -> Self {
        Self {
            name: replica.id.as_str().to_owned(),
            state: replica.state.as_str().to_owned(),
            revision: replica.revision.0,
            address: replica.address,
            started_at: replica.started_at,
            in_flight: replica.in_flight,
            cpu_seconds: replica.usage.map(|usage| usage.cpu_seconds),
            memory_bytes: replica.usage.map(|usage| usage.memory_bytes),
        }
    }
}

impl From<updraft_engine::ReplicaExit> for ReplicaExit {
    fn from(exit: updraft_engine::ReplicaExit) -> Self {
        Self {
            replica: exit.replica.as_str().to_owned(),
            revision: exit.revision.0,
            at: exit.at,
            reason: exit.reason,
            code: exit.code,
            signal: exit.signal,
            out_of_memory: exit.out_of_memory,
            log_tail: exit.log_tail,
        }
    }
}

impl From<EngineStatus> for Engine {
    fn from(status: EngineStatus) -> Self {
        let facts = status.facts.into_iter().map(|fact| Fact {
            subject: fact.subject,
            found: fact.found,
            degraded: fact.degraded,
        });
        Self { facts: facts.collect() }
    }
}
