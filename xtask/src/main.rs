//! Repository tasks, in Rust: what the `Makefile` calls and what is more than a line.
//!
//! It installs Debian packages that are missing, builds, tests, measures and checks the rules that
//! no compiler checks. It is no part of the product and nothing of it is shipped.

mod packages;
mod process;
mod rules;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::process::{cargo, exec, run};

/// Tasks of this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what is missing, build, start the whole cloud and push the example.
    Up {
        /// Passed on to `updraft up`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Install what the tests need, check format and lints, run every test.
    Test {
        /// Passed on to the test runner, for instance `-E 'test(rollback)'`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build and call the sample function of every language.
    TestTemplates,
    /// Format check, clippy with warnings as errors, repository rules.
    Lint,
    /// Repository rules alone.
    Rules,
    /// Measure the budgets and print them as a table.
    Bench {
        /// Passed on to the measuring program, for instance the name of one table.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Remove what the build and the tests left.
    Clean,
}

fn main() -> ExitCode {
    match run_task(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_task(task: Task) -> Result<()> {
    let root = repository_root()?;
    match task {
        Task::Up { arguments } => up(&root, &arguments),
        Task::Test { arguments } => test(&root, &arguments),
        Task::TestTemplates => test_templates(&root),
        Task::Lint => lint(&root),
        Task::Rules => rules::check(&root),
        Task::Bench { arguments } => bench(&root, &arguments),
        Task::Clean => run(&mut cargo(&root, &["clean"])),
    }
}

/// The folder that holds the workspace.
fn repository_root() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(manifest.parent().context("xtask has no parent folder")?.to_owned())
}

fn up(root: &Path, arguments: &[String]) -> Result<()> {
    packages::install("run Updraft", packages::RUN)?;
    let program = root.join("target/release/updraft");
    if !program.is_file() {
        eprintln!("xtask: building updraft (the first build takes a few minutes)");
    }
    run(&mut cargo(root, &["build", "--release", "--locked", "--package", "updraft"]))?;
    let mut updraft = std::process::Command::new(program);
    updraft.arg("up").args(arguments);
    exec(updraft)
}

fn test(root: &Path, arguments: &[String]) -> Result<()> {
    packages::install("run Updraft", packages::RUN)?;
    packages::install("test Updraft", packages::TEST)?;
    packages::install_nextest(root)?;
    lint(root)?;
    // The whole cloud is tested as it is shipped: the tests start this binary.
    run(&mut cargo(root, &["build", "--locked", "--package", "updraft"]))?;
    let mut documentation = cargo(root, &["test", "--locked", "--workspace", "--doc", "--quiet"]);
    run(&mut documentation)?;
    let mut tests = cargo(root, &["nextest", "run", "--locked", "--workspace", "--all-features"]);
    run(tests.args(arguments))
}

fn test_templates(root: &Path) -> Result<()> {
    packages::install("run Updraft", packages::RUN)?;
    packages::install("test Updraft", packages::TEST)?;
    packages::install_nextest(root)?;
    run(&mut cargo(root, &["build", "--locked", "--package", "updraft"]))?;
    let selection = ["nextest", "run", "--locked", "--package", "updraft-tests"];
    let mut tests = cargo(root, &selection);
    run(tests.args(["--run-ignored", "only", "-E", "binary(templates)"]))
}

fn lint(root: &Path) -> Result<()> {
    run(&mut cargo(root, &["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--locked", "--workspace", "--all-targets", "--all-features"];
    run(cargo(root, &clippy).args(["--", "--deny", "warnings"]))?;
    rules::check(root)
}

fn bench(root: &Path, arguments: &[String]) -> Result<()> {
    packages::install("run Updraft", packages::RUN)?;
    packages::install("measure Updraft", packages::BENCH)?;
    run(&mut cargo(root, &["build", "--release", "--locked", "--package", "updraft"]))?;
    let run_bench = ["run", "--release", "--locked", "--package", "updraft-bench", "--"];
    run(cargo(root, &run_bench).args(arguments))
}
