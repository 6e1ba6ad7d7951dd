//! Output of replicas: one file each, written by the replica itself, so that nothing is lost
//! while Updraft is away; read, bounded and rotated by Updraft.
//!
//! A file holds the lines as they were written, without times. The keeper is told by the kernel
//! when a file grows and notes beside it until which byte it had come at what time; a line's time
//! is that of the first note after it. What was written while Updraft was away gets the time at
//! which the file was last written to.
//!
//! A file that is too large loses its oldest part in place: it stays the same file with the same
//! offsets, so that neither the replica nor a reader has to know.

mod follow;
mod keeper;
mod read;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use updraft_engine::ReplicaId;
use updraft_model::FunctionId;

use crate::options::LocalEngineOptions;

pub(crate) use follow::stream;
pub(crate) use keeper::{Limits, Looked, keep};

/// Longest line that is handed on whole; a longer one comes in pieces.
const LINE_MAX: usize = 64 * 1024;

/// The folder of one function's log files.
pub(crate) fn folder(options: &LocalEngineOptions, id: &FunctionId) -> PathBuf {
    options.logs.join(id.namespace.as_str()).join(id.name.as_str())
}

/// A replica's log file.
pub(crate) fn file(options: &LocalEngineOptions, id: &FunctionId, replica: &ReplicaId) -> PathBuf {
    folder(options, id).join(format!("{replica}.log"))
}

/// The older part of a log file.
fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// The notes about when a log file had come how far.
fn index(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".times");
    name.into()
}

/// Makes the log file of a new replica, to be handed to its process.
pub(crate) fn create(
    options: &LocalEngineOptions,
    id: &FunctionId,
    replica: &ReplicaId,
) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder(options, id))?;
    OpenOptions::new().create(true).append(true).mode(0o600).open(file(options, id, replica))
}

/// The last lines of a replica, oldest first; none when they cannot be read.
pub(crate) async fn tail(
    options: &LocalEngineOptions,
    id: &FunctionId,
    replica: &ReplicaId,
    lines: usize,
) -> Vec<String> {
    let path = file(options, id, replica);
    let read = tokio::task::spawn_blocking(move || read::tail(&path, lines)).await;
    read.unwrap_or_default()
}

/// Removes the oldest files of ended replicas, so that at most `kept` of them with `bytes`
/// together are left.
pub(crate) fn prune(folder: &Path, kept: usize, bytes: u64, runs: impl Fn(&str) -> bool) {
    let mut ended: Vec<_> = read::log_files(folder)
        .into_iter()
        .filter(|(replica, _)| !runs(replica))
        .map(|(_, path)| {
            let written = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
            (written, path)
        })
        .collect();
    ended.sort();
    let mut left = bytes;
    // The newest first.
    for (number, (_, path)) in ended.into_iter().rev().enumerate() {
        let size = on_disk(&path) + on_disk(&older(&path));
        if number >= kept || size > left {
            left = 0;
            remove(&path);
        } else {
            left -= size;
        }
    }
}

/// Removes all log files of a function whose replicas have ended.
pub(crate) fn remove_all(folder: &Path, runs: impl Fn(&str) -> bool) {
    prune(folder, 0, 0, runs);
    // Fails when a newer function of the same name has files there, which is right.
    drop(fs::remove_dir(folder));
}

/// What a file takes of its disk, parts that were taken out not counted.
fn on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

fn remove(path: &Path) {
    let part = older(path);
    for path in [index(path), index(&part), part.clone(), path.to_owned()] {
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "a log file stays behind");
        }
    }
}
