//! Why the pipeline refused something.

use std::path::PathBuf;

use thiserror::Error;
use updraft_builder::BuildError;
use updraft_engine::EngineError;
use updraft_model::{FunctionName, OwnerName};
use updraft_store::{EnsureOwnerError, StoreError};

/// Why the pipeline did not start. The machine's or the operator's fault.
#[derive(Debug, Error)]
pub enum StartError {
    /// The work folder cannot be used.
    #[error("cannot use the work folder `{path}`, check its permissions and the free space", path = path.display())]
    Work {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What was under way could not be read.
    #[error("cannot read what was under way")]
    Store(#[from] StoreError),
}

/// Why a push was not taken.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// The owner cannot exist here, or the store failed.
    #[error(transparent)]
    Owner(#[from] EnsureOwnerError),
    /// The commit is no commit id. The caller's fault.
    #[error("`{0}` is no commit id, expected 40 or 64 hex digits")]
    Commit(String),
    /// The reference is not a full ref name. The caller's fault.
    #[error("`{0}` is no ref, expected for instance `refs/heads/main`")]
    Reference(String),
    /// The owner has too much under way. Try again later.
    #[error(
        "{owner} has {waiting} pushes under way already, wait until one of them is over and push again"
    )]
    Busy {
        /// Who.
        owner: OwnerName,
        /// How many.
        waiting: usize,
    },
    /// The pipeline is shutting down. Try again later.
    #[error("Updraft is shutting down, push again in a moment")]
    ShuttingDown,
}

impl From<StoreError> for SubmitError {
    fn from(error: StoreError) -> Self {
        Self::Owner(error.into())
    }
}

/// Why a function does not run another release.
#[derive(Debug, Error)]
pub enum RollbackError {
    /// The owner has no such function.
    #[error("{owner} has no function `{function}`, see `updraft list`")]
    UnknownFunction {
        /// Whose.
        owner: OwnerName,
        /// Which.
        function: FunctionName,
    },
    /// Nothing of it is live, so that there is nothing to go back from.
    #[error("`{function}` has no live release, push it first")]
    NothingLive {
        /// Which.
        function: FunctionName,
    },
    /// There is no release before the live one.
    #[error("`{function}` has no release before v{live}, see `updraft releases`")]
    NothingEarlier {
        /// Which.
        function: FunctionName,
        /// The number of the live release.
        live: u64,
    },
    /// There is no such release, or it was dropped for age.
    #[error("`{function}` has no release v{number}, see `updraft releases`")]
    UnknownRelease {
        /// Which function.
        function: FunctionName,
        /// Which release.
        number: u64,
    },
    /// The release is on record and its image was collected.
    #[error(
        "the image of v{number} of `{function}` was removed for age or space, so it cannot be gone \
         back to: push commit {commit} again, or choose one that `updraft releases` shows as kept"
    )]
    Collected {
        /// Which function.
        function: FunctionName,
        /// Which release.
        number: u64,
        /// The commit that it was built from.
        commit: String,
    },
    /// The image of the release cannot be looked up.
    #[error("the image of v{number} of `{function}` cannot be looked up")]
    Image {
        /// Which function.
        function: FunctionName,
        /// Which release.
        number: u64,
        /// Why.
        #[source]
        source: Box<BuildError>,
    },
    /// What runs under that name is not this owner's.
    #[error("{0}")]
    Foreign(String),
    /// The release does not run; what served before still serves.
    #[error("v{number} of `{function}` does not run, what served before still serves")]
    Engine {
        /// Which function.
        function: FunctionName,
        /// Which release.
        number: u64,
        /// Why.
        #[source]
        source: Box<EngineError>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a function was not removed.
#[derive(Debug, Error)]
pub enum RemoveError {
    /// The owner has no such function.
    #[error("{owner} has no function `{function}`, see `updraft list`")]
    UnknownFunction {
        /// Whose.
        owner: OwnerName,
        /// Which.
        function: FunctionName,
    },
    /// What runs under that name is not this owner's.
    #[error("{0}")]
    Foreign(String),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
