//! Connections to the function of mode http: dialling, a small pool, and sending exactly once.
//!
//! A request is sent anew only when not one byte of it had been written; what the function may
//! have seen is never repeated.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::body::Upload;
use crate::config::UpstreamAddress;
use crate::resolve::Resolver;
use crate::server::HEADER_LIMIT;
use crate::socket::Socket;

/// How long an unused connection is kept: shorter than any server's own limit in the wild, so that
/// a request seldom meets a connection that is just being closed.
const IDLE: Duration = Duration::from_millis(500);
/// Most unused connections kept.
const MAX_IDLE: usize = 100;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("cannot connect to the function at {authority}: {cause}")]
    Connect { authority: String, cause: io::Error },
    #[error("the function did not answer in HTTP: {0}")]
    Exchange(hyper::Error),
    #[error("the caller's request broke off: {0}")]
    Caller(hyper::Error),
}

/// The function of mode http, seen from here.
pub(crate) struct Upstream {
    pub(crate) address: UpstreamAddress,
    /// Where the host is an address, which spares asking for every connection.
    literal: Option<SocketAddr>,
    resolver: Resolver,
    /// Most headers of an answer, where it is not the usual number.
    max_headers: Option<usize>,
    idle: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    /// Newest last; the newest is used first, so that old ones can go.
    connections: Vec<(SendRequest<Upload>, Instant)>,
    sweeping: bool,
}

/// A connection in use.
pub(crate) struct Lease {
    upstream: Arc<Upstream>,
    sender: SendRequest<Upload>,
}

impl Lease {
    /// Returns the connection for the next request.
    pub(crate) fn give_back(self) {
        let Self { upstream, sender } = self;
        if sender.is_closed() {
            return;
        }
        let mut pool = upstream.pool();
        if pool.connections.len() >= MAX_IDLE {
            return;
        }
        pool.connections.push((sender, Instant::now()));
        let start_sweeping = !std::mem::replace(&mut pool.sweeping, true);
        drop(pool);
        if start_sweeping {
            tokio::spawn(Arc::clone(&upstream).sweep());
        }
    }
}

impl Upstream {
    pub(crate) fn new(address: UpstreamAddress, max_headers: Option<usize>) -> Self {
        let host = address.host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let literal = host.map(|host| SocketAddr::new(host, address.port));
        let (resolver, idle) = (Resolver::default(), Mutex::default());
        Self { address, literal, resolver, max_headers, idle }
    }

    /// Opens a connection at the first address that takes one.
    pub(crate) async fn dial(&self) -> io::Result<TcpStream> {
        let UpstreamAddress { host, port, .. } = &self.address;
        if let Some(literal) = self.literal {
            return TcpStream::connect(literal).await;
        }
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in self.resolver.resolve(host, *port).await? {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Asks for a path of the function as a probe does: the status of its answer.
    pub(crate) async fn probe(self: &Arc<Self>, path: &str) -> Result<StatusCode, SendError> {
        let mut request = Request::new(Upload::Full(Bytes::new()));
        if let Ok(uri) = path.parse() {
            *request.uri_mut() = uri;
        }
        if let Ok(host) = HeaderValue::from_str(&self.address.authority) {
            request.headers_mut().insert(header::HOST, host);
        }
        let (response, _used_up) = self.send(request).await?;
        Ok(response.status())
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(
        self: &Arc<Self>,
        mut request: Request<Upload>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        loop {
            let (mut sender, fresh) = match self.checkout() {
                Some(sender) => (sender, false),
                // On the heap, as it is seldom needed: every call carries room for what is not.
                None => (Box::pin(self.connect()).await?, true),
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let lease = Lease { upstream: Arc::clone(self), sender };
                    return Ok((response, lease));
                }
                Err(mut failed) => match failed.take_message() {
                    // Handed back untouched: the kept connection had been closed meanwhile.
                    Some(unsent) if !fresh => request = unsent,
                    _ => {
                        let error = failed.into_error();
                        return Err(if error.is_user() {
                            SendError::Caller(error)
                        } else {
                            SendError::Exchange(error)
                        });
                    }
                },
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Upload>, SendError> {
        let connect_error =
            |cause| SendError::Connect { authority: self.address.authority.clone(), cause };
        let stream = self.dial().await.map_err(connect_error)?;
        stream.set_nodelay(true).map_err(connect_error)?;
        let mut builder = http1::Builder::new();
        builder.title_case_headers(true).max_buf_size(HEADER_LIMIT);
        if let Some(most) = self.max_headers {
            builder.max_headers(most);
        }
        let (sender, connection) =
            builder.handshake(Socket::new(stream)).await.map_err(SendError::Exchange)?;
        tokio::spawn(async move {
            // Its failures reach whoever waits for the answer.
            let _reported_there = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    fn checkout(&self) -> Option<SendRequest<Upload>> {
        let mut pool = self.pool();
        while let Some((sender, since)) = pool.connections.pop() {
            if since.elapsed() < IDLE && sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Closes what has been idle for too long; ends when nothing is kept.
    async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(IDLE).await;
            let mut pool = self.pool();
            pool.connections
                .retain(|(sender, since)| since.elapsed() < IDLE && !sender.is_closed());
            if pool.connections.is_empty() {
                pool.connections.shrink_to_fit();
                pool.sweeping = false;
                return;
            }
        }
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
