//! Pushing without git: the working tree comes as a tar archive and becomes a push.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use http::StatusCode;
use http_body_util::BodyExt;
use sha2::{Digest as _, Sha256};
use updraft_model::{OwnerName, RepositoryName};
use updraft_pipeline::{Origin, PushRequest, SubmitError};
use updraft_source::git::GitBody;
use updraft_source::git::upload::{UploadError, unpack};

use super::changes::crashed;
use crate::access::PathOwner;
use crate::answer::Failure;
use crate::{Shared, wire};

/// What a push without git moves. Such a push is always to be live, so that there is one ref.
const REFERENCE: &str = "refs/uploads/working-tree";

/// Answers with the push as soon as it is recorded; its events tell what becomes of it.
pub(crate) async fn push(
    State(host): State<Shared>,
    PathOwner(owner): PathOwner,
    Path((_, repository)): Path<(String, String)>,
    body: Body,
) -> Result<(StatusCode, Json<wire::Pushed>), Failure> {
    let repository = RepositoryName::new(repository.as_str())
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    let Ok(turn) = Arc::clone(&host.uploads).try_acquire_owned() else {
        let reason = "too many working trees are being sent at the moment";
        return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, reason).hint("try again soon"));
    };
    // A task of its own, so that nothing stays half done and lying around when the client leaves.
    let taking_in = async move {
        let taken = take_in(&host, owner, repository, body).await;
        drop(turn);
        taken
    };
    tokio::spawn(taking_in).await.unwrap_or_else(|error| Err(crashed(&error)))
}

async fn take_in(
    host: &Shared,
    owner: OwnerName,
    repository: RepositoryName,
    body: Body,
) -> Result<(StatusCode, Json<wire::Pushed>), Failure> {
    let folder = new_folder(host)?;
    let hasher = Arc::new(Mutex::new(Sha256::new()));
    let body = hashed(body, Arc::clone(&hasher));
    let result = async {
        unpack(body, &folder, host.max_upload_bytes, &host.upload_limits).await?;
        // Nothing is known of the tree but what was sent.
        let digest = hasher.lock().unwrap_or_else(PoisonError::into_inner).clone().finalize();
        let request = PushRequest {
            owner,
            repository,
            reference: REFERENCE.to_owned(),
            commit: hex::encode(digest),
            origin: Origin::Upload { folder: folder.clone() },
        };
        Ok::<_, Failure>(host.pipeline.submit(request).await?)
    }
    .await;
    match result {
        Ok(push) => Ok((StatusCode::CREATED, Json(wire::Pushed { push }))),
        Err(failure) => {
            if let Err(error) = tokio::fs::remove_dir_all(&folder).await {
                tracing::warn!(folder = %folder.display(), %error, "a refused upload was left");
            }
            Err(failure)
        }
    }
}

/// A new name beneath the work folder, apart from those of pushes, which are numbers. What is
/// left there by a crash is swept by the pipeline's next start.
fn new_folder(host: &Shared) -> Result<PathBuf, Failure> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| Failure::internal(&error))?;
    Ok(host.work.join(format!("upload-{}", hex::encode(random))))
}

/// The body, which feeds the hasher as it passes.
fn hashed(body: Body, hasher: Arc<Mutex<Sha256>>) -> GitBody {
    body.map_frame(move |frame| {
        if let Some(data) = frame.data_ref() {
            hasher.lock().unwrap_or_else(PoisonError::into_inner).update(data);
        }
        frame
    })
    .map_err(Into::into)
    .boxed_unsync()
}

impl From<UploadError> for Failure {
    fn from(error: UploadError) -> Self {
        let status = match &error {
            UploadError::Broken(_) | UploadError::Format { .. } => StatusCode::BAD_REQUEST,
            UploadError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            UploadError::Content(_) => StatusCode::UNPROCESSABLE_ENTITY,
            UploadError::Storage { .. } => return Self::internal(&error),
        };
        Self::new(status, error.to_string())
    }
}

impl From<SubmitError> for Failure {
    fn from(error: SubmitError) -> Self {
        let status = match error {
            SubmitError::Owner(error) => return error.into(),
            SubmitError::Commit(_) | SubmitError::Reference(_) => StatusCode::BAD_REQUEST,
            SubmitError::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            SubmitError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}
