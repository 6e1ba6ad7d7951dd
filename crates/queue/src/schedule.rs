//! Functions that are called by the clock.
//!
//! A function with the topic `cron-function` says in its annotations when it wants to be called.
//! [`Schedules`] follows the data plane's table, waits for the next time that comes, and puts a
//! call into the queue for it, which then does everything else: retries, limits, results. Each
//! time makes one call for an installation, whatever crashes: the call's id is made of the
//! schedule and the time. Nothing is decided here about other topics; connectors read those.

mod plan;
mod record;
mod rhythm;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use http_body_util::Full;
use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use updraft_invoke::{CALL_ID, Caller, Invoker, Scheme};
use updraft_model::{FunctionId, FunctionSpec, OwnerName};

use crate::{CallId, CallState, NewCall, Queue, QueueError, SubmitError};
use plan::{Due, Plan};
use record::{Outcome, Past, RecordFile, Run};

/// What the functions' headers call whoever calls them, as connectors do.
const CONNECTOR: &str = "cron-connector";

/// Longest sleep while something is scheduled: a clock that is set is noticed after it.
const SLEEP_MAX: Duration = Duration::from_secs(15);

/// Changes of the table within so long are looked at together.
const SETTLE: Duration = Duration::from_millis(100);

/// Calls that are put into the queue at the same time.
const AT_ONCE: usize = 32;

/// What schedules are made of.
#[derive(Debug)]
pub struct ScheduleParts {
    /// Takes the calls.
    pub queue: Arc<Queue>,
    /// Knows the functions.
    pub invoker: Arc<Invoker>,
    /// The file that remembers what ran.
    pub record: PathBuf,
}

/// What is wrong with the schedules of a function, each with the schedule that it is about.
pub(crate) fn problems(spec: &Arc<FunctionSpec>) -> Vec<String> {
    let wrong = |plan: &Arc<Plan>| {
        let problem = plan.rhythm.as_ref().err()?;
        // A problem of another annotation is the same for every schedule.
        let is_of_another = problem.starts_with("annotation ") || plan.text.is_empty();
        Some(if is_of_another {
            problem.clone()
        } else {
            format!("schedule `{}`: {problem}", plan.text)
        })
    };
    plan::plans(spec).iter().filter_map(wrong).collect()
}

/// One schedule of one function, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleView {
    /// The function.
    pub function: FunctionId,
    /// Whose function that is, if anybody's.
    pub owner: Option<OwnerName>,
    /// The schedule as it was written.
    pub schedule: String,
    /// The zone whose clocks count.
    pub timezone: String,
    /// When it is due next; never when something is wrong with it.
    pub next: Option<Timestamp>,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// What came of the last times, newest first.
    pub runs: Vec<ScheduledRun>,
}

/// What came of one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledRun {
    /// The time.
    pub due: Timestamp,
    /// The call that was made.
    pub call: Option<CallId>,
    /// Where that call is; nothing when it is forgotten.
    pub state: Option<CallState>,
    /// What the function last answered it.
    pub status: Option<u16>,
    /// Why no call was made.
    pub skipped: Option<String>,
}

/// Calls functions by the clock. Ends with [`Schedules::shutdown`].
pub struct Schedules {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    queue: Arc<Queue>,
    invoker: Arc<Invoker>,
    file: RecordFile,
    state: Mutex<State>,
    stopping: CancellationToken,
}

#[derive(Default)]
struct State {
    plans: BTreeMap<String, Arc<Plan>>,
    past: BTreeMap<String, Past>,
    /// The plans of each spec that was read already.
    read: HashMap<FunctionId, (Arc<FunctionSpec>, Vec<Arc<Plan>>)>,
}

impl fmt::Debug for Schedules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schedules").field("record", &self.shared.file.0).finish_non_exhaustive()
    }
}

impl Schedules {
    /// Reads what ran before and begins to wait for what comes.
    ///
    /// # Errors
    /// The machine's fault: the record cannot be read.
    pub fn start(parts: ScheduleParts) -> io::Result<Arc<Self>> {
        let file = RecordFile(parts.record);
        let past = file.load(Timestamp::now())?;
        let shared = Arc::new(Shared {
            queue: parts.queue,
            invoker: parts.invoker,
            file,
            state: Mutex::new(State { past, ..State::default() }),
            stopping: CancellationToken::new(),
        });
        shared.look(Timestamp::now());
        let task = tokio::spawn(Arc::clone(&shared).run());
        Ok(Arc::new(Self { shared, task: Mutex::new(Some(task)) }))
    }

    /// Every schedule of every function, or of one owner's, by function.
    ///
    /// # Errors
    /// The machine's fault: the queue's record cannot be read.
    pub async fn list(&self, owner: Option<&OwnerName>) -> Result<Vec<ScheduleView>, QueueError> {
        let now = Timestamp::now();
        let known: Vec<(Arc<Plan>, Vec<Run>)> = {
            let state = self.shared.state();
            let mine = |plan: &&Arc<Plan>| owner.is_none() || plan.owner.as_ref() == owner;
            let runs = |plan: &Plan| {
                let past = state.past.get(&plan.key);
                past.map(|past| past.runs.iter().rev().cloned().collect()).unwrap_or_default()
            };
            state.plans.values().filter(mine).map(|plan| (Arc::clone(plan), runs(plan))).collect()
        };
        let mut views = Vec::with_capacity(known.len());
        for (plan, runs) in known {
            let mut shown = Vec::with_capacity(runs.len());
            for run in runs {
                shown.push(self.shared.describe(run).await?);
            }
            views.push(ScheduleView {
                function: plan.function().clone(),
                owner: plan.owner.clone(),
                schedule: plan.text.clone(),
                timezone: plan.zone.clone(),
                next: plan.next(now),
                problem: plan.rhythm.as_ref().err().cloned(),
                runs: shown,
            });
        }
        views.sort_by(|a, b| (&a.function, &a.schedule).cmp(&(&b.function, &b.schedule)));
        Ok(views)
    }

    /// Makes no more calls. Call it before the queue's shutdown.
    pub async fn shutdown(&self) {
        self.shared.stopping.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the schedules had stopped");
        }
    }
}

impl Drop for Schedules {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>) {
        let mut changes = self.invoker.changes();
        loop {
            changes.mark_unchanged();
            self.look(Timestamp::now());
            self.call_what_is_due().await;
            let sleep = self.until_next(Timestamp::now());
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => {}
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Replicas come and go in bursts; a call in time is worth more than a look.
                    let settle = sleep.map_or(SETTLE, |sleep| sleep.min(SETTLE));
                    tokio::time::sleep(settle).await;
                }
            }
        }
    }

    /// Takes over what functions say now.
    fn look(&self, now: Timestamp) {
        let mut state = self.state();
        let mut read = HashMap::new();
        for load in self.invoker.loads() {
            let spec = load.spec;
            if !spec.annotations.contains_key(updraft_model::annotations::TOPIC) {
                continue;
            }
            let id = spec.id.clone();
            let known = state.read.remove(&id).filter(|(known, _)| Arc::ptr_eq(known, &spec));
            let known = known.unwrap_or_else(|| {
                let plans = plan::plans(&spec);
                for plan in &plans {
                    if let Err(problem) = &plan.rhythm {
                        let schedule = &plan.text;
                        tracing::warn!(function = %id, schedule, problem, "a schedule is never due");
                    }
                }
                (spec, plans)
            });
            read.insert(id, known);
        }
        let plans: BTreeMap<_, _> = read
            .values()
            .flat_map(|(_, plans)| plans)
            .map(|plan| (plan.key.clone(), Arc::clone(plan)))
            .collect();
        // A schedule that goes takes its past along: the same one made later is a new one.
        let State { plans: before, past, .. } = &mut *state;
        for key in before.keys().filter(|key| !plans.contains_key(*key)) {
            past.remove(key);
        }
        for (key, plan) in &plans {
            let new = || Past::new(plan.function().clone(), now);
            state.past.entry(key.clone()).or_insert_with(new);
        }
        state.read = read;
        state.plans = plans;
    }

    fn until_next(&self, now: Timestamp) -> Option<Duration> {
        let state = self.state();
        let next = state.plans.values().filter_map(|plan| plan.next(now)).min()?;
        let wait = Duration::try_from(next.duration_since(now)).unwrap_or_default();
        Some(wait.min(SLEEP_MAX))
    }

    async fn call_what_is_due(&self) {
        let now = Timestamp::now();
        let due: Vec<(Arc<Plan>, Due, Option<String>)> = {
            let state = self.state();
            let of = |plan: &Arc<Plan>| {
                let past = state.past.get(&plan.key)?;
                let due = plan.due(past.since, now)?;
                Some((Arc::clone(plan), due, past.last_call().map(str::to_owned)))
            };
            state.plans.values().filter_map(of).collect()
        };
        if due.is_empty() {
            return;
        }
        let outcomes: Vec<_> = stream::iter(due)
            .map(|(plan, due, last)| async move {
                let outcome = self.answer(&plan, due, last.as_deref()).await;
                (plan, due, outcome)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let record = {
            let mut state = self.state();
            for (plan, due, outcome) in outcomes {
                // What could not be tried is tried again.
                let Some(outcome) = outcome else { continue };
                if let Outcome::Skipped(reason) = &outcome {
                    let schedule = &plan.text;
                    tracing::info!(function = %plan.function(), schedule, due = %due.at, reason, "a scheduled run is skipped");
                }
                if let Some(past) = state.past.get_mut(&plan.key) {
                    past.add(Run { due: due.at, outcome });
                }
            }
            let State { plans, past, .. } = &mut *state;
            record::written(past, |key| plans.contains_key(key), now)
        };
        let file = self.file.clone();
        let saved = tokio::task::spawn_blocking(move || file.save(&record));
        if let Err(error) = saved.await.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            tracing::error!(%error, file = %self.file.0.display(), "what ran by schedule cannot be recorded");
        }
    }

    /// Deals with one time; nothing when it has to be tried again.
    async fn answer(&self, plan: &Plan, due: Due, last: Option<&str>) -> Option<Outcome> {
        if !due.runs {
            return Some(Outcome::Skipped("it was missed".to_owned()));
        }
        let text = format!("cron-{}-{}", plan.key, due.at.as_second());
        let id: CallId = text.parse().expect("hexadecimal digits and a number are a call id");
        match self.queue.call(&id).await {
            // An earlier process was ended before it could record what it had done.
            Ok(Some(_)) => return Some(Outcome::Called(text)),
            Ok(None) => {}
            Err(error) => return later(plan, &error),
        }
        if !plan.may_overlap
            && let Some(last) = last.and_then(|last| last.parse().ok())
        {
            match self.queue.call(&last).await {
                Ok(Some(call)) if matches!(call.state, CallState::Queued | CallState::Running) => {
                    let reason = format!("the run before it is {}", call.state);
                    return Some(Outcome::Skipped(reason));
                }
                Ok(_) => {}
                Err(error) => return later(plan, &error),
            }
        }
        let body = Full::new(Bytes::from(plan.body.clone()));
        match self.queue.submit(new_call(plan, due.at, &text), body).await {
            Ok(id) => {
                tracing::debug!(function = %plan.function(), call = %id, due = %due.at, "a scheduled call");
                Some(Outcome::Called(id.to_string()))
            }
            Err(SubmitError::Stopping) => None,
            Err(SubmitError::Queue(error)) => later(plan, &error),
            Err(refused) => Some(Outcome::Skipped(refused.to_string())),
        }
    }

    async fn describe(&self, run: Run) -> Result<ScheduledRun, QueueError> {
        let due = run.due;
        match run.outcome {
            Outcome::Skipped(reason) => {
                let skipped = Some(reason);
                Ok(ScheduledRun { due, call: None, state: None, status: None, skipped })
            }
            Outcome::Called(id) => {
                let call: Option<CallId> = id.parse().ok();
                let record = match &call {
                    Some(id) => self.queue.call(id).await?,
                    None => None,
                };
                let state = record.as_ref().map(|record| record.state);
                let status = record.and_then(|record| record.status);
                Ok(ScheduledRun { due, call, state, status, skipped: None })
            }
        }
    }
}

/// The machine failed; the time stays due as long as it is not missed.
fn later(plan: &Plan, error: &QueueError) -> Option<Outcome> {
    let error = error as &dyn std::error::Error;
    tracing::error!(function = %plan.function(), error, "a scheduled call cannot be kept yet");
    None
}

fn new_call(plan: &Plan, due: Timestamp, id: &str) -> NewCall {
    let mut headers = HeaderMap::new();
    let mut set = |name: HeaderName, value: &str| {
        // Annotations may hold what no header may; then the header says nothing.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(CALL_ID, id);
    set(HeaderName::from_static("x-topic"), plan::TOPIC);
    set(HeaderName::from_static("x-connector"), CONNECTOR);
    set(HeaderName::from_static("x-schedule"), &plan.text);
    set(HeaderName::from_static("x-schedule-due"), &due.to_string());
    set(header::USER_AGENT, concat!("updraft/", env!("CARGO_PKG_VERSION")));
    if !plan.body.is_empty() {
        let json = serde_json::from_str::<serde::de::IgnoredAny>(&plan.body).is_ok();
        let kind = if json { "application/json" } else { "text/plain; charset=utf-8" };
        set(header::CONTENT_TYPE, kind);
    }
    NewCall {
        function: plan.function().clone(),
        method: Method::POST,
        target: plan.target.clone(),
        headers,
        // Whoever deployed the function asked for the call.
        caller: Caller::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Scheme::Http).authorized(),
        callback: None,
    }
}
