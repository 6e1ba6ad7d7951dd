//! Looking after the log files of running replicas: notes when they grew, rotates large ones.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{file, index, older};
use crate::shared::Shared;

/// How often files are looked at, and so how exact the times of lines are.
const INTERVAL: Duration = Duration::from_millis(250);

/// Runs until Updraft stops.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut seen: HashMap<PathBuf, u64> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shared.closing.cancelled() => return,
        }
        let files: Vec<_> = shared
            .running()
            .iter()
            .map(|(replica, running)| file(&shared.options, &running.function, replica))
            .collect();
        if files.is_empty() && seen.is_empty() {
            continue;
        }
        let limit = shared.options.log_bytes;
        let looked = tokio::task::spawn_blocking(move || {
            // One last look at files of replicas that have ended since.
            let ended: Vec<_> = seen.keys().filter(|path| !files.contains(path)).cloned().collect();
            for path in files.iter().chain(&ended) {
                let before = seen.get(path).copied();
                match look(path, before, limit) {
                    Ok(length) => seen.insert(path.clone(), length),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => {
                        tracing::warn!(%error, path = %path.display(), "a log file cannot be kept");
                        None
                    }
                };
            }
            for path in &ended {
                seen.remove(path);
            }
            seen
        });
        seen = looked.await.unwrap_or_default();
    }
}

/// Notes how far a file has come, and rotates it when it is too large. Returns its length.
fn look(path: &Path, before: Option<u64>, limit: u64) -> io::Result<u64> {
    let metadata = fs::metadata(path)?;
    let length = metadata.len();
    if before == Some(length) {
        return Ok(length);
    }
    // Bytes of the time before this start have the file's own time, the others have now.
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
