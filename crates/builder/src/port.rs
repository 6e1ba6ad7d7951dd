//! The port: what every back end that builds images can do.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use updraft_model::{Digest, ImageRef};

use crate::BuildError;
use crate::network::Egress;

/// Takes the output of a build: one line a call, without its end, without escape sequences and
/// of bounded length. It is called from the build's own thread of work and must not block.
pub type LineSink = Arc<dyn Fn(&str) + Send + Sync>;

/// What is built, under which name and within which limits.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Folder with a `Dockerfile` and everything it copies.
    pub context: PathBuf,
    /// Digest of everything in that folder.
    pub context_digest: Digest,
    /// Name that the image gets in the store.
    pub tag: ImageRef,
    /// Build arguments (`ARG`).
    pub build_args: BTreeMap<String, String>,
    /// How far the build may go.
    pub limits: BuildLimits,
    /// Ends the build early, with [`BuildError::Cancelled`].
    pub cancel: CancellationToken,
}

/// How far one build may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildLimits {
    /// Time for the whole build.
    pub time: Duration,
    /// Memory of all its processes together.
    pub memory_bytes: u64,
    /// Growth of the image store's disk use while it runs. Builds that run at the same time share
    /// the disk, so this is a bound for each of them and not an account of one.
    pub disk_bytes: u64,
    /// Files that come to be on the store's disk while it runs, as far as the file system counts
    /// them; bounds each of several builds, as the bytes do.
    pub files: u64,
    /// Processes and threads at one time.
    pub processes: u32,
}

/// What all builds of a builder may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildPolicy {
    /// What they may reach.
    pub egress: Egress,
    /// Owners whose local images (`localhost/<owner>/…`) everybody may build on.
    pub shared_owners: Vec<String>,
}

impl Default for BuildPolicy {
    /// The world outside, and the platform's own base images.
    fn default() -> Self {
        Self { egress: Egress::Open, shared_owners: vec!["updraft".to_owned()] }
    }
}

/// An image that a build made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltImage {
    /// Name in the store. A later build may take it; [`id`](Self::id) never changes its meaning.
    pub image: ImageRef,
    /// Digest of the image's configuration.
    pub id: Digest,
}

/// Builds images. Implementations are shared by all builds that run at the same time.
#[async_trait]
pub trait Builder: Send + Sync + Debug + 'static {
    /// Digest of everything that the build's result depends on: context, arguments and the images
    /// it starts from. These images are fetched or made first, which may take a minute and tells
    /// of it through `output`.
    async fn key(&self, request: &BuildRequest, output: &LineSink) -> Result<Digest, BuildError>;

    /// Builds. Dropping the future ends the build and all its processes.
    async fn build(
        &self,
        request: &BuildRequest,
        output: &LineSink,
    ) -> Result<BuiltImage, BuildError>;

    /// Whether the image of an earlier build is still here.
    async fn exists(&self, image: &BuiltImage) -> Result<bool, BuildError>;
}
