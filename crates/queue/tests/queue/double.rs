//! An engine that runs nothing: its table is what the test writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use updraft_engine::{
    Availability, Capabilities, Endpoint, EndpointTable, Engine, EngineError, EngineInfo, Expect,
    FunctionEndpoints, FunctionStatus, LogLine, LogQuery, NamespaceInfo, PutSecret, Revision,
    SecretChange, SecretContent, SecretInfo, SecretItems, SecretValue, Version, Wake,
};
use updraft_model::{FunctionId, FunctionSpec, Namespace, SecretName};

#[derive(Debug)]
pub(crate) struct Double {
    table: watch::Sender<EndpointTable>,
    /// What becomes ready when a function is woken.
    woken: std::sync::Mutex<HashMap<FunctionId, Vec<Arc<Endpoint>>>>,
    secrets: std::sync::Mutex<HashMap<SecretName, String>>,
}

impl Double {
    pub(crate) fn new() -> Arc<Self> {
        let table = watch::Sender::new(Arc::new(HashMap::new()));
        Arc::new(Self {
            table,
            woken: std::sync::Mutex::default(),
            secrets: std::sync::Mutex::default(),
        })
    }

    pub(crate) fn put(&self, spec: FunctionSpec, ready: Vec<Arc<Endpoint>>) {
        self.change(|table| {
            let availability =
                if ready.is_empty() { Availability::Asleep } else { Availability::Ready };
            let id = spec.id.clone();
            let endpoints =
                FunctionEndpoints { spec: Arc::new(spec), ready, availability, resting: None };
            table.insert(id, Arc::new(endpoints));
        });
    }

    /// Puts a secret, or another text into it.
    pub(crate) fn put_secret_text(&self, name: &str, text: &str) {
        self.secrets.lock().unwrap().insert(SecretName::new(name).unwrap(), text.to_owned());
    }

    /// Puts a function that sleeps, and has these replicas when it is woken.
    pub(crate) fn put_asleep(&self, spec: FunctionSpec, woken: Vec<Arc<Endpoint>>) {
        self.woken.lock().unwrap().insert(spec.id.clone(), woken);
        self.put(spec, Vec::new());
    }

    pub(crate) fn take_away(&self, id: &FunctionId) {
        self.change(|table| drop(table.remove(id)));
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<FunctionId, Arc<FunctionEndpoints>>)) {
        self.table.send_modify(|table| {
            let mut next = HashMap::clone(table);
            change(&mut next);
            *table = Arc::new(next);
        });
    }
}

fn absent<T>() -> Result<T, EngineError> {
    Err(EngineError::Invalid("this engine runs nothing".to_owned()))
}

#[async_trait]
impl Engine for Double {
    fn capabilities(&self) -> Capabilities {
        Capabilities { freeze: false, scale_to_zero: true, survives_restart: false }
    }
    fn info(&self) -> EngineInfo {
        let version = Version { release: "0".into(), sha: "0".into() };
        EngineInfo { provider: "double".into(), orchestration: "containers".into(), version }
    }
    async fn apply_if(&self, _: FunctionSpec, _: Wake, _: Expect) -> Result<Revision, EngineError> {
        absent()
    }
    async fn wait_ready(
        &self,
        _: &FunctionId,
        _: Revision,
        _: Duration,
    ) -> Result<(), EngineError> {
        absent()
    }
    async fn remove(&self, _: &FunctionId) -> Result<(), EngineError> {
        absent()
    }
    async fn list(&self, _: &Namespace) -> Result<Vec<FunctionStatus>, EngineError> {
        absent()
    }
    async fn get(&self, _: &FunctionId) -> Result<Option<FunctionStatus>, EngineError> {
        absent()
    }
    async fn wake(&self, id: &FunctionId) -> Result<(), EngineError> {
        let woken = self.woken.lock().unwrap().remove(id);
        let spec = self.table.borrow().get(id).map(|function| FunctionSpec::clone(&function.spec));
        if let (Some(woken), Some(spec)) = (woken, spec) {
            self.put(spec, woken);
        }
        Ok(())
    }
    async fn scale(&self, _: &FunctionId, _: u32) -> Result<(), EngineError> {
        absent()
    }
    fn endpoints(&self) -> watch::Receiver<EndpointTable> {
        self.table.subscribe()
    }
    async fn logs(
        &self,
        _: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, EngineError>>, EngineError> {
        absent()
    }
    async fn list_secrets(&self, _: &Namespace) -> Result<Vec<SecretInfo>, EngineError> {
        absent()
    }
    async fn read_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<SecretItems, EngineError> {
        let (namespace, name) = (namespace.clone(), name.clone());
        match self.secrets.lock().unwrap().get(&name) {
            Some(text) => Ok(SecretItems::single(&name, SecretValue::new(text.as_bytes()))),
            None => Err(EngineError::UnknownSecret { namespace, name }),
        }
    }
    async fn put_secret(
        &self,
        _: &Namespace,
        _: &SecretName,
        _: SecretContent,
        _: PutSecret,
    ) -> Result<SecretChange, EngineError> {
        absent()
    }
    async fn remove_secret(&self, _: &Namespace, _: &SecretName) -> Result<(), EngineError> {
        absent()
    }
    async fn list_namespaces(&self) -> Result<Vec<NamespaceInfo>, EngineError> {
        absent()
    }
    async fn create_namespace(&self, _: NamespaceInfo) -> Result<(), EngineError> {
        absent()
    }
    async fn update_namespace(&self, _: NamespaceInfo) -> Result<(), EngineError> {
        absent()
    }
    async fn remove_namespace(&self, _: &Namespace) -> Result<(), EngineError> {
        absent()
    }
    async fn shutdown(&self) {}
}
