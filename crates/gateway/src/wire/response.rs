//! What clients read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use updraft_engine::{self as engine, LogLine, NamespaceInfo};
use updraft_model::{FunctionId, ResourceSet, SecretName};

/// A function in a list or by itself.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionStatus {
    name: String,
    image: String,
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    env_process: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env_vars: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    constraints: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<SecretName>,
    // Never absent: clients follow both without a look.
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<ResourceSet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<ResourceSet>,
    #[serde(skip_serializing_if = "is_false")]
    read_only_root_filesystem: bool,
    #[serde(skip_serializing_if = "is_zero_float")]
    invocation_count: f64,
    #[serde(skip_serializing_if = "is_zero")]
    replicas: u32,
    #[serde(skip_serializing_if = "is_zero")]
    available_replicas: u32,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// What a function's replicas use together.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Thousandths of one processor.
    pub cpu: f64,
    /// Bytes of memory.
    pub total_memory_bytes: f64,
}

// serde hands references to these.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero_float(value: &f64) -> bool {
    *value == 0.0
}

impl FunctionStatus {
    /// What the engine knows, with the number of invocations so far.
    pub fn new(status: engine::FunctionStatus, invocations: u64) -> Self {
        let spec = status.spec;
        Self {
            name: spec.id.name.into(),
            image: spec.image.into(),
            namespace: spec.id.namespace.into(),
            env_process: spec.process,
            env_vars: spec.environment,
            constraints: spec.constraints,
            secrets: spec.secrets,
            labels: spec.labels,
            annotations: spec.annotations,
            limits: spec.limits,
            requests: spec.requests,
            read_only_root_filesystem: spec.read_only_root,
            invocation_count: invocations as f64,
            replicas: status.replicas,
            available_replicas: status.available_replicas,
            created_at: status.created_at,
            usage: None,
        }
    }

    /// With what its replicas use, where the engine can tell.
    pub fn with_usage(self, usage: Option<Usage>) -> Self {
        Self { usage, ..self }
    }
}

/// The answer of `/system/info`.
#[derive(Debug, Clone, Serialize)]
pub struct Info {
    /// Who runs the functions.
    pub provider: Provider,
    /// The gateway's version.
    pub version: VersionInfo,
    /// The machine's architecture as OpenFaaS's store calls it.
    pub arch: &'static str,
}

/// Who runs the functions.
#[derive(Debug, Clone, Serialize)]
pub struct Provider {
    /// Its name.
    pub provider: String,
    /// Its version.
    pub version: VersionInfo,
    /// What orchestrates.
    pub orchestration: String,
}

/// A version.
#[derive(Debug, Clone, Serialize)]
pub struct VersionInfo {
    /// The commit.
    pub sha: String,
    /// The release.
    pub release: String,
}

impl From<engine::Version> for VersionInfo {
    fn from(version: engine::Version) -> Self {
        Self { sha: version.sha, release: version.release }
    }
}

impl From<engine::EngineInfo> for Provider {
    fn from(info: engine::EngineInfo) -> Self {
        Self {
            provider: info.provider,
            version: info.version.into(),
            orchestration: info.orchestration,
        }
    }
}

/// One line of `/system/logs`.
#[derive(Debug, Clone, Serialize)]
pub struct LogMessage {
    name: String,
    namespace: String,
    instance: String,
    timestamp: Timestamp,
    text: String,
}

impl LogMessage {
    /// A line of the function `id`.
    pub fn new(id: &FunctionId, line: LogLine) -> Self {
        Self {
            name: id.name.as_str().to_owned(),
            namespace: id.namespace.as_str().to_owned(),
            instance: line.instance.as_str().to_owned(),
            timestamp: line.timestamp,
            text: line.text,
        }
    }
}

/// A secret in a list: never its value.
#[derive(Debug, Clone, Serialize)]
pub struct SecretEntry {
    /// Its name.
    pub name: SecretName,
    /// Where it is.
    pub namespace: String,
}

/// A namespace by itself.
#[derive(Debug, Clone, Serialize)]
pub struct NamespaceStatus {
    name: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

impl From<NamespaceInfo> for NamespaceStatus {
    fn from(info: NamespaceInfo) -> Self {
        Self { name: info.name.into(), annotations: info.annotations, labels: info.labels }
    }
}
