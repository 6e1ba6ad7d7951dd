//! Namespaces: list, create, describe, change, remove.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use http::StatusCode;
use updraft_engine::{Engine, EngineError};
use updraft_model::Namespace;

use super::{DESCRIPTION_LIMIT, Parts};
use crate::answer::{Failure, engine_failure, read_body};
use crate::wire::{FunctionNamespace, NamespaceStatus};

pub(crate) async fn list(State(parts): Parts) -> Result<Json<Vec<Namespace>>, Failure> {
    match parts.engine.list_namespaces().await {
        Ok(namespaces) => Ok(Json(namespaces.into_iter().map(|info| info.name).collect())),
        Err(error) => Err(engine_failure(&*parts.engine, error).await),
    }
}

pub(crate) async fn describe(
    State(parts): Parts,
    Path(name): Path<String>,
) -> Result<Json<NamespaceStatus>, Failure> {
    match parts.engine.list_namespaces().await {
        Ok(namespaces) => namespaces
            .into_iter()
            .find(|info| info.name.as_str() == name)
            .map(|info| Json(info.into()))
            .ok_or_else(|| absent(&name)),
        Err(error) => Err(engine_failure(&*parts.engine, error).await),
    }
}

pub(crate) async fn create(
    State(parts): Parts,
    path: Option<Path<String>>,
    body: Body,
) -> Result<StatusCode, Failure> {
    let (name, namespace) = requested(path, body).await?;
    match parts.engine.create_namespace(namespace.into_info(name)).await {
        Ok(()) => Ok(StatusCode::CREATED),
        Err(error) => Err(failure(error, &*parts.engine).await),
    }
}

pub(crate) async fn update(
    State(parts): Parts,
    path: Option<Path<String>>,
    body: Body,
) -> Result<StatusCode, Failure> {
    let (name, namespace) = requested(path, body).await?;
    match parts.engine.update_namespace(namespace.into_info(name)).await {
        Ok(()) => Ok(StatusCode::ACCEPTED),
        Err(error) => Err(failure(error, &*parts.engine).await),
    }
}

pub(crate) async fn remove(
    State(parts): Parts,
    path: Option<Path<String>>,
    body: Body,
) -> Result<StatusCode, Failure> {
    let (name, _) = requested(path, body).await?;
    match parts.engine.remove_namespace(&name).await {
        Ok(()) => {
            tracing::info!(namespace = %name, "namespace removed through the gateway");
            Ok(StatusCode::ACCEPTED)
        }
        Err(error) => Err(failure(error, &*parts.engine).await),
    }
}

/// The name, which path and body must agree on, and what the body says of it.
async fn requested(
    path: Option<Path<String>>,
    body: Body,
) -> Result<(Namespace, FunctionNamespace), Failure> {
    let in_path = path.map(|Path(name)| name);
    let body = read_body(body, DESCRIPTION_LIMIT).await?;
    let mut namespace = match (&in_path, body.is_empty()) {
        // The path says all that a removal needs.
        (Some(_), true) => FunctionNamespace::default(),
        _ => FunctionNamespace::decode(&body)?,
    };
    let name = match (in_path, namespace.name.take()) {
        (Some(in_path), Some(in_body)) if in_path != in_body => {
            return Err(Failure::bad_request(format!(
                "the path says namespace `{in_path}` but the body says `{in_body}`"
            )));
        }
        (in_path, in_body) => {
            in_path.or(in_body).ok_or_else(|| Failure::bad_request("name: is required"))?
        }
    };
    let name =
        Namespace::new(name).map_err(|error| Failure::bad_request(format!("name: {error}")))?;
    Ok((name, namespace))
}

/// Here an unknown namespace is the thing itself that is absent, not a wrong place for one.
async fn failure(error: EngineError, engine: &dyn Engine) -> Failure {
    match error {
        EngineError::UnknownNamespace(name) => absent(name.as_str()),
        error => engine_failure(engine, error).await,
    }
}

fn absent(name: &str) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, format!("namespace `{name}` does not exist"))
}
