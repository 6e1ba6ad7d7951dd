//! What can go wrong in an engine, whose fault it is, and whether trying again can help.

use std::error::Error as StdError;
use std::io;

use thiserror::Error;
use updraft_model::{FunctionId, Namespace, SecretName, SpecError};

/// Who has to change something for the call to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Whoever made the call.
    Caller,
    /// The tenant's function: its image or its process.
    Function,
    /// The engine or the machine below it.
    Engine,
}

/// Why an engine did not do what it was asked.
#[derive(Debug, Error)]
pub enum EngineError {
    /// There is no such function.
    #[error("function `{0}` does not exist")]
    UnknownFunction(FunctionId),
    /// There is no such namespace, or it may not hold functions.
    #[error("namespace `{0}` does not exist")]
    UnknownNamespace(Namespace),
    /// The namespace is there already.
    #[error("namespace `{0}` exists already")]
    NamespaceExists(Namespace),
    /// There is no such secret.
    #[error("secret `{name}` does not exist in namespace `{namespace}`")]
    UnknownSecret {
        /// Where it was looked for.
        namespace: Namespace,
        /// Its name.
        name: SecretName,
    },
    /// The secret is there already.
    #[error("secret `{name}` exists already in namespace `{namespace}`")]
    SecretExists {
        /// Where it is.
        namespace: Namespace,
        /// Its name.
        name: SecretName,
    },
    /// The spec names secrets that do not exist; create them first.
    #[error("secrets missing in namespace `{namespace}`: {}", names.iter().map(SecretName::as_str).collect::<Vec<_>>().join(", "))]
    MissingSecrets {
        /// Where they were looked for.
        namespace: Namespace,
        /// Those that are not there.
        names: Vec<SecretName>,
    },
    /// The request cannot be carried out as it stands, for the reason given.
    #[error("{0}")]
    Invalid(String),
    /// The spec cannot be run.
    #[error(transparent)]
    InvalidSpec(#[from] SpecError),
    /// The image could not be found or read.
    #[error("image `{image}` cannot be used: {reason}")]
    Image {
        /// The reference that was asked for.
        image: String,
        /// What was tried and what failed, with what to do.
        reason: String,
    },
    /// The revision did not become ready.
    #[error("function `{id}` did not become ready: {reason}")]
    NotReady {
        /// Which function.
        id: FunctionId,
        /// What was seen last, for instance the exit status.
        reason: String,
        /// The last lines the replica wrote, oldest first.
        log_tail: Vec<String>,
    },
    /// A newer spec was applied while this one was waited for.
    #[error("function `{0}` was changed again meanwhile")]
    Superseded(FunctionId),
    /// The engine or the machine failed.
    #[error("the engine could not {doing}")]
    Engine {
        /// What was attempted, on which object, as the end of the sentence.
        doing: String,
        /// Why it failed.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl EngineError {
    /// Wraps a failure of the engine itself: `doing` ends the sentence "the engine could not …".
    pub fn engine(
        doing: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::Engine { doing: doing.into(), source: source.into() }
    }

    /// Whose fault it is.
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Image { .. } | Self::NotReady { .. } => Fault::Function,
            Self::Engine { .. } => Fault::Engine,
            _ => Fault::Caller,
        }
    }

    /// Whether the engine failed because its disk is full: nothing was changed, and the same call
    /// works once there is space.
    pub fn is_for_want_of_space(&self) -> bool {
        let causes = std::iter::successors(self.source(), |error| (**error).source());
        causes.filter_map(|error| error.downcast_ref::<io::Error>()).any(|error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        })
    }

    /// Whether the same call may work later with nobody changing anything.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Engine { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_found_wherever_it_lies_below_a_failure() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert!(EngineError::engine("record it", full()).is_for_want_of_space());
        let deeper = EngineError::engine("apply it", EngineError::engine("record it", full()));
        assert!(deeper.is_for_want_of_space());
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(!EngineError::engine("record it", other).is_for_want_of_space());
        assert!(!EngineError::Invalid("the disk is full".to_owned()).is_for_want_of_space());
    }
}
