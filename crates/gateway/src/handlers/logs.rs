//! What a function's replicas wrote, as a stream of JSON lines.

mod provider;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, StatusCode, header};
use updraft_engine::LogQuery;
use updraft_model::FunctionId;

use super::{Parts, QueryMap, namespace_of};
use crate::answer::{Failure, engine_failure, place_failure};
use crate::place;
use crate::wire::LogMessage;

/// Ends by itself unless the client follows; then when the client leaves, which drops the stream.
pub(crate) async fn stream(
    State(parts): Parts,
    query: QueryMap,
    RawQuery(raw): RawQuery,
) -> Result<Response, Failure> {
    let engine = &*parts.engine;
    let name = query.get("name").map(String::as_str).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| unreadable("name: is required"))?;
    let id = match place::function(name, None, namespace_of(&query)) {
        Ok(id) => id,
        Err(error) => return Err(place_failure(engine, error).await),
    };
    let query = LogQuery::read(id.clone(), &query).map_err(|error| unreadable(&error))?;
    if let Some(provider) = &parts.logs_provider {
        return provider::relay(provider, raw.as_deref().unwrap_or_default()).await;
    }
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
    Ok(as_lines(Body::from_stream(encoded)))
}

/// The answer whose body is one JSON object a line, which nobody on the way may keep.
fn as_lines(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
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
