//! Copies trees that strangers wrote into a build context, under caps and without following links.
//!
//! The walk holds folder descriptors and opens every name with `O_NOFOLLOW`, on both sides, so that
//! nothing outside is read or written even if the tree changes meanwhile. Symbolic links are kept
//! when they cannot lead out of the tree they are in. What was copied is digested on the way.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use updraft_model::Digest;

use crate::path::open_root;

mod error;

pub use error::{ContextLimits, CopyError};

/// What lies at a path of the context, as the digest sees it.
enum Copied {
    Folder,
    File { executable: bool, content: [u8; 32] },
    Link { target: String },
}

/// Writes one build context.
pub(crate) struct Copier<'a> {
    limits: &'a ContextLimits,
    destination: OwnedFd,
    bytes: u64,
    files: u64,
    copied: BTreeMap<String, Copied>,
    buffer: Vec<u8>,
}

/// Where the walk is.
struct Place<'p> {
    /// The tree's root as its owner knows it, for messages.
    root: &'p str,
    /// Path below the tree's root; empty at the root.
    below: &'p str,
    /// Path in the context.
    context: &'p str,
    /// Folders between the tree's root and here.
    depth: usize,
}

fn join(folder: &str, name: &str) -> String {
    match (folder, name) {
        ("" | ".", _) => name.to_owned(),
        (_, "") => folder.to_owned(),
        _ => format!("{folder}/{name}"),
    }
}

impl<'a> Copier<'a> {
    /// Starts a context in the empty folder `destination`.
    pub(crate) fn new(destination: &Path, limits: &'a ContextLimits) -> Result<Self, CopyError> {
        let destination = open_root(destination)
            .map_err(|cause| CopyError::Write { path: ".".to_owned(), cause })?;
        Ok(Self {
            limits,
            destination,
            bytes: 0,
            files: 0,
            copied: BTreeMap::new(),
            buffer: vec![0; 128 * 1024],
        })
    }

    /// Copies the content of a folder to `to` (empty: the context's root). `root` is the folder's
    /// name in messages; names of its top level for which `skip` holds are left out.
    pub(crate) fn tree(
        &mut self,
        source: &OwnedFd,
        root: &str,
        to: &str,
        skip: &dyn Fn(&str) -> bool,
    ) -> Result<(), CopyError> {
        let target = self.folder(to)?;
        self.walk(source.as_fd(), &target, &Place { root, below: "", context: to, depth: 0 }, skip)
    }

    /// Copies an open file of the repository.
    pub(crate) fn file(&mut self, mut file: File, path: &str, to: &str) -> Result<(), CopyError> {
        let (folder, name) = to.rsplit_once('/').unwrap_or(("", to));
        let target = self.folder(folder)?;
        self.count(path)?;
        self.copy_file(&mut file, path, &target, name, to)
    }

    /// Writes a file of the platform's own; it counts against no limit.
    pub(crate) fn bytes(
        &mut self,
        content: &[u8],
        executable: bool,
        to: &str,
    ) -> Result<(), CopyError> {
        let (folder, name) = to.rsplit_once('/').unwrap_or(("", to));
        let target = self.folder(folder)?;
        let mut file = create(target.as_fd(), name, to, executable)?;
        file.write_all(content).map_err(|cause| CopyError::Write { path: to.to_owned(), cause })?;
        let content = Sha256::digest(content).into();
        self.copied.insert(to.to_owned(), Copied::File { executable, content });
        Ok(())
    }

    /// Whether something was copied to that path of the context.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.copied.contains_key(path)
    }

    /// The digest of everything copied and of `extra`, which the build depends on besides.
    pub(crate) fn digest(&self, extra: &BTreeMap<String, String>) -> Digest {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(b"updraft build context 1");
        for (path, copied) in &self.copied {
            part(path.as_bytes());
            match copied {
                Copied::Folder => part(b"folder"),
                Copied::File { executable, content } => {
                    part(if *executable { b"executable" } else { b"file" });
                    part(content);
                }
                Copied::Link { target } => {
                    part(b"link");
                    part(target.as_bytes());
                }
            }
        }
        for (name, value) in extra {
            part(b"argument");
            part(name.as_bytes());
            part(value.as_bytes());
        }
        Digest::from_bytes(hash.finalize().into())
    }

    fn walk(
        &mut self,
        source: BorrowedFd<'_>,
        target: &OwnedFd,
        place: &Place<'_>,
        skip: &dyn Fn(&str) -> bool,
    ) -> Result<(), CopyError> {
        let here = join(place.root, place.below);
        for name in self.names(source, &here)? {
            if place.depth == 0 && skip(&name) {
                continue;
            }
            let path = join(&here, &name);
            let below = join(place.below, &name);
            if below.len() > self.limits.path_bytes {
                return Err(CopyError::PathBytes { path, limit: self.limits.path_bytes });
            }
            let context = join(place.context, &name);
            let read = |errno: Errno| CopyError::Read { path: path.clone(), cause: errno.into() };
            let stat = rustix::fs::statat(source, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(read)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    if place.depth >= self.limits.depth {
                        return Err(CopyError::Depth { path, limit: self.limits.depth });
                    }
                    let flags =
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let inner = rustix::fs::openat(source, name.as_str(), flags, Mode::empty())
                        .map_err(read)?;
                    let inner_target = make_folder(target.as_fd(), &name, &context)?;
                    self.copied.insert(context.clone(), Copied::Folder);
                    let inner_place = Place {
                        root: place.root,
                        below: &below,
                        context: &context,
                        depth: place.depth + 1,
                    };
                    self.walk(inner.as_fd(), &inner_target, &inner_place, skip)?;
                }
                FileType::RegularFile => {
                    // What was a file a moment ago may be a FIFO now, which would block the open.
                    let flags =
                        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    let file = rustix::fs::openat(source, name.as_str(), flags, Mode::empty())
                        .map_err(read)?;
                    self.copy_file(&mut File::from(file), &path, target, &name, &context)?;
                }
                FileType::Symlink => {
                    let link =
                        rustix::fs::readlinkat(source, name.as_str(), Vec::new()).map_err(read)?;
                    let link = link.to_string_lossy().into_owned();
                    if !stays_inside(&link, place.depth) || link.len() > self.limits.path_bytes {
                        return Err(CopyError::Link {
                            link: path,
                            target: link,
                            root: place.root.to_owned(),
                        });
                    }
                    replace_file(target.as_fd(), &name, &context)?;
                    rustix::fs::symlinkat(link.as_str(), target, name.as_str()).map_err(
                        |errno| CopyError::Write { path: context.clone(), cause: errno.into() },
                    )?;
                    self.copied.insert(context, Copied::Link { target: link });
                }
                other => return Err(CopyError::Special { path, kind: kind_name(other) }),
            }
        }
        Ok(())
    }

    /// The names in a folder, sorted; each counts.
    fn names(&mut self, source: BorrowedFd<'_>, folder: &str) -> Result<Vec<String>, CopyError> {
        let read = |errno: Errno| CopyError::Read { path: folder.to_owned(), cause: errno.into() };
        let mut names = Vec::new();
        for entry in Dir::read_from(source).map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = entry.file_name();
            match name.to_str() {
                Ok("." | "..") => {}
                Ok(name) if !name.chars().any(char::is_control) => {
                    self.count(folder)?;
                    names.push(name.to_owned());
                }
                _ => {
                    return Err(CopyError::Name {
                        folder: folder.to_owned(),
                        name: name.to_string_lossy().into_owned(),
                    });
                }
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn count(&mut self, path: &str) -> Result<(), CopyError> {
        self.files += 1;
        if self.files > self.limits.files {
            return Err(CopyError::Files { path: path.to_owned(), limit: self.limits.files });
        }
        Ok(())
    }

    fn copy_file(
        &mut self,
        file: &mut File,
        path: &str,
        target: &OwnedFd,
        name: &str,
        context: &str,
    ) -> Result<(), CopyError> {
        let read = |cause: std::io::Error| CopyError::Read { path: path.to_owned(), cause };
        let write = |cause: std::io::Error| CopyError::Write { path: context.to_owned(), cause };
        let stat = rustix::fs::fstat(&*file).map_err(|errno| read(errno.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            return Err(CopyError::Special { path: path.to_owned(), kind: kind_name(kind) });
        }
        // The size is told before a byte is read: a sparse file costs nothing to make.
        self.check_size(path, u64::try_from(stat.st_size).unwrap_or(u64::MAX))?;
        let executable = stat.st_mode & 0o111 != 0;
        let mut out = create(target.as_fd(), name, context, executable)?;
        let mut hash = Sha256::new();
        let mut size = 0;
        loop {
            let count = file.read(&mut self.buffer).map_err(read)?;
            if count == 0 {
                break;
            }
            size += count as u64;
            self.check_size(path, size)?;
            hash.update(&self.buffer[..count]);
            out.write_all(&self.buffer[..count]).map_err(write)?;
        }
        self.bytes += size;
        let content = hash.finalize().into();
        self.copied.insert(context.to_owned(), Copied::File { executable, content });
        Ok(())
    }

    fn check_size(&self, path: &str, size: u64) -> Result<(), CopyError> {
        if size > self.limits.file_bytes {
            let limit = self.limits.file_bytes;
            return Err(CopyError::FileBytes { path: path.to_owned(), size, limit });
        }
        if self.bytes.saturating_add(size) > self.limits.total_bytes {
            let limit = self.limits.total_bytes;
            return Err(CopyError::TotalBytes { path: path.to_owned(), limit });
        }
        Ok(())
    }

    /// Makes and opens a folder of the context with all above it.
    fn folder(&mut self, path: &str) -> Result<OwnedFd, CopyError> {
        let write = |errno: Errno| CopyError::Write { path: path.to_owned(), cause: errno.into() };
        let mut folder = rustix::io::fcntl_dupfd_cloexec(&self.destination, 0).map_err(write)?;
        let mut done = String::new();
        for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
            done = join(&done, part);
            folder = make_folder(folder.as_fd(), part, &done)?;
            self.copied.insert(done.clone(), Copied::Folder);
        }
        Ok(folder)
    }
}

/// Whether a link `depth` folders below a tree's root can only lead to places inside the tree.
///
/// All `..` must come first: then they go up from the folder that the link really is in. One after a
/// name could go up from wherever another link leads.
fn stays_inside(target: &str, depth: usize) -> bool {
    if target.is_empty() || target.starts_with('/') || target.chars().any(char::is_control) {
        return false;
    }
    let mut up = 0;
    let mut down = false;
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if down => return false,
            ".." => up += 1,
            _ => down = true,
        }
    }
    up <= depth && !target.contains('\u{fffd}')
}

fn make_folder(parent: BorrowedFd<'_>, name: &str, context: &str) -> Result<OwnedFd, CopyError> {
    let write = |errno: Errno| CopyError::Write { path: context.to_owned(), cause: errno.into() };
    let mode = Mode::from_raw_mode(0o755);
    let made = match rustix::fs::mkdirat(parent, name, mode) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(write(errno)),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder =
        rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP => CopyError::Conflict { path: context.to_owned() },
            errno => write(errno),
        })?;
    if made {
        rustix::fs::fchmod(&folder, mode).map_err(write)?;
    }
    Ok(folder)
}

/// Makes room for a file or link where another file or link may be.
fn replace_file(parent: BorrowedFd<'_>, name: &str, context: &str) -> Result<(), CopyError> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => Err(CopyError::Conflict { path: context.to_owned() }),
        Err(errno) => Err(CopyError::Write { path: context.to_owned(), cause: errno.into() }),
    }
}

fn create(
    parent: BorrowedFd<'_>,
    name: &str,
    context: &str,
    executable: bool,
) -> Result<File, CopyError> {
    let write = |errno: Errno| CopyError::Write { path: context.to_owned(), cause: errno.into() };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(if executable { 0o755 } else { 0o644 });
    let file = match rustix::fs::openat(parent, name, flags, mode) {
        Err(Errno::EXIST) => {
            replace_file(parent, name, context)?;
            rustix::fs::openat(parent, name, flags, mode).map_err(write)?
        }
        other => other.map_err(write)?,
    };
    rustix::fs::fchmod(&file, mode).map_err(write)?;
    Ok(File::from(file))
}

const fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        FileType::Directory => "folder",
        FileType::RegularFile => "file",
        FileType::Symlink => "symbolic link",
        FileType::Unknown => "thing of unknown kind",
    }
}

#[cfg(test)]
mod tests;
