//! Callbacks: the record leases them, by being replaced.

use futures_util::future::join_all;
use jiff::Timestamp;
use updraft_model::OwnerName;
use updraft_store::StoreError;
use updraft_store::queue::{Attempt, CallbackState, IndexEntry, LeasedCallback};

use crate::link::WriteError;
use crate::store::Inner;

impl Inner {
    pub(crate) async fn lease_callbacks(
        &self,
        owner: Option<&OwnerName>,
        count: u32,
        until: Timestamp,
    ) -> Result<Vec<LeasedCallback>, StoreError> {
        self.link.check("lease callbacks")?;
        let due = self.index.due_callbacks(owner, count).await?;
        let leased = join_all(due.into_iter().map(|entry| self.lease_callback(entry, until))).await;
        let mut callbacks = Vec::with_capacity(leased.len());
        for callback in leased {
            callbacks.extend(callback?);
        }
        Ok(callbacks)
    }

    /// Nothing when another instance has it.
    async fn lease_callback(
        &self,
        mut entry: IndexEntry,
        until: Timestamp,
    ) -> Result<Option<LeasedCallback>, StoreError> {
        let id = entry.record.id.clone();
        let Some(callback) = &mut entry.record.callback else { return Ok(None) };
        callback.attempts += 1;
        let number = callback.attempts;
        entry.callback_due = Some(until);
        entry.holder = Some(self.me().to_owned());
        match self.write("lease the callback", entry).await {
            Ok(entry) => {
                let attempt = Attempt { call: entry.record.number, number };
                let result = self.answer(entry.record.clone()).await?;
                Ok(Some(LeasedCallback { attempt, record: entry.record, result }))
            }
            Err(WriteError::Failed(error)) => Err(error),
            Err(WriteError::Changed) => {
                if let Some(there) = self.read_record(&id).await? {
                    self.index.put(vec![there]).await?;
                }
                Ok(None)
            }
        }
    }

    pub(crate) async fn end_callback(
        &self,
        attempt: Attempt,
        state: CallbackState,
        due: Option<Timestamp>,
        reason: Option<String>,
    ) -> Result<bool, StoreError> {
        let Some(mut entry) = self.index.by_number(attempt.call).await? else { return Ok(false) };
        let is_it = entry.record.callback.as_ref().is_some_and(|callback| {
            callback.state == CallbackState::Pending && callback.attempts == attempt.number
        });
        if !is_it {
            return Ok(false);
        }
        if let Some(callback) = &mut entry.record.callback {
            callback.state = state;
            callback.reason = reason;
        }
        entry.callback_due = due;
        entry.holder = None;
        match self.write_patiently("note the callback", entry).await {
            Ok(_) => Ok(true),
            Err(WriteError::Changed) => Ok(false),
            Err(WriteError::Failed(error)) => Err(error),
        }
    }
}
