//! What the engine asks of whatever keeps images: a root folder and the process in it.

use std::path::PathBuf;

use async_trait::async_trait;
use updraft_images::{Image, ImageStore, RegistryCredentials};
use updraft_model::{Digest, ImageRef};

/// The process that an image declares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageProcess {
    /// Environment, in the image's order.
    pub env: Vec<(String, String)>,
    /// The entry point; the command's words follow it.
    pub entrypoint: Vec<String>,
    /// The command.
    pub cmd: Vec<String>,
    /// `user[:group]`, names or numbers; empty for root.
    pub user: String,
    /// Where the process starts; empty for `/`.
    pub working_dir: String,
}

/// An image that is ready to run from.
#[derive(Debug, Clone)]
pub struct PreparedImage {
    /// Names the content; two images with the same id are the same.
    pub id: Digest,
    /// The image's files, never written to.
    pub root: PathBuf,
    /// The same files as folders to stack, from top to bottom; never empty.
    pub layers: Vec<PathBuf>,
    /// What to run.
    pub process: ImageProcess,
}

/// Where images come from.
#[async_trait]
pub trait ImageSource: Send + Sync + std::fmt::Debug + 'static {
    /// The id of an image that is here already, or nothing. Quick: no network.
    ///
    /// # Errors
    /// A sentence for people, when the store cannot be read.
    async fn resolve(&self, image: &ImageRef) -> Result<Option<Digest>, String>;

    /// Makes the image's files available: what `pinned` names when it is still here, else what
    /// the reference names now, pulled when it must be, with these credentials if there are any.
    ///
    /// # Errors
    /// A sentence for people: what was tried, what failed, what to do.
    async fn prepare(
        &self,
        image: &ImageRef,
        pinned: Option<&Digest>,
        credentials: Option<&RegistryCredentials>,
    ) -> Result<PreparedImage, String>;
}

#[async_trait]
impl ImageSource for ImageStore {
    async fn resolve(&self, image: &ImageRef) -> Result<Option<Digest>, String> {
        let found = Self::resolve(self, image).await.map_err(|error| chain(&error))?;
        Ok(found.map(|image| image.id))
    }

    async fn prepare(
        &self,
        image: &ImageRef,
        pinned: Option<&Digest>,
        credentials: Option<&RegistryCredentials>,
    ) -> Result<PreparedImage, String> {
        let found = match pinned {
            // The store finds an image by its id below any name.
            Some(id) => match format!("x@{id}").parse() {
                Ok(by_id) => Self::resolve(self, &by_id).await.map_err(|error| chain(&error))?,
                Err(_) => None,
            },
            None => None,
        };
        let found = if let Some(found) = found {
            found
        } else {
            let progress = |line: &str| tracing::info!(%image, line, "fetching an image");
            self.ensure_as(image, credentials, &progress).await.map_err(|error| chain(&error))?
        };
        let root = self.mount(&found).await.map_err(|error| chain(&error))?;
        let layers = self.layers(&found, &root).map_err(|error| chain(&error))?;
        let Image { id, config, .. } = found;
        let process = ImageProcess {
            env: config.env,
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            user: config.user,
            working_dir: config.working_dir,
        };
        Ok(PreparedImage { id, root, layers, process })
    }
}

/// An error with its causes, as one sentence.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
