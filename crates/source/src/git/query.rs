//! Short questions about a bare repository.

use std::path::Path;
use std::time::Duration;

use super::GitError;
use super::commands::is_object_id;
use super::program::GitProgram;
use super::push::RefUpdate;

/// Longest time for one question.
const LIMIT: Duration = Duration::from_secs(30);

/// Longest part of a message or name that is kept, in characters.
const MAX_TEXT: usize = 500;

/// Who made a commit, when and why, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitSummary {
    /// The author's name as the commit has it; written by strangers.
    pub author: String,
    /// The author's address.
    pub email: String,
    /// When it was committed, in seconds since 1970.
    pub committed_at: i64,
    /// The first line of the message.
    pub subject: String,
}

/// Reads who made `commit` (a full id) in the bare repository `bare`.
///
/// # Errors
/// [`GitError::NoCommit`] if it is not there; otherwise the machine's fault.
pub async fn commit_summary(bare: &Path, commit: &str) -> Result<CommitSummary, GitError> {
    check_commit(commit)?;
    let program = GitProgram::on_path()?;
    let mut command = program.command_in(bare);
    command.args(["log", "-1", "--no-show-signature", "--format=%an%x00%ae%x00%ct%x00%s"]);
    command.arg(format!("{commit}^{{commit}}")).arg("--");
    let answer = program.ask(&mut command, LIMIT).await?;
    if !answer.status.success() {
        return Err(missing(commit, &answer.complaint));
    }
    let text = String::from_utf8_lossy(&answer.output).into_owned();
    let mut parts = text.trim_end_matches('\n').splitn(4, '\0');
    let mut next = || parts.next().unwrap_or_default();
    let (author, email, time, subject) = (next(), next(), next(), next());
    Ok(CommitSummary {
        author: readable(author),
        email: readable(email),
        committed_at: time.parse().unwrap_or(0),
        subject: readable(subject),
    })
}

/// Whether `older` is `newer` or one of its ancestors, so that `newer` contains it.
///
/// # Errors
/// [`GitError::NoCommit`] if one of them is not there; otherwise the machine's fault.
pub async fn is_ancestor(bare: &Path, older: &str, newer: &str) -> Result<bool, GitError> {
    check_commit(older)?;
    check_commit(newer)?;
    let program = GitProgram::on_path()?;
    let mut command = program.command_in(bare);
    command.args(["merge-base", "--is-ancestor", older, newer]);
    let answer = program.ask(&mut command, LIMIT).await?;
    match answer.status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(missing(&format!("{older}..{newer}"), &answer.complaint)),
    }
}

/// The branch that `HEAD` of the bare repository names, without `refs/heads/`; `None` if `HEAD`
/// names none. The branch need not exist yet.
///
/// # Errors
/// The machine's fault: the repository cannot be read.
pub async fn head_branch(bare: &Path) -> Result<Option<String>, GitError> {
    let program = GitProgram::on_path()?;
    let mut command = program.command_in(bare);
    command.args(["symbolic-ref", "--quiet", "HEAD"]);
    let answer = program.ask(&mut command, LIMIT).await?;
    if answer.status.code() == Some(1) {
        return Ok(None);
    }
    let output = answer.into_output("read HEAD")?;
    let text = String::from_utf8_lossy(&output);
    Ok(text.trim_end().strip_prefix("refs/heads/").map(str::to_owned))
}

/// The commit that a ref (full name, such as `refs/heads/main`) points to now; `None` if there
/// is no such ref. Annotated tags are followed.
///
/// # Errors
/// The machine's fault: the repository cannot be read.
pub async fn resolve(bare: &Path, reference: &str) -> Result<Option<String>, GitError> {
    if !reference.starts_with("refs/") && reference != "HEAD" {
        return Ok(None);
    }
    parse_revision(&GitProgram::on_path()?, bare, &format!("{reference}^{{commit}}")).await
}

/// The object that a ref points to, be it a commit or a tag.
pub(super) async fn ref_value(
    program: &GitProgram,
    bare: &Path,
    reference: &str,
) -> Result<Option<String>, GitError> {
    parse_revision(program, bare, reference).await
}

async fn parse_revision(
    program: &GitProgram,
    bare: &Path,
    revision: &str,
) -> Result<Option<String>, GitError> {
    let mut command = program.command_in(bare);
    command.args(["rev-parse", "--verify", "--quiet", "--end-of-options", revision]);
    let answer = program.ask(&mut command, LIMIT).await?;
    let text = String::from_utf8_lossy(&answer.output).trim().to_owned();
    match (answer.status.success(), is_object_id(&text)) {
        (true, true) => Ok(Some(text)),
        (false, _) if answer.complaint.is_empty() => Ok(None),
        _ => Err(GitError::Failed { what: "resolve a ref", complaint: answer.complaint }),
    }
}

/// Lets `HEAD` name a branch that exists: a repository whose first branch is called `master`
/// would otherwise be cloned as if it were empty.
pub(super) async fn adopt_head(
    program: &GitProgram,
    bare: &Path,
    updates: &[RefUpdate],
) -> Result<(), GitError> {
    let created: Vec<&str> = updates
        .iter()
        .filter(|update| update.old.is_none() && update.new.is_some())
        .map(|update| update.reference.as_str())
        .filter(|reference| reference.starts_with("refs/heads/"))
        .collect();
    let preferred = ["refs/heads/main", "refs/heads/master"];
    let branch = preferred.iter().find(|name| created.contains(name)).or(created.first());
    let Some(branch) = branch else { return Ok(()) };
    if resolve(bare, "HEAD").await?.is_some() {
        return Ok(());
    }
    let mut command = program.command_in(bare);
    command.args(["symbolic-ref", "HEAD", branch]);
    program.ask(&mut command, LIMIT).await?.into_output("set HEAD").map(drop)
}

/// Refuses what is no full object id, before it gets near a command line.
pub(super) fn check_commit(commit: &str) -> Result<(), GitError> {
    if is_object_id(commit) { Ok(()) } else { Err(GitError::NoCommit { commit: readable(commit) }) }
}

fn missing(commit: &str, complaint: &str) -> GitError {
    tracing::debug!(commit, complaint, "git does not know a commit");
    GitError::NoCommit { commit: commit.to_owned() }
}

/// A text of strangers, without what steers terminals and of bounded length.
fn readable(text: &str) -> String {
    super::report::terminal_line(text).chars().take(MAX_TEXT).collect()
}
