//! Pushes that come through the built-in git endpoint: each branch becomes a push of its own,
//! its story goes to the pusher's terminal, its end becomes git's `ok` or `ng`.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use updraft_source::git::{
    Push, PushProgress, PushReporter, PushSink, PushVerdict, RefFailure, RefUpdate,
};
use updraft_store::PushId;

use crate::event::{PushEventKind, Verdict};
use crate::pipeline::{Origin, Pipeline, PushRequest, branch_of};
use crate::render;

/// Branches of one push that are worked on; a mirror of a large repository is not.
const BRANCHES_MAX: usize = 10;

/// Hands git's pushes to a pipeline.
#[derive(Debug, Clone)]
pub struct GitSink(Arc<Pipeline>);

impl GitSink {
    /// A sink for that pipeline.
    pub fn new(pipeline: Arc<Pipeline>) -> Self {
        Self(pipeline)
    }
}

/// What became of one ref.
enum Submitted {
    Push { reference: String, id: PushId },
    Refused(RefFailure),
    Line(String),
}

#[async_trait]
impl PushSink for GitSink {
    async fn pushed(&self, push: Push) -> PushProgress {
        let Push { owner, repository, mut updates, .. } = push;
        // When several branches come at once to a new repository, this decides which is live.
        updates.sort_by_key(|update| match branch_of(&update.reference) {
            "main" => 0,
            "master" => 1,
            _ => 2,
        });
        let mut submitted = Vec::new();
        let mut branches = 0;
        for RefUpdate { reference, new, .. } in updates {
            let is_branch = reference.starts_with("refs/heads/");
            branches += usize::from(is_branch);
            let name = branch_of(&reference).to_owned();
            submitted.push(match new {
                None => Submitted::Line(format!("{name} is deleted; what is live stays live")),
                Some(_) if !is_branch => {
                    Submitted::Line(format!("{name} is kept; only branches go live"))
                }
                Some(_) if branches > BRANCHES_MAX => Submitted::Line(format!(
                    "{name} is kept; of one push, {BRANCHES_MAX} branches are looked at"
                )),
                Some(commit) => {
                    let request = PushRequest {
                        owner: owner.clone(),
                        repository: repository.clone(),
                        reference: reference.clone(),
                        commit,
                        origin: Origin::Git,
                    };
                    match self.0.submit(request).await {
                        Ok(id) => Submitted::Push { reference, id },
                        Err(error) => {
                            Submitted::Refused(RefFailure { reference, reason: error.to_string() })
                        }
                    }
                }
            });
        }
        let (reporter, progress) = PushProgress::channel();
        let pipeline = Arc::clone(&self.0);
        self.0.spawn_task(async move { tell(&pipeline, submitted, reporter).await });
        progress
    }
}

async fn tell(pipeline: &Pipeline, submitted: Vec<Submitted>, reporter: PushReporter) {
    let mut failed = Vec::new();
    for one in submitted {
        match one {
            Submitted::Line(line) => reporter.line(line).await,
            Submitted::Refused(failure) => {
                reporter.line(failure.reason.clone()).await;
                failed.push(failure);
            }
            Submitted::Push { reference, id } => {
                let verdict = tell_one(pipeline, id, &reporter).await;
                if !verdict.as_ref().is_some_and(Verdict::is_success) {
                    let reason = if let Some(verdict) = verdict {
                        verdict.summary
                    } else {
                        let line = format!(
                            "Updraft stops here and goes on with push {id} when it is back"
                        );
                        reporter.line(line).await;
                        "interrupted".to_owned()
                    };
                    failed.push(RefFailure { reference, reason });
                }
            }
        }
    }
    reporter.finish(PushVerdict { failed });
}

/// Tells the story of one push to its end; nothing when it has none in this process.
async fn tell_one(pipeline: &Pipeline, id: PushId, reporter: &PushReporter) -> Option<Verdict> {
    let mut events = std::pin::pin!(pipeline.follow(id, 1));
    let mut verdict = None;
    while let Some(event) = events.next().await {
        for line in render::terminal(&event) {
            reporter.line(line).await;
        }
        if let PushEventKind::Finished { verdict: end } = event.kind {
            verdict = Some(end);
        }
    }
    verdict
}
