//! The JSON of schedules.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use updraft_model::OwnerName;
use updraft_queue::{CallState, ScheduleView};

/// One schedule of one function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// The function, `<name>.<namespace>`.
    pub function: String,
    /// Whose function; absent for one that came through the OpenFaaS API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerName>,
    /// The schedule as it was written.
    pub schedule: String,
    /// The zone whose clocks count.
    pub timezone: String,
    /// When it is due next; absent when something is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Timestamp>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What came of the last times, newest first.
    pub runs: Vec<ScheduledRun>,
}

/// What came of one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledRun {
    /// The time.
    pub due: Timestamp,
    /// The asynchronous call that was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// Where that call is; absent when it is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<CallState>,
    /// What the function last answered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why no call was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl From<ScheduleView> for Schedule {
    fn from(view: ScheduleView) -> Self {
        let run = |run: updraft_queue::ScheduledRun| ScheduledRun {
            due: run.due,
            call: run.call.map(|call| call.to_string()),
            state: run.state,
            status: run.status,
            skipped: run.skipped,
        };
        Self {
            function: view.function.to_string(),
            owner: view.owner,
            schedule: view.schedule,
            timezone: view.timezone,
            next: view.next,
            problem: view.problem,
            runs: view.runs.into_iter().map(run).collect(),
        }
    }
}
