//! Sealed secrets: values that only this platform can read, safe to commit beside the code.
//!
//! A `SealedSecret` names a place (namespace and name) and holds items, each sealed for itself
//! with a public certificate. [`KeyRing`] holds the private keys and opens them; [`seal`] and
//! [`SealedFile`] write them, for which a [`Certificate`] is enough. Values, resources and key
//! backups are those of Bitnami's controller and `kubeseal`, so files and tools of either work
//! with the other.
//!
//! Nothing here is asynchronous, and nothing but [`KeyRing`] touches the disk. Opened values live
//! in [`SecretBytes`], are wiped when dropped, and have no way into a log. Whether an owner may
//! have a secret of that name is the caller's to judge.

mod backup;
mod bytes;
mod certificate;
mod document;
mod edit;
mod exchange;
mod fingerprint;
mod key;
mod limits;
mod locate;
mod metrics;
mod pem;
mod ring;
mod scope;
mod seal;
mod template;
mod tree;
mod unseal;
mod value;
mod write;

pub use backup::{BackupError, BackupFrom, BackupTo, RestoreError, back_up, read_backup};
pub use bytes::SecretBytes;
pub use certificate::{Certificate, CertificateError};
pub use document::{
    Document, Item, ItemFault, LegacyData, OtherDocument, ParseError, ParseErrorKind, Place,
    PlainSecret, SealedSecret, Template, Unreadable, parse_documents, parse_each, parse_secrets,
};
pub use edit::{EditError, SealedFile};
pub use exchange::{ImportError, export_keys, import_keys};
pub use key::{KeyError, PrivateKey};
pub use limits::Limits;
pub use metrics::{ErrorReason, SealMetrics};
pub use ring::{
    KeyFileError, KeyInfo, KeyOrder, KeyPair, KeyRing, KeyRingError, KeyRingOptions, KeyState,
    MachineKey, ResealError,
};
pub use scope::{Scope, ScopeError};
pub use seal::{Draft, SealError, seal};
pub use tree::Format;
pub use unseal::{
    Hints, ItemFailure, OPAQUE_REASON, OpenedSecret, OpeningKey, Unopened, UnsealError, Why,
    unseal_with_keys,
};
pub use value::{SealValueError, ValueError, seal_value};
