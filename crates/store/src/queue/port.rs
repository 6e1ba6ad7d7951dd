//! What the queue asks of whoever keeps calls.

use std::fmt;
use std::io;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use jiff::Timestamp;
use updraft_model::{FunctionId, OwnerName};

use super::{
    Attempt, CallFilter, CallId, CallRecord, CallResult, CallState, CallToAdd, CallbacksDue,
    Expiry, LeasedCallback, Leases, Outcome, Waiting,
};
use crate::BlobName;
use crate::error::StoreError;

/// A long body, piece by piece.
pub type BodyPieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send + Sync>>;

/// A long body on its way into keeping; dropped before [`finish`](BodyWriter::finish), nothing of
/// it stays for long.
#[async_trait]
pub trait BodyWriter: Send {
    /// Adds a piece.
    ///
    /// # Errors
    /// See [`StoreError`]; the writer is of no use after one.
    async fn append(&mut self, piece: Bytes) -> Result<(), StoreError>;

    /// Ends it; the body is kept when this returns.
    ///
    /// # Errors
    /// See [`StoreError`].
    async fn finish(self: Box<Self>) -> Result<BlobName, StoreError>;
}

/// Keeps calls: accepts them durably, leases them to workers, and remembers what came of them.
///
/// All methods fail for the keeper's reasons alone. One that fails with
/// [`StoreError::Unavailable`] may work in a moment. Whoever implements this promises that a call
/// that [`add`](CallStore::add) took is leased until an attempt ends it, and that of all who lease
/// the same call only the last one's word counts.
#[async_trait]
pub trait CallStore: fmt::Debug + Send + Sync {
    /// Takes back what an earlier process of this instance held, and removes what a crash left.
    /// Called before any lease, until it works once. Gives how many calls were taken back.
    async fn recover(&self) -> Result<usize, StoreError>;

    /// Every function that has calls waiting or running.
    async fn waiting(&self) -> Result<Vec<Waiting>, StoreError>;

    /// How many dead letters each function has.
    async fn dead(&self) -> Result<Vec<(FunctionId, u64)>, StoreError>;

    /// Begins a body that is too long to be kept with its call.
    async fn new_body(&self) -> Result<Box<dyn BodyWriter>, StoreError>;

    /// A long body from its beginning; nothing when it is gone.
    async fn open_body(&self, name: &BlobName) -> Result<Option<BodyPieces>, StoreError>;

    /// Removes a body whose call was not accepted.
    async fn remove_body(&self, name: BlobName);

    /// Keeps a call; it is durable when this returns. Gives the id it got and when it is due.
    async fn add(&self, call: CallToAdd) -> Result<(CallId, Timestamp), StoreError>;

    /// What is known of a call.
    async fn call(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError>;

    /// The kept answer of a call, when there is one.
    async fn result(&self, id: &CallId) -> Result<Option<CallResult>, StoreError>;

    /// The calls that the filter lets through, newest first.
    async fn calls(&self, filter: &CallFilter) -> Result<Vec<CallRecord>, StoreError>;

    /// Leases up to `count` calls of a function that are due, until `until`.
    async fn lease(
        &self,
        function: &FunctionId,
        count: usize,
        until: Timestamp,
    ) -> Result<Leases, StoreError>;

    /// Holds the calls until `until`.
    async fn renew(&self, held: Vec<Attempt>, until: Timestamp) -> Result<(), StoreError>;

    /// Gives a call back without having tried it: its attempt does not count. False when the lease
    /// was lost.
    async fn release(&self, attempt: Attempt, due: Timestamp) -> Result<bool, StoreError>;

    /// Puts a call back for another attempt. False when the lease was lost.
    async fn retry(
        &self,
        attempt: Attempt,
        due: Timestamp,
        outcome: Outcome,
    ) -> Result<bool, StoreError>;

    /// Ends a call, done or dead, and has its callback made if there is one. False when the lease
    /// was lost.
    async fn finish(
        &self,
        attempt: Attempt,
        state: CallState,
        outcome: Outcome,
    ) -> Result<bool, StoreError>;

    /// Gives up up to `count` waiting calls of a function that is no more. Returns how many there
    /// were, and the bytes of their bodies.
    async fn bury(
        &self,
        function: &FunctionId,
        reason: String,
        count: u32,
    ) -> Result<(u64, u64), StoreError>;

    /// Cancels a call that waits or runs; gives what it was before, and nothing when it is no such
    /// call.
    async fn cancel(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError>;

    /// Puts a dead letter back into the queue as if it had just come. Nothing when it is none.
    async fn redrive(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError>;

    /// Puts up to `count` dead letters that the filter lets through back, oldest first; those newer
    /// than `after` only, so that a caller who goes on comes to an end.
    async fn redrive_some(
        &self,
        filter: &CallFilter,
        after: i64,
        count: u32,
    ) -> Result<Vec<CallRecord>, StoreError>;

    /// Forgets a call that has ended. Nothing when it is none.
    async fn discard(&self, id: &CallId) -> Result<Option<CallRecord>, StoreError>;

    /// Forgets ended calls that are too old or too many, unless somebody is still to be told of
    /// them. Gives those that went; fewer than a step means that there are no more.
    async fn expire(&self, expiry: Expiry) -> Result<Vec<CallRecord>, StoreError>;

    /// When the oldest ended call ended, if there is one.
    async fn oldest_end(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Whose callbacks are to be made, and when the first of each is due.
    async fn callbacks_due(&self) -> Result<Vec<CallbacksDue>, StoreError>;

    /// Leases up to `count` callbacks of an owner's calls that are due, until `until`.
    async fn lease_callbacks(
        &self,
        owner: Option<&OwnerName>,
        count: u32,
        until: Timestamp,
    ) -> Result<Vec<LeasedCallback>, StoreError>;

    /// Notes that they were told. False when the lease was lost.
    async fn callback_delivered(&self, attempt: Attempt) -> Result<bool, StoreError>;

    /// Notes that they are to be told again at `due`, or never when there is no such moment. False
    /// when the lease was lost.
    async fn callback_failed(
        &self,
        attempt: Attempt,
        due: Option<Timestamp>,
        reason: String,
    ) -> Result<bool, StoreError>;

    /// Whether the call is still held by this attempt. Only asked after
    /// [`changed`](CallStore::changed).
    async fn holds(&self, _attempt: Attempt) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Waits until somebody else changed what is kept, such as another instance that shares it.
    /// Never ends where nobody else can.
    async fn changed(&self) {
        std::future::pending::<()>().await;
    }
}
