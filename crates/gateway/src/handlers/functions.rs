//! Functions: list, describe, deploy, remove, scale.

use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use updraft_engine::{Engine, EngineError, Expect, FunctionStatus, Wake, parse_bool};
use updraft_model::{FunctionId, FunctionSpec, labels};

use super::{DESCRIPTION_LIMIT, Parts, QueryMap, namespace_of};
use crate::GatewayParts;
use crate::answer::{Failure, engine_failure, place_failure, read_body};
use crate::place;
use crate::wire::{self, DeleteFunctionRequest, FunctionDeployment, ScaleServiceRequest};

/// Between two readings of what a function uses.
const READING: Duration = Duration::from_millis(100);

/// How often a function may change between a look at it and its change.
const LOOKS: usize = 8;

fn show(parts: &GatewayParts, status: FunctionStatus) -> wire::FunctionStatus {
    let invocations = parts.invocations.count(&status.spec.id);
    wire::FunctionStatus::new(status, invocations)
}

pub(crate) async fn list(
    State(parts): Parts,
    query: QueryMap,
) -> Result<Json<Vec<wire::FunctionStatus>>, Failure> {
    let engine = &*parts.engine;
    let namespace = match place::namespace(None, namespace_of(&query)) {
        Ok(namespace) => namespace,
        Err(error) => return Err(place_failure(engine, error).await),
    };
    match engine.list(&namespace).await {
        Ok(functions) => {
            Ok(Json(functions.into_iter().map(|status| show(&parts, status)).collect()))
        }
        Err(error) => Err(engine_failure(engine, error).await),
    }
}

pub(crate) async fn describe(
    State(parts): Parts,
    Path(name): Path<String>,
    query: QueryMap,
) -> Result<Json<wire::FunctionStatus>, Failure> {
    let engine = &*parts.engine;
    let id = match place::function(&name, None, namespace_of(&query)) {
        Ok(id) => id,
        Err(error) => return Err(place_failure(engine, error).await),
    };
    let asks_for_usage = query.get("usage").and_then(|text| parse_bool(text)).unwrap_or(false);
    let shown = match engine.get(&id).await {
        Ok(Some(status)) => show(&parts, status),
        Ok(None) => return Err(Failure::absent()),
        Err(error) => return Err(engine_failure(engine, error).await),
    };
    if !asks_for_usage {
        return Ok(Json(shown));
    }
    match usage(engine, &id).await {
        Ok(usage) => Ok(Json(shown.with_usage(usage))),
        Err(EngineError::UnknownFunction(_)) => Err(Failure::absent()),
        Err(error) => Err(engine_failure(engine, error).await),
    }
}

/// What the function's replicas use: memory now, and the processor between two readings.
async fn usage(engine: &dyn Engine, id: &FunctionId) -> Result<Option<wire::Usage>, EngineError> {
    let Some(first) = engine.usage(id).await? else { return Ok(None) };
    let begun = Instant::now();
    tokio::time::sleep(READING).await;
    let Some(second) = engine.usage(id).await? else { return Ok(None) };
    // Less than before means that a replica went in between.
    let used = (second.cpu_seconds - first.cpu_seconds).max(0.0);
    Ok(Some(wire::Usage {
        cpu: used / begun.elapsed().as_secs_f64() * 1000.0,
        total_memory_bytes: second.memory_bytes as f64,
    }))
}

/// `POST`: the function is as the body says afterwards, whether it was there or not.
pub(crate) async fn create(
    State(parts): Parts,
    query: QueryMap,
    body: Body,
) -> Result<Deployed, Failure> {
    let spec = requested_spec(&parts, &query, body).await?;
    deploy(&parts, spec, IfAbsent::Create).await
}

/// `PUT`: only for a function that is there; clients go on with `POST` after a `404`.
pub(crate) async fn update(
    State(parts): Parts,
    query: QueryMap,
    body: Body,
) -> Result<Deployed, Failure> {
    let spec = requested_spec(&parts, &query, body).await?;
    deploy(&parts, spec, IfAbsent::Refuse).await
}

async fn requested_spec(
    parts: &GatewayParts,
    query: &QueryMap,
    body: Body,
) -> Result<FunctionSpec, Failure> {
    let body = read_body(body, DESCRIPTION_LIMIT).await?;
    let deployment = FunctionDeployment::decode(&body)?;
    let namespace = match place::namespace(deployment.namespace.as_deref(), namespace_of(query)) {
        Ok(namespace) => namespace,
        Err(error) => return Err(place_failure(&*parts.engine, error).await),
    };
    deployment.into_spec(namespace).map_err(Failure::bad_request)
}

/// 202 without a body, and what the deployment says wrongly.
type Deployed = (StatusCode, HeaderMap);

/// One `Warning` for each label and annotation that makes no sense, as Kubernetes' API tells such
/// things: bodies of these answers are empty for clients' sake.
fn warnings(parts: &GatewayParts, spec: &FunctionSpec) -> HeaderMap {
    let mistakes = parts.scaler.mistakes(spec).into_iter().chain(updraft_queue::mistakes(spec));
    let mut headers = HeaderMap::new();
    for mistake in mistakes {
        let plain = |sign: char| match sign {
            '"' | '\\' => '\'',
            ' '..='~' => sign,
            _ => '?',
        };
        let text: String = mistake.chars().map(plain).collect();
        if let Ok(value) = HeaderValue::try_from(format!("299 updraft \"{text}\"")) {
            headers.append(header::WARNING, value);
        }
    }
    headers
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum IfAbsent {
    Create,
    Refuse,
}

async fn deploy(
    parts: &GatewayParts,
    spec: FunctionSpec,
    if_absent: IfAbsent,
) -> Result<Deployed, Failure> {
    let engine = &*parts.engine;
    let id = spec.id.clone();
    for _ in 0..LOOKS {
        let existing = match engine.get(&id).await {
            Ok(None) if if_absent == IfAbsent::Refuse => {
                return Err(Failure::new(
                    StatusCode::NOT_FOUND,
                    format!("function `{id}` does not exist, create it with POST"),
                ));
            }
            Ok(existing) => existing,
            Err(error) => return Err(engine_failure(engine, error).await),
        };
        existing.as_ref().map_or(Ok(()), refuse_pushed)?;
        // A push may come between this look and the change: then look again.
        let seen = Expect::as_seen(existing.as_ref());
        // An update never wakes a function that was scaled to zero.
        match engine.apply_if(spec.clone(), Wake::Keep, seen).await {
            Ok(_) => {
                tracing::info!(function = %id, "deployed through the gateway");
                return Ok((StatusCode::ACCEPTED, warnings(parts, &spec)));
            }
            Err(EngineError::Superseded(_)) => {}
            Err(error) => return Err(engine_failure(engine, error).await),
        }
    }
    Err(engine_failure(engine, EngineError::Superseded(id)).await)
}

/// What runs for a pushed function is what its repository says; the gateway may stop or remove it,
/// not change it behind the repository's back.
fn refuse_pushed(existing: &FunctionStatus) -> Result<(), Failure> {
    let spec = &existing.spec;
    let Some(owner) = spec.labels.get(labels::GIT_OWNER) else {
        return Ok(());
    };
    let repository = spec.repository().unwrap_or("unknown");
    Err(Failure::new(
        StatusCode::CONFLICT,
        format!(
            "function `{}` was deployed by a push to the repository `{owner}/{repository}`; push \
             there to change it, or remove the function first",
            spec.id
        ),
    ))
}

pub(crate) async fn remove(
    State(parts): Parts,
    query: QueryMap,
    body: Body,
) -> Result<StatusCode, Failure> {
    let engine = &*parts.engine;
    let body = read_body(body, DESCRIPTION_LIMIT).await?;
    let request = DeleteFunctionRequest::decode(&body)?;
    let Some(name) = request.function_name else {
        return Err(Failure::bad_request("functionName: is required"));
    };
    let id = match place::function(&name, request.namespace.as_deref(), namespace_of(&query)) {
        Ok(id) => id,
        Err(error) => return Err(place_failure(engine, error).await),
    };
    match engine.remove(&id).await {
        Ok(()) => {
            tracing::info!(function = %id, "removed through the gateway");
            Ok(StatusCode::ACCEPTED)
        }
        Err(error) => Err(engine_failure(engine, error).await),
    }
}

pub(crate) async fn scale(
    State(parts): Parts,
    Path(name): Path<String>,
    query: QueryMap,
    body: Body,
) -> Result<StatusCode, Failure> {
    let engine = &*parts.engine;
    let body = read_body(body, DESCRIPTION_LIMIT).await?;
    let request = ScaleServiceRequest::decode(&body)?;
    let id = match place::function(&name, request.namespace.as_deref(), namespace_of(&query)) {
        Ok(id) => id,
        Err(error) => return Err(place_failure(engine, error).await),
    };
    match engine.scale(&id, request.replicas).await {
        Ok(()) => {
            tracing::info!(function = %id, replicas = request.replicas, "scaled through the gateway");
            Ok(StatusCode::ACCEPTED)
        }
        Err(error) => Err(engine_failure(engine, error).await),
    }
}
