//! What clouds have left on the machine whose data directory somebody has removed: nobody will start
//! them again, so nobody else would ever clear it away.
//!
//! Each cloud's volatile folder says where its data lies, and its server holds a lock there. Only
//! what both call gone is touched: the data directory does not exist, and no server runs. Folders
//! that say nothing are left alone.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};
use updraft_engine_local::{LocalEngine, LocalEngineOptions};

use crate::data_dir::{VOLATILE, volatile_lock, volatile_owner};

/// A cloud that is gone but for what it has on the machine.
#[derive(Debug)]
struct Abandoned {
    instance: String,
    data_dir: PathBuf,
    folder: PathBuf,
    /// Held until all is cleared away.
    _lock: Option<File>,
}

/// Clears away what clouds whose folders lie in `run` have left, after the server has started and
/// beside its work. A failure is told and tried again at the next start.
pub(crate) async fn sweep(run: &Path) {
    for cloud in find(run) {
        let folder = cloud.folder.display().to_string();
        match clear(cloud).await {
            Ok(()) => tracing::info!(folder, "cleared away after a cloud whose data is gone"),
            Err(error) => tracing::warn!(
                folder,
                error = format!("{error:#}"),
                "a cloud whose data is gone stays on the machine"
            ),
        }
    }
}

fn find(run: &Path) -> Vec<Abandoned> {
    let entries = fs::read_dir(run).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let instance = name.strip_prefix(VOLATILE)?.to_owned();
            let folder = entry.path();
            let data_dir = volatile_owner(&folder)?;
            // Anything but a plain "not there" may be a disk that is away for now.
            let gone =
                fs::symlink_metadata(&data_dir).is_err_and(|e| e.kind() == ErrorKind::NotFound);
            let lock = match File::options().write(true).open(volatile_lock(&folder)) {
                Ok(lock) => Some(lock),
                // Only commands have been there, never a server.
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(_) => return None,
            };
            let is_held = lock.as_ref().is_some_and(|lock| lock.try_lock().is_err());
            (gone && !is_held).then_some(Abandoned { instance, data_dir, folder, _lock: lock })
        })
        .collect()
}

async fn clear(cloud: Abandoned) -> Result<()> {
    let Abandoned { instance, data_dir, folder, _lock } = cloud;
    LocalEngine::destroy(&LocalEngineOptions::new(instance, &data_dir, &folder)).await?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let mut inside: Vec<_> = targets.map(Path::new).filter(|at| at.starts_with(&folder)).collect();
    // What was mounted last may lie upon the others.
    inside.reverse();
    for place in inside {
        unmount(place, UnmountFlags::DETACH)
            .with_context(|| format!("cannot unmount {}", place.display()))?;
    }
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::claim_volatile;

    fn found(run: &Path) -> Vec<String> {
        find(run).into_iter().map(|cloud| cloud.instance).collect()
    }

    #[test]
    fn a_cloud_is_gone_when_its_data_and_its_server_are() {
        let run = tempfile::tempdir().unwrap();
        let data = tempfile::tempdir().unwrap();
        let folder = |name: &str| run.path().join(name);
        let lock = claim_volatile(&folder("updraft-0000aaaa"), data.path()).unwrap();
        fs::create_dir_all(folder("updraft-0000bbbb/engine")).unwrap();
        assert!(found(run.path()).is_empty(), "its data is there, the other says nothing");
        drop(data);
        assert!(found(run.path()).is_empty(), "its server runs on");
        drop(lock);
        assert_eq!(found(run.path()), ["0000aaaa"]);
        // A name as long as that of a file can be and one more: nobody can say that it is not there.
        let odd = run.path().join("x".repeat(256));
        drop(claim_volatile(&folder("updraft-0000cccc"), &odd).unwrap());
        assert_eq!(found(run.path()), ["0000aaaa"]);
    }
}
