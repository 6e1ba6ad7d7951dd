//! The engine itself: the port's calls, handed to the tasks that carry them out.

mod opening;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use prometheus_client::registry::Registry;
use tokio::sync::{oneshot, watch};
use updraft_engine::{
    Capabilities, EndpointTable, Engine, EngineError, EngineInfo, EngineStatus, Expect,
    FunctionStatus, LogLine, LogQuery, NamespaceInfo, PutSecret, ReplicaStatus, Revision,
    SecretChange, SecretContent, SecretInfo, SecretItems, Usage, Wake,
};
use updraft_model::{Digest, FunctionId, FunctionSpec, Namespace, SecretName};

use crate::controller::{
    self, Command, FunctionHandle, FunctionState, MemberView, Publish, Wish, verdict,
};
use crate::logs;
use crate::metrics;
use crate::namespaces::Namespaces;
use crate::replica::Failure;
use crate::shared::Shared;

/// How long a stop waits for starts that are under way.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// The local engine. See the crate's description.
#[derive(Debug)]
pub struct LocalEngine {
    shared: Arc<Shared>,
    namespaces: Namespaces,
    functions: Arc<Mutex<HashMap<FunctionId, FunctionHandle>>>,
    table: Arc<watch::Sender<EndpointTable>>,
    report: EngineReport,
    /// Held while the engine is open: two engines on one state would fight. Shutdown lets go of
    /// it, so that whoever clears away after it need not wait for the last user of the engine.
    state_lock: Mutex<Option<File>>,
}

/// What the engine found on this machine, for `updraft doctor` and the start's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineReport {
    /// The runtime in use, in its own words, for instance `crun version 1.8.1`.
    pub runtime: String,
    /// How control groups are mounted: `v1`, `v2` or `hybrid`.
    pub cgroups: String,
    /// The replicas' addresses, for instance `10.66.160.0/20`.
    pub subnet: String,
    /// How many replicas of an earlier run were adopted.
    pub adopted: usize,
    /// What does not work as well as it could, and why. Empty when all is well.
    pub degraded: Vec<String>,
}

impl LocalEngine {
    /// Adds the engine's own numbers to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        metrics::register(registry, &self.shared, &self.functions);
    }

    /// The host's address among its replicas: the one address of it that they may reach, on
    /// [`LocalEngineOptions::gateway_port`].
    pub fn gateway_address(&self) -> Ipv4Addr {
        self.shared.network.subnet().gateway()
    }

    /// What was found on this machine.
    pub fn report(&self) -> &EngineReport {
        &self.report
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionId, FunctionHandle>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self) -> Publish {
        let table = Arc::clone(&self.table);
        Arc::new(move |id, endpoints| {
            table.send_modify(|table| {
                let mut next = HashMap::clone(table);
                match endpoints {
                    Some(endpoints) => next.insert(id.clone(), endpoints),
                    None => next.remove(id),
                };
                *table = Arc::new(next);
            });
        })
    }

    fn handle(&self, id: &FunctionId) -> Option<FunctionHandle> {
        self.lock().get(id).cloned()
    }

    /// The function's handle; its task is started when there is none.
    fn handle_or_new(&self, id: &FunctionId) -> FunctionHandle {
        let mut functions = self.lock();
        if let Some(handle) = functions.get(id)
            && !handle.commands.is_closed()
        {
            return handle.clone();
        }
        let (none, publish) = (Vec::new(), self.publish());
        let handle = controller::spawn(&self.shared, id.clone(), None, none, &[], publish);
        functions.insert(id.clone(), handle.clone());
        handle
    }

    /// The function's state, unless there is none of that name.
    fn state(&self, id: &FunctionId) -> Option<FunctionState> {
        let states = self.handle(id)?.state;
        let state = states.borrow();
        state.clone()
    }

    /// Hands a command to an existing function.
    async fn ask<Answer>(
        &self,
        id: &FunctionId,
        command: impl FnOnce(oneshot::Sender<Result<Answer, EngineError>>) -> Command,
    ) -> Result<Answer, EngineError> {
        let unknown = || EngineError::UnknownFunction(id.clone());
        let handle = self.handle(id).ok_or_else(unknown)?;
        let (reply, answer) = oneshot::channel();
        handle.commands.send(Box::new(command(reply))).await.map_err(|_| unknown())?;
        answer.await.map_err(|_| unknown())?
    }

    fn check_secret(&self, namespace: &Namespace, name: &SecretName) -> Result<(), EngineError> {
        if self.shared.secrets.info(namespace, name).is_some() {
            return Ok(());
        }
        Err(EngineError::UnknownSecret { namespace: namespace.clone(), name: name.clone() })
    }
}

#[async_trait]
impl Engine for LocalEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities { freeze: self.shared.can_freeze, scale_to_zero: true, survives_restart: true }
    }

    fn info(&self) -> EngineInfo {
        EngineInfo {
            provider: "updraft-local".to_owned(),
            orchestration: "containers".to_owned(),
            version: self.shared.options.version.clone(),
        }
    }

    fn status(&self) -> EngineStatus {
        crate::findings::status(&self.shared, &self.report, &self.table.borrow())
    }

    async fn apply_if(
        &self,
        spec: FunctionSpec,
        wake: Wake,
        expect: Expect,
    ) -> Result<Revision, EngineError> {
        spec.check()?;
        let id = spec.id.clone();
        self.namespaces.check(&id.namespace)?;
        self.shared.runtime_of(&spec).await.map_err(EngineError::Invalid)?;
        let (secrets, missing) = self.shared.secrets.digests(&id.namespace, &spec.secrets);
        if !missing.is_empty() {
            return Err(EngineError::MissingSecrets { namespace: id.namespace, names: missing });
        }
        self.shared.secrets.check_files(&id.namespace, &spec.secrets, None)?;
        self.shared.secrets.pull_credentials(&spec)?;
        let image = self.shared.images.resolve(&spec.image).await.map_err(|reason| {
            EngineError::Image { image: spec.image.as_str().to_owned(), reason }
        })?;
        // A removal may overtake: then the function is new again.
        loop {
            if matches!(expect, Expect::Unchanged { .. }) && self.handle(&id).is_none() {
                return Err(EngineError::Superseded(id));
            }
            let handle = self.handle_or_new(&id);
            let (reply, answer) = oneshot::channel();
            let wish = Wish { spec: spec.clone(), wake, image, secrets: secrets.clone() };
            let command = Box::new(Command::Apply { wish: Box::new(wish), expect, reply });
            if handle.commands.send(command).await.is_ok()
                && let Ok(answer) = answer.await
            {
                return answer;
            }
            if self.shared.closing.is_cancelled() {
                let closed = io::Error::other("Updraft is about to stop");
                return Err(EngineError::engine(format!("apply function `{id}`"), closed));
            }
        }
    }

    async fn wait_ready(
        &self,
        id: &FunctionId,
        revision: Revision,
        limit: Duration,
    ) -> Result<(), EngineError> {
        let unknown = || EngineError::UnknownFunction(id.clone());
        let mut states = self.handle(id).ok_or_else(unknown)?.state;
        let decided = async {
            loop {
                let verdict = {
                    let state = states.borrow_and_update();
                    verdict(id, state.as_ref(), revision)
                };
                match verdict {
                    Some(verdict) => return verdict,
                    None => states.changed().await.map_err(|_| unknown())?,
                }
            }
        };
        if let Ok(verdict) = tokio::time::timeout(limit, decided).await {
            return verdict;
        }
        let limit = updraft_model::format_duration(limit);
        let failure = self.state(id).and_then(|state| state.last_failure);
        let failure = failure.unwrap_or_else(|| {
            Failure::new(format!("it is still starting after {limit}"), Vec::new())
        });
        let Failure { reason, log_tail, .. } = failure;
        Err(EngineError::NotReady { id: id.clone(), reason, log_tail })
    }

    async fn remove(&self, id: &FunctionId) -> Result<(), EngineError> {
        self.ask(id, |reply| Command::Remove { reply }).await?;
        let mut functions = self.lock();
        // Unless a newer function of that name has taken the place already.
        if functions.get(id).is_some_and(|handle| handle.commands.is_closed()) {
            functions.remove(id);
        }
        Ok(())
    }

    async fn list(&self, namespace: &Namespace) -> Result<Vec<FunctionStatus>, EngineError> {
        self.namespaces.check(namespace)?;
        let mut all: Vec<_> = self
            .lock()
            .iter()
            .filter(|(id, _)| id.namespace == *namespace)
            .filter_map(|(_, handle)| Some(Arc::clone(&handle.state.borrow().as_ref()?.shown)))
            .collect();
        all.sort_by(|a, b| a.spec.id.name.cmp(&b.spec.id.name));
        Ok(all.iter().map(|shown| shown.status()).collect())
    }

    async fn get(&self, id: &FunctionId) -> Result<Option<FunctionStatus>, EngineError> {
        Ok(self.state(id).map(|state| state.shown.status()))
    }

    async fn scale(&self, id: &FunctionId, replicas: u32) -> Result<(), EngineError> {
        self.ask(id, |reply| Command::Scale { replicas, reply }).await
    }

    async fn wake(&self, id: &FunctionId) -> Result<(), EngineError> {
        self.ask(id, |reply| Command::Wake { reply }).await
    }

    async fn freeze(&self, id: &FunctionId) -> Result<bool, EngineError> {
        self.ask(id, |reply| Command::Freeze { reply }).await
    }

    async fn replicas(&self, id: &FunctionId) -> Result<Vec<ReplicaStatus>, EngineError> {
        let state = self.state(id).ok_or_else(|| EngineError::UnknownFunction(id.clone()))?;
        let shown = |member: &MemberView| {
            let group = self.shared.groups.of(member.id.as_str());
            let usage = if self.shared.can_measure {
                self.shared.runtime.cgroups.usage(&group)
            } else {
                None
            };
            ReplicaStatus {
                id: member.id.clone(),
                revision: member.revision,
                state: member.state,
                address: member.address,
                started_at: member.started_at,
                in_flight: member.load.in_flight(),
                usage: usage.map(|usage| Usage {
                    cpu_seconds: usage.cpu_seconds,
                    memory_bytes: usage.memory_bytes,
                    replicas: 1,
                }),
            }
        };
        let mut all: Vec<_> = state.members.iter().map(shown).collect();
        all.sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
        Ok(all)
    }

    async fn usage(&self, id: &FunctionId) -> Result<Option<Usage>, EngineError> {
        if self.state(id).is_none() {
            return Err(EngineError::UnknownFunction(id.clone()));
        }
        Ok(self.shared.usage(id))
    }

    async fn images_in_use(&self) -> Result<BTreeSet<Digest>, EngineError> {
        let shared = Arc::clone(&self.shared);
        let load = tokio::task::spawn_blocking(move || shared.records.load()).await;
        let doing = "read the records of functions";
        let records = load.map_err(|error| EngineError::engine(doing, error))?;
        let records = records.map_err(|error| EngineError::engine(doing, error))?;
        let revisions = records
            .into_iter()
            .flat_map(|(_, record)| [Some(record.serving), record.candidate].into_iter().flatten());
        Ok(revisions.filter_map(|revision| revision.image).collect())
    }

    fn endpoints(&self) -> watch::Receiver<EndpointTable> {
        self.table.subscribe()
    }

    async fn logs(
        &self,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, EngineError>>, EngineError> {
        if self.state(&query.id).is_none() {
            return Err(EngineError::UnknownFunction(query.id));
        }
        Ok(logs::stream(&self.shared, query))
    }

    async fn list_secrets(&self, namespace: &Namespace) -> Result<Vec<SecretInfo>, EngineError> {
        self.namespaces.check(namespace)?;
        Ok(self.shared.secrets.list(namespace))
    }

    async fn read_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<SecretItems, EngineError> {
        self.namespaces.check(namespace)?;
        self.check_secret(namespace, name)?;
        self.shared.secrets.read(namespace, name)
    }

    async fn put_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
        content: SecretContent,
        put: PutSecret,
    ) -> Result<SecretChange, EngineError> {
        self.namespaces.check(namespace)?;
        let users: Vec<_> = self
            .lock()
            .iter()
            .filter_map(|(id, handle)| {
                let state = handle.state.borrow();
                let names = &state.as_ref()?.shown.spec.secrets;
                (id.namespace == *namespace && names.contains(name))
                    .then(|| (id.clone(), names.clone()))
            })
            .collect();
        for (id, names) in users {
            let fits = self.shared.secrets.check_files(namespace, &names, Some((name, &content)));
            fits.map_err(|error| {
                EngineError::Invalid(format!("function `{}` mounts the secret: {error}", id.name))
            })?;
        }
        self.shared.secrets.put(namespace, name, &content, put)
    }

    async fn stale_secrets(&self, id: &FunctionId) -> Result<Vec<SecretName>, EngineError> {
        let state = self.state(id).ok_or_else(|| EngineError::UnknownFunction(id.clone()))?;
        let names: Vec<_> = state.secrets.keys().cloned().collect();
        let (now, _) = self.shared.secrets.digests(&id.namespace, &names);
        let is_stale = |(name, digest): &(&SecretName, &Digest)| {
            now.get(*name).is_some_and(|now| now != *digest)
        };
        Ok(state.secrets.iter().filter(is_stale).map(|(name, _)| name.clone()).collect())
    }

    async fn remove_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<(), EngineError> {
        self.namespaces.check(namespace)?;
        self.shared.secrets.remove(namespace, name)
    }

    async fn list_namespaces(&self) -> Result<Vec<NamespaceInfo>, EngineError> {
        Ok(self.namespaces.list())
    }

    async fn create_namespace(&self, namespace: NamespaceInfo) -> Result<(), EngineError> {
        self.namespaces.create(namespace)
    }

    async fn update_namespace(&self, namespace: NamespaceInfo) -> Result<(), EngineError> {
        self.namespaces.update(namespace)
    }

    async fn remove_namespace(&self, namespace: &Namespace) -> Result<(), EngineError> {
        self.namespaces.check(namespace)?;
        if *namespace == Namespace::default() {
            let reason = format!("namespace `{namespace}` is the default one and stays");
            return Err(EngineError::Invalid(reason));
        }
        // First the namespace, so that nothing new comes into it.
        self.namespaces.remove(namespace)?;
        let inside: Vec<_> =
            self.lock().keys().filter(|id| id.namespace == *namespace).cloned().collect();
        for removed in join_all(inside.iter().map(|id| self.remove(id))).await {
            match removed {
                Err(EngineError::UnknownFunction(_)) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        self.shared.secrets.remove_namespace(namespace).map_err(|error| {
            EngineError::engine(format!("remove the secrets of namespace `{namespace}`"), error)
        })
    }

    async fn shutdown(&self) {
        self.shared.closing.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(SHUTDOWN_LIMIT, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("a container is still being started; the next start clears it away");
        }
        drop(self.state_lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for LocalEngine {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}
