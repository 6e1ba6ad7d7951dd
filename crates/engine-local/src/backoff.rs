//! How long to wait before a crashed replica is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_mins(1);

/// The delay before the next start after `failures` in a row: nothing after the first, then a
/// quarter second, doubled each time, at most a minute.
pub(crate) fn delay(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => FIRST.saturating_mul(1 << (more - 2).min(16)).min(LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_a_minute() {
        let delays = [0, 1, 2, 3, 4, 12, u32::MAX].map(|failures| delay(failures).as_millis());
        assert_eq!(delays, [0, 0, 250, 500, 1000, 60_000, 60_000]);
    }
}
