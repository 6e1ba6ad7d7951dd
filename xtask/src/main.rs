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
    /// Throw random bytes at what reads strangers' bytes, until something breaks or time is up.
    Fuzz {
        /// Which program, a file in `fuzz/targets` without its ending.
        target: String,
        /// For how long.
        #[arg(default_value_t = 60)]
        seconds: u64,
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
        Task::Fuzz { target, seconds } => fuzz(&root, &target, seconds),
        Task::Clean => run(&mut cargo(&root, &["clean"])),
    }
}

/// What makes the compiler tell libFuzzer which way the program took; works on stable Rust.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 --cfg fuzzing";

/// Samples in `fuzz/corpus` are where it begins; what it finds on its way stays below `target`.
fn fuzz(root: &Path, target: &str, seconds: u64) -> Result<()> {
    let samples = root.join("fuzz/corpus").join(target);
    if !samples.is_dir() {
        anyhow::bail!("there is no `{target}`; look into fuzz/targets for what there is");
    }
    let folder = root.join("target/fuzz");
    let (found, broken) = (folder.join("corpus").join(target), folder.join("broken"));
    std::fs::create_dir_all(&found)?;
    std::fs::create_dir_all(&broken)?;
    let mut build = cargo(root, &["build", "--release", "--locked"]);
    build.args(["--manifest-path", "fuzz/Cargo.toml", "--bin", target, "--features", target]);
    build.arg("--target-dir");
    // A target of its own keeps the flags away from build scripts.
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    build.arg(&folder).args(["--target", &host]).env("RUSTFLAGS", COVERAGE);
    run(&mut build)?;
    let mut program = std::process::Command::new(folder.join(host).join("release").join(target));
    program.arg(format!("-max_total_time={seconds}")).args(["-max_len=4096", "-timeout=10"]);
    program.arg(format!("-artifact_prefix={}/{target}-", broken.display()));
    run(program.arg(found).arg(samples))
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
    // What is packaged is what is measured, as the peers are.
    let build = ["build", "--profile", "dist", "--locked", "--package", "updraft"];
    run(&mut cargo(root, &build))?;
    let measure = ["run", "--profile", "dist", "--locked", "--package", "updraft-bench", "--"];
    run(cargo(root, &measure).args(arguments))
}
