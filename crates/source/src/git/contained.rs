//! Files of strangers, written beneath one folder and nowhere else.
//!
//! Two guards, each enough alone: a [`Manifest`] judges every path and size before the first
//! byte is written, and a [`Writer`] opens one path component after the other, beneath the one
//! before, without following links and without replacing anything.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use thiserror::Error;

use crate::size::readable;

/// Longest target of a symbolic link; the kernel takes no longer one.
const MAX_LINK_BYTES: u64 = 4095;

/// Longest name of one file or folder.
const MAX_NAME_BYTES: usize = 255;

/// How much a tree of files may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentLimits {
    /// Most files and links.
    pub max_files: usize,
    /// Most bytes of all files together, unpacked.
    pub max_bytes: u64,
    /// Most bytes of one file.
    pub max_file_bytes: u64,
    /// Most folders above a file.
    pub max_depth: usize,
    /// Longest path, in bytes.
    pub max_path_bytes: usize,
}

impl Default for ContentLimits {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            max_files: 50_000,
            max_bytes: 1024 * MIB,
            max_file_bytes: 256 * MIB,
            max_depth: 64,
            max_path_bytes: 1024,
        }
    }
}

/// What is wrong with a tree of files. Its owner's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ContentError {
    /// More files than allowed.
    #[error("there are more than {limit} files, leave out what the functions do not need")]
    TooManyFiles {
        /// The most allowed.
        limit: usize,
    },
    /// All files together are larger than allowed.
    #[error(
        "the files are larger than {} together, leave out what the functions do not need",
        readable(*limit)
    )]
    TooLarge {
        /// The most bytes allowed.
        limit: u64,
    },
    /// One file is larger than allowed.
    #[error(
        "`{path}` has {}, {} are allowed, keep large files elsewhere",
        readable(*size),
        readable(*limit)
    )]
    FileTooLarge {
        /// The file.
        path: String,
        /// Its bytes.
        size: u64,
        /// The most bytes allowed.
        limit: u64,
    },
    /// A path has more components than allowed.
    #[error("`{path}` lies deeper than {limit} folders, flatten the tree")]
    TooDeep {
        /// The path, shortened.
        path: String,
        /// The most folders allowed.
        limit: usize,
    },
    /// A path or name is longer than allowed.
    #[error("`{path}…` is longer than {limit} bytes, shorten the name")]
    PathTooLong {
        /// The start of the path.
        path: String,
        /// The most bytes allowed.
        limit: usize,
    },
    /// A path that no well-meant tree has.
    #[error("`{path}` {reason}, rename or remove it")]
    BadPath {
        /// The path, made printable.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two paths that are one, or are one on machines that ignore case.
    #[error("`{path}` and `{other}` are the same file on some machines, rename one")]
    Duplicate {
        /// The one path.
        path: String,
        /// The other one.
        other: String,
    },
    /// A kind of file that is not taken.
    #[error("`{path}` is {kind}, only files, folders and symbolic links are taken")]
    BadKind {
        /// The path.
        path: String,
        /// What it is.
        kind: String,
    },
    /// A symbolic link whose target cannot be one.
    #[error("the symbolic link `{path}` has no usable target, remove it")]
    BadLink {
        /// The link.
        path: String,
    },
}

/// What a path stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File,
    Link,
}

/// The paths of a tree, judged one by one as they are found.
#[derive(Debug)]
pub(super) struct Manifest<'limits> {
    limits: &'limits ContentLimits,
    /// By the path in lower case: the path as given, and what it is.
    paths: HashMap<String, (String, Kind)>,
    files: usize,
    bytes: u64,
    /// The folder of the path before, whose folders need no second look.
    last_folder: String,
}

impl<'limits> Manifest<'limits> {
    pub(super) fn new(limits: &'limits ContentLimits) -> Self {
        Self { limits, paths: HashMap::new(), files: 0, bytes: 0, last_folder: String::new() }
    }

    pub(super) fn files(&self) -> usize {
        self.files
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Judges one path and takes it into account; returns it as text.
    pub(super) fn add<'path>(
        &mut self,
        path: &'path [u8],
        kind: Kind,
        size: u64,
    ) -> Result<&'path str, ContentError> {
        let path = check_path(path, self.limits)?;
        if kind != Kind::Folder {
            self.files += 1;
            if self.files > self.limits.max_files {
                return Err(ContentError::TooManyFiles { limit: self.limits.max_files });
            }
        }
        let limit = self.limits.max_file_bytes;
        match kind {
            Kind::Folder => {}
            Kind::File if size > limit => {
                return Err(ContentError::FileTooLarge { path: path.to_owned(), size, limit });
            }
            Kind::Link if size > MAX_LINK_BYTES => {
                return Err(ContentError::BadLink { path: path.to_owned() });
            }
            Kind::File | Kind::Link => self.bytes = self.bytes.saturating_add(size),
        }
        if self.bytes > self.limits.max_bytes {
            return Err(ContentError::TooLarge { limit: self.limits.max_bytes });
        }
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        if folder != self.last_folder {
            for (end, _) in folder.match_indices('/').chain([(folder.len(), "")]) {
                if end > 0 {
                    self.insert(&folder[..end], Kind::Folder)?;
                }
            }
            folder.clone_into(&mut self.last_folder);
        }
        self.insert(path, kind)?;
        Ok(path)
    }

    fn insert(&mut self, path: &str, kind: Kind) -> Result<(), ContentError> {
        match self.paths.entry(path.to_lowercase()) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                // Folders cost too: a flood of empty ones is as bad as one of files.
                vacant.insert((path.to_owned(), kind));
                if self.paths.len() > self.limits.max_files.saturating_mul(4) {
                    return Err(ContentError::TooManyFiles { limit: self.limits.max_files });
                }
                Ok(())
            }
            std::collections::hash_map::Entry::Occupied(occupied) => {
                let (other, other_kind) = occupied.get();
                if other == path && kind == Kind::Folder && *other_kind == Kind::Folder {
                    return Ok(());
                }
                Err(ContentError::Duplicate { path: path.to_owned(), other: other.clone() })
            }
        }
    }
}

/// Judges a path by itself.
fn check_path<'path>(
    path: &'path [u8],
    limits: &ContentLimits,
) -> Result<&'path str, ContentError> {
    let printable = || {
        let text = String::from_utf8_lossy(path);
        super::report::terminal_line(&text).chars().take(200).collect::<String>()
    };
    let bad = |reason| ContentError::BadPath { path: printable(), reason };
    if path.len() > limits.max_path_bytes {
        return Err(ContentError::PathTooLong { path: printable(), limit: limits.max_path_bytes });
    }
    let text = std::str::from_utf8(path).map_err(|_| bad("has a name that is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(bad("has a control character in its name"));
    }
    if text.is_empty() || text.starts_with('/') {
        return Err(bad("is not a path within the repository"));
    }
    for component in text.split('/') {
        match component {
            "" | "." | ".." => return Err(bad("is not a path within the repository")),
            name if name.len() > MAX_NAME_BYTES => {
                return Err(ContentError::PathTooLong { path: printable(), limit: MAX_NAME_BYTES });
            }
            name if is_dot_git(name) => return Err(bad("has a name that git keeps for itself")),
            _ => {}
        }
    }
    if text.split('/').count() > limits.max_depth {
        return Err(ContentError::TooDeep { path: printable(), limit: limits.max_depth });
    }
    Ok(text)
}

/// Whether some file system takes this name for `.git`: those of Windows cut trailing dots,
/// spaces and streams and have short names, those of macOS skip invisible characters.
fn is_dot_git(name: &str) -> bool {
    let visible = |character: &char| {
        !matches!(
            character,
            '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
        )
    };
    let folded: String = name.chars().filter(visible).flat_map(char::to_lowercase).collect();
    let stem = folded.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    stem == ".git" || stem == "git~1"
}

/// Writes files beneath a folder.
///
/// Paths must have passed a [`Manifest`].
#[derive(Debug)]
pub(super) struct Writer {
    root: OwnedFd,
    /// The folders from the root to where the last file went.
    open: Vec<(String, OwnedFd)>,
}

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Writer {
    /// Opens `folder`, which must be there, and empty.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        if std::fs::read_dir(folder)?.next().is_some() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let root = rustix::fs::open(folder, FOLDER, Mode::empty())?;
        Ok(Self { root, open: Vec::new() })
    }

    /// Makes a new file with exactly these permissions.
    pub(super) fn file(&mut self, path: &str, executable: bool) -> io::Result<File> {
        let (folder, name) = self.enter(path)?;
        let mode = Mode::from_raw_mode(if executable { 0o755 } else { 0o644 });
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(folder, name, flags, mode)?;
        // The mask of the process must not decide what a build sees.
        rustix::fs::fchmod(&file, mode)?;
        Ok(file.into())
    }

    /// Makes a symbolic link. To be called after all files, so that none can lie behind one.
    pub(super) fn link(&mut self, path: &str, target: &[u8]) -> io::Result<()> {
        let (folder, name) = self.enter(path)?;
        Ok(rustix::fs::symlinkat(target, folder, name)?)
    }

    /// Makes a folder, and those above it.
    pub(super) fn folder(&mut self, path: &str) -> io::Result<()> {
        self.enter_folder(path).map(drop)
    }

    fn enter<'path>(
        &mut self,
        path: &'path str,
    ) -> io::Result<(std::os::fd::BorrowedFd<'_>, &'path str)> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.enter_folder(folder)?, name))
    }

    /// Opens `folder`, one name after the other, and makes what is missing.
    fn enter_folder(&mut self, folder: &str) -> io::Result<std::os::fd::BorrowedFd<'_>> {
        let names: Vec<&str> = folder.split('/').filter(|name| !name.is_empty()).collect();
        let same = self.open.iter().zip(&names).take_while(|(open, name)| open.0 == **name).count();
        self.open.truncate(same);
        for name in &names[same..] {
            let above = self.open.last().map_or(self.root.as_fd(), |(_, folder)| folder.as_fd());
            let mode = Mode::from_raw_mode(0o755);
            match rustix::fs::mkdirat(above, *name, mode) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let opened = rustix::fs::openat(above, *name, FOLDER, Mode::empty())?;
            rustix::fs::fchmod(&opened, mode)?;
            self.open.push(((*name).to_owned(), opened));
        }
        Ok(self.open.last().map_or(self.root.as_fd(), |(_, folder)| folder.as_fd()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn add(paths: &[&str]) -> Result<(), ContentError> {
        let limits = ContentLimits { max_files: 5, max_depth: 3, ..ContentLimits::default() };
        let mut manifest = Manifest::new(&limits);
        paths.iter().try_for_each(|path| manifest.add(path.as_bytes(), Kind::File, 1).map(drop))
    }

    #[test]
    fn paths_that_leave_or_fool_are_refused() {
        for path in [
            "",
            "/etc/passwd",
            "..",
            "a/../b",
            "a//b",
            "./a",
            "a/",
            ".git",
            ".GIT/config",
            "a/.Git/x",
            "git~1",
            "GIT~1/x",
            ".git.",
            ".git ",
            ".git . .",
            ".g\u{200c}it",
            ".git::$INDEX_ALLOCATION",
            "a\nb",
            "a\x1b[2J",
        ] {
            assert!(matches!(add(&[path]), Err(ContentError::BadPath { .. })), "{path:?}");
        }
        let limits = ContentLimits::default();
        let bad = Manifest::new(&limits).add(b"a\xff", Kind::File, 1).map(drop);
        assert!(matches!(bad, Err(ContentError::BadPath { .. })));
    }

    #[test]
    fn names_that_only_look_suspicious_are_taken() {
        for path in
            [".gitignore", ".github/x.yml", "git~2", "a..b", "..a", "...", "ä/ß", "a b", "-rf"]
        {
            assert_eq!(add(&[path]), Ok(()), "{path:?}");
        }
    }

    #[test]
    fn paths_that_are_one_on_some_machines_are_refused() {
        for paths in [
            &["a", "a"][..],
            &["a", "A"],
            &["a", "a/b"],
            &["a/b", "a"],
            &["a/x", "A/y"],
            &["a/b/c", "a/B"],
        ] {
            assert!(matches!(add(paths), Err(ContentError::Duplicate { .. })), "{paths:?}");
        }
        assert_eq!(add(&["a/x", "b", "a/y", "a/z/w"]), Ok(()));
    }

    #[test]
    fn caps_are_kept() {
        assert!(matches!(add(&["a/b/c/d"]), Err(ContentError::TooDeep { .. })));
        assert!(matches!(
            add(&["1", "2", "3", "4", "5", "6"]),
            Err(ContentError::TooManyFiles { .. })
        ));
        assert!(matches!(add(&[&"x".repeat(256)]), Err(ContentError::PathTooLong { .. })));
        assert!(matches!(add(&[&"x/".repeat(600)]), Err(ContentError::PathTooLong { .. })));
    }

    #[test]
    fn a_writer_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path()).unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("way")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("file"), folder.path().join("leaf"))
            .unwrap();
        assert!(writer.file("way/file", false).is_err());
        assert!(writer.file("leaf", false).is_err());
        assert!(writer.folder("way/deeper").is_err());
        assert!(writer.link("way/link", b"x").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn no_accepted_path_leaves_its_folder(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            let limits = ContentLimits::default();
            if let Ok(path) = check_path(&path, &limits) {
                let normal = |part| matches!(part, std::path::Component::Normal(_));
                prop_assert!(Path::new(path).components().all(normal));
            }
        }
    }
}
