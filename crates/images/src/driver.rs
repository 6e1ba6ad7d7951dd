//! Which way of stacking layers the kernel and the file system below the store allow.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::ImageError;

/// File in the store's folder that keeps the choice: images kept with one driver are invisible
/// to another, so the choice is made once.
const CHOICE: &str = "updraft-driver";
const FUSE_OVERLAY: &str = "/usr/bin/fuse-overlayfs";

/// How layers become one file tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The kernel's overlay file system: the normal case.
    Overlay,
    /// The same layers through a user-space program, where the kernel refuses, as it does for a
    /// store that itself lies on an overlay.
    FuseOverlay,
    /// A full copy for each layer: always works, slow and large.
    Copy,
}

impl Driver {
    /// The name that people see in `updraft doctor`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::FuseOverlay => "fuse-overlayfs",
            Self::Copy => "vfs",
        }
    }

    /// The name that `buildah` knows, which also begins the store's folder names.
    pub(crate) const fn storage_name(self) -> &'static str {
        match self {
            Self::Overlay | Self::FuseOverlay => "overlay",
            Self::Copy => "vfs",
        }
    }

    /// The options that `buildah` needs in addition.
    pub(crate) fn options(self) -> Option<String> {
        matches!(self, Self::FuseOverlay).then(|| format!("overlay.mount_program={FUSE_OVERLAY}"))
    }

    /// Begins a store with this driver.
    #[cfg(feature = "testing")]
    #[expect(clippy::unwrap_used, reason = "only tests call this")]
    pub(crate) fn keep(self, root: &Path) {
        fs::create_dir_all(root).unwrap();
        fs::write(root.join(CHOICE), self.name()).unwrap();
    }

    /// The driver this store was begun with, or the best one that works here.
    pub(crate) fn choose(root: &Path) -> Result<Self, ImageError> {
        let choice = root.join(CHOICE);
        match fs::read_to_string(&choice).as_deref().map(str::trim) {
            Ok("overlay") => return Ok(Self::Overlay),
            Ok("fuse-overlayfs") => return Ok(Self::FuseOverlay),
            Ok("vfs") => return Ok(Self::Copy),
            Ok(other) => {
                let reason = format!("the driver `{other}` is unknown");
                return Err(ImageError::Damaged { path: choice, reason });
            }
            Err(_) => {}
        }
        let driver = match try_overlay(root) {
            Ok(()) => Self::Overlay,
            Err(cause) => {
                let fuse = Path::new(FUSE_OVERLAY).is_file() && fs::File::open("/dev/fuse").is_ok();
                let driver = if fuse { Self::FuseOverlay } else { Self::Copy };
                tracing::warn!(
                    %cause,
                    "the kernel refuses overlay mounts in `{}`, images are kept through {} instead, \
                     which is slower",
                    root.display(),
                    driver.name()
                );
                driver
            }
        };
        fs::write(&choice, driver.name()).map_err(ImageError::io("write", &choice))?;
        Ok(driver)
    }
}

/// Mounts and unmounts a writable overlay, as each build step does.
fn try_overlay(root: &Path) -> io::Result<()> {
    let folder = root.join(format!("updraft-probe-{}", std::process::id()));
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|n| folder.join(n));
    let attempt = || {
        for part in [&lower, &upper, &work, &merged] {
            fs::create_dir_all(part)?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let options = std::ffi::CString::new(options)?;
        mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str())?;
        let written = fs::write(merged.join("file"), b"");
        unmount(&merged, UnmountFlags::DETACH)?;
        written
    };
    let result = attempt();
    fs::remove_dir_all(&folder)?;
    result
}
