//! A push, from its first byte to the report at its end.
//!
//! The walk: read the head (which refs), check the quota, pass everything to `git receive-pack`,
//! tell the sink what moved, pass the sink's lines to the pusher's terminal, report.
//!
//! A ref whose deployment fails is reported as refused (`ng`) although its commit is kept: it is
//! the only way in git's protocol to make `git push` say so and exit with an error. The pusher's
//! next push builds on the kept commit as if it had been accepted, so nothing is lost by it.
//!
//! Until git has the last byte, a client who leaves takes the push along. From then on the push
//! goes on without it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use updraft_model::{OwnerName, RepositoryName};

use super::answer::{Answer, follow};
use super::body::{BodyError, RequestBody};
use super::commands::{CommandsError, HeadReader, PushHead};
use super::journal::Note;
use super::pktline::{self, Band};
use super::program::read_complaint;
use super::push::{Push, PushSink, PushVerdict, RefUpdate};
use super::report::Report;
use super::repository::{is_repository, size};
use super::serve::{Service, full, kernel_limits, respond, service_command, text};
use super::{GitBody, GitError, Inner, output::Output, query, upkeep};
use crate::size::readable;

const CONTENT_TYPE: &str = "application/x-git-receive-pack-result";

/// How long the rest of a refused push is read and thrown away. A client shows our reason only
/// after it has sent all; one that takes longer sees a broken connection.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// Most of git's own messages kept until the answer begins.
const EARLY_BYTES: usize = 64 * 1024;

const DISK_FULL: &str = "the server's disk is full, nothing was changed, tell its administrator";

/// Everything a push needs to know about its place.
pub(super) struct Receiving {
    pub(super) inner: Arc<Inner>,
    pub(super) owner: OwnerName,
    pub(super) repository: RepositoryName,
    pub(super) bare: PathBuf,
    pub(super) protocol: Option<String>,
    pub(super) sink: Arc<dyn PushSink>,
    pub(super) permit: OwnedSemaphorePermit,
}

/// The right to end a push, and the note about it for the case that we die meanwhile.
struct Turn {
    note: Note,
    _turn: OwnedMutexGuard<()>,
}

impl Turn {
    /// Nothing is left to do: the sink knows, or nothing moved.
    fn done(self) {
        self.note.cross_out();
    }
}

/// How the sending half of a push ended.
enum Sent {
    /// Git has everything, and it is this push's turn to end.
    All(Turn),
    /// Git stopped reading; it has said why, or crashed.
    GitStopped,
    /// The push is larger than allowed.
    TooLarge,
    /// It failed on our side.
    Fault(GitError),
}

/// Takes in one push and answers it through `response`.
pub(super) async fn receive(
    push: Receiving,
    mut body: RequestBody,
    mut response: oneshot::Sender<Response<GitBody>>,
) {
    // While the client is needed, its leaving ends the push: git is given up by the drop.
    let taken = tokio::select! {
        taken = take_in(&push, &mut body) => taken,
        () = response.closed() => {
            tracing::debug!(owner = %push.owner, repository = %push.repository, "client left during a push");
            return;
        }
    };
    let taken = match taken {
        Ok(taken) => taken,
        Err(refusal) => {
            if refusal.drain {
                drain(&mut body).await;
            }
            let _gone = response.send(refusal.response);
            return;
        }
    };
    let idle_limit = push.inner.options.idle_limit;
    let (answer, rx) = Answer::new(taken.head.capabilities.side_band, idle_limit);
    let frames = ReceiverStream::new(rx).map(|bytes| Ok(Frame::data(bytes)));
    let body = StreamBody::new(frames).boxed_unsync();
    let _gone = response.send(respond(StatusCode::OK, CONTENT_TYPE, body));
    finish(push, taken, answer).await;
}

/// A push that git has whole.
struct Taken {
    head: PushHead,
    output: Output,
    complaint: tokio::task::JoinHandle<String>,
    early: BytesMut,
    turn: Option<Turn>,
}

/// A push that ends before git has taken it in.
struct Refusal {
    response: Response<GitBody>,
    /// Whether the client is still sending and reads nothing until it is done.
    drain: bool,
}

impl Refusal {
    /// A refusal in HTTP, for what is no push.
    fn status(status: StatusCode, message: &str) -> Self {
        Self { response: text(status, message), drain: false }
    }

    /// A refusal in git's protocol, which clients show far better than a status.
    fn report(head: &PushHead, reason: &str) -> Self {
        let references = head.commands.iter().map(|command| command.reference.as_str());
        let report = Report::failure(reason, references).to_bytes();
        let bytes = if head.capabilities.side_band {
            let mut out = BytesMut::new();
            pktline::put_band(&mut out, Band::Progress, format!("{reason}\n").as_bytes());
            pktline::put_band(&mut out, Band::Data, &report);
            out.extend_from_slice(pktline::FLUSH);
            out
        } else {
            report
        };
        Self { response: respond(StatusCode::OK, CONTENT_TYPE, full(bytes.freeze())), drain: true }
    }

    /// A failure on our side; the cause goes to the log.
    fn fault(head: &PushHead, error: &GitError) -> Self {
        tracing::error!(error = error as &dyn std::error::Error, "push failed");
        let reason = match error {
            GitError::Storage { cause, .. } if cause.kind() == std::io::ErrorKind::StorageFull => {
                DISK_FULL
            }
            _ => "the push failed on the server's side, nothing was changed, push again",
        };
        Self::report(head, reason)
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        let status = match error {
            BodyError::Silent(_) => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::status(status, &error.to_string())
    }
}

impl From<CommandsError> for Refusal {
    fn from(error: CommandsError) -> Self {
        Self::status(StatusCode::BAD_REQUEST, &error.to_string())
    }
}

/// Reads the whole push into git.
async fn take_in(push: &Receiving, body: &mut RequestBody) -> Result<Taken, Refusal> {
    let (head, received) = read_head(body).await?;
    if head.commands.is_empty() {
        // A client with much to send asks first whether it may, by a push of nothing.
        return Err(Refusal {
            response: respond(StatusCode::OK, CONTENT_TYPE, full(Bytes::new())),
            drain: false,
        });
    }
    if !head.capabilities.report_status {
        let message = "this git client cannot read reports on its pushes, use a newer one";
        return Err(Refusal::status(StatusCode::BAD_REQUEST, message));
    }
    let room = room(push, &head).await?;
    if !is_repository(&push.bare) {
        if !head.expects_pack() {
            return Err(Refusal::report(&head, "there is no such repository yet"));
        }
        let made = push.inner.repositories.ensure(&push.bare, &push.inner.program).await;
        made.map_err(|error| Refusal::fault(&head, &error))?;
    }

    let inner = &push.inner;
    let mut command = service_command(inner, Service::ReceivePack, push.protocol.as_deref());
    command.arg("--stateless-rpc").arg(&push.bare).stdin(std::process::Stdio::piped());
    let mut git =
        inner.program.start(&mut command).map_err(|error| Refusal::fault(&head, &error))?;
    git.limit(kernel_limits(inner));
    let complaint = tokio::spawn(read_complaint(git.take_stderr()));
    let (Some(stdin), Some(stdout)) = (git.take_stdin(), git.take_stdout()) else {
        let error = GitError::Talk(std::io::ErrorKind::BrokenPipe.into());
        return Err(Refusal::fault(&head, &error));
    };
    let mut output = Output::new(git, stdout, head.capabilities.side_band);

    // Git may speak while it is still being fed; not to listen could block both.
    let mut early = BytesMut::new();
    let sent = {
        let mut sending = std::pin::pin!(send(push, &head, body, received, stdin, room));
        loop {
            tokio::select! {
                sent = &mut sending => break sent?,
                Some(progress) = output.next_progress() => {
                    if early.len() + progress.len() <= EARLY_BYTES {
                        early.extend_from_slice(&progress);
                    }
                }
            }
        }
    };
    let turn = match sent {
        Sent::All(turn) => Some(turn),
        Sent::GitStopped => {
            drain(body).await;
            None
        }
        Sent::Fault(error) => return Err(Refusal::fault(&head, &error)),
        Sent::TooLarge => {
            let limit = inner.options.max_push_bytes;
            let reason = if room < limit {
                format!(
                    "the repository would grow beyond {}, nothing was changed, remove large files \
                     from its history or ask for more room",
                    readable(inner.options.max_repository_bytes)
                )
            } else {
                format!(
                    "the push is larger than {}, nothing was changed, keep large files out of git",
                    readable(limit)
                )
            };
            return Err(Refusal::report(&head, &reason));
        }
    };
    Ok(Taken { head, output, complaint, early, turn })
}

/// Reads the head of the push; returns it with all bytes received so far, head included.
async fn read_head(body: &mut RequestBody) -> Result<(PushHead, Bytes), Refusal> {
    let mut reader = HeadReader::default();
    let mut received = BytesMut::new();
    loop {
        if let Some((head, _)) = reader.advance(&received)? {
            return Ok((head, received.freeze()));
        }
        let Some(piece) = body.next().await? else {
            let message = "the request broke off, push again";
            return Err(Refusal::status(StatusCode::BAD_REQUEST, message));
        };
        received.extend_from_slice(&piece);
    }
}

/// How many bytes this push may have.
async fn room(push: &Receiving, head: &PushHead) -> Result<u64, Refusal> {
    if !head.expects_pack() {
        // Deleting is always allowed: it is the way out of a full repository.
        return Ok(push.inner.options.max_push_bytes);
    }
    let bare = push.bare.clone();
    let used = tokio::task::spawn_blocking(move || size(&bare))
        .await
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|cause| GitError::Storage { what: "measure", path: push.bare.clone(), cause })
        .map_err(|error| Refusal::fault(head, &error))?;
    let options = &push.inner.options;
    Ok(options.max_push_bytes.min(options.max_repository_bytes.saturating_sub(used)))
}

/// Passes the push to git, the last piece only when it is this push's turn: git moves refs only
/// when it has all, so refs move, and the sink hears of it, one push after the other.
async fn send(
    push: &Receiving,
    head: &PushHead,
    body: &mut RequestBody,
    received: Bytes,
    mut stdin: ChildStdin,
    room: u64,
) -> Result<Sent, BodyError> {
    let mut total = received.len() as u64;
    if total > room {
        return Ok(Sent::TooLarge);
    }
    let mut held = received;
    while let Some(piece) = body.next().await? {
        total += piece.len() as u64;
        if total > room {
            return Ok(Sent::TooLarge);
        }
        if stdin.write_all(&held).await.is_err() {
            return Ok(Sent::GitStopped);
        }
        held = piece;
    }
    let turn = push.inner.turns.take(&push.bare).await;
    let note = match Note::write(&push.bare, head) {
        Ok(note) => note,
        Err(cause) => {
            let path = push.bare.clone();
            return Ok(Sent::Fault(GitError::Storage { what: "write into", path, cause }));
        }
    };
    let turn = Turn { note, _turn: turn };
    // Whether git wanted these last bytes shows in its report.
    let _stopped = stdin.write_all(&held).await;
    Ok(Sent::All(turn))
}

/// Reads and throws away what the client still sends, within bounds.
async fn drain(body: &mut RequestBody) {
    let rest = async { while let Ok(Some(_)) = body.next().await {} };
    if tokio::time::timeout(DRAIN_LIMIT, rest).await.is_err() {
        tracing::debug!("a refused push went on sending");
    }
}

/// From here on nothing stops the push: git ends, the sink hears of it, the report goes out.
async fn finish(push: Receiving, taken: Taken, mut answer: Answer) {
    let Taken { head, output, complaint, early, turn } = taken;
    if !early.is_empty() {
        answer.progress(&early).await;
    }
    let mut report = end_git(&push, &head, output, complaint, &mut answer).await;
    // The deployment may take long and needs no git.
    drop(push.permit);

    let updates = moved(&head, &report);
    if updates.is_empty() {
        if let Some(turn) = turn {
            turn.done();
        }
        if head.shallow && report.refs.iter().any(|entry| entry.outcome.is_err()) {
            answer
                .line("this clone lacks history: run `git fetch --unshallow` and push again")
                .await;
        }
    } else {
        if let Err(error) = query::adopt_head(&push.inner.program, &push.bare, &updates).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not set HEAD");
        }
        let message =
            Push { owner: push.owner, repository: push.repository, updates, options: head.options };
        let progress = push.sink.pushed(message).await;
        if let Some(turn) = turn {
            turn.done();
        }
        let verdict = follow(progress, &mut answer, push.inner.options.progress_limit).await;
        apply(&mut report, verdict.as_ref());
    }
    answer.report(&report).await;
    upkeep::after_push(&push.inner, push.bare);
}

/// Passes git's own progress on until git ends, and reads its report.
async fn end_git(
    push: &Receiving,
    head: &PushHead,
    mut output: Output,
    complaint: tokio::task::JoinHandle<String>,
    answer: &mut Answer,
) -> Report {
    let limit = push.inner.options.git_limit;
    let ending = async {
        while let Some(progress) = output.next_progress().await {
            if progress.is_empty() {
                answer.keep_alive().await;
            } else {
                answer.progress(&progress).await;
            }
        }
        output.wait().await
    };
    let reason = match tokio::time::timeout(limit, ending).await {
        Ok(Ok(status)) => match Report::parse(output.report()) {
            Some(mut report) => {
                if output.disk_was_full() && report.unpack.is_err() {
                    report.fail(DISK_FULL);
                }
                return report;
            }
            None => format!("git ended without a report ({status})"),
        },
        Ok(Err(error)) => error.to_string(),
        Err(_) => GitError::TimedOut { limit }.to_string(),
    };
    // Given up, so that the complaint ends too.
    drop(output);
    let complaint = complaint.await.unwrap_or_default();
    tracing::error!(owner = %push.owner, repository = %push.repository, reason, complaint, "git failed to take a push in");
    let references = head.commands.iter().map(|command| command.reference.as_str());
    Report::failure("the push failed on the server's side, push again", references)
}

/// The refs that git says have moved.
fn moved(head: &PushHead, report: &Report) -> Vec<RefUpdate> {
    let accepted = |reference: &str| {
        report.refs.iter().any(|entry| entry.reference == reference && entry.outcome.is_ok())
    };
    head.commands
        .iter()
        .filter(|command| accepted(&command.reference))
        .map(|command| RefUpdate {
            reference: command.reference.clone(),
            old: command.old.clone(),
            new: command.new.clone(),
        })
        .collect()
}

/// Turns the refs whose deployment failed from `ok` to `ng`.
fn apply(report: &mut Report, verdict: Option<&PushVerdict>) {
    let lost = "the server lost sight of the deployment, look at it with `updraft list`";
    for entry in &mut report.refs {
        let failure = match verdict {
            None => Some(lost),
            Some(verdict) => verdict
                .failed
                .iter()
                .find(|failure| failure.reference == entry.reference)
                .map(|failure| failure.reason.as_str()),
        };
        if let (Some(reason), true) = (failure, entry.outcome.is_ok()) {
            entry.outcome = Err(reason.to_owned());
        }
    }
}
