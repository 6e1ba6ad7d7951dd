//! When something is due: a cron expression in a time zone, or every so often.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use updraft_model::parse_duration;

/// Longest text that is read.
const TEXT_MAX: usize = 256;

/// What is due when.
#[derive(Debug, Clone)]
pub(super) enum Rhythm {
    /// At the times of a cron expression, as the clocks of a zone show them.
    Cron(Box<Cron>, TimeZone),
    /// At every multiple of so many seconds since 1970: the same times after each restart.
    Every(i64),
}

impl Rhythm {
    /// Reads five cron fields, `@hourly` and its kind, or `@every 5m`.
    ///
    /// # Errors
    /// A sentence for people.
    pub(super) fn parse(text: &str, zone: &TimeZone) -> Result<Self, String> {
        if text.len() > TEXT_MAX {
            return Err(format!("it is longer than {TEXT_MAX} characters"));
        }
        if let Some(interval) = text.strip_prefix("@every ") {
            let interval = parse_duration(interval).map_err(|error| error.to_string())?;
            let seconds = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX);
            if seconds == 0 || interval.subsec_nanos() != 0 {
                return Err("`@every` takes whole seconds, one at least".to_owned());
            }
            return Ok(Self::Every(seconds));
        }
        let parser =
            CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.trim_end_matches('.');
            format!(
                "{reason}; write five fields such as `*/5 * * * *`, `@hourly`, `@daily` or `@every 5m`"
            )
        })?;
        let rhythm = Self::Cron(Box::new(cron), zone.clone());
        if rhythm.next(Timestamp::now()).is_none() {
            return Err("it is never due".to_owned());
        }
        Ok(rhythm)
    }

    /// The first time after `moment`.
    pub(super) fn next(&self, moment: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Cron(cron, zone) => {
                let from = moment.to_zoned(zone.clone());
                Some(cron.find_next_occurrence(&from, false).ok()?.timestamp())
            }
            Self::Every(seconds) => {
                let due = moment.as_second().div_euclid(*seconds).checked_add(1)?;
                Timestamp::from_second(due.checked_mul(*seconds)?).ok()
            }
        }
    }

    /// The last time not after `moment`.
    pub(super) fn latest(&self, moment: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Cron(cron, zone) => {
                let from = moment.to_zoned(zone.clone());
                Some(cron.find_previous_occurrence(&from, true).ok()?.timestamp())
            }
            Self::Every(seconds) => {
                let due = moment.as_second().div_euclid(*seconds).checked_mul(*seconds)?;
                Timestamp::from_second(due).ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The first times after `from`.
    fn times(text: &str, place: &str, from: &str, count: usize) -> Vec<String> {
        let rhythm = Rhythm::parse(text, &zone(place)).unwrap();
        let mut moment = at(from);
        (0..count)
            .map(|_| {
                moment = rhythm.next(moment).unwrap();
                assert_eq!(rhythm.latest(moment), Some(moment), "{text} at {moment}");
                moment.to_string()
            })
            .collect()
    }

    #[test]
    fn expressions_mean_what_cron_means_by_them() {
        let from = "2026-01-01T00:00:00Z";
        assert_eq!(
            times("*/20 9 * * 1-5", "UTC", from, 3),
            ["2026-01-01T09:00:00Z", "2026-01-01T09:20:00Z", "2026-01-01T09:40:00Z"]
        );
        assert_eq!(times("@hourly", "UTC", from, 1), ["2026-01-01T01:00:00Z"]);
        assert_eq!(times("@daily", "America/New_York", from, 1), ["2026-01-01T05:00:00Z"]);
        assert_eq!(times("0 0 L * *", "UTC", from, 1), ["2026-01-31T00:00:00Z"]);
        assert_eq!(
            times("@every 90s", "UTC", "2026-01-01T00:00:01Z", 2),
            ["2026-01-01T00:01:30Z", "2026-01-01T00:03:00Z"]
        );
        // Either day counts when both are given, as in every cron.
        assert_eq!(times("0 0 13 * 5", "UTC", from, 1), ["2026-01-02T00:00:00Z"]);
    }

    #[test]
    fn a_time_that_the_clocks_leave_out_comes_once_right_after() {
        // On 29 March 2026 the clocks of Berlin go from 02:00 to 03:00.
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2),
            ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
        );
    }

    #[test]
    fn a_time_that_the_clocks_show_twice_comes_once_unless_it_comes_every_hour() {
        // On 25 October 2026 the clocks of Berlin go from 03:00 back to 02:00.
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
        assert_eq!(
            times("30 * * * *", "Europe/Berlin", "2026-10-24T23:45:00Z", 3),
            ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"]
        );
    }

    #[test]
    fn what_is_no_rhythm_is_told() {
        for text in [
            "",
            "* * * *",
            "* * * * * *",
            "61 * * * *",
            "@fortnightly",
            "@every",
            "@every 0s",
            "@every 1500ms",
            "@every soon",
            "0 0 30 2 *",
            "tomorrow",
        ] {
            let problem = Rhythm::parse(text, &TimeZone::UTC).unwrap_err();
            assert!(!problem.is_empty() && !problem.contains(".;"), "{text}: {problem}");
        }
        assert!(Rhythm::parse(&"1,".repeat(200), &TimeZone::UTC).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_or_refused(text in "\\PC{0,40}") {
            drop(Rhythm::parse(&text, &TimeZone::UTC));
        }

        #[test]
        fn the_next_time_is_later_and_the_latest_is_not(
            seconds in 0_i64..4_000_000_000,
            minute in 0..60,
            step in 1..30,
            every in 1_u32..100_000,
        ) {
            let moment = Timestamp::from_second(seconds).unwrap();
            let texts = [
                format!("{minute} * * * *"),
                format!("*/{step} 3,4 * * *"),
                format!("@every {every}s"),
            ];
            for text in texts {
                let rhythm = Rhythm::parse(&text, &zone("Europe/Berlin")).unwrap();
                let (latest, next) = (rhythm.latest(moment).unwrap(), rhythm.next(moment).unwrap());
                prop_assert!(latest <= moment && moment < next, "{} {} {}", text, latest, next);
                prop_assert_eq!(rhythm.latest(next), Some(next));
            }
        }
    }
}
