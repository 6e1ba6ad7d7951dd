//! Functions that wait for a secret: their release is made, and goes live when the secret is
//! there, whoever puts it.
//!
//! What waits follows from the records: the newest release of a function that is not live, and
//! whose push noted that it waits. So nothing is lost with the process.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use updraft_engine::EngineError;
use updraft_model::{FunctionName, Namespace, OwnerName, SecretName};
use updraft_store::{PinnedTo, PushState, Release, StoreError};

use crate::detail::{Detail, Failure};
use crate::pipeline::Pipeline;
use crate::point::PointError;

/// How often is looked for secrets that came another way than through the pipeline.
const LOOK: Duration = Duration::from_secs(2);

/// Who waits.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    functions: Mutex<BTreeSet<(OwnerName, FunctionName)>>,
    changed: Notify,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<(OwnerName, FunctionName)>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, owner: &OwnerName, function: &FunctionName) {
        self.lock().insert((owner.clone(), function.clone()));
        self.changed.notify_one();
    }

    /// Somebody put a secret.
    pub(crate) fn look(&self) {
        self.changed.notify_one();
    }
}

/// Whether a function waits, and what for.
enum Look {
    Waits,
    /// Its secrets are there.
    Ready(Box<Release>),
    /// It is live, was taken back or never waited.
    Done,
}

impl Pipeline {
    /// Tells that a secret was put, so that functions that wait for it start without delay.
    pub fn secrets_changed(&self) {
        self.waiting.look();
    }

    /// Starts functions when the secrets that they wait for are there, until the process ends.
    pub(crate) async fn start_waiting(self: Arc<Self>) {
        if let Err(error) = self.find_waiting().await {
            tracing::warn!(%error, "functions that wait for secrets were not looked up");
        }
        loop {
            let idle = self.waiting.lock().is_empty();
            tokio::select! {
                () = self.shutting_down() => return,
                () = self.waiting.changed.notified() => {}
                () = tokio::time::sleep(LOOK), if !idle => {}
            }
            let all: Vec<_> = self.waiting.lock().iter().cloned().collect();
            for (owner, function) in all {
                let starting = self.start_one(&owner, &function);
                let done = tokio::select! {
                    () = self.shutting_down() => return,
                    done = starting => done,
                };
                match done {
                    Ok(true) => drop(self.waiting.lock().remove(&(owner, function))),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%owner, %function, %error, "it waits on"),
                }
            }
        }
    }

    async fn find_waiting(&self) -> Result<(), StoreError> {
        for owner in self.store.owners().await? {
            for declared in self.store.declared_functions(&owner.name, None).await? {
                let look = self.look(&owner.name, &declared.name).await;
                if matches!(look, Ok(Look::Waits | Look::Ready(_))) {
                    self.waiting.add(&owner.name, &declared.name);
                }
            }
        }
        Ok(())
    }

    async fn look(&self, owner: &OwnerName, function: &FunctionName) -> Result<Look, PointError> {
        let Some(newest) = self.store.releases(owner, function, 1).await?.pop() else {
            return Ok(Look::Done);
        };
        if newest.spec.secrets.is_empty() {
            return Ok(Look::Done);
        }
        if let Some(live) = self.store.live(owner, function).await?
            && (live.release == newest.number || live.pinned == PinnedTo::ThisRelease)
        {
            return Ok(Look::Done);
        }
        let declared = self.store.function(owner, function).await?;
        let push = self.store.push(newest.push).await?;
        // One that is under way deploys it itself.
        let Some(push) = push.filter(|_| declared.is_some_and(|d| d.repository.is_some())) else {
            return Ok(Look::Done);
        };
        if !push.state.is_final() {
            return Ok(Look::Waits);
        }
        // A release that failed for another reason is not tried again.
        let detail = Detail::from_stored(push.detail.as_ref()).unwrap_or_default();
        let waits = |failure: &Failure| failure.waits && failure.function == *function;
        if push.state != PushState::Failed || !detail.failed.iter().any(waits) {
            return Ok(Look::Done);
        }
        let there: BTreeSet<SecretName> = self
            .engine
            .list_secrets(&Namespace::default())
            .await?
            .into_iter()
            .map(|secret| secret.name)
            .collect();
        if newest.spec.secrets.iter().all(|name| there.contains(name)) {
            Ok(Look::Ready(Box::new(newest)))
        } else {
            Ok(Look::Waits)
        }
    }

    /// Starts a function that waits, if its secrets are there; whether it waits no more.
    async fn start_one(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
    ) -> Result<bool, PointError> {
        let _alone = self.functions.lock((owner.clone(), function.clone())).await;
        let release = match self.look(owner, function).await? {
            Look::Waits => return Ok(false),
            Look::Done => return Ok(true),
            Look::Ready(release) => release,
        };
        let declared = self.store.function(owner, function).await?;
        let repository = declared.and_then(|declared| declared.repository);
        match self.point(&release, repository.as_ref(), PinnedTo::Newest).await {
            Ok(()) => {
                let release = release.number;
                tracing::info!(%owner, %function, release, "the secrets are there, it is live");
                Ok(true)
            }
            Err(PointError::Engine(EngineError::MissingSecrets { .. })) => Ok(false),
            Err(PointError::Engine(error @ EngineError::Engine { .. })) => Err(error.into()),
            Err(error) => {
                tracing::warn!(%owner, %function, %error, "its secrets are there, it does not run");
                Ok(true)
            }
        }
    }
}
