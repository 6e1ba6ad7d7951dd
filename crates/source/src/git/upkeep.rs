//! Tidying: each push leaves a pack, and many packs make git slow.
//!
//! Runs behind the pushes, never while somebody waits, one repository at a time. What nothing
//! points to any more is kept for two weeks: a build may still be under way on a commit that has
//! been pushed over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::program::KernelLimits;
use super::{GitError, Inner};

/// Longest time for tidying one repository.
const LIMIT: Duration = Duration::from_mins(10);

/// Tidies `bare` in the background if it has too many packs and nothing else is being tidied.
pub(super) fn after_push(inner: &Arc<Inner>, bare: PathBuf) {
    let Ok(permit) = Arc::clone(&inner.upkeep).try_acquire_owned() else { return };
    let inner = Arc::clone(inner);
    // Not among the tasks that a shutdown waits for: git may be stopped at any moment of it.
    drop(tokio::spawn(async move {
        if packs(&bare) > inner.options.max_packs
            && let Err(error) = tidy(&inner, &bare).await
        {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, repository = %bare.display(), "could not tidy a repository");
        }
        drop(permit);
    }));
}

async fn tidy(inner: &Inner, bare: &Path) -> Result<(), GitError> {
    let mut command = inner.program.command_in(bare);
    command.args(["gc", "--quiet", "--cruft", "--prune=2.weeks.ago"]);
    let limits =
        KernelLimits { memory_bytes: inner.options.max_git_memory_bytes, file_bytes: u64::MAX };
    let answer = inner.program.ask_within(&mut command, LIMIT, limits).await?;
    answer.into_output("tidy a repository").map(drop)
}

/// How many packs there are; what cannot be read counts as none.
fn packs(bare: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(bare.join("objects/pack")) else { return 0 };
    entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pack"))
        .count()
}
