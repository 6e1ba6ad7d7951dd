//! The pipeline itself: takes pushes in, keeps each one's work going, resumes it after a restart.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use updraft_builder::Builder;
use updraft_engine::Engine;
use updraft_model::{FunctionName, OwnerName, RepositoryName};
use updraft_source::template::Templates;
use updraft_store::{NewPush, Push, PushId, PushState, Store, StoreError};

use crate::error::{StartError, SubmitError};
use crate::event::PushEvent;
use crate::journal::{self, Journal};
use crate::lanes::{LaneKey, Lanes, Place, Stop, StopReason};
use crate::locks::KeyedLocks;
use crate::options::{PipelineOptions, PipelineParts};
use crate::run;
use crate::sealed::Unsealer;
use crate::slots::FairSlots;
use crate::waiting::Waiting;

/// How long a shutdown waits for somebody to read the end of a story.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Pauses before a push that could not be recorded is tried again: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

const BRANCH_PREFIX: &str = "refs/heads/";

/// A push to take in. The caller has checked that its sender may push there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRequest {
    /// Whose repository.
    pub owner: OwnerName,
    /// Which repository.
    pub repository: RepositoryName,
    /// The full name of the ref that moved, for instance `refs/heads/main`.
    pub reference: String,
    /// The commit that it moved to, in hex; for an upload, a digest of its files.
    pub commit: String,
    /// Where the files are.
    pub origin: Origin,
}

/// Where the files of a push are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the bare repository; live only on the live branch.
    Git,
    /// In a folder that the caller made beneath the work folder and gives away with this; always
    /// live.
    Upload {
        /// The folder.
        folder: PathBuf,
    },
}

/// From push to ready. See the crate's documentation.
pub struct Pipeline {
    pub(crate) store: Store,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) builder: Arc<dyn Builder>,
    pub(crate) templates: Templates,
    pub(crate) unsealer: Arc<dyn Unsealer>,
    pub(crate) waiting: Waiting,
    /// Held while secrets are compared.
    pub(crate) comparing: tokio::sync::Mutex<()>,
    pub(crate) repositories: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) options: PipelineOptions,
    pub(crate) build_slots: FairSlots,
    pub(crate) push_slots: FairSlots,
    /// Held while a function is pointed at another release or removed.
    pub(crate) functions: KeyedLocks<(OwnerName, FunctionName)>,
    /// Held from a push's record to its place in the lane, so that both have the same order.
    arrivals: KeyedLocks<LaneKey>,
    lanes: Arc<Lanes>,
    active: Mutex<HashMap<PushId, Active>>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// A push that is waiting or worked on.
struct Active {
    owner: OwnerName,
    journal: Arc<Journal>,
    stop: Arc<Stop>,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline").field("work", &self.work).finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Starts the pipeline and goes on with every push that is not over. One pipeline may use a
    /// store at a time.
    ///
    /// # Errors
    /// The machine's fault: the work folder or the store cannot be used.
    pub async fn start(parts: PipelineParts) -> Result<Arc<Self>, StartError> {
        let PipelineParts {
            store,
            engine,
            builder,
            templates,
            unsealer,
            repositories,
            work,
            options,
        } = parts;
        let failed = |source| StartError::Work { path: work.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&work).map_err(failed)?;
        store.cancel_running_builds().await?;
        let unfinished = store.unfinished_pushes().await?;
        sweep(&work, &unfinished).map_err(failed)?;
        let pipeline = Arc::new(Self {
            build_slots: FairSlots::new(options.parallel_builds),
            push_slots: FairSlots::new(options.parallel_pushes),
            store,
            engine,
            builder,
            templates,
            unsealer,
            waiting: Waiting::default(),
            comparing: tokio::sync::Mutex::default(),
            repositories,
            work,
            options,
            functions: KeyedLocks::default(),
            arrivals: KeyedLocks::default(),
            lanes: Arc::default(),
            active: Mutex::default(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        // All of them take their places before the first one runs, so that an old push does not
        // begin only to be stopped.
        let mut resumed = Vec::new();
        for push in unfinished {
            tracing::info!(push = %push.id, state = %push.state, "going on with a push");
            resumed.push((pipeline.admit_again(&push).await?, push));
        }
        for (admitted, push) in resumed {
            pipeline.spawn(admitted, push, true);
        }
        pipeline.tasks.spawn(Arc::clone(&pipeline).start_waiting());
        Ok(pipeline)
    }

    /// Takes a push in. When this returns its record is durable and its work will be done, in
    /// this process or the next. A push by git that is under way already is not taken in twice.
    ///
    /// # Errors
    /// See [`SubmitError`]; nothing is recorded then.
    pub async fn submit(self: &Arc<Self>, request: PushRequest) -> Result<PushId, SubmitError> {
        let PushRequest { owner, repository, reference, commit, origin } = request;
        let is_hex = commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex || ![40, 64].contains(&commit.len()) {
            return Err(SubmitError::Commit(commit));
        }
        if !reference.starts_with("refs/") || reference.contains(char::is_control) {
            return Err(SubmitError::Reference(reference));
        }
        let _arrival = self.arrivals.lock((owner.clone(), repository.clone())).await;
        if self.shutdown.is_cancelled() {
            return Err(SubmitError::ShuttingDown);
        }
        // Git may tell of a push twice when the process was killed in between.
        if origin == Origin::Git {
            let newest = self.store.newest_push(&owner, &repository, &reference).await?;
            let same = newest.filter(|push| push.commit == commit && !push.state.is_final());
            if let Some(push) = same {
                return Ok(push.id);
            }
        }
        let waiting = self.active().values().filter(|active| active.owner == owner).count();
        if waiting >= self.options.max_waiting_per_owner {
            return Err(SubmitError::Busy { owner, waiting });
        }
        let upload = match origin {
            Origin::Git => None,
            Origin::Upload { folder } => Some(folder),
        };
        let new = NewPush { owner, repository, reference, commit, upload };
        let id = self.store.record_push(new).await?.id;
        // The record is what was just written; read back so that both starts of a push are one.
        let push =
            self.store.push(id).await?.ok_or(StoreError::Closed { doing: "read the push" })?;
        let is_live = self.goes_live(&push).await?;
        let admitted = self.admit(&push, is_live);
        self.spawn(admitted, push, false);
        Ok(id)
    }

    /// The story of a push from event `from` on (1 is the first): what has happened, then what
    /// happens, until it is over. Empty when there is no such push.
    pub fn follow(
        &self,
        push: PushId,
        from: u64,
    ) -> impl Stream<Item = PushEvent> + Send + 'static + use<> {
        let watch = self.active().get(&push).map(|active| active.journal.watch());
        journal::follow(self.store.clone(), push, from, watch)
    }

    /// Stops a push: what has not begun to be deployed is not. False when it is over, or not this
    /// owner's.
    pub fn cancel(&self, owner: &OwnerName, push: PushId) -> bool {
        match self.active().get(&push) {
            Some(active) if active.owner == *owner => {
                active.stop.stop(StopReason::Cancelled);
                true
            }
            _ => false,
        }
    }

    /// Takes no more pushes and lets those under way stop at their next safe place, from where
    /// the next start goes on. Returns when all of them have.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn active(&self) -> MutexGuard<'_, HashMap<PushId, Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a push is to the place whose pushes go live. The first push to a repository
    /// decides which branch that is, unless the operator has.
    async fn goes_live(&self, push: &Push) -> Result<bool, StoreError> {
        if push.upload.is_some() {
            return Ok(true);
        }
        let Some(branch) = push.reference.strip_prefix(BRANCH_PREFIX) else { return Ok(false) };
        let named = &self.options.live_branches;
        if !named.is_empty() && !named.iter().any(|name| name == branch) {
            return Ok(false);
        }
        let live = self.store.decide_live_branch(&push.owner, &push.repository, branch).await?;
        Ok(live == branch)
    }

    /// Registers a push as under way; one that goes live takes its place in the lane.
    fn admit(self: &Arc<Self>, push: &Push, is_live: bool) -> run::Admitted {
        let stop = Stop::new(&self.shutdown);
        let journal = Journal::new(push.id, self.store.clone());
        let active = Active {
            owner: push.owner.clone(),
            journal: Arc::clone(&journal),
            stop: Arc::clone(&stop),
        };
        self.active().insert(push.id, active);
        let key = (push.owner.clone(), push.repository.clone());
        let place: Option<Place> =
            is_live.then(|| self.lanes.enter(key, push.id, Arc::clone(&stop)));
        run::Admitted { journal, stop, place, obsolete: false }
    }

    /// The same for a push that was begun before.
    async fn admit_again(self: &Arc<Self>, push: &Push) -> Result<run::Admitted, StoreError> {
        let is_live = self.goes_live(push).await?;
        let newer = if is_live { self.store.newer_push(push.id).await? } else { None };
        let mut obsolete = false;
        if let Some(newer) = newer {
            // A newer one that is over is not in the lane, and has won all the same.
            obsolete = self.store.push(newer).await?.is_some_and(|newer| newer.state.is_final());
        }
        let mut admitted = self.admit(push, is_live);
        admitted.obsolete = obsolete;
        if let Some(newer) = newer {
            admitted.stop.stop(StopReason::Superseded(newer));
        }
        Ok(admitted)
    }

    fn spawn(self: &Arc<Self>, admitted: run::Admitted, push: Push, resumed: bool) {
        let pipeline = Arc::clone(self);
        self.tasks.spawn(async move {
            let id = push.id;
            let mut next = Some((admitted, push, resumed));
            let mut pause = FIRST_PAUSE;
            while let Some((admitted, push, resumed)) = next.take() {
                let ended = run::run(Arc::clone(&pipeline), admitted, push, resumed).await;
                // Followers see the watch end with this.
                pipeline.active().remove(&id);
                let Err(error) = ended else { return };
                tracing::error!(push = %id, %error, "a push cannot be recorded, trying again");
                next = pipeline.after_pause(id, &mut pause).await;
            }
        });
    }

    /// Waits until a push that could not be recorded can be gone on with; nothing when it is over
    /// or the process ends.
    async fn after_pause(
        self: &Arc<Self>,
        push: PushId,
        pause: &mut Duration,
    ) -> Option<(run::Admitted, Push, bool)> {
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return None,
                () = tokio::time::sleep(*pause) => {}
            }
            *pause = (*pause * 2).min(LONGEST_PAUSE);
            match self.store.push(push).await {
                Ok(Some(push)) if !push.state.is_final() => match self.admit_again(&push).await {
                    Ok(admitted) => return Some((admitted, push, true)),
                    Err(error) => tracing::error!(push = %push.id, %error, "still not"),
                },
                Ok(_) => return None,
                Err(error) => tracing::error!(%push, %error, "still not"),
            }
        }
    }

    /// Runs a task that [`Self::shutdown`] waits for, but not long: it may hang on a slow reader.
    pub(crate) fn spawn_task(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            let too_long = async {
                shutdown.cancelled().await;
                tokio::time::sleep(LAST_WORDS).await;
            };
            tokio::select! {
                () = task => {}
                () = too_long => {}
            }
        });
    }

    /// Returns when [`Self::shutdown`] was called.
    pub(crate) async fn shutting_down(&self) {
        self.shutdown.cancelled().await;
    }

    /// The folder of a push's work.
    pub(crate) fn work_folder(&self, push: PushId) -> PathBuf {
        self.work.join(push.to_string())
    }
}

/// The branch that a ref is, without `refs/heads/`; the whole ref when it is none.
pub(crate) fn branch_of(reference: &str) -> &str {
    reference.strip_prefix(BRANCH_PREFIX).unwrap_or(reference)
}

/// Whether a push in this state may still need its work folder.
const fn needs_files(state: PushState) -> bool {
    matches!(
        state,
        PushState::Received | PushState::Cloned | PushState::Planned | PushState::Building
    )
}

/// Removes from the work folder what no unfinished push needs.
fn sweep(work: &Path, unfinished: &[Push]) -> io::Result<()> {
    let needed: HashSet<PathBuf> = unfinished
        .iter()
        .filter(|push| needs_files(push.state))
        .flat_map(|push| [Some(work.join(push.id.to_string())), push.upload.clone()])
        .flatten()
        .collect();
    for entry in std::fs::read_dir(work)? {
        let entry = entry?;
        let path = entry.path();
        if needed.contains(&path) {
            continue;
        }
        let removed = if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "a leftover could not be removed");
        }
    }
    Ok(())
}
