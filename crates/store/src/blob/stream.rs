//! Blobs too large for memory: written and read piece by piece.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{BlobError, BlobName, Blobs, make_folder};

/// Most bytes that are read at once.
const PIECE: usize = 64 << 10;

/// Begins the name of a file that is not a blob yet.
pub(super) const UNFINISHED: &str = ".new-";

/// A blob under way: nobody sees it before [`BlobUpload::finish`], and dropped before that it is
/// gone.
#[derive(Debug)]
pub struct BlobUpload {
    name: BlobName,
    path: PathBuf,
    file: Option<File>,
    unfinished: PathBuf,
}

/// Reads a blob from its beginning.
#[derive(Debug)]
pub struct BlobReader {
    name: BlobName,
    file: File,
    length: u64,
}

/// A path in `folder` that no blob can have, so that a leftover of a crash is never served.
pub(super) fn unfinished_in(folder: &Path) -> io::Result<PathBuf> {
    let mut number = [0; 8];
    getrandom::fill(&mut number).map_err(io::Error::other)?;
    Ok(folder.join(format!("{UNFINISHED}{:016x}", u64::from_ne_bytes(number))))
}

pub(super) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)
}

async fn blocking<T: Send + 'static>(
    doing: &'static str,
    name: &BlobName,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, BlobError> {
    let failed = |source| BlobError { doing, name: name.clone(), source };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| failed(io::Error::other(error)))?
        .map_err(failed)
}

impl Blobs {
    /// Begins a blob that comes in pieces.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn upload(&self, name: &BlobName) -> Result<BlobUpload, BlobError> {
        let path = self.path(name);
        let begin = {
            let path = path.clone();
            move || {
                let folder = path.parent().unwrap_or(&path);
                make_folder(folder)?;
                let unfinished = unfinished_in(folder)?;
                Ok((create_private(&unfinished)?, unfinished))
            }
        };
        let (file, unfinished) = blocking("begin", name, begin).await?;
        Ok(BlobUpload { name: name.clone(), path, file: Some(file), unfinished })
    }

    /// Opens a blob to be read in pieces; nothing when there is no such blob.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn open_blob(&self, name: &BlobName) -> Result<Option<BlobReader>, BlobError> {
        let path = self.path(name);
        let open = move || match File::open(path) {
            Ok(file) => {
                let length = file.metadata()?.len();
                Ok(Some((file, length)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let opened = blocking("open", name, open).await?;
        Ok(opened.map(|(file, length)| BlobReader { name: name.clone(), file, length }))
    }

    /// Removes the files of a folder of blobs, unfinished ones included, whose blob `is_kept` does
    /// not know: what a crash left between a blob and its record. Nothing may be uploaded
    /// meanwhile. Returns how many went.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn sweep(
        &self,
        folder: &BlobName,
        is_kept: impl Fn(&BlobName) -> bool + Send + 'static,
    ) -> Result<usize, BlobError> {
        let path = self.path(folder);
        let prefix = folder.clone();
        let sweep = move || {
            let entries = match std::fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
                Err(error) => return Err(error),
            };
            let mut removed = 0;
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name().into_string().ok();
                let name: Option<BlobName> =
                    name.and_then(|name| format!("{prefix}/{name}").parse().ok());
                if !name.is_some_and(|name| is_kept(&name)) && entry.file_type()?.is_file() {
                    std::fs::remove_file(entry.path())?;
                    removed += 1;
                }
            }
            Ok(removed)
        };
        blocking("sweep", folder, sweep).await
    }
}

impl BlobUpload {
    /// Adds a piece.
    ///
    /// # Errors
    /// See [`BlobError`]; the upload is of no use after one.
    pub async fn append(
        &mut self,
        piece: impl AsRef<[u8]> + Send + 'static,
    ) -> Result<(), BlobError> {
        let closed = || io::Error::other("an earlier piece could not be written");
        let file = self.file.take();
        let append = move || {
            let mut file = file.ok_or_else(closed)?;
            file.write_all(piece.as_ref())?;
            Ok(file)
        };
        self.file = Some(blocking("write", &self.name, append).await?);
        Ok(())
    }

    /// Makes the blob visible; it is on the disk when this returns.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn finish(mut self) -> Result<(), BlobError> {
        let closed = || io::Error::other("an earlier piece could not be written");
        let (file, from, to) = (self.file.take(), self.unfinished.clone(), self.path.clone());
        let finish = move || {
            file.ok_or_else(closed)?.sync_all()?;
            std::fs::rename(&from, &to)?;
            File::open(to.parent().unwrap_or(&to))?.sync_all()
        };
        blocking("finish", &self.name, finish).await
    }
}

impl Drop for BlobUpload {
    fn drop(&mut self) {
        // After `finish` there is nothing of that name any more.
        drop(std::fs::remove_file(&self.unfinished));
    }
}

impl BlobReader {
    /// The length of the whole blob in bytes.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// The next piece; none at the end.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn next(self) -> Result<Option<(Vec<u8>, Self)>, BlobError> {
        let Self { name, mut file, length } = self;
        let read = move || {
            let mut piece = vec![0; PIECE];
            let count = file.read(&mut piece)?;
            piece.truncate(count);
            Ok((piece, file))
        };
        let (piece, file) = blocking("read", &name, read).await?;
        Ok((!piece.is_empty()).then_some((piece, Self { name, file, length })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_in_pieces_is_seen_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let name: BlobName = "bodies/one".parse().unwrap();
        let mut upload = blobs.upload(&name).await.unwrap();
        upload.append(vec![b'a'; PIECE]).await.unwrap();
        assert!(blobs.open_blob(&name).await.unwrap().is_none());
        upload.append(b"end".to_vec()).await.unwrap();
        upload.finish().await.unwrap();
        let mut reader = blobs.open_blob(&name).await.unwrap().unwrap();
        assert_eq!(reader.length(), PIECE as u64 + 3);
        let mut content = Vec::new();
        while let Some((piece, rest)) = reader.next().await.unwrap() {
            content.extend(piece);
            reader = rest;
            if content.len() == PIECE + 3 {
                break;
            }
        }
        assert!(content.ends_with(b"aend"));
    }

    #[tokio::test]
    async fn a_dropped_upload_leaves_nothing_and_a_sweep_takes_what_no_record_names() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let bodies: BlobName = "bodies".parse().unwrap();
        assert_eq!(blobs.sweep(&bodies, |_| true).await.unwrap(), 0);
        let (kept, lost): (BlobName, BlobName) =
            ("bodies/kept".parse().unwrap(), "bodies/lost".parse().unwrap());
        for name in [&kept, &lost] {
            blobs.write(name, b"x".to_vec()).await.unwrap();
        }
        let mut upload = blobs.upload(&"bodies/new".parse().unwrap()).await.unwrap();
        upload.append(b"x".to_vec()).await.unwrap();
        drop(upload);
        std::fs::write(folder.path().join("bodies/.new-1"), b"of a crash").unwrap();
        let is_kept = {
            let kept = kept.clone();
            move |name: &BlobName| *name == kept
        };
        assert_eq!(blobs.sweep(&bodies, is_kept).await.unwrap(), 2);
        assert_eq!(blobs.length(&kept).await.unwrap(), Some(1));
        assert_eq!(blobs.length(&lost).await.unwrap(), None);
    }
}
