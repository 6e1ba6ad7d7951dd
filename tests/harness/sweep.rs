//! Folders of test clouds, and the removal of those that a crashed test left behind.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Every test cloud lies below this folder.
const PARENT: &str = "/tmp/updraft-tests";

/// A new folder that carries this process's id, so that others can tell when it is left behind.
pub(crate) fn new_folder() -> PathBuf {
    fs::create_dir_all(PARENT).expect("the folder of test clouds can be made");
    tempfile::Builder::new()
        .prefix(&format!("{}-", std::process::id()))
        .tempdir_in(PARENT)
        .expect("a folder for the test can be made")
        .keep()
}

/// Removes the clouds of tests that are no more.
pub(crate) fn sweep(binary: &Path) {
    let Ok(entries) = fs::read_dir(PARENT) else { return };
    for folder in entries.flatten().map(|entry| entry.path()) {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let pid = name.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(pid).is_dir() {
            remove(binary, &folder);
        }
    }
}

/// Ends everything of a cloud and removes its folder.
pub(crate) fn remove(binary: &Path, folder: &Path) {
    let data_dir = folder.join("data");
    if let Some(server) = server_of(&data_dir) {
        // A crashed test leaves its server; it holds the data directory.
        let _ = rustix::process::kill_process(server, rustix::process::Signal::KILL);
    }
    if data_dir.is_dir() {
        let down = Command::new(binary)
            .arg("--data-dir")
            .arg(&data_dir)
            .arg("down")
            .stdin(Stdio::null())
            .output();
        if let Ok(output) = down
            && !output.status.success()
        {
            eprintln!("updraft down: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    if is_mount_point(&data_dir) {
        let unmounted = Command::new("umount").arg(&data_dir).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", data_dir.display());
        }
    }
    if let Err(error) = fs::remove_dir_all(folder) {
        eprintln!("cannot remove {}: {error}", folder.display());
    }
}

fn is_mount_point(folder: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let parent = folder.parent().and_then(device);
    device(folder).is_some_and(|own| Some(own) != parent)
}

/// The server that says it runs on a data directory, if that process is one of ours.
fn server_of(data_dir: &Path) -> Option<rustix::process::Pid> {
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(data_dir.join("server.json")).ok()?).ok()?;
    let pid = i32::try_from(record["pid"].as_u64()?).ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let data_dir = data_dir.to_str()?.as_bytes();
    let is_ours = command.split(|&byte| byte == 0).any(|argument| argument == data_dir);
    is_ours.then(|| rustix::process::Pid::from_raw(pid))?
}
