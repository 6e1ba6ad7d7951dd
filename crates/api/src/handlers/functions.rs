//! Functions of owners: what runs, what is live, what they write, and going back.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use futures_util::StreamExt;
use updraft_engine::{Endpoint, FunctionStatus, LogQuery, parse_bool};
use updraft_model::{FunctionId, FunctionName, FunctionSpec, Namespace, OwnerName, labels};
use updraft_store::{DeclaredFunction, Environment, PinnedTo};

use crate::access::{Caller, PathOwner};
use crate::answer::{Failure, json_lines};
use crate::{Host, Shared, wire};

/// Most releases that one list shows.
const RELEASES_MAX: u32 = 100;

type QueryMap = Query<HashMap<String, String>>;

/// What is called `name` by `owner`, as the engine knows it.
fn engine_id(owner: &OwnerName, name: &FunctionName) -> Result<FunctionId, Failure> {
    owner
        .visible_name(name)
        .map(FunctionId::in_default)
        .map_err(|error| Failure::bad_request(error.to_string()))
}

pub(crate) fn function_name(name: &str) -> Result<FunctionName, Failure> {
    FunctionName::new(name).map_err(|error| Failure::bad_request(error.to_string()))
}

fn absent(owner: &OwnerName, name: &FunctionName) -> Failure {
    Failure::absent(format!("`{owner}` has no function `{name}`"))
        .hint("`updraft list` shows the functions that are there")
}

/// Whose function it is and what its owner calls it; nobody's when it did not come by a push.
fn identity(spec: &FunctionSpec) -> Option<(OwnerName, FunctionName)> {
    let owner = spec.owner()?;
    let name = owner.own_name(&spec.id.name)?;
    Some((owner, name))
}

/// A deployed function; `live` is what the store has for it.
fn deployed(host: &Host, status: FunctionStatus, live: Option<&Environment>) -> wire::Function {
    let spec = status.spec;
    let ready = ready_replicas(host, &spec.id);
    let mut warnings = host.scaler.mistakes(&spec);
    warnings.extend(updraft_queue::mistakes(&spec));
    let scaling = host.scaler.view(&spec.id).map(wire::Scaling::from);
    let commit = spec.labels.get(labels::GIT_SHA).cloned();
    let repository = spec.repository().map(str::to_owned);
    let (owner, name, url) = if let Some((owner, name)) = identity(&spec) {
        let url = (host.url)(&owner, &name);
        (Some(owner), name, url)
    } else {
        let url = format!("{}/function/{}", host.gateway_url, spec.id.name);
        (None, spec.id.name, url)
    };
    wire::Function {
        owner,
        name,
        url,
        repository,
        image: Some(spec.image),
        replicas: status.replicas,
        available_replicas: status.available_replicas,
        ready,
        release: live.map(|live| live.release),
        pinned: live.is_some_and(|live| live.pinned == PinnedTo::ThisRelease),
        commit,
        created_at: Some(status.created_at),
        message: status.message,
        warnings,
        scaling,
    }
}

/// The replicas that take requests, as the data plane sees them.
fn ready_replicas(host: &Host, id: &FunctionId) -> Vec<wire::Replica> {
    let table = host.engine.endpoints().borrow().clone();
    let replica = |endpoint: &Arc<Endpoint>| wire::Replica {
        name: endpoint.replica.as_str().to_owned(),
        address: endpoint.address,
    };
    table.get(id).map(|function| function.ready.iter().map(replica).collect()).unwrap_or_default()
}

/// A function that a repository declares and the engine does not run.
fn only_declared(host: &Host, declared: DeclaredFunction) -> wire::Function {
    wire::Function {
        url: (host.url)(&declared.owner, &declared.name),
        owner: Some(declared.owner),
        name: declared.name,
        repository: declared.repository.map(String::from),
        image: None,
        replicas: 0,
        available_replicas: 0,
        ready: Vec::new(),
        release: None,
        pinned: false,
        commit: None,
        created_at: None,
        message: Some(
            "is not deployed: its push failed, or somebody removed it; push again".to_owned(),
        ),
        warnings: Vec::new(),
        scaling: None,
    }
}

/// The functions of one owner, or of everybody, by owner and name; those of nobody come first.
async fn functions_of(
    host: &Host,
    owner: Option<&OwnerName>,
) -> Result<Vec<wire::Function>, Failure> {
    let running = host.engine.list(&Namespace::default()).await?;
    let live: BTreeMap<_, _> = host
        .store
        .all_live(owner)
        .await?
        .into_iter()
        .map(|live| ((live.owner.clone(), live.function.clone()), live))
        .collect();
    let owners = match owner {
        Some(owner) => vec![owner.clone()],
        None => host.store.owners().await?.into_iter().map(|owner| owner.name).collect(),
    };
    let mut declared = Vec::new();
    for owner in &owners {
        declared.extend(host.store.declared_functions(owner, None).await?);
    }
    let mut shown = BTreeMap::new();
    for status in running {
        let key = identity(&status.spec);
        if owner.is_some() && key.as_ref().map(|(owner, _)| owner) != owner {
            continue;
        }
        let function = deployed(host, status, key.as_ref().and_then(|key| live.get(key)));
        shown.insert((function.owner.clone(), function.name.clone()), function);
    }
    for declared in declared {
        let key = (Some(declared.owner.clone()), declared.name.clone());
        shown.entry(key).or_insert_with(|| only_declared(host, declared));
    }
    Ok(shown.into_values().collect())
}

/// All that the caller may see.
pub(crate) async fn list(
    State(host): State<Shared>,
    caller: Caller,
    Query(query): QueryMap,
) -> Result<Json<Vec<wire::Function>>, Failure> {
    let owner = caller.scope(query.get("owner").map(String::as_str))?;
    Ok(Json(functions_of(&host, owner.as_ref()).await?))
}

pub(crate) async fn list_of_owner(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
) -> Result<Json<Vec<wire::Function>>, Failure> {
    Ok(Json(functions_of(&host, Some(&owner)).await?))
}

pub(crate) async fn describe(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
    Path((_, name)): Path<(String, String)>,
) -> Result<Json<wire::Function>, Failure> {
    let name = function_name(&name)?;
    let status = host.engine.get(&engine_id(&owner, &name)?).await?;
    if let Some(status) = status.filter(|status| status.spec.owner().as_ref() == Some(&owner)) {
        let live = host.store.live(&owner, &name).await?;
        return Ok(Json(deployed(&host, status, live.as_ref())));
    }
    let declared = host.store.function(&owner, &name).await?;
    match declared.filter(|declared| declared.repository.is_some()) {
        Some(declared) => Ok(Json(only_declared(&host, declared))),
        None => Err(absent(&owner, &name)),
    }
}

pub(crate) async fn releases(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
    Path((_, name)): Path<(String, String)>,
) -> Result<Json<Vec<wire::Release>>, Failure> {
    let name = function_name(&name)?;
    if host.store.function(&owner, &name).await?.is_none() {
        return Err(absent(&owner, &name));
    }
    let live = host.store.live(&owner, &name).await?;
    let releases = host.store.releases(&owner, &name, RELEASES_MAX).await?;
    let kept = host.housekeeper.as_ref().map(|housekeeper| housekeeper.kept(&releases));
    let show = |release: updraft_store::Release| {
        let is_kept = kept.as_ref().is_none_or(|kept| kept.contains(&release.number));
        wire::Release { kept: is_kept, ..wire::Release::new(release, live.as_ref()) }
    };
    Ok(Json(releases.into_iter().map(show).collect()))
}

/// `follow=true`, `since=<RFC 3339>`, `tail=<lines>`, `instance=<replica>`.
pub(crate) async fn logs(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
    Path((_, name)): Path<(String, String)>,
    Query(query): QueryMap,
) -> Result<Response, Failure> {
    let name = function_name(&name)?;
    let id = engine_id(&owner, &name)?;
    let status = host.engine.get(&id).await?;
    // A function of that visible name that is not this owner's is none of theirs.
    if status.is_none_or(|status| status.spec.owner().as_ref() != Some(&owner)) {
        return Err(absent(&owner, &name));
    }
    let lines = host.engine.logs(LogQuery::read(id, &query).map_err(Failure::bad_request)?).await?;
    Ok(json_lines(lines.map(|line| line.map(wire::LogLine::from))))
}

/// Reads `follow=true`.
pub(crate) fn follows(query: &HashMap<String, String>) -> Result<bool, Failure> {
    match query.get("follow").map(String::as_str) {
        None | Some("") => Ok(false),
        Some(text) => parse_bool(text).ok_or_else(|| {
            Failure::bad_request(format!("follow: `{text}` is neither true nor false"))
        }),
    }
}
