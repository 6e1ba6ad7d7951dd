//! The webhook of Prometheus' Alertmanager.

use std::fmt::Write as _;

use axum::body::Body;
use axum::extract::State;
use http::StatusCode;
use updraft_scaler::Alert;

use super::{DESCRIPTION_LIMIT, Parts};
use crate::answer::{Failure, read_body};

/// 200 without a body when every function named could be scaled; those that are not there are
/// passed over.
pub(crate) async fn heed(State(parts): Parts, body: Body) -> Result<StatusCode, Failure> {
    let body = read_body(body, DESCRIPTION_LIMIT).await?;
    if body.is_empty() {
        return Err(Failure::bad_request("the body is empty, expected an alert"));
    }
    let alert = Alert::parse(&body).map_err(|error| {
        Failure::bad_request(format!("Unable to parse alert, bad format. {error}"))
    })?;
    let outcome = parts.scaler.alert(alert).await;
    if outcome.errors.is_empty() {
        return Ok(StatusCode::OK);
    }
    let mut lines = String::new();
    for (index, error) in outcome.errors.iter().enumerate() {
        let end = if index + 1 < outcome.errors.len() { "\n" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(lines, "[{index}] {error}{end}");
    }
    Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, lines))
}
