//! The JSON of asynchronous calls.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use updraft_model::OwnerName;
use updraft_queue::{CallState, CallbackState};

use super::Hidden;

/// An asynchronous call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Its name: the call id.
    pub id: String,
    /// Its place in the record, for `before=`.
    pub number: i64,
    /// The function, `<name>.<namespace>`.
    pub function: String,
    /// Whose function; absent for one that came through the OpenFaaS API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerName>,
    /// The queue's name.
    pub queue: String,
    /// Where it is on its way.
    pub state: CallState,
    /// Attempts begun so far.
    pub attempts: u32,
    /// When the next attempt may begin, while it is queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// The method.
    pub method: String,
    /// Path and query below the function.
    pub path: String,
    /// Bytes of its body.
    pub body_length: u64,
    /// The status of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why the last attempt did not do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long the last attempt took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_seconds: Option<f64>,
    /// Whoever is to be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<Callback>,
}

/// Whoever is told of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// The address.
    pub url: String,
    /// Whether they were told.
    pub state: CallbackState,
    /// Attempts begun so far.
    pub attempts: u32,
    /// Why the last attempt did not do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a function answered to an asynchronous call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallResult {
    /// The status.
    pub status: Option<u16>,
    /// The headers, in order.
    pub headers: Vec<(String, String)>,
    /// The body, or its beginning, in Base64.
    pub body: String,
    /// The length of the whole body.
    pub length: u64,
    /// Whether the body here is not the whole one.
    pub cut: bool,
}

impl CallResult {
    /// The body's bytes; nothing when they cannot be decoded.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.body).ok()
    }
}

/// How many dead letters are made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redriven {
    /// So many.
    pub calls: u64,
}

/// The key that signs an owner's callbacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallbackKey {
    /// The HMAC key, as text.
    pub key: Hidden,
}

impl From<updraft_queue::CallRecord> for Call {
    fn from(call: updraft_queue::CallRecord) -> Self {
        let callback = call.callback.map(|callback| Callback {
            url: callback.url,
            state: callback.state,
            attempts: callback.attempts,
            reason: callback.reason,
        });
        Self {
            id: call.id.to_string(),
            number: call.number,
            function: call.function.to_string(),
            owner: call.owner,
            queue: call.queue,
            state: call.state,
            attempts: call.attempts,
            next_attempt_at: (call.state == CallState::Queued).then_some(call.due),
            created_at: call.created_at,
            finished_at: call.finished_at,
            method: call.method,
            path: call.target,
            body_length: call.body_length,
            status: call.status,
            reason: call.reason,
            took_seconds: call.took.map(|took| took.as_secs_f64()),
            callback,
        }
    }
}

impl From<updraft_queue::CallResult> for CallResult {
    fn from(result: updraft_queue::CallResult) -> Self {
        let cut = result.is_cut();
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers = result.headers.iter();
        Self {
            status: result.record.status,
            headers: headers
                .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
                .collect(),
            body: STANDARD.encode(&result.body),
            length: result.length,
            cut,
        }
    }
}
