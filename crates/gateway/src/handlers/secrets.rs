//! Secrets: names can be listed, values only written.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use http::StatusCode;
use updraft_engine::{SecretInfo, SecretValue};
use updraft_model::{Namespace, SecretName};

use super::{DESCRIPTION_LIMIT, Parts, QueryMap, namespace_of};
use crate::GatewayParts;
use crate::answer::{Failure, engine_failure, place_failure, read_body};
use crate::place;
use crate::wire::{Secret, SecretEntry};

/// The largest secret, as on Kubernetes.
const VALUE_LIMIT: usize = 1 << 20;

pub(crate) async fn list(
    State(parts): Parts,
    query: QueryMap,
) -> Result<Json<Vec<SecretEntry>>, Failure> {
    let engine = &*parts.engine;
    let namespace = match place::namespace(None, namespace_of(&query)) {
        Ok(namespace) => namespace,
        Err(error) => return Err(place_failure(engine, error).await),
    };
    let entry = |secret: SecretInfo| SecretEntry {
        name: secret.name,
        namespace: namespace.as_str().to_owned(),
    };
    match engine.list_secrets(&namespace).await {
        Ok(secrets) => Ok(Json(secrets.into_iter().map(entry).collect())),
        Err(error) => Err(engine_failure(engine, error).await),
    }
}

pub(crate) async fn create(
    State(parts): Parts,
    query: QueryMap,
    body: Body,
) -> Result<StatusCode, Failure> {
    let (namespace, name, value) = requested(&parts, &query, body).await?;
    match parts.engine.create_secret(&namespace, &name, value).await {
        Ok(()) => Ok(StatusCode::ACCEPTED),
        Err(error) => Err(engine_failure(&*parts.engine, error).await),
    }
}

pub(crate) async fn update(
    State(parts): Parts,
    query: QueryMap,
    body: Body,
) -> Result<StatusCode, Failure> {
    let (namespace, name, value) = requested(&parts, &query, body).await?;
    match parts.engine.update_secret(&namespace, &name, value).await {
        Ok(()) => Ok(StatusCode::ACCEPTED),
        Err(error) => Err(engine_failure(&*parts.engine, error).await),
    }
}

pub(crate) async fn remove(
    State(parts): Parts,
    query: QueryMap,
    body: Body,
) -> Result<StatusCode, Failure> {
    let (namespace, name, _) = requested(&parts, &query, body).await?;
    match parts.engine.remove_secret(&namespace, &name).await {
        Ok(()) => Ok(StatusCode::ACCEPTED),
        Err(error) => Err(engine_failure(&*parts.engine, error).await),
    }
}

async fn requested(
    parts: &GatewayParts,
    query: &QueryMap,
    body: Body,
) -> Result<(Namespace, SecretName, SecretValue), Failure> {
    let body = read_body(body, DESCRIPTION_LIMIT).await?;
    let secret = Secret::decode(&body)?;
    let namespace = match place::namespace(secret.namespace.as_deref(), namespace_of(query)) {
        Ok(namespace) => namespace,
        Err(error) => return Err(place_failure(&*parts.engine, error).await),
    };
    let invalid = |text: String| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, text);
    let name = secret.name.unwrap_or_default();
    let name = SecretName::new(name).map_err(|error| invalid(format!("name: {error}")))?;
    if secret.value.expose().len() > VALUE_LIMIT {
        return Err(invalid(format!(
            "value: a secret may hold {VALUE_LIMIT} bytes, this has more"
        )));
    }
    Ok((namespace, name, secret.value))
}
