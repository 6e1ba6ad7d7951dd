//! Durations as the environment and `X-Timeout` spell them: Go's syntax, and plain seconds.
//!
//! Parses and prints; it never decides what a duration is for.

use std::fmt::Write as _;
use std::time::Duration;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Reads a setting: a whole number is seconds, otherwise Go's syntax; anything else is the default.
pub(crate) fn parse_setting(text: Option<&str>, default: Duration) -> Duration {
    let Some(text) = text else { return default };
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_or(default, Duration::from_secs);
    }
    parse_go(text).unwrap_or(default)
}

/// Reads Go's duration syntax (`500ms`, `1h2m`, `1.5s`); negative and malformed ones are `None`.
pub(crate) fn parse_go(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total: u128 = 0;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        total = total.checked_add(nanos(number, unit)?)?;
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    // Go keeps nanoseconds in a signed 64-bit number and refuses what does not fit.
    u64::try_from(total)
        .ok()
        .filter(|&nanos| i64::try_from(nanos).is_ok())
        .map(Duration::from_nanos)
}

fn nanos(number: &str, unit: &str) -> Option<u128> {
    let scale: u128 = match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => NANOS_PER_SECOND,
        "m" => 60 * NANOS_PER_SECOND,
        "h" => 3600 * NANOS_PER_SECOND,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = u128::from(whole) * scale;
    let mut step = scale;
    for digit in fraction.bytes() {
        step /= 10;
        total += step * u128::from(digit - b'0');
    }
    Some(total)
}

/// Prints as Go does: `30s`, `1m30s`, `500ms`, `1h0m0s`.
pub(crate) fn format_go(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos < 1_000 {
        return format!("{nanos}ns");
    }
    if nanos < 1_000_000 {
        return format!("{}\u{b5}s", decimal(nanos, 1_000));
    }
    if nanos < NANOS_PER_SECOND {
        return format!("{}ms", decimal(nanos, 1_000_000));
    }
    let minutes = nanos / (60 * NANOS_PER_SECOND);
    let mut text = String::new();
    if minutes >= 60 {
        let _infallible = write!(text, "{}h", minutes / 60);
    }
    if minutes > 0 {
        let _infallible = write!(text, "{}m", minutes % 60);
    }
    text.push_str(&decimal(nanos % (60 * NANOS_PER_SECOND), NANOS_PER_SECOND));
    text.push('s');
    text
}

fn decimal(value: u128, unit: u128) -> String {
    let fraction = value % unit;
    if fraction == 0 {
        return (value / unit).to_string();
    }
    let width = unit.ilog10() as usize;
    let digits = format!("{fraction:0width$}");
    format!("{}.{}", value / unit, digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_whole_number_is_seconds_and_anything_else_go_syntax() {
        let default = Duration::from_secs(30);
        let check = |text: &str, expected: Duration| {
            assert_eq!(parse_setting(Some(text), default), expected, "{text}");
        };
        check("15", Duration::from_secs(15));
        check("0", Duration::ZERO);
        check("500ms", Duration::from_millis(500));
        check("1h2m", Duration::from_mins(62));
        check("1.5s", Duration::from_millis(1500));
        check(".5s", Duration::from_millis(500));
        check("2\u{b5}s", Duration::from_micros(2));
    }

    #[test]
    fn unparsable_empty_or_negative_durations_are_the_default() {
        let default = Duration::from_secs(30);
        for text in ["", "abc", "5 s", "-1", "-5s", "1.2.3s", "s", "10x", "."] {
            assert_eq!(parse_setting(Some(text), default), default, "{text}");
        }
        assert_eq!(parse_setting(None, default), default);
    }

    #[test]
    fn durations_print_as_go_prints_them() {
        let check = |text: &str, expected: &str| {
            assert_eq!(format_go(parse_go(text).unwrap()), expected);
        };
        check("30s", "30s");
        check("90s", "1m30s");
        check("1h", "1h0m0s");
        check("500ms", "500ms");
        check("1500ms", "1.5s");
        check("1500us", "1.5ms");
        check("0", "0s");
        check("7ns", "7ns");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(nanos in 0_u64..(i64::MAX as u64)) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_go(&format_go(duration)), Some(duration));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _any = parse_go(&text);
        }
    }
}
