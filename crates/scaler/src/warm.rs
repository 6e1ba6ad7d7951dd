//! Windows of time in which a function is kept warm: `0 8 * * 1-5 for 10h = 2` keeps two replicas
//! from eight in the morning to six in the evening on working days.

use std::time::Duration;

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use updraft_model::{annotations, parse_duration};

/// Most windows of one function, so that reading an annotation stays cheap.
const MOST_WINDOWS: usize = 16;

/// Longest window; longer means always, for which there is the minimum.
const LONGEST: Duration = Duration::from_hours(7 * 24);

/// Most replicas a window may ask for; the function's maximum holds besides.
const MOST_REPLICAS: u32 = 1_000;

/// A part of each day, week or year in which more replicas are kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WarmWindow {
    start: Cron,
    lasts: SignedDuration,
    /// Fewest replicas meanwhile.
    pub(crate) replicas: u32,
    zone: TimeZone,
}

/// What the windows ask for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Floor {
    /// Fewest replicas, nothing outside all windows.
    pub(crate) replicas: Option<u32>,
    /// Until when this holds at least, if the clock is not set meanwhile.
    pub(crate) until: Timestamp,
}

impl WarmWindow {
    /// Reads windows separated by `;`. Those that make no sense are left out, with a warning.
    pub(crate) fn parse_all(text: &str, zone: Option<&str>) -> (Vec<Self>, Vec<String>) {
        let mut warnings = Vec::new();
        let zone = match zone.map(str::trim).filter(|zone| !zone.is_empty()) {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).unwrap_or_else(|_| {
                let shown: String = name.chars().take(64).collect();
                warnings.push(format!(
                    "`{}` names no time zone with `{shown}`; it is UTC",
                    annotations::TIMEZONE
                ));
                TimeZone::UTC
            }),
        };
        let parts = || text.split(';').map(str::trim).filter(|part| !part.is_empty());
        if parts().count() > MOST_WINDOWS {
            warnings.push(format!(
                "`{}` holds more than {MOST_WINDOWS} windows; those after are left out",
                annotations::WARM
            ));
        }
        let mut windows = Vec::new();
        for part in parts().take(MOST_WINDOWS) {
            match Self::parse(part, &zone) {
                Ok(window) => windows.push(window),
                Err(reason) => {
                    let shown: String = part.chars().take(64).collect();
                    warnings.push(format!(
                        "`{}` holds `{shown}`, which is left out: {reason}",
                        annotations::WARM
                    ));
                }
            }
        }
        (windows, warnings)
    }

    fn parse(text: &str, zone: &TimeZone) -> Result<Self, String> {
        let example = "write it like `0 8 * * 1-5 for 10h = 2`";
        let (window, replicas) = match text.split_once('=') {
            None => (text, 1),
            Some((window, number)) => {
                let number = number.trim().parse::<u32>().ok();
                let number = number.filter(|number| (1..=MOST_REPLICAS).contains(number));
                (
                    window,
                    number.ok_or_else(|| {
                        format!("the replicas are a number from 1 to {MOST_REPLICAS}, {example}")
                    })?,
                )
            }
        };
        let (start, lasts) =
            window.split_once(" for ").ok_or_else(|| format!("it has no `for`, {example}"))?;
        let lasts = parse_duration(lasts.trim()).map_err(|error| error.to_string())?;
        if lasts.is_zero() || lasts > LONGEST {
            return Err("it lasts longer than nothing and at most 168h".to_owned());
        }
        let start = start.trim().parse::<Cron>();
        let start = start.map_err(|error| format!("its start is no cron expression: {error}"))?;
        let lasts = SignedDuration::try_from(lasts).map_err(|error| error.to_string())?;
        Ok(Self { start, lasts, replicas, zone: zone.clone() })
    }

    /// The end of the window that `now` is in, or else the start of the next one; nothing when
    /// there is none any more.
    fn look(&self, now: &Zoned) -> (bool, Option<Timestamp>) {
        // The newest start decides: windows of one expression have one length.
        let begun = self.start.find_previous_occurrence(now, true).ok();
        if let Some(end) = begun.and_then(|begun| begun.timestamp().checked_add(self.lasts).ok())
            && end > now.timestamp()
        {
            return (true, Some(end));
        }
        (false, self.start.find_next_occurrence(now, false).ok().map(|next| next.timestamp()))
    }

    /// The highest of what `windows` ask for at `now`.
    pub(crate) fn floor(windows: &[Self], now: Timestamp) -> Floor {
        let hour = SignedDuration::from_hours(1);
        let mut until = now.checked_add(hour).unwrap_or(Timestamp::MAX);
        let mut replicas = None;
        for window in windows {
            let (inside, change) = window.look(&now.to_zoned(window.zone.clone()));
            until = change.map_or(until, |change| until.min(change));
            if inside {
                replicas = replicas.max(Some(window.replicas));
            }
        }
        Floor { replicas, until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn windows(text: &str, zone: Option<&str>) -> Vec<WarmWindow> {
        let (windows, warnings) = WarmWindow::parse_all(text, zone);
        assert_eq!(warnings, Vec::<String>::new(), "{text}");
        windows
    }

    fn floor(text: &str, zone: Option<&str>, now: &str) -> Option<u32> {
        WarmWindow::floor(&windows(text, zone), now.parse().unwrap()).replicas
    }

    #[test]
    fn a_window_holds_from_its_start_until_its_length_is_over() {
        let office = "0 8 * * 1-5 for 10h = 2";
        let check = |now: &str, expected| assert_eq!(floor(office, None, now), expected, "{now}");
        // A Friday, and the Saturday after.
        check("2026-03-06T07:59:59Z", None);
        check("2026-03-06T08:00:00Z", Some(2));
        check("2026-03-06T17:59:59.9Z", Some(2));
        check("2026-03-06T18:00:00Z", None);
        check("2026-03-07T09:00:00Z", None);
    }

    #[test]
    fn a_window_may_pass_midnight_and_the_highest_of_several_counts() {
        let text = "0 22 * * * for 4h; 30 23 * * * for 1h = 5";
        assert_eq!(floor(text, None, "2026-03-06T01:59:00Z"), Some(1));
        assert_eq!(floor(text, None, "2026-03-06T23:45:00Z"), Some(5));
        assert_eq!(floor(text, None, "2026-03-06T12:00:00Z"), None);
    }

    #[test]
    fn a_window_is_in_the_functions_time_zone() {
        let zone = Some("Europe/Berlin");
        // Eight in Berlin is seven UTC in winter and six in summer.
        assert_eq!(floor("0 8 * * * for 1h", zone, "2026-01-15T07:30:00Z"), Some(1));
        assert_eq!(floor("0 8 * * * for 1h", zone, "2026-01-15T06:30:00Z"), None);
        assert_eq!(floor("0 8 * * * for 1h", zone, "2026-07-15T06:30:00Z"), Some(1));
    }

    #[test]
    fn what_was_worked_out_holds_until_the_next_change() {
        let look = |now: &str| {
            let windows = windows("0 8 * * * for 30m = 2", None);
            WarmWindow::floor(&windows, now.parse().unwrap())
        };
        let until = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(look("2026-03-06T07:40:00Z").until, until("2026-03-06T08:00:00Z"));
        assert_eq!(look("2026-03-06T08:10:00Z").until, until("2026-03-06T08:30:00Z"));
        // Far from any change it is looked at again, in case the clock was set.
        assert_eq!(look("2026-03-06T12:00:00Z").until, until("2026-03-06T13:00:00Z"));
    }

    #[test]
    fn a_window_that_makes_no_sense_is_left_out_and_explained() {
        let check = |text: &str, part: &str| {
            let (windows, warnings) = WarmWindow::parse_all(text, None);
            assert!(windows.is_empty(), "{text}");
            assert!(warnings[0].contains(part), "{text}: {warnings:?}");
        };
        check("0 8 * * 1-5", "no `for`");
        check("0 8 * * 1-5 for ever", "duration `ever` is invalid");
        check("0 8 * * 1-5 for 0s", "longer than nothing");
        check("0 8 * * 1-5 for 200h", "at most 168h");
        check("eight for 1h", "no cron expression");
        check("0 8 * * * for 1h = none", "number from 1");
        check("0 8 * * * for 1h = 0", "number from 1");
        let (windows, warnings) = WarmWindow::parse_all("0 8 * * * for 1h", Some("Mars/Base"));
        assert_eq!((windows.len(), warnings.len()), (1, 1));
        let many = "0 8 * * * for 1h;".repeat(40);
        let (windows, warnings) = WarmWindow::parse_all(&many, None);
        assert_eq!((windows.len(), warnings.len()), (MOST_WINDOWS, 1));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}", zone in ".{0,12}") {
            let (windows, _) = WarmWindow::parse_all(&text, Some(&zone));
            WarmWindow::floor(&windows, Timestamp::UNIX_EPOCH);
        }

        #[test]
        fn hourly_windows_are_as_long_as_they_say(minutes in 1..59_i64, at in 0..2_000_000_000_i64) {
            let text = format!("0 * * * * for {minutes}m = 3");
            let now = Timestamp::from_second(at).unwrap();
            let floor = WarmWindow::floor(&windows(&text, None), now);
            prop_assert_eq!(floor.replicas.is_some(), at % 3600 < minutes * 60);
            prop_assert!(floor.until > now);
        }
    }
}
