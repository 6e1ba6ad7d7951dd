//! What the engine asks of whatever keeps images: a root folder and the process in it.

use std::path::PathBuf;

use async_trait::async_trait;
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
    /// the reference names now, pulled when it must be.
    ///
    /// # Errors
    /// A sentence for people: what was tried, what failed, what to do.
    async fn prepare(
        &self,
        image: &ImageRef,
        pinned: Option<&Digest>,
    ) -> Result<PreparedImage, String>;
}
