//! Asynchronous invocations: a call is accepted, kept and made later, until the function has
//! answered it.
//!
//! A [`Queue`] has a call kept, by whatever keeps calls, before it says that it took it, and hands it to the data
//! plane in its turn: fair between owners, then between functions, no more at once than a function
//! bears. An answer that promises to get better is asked for again, later and later; one that does
//! not come at all ends as a dead letter, which people look at, make again or discard. Whoever
//! asked to be told is told. The queue decides nothing about who may call what, speaks no HTTP to
//! callers, and never makes a call that it was not asked for. [`Schedules`] asks by the clock.

mod callback;
mod dispatch;
mod error;
mod lanes;
mod metrics;
mod mistakes;
mod options;
mod policy;
mod queue;
mod schedule;
mod shared;
mod submit;
mod work;

pub use callback::{
    CallbackOptions, CallbackTarget, OpenKeyError, OwnerKey, ParseCallbackTargetError, SigningKey,
};
pub use error::{QueueError, SubmitError};
pub use mistakes::mistakes;
pub use options::QueueOptions;
pub use policy::RetryPolicy;
pub use queue::{Queue, QueueParts};
pub use schedule::{ScheduleParts, ScheduleView, ScheduledRun, Schedules};
pub use submit::{NewCall, is_queue_name};
pub use updraft_store::queue::{
    CallFilter, CallId, CallRecord, CallResult, CallState, CallStore, CallbackRecord,
    CallbackState, SqliteCallStore,
};
