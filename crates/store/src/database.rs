//! The connections: one writer thread that commits writes in groups, and a few readers.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::M;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::error::StoreError;
use crate::schema;

/// How long a write waits for another process's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Readers at once; more wait. SQLite reads are CPU bound, so more would only fight.
const READERS: usize = 4;

/// Writes under way at once; more wait in their callers.
const WRITE_QUEUE: usize = 1024;

/// Writes that share one transaction at most, so that the first of them is not kept waiting.
const GROUP_MAX: usize = 256;

/// What a write that has returned outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// A loss of power.
    Disk,
    /// Nothing: the file can be made anew from elsewhere.
    None,
}

/// One write: runs inside the group's transaction and gives what to do once that has ended.
type Job = Box<dyn FnOnce(&Connection) -> Finish + Send>;

/// Answers the caller; `Some` is why the commit failed.
type Finish = Box<dyn FnOnce(Option<&rusqlite::Error>) + Send>;

/// The database file, open.
pub(crate) struct Database {
    path: PathBuf,
    writes: mpsc::Sender<Job>,
    readers: Mutex<Vec<Connection>>,
    reader_permits: Semaphore,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Database {
    pub(crate) fn open(
        path: &Path,
        migrations: &[M<'static>],
        durability: Durability,
    ) -> Result<Self, StoreError> {
        let mut writer = schema::open_and_migrate(path, migrations)?;
        if durability == Durability::None {
            writer
                .pragma_update(None, "synchronous", "off")
                .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        }
        let (writes, queue) = mpsc::channel(WRITE_QUEUE);
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || write_in_groups(&mut writer, queue))
            .map_err(|source| StoreError::Folder { path: path.to_owned(), source })?;
        Ok(Self {
            path: path.to_owned(),
            writes,
            readers: Mutex::new(Vec::new()),
            reader_permits: Semaphore::new(READERS),
        })
    }

    /// Runs `write` in a transaction and returns when that is on the disk. When `write` fails,
    /// nothing of it is kept; other writes of the group are.
    pub(crate) async fn write<T, F>(&self, doing: &'static str, write: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let result = in_savepoint(connection, doing, write);
            Box::new(move |failure: Option<&rusqlite::Error>| {
                let result = match failure {
                    Some(error) if is_full(error) => Err(StoreError::Full { doing }),
                    Some(error) => Err(StoreError::Commit { doing, reason: error.to_string() }),
                    None => result,
                };
                // A caller that went away does not undo its write.
                drop(reply.send(result));
            })
        });
        self.writes.send(job).await.map_err(|_| StoreError::Closed { doing })?;
        answer.await.map_err(|_| StoreError::Closed { doing })?
    }

    /// Runs `read` on one snapshot of the database.
    pub(crate) async fn read<T, F>(&self, doing: &'static str, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let _permit =
            self.reader_permits.acquire().await.map_err(|_| StoreError::Closed { doing })?;
        let reader = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let path = self.path.clone();
        let (reader, result) = tokio::task::spawn_blocking(move || {
            let mut reader = match reader {
                Some(reader) => reader,
                None => open_reader(&path)?,
            };
            let result = reader
                .transaction()
                .and_then(|transaction| read(&transaction))
                .map_err(|source| StoreError::Sqlite { doing, source });
            Ok::<_, StoreError>((reader, result))
        })
        .await
        .map_err(|_| StoreError::Closed { doing })??;
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        result
    }
}

fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let open = || -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    };
    open().map_err(|source| StoreError::Open { path: path.to_owned(), source })
}

/// Settings of the connection that writes.
pub(crate) fn prepare_writer(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn in_savepoint<T>(
    connection: &Connection,
    doing: &'static str,
    write: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<T, StoreError> {
    let failed = |source| match &source {
        error if is_full(error) => StoreError::Full { doing },
        _ => StoreError::Sqlite { doing, source },
    };
    connection.execute_batch("SAVEPOINT write_one").map_err(failed)?;
    // A panic in one write must end neither the writer nor the writes beside it.
    let result = catch_unwind(AssertUnwindSafe(|| write(connection)));
    match result {
        Ok(Ok(value)) => {
            connection.execute_batch("RELEASE write_one").map_err(failed)?;
            Ok(value)
        }
        failure => {
            // When SQLite has rolled the whole transaction back already, this cannot work; the
            // group notices that by itself.
            drop(connection.execute_batch("ROLLBACK TO write_one; RELEASE write_one"));
            if let Ok(Err(source)) = failure {
                Err(failed(source))
            } else {
                tracing::error!(doing, "a write of the store panicked");
                Err(StoreError::Closed { doing })
            }
        }
    }
}

/// The writer thread: takes what has queued up, commits it at once, answers everybody.
fn write_in_groups(connection: &mut Connection, mut queue: mpsc::Receiver<Job>) {
    while let Some(first) = queue.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP_MAX
            && let Ok(next) = queue.try_recv()
        {
            group.push(next);
        }
        write_group(connection, group);
    }
}

fn write_group(connection: &mut Connection, group: Vec<Job>) {
    let begun = connection.execute_batch("BEGIN IMMEDIATE");
    let finishes: Vec<Finish> = group.into_iter().map(|job| job(connection)).collect();
    let ended = begun.and_then(|()| {
        // A full disk makes SQLite roll back by itself; then there is nothing to commit.
        if connection.is_autocommit() {
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL),
                Some("the transaction was rolled back".to_owned()),
            ));
        }
        connection.execute_batch("COMMIT")
    });
    if ended.is_err() && !connection.is_autocommit() {
        drop(connection.execute_batch("ROLLBACK"));
    }
    let failure = ended.err();
    for finish in finishes {
        finish(failure.as_ref());
    }
}

/// Whether there was no space for a write.
fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn database() -> (tempfile::TempDir, Database) {
        let folder = tempfile::tempdir().unwrap();
        let database =
            Database::open(&folder.path().join("updraft.db"), schema::RECORDS, Durability::Disk)
                .unwrap();
        (folder, database)
    }

    async fn owners(database: &Database) -> i64 {
        database
            .read("count", |c| c.query_row("SELECT count(*) FROM owners", [], |row| row.get(0)))
            .await
            .unwrap()
    }

    fn insert(connection: &Connection, name: &str) -> rusqlite::Result<usize> {
        connection.execute("INSERT INTO owners (name, created_at) VALUES (?1, 0)", [name])
    }

    #[tokio::test]
    async fn a_failed_or_panicking_write_leaves_its_neighbours() {
        let (_folder, database) = database();
        let good = database.write("one", |c| insert(c, "one"));
        let bad = database.write("two", |c| {
            insert(c, "two")?;
            insert(c, "two")
        });
        let panicking = database.write("three", |c| -> rusqlite::Result<()> {
            insert(c, "three")?;
            panic!("as the test wants")
        });
        let other = database.write("four", |c| insert(c, "four"));
        let (good, bad, panicking, other) = tokio::join!(good, bad, panicking, other);
        assert!(good.is_ok() && other.is_ok());
        assert!(matches!(bad, Err(StoreError::Sqlite { .. })));
        assert!(matches!(panicking, Err(StoreError::Closed { .. })));
        assert_eq!(owners(&database).await, 2);
    }

    #[tokio::test]
    async fn writes_that_arrive_together_share_a_transaction() {
        let (_folder, database) = database();
        let database = Arc::new(database);
        let writes: Vec<_> = (0..200)
            .map(|number| {
                let database = Arc::clone(&database);
                tokio::spawn(async move {
                    database.write("insert", move |c| insert(c, &format!("o{number}"))).await
                })
            })
            .collect();
        for write in writes {
            write.await.unwrap().unwrap();
        }
        assert_eq!(owners(&database).await, 200);
    }

    #[tokio::test]
    async fn readers_cannot_write() {
        let (_folder, database) = database();
        assert!(database.read("insert", |c| insert(c, "sneaky")).await.is_err());
    }

    #[tokio::test]
    async fn a_full_disk_fails_the_write_and_the_next_one_works() {
        let (_folder, database) = database();
        // As many pages as there are now: the next one finds no space.
        database
            .write("limit", |c| {
                let pages: i64 = c.query_row("PRAGMA page_count", [], |row| row.get(0))?;
                c.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
            })
            .await
            .unwrap();
        let big = "x".repeat(1 << 20);
        let failed = database.write("insert", move |c| insert(c, &big)).await;
        assert!(matches!(failed, Err(StoreError::Full { .. })), "{failed:?}");
        database
            .write("limit", |c| c.query_row("PRAGMA max_page_count = 1000000", [], |_| Ok(())))
            .await
            .unwrap();
        database.write("insert", |c| insert(c, "small")).await.unwrap();
        assert_eq!(owners(&database).await, 1);
    }
}
