//! The bounds of a build context, and why a tree does not fit into one.

use thiserror::Error;

use crate::diagnostic::quoted;
use crate::size::readable;

/// Bounds of one build context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextLimits {
    /// Most bytes of all files together.
    pub total_bytes: u64,
    /// Most bytes of one file.
    pub file_bytes: u64,
    /// Most files, folders and links together.
    pub files: u64,
    /// Most folders inside each other.
    pub depth: usize,
    /// Longest path in bytes, from the tree's root.
    pub path_bytes: usize,
}

impl Default for ContextLimits {
    fn default() -> Self {
        Self {
            total_bytes: 512 << 20,
            file_bytes: 128 << 20,
            files: 20_000,
            depth: 32,
            path_bytes: 1024,
        }
    }
}

/// Why a tree cannot become part of a build context. All but `Read` and `Write` are the owner's
/// fault; the message names the path in the repository and the limit.
#[derive(Debug, Error)]
pub enum CopyError {
    /// All files together are too large.
    #[error(
        "the function's files have more than {} in all, reached at {}",
        readable(*limit),
        quoted(.path)
    )]
    TotalBytes {
        /// The file that went over the limit.
        path: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// One file is too large.
    #[error(
        "{} has {}, {} are allowed in one file",
        quoted(.path),
        readable(*size),
        readable(*limit)
    )]
    FileBytes {
        /// The file.
        path: String,
        /// Its bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Too many files, folders and links.
    #[error("the function has more than {limit} files and folders, reached in {}", quoted(.path))]
    Files {
        /// The folder that went over the limit.
        path: String,
        /// The limit.
        limit: u64,
    },
    /// Folders in folders in folders.
    #[error("{} lies more than {limit} folders deep", quoted(.path))]
    Depth {
        /// The folder that is too deep.
        path: String,
        /// The limit.
        limit: usize,
    },
    /// A path that is too long.
    #[error("the path {} has {} bytes, {limit} are allowed", quoted(.path), .path.len())]
    PathBytes {
        /// The path.
        path: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// A name that is not UTF-8 or holds control characters.
    #[error("{} in {} is not a name that a build can use, rename it", quoted(.name), quoted(.folder))]
    Name {
        /// The folder it is in.
        folder: String,
        /// The name, as far as it can be shown.
        name: String,
    },
    /// A link that leads, or may lead, out of the tree.
    #[error(
        "the symbolic link {} points to {}, outside of {}; put the file itself there",
        quoted(.link), quoted(.target), quoted(.root)
    )]
    Link {
        /// The link's path.
        link: String,
        /// Where it points.
        target: String,
        /// The tree that it may not leave.
        root: String,
    },
    /// A device, a FIFO or a socket.
    #[error("{} is a {kind}, only files, folders and symbolic links can be built", quoted(.path))]
    Special {
        /// Its path.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// Two trees want a file and a folder, or a link, at the same place.
    #[error("{} is a file in one place and a folder or link in another, rename one", quoted(.path))]
    Conflict {
        /// The path in the build context.
        path: String,
    },
    /// The platform's fault: the tree cannot be read.
    #[error("cannot read {}", quoted(.path))]
    Read {
        /// What could not be read.
        path: String,
        /// What the kernel said.
        #[source]
        cause: std::io::Error,
    },
    /// The platform's fault, or its disk is full: the build context cannot be written.
    #[error("cannot write {} of the build context", quoted(.path))]
    Write {
        /// The path in the build context.
        path: String,
        /// What the kernel said.
        #[source]
        cause: std::io::Error,
    },
}
