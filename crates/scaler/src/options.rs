//! What a scaler is told by the operator.

use std::time::Duration;

/// How a scaler works where a function's labels say nothing.
#[derive(Debug, Clone)]
pub struct ScalerOptions {
    /// Whether replicas follow load. Idle functions freeze and stop all the same, and alerts are
    /// still honoured.
    pub follow_load: bool,
    /// Time between two looks.
    pub tick: Duration,
    /// Most replicas of a function without `com.openfaas.scale.max`.
    pub max: u32,
    /// What one replica should carry where a function names a type and no target.
    pub target: f64,
    /// For a function that names neither type nor target: calls a second from which on it gets a
    /// second replica.
    pub calls: f64,
    /// For the same function: calls under way that one replica should carry.
    pub in_flight: f64,
    /// How long a lower need must last before replicas go, where no label says so.
    pub down_window: Duration,
    /// How long a number of replicas that somebody set by hand is left standing.
    pub manual_hold: Duration,
    /// Time without a call after which a function is frozen; nothing for never.
    pub freeze_after: Option<Duration>,
    /// Whether functions without `com.openfaas.scale.zero` stop when idle.
    pub scale_to_zero: bool,
    /// Time without a call after which a function stops, where no label says so.
    pub zero_after: Duration,
}

impl Default for ScalerOptions {
    fn default() -> Self {
        Self {
            follow_load: true,
            tick: Duration::from_secs(1),
            max: 20,
            target: 50.0,
            calls: 5.0,
            in_flight: 10.0,
            down_window: Duration::from_secs(20),
            manual_hold: Duration::from_mins(5),
            freeze_after: Some(Duration::from_secs(10)),
            scale_to_zero: false,
            zero_after: Duration::from_mins(15),
        }
    }
}
