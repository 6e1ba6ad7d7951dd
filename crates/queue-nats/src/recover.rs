//! A start: the streams are there, the index shows them, and what this instance held is free.

use std::sync::Arc;

use async_nats::jetstream::AckKind;
use jiff::Timestamp;
use tokio_util::task::AbortOnDropHandle;
use updraft_store::StoreError;
use updraft_store::queue::{CallState, IndexEntry};

use crate::body;
use crate::follow::Followed;
use crate::link::WriteError;
use crate::store::{Inner, NatsCallStore, locked};

impl NatsCallStore {
    /// Everything that a start needs; may be tried again.
    pub(crate) async fn recover_all(&self) -> Result<usize, StoreError> {
        let inner = &self.inner;
        locked(&self.followers).clear();
        inner.link.connected().await;
        inner.link.make_streams().await?;
        // Records first: they say which calls in the other stream have ended.
        let records = inner.load(Followed::Records).await?;
        let calls = inner.load(Followed::Calls).await?;
        let mut recovered = 0;
        for entry in inner.index.held_by(inner.me()).await? {
            recovered += usize::from(inner.free(entry).await?);
        }
        for entry in inner.index.without_request().await? {
            inner.send_letter_again(&entry).await?;
        }
        let swept = body::sweep(&inner.link, &inner.index.bodies().await?).await?;
        if swept > 0 {
            tracing::info!(swept, "bodies of calls that were never accepted are removed");
        }
        let spawn = |future| AbortOnDropHandle::new(tokio::spawn(future));
        *locked(&self.followers) = vec![
            spawn(Arc::clone(inner).follow(Followed::Records, records)),
            spawn(Arc::clone(inner).follow(Followed::Calls, calls)),
            AbortOnDropHandle::new(tokio::spawn(Arc::clone(inner).remove_marks())),
        ];
        Ok(recovered)
    }
}

impl Inner {
    /// Gives back what an earlier process of this instance held. Whether that was a call.
    async fn free(&self, mut entry: IndexEntry) -> Result<bool, StoreError> {
        let now = Timestamp::now();
        let hold = entry.hold.take();
        entry.holder = None;
        let is_call = entry.record.state == CallState::Running;
        if is_call {
            entry.record.state = CallState::Queued;
            entry.record.due = now;
        } else {
            entry.callback_due = Some(now);
        }
        match self.write("take the running calls back", entry).await {
            Ok(_) => {
                if let Some(hold) = hold {
                    // The consumer hands it out at once, not when the lease would have ended.
                    self.link.acknowledge(&hold, AckKind::Nak(None)).await;
                }
                Ok(is_call)
            }
            // Another instance has it: its lease had lapsed.
            Err(WriteError::Changed) => Ok(false),
            Err(WriteError::Failed(error)) => Err(error),
        }
    }
}
