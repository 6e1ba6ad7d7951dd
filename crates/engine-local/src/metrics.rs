//! The engine's own numbers: starts by phase, ends by cause, rests, and what all replicas use
//! together. Labels come from fixed lists and from functions that exist.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use updraft_engine::ReplicaState;
use updraft_model::FunctionId;

use crate::controller::FunctionHandle;
use crate::phases::Phases;
use crate::shared::Shared;

/// Bounds of the steps of a start, in seconds.
const STEPS: [f64; 11] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0];

const STATES: [ReplicaState; 5] = [
    ReplicaState::Starting,
    ReplicaState::Ready,
    ReplicaState::Unready,
    ReplicaState::Frozen,
    ReplicaState::Leaving,
];

type Label = [(&'static str, &'static str); 1];

/// Why a replica ended that nobody had asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Code,
    Signal,
    Memory,
    Unhealthy,
    NotReady,
    NotStarted,
    Unknown,
}

impl Cause {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::Signal => "signal",
            Self::Memory => "memory",
            Self::Unhealthy => "unhealthy",
            Self::NotReady => "not_ready",
            Self::NotStarted => "not_started",
            Self::Unknown => "unknown",
        }
    }
}

/// What is counted as it happens.
#[derive(Debug, Clone)]
pub(crate) struct EngineMetrics {
    steps: Family<Label, Histogram, fn() -> Histogram>,
    ends: Family<Label, Counter>,
    freezes: Counter,
    thaws: Family<Label, Counter>,
    reclaimed: Counter,
}

impl Default for EngineMetrics {
    fn default() -> Self {
        Self {
            steps: Family::new_with_constructor(|| Histogram::new(STEPS)),
            ends: Family::default(),
            freezes: Counter::default(),
            thaws: Family::default(),
            reclaimed: Counter::default(),
        }
    }
}

impl EngineMetrics {
    /// A replica was started and is ready.
    pub(crate) fn started(&self, phases: &Phases) {
        for (phase, time) in phases.all() {
            self.steps.get_or_create(&[("phase", phase)]).observe(time.as_secs_f64());
        }
    }

    /// A replica ended without being asked to.
    pub(crate) fn ended(&self, cause: Cause) {
        self.ends.get_or_create(&[("cause", cause.as_str())]).inc();
    }

    /// A function was frozen.
    pub(crate) fn frozen(&self) {
        self.freezes.inc();
    }

    /// A function was thawed: by a request itself, or by the engine for whatever was to be done.
    pub(crate) fn thawed(&self, by_request: bool) {
        let by = if by_request { "request" } else { "engine" };
        self.thaws.get_or_create(&[("by", by)]).inc();
    }

    /// Memory of a frozen replica was put out.
    pub(crate) fn reclaimed(&self, bytes: u64) {
        self.reclaimed.inc_by(bytes);
    }
}

type Functions = Arc<Mutex<HashMap<FunctionId, FunctionHandle>>>;

/// Adds everything to a registry.
pub(crate) fn register(registry: &mut Registry, shared: &Arc<Shared>, functions: &Functions) {
    let metrics = &shared.metrics;
    registry.register(
        "updraft_engine_start_seconds",
        "Seconds of each step of the starts of replicas that became ready",
        metrics.steps.clone(),
    );
    registry.register(
        "updraft_engine_replica_ends",
        "Replicas that ended without being asked to, by cause",
        metrics.ends.clone(),
    );
    registry.register(
        "updraft_engine_freezes",
        "Functions that were frozen",
        metrics.freezes.clone(),
    );
    registry.register(
        "updraft_engine_thaws",
        "Functions that were thawed, by a request itself or by the engine",
        metrics.thaws.clone(),
    );
    registry.register(
        "updraft_engine_reclaimed_bytes",
        "Memory of frozen replicas that went to swap",
        metrics.reclaimed.clone(),
    );
    registry.register_collector(Box::new(EngineCollector {
        shared: Arc::clone(shared),
        functions: Arc::clone(functions),
    }));
}

/// What is counted when somebody asks.
struct EngineCollector {
    shared: Arc<Shared>,
    functions: Functions,
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let states: Vec<_> = {
            let functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
            let mut states: Vec<_> = functions
                .iter()
                .filter_map(|(id, handle)| Some((id.to_string(), handle.state.borrow().clone()?)))
                .collect();
            states.sort_by(|(one, _), (other, _)| one.cmp(other));
            states
        };
        let mut family = encoder.encode_descriptor(
            "updraft_engine_replicas",
            "Replicas by what they do",
            None,
            MetricType::Gauge,
        )?;
        for wanted in STATES {
            let members = states.iter().flat_map(|(_, state)| state.members.iter());
            let count = members.filter(|member| member.state == wanted).count();
            ConstGauge::new(count as f64)
                .encode(family.encode_family(&[("state", wanted.as_str())])?)?;
        }
        let mut family = encoder.encode_descriptor(
            "updraft_function_restarts",
            "Replicas of a function that ended without being asked to",
            None,
            MetricType::Counter,
        )?;
        for (name, state) in &states {
            ConstCounter::new(state.shown.restarts)
                .encode(family.encode_family(&[("function_name", name.as_str())])?)?;
        }
        let Some(all) = self.shared.runtime.cgroups.usage(&self.shared.options.cgroup()) else {
            return Ok(());
        };
        ConstCounter::new(all.cpu_seconds).encode(encoder.encode_descriptor(
            "updraft_engine_cpu_seconds",
            "Processor time of all replicas",
            None,
            MetricType::Counter,
        )?)?;
        ConstGauge::new(all.memory_bytes as f64).encode(encoder.encode_descriptor(
            "updraft_engine_memory_bytes",
            "Memory of all replicas",
            None,
            MetricType::Gauge,
        )?)
    }
}

impl fmt::Debug for EngineCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineCollector").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn starts_are_told_by_phase_and_ends_by_cause() {
        let metrics = EngineMetrics::default();
        metrics.started(&Phases { mount: Duration::from_millis(3), ..Phases::default() });
        metrics.ended(Cause::Memory);
        let mut registry = Registry::default();
        registry.register("starts", "x", metrics.steps.clone());
        registry.register("ends", "x", metrics.ends.clone());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "starts_sum{phase=\"mount\"} 0.003",
            "starts_count{phase=\"ready\"} 1",
            "ends_total{cause=\"memory\"} 1",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
