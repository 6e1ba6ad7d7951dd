//! The Debian packages that running, testing and measuring need, and their installation.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::process::{cargo, run};

/// What the cloud itself needs on the machine, and a C compiler for the embedded database.
pub(crate) const RUN: &[&str] = &[
    "buildah",
    "ca-certificates",
    "crun",
    "debian-archive-keyring",
    "gcc",
    "git",
    "libc6-dev",
    "mmdebstrap",
    "nftables",
    "runc",
];

/// What the tests drive besides.
pub(crate) const TEST: &[&str] = &[
    "busybox-static",
    "curl",
    "docker-registry",
    "iproute2",
    "nats-server",
    "nodejs",
    "python3",
    "runsc",
];

/// The peers and load generators of the measurements.
pub(crate) const BENCH: &[&str] = &["nats-server", "nginx-light", "runsc", "wrk"];

/// Installs those of `packages` that are missing; touches nothing when none is.
pub(crate) fn install(purpose: &str, packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("xtask: installing what is missing to {purpose}: {}", missing.join(" "));
    if !is_root()? {
        bail!(
            "installing packages needs root: run `sudo apt-get install {}`, or make as root",
            missing.join(" ")
        );
    }
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet=2");
        command
    };
    let installation = || {
        let mut command = apt_get();
        command.args(["install", "--yes", "--no-install-recommends"]).args(&missing);
        command
    };
    // The package lists of a fresh machine may be missing or old; most machines need no update.
    if installation().stderr(Stdio::null()).stdout(Stdio::null()).status()?.success() {
        return Ok(());
    }
    run(apt_get().arg("update"))?;
    run(installation().stdout(Stdio::null()))
}

/// Whether dpkg has the package installed, under any architecture.
fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout.starts_with(b"installed"))
}

fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("--user").output()?;
    Ok(output.stdout.trim_ascii() == b"0")
}

/// Installs the test runner, once, where it is missing.
pub(crate) fn install_nextest(root: &Path) -> Result<()> {
    let version = cargo(root, &["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if version.success() {
        return Ok(());
    }
    eprintln!("xtask: installing the test runner cargo-nextest (once, a few minutes)");
    run(&mut cargo(root, &["install", "--locked", "cargo-nextest"]))
}
