//! Requests as a client sends them: one connection each, the host as a name that needs no DNS.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::HeaderMap;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;

/// Longest time for one whole answer.
const LIMIT: Duration = Duration::from_mins(1);

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as text.
    pub body: String,
}

impl Answer {
    /// The body, parsed.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// A header as text, empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

pub(crate) async fn request(
    address: SocketAddr,
    method: &str,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Result<Answer> {
    let exchange = async {
        let mut connection = Connection::open(address).await?;
        connection.exchange(method, host, path, headers, body).await
    };
    tokio::time::timeout(LIMIT, exchange).await.context("no answer within a minute")?
}

/// A connection that carries one request after the other.
#[derive(Debug)]
pub struct Connection {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<hyper::Result<()>>,
}

impl Connection {
    /// Connects to a server.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = tokio::net::TcpStream::connect(address).await.context("cannot connect")?;
        let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        Ok(Self { address, sender, driver: tokio::spawn(driver) })
    }

    /// GETs a path of a host; fails when no whole answer came on this very connection.
    pub async fn get(&mut self, host: &str, path: &str) -> Result<Answer> {
        let exchange = self.exchange("GET", host, path, &[], Vec::new());
        tokio::time::timeout(LIMIT, exchange).await.context("no answer within a minute")?
    }

    /// POSTs to a path of a host; fails when no whole answer came on this very connection.
    pub async fn post(&mut self, host: &str, path: &str, body: &str) -> Result<Answer> {
        let exchange = self.exchange("POST", host, path, &[], body.as_bytes().to_vec());
        tokio::time::timeout(LIMIT, exchange).await.context("no answer within a minute")?
    }

    async fn exchange(
        &mut self,
        method: &str,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer> {
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", format!("{host}:{}", self.address.port()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender.ready().await.context("the connection was closed")?;
        let request = request.body(Full::new(Bytes::from(body)))?;
        let (parts, body) = self.sender.send_request(request).await?.into_parts();
        let body = body.collect().await.context("the answer broke off")?.to_bytes();
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The value of an `Authorization` header for a user and a password.
pub(crate) fn basic(user: &str, password: &str) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {encoded}")
}
