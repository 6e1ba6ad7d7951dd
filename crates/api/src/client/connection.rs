//! One connection to a server: address, credentials, sending and reading within bounds.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use crate::wire;

/// The longest a server may take to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// The largest JSON answer.
const ANSWER_LIMIT: usize = 32 << 20;

/// The longest line of a stream.
const LINE_LIMIT: usize = 1 << 20;

/// A body to send, in pieces.
pub type SendBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A server's address: `http://host[:port]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    host: String,
    port: u16,
}

/// The text is no server address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is no server address: {reason}")]
pub struct ParseServerAddressError {
    text: String,
    reason: &'static str,
}

impl FromStr for ServerAddress {
    type Err = ParseServerAddressError;

    fn from_str(text: &str) -> Result<Self, ParseServerAddressError> {
        let wrong = |reason| ParseServerAddressError { text: text.to_owned(), reason };
        let expected = "write for instance http://127.0.0.1:8080";
        let uri: Uri = text.parse().map_err(|_| wrong(expected))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(wrong("https is not spoken yet, use http")),
            _ => return Err(wrong(expected)),
        }
        let authority = uri.authority().ok_or_else(|| wrong(expected))?;
        if authority.as_str().contains('@') {
            return Err(wrong("give the credentials apart from the address"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("it may have no path"));
        }
        Ok(Self { host: authority.host().to_owned(), port: authority.port_u16().unwrap_or(80) })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

impl From<SocketAddr> for ServerAddress {
    fn from(address: SocketAddr) -> Self {
        let host = match address.ip() {
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        };
        Self { host, port: address.port() }
    }
}

impl ServerAddress {
    async fn connect(&self) -> io::Result<TcpStream> {
        let name = self.host.trim_start_matches('[').trim_end_matches(']');
        let connecting = async {
            // Every name below `localhost` is this machine; resolvers do not all know it.
            if name.ends_with(".localhost") {
                return TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await;
            }
            TcpStream::connect((name, self.port)).await
        };
        match tokio::time::timeout(CONNECT_TIME, connecting).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                Ok(stream)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
        }
    }
}

/// What a client shows of itself. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// An owner's token, or the administrator's password.
    Bearer(String),
    /// A user name with a password or token.
    Basic {
        /// `admin`, or an owner.
        user: String,
        /// The password or token.
        password: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    fn header(&self) -> Result<HeaderValue, ClientError> {
        let text = match self {
            Self::Bearer(token) => format!("Bearer {token}"),
            Self::Basic { user, password } => {
                format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
            }
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| ClientError::Credentials)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Why a call did not give what was asked for.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers at the address. Start the server, or correct the address.
    #[error("cannot reach a server at {server}, is it running? (`updraft up` starts one)")]
    Connect {
        /// The address tried.
        server: ServerAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The credentials hold characters that cannot be sent.
    #[error("the token or password holds characters that cannot be sent")]
    Credentials,
    /// A request could not be put together.
    #[error("the request cannot be sent")]
    Request(#[from] http::Error),
    /// The server refused. The caller's fault below 500, the server's from there on.
    #[error("{reason}{}", hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default())]
    Refused {
        /// The status.
        status: StatusCode,
        /// The server's reason.
        reason: String,
        /// What to do about it, when the server knows.
        hint: Option<String>,
    },
    /// The connection broke; what had arrived before was whole.
    #[error("the connection to {server} broke, look at the server and try again")]
    Broken {
        /// The server.
        server: ServerAddress,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server took too long.
    #[error("{server} did not answer within {} s", limit.as_secs())]
    Slow {
        /// The server.
        server: ServerAddress,
        /// The time allowed.
        limit: Duration,
    },
    /// The answer cannot be read: the server is of another version, or no Updraft at all.
    #[error("the answer of {server} cannot be read, is it an Updraft of the same version?")]
    Unreadable {
        /// The server.
        server: ServerAddress,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ClientError {
    /// The status of a refusal.
    pub const fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// A server and who we are there.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) server: ServerAddress,
    pub(super) credentials: Credentials,
}

impl Connection {
    pub(super) fn broken(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ClientError {
        ClientError::Broken { server: self.server.clone(), source: source.into() }
    }

    fn unreadable(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ClientError {
        ClientError::Unreadable { server: self.server.clone(), source: source.into() }
    }

    /// Sends a request to the API with our credentials; gives a successful answer.
    pub(super) async fn call(
        &self,
        mut request: Request<SendBody>,
        limit: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, self.credentials.header()?);
        let response = self.send(request, limit).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refusal(response).await)
        }
    }

    /// Sends a request as it is; gives any answer. `limit` is for its head.
    pub(super) async fn send(
        &self,
        mut request: Request<SendBody>,
        limit: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        if !request.headers().contains_key(header::HOST) {
            let host = match self.server.port {
                80 => self.server.host.clone(),
                port => format!("{}:{port}", self.server.host),
            };
            let host = HeaderValue::from_str(&host).map_err(|error| self.broken(error))?;
            request.headers_mut().insert(header::HOST, host);
        }
        let stream = self
            .server
            .connect()
            .await
            .map_err(|source| ClientError::Connect { server: self.server.clone(), source })?;
        let (mut sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        // It ends with the response's body, or when that is dropped; its error shows there too.
        tokio::spawn(driver);
        match tokio::time::timeout(limit, sender.send_request(request)).await {
            Ok(response) => response.map_err(|error| self.broken(error)),
            Err(_) => Err(ClientError::Slow { server: self.server.clone(), limit }),
        }
    }

    async fn refusal(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let body = match Limited::new(response.into_body(), LINE_LIMIT).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return self.broken(error),
        };
        match serde_json::from_slice::<wire::Failure>(&body) {
            Ok(failure) => ClientError::Refused {
                status,
                reason: failure.error.reason,
                hint: failure.error.hint,
            },
            // Not our API: some other server, or a proxy on the way.
            Err(error) => self.unreadable(format!("status {status}: {error}")),
        }
    }

    /// Reads a JSON answer.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
    ) -> Result<T, ClientError> {
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        let body = body.map_err(|error| self.broken(error))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| self.unreadable(error))
    }

    /// Reads an answer of JSON lines as they come.
    pub(super) fn json_lines<T: DeserializeOwned + Send + 'static>(
        &self,
        response: Response<Incoming>,
    ) -> BoxStream<'static, Result<T, ClientError>> {
        let bytes = response.into_body().into_data_stream().map_err(io::Error::other);
        let codec = LinesCodec::new_with_max_length(LINE_LIMIT);
        let connection = self.clone();
        FramedRead::new(StreamReader::new(bytes), codec)
            .map(move |line| {
                let line = line.map_err(|error| connection.broken(error))?;
                serde_json::from_str(&line).map_err(|error| connection.unreadable(error))
            })
            .boxed()
    }

    /// Reads an answer as bytes as they come.
    pub(super) fn chunks(
        &self,
        response: Response<Incoming>,
    ) -> BoxStream<'static, Result<Bytes, ClientError>> {
        let connection = self.clone();
        let chunks = response.into_body().into_data_stream();
        chunks.map_err(move |error| connection.broken(error)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_port() {
        let check = |text: &str, shown: &str| {
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), shown);
        };
        check("http://127.0.0.1:8080", "http://127.0.0.1:8080");
        check("http://system.example.com/", "http://system.example.com:80");
        check("http://[::1]:9000", "http://[::1]:9000");
        let address: SocketAddr = "[::1]:9000".parse().unwrap();
        assert_eq!(ServerAddress::from(address).to_string(), "http://[::1]:9000");
    }

    #[test]
    fn what_is_no_http_address_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "write for instance"),
            ("127.0.0.1:8080", "write for instance"),
            ("ftp://x", "write for instance"),
            ("https://x", "https"),
            ("http://alice:token@x", "credentials"),
            ("http://x/api", "path"),
        ] {
            let error = text.parse::<ServerAddress>().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn credentials_do_not_print() {
        let bearer = Credentials::Bearer("hunter2".to_owned());
        assert!(!format!("{bearer:?}").contains("hunter2"));
        assert!(!format!("{:?}", bearer.header().unwrap()).contains("hunter2"));
        assert!(Credentials::Bearer("a\nb".to_owned()).header().is_err());
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_with_what_to_do() {
        // A port that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = ServerAddress::from(free);
        let connection = Connection { server, credentials: Credentials::Bearer("x".to_owned()) };
        let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
        let error = connection.call(Request::new(body), CONNECT_TIME).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&free.to_string()) && text.contains("updraft up"), "{text}");
    }
}
