//! What a function carried in the last half minute, and how sure that is.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::policy::Measure;

/// What replicas follow: long enough that noise averages out.
pub(crate) const STEADY: Duration = Duration::from_secs(30);

/// What a sudden rise is seen in.
pub(crate) const SUDDEN: Duration = Duration::from_secs(5);

/// Slack for ticks that come a little early.
const SLACK: Duration = Duration::from_millis(200);

/// What was seen between one look and the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interval {
    /// When it ended.
    pub(crate) end: Instant,
    /// How long it was.
    pub(crate) took: Duration,
    /// Calls that began in it.
    pub(crate) calls: u64,
    /// Calls under way at its end.
    pub(crate) in_flight: u64,
    /// Seconds of a processor used in it, when they could be told.
    pub(crate) cpu_seconds: Option<f64>,
    /// Asynchronous calls that waited or ran at its end.
    pub(crate) backlog: u64,
}

impl Interval {
    /// The load times the seconds it lasted; nothing when it is not known.
    fn amount(&self, measure: Measure) -> Option<f64> {
        let seconds = self.took.as_secs_f64();
        match measure {
            Measure::Calls => Some(self.calls as f64),
            Measure::InFlight => Some(self.in_flight as f64 * seconds),
            Measure::Cpu => self.cpu_seconds.map(|cpu| cpu * 1000.0),
            Measure::Backlog => Some(self.backlog as f64 * seconds),
        }
    }
}

/// A load, averaged over a window.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Load {
    /// In the unit of its measure.
    pub(crate) value: f64,
    /// One standard deviation of the value, as far as it can be told: few calls tell little.
    pub(crate) doubt: f64,
}

/// The newest intervals of one function, as long as the longest window.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    intervals: VecDeque<Interval>,
}

impl Samples {
    pub(crate) fn push(&mut self, interval: Interval) {
        self.intervals.push_back(interval);
        let end = interval.end;
        while let Some(oldest) = self.intervals.front()
            && end.duration_since(oldest.end) + SLACK >= STEADY
        {
            self.intervals.pop_front();
        }
    }

    /// Forgets everything, and the memory it took.
    pub(crate) fn clear(&mut self) {
        self.intervals = VecDeque::new();
    }

    /// Whether the steady window is full, so that its average is the load and not less.
    pub(crate) fn is_complete(&self) -> bool {
        let seen: Duration = self.intervals.iter().map(|interval| interval.took).sum();
        seen + SLACK >= STEADY
    }

    fn window(&self, window: Duration) -> impl Iterator<Item = &Interval> + Clone {
        let end = self.intervals.back().map(|newest| newest.end);
        self.intervals.iter().filter(move |interval| {
            end.is_some_and(|end| end.duration_since(interval.end) + SLACK < window)
        })
    }

    /// The average over the newest `window`, everything counted. Where less was seen than the
    /// window, the average of what was seen.
    pub(crate) fn average(&self, measure: Measure, window: Duration) -> Load {
        self.measured(measure, window, Duration::ZERO, 0)
    }

    /// The average without the most loaded moments, so that one volley of calls is no load that
    /// lasts. What was not seen of the window counts as no load.
    pub(crate) fn sustained(&self, measure: Measure, window: Duration) -> Load {
        let Some(newest) = self.intervals.back() else { return Load::default() };
        let fit = (window + SLACK).as_secs_f64() / newest.took.as_secs_f64().max(1e-3);
        let left_out = match fit {
            ..3.0 => 0,
            3.0..5.0 => 1,
            _ => 2,
        };
        self.measured(measure, window, window, left_out)
    }

    fn measured(
        &self,
        measure: Measure,
        window: Duration,
        at_least: Duration,
        left_out: usize,
    ) -> Load {
        let known = self.window(window).filter_map(|interval| {
            Some((interval.amount(measure)?, interval.took.as_secs_f64(), interval.calls))
        });
        let mut known: Vec<(f64, f64, u64)> = known.collect();
        let unseen = at_least.as_secs_f64() - known.iter().map(|(_, took, _)| took).sum::<f64>();
        known.sort_by(|(one, ..), (other, ..)| one.total_cmp(other));
        known.truncate(known.len().saturating_sub(left_out));
        let mut seconds = unseen.max(0.0);
        let (mut amount, mut calls) = (0.0, 0);
        for (part, took, begun) in known {
            amount += part;
            seconds += took;
            calls += begun;
        }
        if seconds <= 0.0 {
            return Load::default();
        }
        let value = amount / seconds;
        let doubt = match measure {
            // Calls that come by chance: a count of n is known to its square root.
            Measure::Calls => amount.sqrt() / seconds,
            // The same, for calls that stay a while.
            Measure::InFlight => {
                (value * (2.0 / calls.max(1) as f64).sqrt()).min(value.max(0.0).sqrt())
            }
            Measure::Cpu => value * 0.1,
            Measure::Backlog => 0.0,
        };
        Load { value, doubt }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(calls: &[u64]) -> Samples {
        let begin = Instant::now();
        let mut samples = Samples::default();
        for (index, calls) in calls.iter().enumerate() {
            samples.push(Interval {
                end: begin + Duration::from_secs(index as u64 + 1),
                took: Duration::from_secs(1),
                calls: *calls,
                in_flight: *calls,
                cpu_seconds: calls.is_multiple_of(2).then_some(0.5),
                backlog: 0,
            });
        }
        samples
    }

    fn near(one: f64, other: f64) {
        assert!((one - other).abs() < 1e-6, "{one} is not {other}");
    }

    #[test]
    fn a_steady_load_is_what_it_is() {
        let samples = samples(&[10; 45]);
        assert!(samples.is_complete());
        near(samples.average(Measure::Calls, STEADY).value, 10.0);
        near(samples.sustained(Measure::Calls, STEADY).value, 10.0);
        near(samples.sustained(Measure::Calls, SUDDEN).value, 10.0);
        near(samples.sustained(Measure::InFlight, SUDDEN).value, 10.0);
        near(samples.average(Measure::Cpu, STEADY).value, 500.0);
        assert_eq!(samples.intervals.len(), 30);
    }

    #[test]
    fn one_volley_is_no_load_that_lasts() {
        let mut calls = vec![0; 28];
        calls.extend([1_000, 1_000]);
        let samples = samples(&calls);
        near(samples.sustained(Measure::Calls, STEADY).value, 0.0);
        near(samples.sustained(Measure::InFlight, SUDDEN).value, 0.0);
        near(samples.average(Measure::Calls, STEADY).value, 2_000.0 / 30.0);
    }

    #[test]
    fn what_was_not_seen_is_no_load_for_growing_and_no_reason_to_shrink() {
        let samples = samples(&[30; 10]);
        assert!(!samples.is_complete());
        near(samples.sustained(Measure::Calls, STEADY).value, 240.0 / 28.0);
        near(samples.average(Measure::Calls, STEADY).value, 30.0);
    }

    #[test]
    fn processor_time_that_could_not_be_told_is_left_out() {
        let samples = samples(&[2, 1, 2, 1]);
        near(samples.average(Measure::Cpu, STEADY).value, 500.0);
    }

    #[test]
    fn nothing_seen_is_no_load() {
        let samples = Samples::default();
        assert_eq!(samples.average(Measure::Calls, STEADY), Load::default());
        assert_eq!(samples.sustained(Measure::InFlight, SUDDEN), Load::default());
    }
}
