//! Blobs: files that records name, such as the output of a build.

mod stream;

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use crate::BuildId;

pub use stream::{BlobReader, BlobUpload};

/// Said in a log in place of what its limit cut off.
const CUT_OFF: &str = "[the output is longer than is kept, the rest is not shown]\n";

/// The name of a blob: folders and a file name, never a way out of the blob folder.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BlobName(String);

/// The text is no blob name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no blob name")]
pub struct ParseBlobNameError(String);

impl BlobName {
    /// Where the output of a build lies.
    pub fn build_log(build: BuildId) -> Self {
        Self(format!("build-logs/{build}.log"))
    }

    /// A new name in `folder`, which must be a blob name itself.
    pub fn random(folder: &str) -> Self {
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random).expect("the kernel has random bytes once it is up");
        Self(format!("{folder}/{:032x}", u128::from_ne_bytes(random)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BlobName {
    type Err = ParseBlobNameError;

    fn from_str(text: &str) -> Result<Self, ParseBlobNameError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let part_fits =
            |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(fits);
        if text.len() <= 200 && text.split('/').all(part_fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseBlobNameError(text.to_owned()))
        }
    }
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A blob could not be read or written; the machine's fault.
#[derive(Debug, Error)]
#[error("cannot {doing} the blob `{name}`")]
pub struct BlobError {
    doing: &'static str,
    name: BlobName,
    #[source]
    source: io::Error,
}

/// The folder of blobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    folder: Arc<Path>,
}

/// A blob that grows, for instance the log of a build that runs. Others may read it meanwhile.
#[derive(Debug)]
pub struct BlobWriter {
    name: BlobName,
    file: File,
    left: u64,
}

impl Blobs {
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        make_folder(folder)?;
        Ok(Self { folder: folder.into() })
    }

    fn path(&self, name: &BlobName) -> PathBuf {
        self.folder.join(name.as_str())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        doing: &'static str,
        name: &BlobName,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, BlobError> {
        let path = self.path(name);
        let failed = |source| BlobError { doing, name: name.clone(), source };
        tokio::task::spawn_blocking(move || work(&path))
            .await
            .map_err(|error| failed(io::Error::other(error)))?
            .map_err(failed)
    }

    /// Writes a whole blob: readers see the old content or the new one, after a crash as well.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn write(&self, name: &BlobName, content: Vec<u8>) -> Result<(), BlobError> {
        self.blocking("write", name, move |path| {
            let folder = path.parent().unwrap_or(path);
            make_folder(folder)?;
            let unfinished = stream::unfinished_in(folder)?;
            let write = || {
                let mut file = stream::create_private(&unfinished)?;
                file.write_all(&content)?;
                file.sync_all()?;
                std::fs::rename(&unfinished, path)?;
                File::open(folder)?.sync_all()
            };
            let written = write();
            if written.is_err() {
                drop(std::fs::remove_file(&unfinished));
            }
            written
        })
        .await
    }

    /// Up to `max` bytes of a blob from `offset` on; empty at its end, nothing when there is no
    /// such blob.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn read(
        &self,
        name: &BlobName,
        offset: u64,
        max: u64,
    ) -> Result<Option<Vec<u8>>, BlobError> {
        self.blocking("read", name, move |path| {
            let mut file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            file.seek(SeekFrom::Start(offset))?;
            let mut content = Vec::new();
            file.take(max).read_to_end(&mut content)?;
            Ok(Some(content))
        })
        .await
    }

    /// The length of a blob in bytes, or nothing when there is no such blob.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn length(&self, name: &BlobName) -> Result<Option<u64>, BlobError> {
        self.blocking("measure", name, |path| match std::fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    /// Begins a blob that grows line by line up to `limit` bytes; one of that name is emptied.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn create(&self, name: &BlobName, limit: u64) -> Result<BlobWriter, BlobError> {
        let file = self
            .blocking("create", name, |path| {
                make_folder(path.parent().unwrap_or(path))?;
                OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)
            })
            .await?;
        Ok(BlobWriter { name: name.clone(), file, left: limit })
    }

    /// Removes a blob; one that is not there is removed already.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn remove(&self, name: &BlobName) -> Result<(), BlobError> {
        self.blocking("remove", name, |path| match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await
    }
}

impl BlobWriter {
    /// Appends a line, readable at once. Beyond the limit, says so once and drops the rest.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn line(&mut self, text: &str) -> Result<(), BlobError> {
        if self.left == 0 {
            return Ok(());
        }
        let length = text.len() as u64 + 1;
        let content = if length <= self.left {
            self.left -= length;
            format!("{text}\n")
        } else {
            self.left = 0;
            CUT_OFF.to_owned()
        };
        self.file.write_all(content.as_bytes()).map_err(|source| BlobError {
            doing: "append to",
            name: self.name.clone(),
            source,
        })
    }
}

fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_name_cannot_leave_the_folder() {
        for good in ["a", "build-logs/1.log", "a/b_c/d.txt"] {
            assert!(good.parse::<BlobName>().is_ok(), "{good}");
        }
        for bad in ["", "/a", "a/", "..", "a/../b", ".a", "a//b", "a b", "a\0"] {
            assert!(bad.parse::<BlobName>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_growing_blob_can_be_read_while_it_grows() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let name = BlobName::build_log(BuildId::new(7));
        assert_eq!(blobs.read(&name, 0, 10).await.unwrap(), None);
        let mut writer = blobs.create(&name, 100).await.unwrap();
        writer.line("one").unwrap();
        assert_eq!(blobs.read(&name, 0, 100).await.unwrap().unwrap(), b"one\n");
        writer.line("two").unwrap();
        assert_eq!(blobs.read(&name, 4, 100).await.unwrap().unwrap(), b"two\n");
        assert_eq!(blobs.read(&name, 8, 100).await.unwrap().unwrap(), b"");
        assert_eq!(blobs.length(&name).await.unwrap(), Some(8));
    }

    #[tokio::test]
    async fn a_growing_blob_stops_at_its_limit_and_says_so_once() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let name = BlobName::build_log(BuildId::new(1));
        let mut writer = blobs.create(&name, 6).await.unwrap();
        for text in ["abc", "defgh", "i", "j"] {
            writer.line(text).unwrap();
        }
        let content = blobs.read(&name, 0, 1000).await.unwrap().unwrap();
        assert_eq!(String::from_utf8(content).unwrap(), format!("abc\n{CUT_OFF}"));
    }

    #[tokio::test]
    async fn a_blob_is_replaced_whole_and_removed_twice_without_harm() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let name: BlobName = "a/b".parse().unwrap();
        blobs.write(&name, b"long content".to_vec()).await.unwrap();
        blobs.write(&name, b"short".to_vec()).await.unwrap();
        assert_eq!(blobs.read(&name, 0, 100).await.unwrap().unwrap(), b"short");
        assert_eq!(std::fs::read_dir(folder.path().join("a")).unwrap().count(), 1);
        blobs.remove(&name).await.unwrap();
        blobs.remove(&name).await.unwrap();
        assert_eq!(blobs.read(&name, 0, 100).await.unwrap(), None);
    }
}
