//! A function as it is to run: every field that OpenFaaS knows, checked.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    CpuQuantity, FunctionName, ImageRef, MemoryQuantity, Namespace, OwnerName, SecretName,
};

/// Label keys that OpenFaaS and OpenFaaS Cloud give a meaning.
pub mod labels {
    /// Set by the engine on every function; its value is the function's name.
    pub const FUNCTION: &str = "faas_function";
    /// Fewest replicas while the function is not asleep; default 1.
    pub const SCALE_MIN: &str = "com.openfaas.scale.min";
    /// Most replicas.
    pub const SCALE_MAX: &str = "com.openfaas.scale.max";
    /// Step of the alert-driven scaler, in percent of the maximum.
    pub const SCALE_FACTOR: &str = "com.openfaas.scale.factor";
    /// `true`: stop all replicas when idle.
    pub const SCALE_ZERO: &str = "com.openfaas.scale.zero";
    /// How long without a call is idle: seconds or a Go duration.
    pub const SCALE_ZERO_DURATION: &str = "com.openfaas.scale.zero-duration";
    /// What load is measured in: `rps`, `capacity` or `cpu`.
    pub const SCALE_TYPE: &str = "com.openfaas.scale.type";
    /// Load that one replica should carry, in the unit of the type.
    pub const SCALE_TARGET: &str = "com.openfaas.scale.target";
    /// Share of the target at which to scale, above 0 and at most 1.
    pub const SCALE_TARGET_PROPORTION: &str = "com.openfaas.scale.target-proportion";
    /// How long the highest recommendation is kept before scaling down: a Go duration.
    pub const SCALE_DOWN_WINDOW: &str = "com.openfaas.scale.down.window";
    /// Marks a function that a push deployed; value `1`.
    pub const GIT_CLOUD: &str = "com.openfaas.cloud.git-cloud";
    /// The owner whose push deployed the function.
    pub const GIT_OWNER: &str = "com.openfaas.cloud.git-owner";
    /// The repository that declares the function.
    pub const GIT_REPO: &str = "com.openfaas.cloud.git-repo";
    /// The full commit id that the running release was built from.
    pub const GIT_SHA: &str = "com.openfaas.cloud.git-sha";
    /// The branch whose pushes go live.
    pub const GIT_BRANCH: &str = "com.openfaas.cloud.git-branch";
    /// Where the repository lives: `github`, `gitlab`, `updraft`, …
    pub const GIT_SCM: &str = "com.openfaas.cloud.git-scm";
    /// `1` for a private repository, else `0`.
    pub const GIT_PRIVATE: &str = "com.openfaas.cloud.git-private";
    /// Unix seconds of the deployment, as text.
    pub const GIT_DEPLOYTIME: &str = "com.openfaas.cloud.git-deploytime";
}

/// Annotation keys that OpenFaaS and Updraft give a meaning.
pub mod annotations {
    /// Path of the health probe; default `/_/health`.
    pub const HEALTH_PATH: &str = "com.openfaas.health.http.path";
    /// Path of the readiness probe; default is the health path.
    pub const READY_PATH: &str = "com.openfaas.ready.http.path";
    /// Delay before the first probe of a new replica: seconds or a Go duration.
    pub const HEALTH_INITIAL_DELAY: &str = "com.openfaas.health.http.initialDelay";
    /// Seconds before the first look at whether a ready replica is still healthy.
    pub const HEALTH_INITIAL_DELAY_SECONDS: &str = "com.openfaas.health.http.initialDelaySeconds";
    /// Seconds between two looks at whether it is still healthy.
    pub const HEALTH_PERIOD: &str = "com.openfaas.health.http.periodSeconds";
    /// Seconds that such a look may take.
    pub const HEALTH_TIMEOUT: &str = "com.openfaas.health.http.timeoutSeconds";
    /// How many of them must fail in a row for the replica to be replaced.
    pub const HEALTH_FAILURES: &str = "com.openfaas.health.http.failureThreshold";
    /// Seconds before a new replica is first asked whether it is ready.
    pub const READY_INITIAL_DELAY: &str = "com.openfaas.ready.http.initialDelaySeconds";
    /// Seconds that one such question may take.
    pub const READY_TIMEOUT: &str = "com.openfaas.ready.http.timeoutSeconds";
    /// How many good answers in a row make a replica ready.
    pub const READY_SUCCESSES: &str = "com.openfaas.ready.http.successThreshold";
    /// Seconds between two looks at whether a ready replica still is.
    pub const READY_PERIOD: &str = "com.openfaas.ready.http.periodSeconds";
    /// How many of them must fail in a row for it to get no more calls until it is ready again.
    pub const READY_FAILURES: &str = "com.openfaas.ready.http.failureThreshold";
    /// How replicas are probed: `http` (the default), or `lock` for the watchdog's lock file.
    pub const PROBE: &str = "updraft.probe";
    /// Web address of the repository a push came from.
    pub const GIT_REPO_URL: &str = "com.openfaas.cloud.git-repo-url";
    /// The release number that is deployed, as text.
    pub const RELEASE: &str = "updraft.release";
    /// Queue of the function's asynchronous calls.
    pub const QUEUE: &str = "com.openfaas.queue";
    /// How often a failed asynchronous call is tried again.
    pub const RETRY_ATTEMPTS: &str = "com.openfaas.retry.attempts";
    /// Statuses after which it is tried again, separated by commas.
    pub const RETRY_CODES: &str = "com.openfaas.retry.codes";
    /// Shortest wait before it is tried again: seconds or a Go duration.
    pub const RETRY_MIN_WAIT: &str = "com.openfaas.retry.min_wait";
    /// Longest wait before it is tried again: seconds or a Go duration.
    pub const RETRY_MAX_WAIT: &str = "com.openfaas.retry.max_wait";
    /// What calls the function beside its callers, separated by commas: `cron-function` or a
    /// connector's topic.
    pub const TOPIC: &str = "topic";
    /// When a function with topic `cron-function` is called: cron expressions separated by `;`.
    pub const SCHEDULE: &str = "schedule";
    /// `allow`: a scheduled run may begin while the one before is under way; else it is skipped.
    pub const SCHEDULE_OVERLAP: &str = "updraft.schedule.overlap";
    /// `once`: the last of the times that were missed is made up for; else none is.
    pub const SCHEDULE_MISSED: &str = "updraft.schedule.missed";
    /// Path and query that a scheduled run calls; default `/`.
    pub const SCHEDULE_PATH: &str = "updraft.schedule.path";
    /// Body of a scheduled run; default none.
    pub const SCHEDULE_BODY: &str = "updraft.schedule.body";
    /// Secret of the function's namespace that holds credentials for its image's registry, as a
    /// Docker client's configuration: `{"auths":{…}}`.
    pub const PULL_SECRET: &str = "updraft.pull-secret";
    /// Time zone of the schedule, such as `Europe/Berlin`; UTC when absent.
    pub const TIMEZONE: &str = "timezone";
    /// When a function is kept warm: windows such as `0 8 * * 1-5 for 10h = 2`, separated by `;`,
    /// in the zone of [`TIMEZONE`].
    pub const WARM: &str = "updraft.warm";
    /// The one limit on an invocation: how long it may take to the head of the answer, and how
    /// long either body may stand still. Seconds or a Go duration.
    pub const TIMEOUT: &str = "updraft.timeout";
    /// Most calls at once on each replica; further ones wait.
    pub const CONCURRENCY: &str = "updraft.concurrency";
    /// Most calls that wait because of [`CONCURRENCY`]; further ones are refused.
    pub const QUEUE_LIMIT: &str = "updraft.queue-limit";
    /// What a caller must show: `token` or `hmac`.
    pub const AUTH: &str = "updraft.auth";
    /// Which of the function's secrets holds the keys for [`AUTH`], one a line.
    pub const AUTH_SECRET: &str = "updraft.auth-secret";
    /// Which of the function's secrets holds the keys that sign its callbacks, one a line.
    pub const CALLBACK_SECRET: &str = "updraft.callback-secret";
    /// What the function may reach, within what its tenant may: `open`, `closed` or a list such
    /// as `gateway, 198.51.100.0/24:5432, api.example.com:443`.
    pub const EGRESS: &str = "updraft.egress";
    /// What stands between the function and the machine's kernel: `default` or `runsc`.
    pub const RUNTIME: &str = "updraft.runtime";
    /// What the function's server speaks: `http1` (the default) or `h2c`.
    pub const PROTOCOL: &str = "updraft.protocol";
}

/// Where a function is found in the engine: its name and its namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FunctionId {
    /// The namespace; the default one is `openfaas-fn`.
    pub namespace: Namespace,
    /// The visible name.
    pub name: FunctionName,
}

impl FunctionId {
    /// The function of that name in the default namespace.
    pub fn in_default(name: FunctionName) -> Self {
        Self { namespace: Namespace::default(), name }
    }
}

/// `<name>.<namespace>`, as OpenFaaS writes it in URLs and metric labels.
impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl fmt::Debug for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An amount of each resource; what is absent is not limited, or not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceSet {
    /// Memory, such as `128Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryQuantity>,
    /// Processor share, such as `500m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuQuantity>,
    /// Devices by their Kubernetes resource name, such as `nvidia.com/gpu`.
    #[serde(flatten, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, String>,
}

/// What is to run for a function, resolved: nothing in it depends on a template, a file or the
/// platform's environment any more. A release keeps one; an engine runs one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSpec {
    /// The function's place in the engine.
    pub id: FunctionId,
    /// The image, as the client or the pipeline named it.
    pub image: ImageRef,
    /// The process that the watchdog runs (`fprocess`), when it overrides the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Environment variables, without `fprocess`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Placement constraints, `key=value`; engines on one machine ignore them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// Secrets to mount under `/var/openfaas/secrets`, in the order given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
    /// Labels, byte for byte as given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations, byte for byte as given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Hard limits; absent when the client gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceSet>,
    /// Reserved amounts; absent when the client gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<ResourceSet>,
    /// Whether the root file system is mounted read-only (`/tmp` stays writable).
    #[serde(default)]
    pub read_only_root: bool,
}

/// Why a spec cannot be run. The caller's fault; the message names the field.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpecError {
    /// The environment has a name that no process can be given.
    #[error("environment name `{0}` is invalid, it may not be empty or hold `=` or NUL")]
    EnvironmentName(String),
    /// An environment value that no process can be given.
    #[error("environment value of `{0}` holds a NUL character")]
    EnvironmentValue(String),
    /// The client set a label that only the engine sets, to something else.
    #[error("label `{0}` is set by the platform, remove it")]
    ReservedLabel(&'static str),
    /// An annotation of Updraft's has a value that it cannot have.
    #[error("annotation `{key}` is `{value}`, expected {expected}")]
    Annotation {
        /// Its key.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        expected: &'static str,
    },
    /// Keys of the function are to be in a secret that it does not have.
    #[error("`{0}` is not one of the function's secrets, add it to them")]
    ForeignKeys(String),
}

impl FunctionSpec {
    /// A spec with nothing but a place and an image.
    pub fn new(id: FunctionId, image: ImageRef) -> Self {
        Self {
            id,
            image,
            process: None,
            environment: BTreeMap::new(),
            constraints: Vec::new(),
            secrets: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            limits: None,
            requests: None,
            read_only_root: false,
        }
    }

    /// Checks what the field types alone cannot.
    ///
    /// # Errors
    /// The caller's fault; the message names the field and what is expected.
    pub fn check(&self) -> Result<(), SpecError> {
        for (name, value) in &self.environment {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(SpecError::EnvironmentName(name.clone()));
            }
            if value.contains('\0') {
                return Err(SpecError::EnvironmentValue(name.clone()));
            }
        }
        if self.labels.get(labels::FUNCTION).is_some_and(|name| name != self.id.name.as_str()) {
            return Err(SpecError::ReservedLabel(labels::FUNCTION));
        }
        self.check_policy()
    }

    /// The owner whose push deployed this, if it came by a push.
    pub fn owner(&self) -> Option<OwnerName> {
        let owner = self.labels.get(labels::GIT_OWNER)?;
        OwnerName::new(owner.to_ascii_lowercase()).ok()
    }

    /// The repository that declares this, if it came by a push.
    pub fn repository(&self) -> Option<&str> {
        self.labels.get(labels::GIT_REPO).map(String::as_str)
    }

    /// Fewest replicas while awake: the label, or 1 when it is absent or no number.
    pub fn scale_min(&self) -> u32 {
        self.number_label(labels::SCALE_MIN).unwrap_or(1).max(1)
    }

    /// Most replicas an autoscaler may ask for, when the label says so.
    pub fn scale_max(&self) -> Option<u32> {
        self.number_label(labels::SCALE_MAX)
    }

    fn number_label(&self, key: &str) -> Option<u32> {
        self.labels.get(key)?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> FunctionSpec {
        let id = FunctionId::in_default(FunctionName::new("demo-hello").unwrap());
        FunctionSpec::new(id, "localhost/hello:1".parse().unwrap())
    }

    #[test]
    fn a_spec_survives_its_stored_form() {
        let mut spec = spec();
        spec.environment.insert("a".into(), "b".into());
        spec.limits = Some(ResourceSet {
            memory: Some("5Mi".parse().unwrap()),
            cpu: None,
            devices: BTreeMap::from([("nvidia.com/gpu".into(), "1".into())]),
        });
        let stored = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<FunctionSpec>(&stored).unwrap(), spec);
        assert_eq!(spec.id.to_string(), "demo-hello.openfaas-fn");
    }

    #[test]
    fn replica_bounds_fall_back_when_the_label_is_no_number() {
        let mut spec = spec();
        assert_eq!((spec.scale_min(), spec.scale_max()), (1, None));
        spec.labels.insert(labels::SCALE_MIN.into(), "2".into());
        spec.labels.insert(labels::SCALE_MAX.into(), "many".into());
        assert_eq!((spec.scale_min(), spec.scale_max()), (2, None));
    }

    #[test]
    fn environment_that_no_process_can_have_is_refused() {
        let mut spec = spec();
        spec.environment.insert("a=b".into(), String::new());
        assert!(matches!(spec.check(), Err(SpecError::EnvironmentName(_))));
        spec.environment = BTreeMap::from([("a".into(), "\0".into())]);
        assert!(matches!(spec.check(), Err(SpecError::EnvironmentValue(_))));
    }

    #[test]
    fn the_function_label_cannot_name_another_function() {
        let mut spec = spec();
        spec.labels.insert(labels::FUNCTION.into(), "other".into());
        assert_eq!(spec.check(), Err(SpecError::ReservedLabel(labels::FUNCTION)));
        spec.labels.insert(labels::FUNCTION.into(), "demo-hello".into());
        assert_eq!(spec.check(), Ok(()));
    }
}
