//! An engine whose functions are as a test says, and that counts what it is asked.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;
use tokio::sync::watch;
use updraft_engine::{
    Availability, Capabilities, EndpointTable, Engine, EngineError, EngineInfo, FunctionEndpoints,
    FunctionStatus, LogLine, LogQuery, NamespaceInfo, PutSecret, Revision, SecretChange,
    SecretContent, SecretInfo, SecretItems, Version, Wake,
};
use updraft_model::{FunctionId, FunctionSpec, Namespace, SecretName};

/// Functions, and what was done to them.
#[derive(Debug)]
pub(crate) struct StillEngine {
    table: watch::Sender<EndpointTable>,
    replicas: Mutex<HashMap<FunctionId, u32>>,
    /// Every number of replicas that was set, in order.
    pub(crate) scaled: Mutex<Vec<(String, u32)>>,
    /// How often anything but the table was asked for.
    pub(crate) asked: AtomicUsize,
    /// How often a function was to be frozen; none ever is.
    pub(crate) freezes: AtomicUsize,
    /// What it says of itself; functions whose name begins with `broken` cannot be scaled.
    pub(crate) can_freeze: bool,
}

impl StillEngine {
    pub(crate) fn new(can_freeze: bool) -> Arc<Self> {
        Arc::new(Self {
            table: watch::channel(EndpointTable::default()).0,
            replicas: Mutex::default(),
            scaled: Mutex::default(),
            asked: AtomicUsize::new(0),
            freezes: AtomicUsize::new(0),
            can_freeze,
        })
    }

    /// Makes functions of these names and labels appear.
    pub(crate) fn publish(
        &self,
        names: impl Iterator<Item = String>,
        labels: &[(&str, &str)],
        availability: &Availability,
    ) {
        let mut table = HashMap::clone(&self.table.borrow());
        for name in names {
            let id = FunctionId::in_default(name.parse().unwrap());
            let mut spec = FunctionSpec::new(id.clone(), "localhost/f:1".parse().unwrap());
            let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            spec.labels = labels.iter().map(own).collect::<BTreeMap<_, _>>();
            let replicas = u32::from(*availability != Availability::Asleep);
            self.replicas.lock().unwrap().insert(id.clone(), replicas);
            let (spec, availability) = (Arc::new(spec), availability.clone());
            let endpoints =
                FunctionEndpoints { spec, ready: Vec::new(), availability, resting: None };
            table.insert(id, Arc::new(endpoints));
        }
        self.table.send_replace(Arc::new(table));
    }

    pub(crate) fn remove_all(&self) {
        self.replicas.lock().unwrap().clear();
        self.table.send_replace(Arc::default());
    }

    fn none<T>() -> Result<T, EngineError> {
        Err(EngineError::Invalid("nothing is kept here".to_owned()))
    }
}

#[async_trait]
impl Engine for StillEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities { freeze: self.can_freeze, scale_to_zero: true, survives_restart: false }
    }

    fn info(&self) -> EngineInfo {
        EngineInfo {
            provider: "still".to_owned(),
            orchestration: "none".to_owned(),
            version: Version { release: "1".to_owned(), sha: "0".to_owned() },
        }
    }

    async fn apply_if(
        &self,
        _spec: FunctionSpec,
        _wake: Wake,
        _expect: updraft_engine::Expect,
    ) -> Result<Revision, EngineError> {
        Self::none()
    }

    async fn wait_ready(
        &self,
        _id: &FunctionId,
        _revision: Revision,
        _limit: Duration,
    ) -> Result<(), EngineError> {
        Self::none()
    }

    async fn remove(&self, _id: &FunctionId) -> Result<(), EngineError> {
        Self::none()
    }

    async fn list(&self, _namespace: &Namespace) -> Result<Vec<FunctionStatus>, EngineError> {
        Ok(Vec::new())
    }

    async fn get(&self, id: &FunctionId) -> Result<Option<FunctionStatus>, EngineError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let Some(replicas) = self.replicas.lock().unwrap().get(id).copied() else {
            return Ok(None);
        };
        let spec = self.table.borrow()[id].spec.as_ref().clone();
        Ok(Some(FunctionStatus {
            spec,
            revision: Revision(1),
            replicas,
            available_replicas: replicas,
            created_at: Timestamp::UNIX_EPOCH,
            message: None,
            restarts: 0,
            last_exit: None,
            trouble: None,
        }))
    }

    async fn scale(&self, id: &FunctionId, replicas: u32) -> Result<(), EngineError> {
        if id.name.as_str().starts_with("broken") {
            return Err(EngineError::engine("start a replica", "the disk is full"));
        }
        self.replicas.lock().unwrap().insert(id.clone(), replicas);
        self.scaled.lock().unwrap().push((id.name.to_string(), replicas));
        Ok(())
    }

    async fn freeze(&self, _id: &FunctionId) -> Result<bool, EngineError> {
        self.freezes.fetch_add(1, Ordering::Relaxed);
        Ok(false)
    }

    fn endpoints(&self) -> watch::Receiver<EndpointTable> {
        self.table.subscribe()
    }

    async fn logs(
        &self,
        _query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, EngineError>>, EngineError> {
        Ok(stream::empty().boxed())
    }

    async fn list_secrets(&self, _namespace: &Namespace) -> Result<Vec<SecretInfo>, EngineError> {
        Ok(Vec::new())
    }

    async fn read_secret(
        &self,
        _namespace: &Namespace,
        _name: &SecretName,
    ) -> Result<SecretItems, EngineError> {
        Self::none()
    }

    async fn put_secret(
        &self,
        _namespace: &Namespace,
        _name: &SecretName,
        _content: SecretContent,
        _put: PutSecret,
    ) -> Result<SecretChange, EngineError> {
        Self::none()
    }

    async fn remove_secret(
        &self,
        _namespace: &Namespace,
        _name: &SecretName,
    ) -> Result<(), EngineError> {
        Self::none()
    }

    async fn list_namespaces(&self) -> Result<Vec<NamespaceInfo>, EngineError> {
        Ok(Vec::new())
    }

    async fn create_namespace(&self, _namespace: NamespaceInfo) -> Result<(), EngineError> {
        Self::none()
    }

    async fn update_namespace(&self, _namespace: NamespaceInfo) -> Result<(), EngineError> {
        Self::none()
    }

    async fn remove_namespace(&self, _namespace: &Namespace) -> Result<(), EngineError> {
        Self::none()
    }

    async fn shutdown(&self) {}
}
