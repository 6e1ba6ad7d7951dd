//! Asynchronous calls on record: what is to be called, what came of it, who is still to be told.
//!
//! [`CallStore`] is what the queue asks of whoever keeps calls. [`SqliteCallStore`] keeps them in a
//! database file of their own; another home needs a [`CallIndex`] to look things up in.
//!
//! A worker leases a call before it makes it: the lease carries a moment, and one that is not
//! renewed until then lets the call go to another worker. Every write about a leased call names its
//! attempt, so that a worker who lost its lease changes nothing. Which call is made when, and what
//! an answer means, is decided elsewhere.

mod callback;
mod form;
mod index;
mod lease;
mod list;
mod port;
mod record;
mod sqlite;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use updraft_model::{FunctionId, OwnerName};

use crate::BlobName;

pub use callback::{CallbacksDue, LeasedCallback};
pub use index::{CallIndex, IndexEntry};
pub use lease::{Attempt, LeasedCall, Leases, Lost, Outcome};
pub use list::{CallFilter, Expiry};
pub use port::{BodyPieces, BodyWriter, CallStore};
pub use record::{CallRecord, CallResult, CallState, CallbackRecord, CallbackState};
pub use sqlite::SqliteCallStore;

/// Longest call id.
const ID_MAX: usize = 128;

/// The name of one call, the same on every attempt and in every log.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(Arc<str>);

/// The text is no call id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a call id is 1 to {ID_MAX} letters, digits and `-_.:`")]
pub struct ParseCallIdError;

impl CallId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CallId {
    type Err = ParseCallIdError;

    fn from_str(text: &str) -> Result<Self, ParseCallIdError> {
        let fits =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
        if (1..=ID_MAX).contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(text.into()))
        } else {
            Err(ParseCallIdError)
        }
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// What is sent to the function, but for the body.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// Raw path and query below the function.
    pub target: String,
    /// The caller's headers.
    pub headers: HeaderMap,
    /// Who asked.
    pub client: Client,
}

/// Who asked for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// The address.
    pub address: IpAddr,
    /// Whether the request came over TLS.
    pub tls: bool,
    /// Whether the right to call was settled when the call was accepted.
    pub authorized: bool,
}

/// Where a request body is.
#[derive(Debug, Clone)]
pub enum StoredBody {
    /// In the record.
    Inline(Bytes),
    /// In a blob of so many bytes.
    Blob(BlobName, u64),
}

impl StoredBody {
    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Blob(_, length) => *length,
        }
    }
}

/// A call to be kept.
#[derive(Debug, Clone)]
pub struct CallToAdd {
    /// The wanted id, and the one it gets when another call has the wanted one.
    pub ids: [CallId; 2],
    /// Whom to call.
    pub function: FunctionId,
    /// Whose function that is, if anybody's.
    pub owner: Option<OwnerName>,
    /// The queue's name, for lists and metrics.
    pub queue: String,
    /// What to send.
    pub head: RequestHead,
    /// What to send after it.
    pub body: StoredBody,
    /// Whom to tell.
    pub callback: Option<String>,
}

/// How many calls of a function wait or run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The function.
    pub function: FunctionId,
    /// Whose it is, if anybody's.
    pub owner: Option<OwnerName>,
    /// The queue's name.
    pub queue: String,
    /// How many.
    pub calls: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// When the first of them is due.
    pub due: Timestamp,
    /// When the oldest of them came.
    pub oldest: Timestamp,
}
