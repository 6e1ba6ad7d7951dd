//! The sealed secrets of a commit become the owner's secrets, before its functions are deployed.
//!
//! A document that cannot be taken stops nothing but itself: its secret stays as it is, functions
//! go on with it, and the push ends as failed because not all that it says was done. What is done
//! here may be done twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use updraft_engine::{EngineError, PutSecret, SecretChange, SecretOrigin};
use updraft_model::{FunctionName, Namespace, SecretName};
use updraft_seal::{ErrorReason, SealMetrics};
use updraft_source::stack::{SecretFile, Stack};
use updraft_store::PinnedTo;

use super::{Halt, Run, chain};
use crate::event::{PushEventKind, SecretOutcome};
use crate::point::PointError;
use crate::sealed::{self, IMMUTABLE, Import, Refused, Rules};

/// What became of the secrets of a commit.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Secrets that hold what the files say.
    pub(super) held: BTreeSet<SecretName>,
    /// Names in the files, in whatever state their documents are.
    named: BTreeSet<SecretName>,
    /// Whether what is not named is known to have left the repository.
    complete: bool,
}

impl Run {
    /// Opens the files of the commit and makes its secrets so.
    pub(super) async fn take_secrets(&mut self) -> Result<Taken, Halt> {
        self.detail.refused_secrets.clear();
        let files = match self.secret_files().await {
            Ok(files) => files,
            Err(Halt::Failed { reason, .. }) => {
                // Functions are deployed all the same: half a deployment would be worse.
                self.refuse(refusal_of_all(&reason), &BTreeSet::new()).await?;
                return Ok(Taken::default());
            }
            Err(halt) => return Err(halt),
        };
        let rules = self.rules();
        let unsealer = Arc::clone(&self.pipeline.unsealer);
        let opening =
            tokio::task::spawn_blocking(move || sealed::import(&rules, &files, &*unsealer));
        let Import { opened, refused, named, complete, warnings } = match opening.await {
            Ok(import) => import,
            Err(error) => {
                // What it says may hold what it worked on.
                tracing::error!(push = %self.push.id, panicked = error.is_panic(), "opening broke off");
                self.refuse(refusal_of_all("Updraft made a mistake"), &BTreeSet::new()).await?;
                return Ok(Taken::default());
            }
        };
        for warning in warnings {
            self.warn(warning);
        }
        for refused in refused {
            self.refuse(refused, &named).await?;
        }
        let mut held = BTreeSet::new();
        let mut uses = BTreeMap::new();
        for (name, opened) in opened {
            let keys: Vec<_> = opened.content.items.keys().cloned().collect();
            match self.put(&name, opened.content).await {
                Ok(outcome) => {
                    let (secret, file) = (name.clone(), opened.file);
                    self.journal.tell(&PushEventKind::SecretTaken { secret, file, keys, outcome });
                    self.count(|metrics, namespace| {
                        metrics.condition(namespace, name.as_str(), Some(true));
                    });
                    uses.insert(name.to_string(), Some(opened.keys_used));
                    held.insert(name);
                }
                Err(NotPut { kind, reason }) => {
                    self.count(|metrics, namespace| metrics.error(kind, namespace));
                    let (file, place) = (opened.file, opened.place);
                    let name = Some(name.as_str().to_owned());
                    self.refuse(Refused { file, place, name, reason }, &named).await?;
                }
            }
        }
        self.note_uses(uses).await;
        if !held.is_empty() {
            self.pipeline.secrets_changed();
        }
        Ok(Taken { held, named, complete })
    }

    /// Counts something of the owner's secrets.
    fn count(&self, what: impl FnOnce(&SealMetrics, &str)) {
        if let Some(ring) = self.pipeline.unsealer.ring() {
            what(ring.metrics(), Namespace::default().as_str());
        }
    }

    /// Takes down which keys opened what is in force, for whoever wants to retire one.
    async fn note_uses(&self, changes: BTreeMap<String, Option<BTreeSet<String>>>) {
        let unsealer = Arc::clone(&self.pipeline.unsealer);
        let noting = tokio::task::spawn_blocking(move || match unsealer.ring() {
            Some(ring) if !changes.is_empty() => ring.note_uses(&changes),
            _ => Ok(()),
        });
        match noting.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = chain(&error);
                tracing::warn!(error, "which keys are in use could not be taken down");
            }
            Err(error) => tracing::error!(%error, "taking down which keys are in use broke off"),
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            owner: self.push.owner.clone(),
            repository: self.push.repository.clone(),
            commit: self.push.commit.clone(),
            namespace: Namespace::default(),
            wider_scopes: self.pipeline.options.wider_scopes,
        }
    }

    async fn secret_files(&mut self) -> Result<Vec<SecretFile>, Halt> {
        self.have_files_in_place().await?;
        let (checkout, variables) = (self.checkout_folder(), self.variables());
        let read = tokio::task::spawn_blocking(move || {
            Stack::read(&checkout, &variables)?.read_secret_files(&checkout)
        });
        let step = crate::event::FailedStep::Deploy;
        read.await
            .map_err(|error| Halt::failed(step, &error.to_string()))?
            .map_err(|error| Halt::failed(step, &chain(&error)))
    }

    /// Makes one secret so.
    async fn put(
        &self,
        name: &SecretName,
        content: updraft_engine::SecretContent,
    ) -> Result<SecretOutcome, NotPut> {
        let (engine, namespace) = (&self.pipeline.engine, Namespace::default());
        let failed =
            |error: EngineError| NotPut { kind: ErrorReason::Update, reason: chain(&error) };
        let known = engine.list_secrets(&namespace).await.map_err(failed)?;
        let known = known.into_iter().find(|known| known.name == *name);
        let mut by_hand = false;
        if let Some(known) = &known {
            match &known.origin {
                SecretOrigin::Sealed { repository, .. }
                    if !known.origin.is_same_source(&content.origin) =>
                {
                    let reason = format!(
                        "repository `{repository}` has a document of this name already; remove it \
                         from one of the two"
                    );
                    return Err(NotPut { kind: ErrorReason::Unmanaged, reason });
                }
                SecretOrigin::Sealed { .. } => {}
                SecretOrigin::Api => by_hand = true,
            }
            if known.annotations.contains_key(IMMUTABLE) {
                let held = engine.read_secret(&namespace, name).await;
                if held.map_err(failed)? != content.items {
                    let reason = "it is immutable and its items are others now; seal the new ones \
                                  under another name"
                        .to_owned();
                    return Err(NotPut { kind: ErrorReason::Update, reason });
                }
            }
        }
        let put = engine.put_secret(&namespace, name, content, PutSecret::Either).await;
        match put.map_err(failed)? {
            SecretChange::Created => Ok(SecretOutcome::Created),
            SecretChange::Replaced => {
                if by_hand {
                    self.warn(format!("secret {name} was set by hand, the sealed one replaces it"));
                }
                Ok(SecretOutcome::Replaced)
            }
            SecretChange::Unchanged => Ok(SecretOutcome::Unchanged),
        }
    }

    /// Tells that a document cannot be taken, and who goes on with what its secret held before;
    /// `named` are the secrets that documents of the commit name.
    async fn refuse(&mut self, refused: Refused, named: &BTreeSet<SecretName>) -> Result<(), Halt> {
        let Refused { file, place, name, reason } = refused;
        let secret = name.as_deref().and_then(|name| SecretName::new(name.to_lowercase()).ok());
        let known = self.pipeline.engine.list_secrets(&Namespace::default()).await;
        let mut known = known.unwrap_or_default();
        known.retain(|known| match (&secret, &known.origin) {
            (Some(secret), _) => known.name == *secret && self.is_own(secret),
            // A file, or a document without a name: what the file brought before and no other
            // document tells of.
            (None, SecretOrigin::Sealed { owner, repository, file: from, .. }) => {
                *owner == self.push.owner
                    && *repository == self.push.repository
                    && *from == file
                    && !named.contains(&known.name)
            }
            (None, SecretOrigin::Api) => false,
        });
        match &secret {
            Some(secret) if self.is_own(secret) => self.count(|metrics, namespace| {
                metrics.condition(namespace, secret.as_str(), Some(false));
            }),
            Some(_) => {}
            None => self.count(|metrics, namespace| metrics.error(ErrorReason::Fetch, namespace)),
        }
        let keeps = !known.is_empty();
        let mut users = BTreeSet::new();
        for known in known {
            users.extend(self.users(&known.name).await);
        }
        let users = users.into_iter().collect();
        self.detail.refused_secrets.push(name.clone().unwrap_or_else(|| file.clone()));
        let event = PushEventKind::SecretRefused { file, place, name, reason, keeps, users };
        self.journal.tell(&event);
        Ok(())
    }

    fn is_own(&self, secret: &SecretName) -> bool {
        let rest = secret.as_str().strip_prefix(self.push.owner.as_str());
        rest.is_some_and(|rest| rest.starts_with('-'))
    }

    /// The owner's functions that have a secret.
    async fn users(&self, secret: &SecretName) -> Vec<FunctionName> {
        let owner = &self.push.owner;
        let all = self.pipeline.engine.list(&Namespace::default()).await.unwrap_or_default();
        all.iter()
            .filter(|status| status.spec.secrets.contains(secret))
            .filter(|status| status.spec.owner().as_ref() == Some(owner))
            .filter_map(|status| owner.own_name(&status.spec.id.name))
            .collect()
    }

    /// Starts functions afresh that this push does not deploy and that have a secret it changed.
    pub(super) async fn roll_others(&self, taken: &Taken) -> Result<(), Halt> {
        if taken.held.is_empty() {
            return Ok(());
        }
        let (pipeline, owner) = (&self.pipeline, &self.push.owner);
        for declared in pipeline.store.declared_functions(owner, None).await? {
            let Some(repository) = declared.repository else { continue };
            let function = declared.name;
            let deployed = |target: &crate::detail::Target| target.function == function;
            let pinned = pipeline.store.live(owner, &function).await?;
            let Some(live) = pinned else { continue };
            if self.detail.targets.iter().any(deployed) && live.pinned == PinnedTo::Newest {
                continue;
            }
            let _alone = pipeline.functions.lock((owner.clone(), function.clone())).await;
            let release = pipeline.store.release(owner, &function, live.release).await?;
            let Some(release) = release else { continue };
            if !release.spec.secrets.iter().any(|name| taken.held.contains(name)) {
                continue;
            }
            let stale = pipeline.engine.stale_secrets(&release.spec.id).await.unwrap_or_default();
            if stale.is_empty() {
                continue;
            }
            let pointing = pipeline.point(&release, Some(&repository), live.pinned);
            let pointed = tokio::select! {
                result = pointing => result,
                halt = self.shut_down() => return Err(halt),
            };
            let number = release.number;
            match pointed {
                Ok(()) => self.journal.tell(&PushEventKind::Rolled {
                    function,
                    repository,
                    release: number,
                    secrets: stale,
                }),
                Err(PointError::Store(error)) => return Err(error.into()),
                Err(error) => self.warn(format!(
                    "{function} v{number} of repository {repository} goes on with what it read of \
                     its secrets: {}",
                    chain(&error)
                )),
            }
        }
        Ok(())
    }

    /// Removes secrets that this repository made and that left its files, once no function has
    /// them.
    pub(super) async fn remove_left_secrets(&self, taken: &Taken) -> Result<(), Halt> {
        if !taken.complete {
            return Ok(());
        }
        let (engine, namespace) = (&self.pipeline.engine, Namespace::default());
        let Ok(known) = engine.list_secrets(&namespace).await else { return Ok(()) };
        for known in known {
            let ours = matches!(&known.origin, SecretOrigin::Sealed { owner, repository, .. }
                if *owner == self.push.owner && *repository == self.push.repository);
            if !ours || taken.named.contains(&known.name) {
                continue;
            }
            let users = self.users(&known.name).await;
            let secret = known.name.clone();
            if !users.is_empty() {
                self.journal.tell(&PushEventKind::SecretStays { secret, users });
                continue;
            }
            match engine.remove_secret(&namespace, &known.name).await {
                Ok(()) => {
                    self.count(|metrics, namespace| metrics.forget(namespace, secret.as_str()));
                    self.note_uses([(secret.to_string(), None)].into()).await;
                    self.journal.tell(&PushEventKind::SecretRemoved { secret });
                }
                Err(EngineError::UnknownSecret { .. }) => {}
                Err(error) => {
                    self.warn(format!("secret {secret} was not removed: {}", chain(&error)));
                }
            }
        }
        Ok(())
    }
}

/// A secret was opened and could not be kept.
struct NotPut {
    /// How it is counted.
    kind: ErrorReason,
    /// What the owner is told.
    reason: String,
}

fn refusal_of_all(reason: &str) -> Refused {
    let (file, place) = ("secrets.yml".to_owned(), String::new());
    Refused { file, place, name: None, reason: reason.to_owned() }
}
