//! What a function's replicas wrote, as a stream of JSON lines.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use updraft_engine::{LogQuery, ReplicaId};
use updraft_model::FunctionId;

use super::{Parts, QueryMap, namespace_of, parse_bool};
use crate::answer::{Failure, engine_failure, place_failure};
use crate::place;
use crate::wire::LogMessage;

/// Ends by itself unless the client follows; then when the client leaves, which drops the stream.
pub(crate) async fn stream(State(parts): Parts, query: QueryMap) -> Result<Response, Failure> {
    let engine = &*parts.engine;
    let name = text(&query, "name").ok_or_else(|| unreadable("name: is required"))?;
    let id = match place::function(name, None, namespace_of(&query)) {
        Ok(id) => id,
        Err(error) => return Err(place_failure(engine, error).await),
    };
    let query = log_query(id.clone(), &query).map_err(|error| unreadable(&error))?;
    let lines = match engine.logs(query).await {
        Ok(lines) => lines,
        Err(error) => return Err(engine_failure(engine, error).await),
    };
    let encoded = lines.map(move |line| {
        // An error breaks the body off, so that no client takes half a log for a whole one.
        let message = LogMessage::new(&id, line.map_err(|error| log_error(&id, error))?);
        let mut json = serde_json::to_vec(&message)?;
        json.push(b'\n');
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Bytes::from(json))
    });
    let mut response = Response::new(Body::from_stream(encoded));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn log_error(id: &FunctionId, error: updraft_engine::EngineError) -> updraft_engine::EngineError {
    tracing::warn!(function = %id, %error, "a log stream broke off");
    error
}

fn unreadable(reason: &str) -> Failure {
    Failure::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        format!("could not parse the log request: {reason}"),
    )
}

/// An empty value is what a client sends for "not given".
fn text<'a>(query: &'a HashMap<String, String>, key: &str) -> Option<&'a str> {
    query.get(key).map(String::as_str).filter(|text| !text.is_empty())
}

fn log_query(id: FunctionId, query: &HashMap<String, String>) -> Result<LogQuery, String> {
    let since = text(query, "since").map(|text| {
        text.parse::<Timestamp>().map_err(|_| {
            format!("since: `{text}` is no RFC 3339 time such as 2026-01-31T12:00:00Z")
        })
    });
    let tail = text(query, "tail")
        .map(|text| text.parse::<i64>().map_err(|_| format!("tail: `{text}` is no whole number")));
    let follow = text(query, "follow").map(|text| {
        parse_bool(text).ok_or_else(|| format!("follow: `{text}` is neither true nor false"))
    });
    Ok(LogQuery {
        id,
        instance: text(query, "instance").map(ReplicaId::new),
        since: since.transpose()?,
        // Zero and below mean no limit.
        tail: tail
            .transpose()?
            .filter(|tail| *tail > 0)
            .and_then(|tail| usize::try_from(tail).ok()),
        follow: follow.transpose()?.unwrap_or(false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use updraft_model::FunctionName;

    fn parse(pairs: &[(&str, &str)]) -> Result<LogQuery, String> {
        let id = FunctionId::in_default(FunctionName::new("f").unwrap());
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        log_query(id, &pairs.iter().map(owned).collect())
    }

    #[test]
    fn an_empty_query_asks_for_all_there_is() {
        let query = parse(&[]).unwrap();
        assert!(query.instance.is_none() && query.since.is_none() && query.tail.is_none());
        assert!(!query.follow);
    }

    #[test]
    fn every_parameter_is_read() {
        let query = parse(&[
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
        for tail in ["0", "-1"] {
            assert_eq!(parse(&[("tail", tail)]).unwrap().tail, None);
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (key, value) in [("since", "yesterday"), ("tail", "many"), ("follow", "yes")] {
            let error = parse(&[(key, value)]).unwrap_err();
            assert!(error.starts_with(key) && error.contains(value), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_query_makes_the_parser_panic(since in ".{0,30}", tail in ".{0,30}", follow in ".{0,9}") {
            let _read = parse(&[("since", &since), ("tail", &tail), ("follow", &follow)]);
        }
    }
}
