//! What a scaler knows of one function between two looks, and what follows from it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use updraft_engine::{Availability, Usage};
use updraft_invoke::FunctionLoad;
use updraft_model::{FunctionSpec, format_duration};

use crate::decision::{History, decide};
use crate::options::ScalerOptions;
use crate::policy::{Measure, Policy, Target};
use crate::samples::{Interval, STEADY, Samples};
use crate::view::LastDecision;
use crate::warm::{Floor, WarmWindow};

/// How long after a refusal the engine is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// How often what rests, or is measured for the metrics alone, is read anew.
const SELDOM: Duration = Duration::from_secs(15);

/// What is to be done to a function.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Set the number of replicas.
    Scale(u32),
    /// Thaw.
    Wake,
    /// Freeze.
    Freeze,
    /// Stop all replicas, if it is idle still.
    Stop,
}

/// An action and why.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    pub(crate) action: Action,
    /// For the log.
    pub(crate) reason: String,
}

/// What a function was seen to be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    Ready,
    Asleep,
    Frozen,
    Starting,
    Failing,
}

impl State {
    pub(crate) const ALL: [Self; 5] =
        [Self::Ready, Self::Asleep, Self::Frozen, Self::Starting, Self::Failing];

    fn of(availability: &Availability) -> Self {
        match availability {
            Availability::Ready => Self::Ready,
            Availability::Asleep => Self::Asleep,
            Availability::Frozen => Self::Frozen,
            Availability::Starting => Self::Starting,
            Availability::Failing(_) => Self::Failing,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Asleep => "asleep",
            Self::Frozen => "frozen",
            Self::Starting => "starting",
            Self::Failing => "failing",
        })
    }
}

/// How often something was done, for the metrics.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) stop: u64,
    pub(crate) freeze: u64,
}

/// The counters at the last look.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    started: u64,
}

/// One function.
#[derive(Debug)]
pub(crate) struct Entry {
    spec: Arc<FunctionSpec>,
    pub(crate) policy: Policy,
    warnings: Vec<String>,
    pub(crate) state: State,
    pub(crate) ready: usize,
    /// Replicas desired, as the engine last said.
    pub(crate) current: Option<u32>,
    /// Replicas that the last decision wants.
    pub(crate) wanted: u32,
    pub(crate) counts: Counts,
    /// The last step that was taken.
    pub(crate) last: Option<LastDecision>,
    pub(crate) usage: Option<Usage>,
    /// Processor seconds of all its replicas since it was first seen; never falls.
    pub(crate) cpu_seconds: f64,
    samples: Samples,
    pub(crate) history: History,
    seen: Seen,
    /// When it was last called, carried a call, or was first seen.
    active: Instant,
    /// When the engine is next asked to freeze or stop it.
    ask_again: Option<Instant>,
    /// Until when the engine is not asked for anything, because it failed.
    paused: Option<Instant>,
    read_status: Option<Instant>,
    read_usage: Option<Instant>,
    /// Processor seconds since the last look, when they could be told.
    used: Option<f64>,
    floor: Option<Floor>,
}

impl Entry {
    pub(crate) fn new(load: &FunctionLoad, options: &ScalerOptions, now: Instant) -> Self {
        let (policy, warnings) = Policy::of(&load.spec, options);
        warn(&load.spec, &warnings);
        Self {
            spec: Arc::clone(&load.spec),
            wanted: policy.min,
            policy,
            warnings,
            state: State::of(&load.availability),
            ready: load.ready,
            current: None,
            counts: Counts::default(),
            last: None,
            usage: None,
            cpu_seconds: 0.0,
            samples: Samples::default(),
            history: History::default(),
            seen: Seen { at: now, started: load.started },
            active: now,
            ask_again: None,
            paused: None,
            read_status: None,
            read_usage: None,
            used: None,
            floor: None,
        }
    }

    /// Takes in what the data plane tells.
    pub(crate) fn observe(
        &mut self,
        load: &FunctionLoad,
        backlog: u64,
        options: &ScalerOptions,
        now: Instant,
    ) {
        if !Arc::ptr_eq(&self.spec, &load.spec) {
            let (policy, warnings) = Policy::of(&load.spec, options);
            if policy.warm != self.policy.warm {
                self.floor = None;
            }
            if warnings != self.warnings {
                warn(&load.spec, &warnings);
            }
            (self.policy, self.warnings) = (policy, warnings);
            self.spec = Arc::clone(&load.spec);
        }
        let before = std::mem::replace(&mut self.seen, Seen { at: now, started: load.started });
        let state = State::of(&load.availability);
        // Somebody woke it, or deployed it anew: its idle time begins again.
        let woken = state != self.state && matches!(self.state, State::Asleep | State::Frozen);
        if woken || load.started != before.started || load.in_flight > 0 || backlog > 0 {
            self.active = now;
            self.ask_again = None;
        }
        (self.state, self.ready) = (state, load.ready);
        let used = self.used.take();
        match state {
            State::Asleep => {
                self.rest();
                self.current = Some(0);
                self.usage = None;
            }
            State::Frozen => self.rest(),
            State::Ready | State::Starting | State::Failing => {
                let took = now.duration_since(before.at);
                if !took.is_zero() {
                    self.samples.push(Interval {
                        end: now,
                        took,
                        calls: load.started.saturating_sub(before.started),
                        in_flight: load.in_flight,
                        cpu_seconds: used,
                        backlog,
                    });
                }
            }
        }
    }

    /// Forgets what is not needed of a function that carries nothing.
    fn rest(&mut self) {
        self.samples.clear();
        self.history.restart();
    }

    /// Whether the engine is to be asked how many replicas are desired.
    pub(crate) fn wants_status(&self, now: Instant) -> bool {
        match self.state {
            State::Asleep => false,
            State::Frozen => is_due(self.read_status, now),
            State::Ready | State::Starting | State::Failing => true,
        }
    }

    /// Whether the engine is to be asked what the replicas use.
    pub(crate) fn wants_usage(&self, now: Instant) -> bool {
        match self.state {
            State::Asleep => false,
            State::Ready if self.policy.measures(Measure::Cpu) => true,
            _ => is_due(self.read_usage, now),
        }
    }

    /// Whether anything can follow without a question to the engine: a sleeping function has
    /// nothing to decide unless it is kept warm.
    pub(crate) fn may_act(&self) -> bool {
        self.state != State::Asleep || !self.policy.warm.is_empty()
    }

    /// Takes in how many replicas are desired. A number that this scaler did not set is left
    /// standing for a while.
    pub(crate) fn desired(&mut self, replicas: u32, options: &ScalerOptions, now: Instant) {
        self.read_status = Some(now);
        if self.current.is_some_and(|current| current != 0 && current != replicas) {
            let raised = replicas > self.policy.min;
            self.history.held = raised.then(|| (now + options.manual_hold, replicas));
        }
        self.current = Some(replicas);
    }

    /// Takes in what the replicas use.
    pub(crate) fn used(&mut self, usage: Option<Usage>, now: Instant) {
        self.read_usage = Some(now);
        let before = std::mem::replace(&mut self.usage, usage);
        let (Some(before), Some(usage)) = (before, usage) else { return };
        let used = usage.cpu_seconds - before.cpu_seconds;
        if used >= 0.0 {
            self.cpu_seconds += used;
            // Of a replica that came or went meanwhile it is not known what it did before.
            self.used = (usage.replicas == before.replicas).then_some(used);
        }
    }

    /// The load that is held against `target`, for the metrics.
    pub(crate) fn load(&self, target: &Target) -> f64 {
        self.samples.average(target.measure, STEADY).value
    }

    fn floor(&mut self, wall: Timestamp) -> Option<u32> {
        if self.policy.warm.is_empty() {
            return None;
        }
        let floor = match self.floor {
            Some(floor) if wall < floor.until => floor,
            _ => WarmWindow::floor(&self.policy.warm, wall),
        };
        self.floor = Some(floor);
        floor.replicas.map(|replicas| replicas.clamp(self.policy.min, self.policy.max))
    }

    /// What is to be done now, if anything.
    pub(crate) fn next(
        &mut self,
        options: &ScalerOptions,
        can_freeze: bool,
        now: Instant,
        wall: Timestamp,
    ) -> Option<Step> {
        let warm = self.floor(wall);
        if warm.is_some() {
            // Idle time counts from the end of the window.
            self.active = now;
        }
        let current = self.current?;
        if self.paused.is_some_and(|until| now < until) {
            return None;
        }
        let may_ask = self.ask_again.is_none_or(|at| now >= at);
        let because_warm = |action| Some(Step { action, reason: "warm window".to_owned() });
        match (self.state, warm) {
            (State::Asleep, Some(floor)) => return because_warm(Action::Scale(floor)),
            (State::Frozen, Some(_)) => return because_warm(Action::Wake),
            (State::Asleep, None) => return None,
            _ => {}
        }
        if current > 0 && matches!(self.state, State::Ready | State::Starting) {
            let decision =
                decide(&self.policy, warm, current, &self.samples, now, &mut self.history);
            self.wanted = decision.replicas;
            if decision.replicas != current {
                let mut reason = decision.reason.to_string();
                if decision.replicas == self.policy.max && decision.replicas > current {
                    reason = format!("{reason}, at most {}", self.policy.max);
                }
                return Some(Step { action: Action::Scale(decision.replicas), reason });
            }
        }
        let idle = now.duration_since(self.active);
        let reason = || format!("{} without a call", format_duration(whole_seconds(idle)));
        if !may_ask || warm.is_some() || current == 0 {
            return None;
        }
        if self.policy.zero_after.is_some_and(|limit| idle >= limit) {
            return Some(Step { action: Action::Stop, reason: reason() });
        }
        let rests = can_freeze && self.state == State::Ready && self.at_its_least(current, now);
        if rests && options.freeze_after.is_some_and(|limit| idle >= limit) {
            return Some(Step { action: Action::Freeze, reason: reason() });
        }
        None
    }

    /// Whether no replica is about to go; what is frozen is not scaled.
    fn at_its_least(&self, current: u32, now: Instant) -> bool {
        let held = self.history.held.is_some_and(|(until, _)| now < until);
        current <= self.policy.min
            || self.policy.is_fixed()
            || self.policy.targets.is_empty()
            || held
    }

    /// Keeps what was decided, for people.
    pub(crate) fn decided(&mut self, text: String) {
        self.last = Some(LastDecision { at: Timestamp::now(), text });
    }

    /// The engine has set the number of replicas.
    pub(crate) fn scaled(&mut self, replicas: u32) {
        let before = self.current.replace(replicas).unwrap_or(0);
        let counts = &mut self.counts;
        let count = match replicas {
            0 => &mut counts.stop,
            _ if replicas > before => &mut counts.up,
            _ => &mut counts.down,
        };
        *count += 1;
    }

    /// It did not rest when it was asked to, and is asked again after a while or the next call.
    pub(crate) fn refused(&mut self, now: Instant) {
        self.ask_again = Some(now + ASK_AGAIN);
    }

    /// The engine failed, and is left in peace for a while.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.paused = Some(now + ASK_AGAIN);
    }
}

fn is_due(last: Option<Instant>, now: Instant) -> bool {
    last.is_none_or(|last| now.duration_since(last) >= SELDOM)
}

fn whole_seconds(duration: Duration) -> Duration {
    if duration < Duration::from_secs(1) {
        duration
    } else {
        Duration::from_secs(duration.as_secs())
    }
}

fn warn(spec: &FunctionSpec, warnings: &[String]) {
    for warning in warnings {
        tracing::warn!(function = %spec.id, "{warning}");
    }
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
