//! Asynchronous calls, seen from the client.

use http::Method;
use updraft_model::OwnerName;
use updraft_queue::{CallId, CallState};

use super::{CHANGE_TIME, Client, ClientError, Query};
use crate::wire;

/// Which calls a list shows, or a command means. Absent means any.
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    /// Only those in this state.
    pub state: Option<CallState>,
    /// Only this function's: its visible name, or `<name>.<namespace>`.
    pub function: Option<String>,
    /// Only this owner's.
    pub owner: Option<OwnerName>,
    /// Only those before the one of this number.
    pub before: Option<i64>,
    /// The newest so many; the server decides when absent.
    pub limit: Option<u32>,
}

impl CallOptions {
    fn query(&self) -> Query {
        let mut query = Query::default();
        query.add("state", self.state);
        query.add("function", self.function.as_ref());
        query.add("owner", self.owner.as_ref());
        query.add("before", self.before);
        query.add("limit", self.limit);
        query
    }
}

impl Client {
    /// Asynchronous calls, newest first.
    pub async fn calls(&self, options: &CallOptions) -> Result<Vec<wire::Call>, ClientError> {
        self.get(&format!("calls{}", options.query())).await
    }

    /// One asynchronous call.
    pub async fn async_call(&self, id: &CallId) -> Result<wire::Call, ClientError> {
        self.get(&format!("calls/{id}")).await
    }

    /// What the function answered.
    pub async fn call_result(&self, id: &CallId) -> Result<wire::CallResult, ClientError> {
        self.get(&format!("calls/{id}/result")).await
    }

    /// Ends a call that waits or runs.
    pub async fn cancel_call(&self, id: &CallId) -> Result<(), ClientError> {
        self.call(Method::POST, &format!("calls/{id}/cancel"), None).await.map(drop)
    }

    /// Has a dead letter made again.
    pub async fn redrive_call(&self, id: &CallId) -> Result<(), ClientError> {
        self.call(Method::POST, &format!("calls/{id}/redrive"), None).await.map(drop)
    }

    /// Has all dead letters made again that the options mean; says how many.
    pub async fn redrive_calls(&self, options: &CallOptions) -> Result<u64, ClientError> {
        let path = format!("dead-letters/redrive{}", options.query());
        let done: wire::Redriven = self.send_json(Method::POST, &path, &(), CHANGE_TIME).await?;
        Ok(done.calls)
    }

    /// Forgets a call that has ended.
    pub async fn discard_call(&self, id: &CallId) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("calls/{id}"), None).await.map(drop)
    }

    /// The key that signs an owner's callbacks; without an owner, those of nobody's functions.
    pub async fn callback_key(
        &self,
        owner: Option<&OwnerName>,
    ) -> Result<wire::CallbackKey, ClientError> {
        match owner {
            Some(owner) => self.get(&format!("owners/{owner}/callback-key")).await,
            None => self.get("callback-key").await,
        }
    }
}
