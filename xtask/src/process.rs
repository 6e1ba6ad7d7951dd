//! Runs other programs, by argument list, and says which one failed.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// `cargo` with `arguments`, in the repository.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(arguments);
    command
}

/// Runs a program to its end; fails when it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// Becomes the program, so that signals reach it and its exit code is ours.
pub(crate) fn exec(mut command: Command) -> Result<()> {
    Err(command.exec()).with_context(|| format!("cannot start {command:?}"))
}
