//! The decision: from what a function carries and what its policy asks, how many replicas it
//! should have. Pure: the time comes in, and nothing goes out but the answer.
//!
//! Growing is quick, shrinking is slow. More replicas are wanted as soon as the steady load asks
//! for them, or the load of the last seconds is over what there is by more than chance explains.
//! Fewer are wanted only when the load fits them with room to spare, and only after it has for the
//! whole down window. Each time a function shrinks and has to grow again soon after, the window
//! doubles.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::policy::{Policy, Target};
use crate::samples::{STEADY, SUDDEN, Samples};

/// Room that must be left on the replicas that stay, as a share of the load.
const ROOM: f64 = 0.25;

/// How many standard deviations are more than chance.
const SURE: f64 = 2.0;

/// Growing again within this long after shrinking counts as having shrunk too early.
const TOO_EARLY: Duration = Duration::from_mins(4);

/// Shortest time between two steps down, so that a falling load is followed in a few steps.
const STEP_DOWN: Duration = Duration::from_secs(10);

/// Longest down window that doubling leads to.
const LONGEST_WINDOW: Duration = Duration::from_mins(5);

/// Why a number of replicas is wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Reason {
    /// A load and the target it was held against.
    Load {
        /// In the unit of the target.
        load: f64,
        /// What one replica should carry.
        target: Target,
    },
    /// The number was below the policy's minimum or above its maximum.
    Bounds,
    /// A warm window is open.
    Warm,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load { load, target } => {
                write!(f, "{} {load:.1}, {target}", target.measure)
            }
            Self::Bounds => f.write_str("labels"),
            Self::Warm => f.write_str("warm window"),
        }
    }
}

/// How many replicas, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Decision {
    /// Replicas wanted; as many as there are when nothing is to change.
    pub(crate) replicas: u32,
    /// What it was decided by.
    pub(crate) reason: Reason,
}

/// What a decision needs to remember of those before.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Numbers recommended within the down window, each lower than all before it: the first is the
    /// highest.
    recommended: VecDeque<(Instant, u32)>,
    /// Since when there are recommendations.
    since: Option<Instant>,
    /// When it last shrank.
    shrank: Option<Instant>,
    /// How often the down window was doubled.
    doubled: u32,
    /// What somebody else set, and until when it is left standing.
    pub(crate) held: Option<(Instant, u32)>,
}

impl History {
    /// Starts to watch afresh, after a function carried nothing for a while: nothing goes before a
    /// whole window was seen.
    pub(crate) fn restart(&mut self) {
        *self = Self { held: self.held, ..Self::default() };
    }

    fn window(&self, policy: &Policy) -> Duration {
        let factor = 1_u32.checked_shl(self.doubled).unwrap_or(u32::MAX);
        let longest = LONGEST_WINDOW.max(policy.down_window);
        policy.down_window.checked_mul(factor).unwrap_or(longest).min(longest)
    }

    fn recommend(&mut self, now: Instant, replicas: u32) {
        self.since.get_or_insert(now);
        while self.recommended.back().is_some_and(|(_, earlier)| *earlier <= replicas) {
            self.recommended.pop_back();
        }
        self.recommended.push_back((now, replicas));
    }

    /// The highest recommendation of the window; nothing before a whole window was seen.
    fn highest(&mut self, now: Instant, window: Duration) -> Option<u32> {
        while let [(at, _), _, ..] = self.recommended.make_contiguous()
            && now.duration_since(*at) > window
        {
            self.recommended.pop_front();
        }
        let seen = now.duration_since(self.since?);
        let (_, highest) = self.recommended.front()?;
        (seen >= window).then_some(*highest)
    }

    fn grew(&mut self, now: Instant, window: Duration) {
        match self.shrank.take() {
            Some(at) if now.duration_since(at) < TOO_EARLY + window => {
                self.doubled = (self.doubled + 1).min(16);
            }
            _ => self.doubled = 0,
        }
    }
}

/// How many replicas a load needs.
fn needed(load: f64, target: &Target) -> u32 {
    // A number that a division left a hair above the whole needs no replica more. The cast
    // saturates.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let replicas = (load / target.capacity() - 1e-9).ceil().max(0.0) as u32;
    replicas.min(target.most)
}

/// What one target asks for.
struct Wish {
    at_least: u32,
    at_most: u32,
    reason: Reason,
}

fn wish(target: &Target, samples: &Samples, current: u32) -> Wish {
    let steady = samples.sustained(target.measure, STEADY);
    let sudden = samples.sustained(target.measure, SUDDEN);
    let mut at_least = needed(steady.value, target);
    let mut load = steady.value;
    let carried = f64::from(current) * target.capacity();
    if sudden.value - SURE * sudden.doubt > carried {
        at_least = at_least.max(needed(sudden.value, target));
        load = load.max(sudden.value);
    }
    let average = samples.average(target.measure, STEADY);
    let room = (average.value * ROOM).max(average.doubt * SURE);
    let at_most = needed(average.value + room, target).max(at_least);
    let load = if at_least > current { load } else { average.value };
    Wish { at_least, at_most, reason: Reason::Load { load, target: *target } }
}

/// How many replicas a function with `current` ones, awake, should have.
///
/// `warm` is what its warm windows ask for now.
pub(crate) fn decide(
    policy: &Policy,
    warm: Option<u32>,
    current: u32,
    samples: &Samples,
    now: Instant,
    history: &mut History,
) -> Decision {
    let floor = warm.unwrap_or(0).clamp(policy.min, policy.max);
    let stay = |reason| Decision { replicas: current, reason };
    if policy.is_fixed() {
        return stay(Reason::Bounds);
    }
    let window = history.window(policy);
    let wishes = policy.targets.iter().map(|target| wish(target, samples, current));
    // Without a target, nothing but the bounds moves it.
    let none = Wish { at_least: 0, at_most: current, reason: Reason::Bounds };
    let wish = wishes
        .reduce(|one, other| Wish {
            at_most: one.at_most.max(other.at_most),
            ..if other.at_least > one.at_least { other } else { one }
        })
        .unwrap_or(none);
    let wanted = wish.at_least.clamp(floor, policy.max);
    if wanted > current {
        history.recommend(now, wanted);
        let reason = if wish.at_least > current {
            wish.reason
        } else if policy.min > current {
            Reason::Bounds
        } else {
            Reason::Warm
        };
        if wish.at_least > current {
            history.grew(now, window);
        }
        return Decision { replicas: wanted, reason };
    }
    if current > policy.max {
        history.recommend(now, policy.max);
        return Decision { replicas: policy.max, reason: Reason::Bounds };
    }
    let fits = wish.at_most.clamp(floor, policy.max);
    let held = history.held.filter(|(until, _)| now < *until).map_or(0, |(_, replicas)| replicas);
    history.recommend(now, fits.max(held).min(current));
    let rests = history.highest(now, window).filter(|_| samples.is_complete());
    let stepped = history.shrank.is_some_and(|at| now.duration_since(at) < STEP_DOWN);
    match rests {
        Some(replicas) if replicas < current && !stepped => {
            history.shrank = Some(now);
            Decision { replicas, reason: wish.reason }
        }
        _ => stay(wish.reason),
    }
}

#[cfg(test)]
#[path = "decision_tests.rs"]
mod tests;
