//! Calling functions as the data plane does: a replica of the table, a lease on it, one request.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;
use updraft_model::FunctionId;

use super::{Harness, Judge, LOOK, PATIENCE};
use crate::{Availability, Endpoint, Lease};

/// What a function answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl<H: Harness> Judge<H> {
    /// A ready replica of the function and a lease on it, once there is one.
    async fn lease(&self, id: &FunctionId) -> (std::net::SocketAddr, Lease) {
        let mut table = self.engine().endpoints();
        let begin = Instant::now();
        loop {
            let entry = table.borrow_and_update().get(id).cloned();
            let availability = entry.as_ref().map(|entry| entry.availability.clone());
            let ready = entry.map(|entry| entry.ready.clone()).unwrap_or_default();
            let leased = |endpoint: &std::sync::Arc<Endpoint>| {
                Some((endpoint.address, endpoint.load.lease()?))
            };
            if let Some(leased) = ready.iter().find_map(leased) {
                return leased;
            }
            assert!(begin.elapsed() < PATIENCE, "no replica of {id} became ready");
            if matches!(availability, Some(Availability::Asleep | Availability::Frozen)) {
                self.engine().wake(id).await.expect("it can be woken");
            }
            // A change of the table wakes at once; the pause only bounds the wait.
            drop(tokio::time::timeout(LOOK, table.changed()).await);
        }
    }

    /// Calls the function; an error only when its replica broke the connection.
    pub(super) async fn try_call(&self, id: &FunctionId, path: &str) -> Result<Answer, String> {
        let (address, lease) = self.lease(id).await;
        let answer = Self::request(address, path).await;
        drop(lease);
        answer
    }

    /// One request to a replica, lease or not.
    pub(super) async fn request(
        address: std::net::SocketAddr,
        path: &str,
    ) -> Result<Answer, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let request = Request::get(path).header(http::header::HOST, "function");
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
        drop(sender);
        connection.abort();
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Ok(Answer { status, body })
    }

    /// Calls the function, which answers.
    pub(super) async fn call(&self, id: &FunctionId, path: &str) -> Answer {
        self.try_call(id, path).await.expect("the function answers")
    }

    /// The body of an answer with status 200.
    pub(super) async fn body(&self, id: &FunctionId, path: &str) -> String {
        let answer = self.call(id, path).await;
        assert_eq!(answer.status, 200, "{path} answered {}", answer.body);
        answer.body
    }
}
