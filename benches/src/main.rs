//! Measures the budgets on the build that is packaged, each beside a peer in the same run where
//! there is one, and prints a table: what was measured, the number, the budget, whether it holds.
//!
//! Nothing here is a test: numbers depend on the machine, ratios are what counts.

mod engine;
mod load;
mod measure;
mod nginx;
mod queue;
mod report;
mod sealing;
mod watchdog;

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::report::Report;

/// Measures Updraft and prints a table.
#[derive(Debug, Parser)]
#[command(name = "updraft-bench")]
struct Arguments {
    /// Only these measurements; default: all
    measurements: Vec<Measurement>,
    /// Fewer repetitions: a look, not a measurement
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// From `git push` to the first answer of the new release.
    Push,
    /// From nothing running to the first byte.
    Cold,
    /// From a frozen replica to the first byte.
    Thaw,
    /// A thousand functions that sleep, and two hundred that are frozen.
    Asleep,
    /// Processor shares, and a neighbour of a function that behaves badly.
    Neighbours,
    /// What edge and invoke add to a warm call.
    Overhead,
    /// Requests per second beside nginx in front of the same replica.
    Throughput,
    /// What the whole cloud costs while nothing happens.
    Idle,
    /// The watchdog beside the function alone, and beside bare processes.
    Watchdog,
    /// Asynchronous calls: accepts, latency, and none lost to `kill -9`.
    Queue,
    /// Sealed secrets: sealed and opened, with one key and with those of a year.
    Sealing,
    /// What ten thousand open connections cost while nothing happens on them.
    Connections,
}

fn main() -> Result<()> {
    if watchdog::play_part()? { Ok(()) } else { measure_all() }
}

#[tokio::main]
async fn measure_all() -> Result<()> {
    let arguments = Arguments::parse();
    let wanted = |measurement: Measurement| {
        arguments.measurements.is_empty() || arguments.measurements.contains(&measurement)
    };
    let scale = if arguments.quick { 4 } else { 1 };
    let mut report = Report::default();
    if wanted(Measurement::Idle) {
        measure::idle(&mut report).await?;
    }
    if wanted(Measurement::Connections) {
        measure::connections(&mut report, 10_000).await?;
    }
    if wanted(Measurement::Push) {
        measure::push(&mut report, 20 / scale).await?;
    }
    if wanted(Measurement::Cold) {
        engine::cold_start(&mut report, 200 / scale).await?;
    }
    if wanted(Measurement::Thaw) {
        engine::thaw(&mut report, 400 / scale).await?;
    }
    if wanted(Measurement::Asleep) {
        engine::asleep(&mut report, 1000 / scale).await?;
        engine::frozen(&mut report, 200 / scale).await?;
    }
    if wanted(Measurement::Neighbours) {
        engine::shares(&mut report).await?;
        engine::neighbour(&mut report, Duration::from_secs(20 / scale as u64)).await?;
    }
    if wanted(Measurement::Overhead) {
        measure::overhead(&mut report, scale).await?;
    }
    if wanted(Measurement::Throughput) {
        measure::throughput(&mut report, scale).await?;
    }
    if wanted(Measurement::Watchdog) {
        watchdog::watchdog(&mut report, scale).await?;
    }
    if wanted(Measurement::Queue) {
        queue::accepts(&mut report, Duration::from_secs(10 / scale as u64)).await?;
        queue::latency(&mut report, 400 / scale).await?;
        queue::kills(&mut report, 100_000 / scale).await?;
    }
    if wanted(Measurement::Sealing) {
        sealing::sealing(&mut report, Duration::from_secs(4 / scale as u64))?;
    }
    report.print();
    Ok(())
}
