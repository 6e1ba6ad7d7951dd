//! Fetches images from registries.

use updraft_model::ImageRef;

use crate::credentials::{AuthFile, RegistryCredentials};
use crate::store::{ImageStore, Progress};
use crate::{ImageError, name, process};

/// What registries and `buildah` say when somebody may not have an image, or would have to say
/// who he is.
const REFUSALS: [&str; 5] =
    ["unauthorized", "authentication required", "denied", "invalid username/password", "forbidden"];

impl ImageStore {
    /// Fetches `image` from the registry its name means: as whoever `credentials` say, else as
    /// whoever the machine's own configuration for `buildah` says.
    pub(crate) async fn pull(
        &self,
        image: &ImageRef,
        credentials: Option<&RegistryCredentials>,
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
        let auth_file =
            credentials.map(|credentials| AuthFile::write(self.run_root(), credentials));
        let auth_file = auth_file.transpose()?;
        if let Some(file) = &auth_file {
            command.arg("--authfile").arg(file.path());
        }
        if name::is_on_loopback(&remote) {
            // A registry on this machine is believed without TLS, as Docker does.
            command.arg("--tls-verify=false");
        }
        command.arg(format!("docker://{remote}"));
        let action = format!("fetch image `{image}`");
        let limit = self.inner().options.pull_limit;
        let pulled = process::output(command, "buildah", &action, limit).await;
        drop(auth_file);
        match pulled {
            Ok(_) => Ok(()),
            Err(ImageError::Program { detail, .. }) => {
                let last = detail.lines().last().unwrap_or_default();
                let reason = last.trim_start_matches("Error: ").to_owned();
                let lower = reason.to_ascii_lowercase();
                if REFUSALS.iter().any(|refusal| lower.contains(refusal)) {
                    let known = credentials.is_some();
                    return Err(ImageError::Refused { image: image.clone(), known, reason });
                }
                Err(missing(format!(", and its registry did not give it ({reason})")))
            }
            Err(other) => Err(other),
        }
    }
}
