//! What the pipeline is made of and how it may be set.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use updraft_builder::{BuildLimits, Builder};
use updraft_engine::Engine;
use updraft_model::{FunctionName, FunctionSpec, OwnerName, ResourceSet};
use updraft_source::context::ContextLimits;
use updraft_source::git::ContentLimits;
use updraft_source::template::Templates;
use updraft_store::Store;

use crate::housekeeper::NoRoom;
use crate::sealed::Unsealer;

/// Tells where an owner's function is called.
pub type UrlOf = Arc<dyn Fn(&OwnerName, &FunctionName) -> String + Send + Sync>;

/// What a function's labels and annotations get wrong.
pub type MistakesOf = Arc<dyn Fn(&FunctionSpec) -> Vec<String> + Send + Sync>;

/// Makes sure that the disk has room for a build, collecting what is not needed when it has not.
pub type MakeRoom = Arc<dyn Fn() -> BoxFuture<'static, Result<(), NoRoom>> + Send + Sync>;

/// What a pipeline works with.
pub struct PipelineParts {
    /// Where everything is recorded.
    pub store: Store,
    /// What runs the functions.
    pub engine: Arc<dyn Engine>,
    /// What builds their images.
    pub builder: Arc<dyn Builder>,
    /// The languages.
    pub templates: Templates,
    /// What opens sealed secrets.
    pub unsealer: Arc<dyn Unsealer>,
    /// The folder of bare repositories, `<owner>/<repository>.git`.
    pub repositories: PathBuf,
    /// The folder for work in progress; its content is the pipeline's alone.
    pub work: PathBuf,
    /// How it is set.
    pub options: PipelineOptions,
}

impl fmt::Debug for PipelineParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipelineParts").field("work", &self.work).finish_non_exhaustive()
    }
}

/// How a pipeline is set. Start from [`PipelineOptions::new`].
#[derive(Clone)]
pub struct PipelineOptions {
    /// Branches whose pushes go live; when empty, a repository's first pushed branch is its live
    /// branch.
    pub live_branches: Vec<String>,
    /// Builds at once.
    pub parallel_builds: usize,
    /// Pushes worked on at once; more wait.
    pub parallel_pushes: usize,
    /// Functions of one push deployed at once.
    pub parallel_deployments: usize,
    /// Pushes of one owner that may wait or be worked on; more are refused.
    pub max_waiting_per_owner: usize,
    /// What a build may use.
    pub build_limits: BuildLimits,
    /// What a checkout may use.
    pub checkout_limits: ContentLimits,
    /// What a build context may use.
    pub context_limits: ContextLimits,
    /// Limits of a function that sets none.
    pub default_limits: ResourceSet,
    /// Most memory that a function may ask for, in bytes.
    pub max_memory_bytes: u64,
    /// Most processor time that a function may ask for, in thousandths of a core.
    pub max_millicores: u64,
    /// Most replicas that a function may ask for.
    pub max_replicas: u32,
    /// How long a new release may take to become ready.
    pub ready_limit: Duration,
    /// Releases of a function that are kept, besides the live one.
    pub keep_releases: u32,
    /// Pushes of a repository whose events are kept.
    pub keep_stories: u32,
    /// Build logs of a function that are kept.
    pub keep_build_logs: u32,
    /// Longest build log that is kept, in bytes.
    pub max_build_log_bytes: u64,
    /// Whether sealed values may be bound to a namespace or to nothing, not to one name. Then
    /// whoever can read a repository can have its values opened as their own.
    pub wider_scopes: bool,
    /// Asked before each build, where somebody keeps the disk from filling.
    pub make_room: Option<MakeRoom>,
    /// Where an owner's function is called.
    pub url: UrlOf,
    /// Tells what a function's labels and annotations get wrong, one sentence each.
    pub mistakes: MistakesOf,
}

impl fmt::Debug for PipelineOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipelineOptions")
            .field("live_branches", &self.live_branches)
            .field("parallel_builds", &self.parallel_builds)
            .finish_non_exhaustive()
    }
}

impl PipelineOptions {
    /// Settings for one small machine: two builds at once, each of at most ten minutes and 1 GiB of
    /// memory; functions of 128 MiB unless they ask for more, at most 1 GiB and 2 cores.
    pub fn new(url: UrlOf) -> Self {
        let memory = "128Mi".parse().ok();
        Self {
            live_branches: Vec::new(),
            parallel_builds: 2,
            parallel_pushes: 16,
            parallel_deployments: 4,
            max_waiting_per_owner: 20,
            build_limits: BuildLimits {
                time: Duration::from_mins(10),
                memory_bytes: 1 << 30,
                disk_bytes: 4 << 30,
                files: 1_000_000,
                processes: 512,
            },
            checkout_limits: ContentLimits::default(),
            context_limits: ContextLimits::default(),
            default_limits: ResourceSet { memory, ..ResourceSet::default() },
            max_memory_bytes: 1 << 30,
            max_millicores: 2_000,
            max_replicas: 20,
            ready_limit: Duration::from_mins(1),
            keep_releases: 10,
            keep_stories: 100,
            keep_build_logs: 20,
            max_build_log_bytes: 8 << 20,
            wider_scopes: false,
            make_room: None,
            url,
            mistakes: Arc::new(|_| Vec::new()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn options(url: UrlOf) -> PipelineOptions {
        PipelineOptions::new(url)
    }
}
