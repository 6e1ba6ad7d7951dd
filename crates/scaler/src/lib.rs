//! Replicas follow load; idle functions freeze, then stop.
//!
//! A [`Scaler`] looks at what the data plane carries on every tick, and tells the engine how many
//! replicas a function should have. What it decides is worked out in [`decision`] from samples and
//! a policy, without I/O and without a clock of its own; the loop only measures and acts. It never
//! wakes a function for a request (the data plane does), never touches a function whose labels say
//! that it has one size, and keeps no record: after a restart it watches a while before it takes
//! anything away.

mod alert;
mod decision;
mod entry;
mod metrics;
mod options;
mod policy;
mod samples;
mod scaler;
mod view;
mod warm;

pub use alert::{Alert, AlertNotice, AlertOutcome, AlertStatus, ParseAlertError};
pub use options::ScalerOptions;
pub use policy::mistakes;
pub use scaler::{Backlog, Scaler, ScalerParts};
pub use view::{LastDecision, ScalingTarget, ScalingView};
