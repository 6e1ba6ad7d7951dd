//! Loads image archives, as `docker save` and its relatives write them.
//!
//! The archive is walked before `buildah` sees it, to know the names in it and to refuse what is
//! no archive or would fill the disk.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use updraft_model::ImageRef;

use crate::store::ImageStore;
use crate::{ImageError, process};

const ENTRIES_MAX: usize = 20_000;
const INDEX_MAX: u64 = 4 << 20;
const NAMES_MAX: usize = 256;
/// How often the disk is looked at while an archive is taken in.
const WATCH: Duration = Duration::from_millis(500);

/// What an archive says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    format: &'static str,
    /// Names in the order of the images; an image may have several or none.
    names: Vec<Vec<ImageRef>>,
}

#[derive(Deserialize)]
struct DockerEntry {
    #[serde(rename = "RepoTags", default)]
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct OciIndex {
    #[serde(default)]
    manifests: Vec<OciEntry>,
}

#[derive(Deserialize)]
struct OciEntry {
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

impl ImageStore {
    /// Takes in an OCI or Docker archive, plain or compressed with gzip, under the names it
    /// carries, and gives these back. Names that are here already mean the new images afterwards.
    pub async fn load(&self, archive: &Path) -> Result<Vec<ImageRef>, ImageError> {
        let _working = self.working().await;
        self.check_free()?;
        let room = self.free_bytes()?.saturating_sub(self.free_bytes_min());
        let stage = Stage::new(&self.root().join("updraft-tmp"));
        let (path, place) = (archive.to_owned(), stage.0.clone());
        let read = tokio::task::spawn_blocking(move || {
            let source = staged(&path, &place, room)?;
            let file = File::open(&source).map_err(|error| error.to_string())?;
            Ok((walk(io::BufReader::new(file), room)?, source))
        });
        let read = read.await.unwrap_or_else(|panic| Err(io::Error::other(panic).to_string()));
        let wrong = |reason| ImageError::Archive { path: archive.to_owned(), reason };
        let (contents, source) = read.map_err(wrong)?;
        if contents.names.iter().all(Vec::is_empty) {
            let reason = "it carries no name, save it again with `docker save NAME:TAG`";
            return Err(wrong(reason.to_owned()));
        }
        let action = format!("load `{}`", archive.display());
        let ids = self.take_in(&contents, &source, &action).await?;
        for (id, names) in ids.iter().zip(&contents.names) {
            for name in names {
                let mut command = self.command();
                command.args(["tag", id, &crate::name::stored(name)]);
                process::output(command, "buildah", &action, crate::store::SHORT).await?;
            }
        }
        Ok(contents.names.into_iter().flatten().collect())
    }

    /// Writes an image that is here into a Docker archive, under the name `image`.
    pub async fn save(&self, image: &ImageRef, archive: &Path) -> Result<(), ImageError> {
        let missing = || ImageError::Missing { image: image.clone(), why: String::new() };
        let found = self.resolve(image).await?.ok_or_else(missing)?;
        if archive.to_string_lossy().contains([':', ',']) {
            let reason = "its path holds `:` or `,`, choose another".to_owned();
            return Err(ImageError::Archive { path: archive.to_owned(), reason });
        }
        let mut command = self.policed("push");
        command.arg("--quiet").arg(found.id.hex());
        let name = crate::name::candidates(image).swap_remove(0);
        command.arg(format!("docker-archive:{}:{name}", archive.display()));
        let action = format!("save image `{image}`");
        let limit = self.inner().options.pull_limit;
        process::output(command, "buildah", &action, limit).await.map(drop)
    }

    /// Lets `buildah` read the archive's images one by one; gives back their ids.
    async fn take_in(
        &self,
        contents: &Contents,
        source: &Path,
        action: &str,
    ) -> Result<Vec<String>, ImageError> {
        let mut ids = Vec::new();
        for index in 0..contents.names.len() {
            let mut command = self.policed("pull");
            let which = (contents.names.len() > 1).then(|| format!(":@{index}"));
            let which = which.unwrap_or_default();
            let from = format!("{}:{}{which}", contents.format, source.display());
            command.args(["--quiet", "--policy", "always", &from]);
            let limit = self.inner().options.pull_limit;
            let pull = process::output(command, "buildah", action, limit);
            let id = tokio::select! {
                pulled = pull => pulled?,
                full = self.watch_free() => return Err(full),
            };
            ids.push(id.lines().last().unwrap_or_default().trim().to_owned());
        }
        Ok(ids)
    }

    /// Ends when the store's disk is nearly full.
    async fn watch_free(&self) -> ImageError {
        loop {
            tokio::time::sleep(WATCH).await;
            if let Err(full) = self.check_free() {
                return full;
            }
        }
    }
}

/// A file beside the store, gone when this is.
struct Stage(PathBuf);

impl Stage {
    fn new(folder: &Path) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(folder.join(format!("load-{}-{number}.tar", std::process::id())))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(cause) = fs::remove_file(&self.0)
            && cause.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%cause, file = %self.0.display(), "a temporary file stays");
        }
    }
}

/// Where `buildah` can read the archive: not every kind of archive may be compressed for it, and
/// it splits what it is given at `:`. Compressed archives are unpacked to `stage`, as far as there
/// is room.
fn staged(path: &Path, stage: &Path, room: u64) -> Result<PathBuf, String> {
    let told = |error: io::Error| error.to_string();
    let mut file = File::open(path).map_err(told)?;
    let mut magic = [0; 2];
    let gzip = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    if gzip {
        file.rewind().map_err(told)?;
        let mut unpacked = MultiGzDecoder::new(io::BufReader::new(file)).take(room);
        let mut target = File::create(stage).map_err(told)?;
        let size = io::copy(&mut unpacked, &mut target)
            .map_err(|error| format!("it cannot be unpacked ({error})"))?;
        if size >= room {
            return Err(too_large(room));
        }
        Ok(stage.to_owned())
    } else if path.to_string_lossy().contains([':', ',']) {
        let target = path.canonicalize().map_err(told)?;
        std::os::unix::fs::symlink(target, stage).map_err(told)?;
        Ok(stage.to_owned())
    } else {
        Ok(path.to_owned())
    }
}

fn too_large(room: u64) -> String {
    format!("it holds more than the {} MiB that are free", room >> 20)
}

fn walk(reader: impl Read, room: u64) -> Result<Contents, String> {
    let mut archive = tar::Archive::new(reader);
    let no_archive = |error: io::Error| format!("it is no tar archive ({error})");
    let mut docker = None;
    let mut oci = None;
    let mut bytes = 0_u64;
    for (count, entry) in archive.entries().map_err(no_archive)?.enumerate() {
        let mut entry = entry.map_err(no_archive)?;
        if count >= ENTRIES_MAX {
            return Err(format!("it has more than {ENTRIES_MAX} files"));
        }
        bytes = bytes.saturating_add(entry.size());
        if bytes >= room {
            return Err(too_large(room));
        }
        let name = entry.path_bytes().into_owned();
        let name = name.strip_prefix(b"./").unwrap_or(&name);
        let slot = match name {
            b"manifest.json" => &mut docker,
            b"index.json" => &mut oci,
            _ => continue,
        };
        if entry.size() > INDEX_MAX {
            return Err("its index is too large".to_owned());
        }
        let mut text = Vec::new();
        entry.read_to_end(&mut text).map_err(no_archive)?;
        *slot = Some(text);
    }
    let names = if let Some(text) = &docker {
        let entries: Vec<DockerEntry> = serde_json::from_slice(text)
            .map_err(|error| format!("its `manifest.json` is wrong ({error})"))?;
        Contents {
            format: "docker-archive",
            names: parse_names(entries.into_iter().map(|entry| entry.tags.unwrap_or_default()))?,
        }
    } else if let Some(text) = &oci {
        let index: OciIndex = serde_json::from_slice(text)
            .map_err(|error| format!("its `index.json` is wrong ({error})"))?;
        let names = index.manifests.into_iter().map(|entry| {
            let annotations = entry.annotations.unwrap_or_default();
            let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
            keys.iter().find_map(|key| annotations.get(*key)).cloned().into_iter().collect()
        });
        Contents { format: "oci-archive", names: parse_names(names)? }
    } else {
        return Err("it has neither `manifest.json` nor `index.json`".to_owned());
    };
    if names.names.iter().map(Vec::len).sum::<usize>() > NAMES_MAX {
        return Err(format!("it carries more than {NAMES_MAX} names"));
    }
    Ok(names)
}

fn parse_names(images: impl Iterator<Item = Vec<String>>) -> Result<Vec<Vec<ImageRef>>, String> {
    let parse = |name: String| name.parse::<ImageRef>().map_err(|error| error.to_string());
    images.map(|names| names.into_iter().map(parse).collect()).collect()
}
