//! What can go wrong with images, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use updraft_model::ImageRef;

/// Why an image could not be found, fetched, made, mounted or removed.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The program that keeps the images is not installed, or not where `PATH` looks.
    #[error("`{program}` is missing: install it with `apt-get install {program}`")]
    ProgramMissing {
        /// The program's name, which is also its Debian package's.
        program: &'static str,
    },
    /// The image is not here and cannot come here by itself. The caller's to solve.
    #[error(
        "image `{image}` is not on this machine{why}: load it with `updraft images load FILE`, \
         or name one that `updraft images list` shows"
    )]
    Missing {
        /// The image as the caller wrote it.
        image: ImageRef,
        /// Why nobody could fetch it, starting with a separator; empty when nobody tried.
        why: String,
    },
    /// The registry does not give the image to whoever asked. The caller's to solve.
    #[error(
        "the registry of image `{image}` refused it{}: {reason}",
        if *known { " with these credentials, check them" } else {
            ", name a secret with credentials for it in annotation `updraft.pull-secret`"
        }
    )]
    Refused {
        /// The image as the caller wrote it.
        image: ImageRef,
        /// Whether credentials were given for this image.
        known: bool,
        /// What the registry said.
        reason: String,
    },
    /// `buildah` or `mmdebstrap` ended with an error.
    #[error("cannot {action}: {detail}")]
    Program {
        /// What was attempted, with the object's name.
        action: String,
        /// The last lines the program wrote.
        detail: String,
    },
    /// A program did not end in its time and was killed.
    #[error("cannot {action}: it was not done within {}, try again", seconds(*limit))]
    TimedOut {
        /// What was attempted, with the object's name.
        action: String,
        /// The time it had.
        limit: Duration,
    },
    /// The file given is not an image archive, or one outside the limits.
    #[error("`{}` cannot be loaded as an image archive: {reason}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk below the store is nearly full.
    #[error(
        "the disk that holds `{}` has only {} MiB free, {} MiB are needed: free some space, \
         for instance with `updraft images prune`",
        path.display(), free >> 20, needed >> 20
    )]
    DiskFull {
        /// The store's folder.
        path: PathBuf,
        /// Bytes free now.
        free: u64,
        /// Bytes that have to be free.
        needed: u64,
    },
    /// The disk below the store can hold hardly any more files.
    #[error(
        "the disk that holds `{}` has room for only {free} more files, {needed} are needed: \
         remove some, for instance with `updraft images prune`",
        path.display()
    )]
    FilesFull {
        /// The store's folder.
        path: PathBuf,
        /// Files that can be made now.
        free: u64,
        /// Files that have to be possible.
        needed: u64,
    },
    /// The image is mounted, so something may be running from it.
    #[error("image `{image}` is in use: remove the functions that run it first")]
    InUse {
        /// The image as the caller wrote it.
        image: ImageRef,
    },
    /// The store's own files could not be read, written or mounted.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// A file of the store does not hold what its format says.
    #[error("the image store is damaged, `{}` cannot be read: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
}

impl ImageError {
    /// Wraps an I/O error with what was attempted on which path.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { action, path, cause }
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::DiskFull { .. } | Self::FilesFull { .. })
    }
}

fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs())
}
