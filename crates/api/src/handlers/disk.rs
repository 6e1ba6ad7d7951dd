//! What uses the disk, and what of it can go.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Query, State};
use updraft_pipeline::{Housekeeper, HousekeepingError};

use crate::answer::Failure;
use crate::{Shared, wire};

pub(crate) async fn usage(State(host): State<Shared>) -> Result<Json<wire::DiskUse>, Failure> {
    Ok(Json(housekeeper(&host)?.disk_use().await?.into()))
}

/// Every image with a name, why it is here and when it was used last.
pub(crate) async fn images(
    State(host): State<Shared>,
) -> Result<Json<Vec<wire::KeptImage>>, Failure> {
    let survey = housekeeper(&host)?.survey().await?;
    let named = survey.images.into_iter().filter(|image| !image.names.is_empty());
    Ok(Json(named.map(Into::into).collect()))
}

/// `dry-run=true` only names what would go.
pub(crate) async fn prune(
    State(host): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Vec<wire::CollectedImage>>, Failure> {
    let dry_run = match query.get("dry-run").map(String::as_str) {
        Some("true") => true,
        None | Some("false") => false,
        Some(other) => {
            let reason = format!("`dry-run` is `{other}`, expected `true` or `false`");
            return Err(Failure::bad_request(reason));
        }
    };
    let gone = housekeeper(&host)?.prune(dry_run).await?;
    Ok(Json(gone.into_iter().map(Into::into).collect()))
}

fn housekeeper(host: &Shared) -> Result<&Housekeeper, Failure> {
    let absent = || Failure::absent("this server keeps no images of its own");
    host.housekeeper.as_deref().ok_or_else(absent)
}

impl From<HousekeepingError> for Failure {
    fn from(error: HousekeepingError) -> Self {
        Self::internal(&error)
    }
}
