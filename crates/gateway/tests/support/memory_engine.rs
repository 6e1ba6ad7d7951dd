//! An engine that remembers and runs nothing: for tests of what stands before an engine.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::BroadcastStream;
use updraft_engine::{
    Availability, Capabilities, EndpointTable, Engine, EngineError, EngineInfo, Expect,
    FunctionEndpoints, FunctionStatus, LogLine, LogQuery, NamespaceInfo, PutSecret, ReplicaId,
    Revision, SecretChange, SecretContent, SecretInfo, SecretItems, Usage, Version, Wake,
};
use updraft_model::{Digest, FunctionId, FunctionSpec, Namespace, SecretName, labels};

#[derive(Debug)]
struct State {
    functions: BTreeMap<FunctionId, FunctionStatus>,
    namespaces: BTreeMap<Namespace, NamespaceInfo>,
    secrets: BTreeMap<(Namespace, SecretName), (SecretInfo, SecretContent)>,
    lines: HashMap<FunctionId, Vec<LogLine>>,
}

/// Remembers what it is asked for.
#[derive(Debug)]
pub(crate) struct MemoryEngine {
    state: Mutex<State>,
    written: broadcast::Sender<(FunctionId, LogLine)>,
    broken: AtomicBool,
    /// What somebody else deploys just before the next one deploys.
    overtaking: Mutex<Option<FunctionSpec>>,
    readings: AtomicU64,
    /// Log streams that nobody has dropped yet.
    pub(crate) open_logs: Arc<AtomicUsize>,
    table: watch::Sender<EndpointTable>,
}

struct OpenLog(Arc<AtomicUsize>);

impl Drop for OpenLog {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
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

impl MemoryEngine {
    pub(crate) fn new() -> Arc<Self> {
        let default = NamespaceInfo {
            name: Namespace::default(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        };
        Arc::new(Self {
            state: Mutex::new(State {
                functions: BTreeMap::new(),
                namespaces: BTreeMap::from([(default.name.clone(), default)]),
                secrets: BTreeMap::new(),
                lines: HashMap::new(),
            }),
            written: broadcast::channel(100).0,
            broken: AtomicBool::new(false),
            overtaking: Mutex::new(None),
            readings: AtomicU64::new(0),
            open_logs: Arc::default(),
            table: watch::channel(EndpointTable::default()).0,
        })
    }

    /// From now on every call fails as if the machine had.
    pub(crate) fn break_down(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }

    /// Somebody else deploys this when the next deployment is on its way.
    #[allow(dead_code, reason = "not all who share this file deploy")]
    pub(crate) fn overtake(&self, spec: FunctionSpec) {
        *self.overtaking.lock().unwrap() = Some(spec);
    }

    /// A replica of the function writes a line.
    pub(crate) fn write_line(&self, id: &FunctionId, instance: &str, timestamp: &str, text: &str) {
        let line = LogLine {
            instance: ReplicaId::new(instance),
            timestamp: timestamp.parse().unwrap(),
            text: text.to_owned(),
        };
        self.state.lock().unwrap().lines.entry(id.clone()).or_default().push(line.clone());
        drop(self.written.send((id.clone(), line)));
    }

    /// A secret's bytes.
    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<Vec<u8>> {
        let key = (namespace.parse().unwrap(), name.parse().unwrap());
        let state = self.state.lock().unwrap();
        let (_, content) = state.secrets.get(&key)?;
        content.items.value(&key.1).map(|value| value.expose().to_vec())
    }

    /// Tells the data plane which functions there are; none of them ever becomes ready.
    fn publish(&self, state: &State) {
        let entry = |status: &FunctionStatus| FunctionEndpoints {
            spec: Arc::new(status.spec.clone()),
            ready: Vec::new(),
            availability: match status.replicas {
                0 => Availability::Asleep,
                _ => Availability::Starting,
            },
            resting: None,
        };
        let table = state.functions.values().map(|s| (s.spec.id.clone(), Arc::new(entry(s))));
        self.table.send_replace(Arc::new(table.collect()));
    }

    fn state(&self) -> Result<MutexGuard<'_, State>, EngineError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(EngineError::engine("do anything", "the disk at /dev/secret is on fire"));
        }
        Ok(self.state.lock().unwrap())
    }

    fn state_with(&self, namespace: &Namespace) -> Result<MutexGuard<'_, State>, EngineError> {
        let state = self.state()?;
        if state.namespaces.contains_key(namespace) {
            Ok(state)
        } else {
            Err(EngineError::UnknownNamespace(namespace.clone()))
        }
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities { freeze: false, scale_to_zero: true, survives_restart: false }
    }

    fn info(&self) -> EngineInfo {
        EngineInfo {
            provider: "memory".to_owned(),
            orchestration: "containers".to_owned(),
            version: Version { release: "1.2.3".to_owned(), sha: "abc".to_owned() },
        }
    }

    async fn apply_if(
        &self,
        mut spec: FunctionSpec,
        wake: Wake,
        expect: Expect,
    ) -> Result<Revision, EngineError> {
        spec.check()?;
        let overtaking = self.overtaking.lock().unwrap().take();
        if let Some(other) = overtaking {
            self.apply(other, Wake::Keep).await?;
        }
        let mut state = self.state_with(&spec.id.namespace)?;
        let there = state.functions.get(&spec.id).map(|there| (there.created_at, there.revision));
        if !expect.is_met(there) {
            return Err(EngineError::Superseded(spec.id));
        }
        let missing = |name: &&SecretName| {
            !state.secrets.contains_key(&(spec.id.namespace.clone(), (*name).clone()))
        };
        let names: Vec<_> = spec.secrets.iter().filter(missing).cloned().collect();
        if !names.is_empty() {
            return Err(EngineError::MissingSecrets { namespace: spec.id.namespace, names });
        }
        spec.labels.insert(labels::FUNCTION.to_owned(), spec.id.name.to_string());
        let minimum = spec.scale_min();
        let (revision, replicas, created_at) = match state.functions.get(&spec.id) {
            None => (1, minimum, "2026-01-02T03:04:05Z".parse::<Timestamp>().unwrap()),
            Some(old) => {
                let replicas = match (old.replicas, wake) {
                    (0, Wake::Keep) => 0,
                    (now, _) => now.max(minimum),
                };
                (old.revision.0 + 1, replicas, old.created_at)
            }
        };
        let status = FunctionStatus {
            revision: Revision(revision),
            replicas,
            available_replicas: replicas,
            created_at,
            message: None,
            restarts: 0,
            last_exit: None,
            trouble: None,
            spec,
        };
        state.functions.insert(status.spec.id.clone(), status);
        self.publish(&state);
        Ok(Revision(revision))
    }

    async fn wait_ready(
        &self,
        id: &FunctionId,
        _revision: Revision,
        _limit: Duration,
    ) -> Result<(), EngineError> {
        let known = self.state()?.functions.contains_key(id);
        known.then_some(()).ok_or_else(|| EngineError::UnknownFunction(id.clone()))
    }

    async fn remove(&self, id: &FunctionId) -> Result<(), EngineError> {
        let mut state = self.state_with(&id.namespace)?;
        let removed = state.functions.remove(id);
        self.publish(&state);
        removed.map(drop).ok_or_else(|| EngineError::UnknownFunction(id.clone()))
    }

    async fn list(&self, namespace: &Namespace) -> Result<Vec<FunctionStatus>, EngineError> {
        let state = self.state_with(namespace)?;
        let here = |status: &&FunctionStatus| status.spec.id.namespace == *namespace;
        Ok(state.functions.values().filter(here).cloned().collect())
    }

    async fn get(&self, id: &FunctionId) -> Result<Option<FunctionStatus>, EngineError> {
        Ok(self.state()?.functions.get(id).cloned())
    }

    async fn scale(&self, id: &FunctionId, replicas: u32) -> Result<(), EngineError> {
        let mut state = self.state_with(&id.namespace)?;
        let status =
            state.functions.get_mut(id).ok_or_else(|| EngineError::UnknownFunction(id.clone()))?;
        status.replicas = replicas;
        status.available_replicas = replicas;
        Ok(())
    }

    /// Half a second of one processor more at each reading; nothing of functions named `dark…`.
    async fn usage(&self, id: &FunctionId) -> Result<Option<Usage>, EngineError> {
        let state = self.state()?;
        let unknown = || EngineError::UnknownFunction(id.clone());
        let replicas = state.functions.get(id).ok_or_else(unknown)?.available_replicas;
        let reading = self.readings.fetch_add(1, Ordering::SeqCst);
        let usage = Usage { cpu_seconds: reading as f64 / 2.0, memory_bytes: 4096, replicas };
        Ok(Some(usage).filter(|_| !id.name.as_str().starts_with("dark")))
    }

    fn endpoints(&self) -> watch::Receiver<EndpointTable> {
        self.table.subscribe()
    }

    async fn logs(
        &self,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, EngineError>>, EngineError> {
        let state = self.state_with(&query.id.namespace)?;
        if !state.functions.contains_key(&query.id) {
            return Err(EngineError::UnknownFunction(query.id));
        }
        let fits = {
            let query = query.clone();
            move |line: &LogLine| {
                query.instance.as_ref().is_none_or(|instance| *instance == line.instance)
                    && query.since.is_none_or(|since| line.timestamp >= since)
            }
        };
        let written = self.written.subscribe();
        let mut lines: Vec<_> =
            state.lines.get(&query.id).into_iter().flatten().filter(|l| fits(l)).cloned().collect();
        drop(state);
        if let Some(tail) = query.tail {
            lines.drain(..lines.len().saturating_sub(tail));
        }
        self.open_logs.fetch_add(1, Ordering::SeqCst);
        let open = OpenLog(Arc::clone(&self.open_logs));
        let old = stream::iter(lines);
        let follow = query.follow;
        let new = BroadcastStream::new(written).filter_map(move |item| {
            let line = item.ok().filter(|(id, line)| *id == query.id && fits(line));
            std::future::ready(line.map(|(_, line)| line))
        });
        let all = if follow { old.chain(new).boxed() } else { old.boxed() };
        Ok(all
            .map(move |line| {
                let _held = &open;
                Ok(line)
            })
            .boxed())
    }

    async fn list_secrets(&self, namespace: &Namespace) -> Result<Vec<SecretInfo>, EngineError> {
        let state = self.state_with(namespace)?;
        let here = state.secrets.iter().filter(|((place, _), _)| place == namespace);
        Ok(here.map(|(_, (info, _))| info.clone()).collect())
    }

    async fn read_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<SecretItems, EngineError> {
        let state = self.state_with(namespace)?;
        let key = (namespace.clone(), name.clone());
        let held = state.secrets.get(&key).map(|(_, content)| content.items.clone());
        held.ok_or(EngineError::UnknownSecret { namespace: key.0, name: key.1 })
    }

    async fn put_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
        content: SecretContent,
        put: PutSecret,
    ) -> Result<SecretChange, EngineError> {
        content.check(name)?;
        let mut state = self.state_with(namespace)?;
        let key = (namespace.clone(), name.clone());
        let before = state.secrets.get(&key).map(|(info, _)| info);
        match (put, before) {
            (PutSecret::New, Some(_)) => {
                return Err(EngineError::SecretExists { namespace: key.0, name: key.1 });
            }
            (PutSecret::Existing, None) => {
                return Err(EngineError::UnknownSecret { namespace: key.0, name: key.1 });
            }
            _ => {}
        }
        let info = SecretInfo::of(name, &content, before, Timestamp::now(), mac);
        let change = info.change(before);
        state.secrets.insert(key, (info, content));
        Ok(change)
    }

    async fn remove_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<(), EngineError> {
        let removed =
            self.state_with(namespace)?.secrets.remove(&(namespace.clone(), name.clone()));
        removed.map(drop).ok_or_else(|| EngineError::UnknownSecret {
            namespace: namespace.clone(),
            name: name.clone(),
        })
    }

    async fn list_namespaces(&self) -> Result<Vec<NamespaceInfo>, EngineError> {
        let state = self.state()?;
        let mut all: Vec<_> = state.namespaces.values().cloned().collect();
        all.sort_by_key(|info| info.name != Namespace::default());
        Ok(all)
    }

    async fn create_namespace(&self, namespace: NamespaceInfo) -> Result<(), EngineError> {
        let mut state = self.state()?;
        if state.namespaces.contains_key(&namespace.name) {
            return Err(EngineError::NamespaceExists(namespace.name));
        }
        state.namespaces.insert(namespace.name.clone(), namespace);
        Ok(())
    }

    async fn update_namespace(&self, namespace: NamespaceInfo) -> Result<(), EngineError> {
        let mut state = self.state_with(&namespace.name)?;
        state.namespaces.insert(namespace.name.clone(), namespace);
        Ok(())
    }

    async fn remove_namespace(&self, namespace: &Namespace) -> Result<(), EngineError> {
        let mut state = self.state_with(namespace)?;
        if *namespace == Namespace::default() {
            return Err(EngineError::Invalid("the default namespace stays".to_owned()));
        }
        state.namespaces.remove(namespace);
        state.functions.retain(|id, _| id.namespace != *namespace);
        self.publish(&state);
        Ok(())
    }

    async fn shutdown(&self) {}
}
