//! The record of a call as it lies in a header of its messages.
//!
//! Headers, because then the index can follow the streams without a single body.

use std::time::Duration;

use async_nats::HeaderMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use updraft_model::{FunctionId, FunctionName, Namespace, OwnerName};
use updraft_store::queue::{
    CallId, CallRecord, CallState, CallbackRecord, CallbackState, IndexEntry,
};

/// The header with the record.
const RECORD: &str = "Updraft-Record";

/// The header that says that a call is forgotten: its number.
const FORGOTTEN: &str = "Updraft-Forgotten";

/// Which instance wrote this.
const BY: &str = "Updraft-By";

/// The version of the form that is written.
const FORM: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Form {
    v: u32,
    number: i64,
    id: String,
    function: FunctionName,
    namespace: Namespace,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<OwnerName>,
    queue: String,
    state: CallState,
    attempts: u32,
    due: i64,
    created: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished: Option<i64>,
    method: String,
    target: String,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_micros: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback: Option<CallbackForm>,
    request: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    origin: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct CallbackForm {
    url: String,
    state: CallbackState,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// What a message of the record says.
#[derive(Debug)]
pub(crate) enum Said {
    /// The call is so.
    Is(Box<IndexEntry>),
    /// The call of that number is forgotten.
    Forgotten(i64),
}

/// Puts the record into a message's headers.
pub(crate) fn write(headers: &mut HeaderMap, entry: &IndexEntry, by: &str) -> Result<(), String> {
    let call = &entry.record;
    let form = Form {
        v: FORM,
        number: call.number,
        id: call.id.to_string(),
        function: call.function.name.clone(),
        namespace: call.function.namespace.clone(),
        owner: call.owner.clone(),
        queue: call.queue.clone(),
        state: call.state,
        attempts: call.attempts,
        due: call.due.as_millisecond(),
        created: call.created_at.as_millisecond(),
        finished: call.finished_at.map(Timestamp::as_millisecond),
        method: call.method.clone(),
        target: call.target.clone(),
        length: call.body_length,
        status: call.status,
        reason: call.reason.clone(),
        took_micros: call.took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
        callback: call.callback.as_ref().map(|callback| CallbackForm {
            url: callback.url.clone(),
            state: callback.state,
            attempts: callback.attempts,
            due: entry.callback_due.map(Timestamp::as_millisecond),
            reason: callback.reason.clone(),
        }),
        request: entry.request,
        body: entry.body.as_ref().map(ToString::to_string),
        origin: entry.origin.clone(),
        holder: entry.holder.clone(),
        hold: entry.hold.clone(),
    };
    let text = serde_json::to_string(&form).map_err(|error| error.to_string())?;
    headers.insert(RECORD, text);
    headers.insert(BY, by);
    Ok(())
}

/// Puts the end of a record into a message's headers.
pub(crate) fn write_forgotten(headers: &mut HeaderMap, number: i64, by: &str) {
    headers.insert(FORGOTTEN, number.to_string());
    headers.insert(BY, by);
}

/// The instance that wrote the message, if one of ours did.
pub(crate) fn by(headers: &HeaderMap) -> Option<&str> {
    headers.get(BY).map(async_nats::HeaderValue::as_str)
}

/// Reads what a message says of a call; nothing when it says nothing, as another producer's does.
pub(crate) fn read(headers: &HeaderMap, revision: u64) -> Result<Option<Said>, String> {
    if let Some(number) = headers.get(FORGOTTEN) {
        let number = number.as_str().parse().map_err(|_| "its number is none".to_owned())?;
        return Ok(Some(Said::Forgotten(number)));
    }
    let Some(text) = headers.get(RECORD) else { return Ok(None) };
    let form: Form = serde_json::from_str(text.as_str()).map_err(|error| error.to_string())?;
    if form.v != FORM {
        return Err(format!("its form {} is not the known form {FORM}", form.v));
    }
    let id: CallId = form.id.parse().map_err(|_| "its id is none".to_owned())?;
    let moment = |millis: i64| Timestamp::from_millisecond(millis).unwrap_or_default();
    let callback_due = form.callback.as_ref().and_then(|callback| callback.due).map(moment);
    let record = CallRecord {
        number: form.number,
        id,
        function: FunctionId { name: form.function, namespace: form.namespace },
        owner: form.owner,
        queue: form.queue,
        state: form.state,
        attempts: form.attempts,
        due: moment(form.due),
        created_at: moment(form.created),
        finished_at: form.finished.map(moment),
        method: form.method,
        target: form.target,
        body_length: form.length,
        status: form.status,
        reason: form.reason,
        took: form.took_micros.map(Duration::from_micros),
        callback: form.callback.map(|callback| CallbackRecord {
            url: callback.url,
            state: callback.state,
            attempts: callback.attempts,
            reason: callback.reason,
        }),
    };
    Ok(Some(Said::Is(Box::new(IndexEntry {
        record,
        callback_due,
        revision,
        request: form.request,
        body: form.body.and_then(|body| body.parse().ok()),
        origin: form.origin,
        holder: form.holder,
        hold: form.hold,
    }))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first form as it lies in streams; it can be read for ever.
    const FIRST: &str = include_str!("../tests/samples/record_v1.json");

    fn first() -> IndexEntry {
        let mut headers = HeaderMap::new();
        headers.insert(RECORD, FIRST.trim());
        match read(&headers, 9).unwrap() {
            Some(Said::Is(entry)) => *entry,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_form_is_read_for_ever() {
        let entry = first();
        assert_eq!((entry.record.id.as_str(), entry.record.number), ("one", 3));
        assert_eq!((entry.record.state, entry.record.attempts), (CallState::Dead, 11));
        assert_eq!(entry.record.owner, "alice".parse().ok());
        assert_eq!(entry.record.took, Some(Duration::from_micros(1500)));
        assert_eq!(entry.record.callback.as_ref().unwrap().state, CallbackState::Pending);
        assert_eq!(entry.callback_due.unwrap().as_second(), 1_763_712_010);
        assert_eq!((entry.revision, entry.request), (9, 0));
        assert_eq!(entry.body.unwrap().as_str(), "bodies/01ab");
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let entry = first();
        let mut headers = HeaderMap::new();
        write(&mut headers, &entry, "me").unwrap();
        assert_eq!(by(&headers), Some("me"));
        match read(&headers, 9).unwrap() {
            Some(Said::Is(read)) => assert_eq!(*read, entry),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_newer_form_is_refused_and_another_producers_message_says_nothing() {
        let mut headers = HeaderMap::new();
        assert!(read(&headers, 1).unwrap().is_none());
        headers.insert(RECORD, FIRST.trim().replacen("\"v\":1", "\"v\":2", 1));
        assert!(read(&headers, 1).unwrap_err().contains("form 2"));
        let mut headers = HeaderMap::new();
        write_forgotten(&mut headers, 7, "me");
        assert!(matches!(read(&headers, 1), Ok(Some(Said::Forgotten(7)))));
    }
}
