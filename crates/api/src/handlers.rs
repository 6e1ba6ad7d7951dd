//! What answers each route, by subject.

pub(crate) mod builds;
pub(crate) mod calls;
pub(crate) mod changes;
pub(crate) mod disk;
pub(crate) mod engine;
pub(crate) mod functions;
pub(crate) mod git;
pub(crate) mod keys;
pub(crate) mod pushes;
pub(crate) mod schedules;
pub(crate) mod secrets;
pub(crate) mod server;
pub(crate) mod tokens;
pub(crate) mod upload;

use std::collections::HashMap;

use crate::answer::Failure;

/// How many records a list shows unless told.
const LIMIT_DEFAULT: u32 = 50;
/// How many it shows at most.
const LIMIT_MAX: u32 = 1000;

fn limit(query: &HashMap<String, String>) -> Result<u32, Failure> {
    match query.get("limit").map(String::as_str) {
        None | Some("") => Ok(LIMIT_DEFAULT),
        Some(text) => match text.parse() {
            Ok(limit @ 1..=LIMIT_MAX) => Ok(limit),
            _ => Err(Failure::bad_request(format!(
                "limit: `{text}` is no number from 1 to {LIMIT_MAX}"
            ))),
        },
    }
}
