//! Why a build failed, told to the person whose build it was.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use updraft_images::ImageError;
use updraft_model::ImageRef;

/// Why a build gave no image.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A step of the Dockerfile failed. The function's author can see why in the last lines.
    #[error("{}", failed(step.as_deref(), *exit_code))]
    Failed {
        /// Exit code of the build program.
        exit_code: Option<i32>,
        /// The instruction that failed, as it is written, when it is known.
        step: Option<String>,
        /// The last lines of the build's output, at most 30.
        log_tail: Vec<String>,
    },
    /// The Dockerfile cannot be used as it is. The function's author has to change it.
    #[error("the Dockerfile cannot be built, line {line}: {reason}")]
    Dockerfile {
        /// Line, counted from 1.
        line: usize,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The context has no Dockerfile, or it cannot be read.
    #[error("the build context has no readable `Dockerfile` ({cause})")]
    NoDockerfile {
        /// The kernel's answer.
        cause: io::Error,
    },
    /// An image that the Dockerfile starts from is not here and cannot be fetched.
    #[error("the Dockerfile's line {line} needs image `{image}`: {cause}")]
    BaseImage {
        /// The image as the Dockerfile names it.
        image: ImageRef,
        /// Line, counted from 1.
        line: usize,
        /// Why it is not here.
        cause: Box<ImageError>,
    },
    /// The build used more memory than it may.
    #[error(
        "the build was ended because it needed more than {} MiB of memory: make it smaller, or \
         raise the memory limit of builds", limit_bytes >> 20
    )]
    OutOfMemory {
        /// The limit.
        limit_bytes: u64,
        /// The last lines of the build's output.
        log_tail: Vec<String>,
    },
    /// The build took too long.
    #[error("the build was ended because it took longer than {} s", limit.as_secs())]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// The last lines of the build's output.
        log_tail: Vec<String>,
    },
    /// Somebody ended the build, or a newer push replaced it.
    #[error("the build was cancelled")]
    Cancelled,
    /// The build filled the disk further than it may, or the disk is nearly full.
    #[error("the build was ended for want of disk space: {reason}")]
    DiskFull {
        /// Which bound was met.
        reason: String,
    },
    /// The build's own network could not be made.
    #[error("cannot make a network for the build: {reason}")]
    Network {
        /// What was attempted and why it failed.
        reason: String,
    },
    /// The image store did not do its part.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// The machine did not do its part.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

impl BuildError {
    /// The last lines of the build's output, when there are any that help.
    pub fn log_tail(&self) -> &[String] {
        match self {
            Self::Failed { log_tail, .. }
            | Self::OutOfMemory { log_tail, .. }
            | Self::TimedOut { log_tail, .. } => log_tail,
            _ => &[],
        }
    }

    /// The Dockerfile instruction that failed, when it is known.
    pub fn step(&self) -> Option<&str> {
        match self {
            Self::Failed { step, .. } => step.as_deref(),
            _ => None,
        }
    }

    /// Whether the function's author has to change something; otherwise it is the platform's, and
    /// building again later may help.
    pub const fn is_authors(&self) -> bool {
        matches!(
            self,
            Self::Failed { .. }
                | Self::Dockerfile { .. }
                | Self::NoDockerfile { .. }
                | Self::BaseImage { .. }
                | Self::OutOfMemory { .. }
                | Self::TimedOut { .. }
        )
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { action, path, cause }
    }
}

fn failed(step: Option<&str>, code: Option<i32>) -> String {
    let code = code.map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
    match step {
        Some(step) => format!("the build failed with {code} at step `{step}`"),
        None => format!("the build failed with {code}"),
    }
}
