//! The engine port: what Updraft asks of whatever runs replicas, and nothing more.
//!
//! An [`Engine`] is the only truth about what runs. The pipeline and the gateway hand it
//! [`FunctionSpec`]s; the data plane follows its [`EndpointTable`] and takes a [`Lease`] on a
//! replica for the length of a request, so that an engine knows when a replica is idle and may
//! go. This crate holds the port, its words and (feature `conformance`) the suite that every
//! engine must pass. It runs nothing itself and knows no engine.

#[cfg(feature = "conformance")]
pub mod conformance;
mod endpoint;
mod error;
mod log_query;
mod secret;
mod status;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::watch;
use updraft_model::{Digest, FunctionId, FunctionSpec, Namespace, SecretName};

pub use endpoint::{
    Availability, Endpoint, EndpointTable, FunctionEndpoints, Lease, ReplicaId, ReplicaLoad,
    Resting, Thaw,
};
pub use error::{EngineError, Fault};
pub use log_query::{LogQuery, parse_bool};
pub use secret::{
    ItemInfo, PutSecret, SECRET_BYTES_MAX, SECRET_ITEMS_MAX, SecretChange, SecretContent,
    SecretInfo, SecretItems, SecretOrigin, SecretValue,
};
pub use status::{
    Capabilities, EngineInfo, EngineStatus, Fact, FunctionStatus, LogLine, NamespaceInfo,
    ReplicaExit, ReplicaState, ReplicaStatus, Revision, Trouble, Usage, Version,
};

/// What to do with the replicas when a spec is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// What an OpenFaaS client expects of an update. The number that is desired now stays (a
    /// sleeping function stays asleep) unless it is below the minimum; a new function starts with
    /// its minimum. Replicas are replaced even when the spec is the one that runs: this is how
    /// people make a function start afresh.
    Keep,
    /// What a release is applied with. At least the minimum runs, so that
    /// [`Engine::wait_ready`] proves that the spec works; the spec that is there already is no
    /// change, so that whoever deploys it can be interrupted and begin again.
    AtLeastMinimum,
}

/// What a caller has seen of a function and wants to find unchanged: between a look and an
/// [`Engine::apply_if`] another caller may have deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Whatever is there may be replaced.
    Anything,
    /// No function of that name.
    Nothing,
    /// The function of that age, at that revision.
    Unchanged {
        /// [`FunctionStatus::created_at`]: revisions begin anew after a removal.
        created_at: Timestamp,
        /// [`FunctionStatus::revision`].
        revision: Revision,
    },
}

impl Expect {
    /// What [`Engine::get`] answered.
    pub fn as_seen(status: Option<&FunctionStatus>) -> Self {
        status.map_or(Self::Nothing, |status| Self::Unchanged {
            created_at: status.created_at,
            revision: status.revision,
        })
    }

    /// Whether that is what is there: age and revision of the function, if there is one.
    pub fn is_met(self, there: Option<(Timestamp, Revision)>) -> bool {
        match self {
            Self::Anything => true,
            Self::Nothing => there.is_none(),
            Self::Unchanged { created_at, revision } => there == Some((created_at, revision)),
        }
    }
}

/// What runs replicas. Every call is idempotent and may be repeated after a crash; every error
/// says whose fault it is and whether to try again.
///
/// An engine acts as it is asked: whether the caller may ask is settled before.
#[async_trait]
pub trait Engine: Send + Sync + std::fmt::Debug + 'static {
    /// What this engine can do beyond the port, and what it lacks.
    fn capabilities(&self) -> Capabilities;

    /// Name, orchestration and version, for `/system/info` and `updraft doctor`.
    fn info(&self) -> EngineInfo;

    /// What the engine found below it and what is degraded, for `updraft engine status`.
    fn status(&self) -> EngineStatus {
        let EngineInfo { provider, orchestration, version } = self.info();
        let found = format!("{provider} {} ({orchestration})", version.release);
        EngineStatus { facts: vec![Fact::good("engine", found)] }
    }

    /// Makes `spec` the desired state of its function: creates it, or replaces what runs by
    /// rolling. Returns as soon as the desire is recorded durably; the rest happens behind.
    ///
    /// While the new revision is not ready the old one serves every request, and when the new
    /// one does not become ready in time the old one stays and the new one is given up. A first
    /// deployment that is not ready is retried with back-off.
    ///
    /// # Errors
    /// [`EngineError::Invalid`], [`EngineError::MissingSecrets`],
    /// [`EngineError::UnknownNamespace`] are the caller's; nothing has changed then.
    async fn apply(&self, spec: FunctionSpec, wake: Wake) -> Result<Revision, EngineError> {
        self.apply_if(spec, wake, Expect::Anything).await
    }

    /// As [`Self::apply`], unless the function is no longer what the caller has seen. Nothing
    /// comes between the comparison and the change.
    ///
    /// # Errors
    /// Those of [`Self::apply`]; [`EngineError::Superseded`] when it is something else: look
    /// again and decide anew.
    async fn apply_if(
        &self,
        spec: FunctionSpec,
        wake: Wake,
        expect: Expect,
    ) -> Result<Revision, EngineError>;

    /// Waits until `revision` takes the function's traffic.
    ///
    /// # Errors
    /// [`EngineError::NotReady`] with the reason and the replica's last lines when it did not
    /// become ready within `limit` or was given up; [`EngineError::Superseded`] when another
    /// revision was applied meanwhile; [`EngineError::UnknownFunction`] when it was removed.
    async fn wait_ready(
        &self,
        id: &FunctionId,
        revision: Revision,
        limit: Duration,
    ) -> Result<(), EngineError>;

    /// Removes a function with all its replicas, once open requests have ended or their grace is
    /// over. Returns when no new request can reach it.
    ///
    /// # Errors
    /// [`EngineError::UnknownFunction`] when there is none of that name.
    async fn remove(&self, id: &FunctionId) -> Result<(), EngineError>;

    /// All functions of a namespace, by name.
    ///
    /// # Errors
    /// [`EngineError::UnknownNamespace`].
    async fn list(&self, namespace: &Namespace) -> Result<Vec<FunctionStatus>, EngineError>;

    /// One function, or nothing when there is none of that name.
    async fn get(&self, id: &FunctionId) -> Result<Option<FunctionStatus>, EngineError>;

    /// Sets the desired number of replicas, 0 included, and thaws what is frozen, also when the
    /// number stays. A [`Self::get`] after it shows the new number at once; replicas follow.
    ///
    /// # Errors
    /// [`EngineError::UnknownFunction`].
    async fn scale(&self, id: &FunctionId, replicas: u32) -> Result<(), EngineError>;

    /// Makes a function that rests able to take requests again: thaws what is frozen, else runs
    /// the minimum. Does nothing to one that is awake. Returns as soon as the desire is recorded;
    /// the endpoint table shows when requests can go.
    ///
    /// # Errors
    /// [`EngineError::UnknownFunction`].
    async fn wake(&self, id: &FunctionId) -> Result<(), EngineError> {
        let status = self.get(id).await?;
        let status = status.ok_or_else(|| EngineError::UnknownFunction(id.clone()))?;
        match status.replicas {
            0 => self.scale(id, status.spec.scale_min()).await,
            _ => Ok(()),
        }
    }

    /// Freezes the replicas of a function that has no request under way: they keep their memory
    /// and use no processor until [`Self::wake`]. Nothing else changes: desired replicas stay.
    ///
    /// Returns whether the function is frozen now; it is not while requests are under way, while
    /// replicas start or go, or on an engine that cannot ([`Capabilities::freeze`]).
    ///
    /// # Errors
    /// [`EngineError::UnknownFunction`].
    async fn freeze(&self, _id: &FunctionId) -> Result<bool, EngineError> {
        Ok(false)
    }

    /// The replicas of a function one by one, oldest first, those that start or go included. An
    /// engine that knows no more than its endpoint table tells of the ready ones.
    ///
    /// # Errors
    /// [`EngineError::UnknownFunction`].
    async fn replicas(&self, id: &FunctionId) -> Result<Vec<ReplicaStatus>, EngineError> {
        let status = self.get(id).await?;
        let status = status.ok_or_else(|| EngineError::UnknownFunction(id.clone()))?;
        let table = self.endpoints().borrow().clone();
        let ready = table.get(id).map(|entry| entry.ready.clone()).unwrap_or_default();
        let shown = |endpoint: &std::sync::Arc<Endpoint>| ReplicaStatus {
            id: endpoint.replica.clone(),
            revision: status.revision,
            state: ReplicaState::Ready,
            address: Some(endpoint.address),
            started_at: status.created_at,
            in_flight: endpoint.load.in_flight(),
            usage: None,
        };
        Ok(ready.iter().map(shown).collect())
    }

    /// What a function's replicas use now, those that start or go included; nothing when the
    /// engine cannot tell.
    ///
    /// # Errors
    /// [`EngineError::UnknownFunction`].
    async fn usage(&self, _id: &FunctionId) -> Result<Option<Usage>, EngineError> {
        Ok(None)
    }

    /// The content of the images that functions run or would run, where images are kept on this
    /// machine and the engine knows them beyond their names.
    async fn images_in_use(&self) -> Result<BTreeSet<Digest>, EngineError> {
        Ok(BTreeSet::new())
    }

    /// Where requests can go: always the newest table, and a wake-up for each change of it.
    fn endpoints(&self) -> watch::Receiver<EndpointTable>;

    /// The output of a function's replicas, oldest first.
    ///
    /// # Errors
    /// [`EngineError::UnknownFunction`].
    async fn logs(
        &self,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, EngineError>>, EngineError>;

    /// The secrets of a namespace by name: everything but their values.
    ///
    /// # Errors
    /// [`EngineError::UnknownNamespace`].
    async fn list_secrets(&self, namespace: &Namespace) -> Result<Vec<SecretInfo>, EngineError>;

    /// A secret's items, for what the platform itself does on a function's behalf (checking a
    /// signature, pulling a private image, comparing). They are never handed to a caller.
    ///
    /// # Errors
    /// [`EngineError::UnknownNamespace`], [`EngineError::UnknownSecret`].
    async fn read_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<SecretItems, EngineError>;

    /// Makes a secret hold these items and no others. Running replicas that mount it see all new
    /// files or none of them, and what is gone is gone; they are not started afresh.
    ///
    /// # Errors
    /// [`EngineError::SecretExists`] and [`EngineError::UnknownSecret`] as `put` demands;
    /// [`EngineError::UnknownNamespace`]; [`EngineError::Invalid`] for too many items or bytes,
    /// and when a function that mounts it would have two files of one name. Nothing has changed
    /// then.
    async fn put_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
        content: SecretContent,
        put: PutSecret,
    ) -> Result<SecretChange, EngineError>;

    /// Keeps a new secret of one value, given by hand.
    ///
    /// # Errors
    /// [`EngineError::SecretExists`], else those of [`Self::put_secret`].
    async fn create_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
        value: SecretValue,
    ) -> Result<(), EngineError> {
        let content = SecretContent::by_hand(SecretItems::single(name, value));
        self.put_secret(namespace, name, content, PutSecret::New).await.map(drop)
    }

    /// Replaces a secret by one of one value, given by hand.
    ///
    /// # Errors
    /// [`EngineError::UnknownSecret`], else those of [`Self::put_secret`].
    async fn update_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
        value: SecretValue,
    ) -> Result<(), EngineError> {
        let content = SecretContent::by_hand(SecretItems::single(name, value));
        self.put_secret(namespace, name, content, PutSecret::Existing).await.map(drop)
    }

    /// Which of a function's secrets hold something else than when its newest spec was applied:
    /// its processes may have read them at their start. Applying the spec again starts them
    /// afresh.
    ///
    /// # Errors
    /// [`EngineError::UnknownFunction`].
    async fn stale_secrets(&self, _id: &FunctionId) -> Result<Vec<SecretName>, EngineError> {
        Ok(Vec::new())
    }

    /// Removes a secret. Replicas that mount it keep their file until they end.
    ///
    /// # Errors
    /// [`EngineError::UnknownSecret`].
    async fn remove_secret(
        &self,
        namespace: &Namespace,
        name: &SecretName,
    ) -> Result<(), EngineError>;

    /// The namespaces that may hold functions, the default one first.
    async fn list_namespaces(&self) -> Result<Vec<NamespaceInfo>, EngineError>;

    /// Adds a namespace.
    ///
    /// # Errors
    /// [`EngineError::NamespaceExists`].
    async fn create_namespace(&self, namespace: NamespaceInfo) -> Result<(), EngineError>;

    /// Replaces a namespace's labels and annotations.
    ///
    /// # Errors
    /// [`EngineError::UnknownNamespace`].
    async fn update_namespace(&self, namespace: NamespaceInfo) -> Result<(), EngineError>;

    /// Removes a namespace with every function and secret in it; the default one stays.
    ///
    /// # Errors
    /// [`EngineError::UnknownNamespace`]; [`EngineError::Invalid`] for the default one.
    async fn remove_namespace(&self, namespace: &Namespace) -> Result<(), EngineError>;

    /// Lets go of everything without ending a replica: they go on, and the next start adopts
    /// them where the engine can. Call it last.
    async fn shutdown(&self);
}
