//! Mounts images: one read-only file tree an image, shared by all its replicas.
//!
//! The tree is made by one system call from the layers' folders. It is found again after a
//! restart of the process, because its place follows from the image's id, and made again after
//! a reboot, because its place lies in a folder that does not outlive one.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use updraft_model::Digest;

use crate::ImageError;

/// The kernel takes mount options up to one page.
const OPTIONS_MAX: usize = 4_000;

/// Folder of all mounted images below the run folder.
pub(crate) fn folder(run_root: &Path) -> PathBuf {
    run_root.join("images")
}

/// Where the image of this id is mounted, if it is.
pub(crate) fn place(run_root: &Path, id: &Digest) -> PathBuf {
    // 32 digits keep the paths short for the overlays that replicas put on top.
    folder(run_root).join(&id.hex()[..32])
}

/// Whether something is mounted at exactly this folder.
pub(crate) fn is_mounted(path: &Path) -> bool {
    /// `STATX_ATTR_MOUNT_ROOT`, known since Linux 5.8.
    const MOUNT_ROOT: u64 = 0x2000;
    let stat =
        rustix::fs::statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE);
    match stat {
        Ok(stat) if stat.stx_attributes_mask.bits() & MOUNT_ROOT != 0 => {
            stat.stx_attributes.bits() & MOUNT_ROOT != 0
        }
        Ok(_) => listed(path),
        Err(_) => false,
    }
}

/// Looks the mount up in the kernel's list, for kernels whose `statx` does not tell.
fn listed(path: &Path) -> bool {
    let Ok(path) = fs::canonicalize(path) else { return false };
    let list = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    list.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

/// Mounts `layers`, top first, read-only at `target`. Mounting what is mounted does nothing.
pub(crate) fn mount_layers(layers: &[PathBuf], target: &Path) -> Result<(), ImageError> {
    fs::create_dir_all(target).map_err(ImageError::io("create", target))?;
    let parent = target.parent().unwrap_or(target);
    let lock = fs::File::open(parent).map_err(ImageError::io("open", parent))?;
    // Another process, or another task, may be mounting the same image.
    lock.lock().map_err(ImageError::io("lock", parent))?;
    if is_mounted(target) {
        return Ok(());
    }
    match layers {
        [] => bind(target, target),
        [single] => bind(single, target),
        _ => overlay(layers, target),
    }
    .map_err(ImageError::io("mount an image at", target))
}

/// Binds one folder read-only; nothing needs stacking.
fn bind(from: &Path, target: &Path) -> io::Result<()> {
    rustix::mount::mount_bind(from, target)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    let narrowed = rustix::mount::mount_remount(target, flags, c"");
    if narrowed.is_err() {
        rustix::mount::unmount(target, UnmountFlags::DETACH)?;
    }
    Ok(narrowed?)
}

fn overlay(layers: &[PathBuf], target: &Path) -> io::Result<()> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    let plain = lower_option(layers.iter().map(|layer| layer.display().to_string()));
    if plain.len() <= OPTIONS_MAX {
        let options = CString::new(plain)?;
        return Ok(rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str())?);
    }
    // Too long when written out: name the layers through their opened parent folder.
    let parent = layers[0].parent().unwrap_or(&layers[0]);
    let opened = rustix::fs::open(parent, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let thread = format!("/proc/self/fd/{}", opened.as_raw_fd());
    let short = layers.iter().map(|layer| match layer.strip_prefix(parent) {
        Ok(name) => format!("{thread}/{}", name.display()),
        Err(_) => layer.display().to_string(),
    });
    let options = CString::new(lower_option(short))?;
    Ok(rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str())?)
}

/// The `lowerdir` option, in which `:`, `,` and `\` separate and have to be escaped.
fn lower_option(layers: impl Iterator<Item = String>) -> String {
    let escape = |path: String| path.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,");
    format!("lowerdir={}", layers.map(escape).collect::<Vec<_>>().join(":"))
}

/// Unmounts the image at `target` and removes the folder. What runs from it goes on running:
/// replicas hold the layers themselves.
pub(crate) fn unmount(target: &Path) -> Result<(), ImageError> {
    while is_mounted(target) {
        rustix::mount::unmount(target, UnmountFlags::DETACH)
            .map_err(|error| ImageError::io("unmount", target)(error.into()))?;
    }
    match fs::remove_dir(target) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(ImageError::io("remove", target)(cause))
        }
        _ => Ok(()),
    }
}

/// Unmounts every image but those of `keep`; gives back how many went.
pub(crate) fn unmount_all_but(
    run_root: &Path,
    keep: &BTreeSet<Digest>,
) -> Result<usize, ImageError> {
    let keep: BTreeSet<PathBuf> = keep.iter().map(|id| place(run_root, id)).collect();
    let Ok(entries) = fs::read_dir(folder(run_root)) else { return Ok(0) };
    let mut gone = 0;
    for entry in entries.flatten() {
        if !keep.contains(&entry.path()) {
            unmount(&entry.path())?;
            gone += 1;
        }
    }
    Ok(gone)
}

/// Unmounts whatever is mounted at or below `folder`, innermost first.
pub(crate) fn unmount_below(folder: &Path) -> Result<(), ImageError> {
    let Ok(folder) = fs::canonicalize(folder) else { return Ok(()) };
    let list = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let targets: Vec<PathBuf> = list
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|target| PathBuf::from(target.replace("\\040", " ")))
        .filter(|target| target.starts_with(&folder))
        .collect();
    for target in targets.iter().rev() {
        rustix::mount::unmount(target, UnmountFlags::DETACH)
            .map_err(|error| ImageError::io("unmount", target)(error.into()))?;
    }
    Ok(())
}
