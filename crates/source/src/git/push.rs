//! What a push means to the rest of the house: a message to a sink, and what comes back from it.

use std::fmt::Debug;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use updraft_model::{OwnerName, RepositoryName};

/// Lines on their way to the pusher's terminal before the sender has to wait.
const LINES_IN_FLIGHT: usize = 256;

/// A push that git has taken in: the refs have moved, the commits are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Whose repository.
    pub owner: OwnerName,
    /// Which one.
    pub repository: RepositoryName,
    /// The refs that moved; at least one.
    pub updates: Vec<RefUpdate>,
    /// What the pusher gave with `git push -o`, in order.
    pub options: Vec<String>,
}

/// A ref that moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefUpdate {
    /// Full name, such as `refs/heads/main`.
    pub reference: String,
    /// The object it pointed to before; `None` if it is new.
    pub old: Option<String>,
    /// The object it points to now (for an annotated tag, the tag); `None` if it was deleted.
    pub new: Option<String>,
}

/// Who is told about pushes.
#[async_trait]
pub trait PushSink: Send + Sync + Debug + 'static {
    /// Records the push and returns at once; the work goes on behind the returned progress.
    ///
    /// Called in the order in which the refs of a repository moved: the next push to the same
    /// repository waits until this returns. After a crash it may be told of a push again.
    async fn pushed(&self, push: Push) -> PushProgress;
}

/// What the pusher sees of a push that is being worked on, and how it ended.
#[derive(Debug)]
pub struct PushProgress {
    lines: mpsc::Receiver<String>,
    verdict: oneshot::Receiver<PushVerdict>,
}

/// The working end of a [`PushProgress`].
///
/// Dropped without [`PushReporter::finish`], the push counts as failed: the worker crashed.
#[derive(Debug)]
pub struct PushReporter {
    lines: mpsc::Sender<String>,
    verdict: oneshot::Sender<PushVerdict>,
}

/// How a push ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PushVerdict {
    /// The refs whose deployment failed; empty means that all is well.
    pub failed: Vec<RefFailure>,
}

/// A ref whose deployment failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefFailure {
    /// Full name, as in [`RefUpdate::reference`].
    pub reference: String,
    /// Why, in one short line; git shows it in brackets behind the ref.
    pub reason: String,
}

impl PushProgress {
    /// A progress and the end to report to.
    pub fn channel() -> (PushReporter, Self) {
        let (lines_tx, lines_rx) = mpsc::channel(LINES_IN_FLIGHT);
        let (verdict_tx, verdict_rx) = oneshot::channel();
        (
            PushReporter { lines: lines_tx, verdict: verdict_tx },
            Self { lines: lines_rx, verdict: verdict_rx },
        )
    }

    /// The progress of a push that is dealt with already.
    pub fn done(lines: &[&str], verdict: PushVerdict) -> Self {
        let (lines_tx, lines_rx) = mpsc::channel(lines.len().max(1));
        let (verdict_tx, verdict_rx) = oneshot::channel();
        for line in lines {
            // There is room for each of them and the receiver is in this function.
            let _sent = lines_tx.try_send((*line).to_owned());
        }
        let _sent = verdict_tx.send(verdict);
        Self { lines: lines_rx, verdict: verdict_rx }
    }

    /// The next line; `None` after the last one.
    pub(super) async fn next_line(&mut self) -> Option<String> {
        self.lines.recv().await
    }

    /// The verdict; to be asked for after the last line.
    pub(super) async fn verdict(self) -> Option<PushVerdict> {
        self.verdict.await.ok()
    }
}

impl PushReporter {
    /// Sends one line to the pusher's terminal, where it stands behind `remote:`.
    ///
    /// Waits while the terminal is slow. A pusher who has left is no error: the line is dropped.
    pub async fn line(&self, line: impl Into<String>) {
        let _gone = self.lines.send(line.into()).await;
    }

    /// Ends the progress with a verdict.
    pub fn finish(self, verdict: PushVerdict) {
        let _gone = self.verdict.send(verdict);
    }
}

impl PushVerdict {
    /// All is well.
    pub fn accepted() -> Self {
        Self::default()
    }

    /// One ref failed.
    pub fn failed(reference: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { failed: vec![RefFailure { reference: reference.into(), reason: reason.into() }] }
    }
}
