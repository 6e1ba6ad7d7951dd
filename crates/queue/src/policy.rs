//! What an answer means: it will do, it may get better, or there is no point. Pure.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use updraft_model::{FunctionSpec, annotations, parse_duration};

/// Most attempts that an annotation may ask for.
const ATTEMPTS_MAX: u32 = 1000;

/// Longest wait that an annotation or an answer may ask for.
const WAIT_MAX: Duration = Duration::from_hours(24);

/// When and how often a call is made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub attempts: u32,
    /// Statuses of the function that may get better.
    pub codes: Vec<u16>,
    /// Wait before the second attempt; doubled before each further one.
    pub min_wait: Duration,
    /// Longest wait.
    pub max_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 10,
            codes: vec![408, 429, 500, 502, 503, 504],
            min_wait: Duration::from_secs(1),
            max_wait: Duration::from_mins(2),
        }
    }
}

/// What to do after an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The call is done.
    Done,
    /// Make it again after the wait.
    Again(Duration),
    /// Make it again after the wait; the attempt does not count, for it was none.
    Later(Duration),
    /// Give it up.
    Dead,
}

impl RetryPolicy {
    /// The function's own policy: its annotations over these defaults. An annotation that makes no
    /// sense leaves the default, and is told of.
    pub(crate) fn of(&self, spec: &FunctionSpec) -> (Self, Vec<String>) {
        let mut policy = self.clone();
        let mut warnings = Vec::new();
        let mut read = |key: &'static str, mut take: Box<dyn FnMut(&str) -> bool + '_>| {
            if let Some(text) = spec.annotations.get(key)
                && !take(text.trim())
            {
                let shown: String = text.chars().take(64).collect();
                warnings.push(format!("annotation `{key}` is `{shown}`, which makes no sense"));
            }
        };
        let wait = |text: &str, wait: &mut Duration| match parse_duration(text) {
            Ok(read) if !read.is_zero() && read <= WAIT_MAX => {
                *wait = read;
                true
            }
            _ => false,
        };
        read(
            annotations::RETRY_ATTEMPTS,
            Box::new(|text| {
                let read = text.parse().ok().filter(|attempts| *attempts <= ATTEMPTS_MAX);
                policy.attempts = read.unwrap_or(policy.attempts);
                read.is_some()
            }),
        );
        read(
            annotations::RETRY_CODES,
            Box::new(|text| {
                let read = codes(text);
                let fits = read.is_some();
                policy.codes = read.unwrap_or_else(|| std::mem::take(&mut policy.codes));
                fits
            }),
        );
        read(annotations::RETRY_MIN_WAIT, Box::new(|text| wait(text, &mut policy.min_wait)));
        read(annotations::RETRY_MAX_WAIT, Box::new(|text| wait(text, &mut policy.max_wait)));
        if policy.max_wait < policy.min_wait {
            if spec.annotations.contains_key(annotations::RETRY_MAX_WAIT) {
                warnings.push("the longest wait is below the shortest".to_owned());
            }
            policy.max_wait = policy.min_wait;
        }
        (policy, warnings)
    }

    /// What to do after attempt number `attempt` was answered with `status`; `internal` when it
    /// was the platform that answered, and `jitter` between 0 and 1.
    pub(crate) fn verdict(
        &self,
        attempt: u32,
        status: StatusCode,
        internal: bool,
        headers: &HeaderMap,
        jitter: f64,
    ) -> Verdict {
        let asked = || retry_after(headers, SystemTime::now());
        if internal && status == StatusCode::TOO_MANY_REQUESTS {
            // The function has no room for more: it has not seen the call.
            return Verdict::Later(asked().unwrap_or(self.min_wait).max(self.min_wait));
        }
        let listed = self.codes.contains(&status.as_u16());
        if internal {
            // What the platform refuses for what it is will be refused again.
            let may_pass = listed || status.is_server_error();
            if !may_pass {
                return Verdict::Dead;
            }
        } else if !listed {
            return Verdict::Done;
        }
        if attempt > self.attempts {
            return Verdict::Dead;
        }
        let waits =
            status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE;
        match asked().filter(|_| waits) {
            Some(asked) => Verdict::Again(asked.clamp(self.min_wait, WAIT_MAX)),
            None => Verdict::Again(self.wait(attempt, jitter)),
        }
    }

    /// The wait after attempt number `attempt`: doubled each time up to the longest, then half to
    /// all of it, so that calls that failed together do not come back together.
    pub(crate) fn wait(&self, attempt: u32, jitter: f64) -> Duration {
        let doubled = 2u32
            .checked_pow(attempt.saturating_sub(1).min(31))
            .and_then(|factor| self.min_wait.checked_mul(factor))
            .unwrap_or(self.max_wait);
        let wait = doubled.min(self.max_wait);
        wait.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

/// A comma-separated list of statuses.
fn codes(text: &str) -> Option<Vec<u16>> {
    let codes: Option<Vec<u16>> = text
        .split(',')
        .map(|code| code.trim().parse().ok().filter(|code| (100..600).contains(code)))
        .collect();
    codes.filter(|codes| codes.len() <= 64)
}

/// How long the answer asks to wait: seconds, or a date.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(text.parse().map_or(WAIT_MAX, Duration::from_secs));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// A number between 0 and 1 that nobody can guess.
pub(crate) fn jitter() -> f64 {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(random) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;
    use updraft_model::{FunctionId, FunctionName};

    fn annotated(annotations: &[(&str, &str)]) -> FunctionSpec {
        let id = FunctionId::in_default(FunctionName::new("f").unwrap());
        let mut spec = FunctionSpec::new(id, "localhost/f:1".parse().unwrap());
        for (key, value) in annotations {
            spec.annotations.insert((*key).to_owned(), (*value).to_owned());
        }
        spec
    }

    fn verdict(attempt: u32, status: u16, internal: bool, retry_after: &str) -> Verdict {
        let mut headers = HeaderMap::new();
        if !retry_after.is_empty() {
            headers.insert(RETRY_AFTER, HeaderValue::try_from(retry_after).unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        RetryPolicy::default().verdict(attempt, status, internal, &headers, 1.0)
    }

    fn seconds(seconds: u64) -> Verdict {
        Verdict::Again(Duration::from_secs(seconds))
    }

    #[test]
    fn only_statuses_that_may_get_better_are_asked_for_again() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(verdict(1, status, false, ""), seconds(1), "{status}");
        }
        for status in [200, 204, 301, 400, 401, 404, 409, 501, 505] {
            assert_eq!(verdict(1, status, false, ""), Verdict::Done, "{status}");
        }
    }

    #[test]
    fn an_error_of_the_platform_is_asked_for_again_unless_it_is_a_refusal() {
        assert_eq!(verdict(1, 501, true, ""), seconds(1));
        assert_eq!(verdict(1, 503, true, ""), seconds(1));
        assert_eq!(verdict(1, 401, true, ""), Verdict::Dead);
        assert_eq!(verdict(1, 413, true, ""), Verdict::Dead);
        assert_eq!(verdict(99, 429, true, "3"), Verdict::Later(Duration::from_secs(3)));
    }

    #[test]
    fn waits_double_up_to_the_longest_and_then_the_call_is_given_up() {
        let waits: Vec<u64> = (1..=10)
            .map(|attempt| match verdict(attempt, 500, false, "") {
                Verdict::Again(wait) => wait.as_secs(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 120, 120, 120]);
        assert_eq!(verdict(11, 500, false, ""), Verdict::Dead);
        assert_eq!(verdict(11, 200, false, ""), Verdict::Done);
    }

    #[test]
    fn retry_after_replaces_the_wait_but_is_never_shorter_than_the_shortest() {
        assert_eq!(verdict(1, 429, false, "7"), seconds(7));
        assert_eq!(verdict(5, 503, false, "0"), seconds(1));
        assert_eq!(verdict(1, 500, false, "7"), seconds(1));
        assert_eq!(verdict(1, 503, false, "soon"), seconds(1));
        assert_eq!(verdict(1, 503, false, "99999999999999999999999"), seconds(24 * 3600));
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, "Thu, 01 Jan 1970 00:01:00 GMT".parse().unwrap());
        let early = SystemTime::UNIX_EPOCH + Duration::from_secs(50);
        assert_eq!(retry_after(&headers, early), Some(Duration::from_secs(10)));
        let late = SystemTime::UNIX_EPOCH + Duration::from_secs(70);
        assert_eq!(retry_after(&headers, late), Some(Duration::ZERO));
    }

    #[test]
    fn annotations_replace_the_defaults() {
        let spec = annotated(&[
            (annotations::RETRY_ATTEMPTS, "2"),
            (annotations::RETRY_CODES, "500, 418"),
            (annotations::RETRY_MIN_WAIT, "500ms"),
            (annotations::RETRY_MAX_WAIT, "10"),
        ]);
        let (policy, warnings) = RetryPolicy::default().of(&spec);
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(policy.attempts, 2);
        assert_eq!(policy.codes, [500, 418]);
        assert_eq!(policy.min_wait, Duration::from_millis(500));
        assert_eq!(policy.max_wait, Duration::from_secs(10));
    }

    #[test]
    fn annotations_that_make_no_sense_leave_the_defaults_and_are_told_of() {
        let spec = annotated(&[
            (annotations::RETRY_ATTEMPTS, "-1"),
            (annotations::RETRY_CODES, "500,many"),
            (annotations::RETRY_MIN_WAIT, "soon"),
            (annotations::RETRY_MAX_WAIT, "0s"),
        ]);
        let (policy, warnings) = RetryPolicy::default().of(&spec);
        assert_eq!(policy, RetryPolicy::default());
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        let (policy, warnings) =
            RetryPolicy::default().of(&annotated(&[(annotations::RETRY_MIN_WAIT, "10m")]));
        assert_eq!((policy.max_wait, warnings.len()), (Duration::from_mins(10), 0));
    }

    proptest! {
        #[test]
        fn a_wait_is_never_zero_and_never_above_the_longest(
            attempt in 0u32..2000, jitter in -1.0f64..2.0,
        ) {
            let wait = RetryPolicy::default().wait(attempt, jitter);
            prop_assert!(wait >= Duration::from_millis(500) && wait <= Duration::from_mins(2));
        }

        #[test]
        fn any_annotation_text_is_read_without_harm(text in "\\PC{0,40}") {
            let keys = [annotations::RETRY_ATTEMPTS, annotations::RETRY_CODES,
                annotations::RETRY_MIN_WAIT, annotations::RETRY_MAX_WAIT];
            let spec = annotated(&keys.map(|key| (key, text.as_str())));
            let (policy, _) = RetryPolicy::default().of(&spec);
            prop_assert!(policy.min_wait <= policy.max_wait && !policy.min_wait.is_zero());
        }
    }
}
