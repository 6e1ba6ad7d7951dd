//! Folders of test clouds, and the removal of those that a crashed test left behind.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::Traces;

/// Every test cloud lies below this folder.
const PARENT: &str = "/tmp/updraft-tests";

/// Says in a cloud's folder which process it belongs to, so that others can tell when it is left
/// behind.
const OWNER: &str = "owner";

/// How long the kernel may take to take down what has been ended.
const VANISH_LIMIT: Duration = Duration::from_secs(10);

/// A new folder that belongs to this process.
pub(crate) fn new_folder() -> PathBuf {
    let _alone = alone();
    let folder = tempfile::Builder::new()
        .prefix(&format!("{}-", std::process::id()))
        .tempdir_in(PARENT)
        .expect("a folder for the test can be made")
        .keep();
    let own = process_name(std::process::id()).expect("this process has a name");
    fs::write(folder.join(OWNER), own).expect("the folder's owner can be noted");
    folder
}

/// Makes a folder look as if its process were killed.
pub(crate) fn disown(folder: &Path) {
    fs::write(folder.join(OWNER), "0 0").expect("the folder's owner can be noted");
}

/// Removes the clouds of tests that are no more.
///
/// # Panics
/// When something of them stays: the next run would trip over it.
pub(crate) fn sweep(binary: &Path) {
    let _alone = alone();
    let Ok(entries) = fs::read_dir(PARENT) else { return };
    for folder in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        if is_left_behind(&folder) {
            let left = remove(binary, &folder);
            assert!(left.0.is_empty(), "of a crashed test there stays: {left:#?}");
        }
    }
}

/// Ends everything of a cloud and removes its folder. Returns what is still there.
pub(crate) fn remove(binary: &Path, folder: &Path) -> Traces {
    let data_dir = folder.join("data");
    // A crashed test leaves its server, which holds the data directory until it is gone, and
    // programs that the server has started.
    wait_until(|| {
        let processes = processes_on(&data_dir);
        for process in &processes {
            let _ = rustix::process::kill_process(*process, rustix::process::Signal::KILL);
        }
        processes.is_empty()
    });
    let before = Traces::of(&data_dir);
    let instance = fs::read_to_string(data_dir.join("instance")).unwrap_or_default();
    if !instance.is_empty() {
        // A process that was killed has no arguments any more while it still holds the folder.
        let mut complaint = String::new();
        wait_until(|| {
            let down = Command::new(binary)
                .arg("--data-dir")
                .arg(&data_dir)
                .arg("down")
                .stdin(Stdio::null())
                .output();
            let Ok(output) = down else { return true };
            if output.status.success() {
                complaint.clear();
                return true;
            }
            complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            false
        });
        if !complaint.is_empty() {
            eprintln!("updraft down: {complaint}");
        }
    }
    if is_mount_point(&data_dir) {
        let unmounted = Command::new("umount").arg(&data_dir).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", data_dir.display());
        }
    }
    let mut left = Traces::default();
    if !instance.is_empty() {
        wait_until(|| {
            left = before.left_of(Traces::of_instance(instance.trim(), &data_dir));
            left.0.is_empty()
        });
    }
    if let Err(error) = fs::remove_dir_all(folder) {
        left.0.insert(format!("folder {}: {error}", folder.display()));
    }
    left
}

/// Held while folders are made and swept: what is half made belongs to nobody yet.
fn alone() -> File {
    fs::create_dir_all(PARENT).expect("the folder of test clouds can be made");
    let lock = File::create(Path::new(PARENT).join("lock")).expect("the lock file can be made");
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("the lock can be taken");
    lock
}

fn is_left_behind(folder: &Path) -> bool {
    let owner = fs::read_to_string(folder.join(OWNER)).unwrap_or_else(|_| {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.split('-').next().unwrap_or_default().to_owned()
    });
    let pid = owner.split(' ').next().and_then(|pid| pid.parse().ok()).unwrap_or(0);
    let running = process_name(pid);
    // Without a start time the number alone has to do.
    running.is_none_or(|running| running != owner && owner.contains(' '))
}

/// A process's id and when it started: an id alone is given out again.
fn process_name(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(format!("{pid} {}", rest.split_whitespace().nth(19)?))
}

fn is_mount_point(folder: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let parent = folder.parent().and_then(device);
    device(folder).is_some_and(|own| Some(own) != parent)
}

/// The processes that were told of a folder by their arguments.
fn processes_on(folder: &Path) -> Vec<rustix::process::Pid> {
    let Some(folder) = folder.to_str() else { return Vec::new() };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let arguments = fs::read(entry.path().join("cmdline")).ok()?;
            let told = String::from_utf8_lossy(&arguments).contains(folder);
            told.then(|| rustix::process::Pid::from_raw(pid))?
        })
        .collect()
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + VANISH_LIMIT;
    while !condition() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}
