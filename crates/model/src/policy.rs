//! How a function wants to be called, read from its annotations and its environment.
//!
//! A value that makes no sense is refused by [`FunctionSpec::check`]. Where one is met all the
//! same, it counts as absent, except for who may call: there it closes the door.

use std::time::Duration;

use crate::function::annotations::{
    AUTH, AUTH_SECRET, CALLBACK_SECRET, CONCURRENCY, PROTOCOL, QUEUE_LIMIT, RUNTIME, TIMEOUT,
};
use crate::{FunctionSpec, SecretName, SpecError, format_duration, parse_duration};

/// Environment variables with which OpenFaaS functions say how long a call may take.
const TIMEOUT_VARIABLES: [&str; 3] = ["exec_timeout", "write_timeout", "read_timeout"];

/// Environment variable with which OpenFaaS functions say how many calls they take at once.
const CONCURRENCY_VARIABLE: &str = "max_inflight";

/// Fewest calls that may wait for their turn where the function says nothing.
const QUEUE_LEAST: usize = 100;

/// Calls that may wait for each one that runs, where the function says nothing.
const QUEUE_FOR_EACH: usize = 10;

/// What a caller must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// `Authorization: Bearer <key>`.
    Token,
    /// An HMAC-SHA256 of the raw body, made with a key.
    Hmac,
}

/// Who may call a private function: whoever proves to have a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protection {
    /// How the key is proved.
    pub proof: Proof,
    /// The function's secret that holds the keys, one a line.
    pub secret: SecretName,
}

/// What a function's server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 in the clear, by prior knowledge, as gRPC servers do.
    H2c,
}

/// What stands between a function and the machine's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Sandbox {
    /// Namespaces and filters of the machine's own kernel.
    #[default]
    Kernel,
    /// A kernel of its own in user space: gVisor's `runsc`.
    Gvisor,
}

impl FunctionSpec {
    /// How long a call may take to the head of its answer, and how long either body may stand
    /// still: the annotation, else the longest of `exec_timeout`, `write_timeout` and
    /// `read_timeout` in the environment (the watchdog keeps to the shorter ones itself, and its
    /// answer should reach the caller). Zero and what is no duration count as absent.
    pub fn timeout(&self) -> Option<Duration> {
        let limit = |text: &String| parse_duration(text).ok().filter(|limit| !limit.is_zero());
        self.annotations.get(TIMEOUT).and_then(limit).or_else(|| {
            let given = TIMEOUT_VARIABLES.iter().filter_map(|name| self.environment.get(*name));
            given.filter_map(limit).max()
        })
    }

    /// The environment variables that tell a watchdog of the annotated timeout: those that the
    /// function does not set itself, so that all parts on the way keep to one limit.
    pub fn timeout_variables(&self) -> impl Iterator<Item = (&'static str, String)> {
        let annotated = self.annotations.get(TIMEOUT).and_then(|_| self.timeout());
        let unset = |name: &&str| !self.environment.contains_key(*name);
        let names = TIMEOUT_VARIABLES.into_iter().filter(unset);
        annotated
            .into_iter()
            .flat_map(move |limit| names.clone().map(move |name| (name, format_duration(limit))))
    }

    /// Most calls at once on each replica: the smaller of the annotation and `max_inflight` in
    /// the environment, where a watchdog would refuse the rest; zero means no limit.
    pub fn concurrency(&self) -> Option<usize> {
        let number = |text: &String| text.trim().parse::<usize>().ok().filter(|most| *most > 0);
        let annotated = self.annotations.get(CONCURRENCY).and_then(number);
        let refused_beyond = self.environment.get(CONCURRENCY_VARIABLE).and_then(number);
        annotated.into_iter().chain(refused_beyond).min()
    }

    /// Most calls that wait where [`Self::concurrency`] is reached: the annotation, else ten for
    /// each that may run on a replica, and never fewer than a hundred.
    pub fn queue_limit(&self) -> usize {
        let given = self.annotations.get(QUEUE_LIMIT).and_then(|text| text.trim().parse().ok());
        given.unwrap_or_else(|| {
            self.concurrency().unwrap_or(1).saturating_mul(QUEUE_FOR_EACH).max(QUEUE_LEAST)
        })
    }

    /// Who may call the function; nothing when everybody may.
    ///
    /// # Errors
    /// The annotations ask for protection in a way that cannot be followed: nobody may call then.
    pub fn protection(&self) -> Result<Option<Protection>, SpecError> {
        let Some(value) = self.annotations.get(AUTH) else {
            return match self.annotations.get(AUTH_SECRET) {
                // Somebody wanted keys to be asked for.
                Some(_) => Err(refused(AUTH, "", "`token` or `hmac`")),
                None => Ok(None),
            };
        };
        let proof = match value.trim() {
            "token" => Proof::Token,
            "hmac" => Proof::Hmac,
            "none" => return Ok(None),
            _ => return Err(refused(AUTH, value, "`token`, `hmac` or `none`")),
        };
        let name = self.annotations.get(AUTH_SECRET).map_or("", |name| name.trim());
        let secret = self.own_secret(AUTH_SECRET, name)?;
        Ok(Some(Protection { proof, secret: secret.clone() }))
    }

    /// The secret whose lines sign what is told of the function's asynchronous calls; nothing
    /// when the owner's key does.
    ///
    /// # Errors
    /// It names none of the function's secrets.
    pub fn callback_secret(&self) -> Result<Option<&SecretName>, SpecError> {
        let name = self.annotations.get(CALLBACK_SECRET);
        name.map(|name| self.own_secret(CALLBACK_SECRET, name.trim())).transpose()
    }

    /// The one of the function's secrets that an annotation names.
    fn own_secret(&self, key: &'static str, name: &str) -> Result<&SecretName, SpecError> {
        if name.is_empty() {
            return Err(refused(key, name, "the name of one of the function's secrets"));
        }
        // A push gives secrets the owner's name in front.
        let full = self.owner().map(|owner| format!("{owner}-{name}"));
        let is_meant = |secret: &&SecretName| {
            secret.as_str() == name || Some(secret.as_str()) == full.as_deref()
        };
        let meant = self.secrets.iter().find(is_meant);
        meant.ok_or_else(|| SpecError::ForeignKeys(name.to_owned()))
    }

    /// The sandbox that the function asks for; its tenant may be given a stronger one.
    pub fn sandbox(&self) -> Sandbox {
        match self.annotations.get(RUNTIME).map(|value| value.trim()) {
            Some("runsc") => Sandbox::Gvisor,
            _ => Sandbox::Kernel,
        }
    }

    /// What the function's server speaks.
    pub fn protocol(&self) -> Protocol {
        match self.annotations.get(PROTOCOL).map(|value| value.trim()) {
            Some("h2c") => Protocol::H2c,
            _ => Protocol::Http1,
        }
    }

    /// Checks every annotation that is read here.
    pub(crate) fn check_policy(&self) -> Result<(), SpecError> {
        let number = |text: &str| text.parse::<usize>().is_ok();
        type Check<'a> = (&'static str, &'static str, &'a dyn Fn(&str) -> bool);
        let checks: [Check<'_>; 5] = [
            (TIMEOUT, "a duration above zero such as `30` or `1m30s`", &|text| {
                parse_duration(text).is_ok_and(|limit| !limit.is_zero())
            }),
            (CONCURRENCY, "a number of calls, 0 for no limit", &number),
            (QUEUE_LIMIT, "a number of calls", &number),
            (RUNTIME, "`default` or `runsc`", &|text| matches!(text, "default" | "runsc")),
            (PROTOCOL, "`http1` or `h2c`", &|text| matches!(text, "http1" | "h2c")),
        ];
        for (key, expected, is_fine) in checks {
            if let Some(value) = self.annotations.get(key)
                && !is_fine(value.trim())
            {
                return Err(refused(key, value, expected));
            }
        }
        self.egress()?;
        self.callback_secret()?;
        self.protection().map(drop)
    }
}

fn refused(key: &'static str, value: &str, expected: &'static str) -> SpecError {
    SpecError::Annotation { key, value: value.chars().take(128).collect(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::annotations::EGRESS;
    use crate::{FunctionId, FunctionName, labels};

    fn spec(annotations: &[(&str, &str)], environment: &[(&str, &str)]) -> FunctionSpec {
        let id = FunctionId::in_default(FunctionName::new("alice-hello").unwrap());
        let mut spec = FunctionSpec::new(id, "localhost/hello:1".parse().unwrap());
        let owned = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        spec.annotations = owned(annotations);
        spec.environment = owned(environment);
        spec
    }

    #[test]
    fn the_timeout_is_the_annotation_else_the_longest_of_the_variables() {
        let check = |annotations: &[_], environment: &[_], seconds: Option<u64>| {
            let timeout = spec(annotations, environment).timeout();
            assert_eq!(
                timeout,
                seconds.map(Duration::from_secs),
                "{annotations:?} {environment:?}"
            );
        };
        check(&[], &[], None);
        check(&[], &[("exec_timeout", "10s")], Some(10));
        check(&[], &[("exec_timeout", "20"), ("write_timeout", "25s")], Some(25));
        check(&[], &[("exec_timeout", "20"), ("read_timeout", "5s")], Some(20));
        check(&[], &[("read_timeout", "5s")], Some(5));
        check(&[], &[("exec_timeout", "0"), ("write_timeout", "soon")], None);
        check(&[(TIMEOUT, "3")], &[("exec_timeout", "10s")], Some(3));
        check(&[(TIMEOUT, "0")], &[("exec_timeout", "10s")], Some(10));
    }

    #[test]
    fn the_watchdog_is_told_of_the_annotation_and_overruled_in_nothing_else() {
        let told = |annotations: &[_], environment: &[_]| {
            spec(annotations, environment).timeout_variables().collect::<Vec<_>>()
        };
        assert_eq!(told(&[], &[("exec_timeout", "10s")]), []);
        let minutes = |name| (name, "1m30s".to_owned());
        assert_eq!(
            told(&[(TIMEOUT, "90")], &[("exec_timeout", "10s")]),
            [minutes("write_timeout"), minutes("read_timeout")]
        );
        assert_eq!(told(&[(TIMEOUT, "90")], &[]).len(), 3);
    }

    #[test]
    fn the_concurrency_is_what_neither_annotation_nor_watchdog_forbids() {
        let check = |annotations: &[_], environment: &[_], most: Option<usize>| {
            let spec = spec(annotations, environment);
            assert_eq!(spec.concurrency(), most, "{annotations:?} {environment:?}");
        };
        check(&[], &[], None);
        check(&[(CONCURRENCY, "4")], &[], Some(4));
        check(&[], &[("max_inflight", "3")], Some(3));
        check(&[(CONCURRENCY, "4")], &[("max_inflight", "3")], Some(3));
        check(&[(CONCURRENCY, "2")], &[("max_inflight", "3")], Some(2));
        check(&[(CONCURRENCY, "0")], &[("max_inflight", "many")], None);
        assert_eq!(spec(&[(CONCURRENCY, "4")], &[]).queue_limit(), 100);
        assert_eq!(spec(&[(CONCURRENCY, "40")], &[]).queue_limit(), 400);
        assert_eq!(spec(&[(QUEUE_LIMIT, "0")], &[]).queue_limit(), 0);
    }

    #[test]
    fn protection_that_cannot_be_followed_is_an_error_and_never_an_open_door() {
        let with_secret = |pairs: &[(&str, &str)]| {
            let mut spec = spec(pairs, &[]);
            spec.secrets = vec![SecretName::new("alice-key").unwrap()];
            spec.labels.insert(labels::GIT_OWNER.into(), "alice".into());
            spec.protection()
        };
        let key = SecretName::new("alice-key").unwrap();
        let by = |proof| Ok(Some(Protection { proof, secret: key.clone() }));
        assert_eq!(with_secret(&[]), Ok(None));
        assert_eq!(with_secret(&[(AUTH, "none")]), Ok(None));
        assert_eq!(with_secret(&[(AUTH, "token"), (AUTH_SECRET, "alice-key")]), by(Proof::Token));
        assert_eq!(with_secret(&[(AUTH, "hmac"), (AUTH_SECRET, "key")]), by(Proof::Hmac));
        for wrong in [
            &[(AUTH, "tokn"), (AUTH_SECRET, "key")][..],
            &[(AUTH, ""), (AUTH_SECRET, "key")],
            &[(AUTH, "token")],
            &[(AUTH_SECRET, "key")],
            &[(AUTH, "token"), (AUTH_SECRET, "bob-key")],
        ] {
            assert!(with_secret(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn callbacks_are_signed_with_one_of_the_functions_own_secrets() {
        let signed_by = |name: &str| {
            let mut spec = spec(&[(CALLBACK_SECRET, name)], &[]);
            spec.secrets = vec![SecretName::new("alice-hooks").unwrap()];
            spec.labels.insert(labels::GIT_OWNER.into(), "alice".into());
            spec.check().map(|()| spec.callback_secret().unwrap().cloned())
        };
        let hooks = SecretName::new("alice-hooks").unwrap();
        assert_eq!(spec(&[], &[]).callback_secret(), Ok(None));
        assert_eq!(signed_by("hooks"), Ok(Some(hooks.clone())));
        assert_eq!(signed_by(" alice-hooks "), Ok(Some(hooks)));
        assert_eq!(signed_by("bob-hooks"), Err(SpecError::ForeignKeys("bob-hooks".into())));
        assert!(matches!(signed_by(""), Err(SpecError::Annotation { .. })));
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_key() {
        for (key, value) in [
            (TIMEOUT, "soon"),
            (TIMEOUT, "0"),
            (CONCURRENCY, "-1"),
            (QUEUE_LIMIT, "many"),
            (PROTOCOL, "h3"),
            (RUNTIME, "kata"),
            (EGRESS, "everything"),
            (AUTH, "basic"),
        ] {
            let error = spec(&[(key, value)], &[]).check().unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(value), "{error}");
        }
        for (key, value) in [(TIMEOUT, "90"), (CONCURRENCY, "1"), (QUEUE_LIMIT, "0")] {
            assert_eq!(spec(&[(key, value)], &[]).check(), Ok(()));
        }
        assert_eq!(spec(&[(PROTOCOL, "h2c")], &[]).protocol(), Protocol::H2c);
        assert_eq!(spec(&[], &[]).protocol(), Protocol::Http1);
    }
}
