//! Paths that strangers write, made harmless: relative, downwards only, and opened without links.
//!
//! Every file of a repository is reached through [`open_folder`] and [`open_file`], which the kernel
//! itself keeps beneath the root, whatever the tree looks like by then.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::diagnostic::quoted;
use crate::size::readable;

/// Longest path accepted, in bytes.
pub(crate) const PATH_MAX: usize = 1024;

/// A path below some root: no `..`, no leading `/`, nothing a terminal or a shell trips over.
/// The root itself is written `.`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RelativePath(String);

/// Why a text is no path below the repository. The writer's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PathError {
    /// Nothing is written.
    #[error("the path is empty")]
    Empty,
    /// The path begins at the machine's root, not the repository's.
    #[error("{} is absolute, write it relative to the repository", quoted(.0))]
    Absolute(String),
    /// The path goes upwards, and so may leave the repository.
    #[error("{} goes upwards, `..` is not allowed: a path stays inside the repository", quoted(.0))]
    Upwards(String),
    /// NUL or another control character.
    #[error("{} holds a control character", quoted(.0))]
    Control(String),
    /// Longer than any sensible path.
    #[error("the path {} has {} bytes, {PATH_MAX} are allowed", quoted(.0), .0.len())]
    TooLong(String),
}

impl RelativePath {
    /// Reads a path as people write it: `./hello`, `hello/`, `a//b`, `.`.
    pub(crate) fn new(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > PATH_MAX {
            return Err(PathError::TooLong(text.to_owned()));
        }
        if text.chars().any(char::is_control) {
            return Err(PathError::Control(text.to_owned()));
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute(text.to_owned()));
        }
        let parts: Vec<&str> =
            text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if parts.contains(&"..") {
            return Err(PathError::Upwards(text.to_owned()));
        }
        Ok(Self(if parts.is_empty() { ".".to_owned() } else { parts.join("/") }))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the root itself.
    pub(crate) fn is_root(&self) -> bool {
        self.0 == "."
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Why something of a repository cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The owner's fault: nothing has that name.
    #[error("{} does not exist in the repository", quoted(.0))]
    Missing(String),
    /// The owner's fault: a symbolic link is part of the path.
    #[error("{} leads through a symbolic link, name the real path", quoted(.0))]
    Link(String),
    /// The owner's fault: a file where a folder is expected, or the reverse, or neither of both.
    #[error("{} is not a {expected}", quoted(.path))]
    Kind {
        /// The path as written.
        path: String,
        /// `file` or `folder`.
        expected: &'static str,
    },
    /// The owner's fault: more bytes than such a file may have.
    #[error("{} has {}, {} are allowed", quoted(.path), readable(*size), readable(*limit))]
    TooLarge {
        /// The path as written.
        path: String,
        /// Its bytes.
        size: u64,
        /// The most bytes allowed.
        limit: u64,
    },
    /// The owner's fault: not a text.
    #[error("{} is not UTF-8 text", quoted(.0))]
    NotText(String),
    /// The platform's fault.
    #[error("cannot read {}", quoted(.path))]
    Io {
        /// The path as written.
        path: String,
        /// What the kernel said.
        #[source]
        cause: std::io::Error,
    },
}

/// Opens the root that everything else is kept beneath; its path is the platform's own.
pub(crate) fn open_root(root: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(root, flags, Mode::empty())?)
}

fn open_beneath(root: impl AsFd, path: &RelativePath, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // Without O_NOFOLLOW: `NO_SYMLINKS` refuses a link at the end as well, and says that it is one.
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(&root, path.as_str(), flags, Mode::empty(), resolve) {
            // A rename elsewhere in the tree raced with the walk; the kernel asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

fn open_error(path: &RelativePath, errno: Errno, expected: &'static str) -> OpenError {
    let path = path.to_string();
    match errno {
        Errno::NOENT => OpenError::Missing(path),
        Errno::LOOP | Errno::XDEV => OpenError::Link(path),
        Errno::NOTDIR | Errno::ISDIR | Errno::NXIO => OpenError::Kind { path, expected },
        errno => OpenError::Io { path, cause: errno.into() },
    }
}

/// Opens a folder beneath `root`, never through a link.
pub(crate) fn open_folder(root: impl AsFd, path: &RelativePath) -> Result<OwnedFd, OpenError> {
    open_beneath(root, path, OFlags::DIRECTORY).map_err(|errno| open_error(path, errno, "folder"))
}

/// Opens a regular file beneath `root`, never through a link; also gives its size.
pub(crate) fn open_file(root: impl AsFd, path: &RelativePath) -> Result<(File, u64), OpenError> {
    // A FIFO would block an open for reading until somebody writes.
    let file = open_beneath(root, path, OFlags::NONBLOCK)
        .map_err(|errno| open_error(path, errno, "file"))?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| open_error(path, errno, "file"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(OpenError::Kind { path: path.to_string(), expected: "file" });
    }
    Ok((File::from(file), u64::try_from(stat.st_size).unwrap_or(0)))
}

/// Reads a text file beneath `root` of at most `limit` bytes.
pub(crate) fn read_text(
    root: impl AsFd,
    path: &RelativePath,
    limit: u64,
) -> Result<String, OpenError> {
    let bytes = read_bytes(root, path, limit)?;
    String::from_utf8(bytes).map_err(|_| OpenError::NotText(path.to_string()))
}

/// Reads a file beneath `root` of at most `limit` bytes.
pub(crate) fn read_bytes(
    root: impl AsFd,
    path: &RelativePath,
    limit: u64,
) -> Result<Vec<u8>, OpenError> {
    let (file, size) = open_file(root, path)?;
    let too_large = |size| OpenError::TooLarge { path: path.to_string(), size, limit };
    if size > limit {
        return Err(too_large(size));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|cause| OpenError::Io { path: path.to_string(), cause })?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_are_read_as_people_write_them() {
        let check = |text: &str, expected: &str| {
            assert_eq!(RelativePath::new(text).unwrap().as_str(), expected, "{text}");
        };
        check("hello", "hello");
        check("./hello/", "hello");
        check("a//b/./c", "a/b/c");
        check(".", ".");
        check("./", ".");
        check("...", "...");
        check("ä b", "ä b");
    }

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        for bad in ["", "/", "/etc", "..", "../x", "a/../b", "a/..", "a\0b", "a\nb"] {
            assert!(RelativePath::new(bad).is_err(), "{bad:?}");
        }
        assert!(RelativePath::new(&"a".repeat(2000)).is_err());
    }

    #[test]
    fn links_and_special_files_are_never_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::create_dir(path.join("real")).unwrap();
        std::fs::write(path.join("real/file"), "x").unwrap();
        symlink("real", path.join("link")).unwrap();
        symlink("/etc/passwd", path.join("secret")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path.join("fifo"), Mode::RUSR).unwrap();
        let root = open_root(path).unwrap();
        let read = |name: &str| read_text(&root, &RelativePath::new(name).unwrap(), 10);
        assert_eq!(read("real/file").unwrap(), "x");
        assert!(matches!(read("link/file"), Err(OpenError::Link(_))));
        assert!(matches!(read("secret"), Err(OpenError::Link(_))));
        assert!(matches!(read("fifo"), Err(OpenError::Kind { .. })));
        assert!(matches!(read("real"), Err(OpenError::Kind { .. })));
        assert!(matches!(read("none"), Err(OpenError::Missing(_))));
        std::fs::write(path.join("big"), "x".repeat(11)).unwrap();
        assert!(matches!(read("big"), Err(OpenError::TooLarge { .. })));
        std::fs::write(path.join("latin"), [0xe4]).unwrap();
        assert!(matches!(read("latin"), Err(OpenError::NotText(_))));
    }

    proptest! {
        #[test]
        fn an_accepted_path_never_goes_upwards(text in "[./a\\\\\\x00]{0,20}|(?s).{0,30}") {
            if let Ok(path) = RelativePath::new(&text) {
                prop_assert!(!path.as_str().starts_with('/'));
                prop_assert!(path.as_str().split('/').all(|part| part != ".."));
            }
        }
    }
}
