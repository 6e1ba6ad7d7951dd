//! How a function is scaled.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use updraft_model::format_duration;
use updraft_scaler::{LastDecision, ScalingTarget, ScalingView};

/// How a function is scaled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// Fewest replicas while awake.
    pub min: u32,
    /// Most replicas.
    pub max: u32,
    /// What its load is held against; empty when no load changes its size.
    #[serde(default)]
    pub targets: Vec<Target>,
    /// Time without a call after which it stops, such as `15m0s`; absent for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_after: Option<String>,
    /// The last decision since the server started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Decision>,
}

/// A load that one replica should carry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// What is measured: `rps`, `capacity`, `cpu` or `queue`.
    pub mode: String,
    /// How much of it is one replica's.
    pub load: f64,
    /// What was measured over the last half minute, of all replicas together.
    pub measured: f64,
}

/// A decision that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When.
    pub at: Timestamp,
    /// What and why, such as `1 => 3: rps 27.0, target 10 x 0.9`.
    pub text: String,
}

impl From<ScalingView> for Scaling {
    fn from(view: ScalingView) -> Self {
        Self {
            min: view.min,
            max: view.max,
            targets: view.targets.into_iter().map(Target::from).collect(),
            zero_after: view.zero_after.map(format_duration),
            last: view.last.map(Decision::from),
        }
    }
}

impl From<ScalingTarget> for Target {
    fn from(target: ScalingTarget) -> Self {
        Self { mode: target.mode.to_owned(), load: target.load, measured: target.measured }
    }
}

impl From<LastDecision> for Decision {
    fn from(decision: LastDecision) -> Self {
        Self { at: decision.at, text: decision.text }
    }
}
