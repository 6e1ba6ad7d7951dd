//! An engine that runs nothing, keeps to the port's contract, and does what the test says.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::watch;
use updraft_engine::{
    Capabilities, EndpointTable, Engine, EngineError, EngineInfo, Expect, FunctionStatus, LogLine,
    LogQuery, NamespaceInfo, PutSecret, Revision, SecretChange, SecretContent, SecretInfo,
    SecretItems, SecretValue, Version, Wake,
};
use updraft_model::{Digest, FunctionId, FunctionName, FunctionSpec, Namespace, SecretName};

/// What a new revision of a function does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnApply {
    /// Does not become ready.
    Fail,
    /// Is never done with becoming ready.
    Hang,
}

#[derive(Debug)]
struct Running {
    spec: FunctionSpec,
    /// What its secrets held when the spec was applied.
    held: BTreeMap<SecretName, Digest>,
    before: Option<FunctionSpec>,
    revision: u64,
}

#[derive(Debug)]
pub(crate) struct RecordingEngine {
    running: Mutex<BTreeMap<FunctionId, Running>>,
    behaviour: Mutex<HashMap<String, OnApply>>,
    secrets: Mutex<BTreeMap<SecretName, (SecretInfo, SecretContent)>>,
    /// Visible names in the order in which their specs changed.
    pub(crate) applied: Mutex<Vec<String>>,
    waiting: watch::Sender<usize>,
    endpoints: watch::Sender<EndpointTable>,
}

impl Default for RecordingEngine {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            behaviour: Mutex::default(),
            secrets: Mutex::default(),
            applied: Mutex::default(),
            waiting: watch::Sender::new(0),
            endpoints: watch::Sender::new(Arc::default()),
        }
    }
}

impl RecordingEngine {
    pub(crate) fn on_apply(&self, name: &str, behaviour: OnApply) {
        self.behaviour.lock().unwrap().insert(name.to_owned(), behaviour);
    }

    pub(crate) fn recover(&self, name: &str) {
        self.behaviour.lock().unwrap().remove(name);
    }

    pub(crate) fn add_secret(&self, name: &str) {
        let name = SecretName::new(name).unwrap();
        let value = SecretValue::new("set by hand");
        let content = SecretContent::by_hand(SecretItems::single(&name, value));
        let info = SecretInfo::of(&name, &content, None, Timestamp::now(), mac);
        self.secrets.lock().unwrap().insert(name, (info, content));
    }

    /// The spec that is desired for a visible name.
    pub(crate) fn spec(&self, name: &str) -> Option<FunctionSpec> {
        let id = FunctionId::in_default(FunctionName::new(name).unwrap());
        self.running.lock().unwrap().get(&id).map(|running| running.spec.clone())
    }

    /// As if somebody had deployed it past the pipeline.
    pub(crate) fn put(&self, spec: FunctionSpec) {
        let running = Running { held: BTreeMap::new(), before: None, revision: 1, spec };
        self.running.lock().unwrap().insert(running.spec.id.clone(), running);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.running.lock().unwrap().keys().map(|id| id.name.to_string()).collect()
    }

    pub(crate) fn take_applied(&self) -> Vec<String> {
        let mut applied = std::mem::take(&mut *self.applied.lock().unwrap());
        applied.sort();
        applied
    }

    /// Waits until so many hanging calls have begun.
    pub(crate) async fn hanging(&self, calls: usize) {
        self.waiting.subscribe().wait_for(|waiting| *waiting >= calls).await.unwrap();
    }
}

/// Good enough to tell texts apart.
fn mac(text: &[u8]) -> Digest {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&hasher.finish().to_be_bytes());
    Digest::from_bytes(bytes)
}

fn unsupported() -> EngineError {
    EngineError::Invalid("the test's engine cannot do that".to_owned())
}

#[async_trait]
impl Engine for RecordingEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities { freeze: false, scale_to_zero: true, survives_restart: true }
    }

    fn info(&self) -> EngineInfo {
        let version = Version { release: String::new(), sha: String::new() };
        EngineInfo { provider: "test".into(), orchestration: "none".into(), version }
    }

    async fn apply_if(
        &self,
        spec: FunctionSpec,
        wake: Wake,
        expect: Expect,
    ) -> Result<Revision, EngineError> {
        assert_eq!(wake, Wake::AtLeastMinimum);
        assert_ne!(expect, Expect::Anything, "a push replaces only what it has looked at");
        if Expect::as_seen(self.get(&spec.id).await?.as_ref()) != expect {
            return Err(EngineError::Superseded(spec.id));
        }
        let (missing, held): (Vec<_>, BTreeMap<_, _>) = {
            let secrets = self.secrets.lock().unwrap();
            let missing = spec.secrets.iter().filter(|name| !secrets.contains_key(*name));
            let held = spec
                .secrets
                .iter()
                .filter_map(|name| secrets.get(name).map(|(info, _)| (name.clone(), info.digest)));
            (missing.cloned().collect(), held.collect())
        };
        if !missing.is_empty() {
            let namespace = spec.id.namespace;
            return Err(EngineError::MissingSecrets { namespace, names: missing });
        }
        let mut all = self.running.lock().unwrap();
        let old = all.remove(&spec.id);
        let number = old.as_ref().map_or(0, |old| old.revision);
        let (before, revision) = match old {
            Some(old) if old.spec == spec && old.held == held => (old.before, old.revision),
            Some(old) => (Some(old.spec), old.revision + 1),
            None => (None, 1),
        };
        if revision != number {
            self.applied.lock().unwrap().push(spec.id.name.to_string());
        }
        all.insert(spec.id.clone(), Running { spec, held, before, revision });
        Ok(Revision(revision))
    }

    async fn wait_ready(
        &self,
        id: &FunctionId,
        _: Revision,
        _: Duration,
    ) -> Result<(), EngineError> {
        let behaviour = self.behaviour.lock().unwrap().get(id.name.as_str()).copied();
        match behaviour {
            None => Ok(()),
            Some(OnApply::Hang) => {
                self.waiting.send_modify(|waiting| *waiting += 1);
                std::future::pending().await
            }
            Some(OnApply::Fail) => {
                // Given up: what served before is what is desired again.
                let mut all = self.running.lock().unwrap();
                if let Some(running) = all.get_mut(id)
                    && let Some(before) = running.before.take()
                {
                    running.spec = before;
                }
                Err(EngineError::NotReady {
                    id: id.clone(),
                    reason: "exit code 1".to_owned(),
                    log_tail: vec!["ModuleNotFoundError: No module named 'flask'".to_owned()],
                })
            }
        }
    }

    async fn remove(&self, id: &FunctionId) -> Result<(), EngineError> {
        let removed = self.running.lock().unwrap().remove(id);
        removed.map(drop).ok_or_else(|| EngineError::UnknownFunction(id.clone()))
    }

    async fn list(&self, _: &Namespace) -> Result<Vec<FunctionStatus>, EngineError> {
        let ids: Vec<_> = self.running.lock().unwrap().keys().cloned().collect();
        let mut all = Vec::new();
        for id in ids {
            all.extend(self.get(&id).await?);
        }
        Ok(all)
    }

    async fn get(&self, id: &FunctionId) -> Result<Option<FunctionStatus>, EngineError> {
        let all = self.running.lock().unwrap();
        Ok(all.get(id).map(|running| FunctionStatus {
            spec: running.spec.clone(),
            revision: Revision(running.revision),
            replicas: 1,
            available_replicas: 1,
            created_at: Timestamp::UNIX_EPOCH,
            message: None,
            restarts: 0,
            last_exit: None,
            trouble: None,
        }))
    }

    async fn scale(&self, _: &FunctionId, _: u32) -> Result<(), EngineError> {
        Err(unsupported())
    }

    fn endpoints(&self) -> watch::Receiver<EndpointTable> {
        self.endpoints.subscribe()
    }

    async fn logs(
        &self,
        _: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, EngineError>>, EngineError> {
        Err(unsupported())
    }

    async fn list_secrets(&self, _: &Namespace) -> Result<Vec<SecretInfo>, EngineError> {
        Ok(self.secrets.lock().unwrap().values().map(|(info, _)| info.clone()).collect())
    }

    async fn read_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<SecretItems, EngineError> {
        let held = self.secrets.lock().unwrap().get(name).map(|(_, content)| content.items.clone());
        let (namespace, name) = (namespace.clone(), name.clone());
        held.ok_or(EngineError::UnknownSecret { namespace, name })
    }

    async fn put_secret(
        &self,
        _: &Namespace,
        name: &SecretName,
        content: SecretContent,
        put: PutSecret,
    ) -> Result<SecretChange, EngineError> {
        assert_eq!(put, PutSecret::Either);
        content.check(name)?;
        let mut secrets = self.secrets.lock().unwrap();
        let before = secrets.get(name).map(|(info, _)| info);
        let info = SecretInfo::of(name, &content, before, Timestamp::now(), mac);
        let change = info.change(before);
        secrets.insert(name.clone(), (info, content));
        Ok(change)
    }

    async fn stale_secrets(&self, id: &FunctionId) -> Result<Vec<SecretName>, EngineError> {
        let all = self.running.lock().unwrap();
        let running = all.get(id).ok_or_else(|| EngineError::UnknownFunction(id.clone()))?;
        let secrets = self.secrets.lock().unwrap();
        let is_stale = |name: &&SecretName| {
            secrets
                .get(*name)
                .is_some_and(|(info, _)| Some(&info.digest) != running.held.get(*name))
        };
        Ok(running.spec.secrets.iter().filter(is_stale).cloned().collect())
    }

    async fn remove_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<(), EngineError> {
        let removed = self.secrets.lock().unwrap().remove(name);
        let (namespace, name) = (namespace.clone(), name.clone());
        removed.map(drop).ok_or(EngineError::UnknownSecret { namespace, name })
    }

    async fn list_namespaces(&self) -> Result<Vec<NamespaceInfo>, EngineError> {
        Err(unsupported())
    }

    async fn create_namespace(&self, _: NamespaceInfo) -> Result<(), EngineError> {
        Err(unsupported())
    }

    async fn update_namespace(&self, _: NamespaceInfo) -> Result<(), EngineError> {
        Err(unsupported())
    }

    async fn remove_namespace(&self, _: &Namespace) -> Result<(), EngineError> {
        Err(unsupported())
    }

    async fn shutdown(&self) {}
}
