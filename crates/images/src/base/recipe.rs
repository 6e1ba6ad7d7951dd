//! How a base image is made: the command line of `mmdebstrap` and the finish of its result.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use tokio::process::Command;

use super::{BaseImage, sources};
use crate::ImageError;

/// The user that functions run as.
const USER: u32 = 12_000;
/// Documentation and translations: a third of a small system, read by nobody in a container.
const LEFT_OUT: [&str; 6] = [
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/share/groff/*",
];
/// Emptied afterwards: lists and caches that the next `apt-get update` fetches again.
const EMPTIED: [&str; 5] =
    ["var/lib/apt/lists", "var/cache/apt", "var/cache/debconf", "var/log", "tmp"];

/// The command that fills the folder `tree` with the image's packages.
pub(super) fn command(base: &BaseImage, tree: &Path, mirror: Option<&str>) -> Command {
    let sources = sources::of_this_machine(mirror);
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", "--format=directory"]);
    command.arg(format!("--include={}", base.packages.join(",")));
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    command.arg("--aptopt=Acquire::Retries \"3\"");
    command.arg("--aptopt=Acquire::Languages \"none\"");
    for pattern in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    command.arg("--dpkgopt=path-include=/usr/share/doc/*/copyright");
    command.arg(&sources.suite).arg(tree).args(&sources.entries);
    // `sbin` is not on everybody's path, but `dpkg` insists on it.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// What a line of `mmdebstrap` tells a person, if anything.
pub(super) fn step(line: &str) -> Option<String> {
    let step = line.strip_prefix("I: ")?;
    let step = step.trim_end_matches("...").trim();
    let known = ["running apt-get update", "downloading", "extracting", "installing"];
    known.iter().any(|start| step.starts_with(start)).then(|| step.to_owned())
}

/// Adds the functions' user and takes away what must not be in an image.
pub(super) fn finish(tree: &Path) -> Result<(), ImageError> {
    add_user(tree).map_err(ImageError::io("add the user `app` in", tree))?;
    tidy(tree).map_err(ImageError::io("tidy", tree))
}

fn add_user(tree: &Path) -> io::Result<()> {
    let append = |file: &str, line: String| {
        fs::OpenOptions::new().append(true).open(tree.join(file))?.write_all(line.as_bytes())
    };
    append("etc/passwd", format!("app:x:{USER}:{USER}:app:/home/app:/usr/sbin/nologin\n"))?;
    append("etc/group", format!("app:x:{USER}:\n"))?;
    append("etc/shadow", "app:!:1::::::\n".to_owned())?;
    let home = tree.join("home/app");
    fs::create_dir_all(&home)?;
    chown(&home, Some(USER), Some(USER))
}

fn tidy(tree: &Path) -> io::Result<()> {
    for folder in EMPTIED {
        let Ok(entries) = fs::read_dir(tree.join(folder)) else { continue };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
    // `apt` makes these again, but complains when they are missing.
    fs::create_dir_all(tree.join("var/lib/apt/lists/partial"))?;
    fs::create_dir_all(tree.join("var/cache/apt/archives/partial"))?;
    // `pip` would refuse to install; in an image there is nobody whose packages it could break.
    for entry in fs::read_dir(tree.join("usr/lib"))?.flatten() {
        let marker = entry.path().join("EXTERNALLY-MANAGED");
        if marker.is_file() {
            fs::remove_file(marker)?;
        }
    }
    // These belong to the machine the image was made on.
    for file in ["etc/resolv.conf", "etc/hostname"] {
        fs::write(tree.join(file), b"")?;
    }
    // The machine's own proxies and keys, if any, came along as `apt` options.
    fs::set_permissions(tree, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_tell_of_progress_are_shown() {
        assert_eq!(
            step("I: downloading packages with apt...").unwrap(),
            "downloading packages with apt"
        );
        assert_eq!(step("Selecting previously unselected package x."), None);
        assert_eq!(step("I: cleaning package lists and apt cache..."), None);
    }
}
