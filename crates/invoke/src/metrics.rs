//! Counts what happens to each function, and shows it under the names that OpenFaaS dashboards ask for.
//!
//! A function's numbers are found once, with the function; counting is a few atomics and no lock.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::function::FunctionState;
use crate::table::Table;

/// Upper bounds of the histogram, in microseconds: the Prometheus default buckets.
const BOUNDS: [u64; 11] = [
    5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// The numbers of one function.
#[derive(Debug, Default)]
pub(crate) struct FunctionMetrics {
    started: AtomicU64,
    in_flight: AtomicI64,
    /// Calls that a private function's door has turned away; they count as nothing else, so that
    /// strangers cannot keep a function awake.
    pub(crate) denied: AtomicU64,
    outcomes: OnceLock<Box<Outcomes>>,
}

/// The calls that ended with one status; the next status seen hangs below. There are few of them.
#[derive(Debug)]
struct Outcomes {
    code: u16,
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
    next: OnceLock<Box<Outcomes>>,
}

impl Outcomes {
    fn new(code: u16) -> Self {
        let buckets = Default::default();
        Self { code, buckets, micros: AtomicU64::new(0), next: OnceLock::new() }
    }

    fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

impl FunctionMetrics {
    /// Calls that have ended, whatever came of them.
    pub(crate) fn invocations(&self) -> u64 {
        self.outcomes().map(Outcomes::count).sum()
    }

    /// Calls that have begun.
    pub(crate) fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Calls under way.
    pub(crate) fn in_flight(&self) -> u64 {
        u64::try_from(self.in_flight.load(Ordering::Relaxed)).unwrap_or(0)
    }

    fn outcomes(&self) -> impl Iterator<Item = &Outcomes> {
        std::iter::successors(self.outcomes.get(), |outcomes| outcomes.next.get())
            .map(AsRef::as_ref)
    }

    fn record(&self, code: u16, took: Duration) {
        let mut outcomes = self.outcomes.get_or_init(|| Box::new(Outcomes::new(code)));
        while outcomes.code != code {
            outcomes = outcomes.next.get_or_init(|| Box::new(Outcomes::new(code)));
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS.len());
        outcomes.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        outcomes.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// One call on the books, from its arrival until the last byte of its answer.
#[derive(Debug)]
pub(crate) struct Account {
    state: Arc<FunctionState>,
    started: Instant,
    code: u16,
    /// When the call ended, if that is before the account goes.
    ended: Option<Instant>,
}

impl Account {
    /// The status noted for a caller who left before there was one.
    const CALLER_LEFT: u16 = 499;

    pub(crate) fn open(state: &Arc<FunctionState>, started: Instant) -> Self {
        state.metrics.started.fetch_add(1, Ordering::Relaxed);
        state.metrics.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { state: Arc::clone(state), started, code: Self::CALLER_LEFT, ended: None }
    }

    pub(crate) fn answered(&mut self, status: http::StatusCode) {
        self.code = status.as_u16();
    }

    /// Notes the end of the call, for those who know the time.
    pub(crate) fn close(&mut self, now: Instant) {
        self.ended = Some(now);
    }

    pub(crate) fn state(&self) -> &Arc<FunctionState> {
        &self.state
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.state.metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
        let ended = self.ended.unwrap_or_else(Instant::now);
        self.state.metrics.record(self.code, ended.saturating_duration_since(self.started));
    }
}

/// Hands the numbers of all known functions to a Prometheus registry. Only known functions have
/// any, so nobody can make series up by calling random names.
pub(crate) struct FunctionsCollector(pub(crate) Arc<ArcSwap<Table>>);

impl fmt::Debug for FunctionsCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FunctionsCollector")
    }
}

impl Collector for FunctionsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let table = self.0.load();
        let help = "Calls that have ended";
        let mut family = encoder.encode_descriptor(
            "gateway_function_invocation",
            help,
            None,
            MetricType::Counter,
        )?;
        for function in table.functions() {
            for outcomes in function.state.metrics.outcomes() {
                let labels = [
                    ("function_name", function.state.qualified.to_string()),
                    ("code", outcomes.code.to_string()),
                ];
                ConstCounter::new(outcomes.count()).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Seconds from the arrival of a call to the last byte of its answer";
        let mut family = encoder.encode_descriptor(
            "gateway_functions_seconds",
            help,
            None,
            MetricType::Histogram,
        )?;
        for function in table.functions() {
            for outcomes in function.state.metrics.outcomes() {
                let labels = [
                    ("function_name", function.state.qualified.to_string()),
                    ("code", outcomes.code.to_string()),
                ];
                let buckets: Vec<(f64, u64)> = BOUNDS
                    .iter()
                    .map(|bound| *bound as f64 / 1e6)
                    .chain([f64::INFINITY])
                    .zip(outcomes.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)))
                    .collect();
                let count = buckets.iter().map(|(_, count)| count).sum();
                let sum = outcomes.micros.load(Ordering::Relaxed) as f64 / 1e6;
                family
                    .encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
            }
        }
        let mut numbers = |name: &str, help: &str, kind, value: fn(&crate::Function) -> u64| {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for function in table.functions() {
                let labels = [("function_name", function.state.qualified.to_string())];
                let value = i64::try_from(value(function)).unwrap_or(i64::MAX);
                // Also for counters: the contract is the bare name of some, and the library ends
                // the name of every counter's number with `_total`.
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
            Ok(())
        };
        numbers(
            "gateway_function_invocation_started",
            "Calls that have begun",
            MetricType::Counter,
            |function| function.state.metrics.started(),
        )?;
        numbers(
            "gateway_function_invocation_inflight",
            "Calls under way",
            MetricType::Gauge,
            |function| function.state.metrics.in_flight(),
        )?;
        numbers(
            "updraft_function_waiting",
            "Calls that wait for a replica to start or for others to end",
            MetricType::Gauge,
            |function| {
                let starting = function.state.waiters.load(Ordering::Relaxed);
                (starting + function.state.line.waiting()) as u64
            },
        )?;
        numbers(
            "updraft_function_denied_total",
            "Calls that a private function did not let in",
            MetricType::Counter,
            |function| function.state.metrics.denied.load(Ordering::Relaxed),
        )
    }
}
