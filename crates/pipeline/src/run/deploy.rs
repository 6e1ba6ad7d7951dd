//! Functions pointed at their releases, and those that left the stack removed.

use futures_util::{StreamExt as _, stream};
use updraft_engine::EngineError;
use updraft_model::FunctionName;
use updraft_store::PinnedTo;

use super::{Done, Halt, Run, chain, function_failed};
use crate::detail::{Failure, Target};
use crate::event::{FailedStep, PushEventKind};
use crate::point::PointError;
use crate::step::Outcome;

/// What became of one function.
enum Deployed {
    Done,
    Failed(Failure),
}

impl Run {
    pub(super) async fn deploy(&mut self) -> Result<Done, Halt> {
        // Before the functions that have them, and told even when no function changes.
        let taken = self.take_secrets().await?;
        let at_once = self.pipeline.options.parallel_deployments.max(1);
        let mut targets = Vec::new();
        for target in &self.detail.targets {
            targets.push(self.deploy_one(target));
        }
        let deployed: Vec<_> = stream::iter(targets).buffer_unordered(at_once).collect().await;
        let mut failed = Vec::new();
        for result in deployed {
            if let Deployed::Failed(failure) = result? {
                failed.push(failure);
            }
        }
        for function in &self.detail.removed {
            if let Deployed::Failed(failure) = self.clean_up(function).await? {
                failed.push(failure);
            }
        }
        self.detail.failed.extend(failed);
        self.detail.failed.sort_by(|one, other| one.function.cmp(&other.function));
        self.roll_others(&taken).await?;
        self.remove_left_secrets(&taken).await?;
        self.prune().await?;
        let any_failed = !self.detail.failed.is_empty() || !self.detail.refused_secrets.is_empty();
        Ok((Outcome::Deployed { any_failed }, Vec::new()))
    }

    async fn deploy_one(&self, target: &Target) -> Result<Deployed, Halt> {
        let (pipeline, owner) = (&self.pipeline, &self.push.owner);
        let function = &target.function;
        let url = (pipeline.options.url)(owner, function);
        let release = target.release;
        if target.unchanged && !self.is_stale(function).await {
            let function = function.clone();
            self.journal.tell(&PushEventKind::Unchanged { function, release, url });
            return Ok(Deployed::Done);
        }
        let _alone = pipeline.functions.lock((owner.clone(), function.clone())).await;
        let live = pipeline.store.live(owner, function).await?;
        if let Some(live) = live.as_ref().filter(|live| live.pinned == PinnedTo::ThisRelease) {
            let event = if live.release == release {
                PushEventKind::Unchanged { function: function.clone(), release, url }
            } else {
                let (live, newest) = (live.release, release);
                let (owner, function) = (owner.clone(), function.clone());
                PushEventKind::Pinned { owner, function, live, newest, url }
            };
            self.journal.tell(&event);
            return Ok(Deployed::Done);
        }
        let Some(record) = pipeline.store.release(owner, function, release).await? else {
            let text = format!("release v{release} is gone\nhint: push again");
            return Ok(self.failed(function, FailedStep::Deploy, &text, Vec::new()));
        };
        let repository = Some(&self.push.repository);
        let ran_before = pipeline.engine.get(&record.spec.id).await.is_ok_and(|s| s.is_some());
        let pointing = pipeline.point(&record, repository, PinnedTo::Newest);
        let waiting = format!("{function} v{release} is started, waiting until it is ready");
        let pointing = self.told_when_slow(pointing, &waiting);
        let pointed = tokio::select! {
            result = pointing => result,
            // Only the end of the process cuts a deployment short; the next one repeats it.
            halt = self.shut_down() => return Err(halt),
        };
        match pointed {
            Ok(()) => {
                for mistake in (pipeline.options.mistakes)(&record.spec) {
                    self.warn(format!("{function}: {mistake}"));
                }
                let function = function.clone();
                self.journal.tell(&PushEventKind::Deployed { function, release, url });
                Ok(Deployed::Done)
            }
            Err(PointError::Store(error)) => Err(error.into()),
            Err(PointError::Foreign(text)) => {
                Ok(self.failed(function, FailedStep::Deploy, &text, Vec::new()))
            }
            Err(PointError::Engine(error)) => {
                if live.is_none() && !ran_before {
                    self.remove_first_failure(function, &record.spec.id).await;
                }
                let waits = matches!(error, EngineError::MissingSecrets { .. });
                let (text, log_tail) = explain(self.push.owner.as_str(), error);
                let mut failed = self.failed(function, FailedStep::Deploy, &text, log_tail);
                if let Deployed::Failed(failure) = &mut failed {
                    failure.waits = waits;
                }
                if waits {
                    pipeline.waiting.add(owner, function);
                }
                self.tell_what_serves(function).await?;
                Ok(failed)
            }
        }
    }

    /// Whether a function that runs may have read secrets that hold something else by now.
    async fn is_stale(&self, function: &FunctionName) -> bool {
        let Ok(id) = crate::spec::id_of(&self.push.owner, function) else { return false };
        let stale = self.pipeline.engine.stale_secrets(&id).await;
        stale.is_ok_and(|stale| !stale.is_empty())
    }

    /// A first deployment that does not run serves nobody; nothing half-deployed stays.
    async fn remove_first_failure(&self, function: &FunctionName, id: &updraft_model::FunctionId) {
        match self.pipeline.engine.remove(id).await {
            Ok(()) | Err(EngineError::UnknownFunction(_)) => {}
            Err(error) => {
                tracing::warn!(%function, %error, "a failed first deployment was not removed");
            }
        }
    }

    fn failed(
        &self,
        function: &FunctionName,
        step: FailedStep,
        text: &str,
        log_tail: Vec<String>,
    ) -> Deployed {
        self.journal.tell(&function_failed(function, step, text, log_tail));
        Deployed::Failed(Failure { function: function.clone(), step, waits: false })
    }

    /// Removes a function that left the stack, when what runs is this repository's.
    async fn clean_up(&self, function: &FunctionName) -> Result<Deployed, Halt> {
        let (owner, repository) = (&self.push.owner, &self.push.repository);
        let _alone = self.pipeline.functions.lock((owner.clone(), function.clone())).await;
        match self.pipeline.take_away(owner, repository, function).await {
            Ok(()) => {
                self.journal.tell(&PushEventKind::Removed { function: function.clone() });
                Ok(Deployed::Done)
            }
            Err(PointError::Store(error)) => Err(error.into()),
            Err(PointError::Foreign(text)) => {
                // Not ours to remove; no longer ours to declare either.
                self.warn(text);
                Ok(Deployed::Done)
            }
            Err(PointError::Engine(error)) => {
                let text = chain(&error);
                Ok(self.failed(function, FailedStep::CleanUp, &text, Vec::new()))
            }
        }
    }

    /// Drops releases, build logs and stories that are too old to be wanted.
    async fn prune(&self) -> Result<(), Halt> {
        let (store, options) = (&self.pipeline.store, &self.pipeline.options);
        let (owner, repository) = (&self.push.owner, &self.push.repository);
        store.prune_events(owner, repository, options.keep_stories).await?;
        for target in &self.detail.targets {
            let (owner, function) = (&self.push.owner, &target.function);
            store.prune_releases(owner, function, options.keep_releases).await?;
            store.prune_build_logs(owner, function, options.keep_build_logs).await?;
        }
        Ok(())
    }
}

/// What an engine's failure means to the owner, and the replica's last lines.
fn explain(owner: &str, error: EngineError) -> (String, Vec<String>) {
    let text = chain(&error);
    match error {
        EngineError::NotReady { reason, log_tail, .. } => {
            (format!("it did not become ready: {reason}"), log_tail)
        }
        EngineError::MissingSecrets { names, .. } => {
            let prefix = format!("{owner}-");
            let names: Vec<_> = names
                .iter()
                .map(|name| name.as_str().strip_prefix(&prefix).unwrap_or(name.as_str()))
                .collect();
            let missing = match names.as_slice() {
                [name] => format!("secret {name}"),
                names => format!("secrets {}", names.join(", ")),
            };
            let text = format!(
                "waits: {missing} not found\nhint: commit it sealed in `secrets.yml`, or set it with `updraft secrets set --owner {owner} NAME`; the function starts by itself then"
            );
            (text, Vec::new())
        }
        _ => (text, Vec::new()),
    }
}
