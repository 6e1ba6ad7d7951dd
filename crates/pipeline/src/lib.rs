//! From push to ready: one durable state machine that plans, builds, releases and deploys.
//!
//! A push comes in recorded, is checked out, planned, built, released and deployed, one state
//! after the other ([`step`]); each state is on the disk before anything relies on it, and a new
//! start resumes where the last one was killed. One story of events ([`PushEvent`]) tells
//! everybody the same. The pipeline asks `source` for files, a builder for images and an engine
//! for running functions; it speaks no HTTP, authorises nobody, and is never on a request's way.

mod compare;
mod detail;
mod error;
mod event;
mod git_sink;
mod hint;
mod housekeeper;
mod journal;
mod lanes;
mod locks;
mod options;
mod pipeline;
mod point;
pub mod render;
mod run;
mod sealed;
mod slots;
mod spec;
pub mod step;
mod waiting;

pub use compare::{CompareError, ItemAction, SecretAction, SecretDifference};
pub use error::{RemoveError, RollbackError, StartError, SubmitError};
pub use event::{
    FailedStep, PlannedAction, PlannedFunction, PushEvent, PushEventKind, SecretOutcome, Verdict,
};
pub use git_sink::GitSink;
pub use housekeeper::{
    DiskUse, Housekeeper, HousekeeperOptions, HousekeeperParts, HousekeepingError, NoRoom,
};
pub use options::{MakeRoom, MistakesOf, PipelineOptions, PipelineParts, UrlOf};
pub use pipeline::{Origin, Pipeline, PushRequest};
pub use sealed::Unsealer;
pub use updraft_store::{PushId, PushState};
