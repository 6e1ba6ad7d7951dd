//! Secrets of an owner: `api-key` of alice is kept in the engine as `alice-api-key`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use http::StatusCode;
use updraft_engine::{EngineError, SecretValue};
use updraft_model::{Namespace, OwnerName, SecretName};

use crate::access::PathOwner;
use crate::answer::{Failure, read_body};
use crate::{Shared, wire};

/// The largest secret, as on Kubernetes.
const VALUE_LIMIT: usize = 1 << 20;

/// The name in the engine, which all owners share.
fn kept_name(owner: &OwnerName, name: &str) -> Result<SecretName, Failure> {
    let own = SecretName::new(name).map_err(|error| Failure::bad_request(error.to_string()))?;
    SecretName::new(format!("{owner}-{own}"))
        .map_err(|error| Failure::bad_request(error.to_string()))
}

fn own_name(owner: &OwnerName, kept: &SecretName) -> Option<SecretName> {
    let own = kept.as_str().strip_prefix(owner.as_str())?.strip_prefix('-')?;
    SecretName::new(own).ok()
}

pub(crate) async fn list(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
) -> Result<Json<Vec<wire::Secret>>, Failure> {
    let kept = host.engine.list_secrets(&Namespace::default()).await?;
    let own = kept.iter().filter_map(|kept| own_name(&owner, &kept.name));
    Ok(Json(own.map(|name| wire::Secret { name }).collect()))
}

/// The body is the value, byte for byte.
pub(crate) async fn set(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
    Path((_, name)): Path<(String, String)>,
    body: Body,
) -> Result<StatusCode, Failure> {
    let kept = kept_name(&owner, &name)?;
    let value = SecretValue::new(read_body(body, VALUE_LIMIT).await?);
    // Two owners whose names cannot be told apart would share secrets.
    host.store.ensure_owner(&owner).await?;
    let namespace = Namespace::default();
    match host.engine.create_secret(&namespace, &kept, value.clone()).await {
        Ok(()) => Ok(StatusCode::CREATED),
        Err(EngineError::SecretExists { .. }) => {
            host.engine.update_secret(&namespace, &kept, value).await?;
            Ok(StatusCode::OK)
        }
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn unset(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
    Path((_, name)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    let kept = kept_name(&owner, &name)?;
    match host.engine.remove_secret(&Namespace::default(), &kept).await {
        Ok(()) => Ok(StatusCode::OK),
        Err(EngineError::UnknownSecret { .. }) => {
            Err(Failure::absent(format!("`{owner}` has no secret `{name}`")))
        }
        Err(error) => Err(error.into()),
    }
}
