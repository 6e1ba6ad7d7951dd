//! Why the store could not read or write.

use std::path::PathBuf;

use thiserror::Error;

/// The store failed. Never the fault of a tenant: the machine's (disk, permissions) or ours.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A folder of the store could not be made or entered.
    #[error("cannot use the folder `{path}`, check that it exists and is writable", path = path.display())]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database could not be opened.
    #[error("cannot open the database `{path}`, check the file's permissions and the free space", path = path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The database is from the future.
    #[error("the database `{path}` was written by a newer version of Updraft, start that version or restore a backup", path = path.display())]
    TooNew {
        /// The database file.
        path: PathBuf,
    },
    /// The database could not be brought to this version's form; it is as it was.
    #[error("cannot migrate the database `{path}`, it is unchanged", path = path.display())]
    Migrate {
        /// The database file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite_migration::Error,
    },
    /// One operation failed; nothing of it was kept.
    #[error("cannot {doing} in the database")]
    Sqlite {
        /// What was attempted, for instance `record the push`.
        doing: &'static str,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// There is no space for it on the disk; nothing of it was kept.
    #[error("cannot {doing}: the disk that holds the database is full")]
    Full {
        /// What was attempted.
        doing: &'static str,
    },
    /// Many writes share a transaction, and that transaction could not be committed.
    #[error("cannot {doing}: the database could not be written, check the free space ({reason})")]
    Commit {
        /// What was attempted.
        doing: &'static str,
        /// Why the transaction failed.
        reason: String,
    },
    /// A body or log beside the records could not be used.
    #[error(transparent)]
    Blob(#[from] crate::BlobError),
    /// What keeps the records is on another machine, and cannot be reached or takes nothing now.
    /// Trying again in a moment makes sense; whether this attempt was kept is not known.
    #[error("cannot {doing}: {keeper} is not available now ({reason})")]
    Unavailable {
        /// What was attempted.
        doing: &'static str,
        /// Who keeps the records, for instance `NATS at 127.0.0.1:4222`.
        keeper: String,
        /// Why.
        reason: String,
    },
    /// What keeps the records refused, or gave what nobody can read.
    #[error("cannot {doing} with {keeper}: {reason}")]
    Refused {
        /// What was attempted.
        doing: &'static str,
        /// Who keeps the records.
        keeper: String,
        /// Why.
        reason: String,
    },
    /// The store is shutting down, or a worker of it has died.
    #[error("cannot {doing}: the store is closed")]
    Closed {
        /// What was attempted.
        doing: &'static str,
    },
}

impl StoreError {
    /// Whether trying again in a moment makes sense.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
