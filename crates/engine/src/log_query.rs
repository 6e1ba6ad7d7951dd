//! Which log lines to read, as it is written in the query of a URL.

use std::collections::HashMap;

use jiff::Timestamp;
use updraft_model::FunctionId;

use crate::ReplicaId;

/// Which log lines to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// The function whose replicas' output is read.
    pub id: FunctionId,
    /// Only this replica, when given.
    pub instance: Option<ReplicaId>,
    /// Only lines at or after this moment, when given.
    pub since: Option<Timestamp>,
    /// Only the newest so many lines of what is there already, when given.
    pub tail: Option<usize>,
    /// Go on with new lines, of new replicas too, until the stream is dropped.
    pub follow: bool,
}

impl LogQuery {
    /// Reads `instance`, `since` (RFC 3339), `tail` (0 and below mean no limit) and `follow`. An
    /// empty value is what a client sends for "not given".
    ///
    /// # Errors
    /// The caller's fault: the parameter that cannot be read, and why.
    pub fn read(id: FunctionId, query: &HashMap<String, String>) -> Result<Self, String> {
        let text = |key| query.get(key).map(String::as_str).filter(|text| !text.is_empty());
        let since = text("since").map(|text| {
            text.parse::<Timestamp>().map_err(|_| {
                format!("since: `{text}` is no RFC 3339 time such as 2026-01-31T12:00:00Z")
            })
        });
        let tail = text("tail").map(|text| {
            text.parse::<i64>().map_err(|_| format!("tail: `{text}` is no whole number"))
        });
        let follow = text("follow").map(|text| {
            parse_bool(text).ok_or_else(|| format!("follow: `{text}` is neither true nor false"))
        });
        let tail = tail.transpose()?.filter(|tail| *tail > 0);
        Ok(Self {
            id,
            instance: text("instance").map(ReplicaId::new),
            since: since.transpose()?,
            tail: tail.map(|tail| usize::try_from(tail).unwrap_or(usize::MAX)),
            follow: follow.transpose()?.unwrap_or(false),
        })
    }
}

/// Reads a switch in the spellings that Go accepts, which is what clients of OpenFaaS send.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use updraft_model::FunctionName;

    fn read(pairs: &[(&str, &str)]) -> Result<LogQuery, String> {
        let id = FunctionId::in_default(FunctionName::new("f").unwrap());
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        LogQuery::read(id, &pairs.iter().map(owned).collect())
    }

    #[test]
    fn an_empty_query_asks_for_all_there_is() {
        for query in [&[][..], &[("instance", ""), ("since", ""), ("tail", ""), ("follow", "")]] {
            let query = read(query).unwrap();
            assert!(query.instance.is_none() && query.since.is_none() && query.tail.is_none());
            assert!(!query.follow);
        }
    }

    #[test]
    fn every_parameter_is_read() {
        let query = read(&[
            ("instance", "f-1"),
            ("since", "2026-01-31T12:00:00+02:00"),
            ("tail", "10"),
            ("follow", "t"),
        ])
        .unwrap();
        assert_eq!(query.instance.unwrap().as_str(), "f-1");
        assert_eq!(query.since.unwrap().to_string(), "2026-01-31T10:00:00Z");
        assert_eq!((query.tail, query.follow), (Some(10), true));
    }

    #[test]
    fn a_tail_of_zero_or_less_is_no_limit() {
        for tail in ["0", "-1", "-9223372036854775808"] {
            assert_eq!(read(&[("tail", tail)]).unwrap().tail, None, "{tail}");
        }
        let most = read(&[("tail", "9223372036854775807")]).unwrap().tail;
        assert_eq!(most, usize::try_from(i64::MAX).ok());
    }

    #[test]
    fn a_switch_has_the_spellings_of_go() {
        for (spellings, on) in [
            (["1", "t", "T", "TRUE", "true", "True"], true),
            (["0", "f", "F", "FALSE", "false", "False"], false),
        ] {
            for text in spellings {
                assert_eq!(read(&[("follow", text)]).unwrap().follow, on, "{text}");
            }
        }
        for text in ["tRUE", "yes", "on", "2", " true", "-1"] {
            assert!(read(&[("follow", text)]).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (key, value) in [
            ("since", "yesterday"),
            ("since", "2026-01-31"),
            ("since", "1769860800"),
            ("tail", "many"),
            ("tail", "1.5"),
            ("tail", "99999999999999999999"),
            ("follow", "yes"),
        ] {
            let error = read(&[(key, value)]).unwrap_err();
            assert!(error.starts_with(key) && error.contains(value), "{error}");
        }
    }
}
