//! Schedules, seen from the client.

use updraft_model::OwnerName;

use super::{Client, ClientError, Query};
use crate::wire;

impl Client {
    /// Every schedule that the caller may see, or those of one owner, by function.
    pub async fn schedules(
        &self,
        owner: Option<&OwnerName>,
    ) -> Result<Vec<wire::Schedule>, ClientError> {
        let mut query = Query::default();
        query.add("owner", owner);
        self.get(&format!("schedules{query}")).await
    }
}
