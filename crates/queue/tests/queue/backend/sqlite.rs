//! The record in a database file.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use updraft_queue::{CallStore, SqliteCallStore};

/// Where a test's calls are kept.
pub(crate) struct Backend;

#[expect(clippy::unused_async, reason = "a broker has to be waited for, a file has not")]
impl Backend {
    pub(crate) fn start() -> Self {
        Self
    }

    /// Opens the record of this folder.
    pub(crate) async fn open(&self, folder: &Path, _lease: Duration) -> Arc<dyn CallStore> {
        Arc::new(SqliteCallStore::open(&folder.join("queue.db"), &folder.join("blobs")).unwrap())
    }

    /// How many long bodies there are.
    pub(crate) async fn bodies(&self, folder: &Path) -> usize {
        std::fs::read_dir(folder.join("blobs/bodies")).map_or(0, Iterator::count)
    }
}
