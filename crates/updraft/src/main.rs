//! The binary: command line, configuration, composition. No logic of its own.
//!
//! `up` puts the crates together into one running cloud; every other command is a client of it,
//! or works on the data directory where no server is needed.

mod cli;
mod config;
mod data_dir;
mod doctor;
mod output;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::cli::{Cli, Command};
use crate::output::Output;

/// Release and commit, as `--version` prints them.
const VERSION_TEXT: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("UPDRAFT_COMMIT"), ")");

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("updraft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let output = Output::new(cli.global.json);
    match cli.command {
        Command::Doctor => doctor::run(&cli.global.data_dir, output),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "updraft", &mut std::io::stdout());
            Ok(())
        }
        _ => anyhow::bail!("not wired"),
    }
}
