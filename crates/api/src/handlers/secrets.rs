//! Secrets of an owner: `api-key` of alice is kept in the engine as `alice-api-key`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use updraft_engine::{
    EngineError, FunctionStatus, PutSecret, SecretChange, SecretContent, SecretInfo, SecretItems,
    SecretValue,
};
use updraft_model::{ItemKey, Namespace, OwnerName, RepositoryName, SecretName};
use updraft_pipeline::CompareError;
use updraft_source::stack::SecretFile;

use crate::access::PathOwner;
use crate::answer::{Failure, read_body};
use crate::{Shared, wire};

/// The largest secret, as on Kubernetes.
const VALUE_LIMIT: usize = 1 << 20;

/// The largest set of items: the same in base64, with its keys.
const ITEMS_LIMIT: usize = 2 << 20;

/// The largest file of sealed secrets.
const FILE_LIMIT: usize = 8 << 20;

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

/// What may be told of a secret, with the owner's functions that have it.
fn told(owner: &OwnerName, kept: SecretInfo, deployed: &[FunctionStatus]) -> Option<wire::Secret> {
    let name = own_name(owner, &kept.name)?;
    let users = deployed
        .iter()
        .filter(|status| status.spec.secrets.contains(&kept.name))
        .filter_map(|status| owner.own_name(&status.spec.id.name));
    let item = |(key, item): (ItemKey, updraft_engine::ItemInfo)| wire::SecretItem {
        key,
        digest: item.digest.short(),
        bytes: item.bytes,
    };
    Some(wire::Secret {
        name,
        items: kept.items.into_iter().map(item).collect(),
        digest: kept.digest.short(),
        kind: kept.kind,
        labels: kept.labels,
        origin: kept.origin,
        created_at: kept.created_at,
        changed_at: kept.changed_at,
        users: users.collect(),
    })
}

pub(crate) async fn list(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
) -> Result<Json<Vec<wire::Secret>>, Failure> {
    let kept = host.engine.list_secrets(&Namespace::default()).await?;
    let deployed = host.engine.list(&Namespace::default()).await?;
    let own = kept.into_iter().filter_map(|kept| told(&owner, kept, &deployed));
    Ok(Json(own.collect()))
}

pub(crate) async fn describe(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
    Path((_, name)): Path<(String, String)>,
) -> Result<Json<wire::Secret>, Failure> {
    let kept_name = kept_name(&owner, &name)?;
    let kept = host.engine.list_secrets(&Namespace::default()).await?;
    let deployed = host.engine.list(&Namespace::default()).await?;
    let kept = kept.into_iter().find(|kept| kept.name == kept_name);
    let told = kept.and_then(|kept| told(&owner, kept, &deployed));
    told.map(Json).ok_or_else(|| Failure::absent(format!("`{owner}` has no secret `{name}`")))
}

/// The body is JSON with the items; what the secret held before and is not among them is gone.
pub(crate) async fn set_items(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
    Path((_, name)): Path<(String, String)>,
    body: Body,
) -> Result<StatusCode, Failure> {
    let kept = kept_name(&owner, &name)?;
    let body = read_body(body, ITEMS_LIMIT).await?;
    // The error of the parser could quote a value.
    let unreadable = || Failure::bad_request("the body is no JSON object with `items` in base64");
    let given: wire::SecretItems = serde_json::from_slice(&body).map_err(|_| unreadable())?;
    let item = |(key, value): (ItemKey, String)| {
        let value = STANDARD.decode(value).map_err(|_| {
            Failure::bad_request(format!("the value of item `{key}` is no valid base64"))
        })?;
        Ok::<_, Failure>((key, SecretValue::new(value)))
    };
    let items: SecretItems = given.items.into_iter().map(item).collect::<Result<_, _>>()?;
    keep(&host, &owner, &kept, items).await
}

async fn keep(
    host: &Shared,
    owner: &OwnerName,
    kept: &SecretName,
    items: SecretItems,
) -> Result<StatusCode, Failure> {
    // Two owners whose names cannot be told apart would share secrets.
    host.store.ensure_owner(owner).await?;
    let content = SecretContent::by_hand(items);
    let namespace = Namespace::default();
    let put = host.engine.put_secret(&namespace, kept, content, PutSecret::Either);
    let change = put.await?;
    host.pipeline.secrets_changed();
    Ok(if change == SecretChange::Created { StatusCode::CREATED } else { StatusCode::OK })
}

/// The body is a file of sealed secrets; the answer tells what a push of it would change.
pub(crate) async fn diff(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
    Path((_, repository)): Path<(String, String)>,
    body: Body,
) -> Result<Json<Vec<wire::SecretDifference>>, Failure> {
    let repository =
        RepositoryName::new(repository).map_err(|error| Failure::bad_request(error.to_string()))?;
    let body = read_body(body, FILE_LIMIT).await?;
    let file = SecretFile { path: "secrets.yml".to_owned(), content: Ok(body.to_vec()) };
    let compared = host.pipeline.compare_secrets(&owner, &repository, vec![file]).await;
    compared.map(Json).map_err(|error| match error {
        CompareError::Engine(error) => error.into(),
        error @ CompareError::BrokeOff => Failure::internal(&error),
    })
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
    let items = SecretItems::single(&kept, value);
    keep(&host, &owner, &kept, items).await
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
