//! What `git receive-pack` says while it works: progress to pass on, a report to keep.
//!
//! A push that is given up is not killed at once: git takes away the objects it has received only
//! when it comes to its end by itself, which it does when its input ends and its output is read.

use std::process::ExitStatus;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::process::ChildStdout;

use super::GitError;
use super::pktline::{self, Packet};
use super::program::{GRACE, RunningGit};

/// Most bytes of a report.
const REPORT_BYTES: usize = 16 * 1024 * 1024;

/// How git says that the disk is full.
const NO_SPACE: &[u8] = b"No space left on device";

/// Bytes read from git at once.
const PIECE: usize = 16 * 1024;

/// A running `git receive-pack` and its output.
#[derive(Debug)]
pub(super) struct Output {
    /// There until the drop.
    running: Option<(RunningGit, ChildStdout)>,
    side_band: bool,
    buffer: BytesMut,
    report: BytesMut,
    ended: bool,
    disk_full: bool,
}

impl Output {
    /// The output as it is for a client with or without side bands.
    pub(super) fn new(git: RunningGit, stdout: ChildStdout, side_band: bool) -> Self {
        Self {
            running: Some((git, stdout)),
            side_band,
            buffer: BytesMut::new(),
            report: BytesMut::new(),
            ended: false,
            disk_full: false,
        }
    }

    /// The next piece of progress, empty for a mere sign of life; `None` when git has said all.
    /// May be cancelled without loss.
    pub(super) async fn next_progress(&mut self) -> Option<Bytes> {
        loop {
            if let Some(progress) = self.parse() {
                return Some(progress);
            }
            if self.ended {
                return None;
            }
            let Some((_, stdout)) = &mut self.running else { return None };
            self.buffer.reserve(PIECE);
            match stdout.read_buf(&mut self.buffer).await {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "lost git's output");
                    self.ended = true;
                }
            }
        }
    }

    /// Waits for git's end, once `next_progress` has come to its own.
    pub(super) async fn wait(&mut self) -> Result<ExitStatus, GitError> {
        match &mut self.running {
            Some((git, _)) => git.wait().await,
            None => Err(GitError::Talk(std::io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// The report, once `next_progress` has come to its end.
    pub(super) fn report(&self) -> &[u8] {
        &self.report
    }

    /// Whether git has said that there was no space to write to.
    pub(super) fn disk_was_full(&self) -> bool {
        self.disk_full
    }

    fn parse(&mut self) -> Option<Bytes> {
        if !self.side_band {
            self.keep_report(self.buffer.len());
            return None;
        }
        loop {
            let (packet, length) = match pktline::first(&self.buffer) {
                Ok(found) => found?,
                Err(error) => {
                    tracing::error!(%error, "git answered in an unknown format");
                    self.ended = true;
                    self.buffer.clear();
                    return None;
                }
            };
            match packet {
                Packet::Data([1]) => {
                    self.buffer.advance(length);
                    return Some(Bytes::new());
                }
                Packet::Data([1, ..]) => {
                    self.buffer.advance(5);
                    self.keep_report(length - 5);
                }
                // Band 3 is a last cry; the missing report makes it a failure.
                Packet::Data([2 | 3, text @ ..]) => {
                    let text = Bytes::copy_from_slice(text);
                    self.buffer.advance(length);
                    self.disk_full |= text.windows(NO_SPACE.len()).any(|part| part == NO_SPACE);
                    return Some(text);
                }
                Packet::Data(_) | Packet::Flush | Packet::Separator => self.buffer.advance(length),
            }
        }
    }

    /// Moves the first `length` bytes of the buffer to the report.
    fn keep_report(&mut self, length: usize) {
        let part = self.buffer.split_to(length);
        if self.report.len() + part.len() <= REPORT_BYTES {
            self.report.extend_from_slice(&part);
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let Some((mut git, mut stdout)) = self.running.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        drop(runtime.spawn(async move {
            let ending = async {
                let read = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
                (read, git.wait().await)
            };
            if tokio::time::timeout(GRACE, ending).await.is_err() {
                tracing::debug!("git did not end by itself");
            }
        }));
    }
}
