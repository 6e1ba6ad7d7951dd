//! Why the queue did not do what it was asked.

use std::error::Error as StdError;

use http::StatusCode;
use thiserror::Error;
use updraft_model::FunctionId;
use updraft_store::StoreError;

/// The queue failed. Never the fault of a tenant: the machine's (disk, permissions) or ours.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The record of calls cannot be read or written.
    #[error("the record of calls cannot be used")]
    Store(#[from] StoreError),
    /// The file of certificates cannot be read. The operator's fault.
    #[error("cannot read the certificates that callbacks are to believe{}, check `queue.callback_roots`", path.as_ref().map_or_else(String::new, |path| format!(" in `{}`", path.display())))]
    Roots {
        /// Which file.
        path: Option<std::path::PathBuf>,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl QueueError {
    /// Whether trying again in a moment makes sense: what keeps the calls is away.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_unavailable())
    }
}

/// Why a call was not accepted; nothing of it is kept.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// There is no such function. The caller's fault.
    #[error("function `{0}` does not exist")]
    UnknownFunction(FunctionId),
    /// The request cannot be made of any function. The caller's fault.
    #[error("{0}")]
    Request(String),
    /// The body is too long. The caller's fault.
    #[error("the body is longer than {limit} bytes, the most that an asynchronous call may have")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The body stopped coming. The caller's fault.
    #[error("the body stopped before its end")]
    Stalled,
    /// The caller broke off. The caller's fault.
    #[error("the body could not be read to its end")]
    Body(#[source] Box<dyn StdError + Send + Sync>),
    /// Too much waits already. Try again later.
    #[error("{what}, try again later")]
    Full {
        /// What there is too much of.
        what: String,
    },
    /// The queue is about to stop. Try again later.
    #[error("the queue is stopping, try again in a moment")]
    Stopping,
    /// What keeps the calls has not been reached yet. Try again later.
    #[error("what keeps asynchronous calls cannot be reached, try again in a moment")]
    Away,
    /// The machine's fault.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

impl SubmitError {
    /// The status that tells a caller of it.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::UnknownFunction(_) => StatusCode::NOT_FOUND,
            Self::Request(_) | Self::Body(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Stalled => StatusCode::REQUEST_TIMEOUT,
            Self::Full { .. } => StatusCode::TOO_MANY_REQUESTS,
            // The call is not durable, and may be once the disk or the broker is well again.
            Self::Stopping | Self::Away | Self::Queue(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Seconds after which trying again makes sense, where it does.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            Self::Full { .. } => Some(10),
            Self::Stopping => Some(2),
            Self::Away | Self::Queue(_) => Some(5),
            _ => None,
        }
    }
}

impl From<StoreError> for SubmitError {
    fn from(error: StoreError) -> Self {
        Self::Queue(error.into())
    }
}
