//! Times and sizes as log lines show them.
//!
//! Only formats; when and where something is written is the log's own matter.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Appends `YYYY/MM/DD HH:MM:SS ` (UTC).
pub(super) fn append_stamp(buffer: &mut Vec<u8>) {
    stamp(buffer, since_epoch().as_secs());
}

/// Appends `YYYY-MM-DDTHH:MM:SS.mmmZ`.
pub(super) fn append_rfc3339(buffer: &mut Vec<u8>) {
    rfc3339(buffer, since_epoch());
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn stamp(buffer: &mut Vec<u8>, unix_seconds: u64) {
    put_time(buffer, *b"0000/00/00 00:00:00 ", unix_seconds);
}

fn rfc3339(buffer: &mut Vec<u8>, since: Duration) {
    put_time(buffer, *b"0000-00-00T00:00:00.", since.as_secs());
    let millis = since.subsec_millis();
    let digit = |value: u32| b'0' + u8::try_from(value % 10).unwrap_or(0);
    buffer.extend_from_slice(&[digit(millis / 100), digit(millis / 10), digit(millis), b'Z']);
}

/// Appends the text with date and time in place of its zeros.
fn put_time(buffer: &mut Vec<u8>, mut text: [u8; 20], unix_seconds: u64) {
    let (year, month, day) = civil_date(unix_seconds / 86_400);
    let second = unix_seconds % 86_400;
    let mut put = |at: usize, width: usize, mut value: u64| {
        for slot in (at..at + width).rev() {
            text[slot] = b'0' + u8::try_from(value % 10).unwrap_or(0);
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second / 3600);
    put(14, 2, second / 60 % 60);
    put(17, 2, second % 60);
    buffer.extend_from_slice(&text);
}

/// Days since 1970-01-01 as year, month, day of the Gregorian calendar: years are counted from
/// March, so that the leap day is the last of its year.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// A size for people, in powers of a thousand and at most four digits: `39B`, `1.2kB`.
/// Negative is an unknown size: `-1B`.
pub(super) struct HumanSize(pub(super) i64);

impl fmt::Display for HumanSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
        let Self(bytes) = *self;
        if bytes < 1000 {
            return write!(f, "{bytes}B");
        }
        let mut value = bytes as f64;
        let mut unit = 0;
        while value >= 1000.0 && unit + 1 < UNITS.len() {
            value /= 1000.0;
            unit += 1;
        }
        let decimals = if value >= 100.0 {
            1
        } else if value >= 10.0 {
            2
        } else {
            3
        };
        let text = format!("{value:.decimals$}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        write!(f, "{text}{}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_have_the_go_log_shape() {
        let check = |seconds, expected: &str| {
            let mut buffer = Vec::new();
            stamp(&mut buffer, seconds);
            assert_eq!(String::from_utf8(buffer).unwrap(), expected);
        };
        check(0, "1970/01/01 00:00:00 ");
        check(951_782_399, "2000/02/28 23:59:59 ");
        check(951_782_400, "2000/02/29 00:00:00 ");
        check(1_709_251_199, "2024/02/29 23:59:59 ");
        check(1_767_225_599, "2025/12/31 23:59:59 ");
        check(1_767_225_600, "2026/01/01 00:00:00 ");
    }

    #[test]
    fn json_stamps_have_milliseconds() {
        let mut buffer = Vec::new();
        rfc3339(&mut buffer, Duration::from_millis(1_709_251_199_042));
        assert_eq!(String::from_utf8(buffer).unwrap(), "2024-02-29T23:59:59.042Z");
    }

    #[test]
    fn sizes_are_in_human_units() {
        let check = |bytes, expected: &str| assert_eq!(HumanSize(bytes).to_string(), expected);
        check(-1, "-1B");
        check(0, "0B");
        check(39, "39B");
        check(999, "999B");
        check(1000, "1kB");
        check(1200, "1.2kB");
        check(1234, "1.234kB");
        check(12_345, "12.35kB");
        check(5_000_000, "5MB");
        check(i64::MAX, "9.223EB");
    }
}
