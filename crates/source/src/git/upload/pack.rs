//! The client's half: a working tree becomes an archive.
//!
//! What git would ignore is left out. Runs on the machine and with the rights of the person whose
//! tree it is, so here git reads that person's configuration.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::git::GitBody;
use crate::git::contained::{ContentError, ContentLimits, Kind, Manifest};

/// Pieces of an archive between the disk and the network.
const PIECES_IN_FLIGHT: usize = 16;

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Packed {
    /// Files and links.
    pub files: usize,
    /// Bytes of them, before compression.
    pub bytes: u64,
    /// Submodules and other things that are no files, which were left out.
    pub left_out: Vec<PathBuf>,
}

/// Why a working tree could not be packed.
#[derive(Debug, Error)]
pub enum PackError {
    /// A file or folder could not be read.
    #[error("cannot read `{}`, check that it exists and may be read", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// A file changed its size while it was read.
    #[error("`{}` changed while it was read, try again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The archive could not be passed on: the other side left.
    #[error("the archive could not be sent, try again")]
    Write(#[source] io::Error),
    /// The tree breaks a rule or a limit of the server.
    #[error(transparent)]
    Content(#[from] ContentError),
}

/// Packs the working tree `folder` as a gzipped tar archive into `out`. Blocks.
///
/// In a git repository: the tracked files, and the others that are not ignored, as they are on
/// disk. Elsewhere: all files, without `.git`.
///
/// # Errors
/// See [`PackError`].
pub fn pack(folder: &Path, limits: &ContentLimits, out: impl Write) -> Result<Packed, PackError> {
    let paths = match tracked(folder) {
        Some(paths) if !paths.is_empty() => paths,
        _ => walk(folder, limits)?,
    };
    let mut manifest = Manifest::new(limits);
    let mut packed = Packed::default();
    let mut builder = tar::Builder::new(GzEncoder::new(out, Compression::fast()));
    for path in paths {
        let full = folder.join(&path);
        let read = |cause| PackError::Read { path: full.clone(), cause };
        let metadata = match std::fs::symlink_metadata(&full) {
            // Tracked, but deleted from the tree.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(read)?,
        };
        let name = path.as_os_str().as_bytes();
        let mut header = tar::Header::new_gnu();
        // Times and owners do not travel: the same tree is the same archive.
        header.set_mtime(0);
        if metadata.is_symlink() {
            let target = std::fs::read_link(&full).map_err(read)?;
            manifest.add(name, Kind::Link, target.as_os_str().len() as u64)?;
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            builder.append_link(&mut header, &path, &target).map_err(PackError::Write)?;
        } else if metadata.is_file() {
            let file = File::open(&full).map_err(read)?;
            let size = file.metadata().map_err(read)?.len();
            manifest.add(name, Kind::File, size)?;
            let executable = metadata.permissions().mode() & 0o100 != 0;
            header.set_mode(if executable { 0o755 } else { 0o644 });
            header.set_size(size);
            let mut content = Counted { inner: file.take(size), count: 0 };
            builder.append_data(&mut header, &path, &mut content).map_err(PackError::Write)?;
            if content.count != size {
                return Err(PackError::Changed { path: full });
            }
        } else {
            packed.left_out.push(path);
        }
    }
    let gzip = builder.into_inner().map_err(PackError::Write)?;
    gzip.finish().and_then(|mut out| out.flush()).map_err(PackError::Write)?;
    Ok(Packed { files: manifest.files(), bytes: manifest.bytes(), ..packed })
}

/// Packs the working tree as a request body, while it is being sent. If packing fails, the body
/// breaks off, and the handle says why.
pub fn packed_body(
    folder: PathBuf,
    limits: ContentLimits,
) -> (GitBody, JoinHandle<Result<Packed, PackError>>) {
    let (tx, rx) = mpsc::channel::<io::Result<Bytes>>(PIECES_IN_FLIGHT);
    let packing = tokio::task::spawn_blocking(move || {
        let out = io::BufWriter::with_capacity(64 * 1024, BodyWriter { pieces: tx.clone() });
        let packed = pack(&folder, &limits, out);
        if packed.is_err() {
            // Without this the other side would take a half archive for a whole one.
            let _gone = tx.blocking_send(Err(io::ErrorKind::BrokenPipe.into()));
        }
        packed
    });
    let frames = ReceiverStream::new(rx).map(|piece| {
        piece.map(Frame::data).map_err(Box::<dyn std::error::Error + Send + Sync>::from)
    });
    (StreamBody::new(frames).boxed_unsync(), packing)
}

/// What git tracks and does not ignore beneath `folder`; `None` where there is no git or no
/// repository.
fn tracked(folder: &Path) -> Option<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    if !output.status.success() {
        return None;
    }
    let mut paths: Vec<PathBuf> = output
        .stdout
        .split(|&byte| byte == 0)
        .filter(|path| !path.is_empty())
        .map(|path| std::ffi::OsString::from_vec(path.to_vec()).into())
        .collect();
    paths.sort();
    // A file in a merge conflict is listed once for each side.
    paths.dedup();
    Some(paths)
}

/// All files beneath `folder`, without git's own.
fn walk(folder: &Path, limits: &ContentLimits) -> Result<Vec<PathBuf>, PackError> {
    let mut paths = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(relative) = folders.pop() {
        let full = folder.join(&relative);
        let read = |cause| PackError::Read { path: full.clone(), cause };
        for entry in std::fs::read_dir(&full).map_err(read)? {
            let entry = entry.map_err(read)?;
            if entry.file_name() == ".git" {
                continue;
            }
            let path = relative.join(entry.file_name());
            if entry.file_type().map_err(read)?.is_dir() {
                folders.push(path);
            } else {
                paths.push(path);
            }
            if paths.len() + folders.len() > limits.max_files.saturating_mul(2) {
                return Err(ContentError::TooManyFiles { limit: limits.max_files }.into());
            }
        }
    }
    paths.sort();
    Ok(paths)
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let taken = self.inner.read(buffer)?;
        self.count += taken as u64;
        Ok(taken)
    }
}

/// The sending end of a body as a blocking writer.
struct BodyWriter {
    pieces: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for BodyWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(buffer);
        self.pieces.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
