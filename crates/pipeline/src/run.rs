//! The work on one push: from its state to the next, until it is over or has to stop.

mod build;
mod checkout;
mod deploy;
mod plan;
mod secrets;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use updraft_builder::BuildError;
use updraft_model::FunctionName;
use updraft_store::{Advance, Push, PushState, StoreError};

use crate::detail::{ATTEMPTS_MAX, Detail};
use crate::event::{FailedStep, PushEventKind, Verdict};
use crate::hint;
use crate::journal::Journal;
use crate::lanes::{Place, Stop, StopReason};
use crate::pipeline::{Pipeline, branch_of};
use crate::spec;
use crate::step::{Outcome, Work, step, work};

/// The branch that an upload counts as, in a repository that never saw a push by git.
const UPLOAD_BRANCH: &str = "main";

/// A wait that is longer is told.
const SLOW: Duration = Duration::from_secs(2);

/// A push that was let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) journal: Arc<Journal>,
    pub(crate) stop: Arc<Stop>,
    /// Its place in the lane; none when it does not go live.
    pub(crate) place: Option<Place>,
    /// Whether a newer push is over already.
    pub(crate) obsolete: bool,
}

/// The work on one push.
struct Run {
    pipeline: Arc<Pipeline>,
    push: Push,
    journal: Arc<Journal>,
    stop: Arc<Stop>,
    detail: Detail,
    /// Whether this process put the files into the work folder. What another one left there may
    /// be half of it.
    files_in_place: bool,
    obsolete: bool,
    /// What was planned by this process.
    prepared: Option<plan::Prepared>,
    /// The branch that goes live, for labels and image names.
    branch: String,
}

/// Why the work does not go on to the next state by itself.
#[derive(Debug)]
enum Halt {
    /// It was told to stop.
    Stopped(StopReason),
    /// The push as a whole failed.
    Failed { step: FailedStep, reason: String, hint: Option<String> },
    /// Nothing can be recorded. The push stays where it is; the next start goes on with it.
    Store(StoreError),
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Halt {
    /// A failure whose text may carry its hint in a last line `hint: …`.
    fn failed(step: FailedStep, text: &str) -> Self {
        let (reason, hint) = split_hint(text);
        Self::Failed { step, reason, hint }
    }
}

/// What a step leads to: its outcome, and the events that tell of it.
type Done = (Outcome, Vec<PushEventKind>);

/// Works on a push until it is over, or until it has to stop.
///
/// # Errors
/// The store failed: the push stays where it is and can be gone on with.
pub(crate) async fn run(
    pipeline: Arc<Pipeline>,
    admitted: Admitted,
    push: Push,
    resumed: bool,
) -> Result<(), StoreError> {
    let Admitted { journal, stop, place, obsolete } = admitted;
    let writer = tokio::spawn(Arc::clone(&journal).write_as_told());
    let folder = pipeline.work_folder(push.id);
    let upload = push.upload.clone();
    let mut run = Run {
        branch: branch_of(&push.reference).to_owned(),
        pipeline,
        push,
        journal: Arc::clone(&journal),
        stop,
        detail: Detail::default(),
        files_in_place: false,
        obsolete,
        prepared: None,
    };
    // A mistake of ours in the work on one push must not end the others.
    let ended = AssertUnwindSafe(run.drive(place, resumed)).catch_unwind().await;
    let ended = if let Ok(ended) = ended {
        ended
    } else {
        let failed = Halt::failed(
            FailedStep::Plan,
            "Updraft made a mistake\nhint: push again; when it happens again, tell the operator",
        );
        run.end(failed).await
    };
    if run.push.state.is_final() {
        let _unneeded = tokio::task::spawn_blocking(move || {
            for folder in std::iter::once(folder).chain(upload) {
                remove(&folder);
            }
        })
        .await;
    }
    journal.close();
    let _ended = writer.await;
    ended
}

fn remove(folder: &std::path::Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %folder.display(), %error, "a work folder could not be removed");
        }
        _ => {}
    }
}

impl Run {
    /// Goes from state to state.
    async fn drive(&mut self, place: Option<Place>, resumed: bool) -> Result<(), StoreError> {
        let result = self.work_through(place, resumed).await;
        match result {
            Ok(()) => Ok(()),
            Err(halt) => self.end(halt).await,
        }
    }

    async fn work_through(&mut self, place: Option<Place>, resumed: bool) -> Result<(), Halt> {
        match Detail::from_stored(self.push.detail.as_ref()) {
            Some(detail) => self.detail = detail,
            None => {
                return Err(Halt::failed(
                    FailedStep::Plan,
                    "the push was begun by another version of Updraft\nhint: push again",
                ));
            }
        }
        if resumed {
            self.resume().await?;
        }
        let repository =
            self.pipeline.store.repository(&self.push.owner, &self.push.repository).await?;
        let live_branch = repository.and_then(|repository| repository.live_branch);
        let Some(place) = place else {
            if let Some(branch) = live_branch.or_else(|| self.named_branch()) {
                self.branch = branch;
            }
            return self.advance((Outcome::NothingToDo, Vec::new())).await;
        };
        if self.push.upload.is_some() {
            let named = live_branch.or_else(|| self.named_branch());
            self.branch = named.unwrap_or_else(|| UPLOAD_BRANCH.to_owned());
        }
        let stopped = Arc::clone(&self.stop);
        let may_stop = self.may_stop();
        let begin = async {
            let turn = place.turn().await;
            let slot = self.pipeline.push_slots.acquire(self.push.owner.clone()).await;
            (turn, slot)
        };
        let begin = self.told_when_slow(begin, "waiting until earlier work is done");
        let _turn_and_slot = tokio::select! {
            // A push that has to stop does not begin, although it might be its turn.
            biased;
            () = stopped.token().cancelled(), if may_stop => return Err(self.stopped()),
            begun = begin => begun,
        };
        while let Some(work) = work(self.push.state) {
            if self.stop.reason().is_some() && self.may_stop() {
                return Err(self.stopped());
            }
            let done = match work {
                Work::Checkout => self.checkout().await?,
                Work::Plan => self.plan().await?,
                Work::BeginBuilds => (Outcome::BuildsBegun, Vec::new()),
                Work::Build => self.build().await?,
                Work::BeginDeployment => (Outcome::DeploymentBegun, Vec::new()),
                Work::Deploy => self.deploy().await?,
            };
            self.advance(done).await?;
        }
        Ok(())
    }

    /// Whether the push may stop where it is. Once deployment has begun it is carried through,
    /// half of it would be worse; unless what it deploys is older than what is live.
    fn may_stop(&self) -> bool {
        self.push.state != PushState::Deploying || self.obsolete
    }

    /// Notes that one more process goes on with this push.
    async fn resume(&mut self) -> Result<(), Halt> {
        self.detail.attempts += 1;
        if self.detail.attempts > ATTEMPTS_MAX {
            return Err(Halt::failed(
                FailedStep::Plan,
                &format!("the push was interrupted {ATTEMPTS_MAX} times\nhint: push again"),
            ));
        }
        let state = self.push.state;
        let text = format!("Updraft was restarted, going on (the push is {state})");
        let notice = PushEventKind::Notice { text };
        self.record(state, vec![notice]).await
    }

    /// Returns when the process ends, for what must not be cut short by anything else.
    async fn shut_down(&self) -> Halt {
        self.stop.token().cancelled().await;
        if self.stop.reason() != Some(StopReason::Shutdown) {
            self.pipeline.shutting_down().await;
        }
        Halt::Stopped(StopReason::Shutdown)
    }

    /// Waits, and tells so when it takes long: a silent terminal looks broken.
    async fn told_when_slow<T>(&self, work: impl Future<Output = T>, text: &str) -> T {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => done,
            () = tokio::time::sleep(SLOW) => {
                self.journal.tell(&PushEventKind::Notice { text: text.to_owned() });
                work.await
            }
        }
    }

    fn stopped(&self) -> Halt {
        Halt::Stopped(self.stop.reason().unwrap_or(StopReason::Shutdown))
    }

    /// Records the next state, what is noted with it, and the events that tell of it.
    async fn advance(&mut self, (outcome, mut events): Done) -> Result<(), Halt> {
        let next = match step(self.push.state, outcome) {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(push = %self.push.id, %error, "a step has the wrong outcome");
                return Err(Halt::failed(FailedStep::Plan, "Updraft made a mistake"));
            }
        };
        events.push(PushEventKind::State { state: next });
        if next.is_final() {
            events.push(PushEventKind::Finished { verdict: self.verdict(next) });
        }
        self.record(next, events).await
    }

    async fn record(&mut self, next: PushState, events: Vec<PushEventKind>) -> Result<(), Halt> {
        let detail = self.detail.to_stored();
        let advance = self.journal.advance(self.push.state, next, detail, &events).await?;
        match advance {
            Advance::Moved { .. } => {
                self.push.state = next;
                Ok(())
            }
            // Another process works on the same store, against the rules; let it.
            Advance::Elsewhere(state) => {
                tracing::error!(push = %self.push.id, %state, "somebody else moved the push on");
                Err(Halt::Stopped(StopReason::Shutdown))
            }
        }
    }

    /// Ends the push for a reason, or leaves it for the next start.
    async fn end(&mut self, halt: Halt) -> Result<(), StoreError> {
        let done = match halt {
            Halt::Stopped(StopReason::Shutdown) => return Ok(()),
            Halt::Stopped(StopReason::Superseded(by)) => {
                let text = format!("push {by} is newer and goes on in its place");
                (Outcome::Superseded, vec![PushEventKind::Notice { text }])
            }
            Halt::Stopped(StopReason::Cancelled) => (Outcome::Cancelled, Vec::new()),
            Halt::Failed { step, reason, hint } => {
                (Outcome::Failed, vec![PushEventKind::PushFailed { step, reason, hint }])
            }
            Halt::Store(error) => return Err(error),
        };
        match self.advance(done).await {
            Err(Halt::Store(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn verdict(&self, state: PushState) -> Verdict {
        let count = |number: usize| match number {
            1 => "1 function".to_owned(),
            number => format!("{number} functions"),
        };
        let failed = &self.detail.failed;
        let live = self.detail.targets.len().saturating_sub(
            self.detail
                .targets
                .iter()
                .filter(|target| failed.iter().any(|other| other.function == target.function))
                .count(),
        );
        let summary = match state {
            PushState::Ready if live == 0 => "done, the stack has no functions".to_owned(),
            PushState::Ready => format!("{} live", count(live)),
            PushState::Failed if failed.is_empty() && !self.detail.refused_secrets.is_empty() => {
                format!("{} live, {}", count(live), self.refused_secrets())
            }
            PushState::Failed if failed.is_empty() => {
                "the push failed, what was live before goes on serving".to_owned()
            }
            PushState::Failed => {
                let names: Vec<_> = failed
                    .iter()
                    .map(|failure| format!("{} ({})", failure.function, failure.step.as_str()))
                    .collect();
                let functions =
                    format!("{} live, {} failed: {}", count(live), failed.len(), names.join(", "));
                if self.detail.refused_secrets.is_empty() {
                    functions
                } else {
                    format!("{functions}; {}", self.refused_secrets())
                }
            }
            PushState::Superseded => "superseded by a newer push".to_owned(),
            PushState::Cancelled => "cancelled".to_owned(),
            _ => format!(
                "{} is kept and not deployed; pushes to {} go live",
                branch_of(&self.push.reference),
                self.branch
            ),
        };
        let took = Timestamp::now().as_millisecond() - self.push.created_at.as_millisecond();
        Verdict { state, summary, milliseconds: took.max(0).unsigned_abs() }
    }

    /// `1 secret not taken: alice-db`.
    fn refused_secrets(&self) -> String {
        let refused = &self.detail.refused_secrets;
        let count = if refused.len() == 1 { "secret" } else { "secrets" };
        format!("{} {count} not taken: {}", refused.len(), refused.join(", "))
    }

    /// The branch that the operator says is live, where a repository has not decided.
    fn named_branch(&self) -> Option<String> {
        self.pipeline.options.live_branches.first().cloned()
    }

    fn origin(&self) -> spec::Origin<'_> {
        spec::Origin {
            owner: &self.push.owner,
            repository: &self.push.repository,
            branch: &self.branch,
        }
    }

    /// After a failure: says what of the function goes on serving, when something does.
    async fn tell_what_serves(&self, function: &FunctionName) -> Result<(), StoreError> {
        if let Some(live) = self.pipeline.store.live(&self.push.owner, function).await? {
            let text = format!("{function} | v{} goes on serving", live.release);
            self.journal.tell(&PushEventKind::Notice { text });
        }
        Ok(())
    }

    fn warn(&self, text: impl Into<String>) {
        self.journal.tell(&PushEventKind::Warning { text: text.into() });
    }
}

/// A failed function as an event, with a hint when the text or the log gives one.
fn function_failed(
    function: &FunctionName,
    step: FailedStep,
    text: &str,
    log_tail: Vec<String>,
) -> PushEventKind {
    let (reason, given) = split_hint(text);
    let hint = given.or_else(|| hint::hint(&reason, &log_tail));
    PushEventKind::FunctionFailed { function: function.clone(), step, reason, log_tail, hint }
}

/// A builder's error for people, with a hint when its cause is not the function.
fn build_error(error: &BuildError) -> String {
    let text = chain(error);
    if error.is_authors() || text.contains("\nhint: ") {
        text
    } else {
        format!(
            "{text}\nhint: this is not the function's fault; push again later, or tell the operator"
        )
    }
}

/// Parts a text from the hint in its last line, when it has one.
fn split_hint(text: &str) -> (String, Option<String>) {
    match text.rsplit_once("\nhint: ") {
        Some((reason, hint)) => (reason.to_owned(), Some(hint.trim().to_owned())),
        None => (text.to_owned(), None),
    }
}

/// An error with its causes, for people.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
