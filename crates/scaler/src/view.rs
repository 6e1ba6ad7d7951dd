//! How a function is scaled, for people: what its labels ask for, and what was decided last.

use std::time::Duration;

use jiff::Timestamp;

use crate::entry::Entry;

/// How one function is scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalingView {
    /// Fewest replicas while awake.
    pub min: u32,
    /// Most replicas.
    pub max: u32,
    /// What its load is held against; nothing when no load changes its size.
    pub targets: Vec<ScalingTarget>,
    /// Time without a call after which it stops; nothing for never.
    pub zero_after: Option<Duration>,
    /// The last decision that was carried out since Updraft started.
    pub last: Option<LastDecision>,
}

/// A load that one replica should carry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScalingTarget {
    /// What is measured, by the name that the label `com.openfaas.scale.type` has for it.
    pub mode: &'static str,
    /// How much of it is one replica's.
    pub load: f64,
    /// What was measured lately, of all replicas together.
    pub measured: f64,
}

/// What was decided, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastDecision {
    /// When.
    pub at: Timestamp,
    /// The decision and its reason, as the log has it.
    pub text: String,
}

impl ScalingView {
    pub(crate) fn of(entry: &Entry) -> Self {
        let policy = &entry.policy;
        let targets = if policy.is_fixed() { &[][..] } else { &policy.targets };
        let target = |target: &crate::policy::Target| ScalingTarget {
            mode: target.measure.name(),
            load: target.capacity(),
            measured: entry.load(target),
        };
        Self {
            min: policy.min,
            max: policy.max,
            targets: targets.iter().map(target).collect(),
            zero_after: policy.zero_after,
            last: entry.last.clone(),
        }
    }
}
