//! The calls in a database file on this machine, their longer bodies as files beside it.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::try_unfold;
use jiff::Timestamp;
use updraft_model::{FunctionId, OwnerName};

use super::{
    Attempt, BodyPieces, BodyWriter, CallFilter, CallId, CallRecord, CallResult, CallState,
    CallStore, CallToAdd, CallbacksDue, Expiry, LeasedCallback, Leases, Lost, Outcome, Waiting,
};
use crate::database::{Database, Durability};
use crate::error::StoreError;
use crate::{BlobName, BlobUpload, Blobs, schema};

/// The folder of bodies among the blobs.
const BODIES: &str = "bodies";

/// The record of calls in SQLite: cheap to clone, one writer behind all clones.
#[derive(Debug, Clone)]
pub struct SqliteCallStore {
    pub(super) database: Arc<Database>,
    blobs: Blobs,
}

impl SqliteCallStore {
    /// Opens the file and the folder of bodies, creating or migrating them as needed. Blocks for
    /// some milliseconds.
    ///
    /// # Errors
    /// The machine's fault (no space, no permission), or the operator's: a database written by a
    /// newer version of Updraft is refused untouched.
    pub fn open(path: &Path, blobs: &Path) -> Result<Self, StoreError> {
        let blobs = Blobs::open(blobs)
            .map_err(|source| StoreError::Folder { path: blobs.to_owned(), source })?;
        let database = Database::open(path, schema::QUEUE, Durability::Disk)?;
        Ok(Self { database: Arc::new(database), blobs })
    }

    /// The bodies that are too long for the database.
    pub const fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Removes files of bodies that no record names any more. What cannot be removed now is swept
    /// at the next start.
    async fn remove_lost(&self, lost: Lost) {
        for name in lost.0 {
            if let Err(error) = self.blobs.remove(&name).await {
                tracing::warn!(%error, "the body of a finished call is still there");
            }
        }
    }
}

/// A body on its way into a file.
struct FileBody {
    name: BlobName,
    upload: BlobUpload,
}

#[async_trait]
impl BodyWriter for FileBody {
    async fn append(&mut self, piece: Bytes) -> Result<(), StoreError> {
        Ok(self.upload.append(piece).await?)
    }

    async fn finish(self: Box<Self>) -> Result<BlobName, StoreError> {
        self.upload.finish().await?;
        Ok(self.name)
    }
}

#[async_trait]
impl CallStore for SqliteCallStore {
    async fn recover(&self) -> Result<usize, StoreError> {
        let recovered = Self::recover(self).await?;
        let on_record = self.blobs_on_record().await?;
        let bodies = BODIES.parse().expect("the folder's name is a blob name");
        let swept = self.blobs.sweep(&bodies, move |name| on_record.contains(name)).await?;
        if swept > 0 {
            tracing::info!(swept, "bodies of calls that were never accepted are removed");
        }
        Ok(recovered)
    }

    async fn waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        Self::waiting(self).await
    }

    async fn dead(&self) -> Result<Vec<(FunctionId, u64)>, StoreError> {
        Self::dead(self).await
    }

    async fn new_body(&self) -> Result<Box<dyn BodyWriter>, StoreError> {
        let name = BlobName::random(BODIES);
        let upload = self.blobs.upload(&name).await?;
        Ok(Box::new(FileBody { name, upload }))
    }

    async fn open_body(&self, name: &BlobName) -> Result<Option<BodyPieces>, StoreError> {
        let Some(reader) = self.blobs.open_blob(name).await? else { return Ok(None) };
        let pieces = try_unfold(reader, async |reader| {
            let next = reader.next().await.map_err(std::io::Error::other)?;
            Ok(next.map(|(piece, reader)| (Bytes::from(piece), reader)))
        });
        Ok(Some(Box::pin(pieces)))
    }

    async fn remove_body(&self, name: BlobName) {
        self.remove_lost(Lost(vec![name])).await;
    }

    async fn add(&self, call: CallToAdd) -> Result<(CallId, Timestamp), StoreError> {
        Self::add(self, call).await
    }

    async fn call(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError> {
        Self::call(self, id).await
    }

    async fn result(&self, id: &CallId) -> Result<Option<CallResult>, StoreError> {
        Self::result(self, id).await
    }

    async fn calls(&self, filter: &CallFilter) -> Result<Vec<CallRecord>, StoreError> {
        Self::calls(self, filter).await
    }

    async fn lease(
        &self,
        function: &FunctionId,
        count: usize,
        until: Timestamp,
    ) -> Result<Leases, StoreError> {
        Self::lease(self, function, count, until).await
    }

    async fn renew(&self, held: Vec<Attempt>, until: Timestamp) -> Result<(), StoreError> {
        Self::renew(self, held, until).await
    }

    async fn release(&self, attempt: Attempt, due: Timestamp) -> Result<bool, StoreError> {
        Self::release(self, attempt, due).await
    }

    async fn retry(
        &self,
        attempt: Attempt,
        due: Timestamp,
        outcome: Outcome,
    ) -> Result<bool, StoreError> {
        Self::retry(self, attempt, due, outcome).await
    }

    async fn finish(
        &self,
        attempt: Attempt,
        state: CallState,
        outcome: Outcome,
    ) -> Result<bool, StoreError> {
        let Some(lost) = Self::finish(self, attempt, state, outcome).await? else {
            return Ok(false);
        };
        self.remove_lost(lost).await;
        Ok(true)
    }

    async fn bury(
        &self,
        function: &FunctionId,
        reason: String,
        count: u32,
    ) -> Result<(u64, u64), StoreError> {
        Self::bury(self, function, reason, count).await
    }

    async fn cancel(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError> {
        let Some((record, lost)) = Self::cancel(self, id).await? else { return Ok(None) };
        self.remove_lost(lost).await;
        Ok(Some(record))
    }

    async fn redrive(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError> {
        Self::redrive(self, id).await
    }

    async fn redrive_some(
        &self,
        filter: &CallFilter,
        after: i64,
        count: u32,
    ) -> Result<Vec<CallRecord>, StoreError> {
        Self::redrive_some(self, filter, after, count).await
    }

    async fn discard(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError> {
        let Some((record, lost)) = Self::discard(self, id).await? else { return Ok(None) };
        self.remove_lost(lost).await;
        Ok(Some(record))
    }

    async fn expire(&self, expiry: Expiry) -> Result<Vec<CallRecord>, StoreError> {
        let (gone, lost) = Self::expire(self, expiry).await?;
        self.remove_lost(lost).await;
        Ok(gone)
    }

    async fn oldest_end(&self) -> Result<Option<Timestamp>, StoreError> {
        Self::oldest_end(self).await
    }

    async fn callbacks_due(&self) -> Result<Vec<CallbacksDue>, StoreError> {
        Self::callbacks_due(self).await
    }

    async fn lease_callbacks(
        &self,
        owner: Option<&OwnerName>,
        count: u32,
        until: Timestamp,
    ) -> Result<Vec<LeasedCallback>, StoreError> {
        Self::lease_callbacks(self, owner, count, until).await
    }

    async fn callback_delivered(&self, attempt: Attempt) -> Result<bool, StoreError> {
        Self::callback_delivered(self, attempt).await
    }

    async fn callback_failed(
        &self,
        attempt: Attempt,
        due: Option<Timestamp>,
        reason: String,
    ) -> Result<bool, StoreError> {
        Self::callback_failed(self, attempt, due, reason).await
    }
}
