//! Durable records: who may push, what was pushed, built and released, and what is live.
//!
//! One SQLite file holds typed records and a folder holds blobs (build logs); asynchronous calls
//! have a file and a folder of their own, so that a flood of them slows nothing else. Everything that a
//! caller is told to be written is on the disk: a write returns after its transaction is synced,
//! and writes that arrive together share one sync. Several processes may open the same store, for
//! instance the command line beside a running server.
//!
//! On its place in a push the store only remembers: it builds nothing, deploys nothing and
//! decides nothing about the order of steps. SQL never leaves this crate, and the data plane
//! never comes here on a request.

pub mod access;
mod blob;
mod build;
mod database;
mod environment;
mod error;
mod event;
mod id;
mod owner;
mod push;
pub mod queue;
mod release;
mod repository;
mod schema;
mod stored;
mod token;

use std::path::Path;
use std::sync::Arc;

pub use blob::{BlobError, BlobName, BlobReader, BlobUpload, BlobWriter, Blobs};
pub use build::{Build, BuildResult, BuildState, NewBuild};
pub use environment::{Environment, PinnedTo};
pub use error::StoreError;
pub use event::{NewEvent, StoredEvent};
pub use id::{BuildId, PushId, TokenId};
pub use owner::{EnsureOwnerError, Owner};
pub use push::{Advance, NewPush, Push, PushFilter, PushState, RecordedPush, UploadFolder};
pub use release::{NeededImages, NewRelease, Release};
pub use repository::{DeclaredFunction, Repository};
pub use token::{CreateTokenError, NewToken, Token, TokenSecret};

use database::{Database, Durability};

/// The store: cheap to clone, one writer and a few readers behind all clones.
#[derive(Debug, Clone)]
pub struct Store {
    database: Arc<Database>,
    blobs: Blobs,
}

impl Store {
    /// Opens the store, creating or migrating it as needed. Blocks for some milliseconds.
    ///
    /// `path` is the database file, `blobs` the folder for blobs; both are created when missing,
    /// readable by this user only.
    ///
    /// # Errors
    /// The machine's fault (no space, no permission), or the operator's: a database written by a
    /// newer version of Updraft is refused untouched.
    pub fn open(path: &Path, blobs: &Path) -> Result<Self, StoreError> {
        let blobs = Blobs::open(blobs)
            .map_err(|source| StoreError::Folder { path: blobs.to_owned(), source })?;
        Ok(Self {
            database: Arc::new(Database::open(path, schema::RECORDS, Durability::Disk)?),
            blobs,
        })
    }

    /// The blobs that belong to the records.
    pub const fn blobs(&self) -> &Blobs {
        &self.blobs
    }
}
