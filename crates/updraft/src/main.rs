//! The binary: command line, configuration, composition. No logic of its own.
//!
//! `up` puts the crates together into one running cloud; every other command is a client of it,
//! or works on the data directory where no server is needed.

mod abandoned;
mod cli;
mod command;
mod config;
mod connection;
mod data_dir;
mod doctor;
mod example;
mod key_ring;
mod output;
mod shutdown;
mod up;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command, Images};
use crate::data_dir::DataDir;
use crate::output::Output;

/// The release, as clients see it.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// The commit this was built from.
const COMMIT: &str = env!("UPDRAFT_COMMIT");

/// Release and commit, as `--version` prints them.
const VERSION_TEXT: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("UPDRAFT_COMMIT"), ")");

/// The watchdog that templates put into images.
static WATCHDOG: &[u8] = include_bytes!(env!("UPDRAFT_WATCHDOG"));

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(&cli.command);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime
        .context("cannot start the async runtime")
        .and_then(|runtime| runtime.block_on(run(cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("updraft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { global, command } = cli;
    let output = Output::new(global.json);
    let data_dir = || DataDir::open(&global.data_dir);
    let client = || connection::client(&global);
    match command {
        Command::Up(up) => up::run(&global, &up, output).await,
        Command::Down => command::down::run(&data_dir()?, output).await,
        Command::New(new) => command::new::run(&new, output),
        Command::Push(push) => command::push::run(&client()?, push, output).await,
        Command::List(list) => command::list::run(&client()?, list, output).await,
        Command::Replicas(replicas) => command::replicas::run(&client()?, replicas, output).await,
        Command::Engine(engine) => command::engine::run(&client()?, &engine, output).await,
        Command::Logs(logs) => command::logs::run(&client()?, logs, output).await,
        Command::Invoke(invoke) => command::invoke::run(&client()?, invoke).await,
        Command::Builds(builds) => command::builds::run(&client()?, builds, output).await,
        Command::Releases(function) => command::releases::list(&client()?, function, output).await,
        Command::Rollback(rollback) => {
            command::releases::rollback(&client()?, rollback, output).await
        }
        Command::Remove(function) => command::remove::run(&client()?, function, output).await,
        Command::Secrets(secrets) => command::secrets::run(&client()?, secrets, output).await,
        Command::Seal(seal) => command::seal::run(&global, *seal, output).await,
        Command::Keys(keys) => {
            command::keys::run(&DataDir::create(&global.data_dir)?, keys, output)
        }
        Command::Schedules(schedules) => {
            command::schedules::run(&client()?, schedules, output).await
        }
        Command::Calls(calls) => command::calls::run(&client()?, calls, output).await,
        Command::Token(token) => {
            command::token::run(&DataDir::create(&global.data_dir)?, token, output).await
        }
        Command::Disk => command::disk::run(&client()?, output).await,
        Command::Images(Images::Prune { dry_run }) => {
            command::disk::prune(&client()?, dry_run, output).await
        }
        Command::Images(Images::List)
            if global.server.is_some() || connection::is_served(&global) =>
        {
            command::disk::images(&client()?, output).await
        }
        Command::Images(images) => {
            command::images::run(&DataDir::create(&global.data_dir)?, images, output).await
        }
        Command::Doctor(command) => doctor::run(command, &global.data_dir, output).await,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "updraft", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// A server logs what happens, a command only what is wrong; `RUST_LOG` says otherwise.
fn log_to_stderr(command: &Command) {
    let default = match command {
        Command::Up(up) => match up.verbose {
            0 => "warn",
            1 => "info",
            2 => "info,updraft=debug",
            _ => "debug",
        },
        _ => "warn",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
