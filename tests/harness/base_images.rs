//! Base images for tests that need a language: made once, kept beside the build, copied into the
//! cloud of each test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::FlockOperation;

use crate::cloud::binary;

/// Puts the base images `names` into the data directory of a cloud that does not run yet.
pub(crate) fn provide(names: &[&str], data_dir: &Path) {
    let (kept, _unchanged) = keep(names);
    let kept = kept.join("containers");
    let to = data_dir.join("containers");
    fs::create_dir_all(&to).expect("the data directory can be made");
    for entry in fs::read_dir(&kept).expect("the base images can be listed").flatten() {
        // Layers are never written to again, and hold ten thousands of files; everything else is
        // the cloud's own.
        let is_layers = entry.file_name() == "overlay";
        let how: &[&str] = if is_layers { &["--archive", "--link"] } else { &["--archive"] };
        let copy = |how: &[&str]| {
            let copied = Command::new("cp").args(how).arg(entry.path()).arg(&to).output();
            let copied = copied.expect("cp can be started");
            if copied.status.success() { Ok(()) } else { Err(copied.stderr) }
        };
        // Links end at the border of a file system.
        if let Err(told) = copy(how).or_else(|_| copy(&["--archive", "--force"])) {
            panic!("the base images cannot be copied: {}", String::from_utf8_lossy(&told));
        }
    }
}

/// Makes those base images that are not kept yet. Returns the data directory that keeps them, and
/// a lock: while that is held, no other test adds an image to the folder that is being copied.
fn keep(names: &[&str]) -> (PathBuf, File) {
    let binary = binary();
    let profile = binary.parent().expect("the binary lies in a folder");
    let kept = profile.join("../updraft-test-images");
    fs::create_dir_all(&kept).expect("the folder of base images can be made");
    let lock = File::create(kept.join("making")).expect("the lock file can be made");
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("the lock can be taken");
    let data_dir = kept.join("data");
    fs::create_dir_all(&data_dir).expect("the folder of base images can be made");
    if !data_dir.join("instance").is_file() {
        // One id for all runs, so that a crashed one leaves nothing under another name.
        fs::write(data_dir.join("instance"), "0ba5e000").expect("the instance can be named");
    }
    let made = Command::new(&binary)
        .arg("--data-dir")
        .arg(&data_dir)
        .args(["images", "base"])
        .args(names)
        .stdin(Stdio::null())
        .output()
        .expect("updraft can be started");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    rustix::fs::flock(&lock, FlockOperation::LockShared).expect("the lock can be shared");
    (data_dir, lock)
}
