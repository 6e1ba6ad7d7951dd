//! Builds and what they wrote.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use updraft_store::{BlobName, Build, BuildId, BuildState, Store};

use super::functions::{follows, function_name};
use super::limit;
use crate::access::Caller;
use crate::answer::{Failure, streamed};
use crate::{Shared, wire};

/// Bytes of a log that are read at once.
const CHUNK: u64 = 64 << 10;

/// How often a followed log is looked at. The log is a file that another task appends to.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// `owner=`, `function=` and `limit=` choose; newest first.
pub(crate) async fn list(
    State(host): State<Shared>,
    caller: Caller,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Vec<wire::Build>>, Failure> {
    let owner = caller.scope(query.get("owner").map(String::as_str))?;
    let function = query.get("function").map(|name| function_name(name)).transpose()?;
    let builds = host.store.builds(owner.as_ref(), function.as_ref(), limit(&query)?).await?;
    Ok(Json(builds.into_iter().map(Into::into).collect()))
}

pub(crate) async fn describe(
    State(host): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<wire::Build>, Failure> {
    Ok(Json(visible(&host.store, &caller, &id).await?.into()))
}

async fn visible(store: &Store, caller: &Caller, id: &str) -> Result<Build, Failure> {
    let absent = || Failure::absent(format!("there is no build `{id}`"));
    let number: BuildId = id.parse().map_err(|_| absent())?;
    let build = store.build(number).await?.ok_or_else(absent)?;
    caller.sees(&build.owner, absent)?;
    Ok(build)
}

/// The output as text; with `follow=true` it goes on until the build ends.
pub(crate) async fn log(
    State(host): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, Failure> {
    let build = visible(&host.store, &caller, &id).await?;
    let follow = follows(&query)?;
    let Some(name) = build.log else {
        return Err(Failure::absent(format!("the log of build `{id}` was dropped for age")));
    };
    let reading = Reading { store: host.store.clone(), build: build.id, name, offset: 0, follow };
    let chunks = stream::try_unfold(reading, |mut reading| async move {
        Ok::<_, Failure>(reading.next().await?.map(|chunk| (chunk, reading)))
    });
    let chunks = chunks.map_err(|_| std::io::Error::other("the log cannot be read"));
    Ok(streamed("text/plain; charset=utf-8", Body::from_stream(chunks)))
}

/// A place in a log that may still grow.
struct Reading {
    store: Store,
    build: BuildId,
    name: BlobName,
    offset: u64,
    follow: bool,
}

impl Reading {
    /// The next bytes; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            // The state is read before the bytes: what was written by its end is then seen.
            let runs = self.follow
                && self
                    .store
                    .build(self.build)
                    .await?
                    .is_some_and(|b| b.state == BuildState::Running);
            let chunk = self.store.blobs().read(&self.name, self.offset, CHUNK).await?;
            let chunk = chunk.unwrap_or_default();
            if !chunk.is_empty() {
                self.offset += chunk.len() as u64;
                return Ok(Some(chunk.into()));
            }
            if !runs {
                return Ok(None);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
