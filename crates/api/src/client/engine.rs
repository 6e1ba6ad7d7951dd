//! What runs, seen from the client.

use updraft_model::OwnerName;

use super::{Client, ClientError, Query};
use crate::wire;

impl Client {
    /// Functions with their replicas: all that the caller may see, those of one owner, or the one
    /// of this visible name.
    pub async fn replicas(
        &self,
        owner: Option<&OwnerName>,
        function: Option<&str>,
    ) -> Result<Vec<wire::FunctionReplicas>, ClientError> {
        let mut query = Query::default();
        query.add("owner", owner);
        query.add("function", function);
        self.get(&format!("replicas{query}")).await
    }

    /// What the engine found on its machine. For the administrator.
    pub async fn engine(&self) -> Result<wire::Engine, ClientError> {
        self.get("engine").await
    }
}
