//! Fetches images from registries.

use updraft_model::ImageRef;

use crate::store::{ImageStore, Progress};
use crate::{ImageError, name, process};

impl ImageStore {
    /// Fetches `image` from the registry its name means.
    pub(crate) async fn pull(
        &self,
        image: &ImageRef,
        progress: &dyn Progress,
    ) -> Result<(), ImageError> {
        let missing = |why: String| ImageError::Missing { image: image.clone(), why };
        if self.inner().options.offline {
            return Err(missing(String::new()));
        }
        let Some(remote) = name::remote_candidates(image).pop() else {
            return Err(missing(String::new()));
        };
        progress.line(&format!("fetching image {remote}"));
        let mut command = self.policed("pull");
        command.args(["--quiet", "--retry", "1", "--policy", "always"]);
        command.arg(format!("docker://{remote}"));
        let action = format!("fetch image `{image}`");
        let limit = self.inner().options.pull_limit;
        match process::output(command, "buildah", &action, limit).await {
            Ok(_) => Ok(()),
            Err(ImageError::Program { detail, .. }) => {
                let last = detail.lines().last().unwrap_or_default();
                let reason = last.trim_start_matches("Error: ");
                Err(missing(format!(", and its registry did not give it ({reason})")))
            }
            Err(other) => Err(other),
        }
    }
}
