//! The disk, seen from the client.

use http::Method;

use super::{CHANGE_TIME, Client, ClientError, Query};
use crate::wire;

impl Client {
    /// What uses the disk. Only the administrator may ask.
    pub async fn disk(&self) -> Result<wire::DiskUse, ClientError> {
        self.get("disk").await
    }

    /// The images that have a name. Only the administrator may ask.
    pub async fn images(&self) -> Result<Vec<wire::KeptImage>, ClientError> {
        self.get("images").await
    }

    /// Removes the images that nothing needs, or only names them. Only for the administrator.
    pub async fn prune_images(
        &self,
        dry_run: bool,
    ) -> Result<Vec<wire::CollectedImage>, ClientError> {
        let mut query = Query::default();
        query.add("dry-run", dry_run.then_some("true"));
        self.send_json(Method::POST, &format!("images/prune{query}"), &(), CHANGE_TIME).await
    }
}
