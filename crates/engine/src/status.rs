//! What an engine tells about itself and about what it runs.

use std::collections::BTreeMap;
use std::fmt;

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
    /// When the engine read it, or the replica's own time stamp where the engine keeps one.
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

/// A secret's bytes. Never printed; hand it on or drop it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Vec<u8>);

impl SecretValue {
    /// Wraps the bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, to be written where the function reads them and nowhere else.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(…)")
    }
}
