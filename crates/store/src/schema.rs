//! The tables, as a list of migrations that only ever grows.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::Connection;
use rusqlite_migration::{M, MigrationDefinitionError, Migrations};

use crate::database::prepare_writer;
use crate::error::StoreError;

/// One entry a version. A published entry is never changed: databases that ran it exist.
pub(crate) const RECORDS: &[M<'static>] = &[M::up(include_str!("schema/v1.sql"))];

/// The tables of asynchronous calls, which lie in a file of their own.
pub(crate) const QUEUE: &[M<'static>] =
    &[M::up(include_str!("schema/queue_v1.sql")), M::up(include_str!("schema/queue_v2.sql"))];

/// What is looked up about calls that are kept elsewhere. Never migrated: it is made anew.
pub(crate) const QUEUE_INDEX: &[M<'static>] = &[M::up(include_str!("schema/queue_index.sql"))];

/// Opens the writing connection and brings the tables to this version's form.
pub(crate) fn open_and_migrate(
    path: &Path,
    migrations: &[M<'static>],
) -> Result<Connection, StoreError> {
    let folder = |source| StoreError::Folder { path: path.to_owned(), source };
    // Two processes may start at once: only one looks at the version and migrates.
    let lock = open_private(&path.with_extension("lock")).map_err(folder)?;
    lock.lock().map_err(folder)?;
    // Made here, so that it is private from its first moment.
    drop(open_private(path).map_err(folder)?);
    let open = || -> rusqlite::Result<Connection> {
        let connection = Connection::open(path)?;
        prepare_writer(&connection)?;
        Ok(connection)
    };
    let mut connection =
        open().map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    Migrations::from_slice(migrations).to_latest(&mut connection).map_err(
        |source| match source {
            rusqlite_migration::Error::MigrationDefinition(
                MigrationDefinitionError::DatabaseTooFarAhead,
            ) => StoreError::TooNew { path: path.to_owned() },
            source => StoreError::Migrate { path: path.to_owned(), source },
        },
    )?;
    Ok(connection)
}

fn open_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)
}
