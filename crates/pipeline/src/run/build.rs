//! Images for what changed, and a release of everything that is new.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use updraft_builder::{BuildError, BuildRequest, BuiltImage, LineSink};
use updraft_model::{Digest, FunctionName};
use updraft_store::{BlobWriter, BuildResult, NewBuild, NewRelease};

use super::plan::Action;
use super::{Done, Halt, Run, build_error, function_failed};
use crate::detail::{Failure, Target};
use crate::event::{FailedStep, PushEventKind};
use crate::housekeeper::NoRoom;
use crate::render::LOG_TAIL;
use crate::step::Outcome;

/// A builder ends a build at its time limit; after this much more it is given up on.
const BUILDER_GRACE: Duration = Duration::from_mins(1);

/// Build lines that the story holds for one function; the log holds all of them.
const LINES_MAX: usize = 2_000;

/// How a build ended.
enum Built {
    Image(BuiltImage),
    Failed,
}

impl Run {
    pub(super) async fn build(&mut self) -> Result<Done, Halt> {
        if self.prepared.is_none() {
            // Another process planned this. The same commit gives the same plan, and what was
            // built already is found by its key.
            self.have_files_in_place().await?;
            self.prepared = Some(self.prepare().await?);
        }
        let Some(mut prepared) = self.prepared.take() else { return Err(self.stopped()) };
        let builds = FuturesUnordered::new();
        for (index, plan) in prepared.functions.iter().enumerate() {
            if let Action::Build { request, key, .. } = &plan.action {
                let build = self.build_one(&plan.name, request, *key);
                builds.push(async move { (index, build.await) });
            }
        }
        // All of them come to their end, so that none is left behind half recorded.
        let ended: Vec<_> = builds.collect().await;
        let mut results = std::collections::BTreeMap::new();
        for (index, built) in ended {
            results.insert(index, built?);
        }
        self.detail.targets.clear();
        self.detail.failed.clear();
        let mut releases = Vec::new();
        for (index, plan) in prepared.functions.drain(..).enumerate() {
            let function = plan.name;
            let (spec, image_id) = match (plan.action, results.remove(&index)) {
                (Action::Build { mut spec, .. }, Some(Built::Image(built))) => {
                    spec.image = built.image.pinned(built.id);
                    (spec, Some(built.id))
                }
                (Action::Build { .. }, _) => {
                    self.detail.failed.push(Failure {
                        function,
                        step: FailedStep::Build,
                        waits: false,
                    });
                    continue;
                }
                (Action::New { spec, image_id, .. }, _) => (spec, image_id),
                (Action::Existing { release, unchanged }, _) => {
                    self.detail.targets.push(Target { function, release, unchanged });
                    continue;
                }
                (Action::Refused { step, .. }, _) => {
                    self.detail.failed.push(Failure { function, step, waits: false });
                    continue;
                }
            };
            releases.push(NewRelease {
                push: self.push.id,
                owner: self.push.owner.clone(),
                function,
                commit: self.push.commit.clone(),
                image_id,
                spec,
            });
        }
        for release in self.pipeline.store.create_releases(releases).await? {
            let (function, release) = (release.function, release.number);
            self.detail.targets.push(Target { function, release, unchanged: false });
        }
        self.detail.targets.sort_by(|one, other| one.function.cmp(&other.function));
        self.detail.removed = prepared.removed;
        Ok((Outcome::Released, Vec::new()))
    }

    async fn build_one(
        &self,
        name: &FunctionName,
        request: &BuildRequest,
        key: Digest,
    ) -> Result<Built, Halt> {
        let slot = self.pipeline.build_slots.acquire(self.push.owner.clone());
        let waiting = format!("{name} | waiting for a free place to build");
        let _slot = tokio::select! {
            biased;
            () = self.stop.token().cancelled() => return Err(self.stopped()),
            slot = self.told_when_slow(slot, &waiting) => slot,
        };
        let store = &self.pipeline.store;
        let (push, owner) = (self.push.id, self.push.owner.clone());
        let new = NewBuild { push, owner, function: name.clone(), key };
        let build = store.start_build(new).await?;
        let (function, build_id) = (name.clone(), build.id);
        self.journal.tell(&PushEventKind::BuildStarted { function, build: build_id });
        let limit = self.pipeline.options.max_build_log_bytes;
        let log = match &build.log {
            Some(log) => store.blobs().create(log, limit).await,
            None => return Err(self.stopped()),
        };
        // A log that cannot be written is no reason not to build.
        let log = log.inspect_err(|error| tracing::warn!(%error, "a build has no log")).ok();
        let output = Arc::new(Mutex::new(Output { log, tail: VecDeque::new(), told: 0 }));
        let sink = self.sink(name, Arc::clone(&output));
        let begun = Instant::now();
        let time = request.limits.time;
        let building = async {
            if let Some(make_room) = &self.pipeline.options.make_room {
                let no_room = |error: NoRoom| BuildError::DiskFull { reason: error.to_string() };
                make_room().await.map_err(no_room)?;
            }
            self.pipeline.builder.build(request, &sink).await
        };
        let ended = tokio::time::timeout(time + BUILDER_GRACE, building).await;
        let result = ended.unwrap_or(Err(BuildError::TimedOut { limit: time, log_tail: vec![] }));
        match result {
            Ok(built) => {
                let (image, image_id) = (built.image.clone(), built.id);
                let succeeded = BuildResult::Succeeded { image: image.clone(), image_id };
                store.finish_build(build_id, succeeded).await?;
                let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                let function = name.clone();
                self.journal.tell(&PushEventKind::BuildFinished {
                    function,
                    build: build_id,
                    image,
                    milliseconds,
                });
                Ok(Built::Image(built))
            }
            Err(_) if self.stop.reason().is_some() => {
                store.finish_build(build_id, BuildResult::Cancelled).await?;
                Err(self.stopped())
            }
            Err(error) => {
                let text = build_error(&error);
                let failed = BuildResult::Failed { reason: text.clone() };
                store.finish_build(build_id, failed).await?;
                let tail =
                    std::mem::take(&mut output.lock().unwrap_or_else(PoisonError::into_inner).tail);
                let log_tail = match error.log_tail() {
                    [] => tail.into(),
                    lines => lines.to_vec(),
                };
                self.journal.tell(&function_failed(name, FailedStep::Build, &text, log_tail));
                self.tell_what_serves(name).await?;
                Ok(Built::Failed)
            }
        }
    }

    /// Where the lines of a build go: its log, the story, and the last ones aside.
    fn sink(&self, name: &FunctionName, output: Arc<Mutex<Output>>) -> LineSink {
        let (journal, name) = (Arc::clone(&self.journal), name.clone());
        Arc::new(move |line| {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(Err(error)) = output.log.as_mut().map(|log| log.line(line)) {
                tracing::warn!(%error, "the log of a build ends early");
                output.log = None;
            }
            if output.tail.len() == LOG_TAIL {
                output.tail.pop_front();
            }
            output.tail.push_back(line.to_owned());
            output.told += 1;
            let line = match output.told {
                ..LINES_MAX => line.to_owned(),
                LINES_MAX => "(more lines follow in the build's log)".to_owned(),
                _ => return,
            };
            journal.tell(&PushEventKind::BuildLine { function: name.clone(), line });
        })
    }
}

/// The output of one build.
struct Output {
    log: Option<BlobWriter>,
    tail: VecDeque<String>,
    told: usize,
}
