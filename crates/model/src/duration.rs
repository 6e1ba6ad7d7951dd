//! Durations as OpenFaaS writes them: Go's syntax (`1m30s`, `500ms`) or plain seconds (`30`).

use std::time::Duration;

use thiserror::Error;

/// Unit suffixes of Go's duration syntax and their length in nanoseconds; longer suffixes first.
const UNITS: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// The text is neither a number of seconds nor a sequence of numbers with units.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("duration `{0}` is invalid, expected seconds such as `30` or a text such as `1m30s`")]
pub struct ParseDurationError(String);

/// Reads plain seconds (`30`) or Go's syntax (`1h2m`, `1.5s`, `300ms`); never negative.
///
/// # Errors
/// The caller's fault: unknown unit, missing unit, negative or too large.
pub fn parse_duration(text: &str) -> Result<Duration, ParseDurationError> {
    let wrong = || ParseDurationError(text.to_owned());
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(Duration::from_secs).map_err(|_| wrong());
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let (_, unit_nanos) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let nanos = scale(number, *unit_nanos).ok_or_else(wrong)?;
        total = total.checked_add(nanos).ok_or_else(wrong)?;
        rest = tail;
    }
    Ok(Duration::from_nanos(total))
}

/// `number` × `unit` without going through floats, so that `0.1s` is exact.
fn scale(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut nanos = u128::from(whole) * u128::from(unit);
    let mut place = u128::from(unit);
    for digit in fraction.bytes().map(|byte| u128::from(byte - b'0')) {
        nanos += place * digit / 10;
        place /= 10;
    }
    u64::try_from(nanos).ok()
}

/// Writes a duration as Go does: `1m30s`, `1.5s`, `300ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let decimal = |nanos: u128, unit: u128, suffix: &str| {
        let digits = unit.ilog10() as usize;
        let text = format!("{}.{:0digits$}", nanos / unit, nanos % unit);
        format!("{}{suffix}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match nanos {
        0 => return "0s".to_owned(),
        1..1_000 => return format!("{nanos}ns"),
        1_000..1_000_000 => return decimal(nanos, 1_000, "µs"),
        1_000_000..1_000_000_000 => return decimal(nanos, 1_000_000, "ms"),
        _ => {}
    }
    let minutes = nanos / 60_000_000_000;
    let seconds = decimal(nanos % 60_000_000_000, 1_000_000_000, "s");
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_integers_are_seconds_and_go_durations_add_up() {
        let check = |text: &str, millis: u64| {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        };
        check("0", 0);
        check("30", 30_000);
        check("500ms", 500);
        check("1m30s", 90_000);
        check("1h", 3_600_000);
        check("1.5s", 1_500);
        check(".5s", 500);
        check("0.1s", 100);
    }

    #[test]
    fn negative_unitless_and_oversized_durations_are_refused() {
        for bad in [
            "",
            "-1",
            "-1s",
            "1.5",
            "5x",
            "s",
            "1s 2s",
            "99999999999999999999",
            "9999999h9999999h",
            "1..5s",
            ".",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        let check = |millis: u64, text: &str| {
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        };
        check(0, "0s");
        check(300, "300ms");
        check(1_500, "1.5s");
        check(90_000, "1m30s");
        check(3_600_000, "1h0m0s");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nanos in 0..u64::MAX / 4) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)).unwrap(), duration);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            drop(parse_duration(&text));
        }
    }
}
