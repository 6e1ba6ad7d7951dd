//! What answers each route, by subject.

pub(crate) mod alert;
pub(crate) mod calls;
pub(crate) mod functions;
pub(crate) mod info;
pub(crate) mod logs;
pub(crate) mod namespaces;
pub(crate) mod secrets;

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Query, State};

use crate::GatewayParts;

/// What every handler works with.
type Parts = State<Arc<GatewayParts>>;

/// The query; of a repeated key the last value counts.
type QueryMap = Query<HashMap<String, String>>;

/// The largest body that describes something, far above any real one.
pub(crate) const DESCRIPTION_LIMIT: usize = 4 << 20;

fn namespace_of(query: &QueryMap) -> Option<&str> {
    query.get("namespace").map(String::as_str)
}
