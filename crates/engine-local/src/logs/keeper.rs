//! Looking after the log files of running replicas: notes when they grew, rotates large ones.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::{file, index, older};
use crate::shared::Shared;

/// How often files are looked at, and so how exact the times of lines are.
const INTERVAL: Duration = Duration::from_millis(250);

/// How far each growing file was when it was last looked at.
#[derive(Debug, Default)]
pub(crate) struct Looked(Mutex<HashMap<PathBuf, u64>>);

impl Looked {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a file that may have grown, so that all that is in it has a time.
    pub(super) fn look(&self, path: &Path, limit: u64) {
        let mut seen = self.lock();
        match look(path, seen.get(path).copied(), limit) {
            Ok(length) => {
                seen.insert(path.to_owned(), length);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                seen.remove(path);
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a log file cannot be kept");
            }
        }
    }

    /// Takes a last look at files that grow no more, and forgets them.
    fn forget_all_but(&self, growing: &[PathBuf], limit: u64) {
        let ended: Vec<_> =
            self.lock().keys().filter(|path| !growing.contains(path)).cloned().collect();
        for path in ended {
            self.look(&path, limit);
            self.lock().remove(&path);
        }
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

/// Runs until Updraft stops.
pub(crate) async fn keep(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shared.closing.cancelled() => return,
        }
        let growing: Vec<_> = shared
            .running()
            .iter()
            .map(|(replica, running)| file(&shared.options, &running.function, replica))
            .collect();
        if growing.is_empty() && shared.looked.is_empty() {
            continue;
        }
        let looking = Arc::clone(&shared);
        let looked = tokio::task::spawn_blocking(move || {
            let limit = looking.options.log_bytes;
            for path in &growing {
                looking.looked.look(path, limit);
            }
            looking.looked.forget_all_but(&growing, limit);
        });
        if let Err(error) = looked.await {
            tracing::warn!(%error, "log files could not be looked at");
        }
    }
}

/// Notes how far a file has come, and rotates it when it is too large. Returns its length.
fn look(path: &Path, before: Option<u64>, limit: u64) -> io::Result<u64> {
    let metadata = fs::metadata(path)?;
    let length = metadata.len();
    if before == Some(length) {
        return Ok(length);
    }
    // Bytes of the time before the first look have the file's own time, the others have now.
    let time = match before {
        None => Timestamp::try_from(metadata.modified()?).unwrap_or_else(|_| Timestamp::now()),
        Some(_) => Timestamp::now(),
    };
    let mut notes = OpenOptions::new().create(true).append(true).open(index(path))?;
    writeln!(notes, "{length} {}", time.as_microsecond())?;
    if length <= limit {
        return Ok(length);
    }
    rotate(path)?;
    Ok(0)
}

/// Copies the file to its older part and empties it. The replica goes on writing to the same
/// file, at its new end; what it writes between the last copied byte and the emptying is lost,
/// which takes more than the limit within microseconds to matter.
fn rotate(path: &Path) -> io::Result<()> {
    let part = older(path);
    let mut from = File::open(path)?;
    let mut to = File::create(&part)?;
    io::copy(&mut from, &mut to)?;
    fs::rename(index(path), index(&part))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::read::{Times, parts};

    #[test]
    fn a_large_file_is_rotated_and_keeps_its_times() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let mut log = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        log.write_all(b"first\n").unwrap();
        assert_eq!(look(&path, Some(0), 10).unwrap(), 6);
        log.write_all(b"second\n").unwrap();
        assert_eq!(look(&path, Some(6), 10).unwrap(), 0);
        log.write_all(b"third\n").unwrap();
        assert_eq!(look(&path, Some(0), 10).unwrap(), 6);
        let all: Vec<_> = parts(&path).iter().map(|p| fs::read_to_string(p).unwrap()).collect();
        assert_eq!(all, ["first\nsecond\n", "third\n"]);
        let old = Times::of(&older(&path));
        assert!(old.at(6) <= old.at(13));
        assert!(old.at(13) <= Times::of(&path).at(6));
    }
}
