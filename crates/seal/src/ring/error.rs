//! Why the ring cannot be opened or changed, or a secret not sealed again.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::{KEYS_MAX, KeyFileError};
use crate::seal::SealError;
use crate::{KeyError, UnsealError};

/// The ring cannot be opened or changed.
#[derive(Debug, Error)]
pub enum KeyRingError {
    /// The machine's fault.
    #[error("cannot use the folder of keys `{path}`, check its permissions", path = path.display())]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file in it cannot be used.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// A key cannot be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There is none, and none may be made.
    #[error("there is no key yet; start the server once, or restore a backup")]
    Empty,
    /// No key has this fingerprint.
    #[error("there is no key `{wanted}`; `updraft keys list` shows them")]
    Unknown {
        /// What was asked for.
        wanted: String,
    },
    /// Several keys begin like this.
    #[error("several keys begin with `{wanted}`; give more of the fingerprint")]
    Ambiguous {
        /// What was asked for.
        wanted: String,
    },
    /// It is the key that seals.
    #[error(
        "the key `{fingerprint}` is the one that seals; make a new one first (`updraft keys renew`)"
    )]
    Current {
        /// Which key.
        fingerprint: String,
    },
    /// There are too many.
    #[error("there are more than {KEYS_MAX} keys")]
    TooMany,
}

/// A secret cannot be sealed again.
#[derive(Debug, Error)]
pub enum ResealError {
    /// It does not open.
    #[error(transparent)]
    Unseal(#[from] UnsealError),
    /// It cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
}
