//! A running build: its output passed on, its limits kept, its end understood.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use updraft_model::Digest;

use super::BuildahBuilder;
use crate::output::Output;
use crate::sandbox::{End, Running};
use crate::{BuildError, BuildRequest};

/// How often the disk is looked at.
const DISK_WATCH: Duration = Duration::from_millis(250);

/// Why a running build was ended from outside.
pub(super) enum Ended {
    Itself(End),
    Cancelled,
    TimedOut,
    DiskFull(String),
}

/// What the store's disk has left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    bytes: u64,
    /// Nothing where files are made as long as there are bytes.
    files: Option<u64>,
}

impl BuildahBuilder {
    /// Looks whether the disk has room for builds, and whether this one took more than it may
    /// since there was `before`.
    pub(super) fn check_disk(
        &self,
        request: &BuildRequest,
        before: Option<Room>,
    ) -> Result<Room, String> {
        self.store.check_free().map_err(|error| error.to_string())?;
        let now = Room {
            bytes: self.store.free_bytes().map_err(|error| error.to_string())?,
            files: self.store.free_files().map_err(|error| error.to_string())?,
        };
        let before = before.unwrap_or(now);
        if before.bytes.saturating_sub(now.bytes) > request.limits.disk_bytes {
            return Err(format!(
                "it took more than the {} MiB a build may take",
                request.limits.disk_bytes >> 20
            ));
        }
        if let (Some(before), Some(now)) = (before.files, now.files)
            && before.saturating_sub(now) > request.limits.files
        {
            return Err(format!(
                "it made more than the {} files a build may make",
                request.limits.files
            ));
        }
        Ok(now)
    }

    /// Passes the build's output on until it ends or has to be ended.
    pub(super) async fn watch(
        &self,
        request: &BuildRequest,
        mut running: Running,
        before: Room,
        output: &mut Output<'_>,
    ) -> Ended {
        let time = tokio::time::sleep(request.limits.time);
        tokio::pin!(time);
        let mut disk = tokio::time::interval(DISK_WATCH);
        let mut buffer = vec![0; 16 << 10];
        let mut open = true;
        let lost = |_| {
            let status = Err(io::Error::other("the build's thread failed"));
            End { status, out_of_memory: false }
        };
        loop {
            // Fair between its branches: endless output must not put off the limits.
            let ended = tokio::select! {
                read = running.output.read(&mut buffer), if open => {
                    match read {
                        Ok(0) | Err(_) => open = false,
                        Ok(length) => output.bytes(&buffer[..length]),
                    }
                    continue;
                }
                status = &mut running.ended, if !open => {
                    return Ended::Itself(status.unwrap_or_else(lost));
                }
                () = request.cancel.cancelled() => Ended::Cancelled,
                () = &mut time => Ended::TimedOut,
                _ = disk.tick() => match self.check_disk(request, Some(before)) {
                    Ok(_) => continue,
                    Err(reason) => Ended::DiskFull(reason),
                },
            };
            running.kill();
            if let Err(cause) = (&mut running.ended).await.unwrap_or_else(lost).status {
                tracing::warn!(%cause, "a build that was ended");
            }
            return ended;
        }
    }

    pub(super) fn verdict(
        &self,
        request: &BuildRequest,
        ended: Ended,
        folder: &Path,
        output: &Output<'_>,
    ) -> Result<Digest, BuildError> {
        let End { status, out_of_memory } = match ended {
            Ended::Cancelled => return Err(BuildError::Cancelled),
            Ended::DiskFull(reason) => return Err(BuildError::DiskFull { reason }),
            Ended::TimedOut => {
                let limit = request.limits.time;
                return Err(BuildError::TimedOut { limit, log_tail: output.tail() });
            }
            Ended::Itself(end) => end,
        };
        let status = status.map_err(BuildError::io("wait for a build in", folder))?;
        if status.success() {
            let path = folder.join("image-id");
            let text = fs::read_to_string(&path).map_err(BuildError::io("read", &path))?;
            return text.trim().parse().map_err(|error| {
                BuildError::io("read", &path)(io::Error::new(io::ErrorKind::InvalidData, error))
            });
        }
        if out_of_memory {
            let limit_bytes = request.limits.memory_bytes;
            return Err(BuildError::OutOfMemory { limit_bytes, log_tail: output.tail() });
        }
        if output.tail().iter().any(|line| line.contains("no space left on device")) {
            let reason = "the disk is full".to_owned();
            if self.store.check_free().is_err() {
                return Err(BuildError::DiskFull { reason });
            }
        }
        Err(BuildError::Failed {
            exit_code: status.code(),
            step: output.step(),
            log_tail: output.tail(),
        })
    }
}

/// Notes that a build was killed, unless it is told otherwise before it goes.
pub(super) struct Untidy<'a>(pub(super) &'a AtomicBool, pub(super) bool);

impl Untidy<'_> {
    pub(super) fn set(mut self, killed: bool) {
        self.1 = killed;
    }
}

impl Drop for Untidy<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
