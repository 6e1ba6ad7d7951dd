//! The server's half: an archive of a stranger becomes files beneath one folder.
//!
//! Entries are walked one by one and never unpacked by the tar library, whose ways of doing so
//! have had escapes. Headers that change the meaning of later ones are read here, under caps.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, Bytes};
use flate2::bufread::GzDecoder;
use http_body_util::BodyExt;
use tar::{Archive, EntryType, PaxExtensions};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::git::GitBody;
use crate::git::contained::{ContentError, ContentLimits, Kind, Manifest, Writer};
use crate::size::readable;

/// Most bytes of a header that carries a long name.
const LONG_NAME_BYTES: u64 = 64 * 1024;

/// What one entry takes beside its content, at most, on average: headers and padding.
const ENTRY_OVERHEAD: u64 = 4 * 1024;

/// Longest silence of a client that is sending.
const IDLE_LIMIT: Duration = Duration::from_mins(1);

/// How long the rest of a refused upload is read and thrown away.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Pieces of a body between the network and the disk.
const PIECES_IN_FLIGHT: usize = 16;

/// What an upload wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uploaded {
    /// Files and links written.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
}

/// Why an upload was refused or failed.
#[derive(Debug, Error)]
pub enum UploadError {
    /// The client left or its network broke.
    #[error("the upload broke off, try again")]
    Broken(#[source] io::Error),
    /// The client's fault: more was sent than is allowed.
    #[error(
        "the upload is larger than {}, leave out what the functions do not need",
        readable(*limit)
    )]
    TooLarge {
        /// The most bytes allowed, as sent.
        limit: u64,
    },
    /// The client's fault: this is no tar archive, or one with features that nobody needs.
    #[error("the upload is not a usable tar archive ({reason}), send a plain or gzipped one")]
    Format {
        /// What is wrong with it.
        reason: String,
    },
    /// The client's fault: the files break a rule or a limit.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The machine's fault: a file could not be written.
    #[error("cannot write `{}`, check space and permissions", path.display())]
    Storage {
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
}

/// Unpacks the tar archive `body`, gzipped or not, into `destination`, which is made, or must be
/// empty. At most `max_sent_bytes` are read from the body.
///
/// Links are written as links, whatever they point to, and never followed. On an error the
/// destination may hold a part of the files; it is the caller's to remove.
///
/// # Errors
/// See [`UploadError`], which says whose fault it is.
pub async fn unpack(
    mut body: GitBody,
    destination: &Path,
    max_sent_bytes: u64,
    limits: &ContentLimits,
) -> Result<Uploaded, UploadError> {
    let (tx, rx) = mpsc::channel::<io::Result<Bytes>>(PIECES_IN_FLIGHT);
    let (folder, limits) = (destination.to_owned(), limits.clone());
    let writing = tokio::task::spawn_blocking(move || {
        let mut source = BodyReader { pieces: rx, piece: Bytes::new() };
        let uploaded = unpack_from(&mut source, &folder, &limits)?;
        // Behind gzip's end more may follow; a body that broke off in it was not sent whole.
        io::copy(&mut source, &mut io::sink()).map_err(UploadError::Broken)?;
        Ok(uploaded)
    });
    let mut sent = 0;
    let mut whole = true;
    while let Some(piece) = next_piece(&mut body).await {
        sent += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        // The other end leaves when it has found a fault.
        whole = sent <= max_sent_bytes && tx.send(piece).await.is_ok();
        if !whole {
            break;
        }
    }
    if !whole {
        // The writer must not take the end of the pieces for the end of the archive.
        let _gone = tx.send(Err(io::ErrorKind::FileTooLarge.into())).await;
    }
    drop(tx);
    let result = writing.await.map_err(|error| UploadError::Broken(io::Error::other(error)))?;
    if !whole {
        // Many clients read an answer only after they have sent all.
        let rest = async { while let Some(Ok(_)) = next_piece(&mut body).await {} };
        let _late = tokio::time::timeout(DRAIN_LIMIT, rest).await;
    }
    if sent > max_sent_bytes {
        return Err(UploadError::TooLarge { limit: max_sent_bytes });
    }
    result
}

/// The next bytes of a body; `None` at its end.
async fn next_piece(body: &mut GitBody) -> Option<io::Result<Bytes>> {
    loop {
        let Ok(frame) = tokio::time::timeout(IDLE_LIMIT, body.frame()).await else {
            return Some(Err(io::ErrorKind::TimedOut.into()));
        };
        match frame? {
            Err(error) => return Some(Err(io::Error::other(error))),
            Ok(frame) => {
                if let Ok(piece) = frame.into_data() {
                    return Some(Ok(piece));
                }
            }
        }
    }
}

/// Unpacks from a blocking reader.
fn unpack_from(
    source: &mut BodyReader,
    destination: &Path,
    limits: &ContentLimits,
) -> Result<Uploaded, UploadError> {
    let storage = |cause| UploadError::Storage { path: destination.to_owned(), cause };
    std::fs::create_dir_all(destination).map_err(storage)?;
    let writer = Writer::open(destination).map_err(storage)?;
    // Whatever the archive claims, no more than this is ever unpacked.
    let overhead = (limits.max_files as u64).saturating_mul(ENTRY_OVERHEAD);
    let cap = limits.max_bytes.saturating_add(overhead).saturating_add(1024 * 1024);
    let mut unpacking = Unpacking {
        manifest: Manifest::new(limits),
        writer,
        destination,
        links: Vec::new(),
        long_path: None,
        long_link: None,
    };
    let mut start = [0; 2];
    source.peek(&mut start).map_err(UploadError::Broken)?;
    if start == [0x1f, 0x8b] {
        let buffered = io::BufReader::new(source);
        unpacking.walk(Capped { inner: GzDecoder::new(buffered), left: cap })?;
    } else {
        unpacking.walk(Capped { inner: source, left: cap })?;
    }
    // Links last: no file can then be written behind one.
    for (path, target) in std::mem::take(&mut unpacking.links) {
        let cause = |cause| UploadError::Storage { path: destination.join(&path), cause };
        unpacking.writer.link(&path, &target).map_err(cause)?;
    }
    Ok(Uploaded { files: unpacking.manifest.files(), bytes: unpacking.manifest.bytes() })
}

struct Unpacking<'a> {
    manifest: Manifest<'a>,
    writer: Writer,
    destination: &'a Path,
    links: Vec<(String, Vec<u8>)>,
    /// Names for the next entry that did not fit its header.
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Unpacking<'_> {
    fn walk(&mut self, mut source: impl Read) -> Result<(), UploadError> {
        let mut archive = Archive::new(&mut source);
        // Raw: the library would read long names without a cap and let them change sizes.
        let entries = archive.entries().map_err(broken)?.raw(true);
        for entry in entries {
            let mut entry = entry.map_err(broken)?;
            let size = entry.header().entry_size().map_err(broken)?;
            match entry.header().entry_type() {
                EntryType::XHeader => self.extended(&read_short(&mut entry, size)?)?,
                EntryType::GNULongName => self.long_path = Some(read_text(&mut entry, size)?),
                EntryType::GNULongLink => self.long_link = Some(read_text(&mut entry, size)?),
                // Comments of the whole archive, such as the commit that `git archive` names.
                EntryType::XGlobalHeader => {}
                kind => {
                    let path = self.long_path.take();
                    let path = path.unwrap_or_else(|| entry.header().path_bytes().into_owned());
                    let link = self.long_link.take();
                    let link =
                        link.or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned));
                    self.entry(kind, &path, link, size, &mut entry)?;
                }
            }
        }
        // Archives end in padding, and gzip in a checksum: only when they have been seen was the
        // archive sent whole.
        io::copy(&mut source, &mut io::sink()).map_err(broken)?;
        Ok(())
    }

    /// Takes the names out of an extended header.
    fn extended(&mut self, bytes: &[u8]) -> Result<(), UploadError> {
        for extension in PaxExtensions::new(bytes) {
            let extension = extension.map_err(broken)?;
            match extension.key_bytes() {
                b"path" => self.long_path = Some(extension.value_bytes().to_vec()),
                b"linkpath" => self.long_link = Some(extension.value_bytes().to_vec()),
                // Two sizes for one entry make two readers see two archives.
                b"size" => return Err(format_error("it has a size outside a header")),
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(format_error("it has sparse files"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        kind: EntryType,
        path: &[u8],
        link: Option<Vec<u8>>,
        size: u64,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> Result<(), UploadError> {
        // `tar -c .` puts `./` before all names, and `/` behind those of folders.
        let mut path = path;
        while let Some(rest) = path.strip_prefix(b"./") {
            path = rest;
        }
        match kind {
            EntryType::Directory => {
                let path = path.strip_suffix(b"/").unwrap_or(path);
                if path.is_empty() || path == b"." {
                    return Ok(());
                }
                let path = self.manifest.add(path, Kind::Folder, 0)?;
                self.writer.folder(path).map_err(|cause| storage(self.destination, path, cause))
            }
            EntryType::Regular | EntryType::Continuous => {
                let path = self.manifest.add(path, Kind::File, size)?;
                let executable = entry.header().mode().map_err(broken)? & 0o100 != 0;
                let file = self.writer.file(path, executable);
                let mut file = file.map_err(|cause| storage(self.destination, path, cause))?;
                copy(entry, &mut file, size, |cause| storage(self.destination, path, cause))
            }
            EntryType::Symlink => {
                let target = link.unwrap_or_default();
                let path = self.manifest.add(path, Kind::Link, target.len() as u64)?.to_owned();
                if target.is_empty() || target.contains(&0) {
                    return Err(ContentError::BadLink { path }.into());
                }
                self.links.push((path, target));
                Ok(())
            }
            other => {
                let path = self.manifest.add(path, Kind::File, 0)?.to_owned();
                let kind = match other {
                    EntryType::Link => "a hard link",
                    EntryType::Fifo => "a pipe",
                    EntryType::Block | EntryType::Char => "a device",
                    EntryType::GNUSparse => "a sparse file",
                    _ => "of an unknown kind",
                };
                Err(ContentError::BadKind { path, kind: kind.to_owned() }.into())
            }
        }
    }
}

fn copy(
    from: &mut impl Read,
    to: &mut impl Write,
    size: u64,
    storage: impl Fn(io::Error) -> UploadError,
) -> Result<(), UploadError> {
    let mut buffer = [0; 16 * 1024];
    let mut left = size;
    while left > 0 {
        let taken = from.read(&mut buffer).map_err(broken)?;
        if taken == 0 {
            return Err(UploadError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        to.write_all(&buffer[..taken]).map_err(&storage)?;
        left = left.saturating_sub(taken as u64);
    }
    Ok(())
}

fn storage(destination: &Path, path: &str, cause: io::Error) -> UploadError {
    UploadError::Storage { path: destination.join(path), cause }
}

/// A header's own content, which is short.
fn read_short(entry: &mut impl Read, size: u64) -> Result<Vec<u8>, UploadError> {
    if size > LONG_NAME_BYTES {
        return Err(format_error("it has an overlong header"));
    }
    let mut bytes = Vec::new();
    entry.take(size).read_to_end(&mut bytes).map_err(broken)?;
    Ok(bytes)
}

/// A long name, which ends in a zero.
fn read_text(entry: &mut impl Read, size: u64) -> Result<Vec<u8>, UploadError> {
    let mut bytes = read_short(entry, size)?;
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    Ok(bytes)
}

fn format_error(reason: &str) -> UploadError {
    UploadError::Format { reason: reason.to_owned() }
}

/// An error on the way: of the network, or of the archive itself.
fn broken(error: io::Error) -> UploadError {
    match error.kind() {
        io::ErrorKind::ConnectionAborted | io::ErrorKind::UnexpectedEof => {
            UploadError::Broken(error)
        }
        io::ErrorKind::QuotaExceeded => format_error("it unpacks to far more than it holds"),
        _ => {
            let reason = error.to_string();
            UploadError::Format { reason: crate::git::report::terminal_line(&reason) }
        }
    }
}

/// A body as a blocking reader.
struct BodyReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl BodyReader {
    /// The first bytes, which stay to be read; fewer if there are not so many.
    fn peek(&mut self, start: &mut [u8]) -> io::Result<()> {
        let mut bytes = bytes::BytesMut::new();
        while bytes.len() < start.len() && self.more()? {
            bytes.extend_from_slice(&std::mem::take(&mut self.piece));
        }
        self.piece = bytes.freeze();
        let length = start.len().min(self.piece.len());
        start[..length].copy_from_slice(&self.piece[..length]);
        Ok(())
    }

    /// Whether there is a piece to read from.
    fn more(&mut self) -> io::Result<bool> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(false),
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, error));
                }
            }
        }
        Ok(true)
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || !self.more()? {
            return Ok(0);
        }
        let length = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// A reader that fails, rather than ends, after so many bytes.
struct Capped<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let taken = self.inner.read(buffer)?;
        let left = self.left.checked_sub(taken as u64);
        self.left = left.ok_or(io::ErrorKind::QuotaExceeded)?;
        Ok(taken)
    }
}
