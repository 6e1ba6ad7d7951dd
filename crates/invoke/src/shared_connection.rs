//! Connections to a replica that speaks HTTP/2: each carries many requests at once, and a task of
//! its own moves its bytes.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use http::header::{CONNECTION, HOST, UPGRADE};
use http::uri::{Authority, Scheme};
use http::{Request, Uri, Version};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::body::RequestBody;
use crate::connection::Connection;
use crate::wire::Wire;

/// What a replica may send ahead on one stream, and on all of a connection together.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Streams granted by a replica that has not said how many it grants. No replica says this.
const UNSAID: usize = 0x00ff_fff1;

/// One connection; who holds it uses one stream of it.
#[derive(Clone)]
pub(crate) struct SharedConnection {
    pub(crate) sender: SendRequest<RequestBody>,
    /// Ends the connection with its last user, once it is no longer among those to share.
    driver: Arc<Driver>,
}

struct Driver {
    /// How many streams the replica grants at once.
    streams: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl SharedConnection {
    async fn open(address: SocketAddr, limit: Duration) -> std::io::Result<Self> {
        let opening = async {
            let stream = TcpStream::connect(address).await?;
            let (sender, mut connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_max_send_streams(UNSAID)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .handshake(Wire::new(stream))
                .await
                .map_err(std::io::Error::other)?;
            // Its first words show that it speaks HTTP/2 at all, and how many streams it grants.
            // Nobody is told when they come, so one has to look.
            while connection.current_max_send_streams() == UNSAID {
                if poll_fn(|context| {
                    Poll::Ready(Pin::new(&mut connection).poll(context).is_ready())
                })
                .await
                {
                    return Err(std::io::ErrorKind::ConnectionAborted.into());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok::<_, std::io::Error>((sender, connection))
        };
        let (sender, mut connection) = timeout(limit, opening).await??;
        let streams = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
        let granted = Arc::clone(&streams);
        let task = tokio::spawn(poll_fn(move |context| {
            let polled = Pin::new(&mut connection).poll(context);
            granted.store(connection.current_max_send_streams(), Ordering::Relaxed);
            // How it ended is seen by the requests that were on it.
            polled.map(drop)
        }));
        let driver = Driver { streams, _task: AbortOnDropHandle::new(task) };
        Ok(Self { sender, driver: Arc::new(driver) })
    }

    /// Whether the replica would start one more stream now.
    fn has_room(&self) -> bool {
        // One holder is the list of those to share.
        let users = Arc::strong_count(&self.driver) - 1;
        users < self.driver.streams.load(Ordering::Relaxed).max(1)
    }
}

/// All connections to one replica.
#[derive(Default)]
pub(crate) struct SharedConnections {
    open: Mutex<Vec<SharedConnection>>,
    /// Held while connecting, so that a crowd makes one connection.
    connecting: tokio::sync::Mutex<()>,
}

impl SharedConnections {
    /// A place on a connection that is open and has room.
    pub(crate) fn take(&self) -> Option<Connection> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|connection| !connection.sender.is_closed());
        let connection = open.iter().find(|connection| connection.has_room())?;
        Some(Connection::on(connection.clone()))
    }

    /// A place on a new connection, or on one that came meanwhile.
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        limit: Duration,
    ) -> std::io::Result<Connection> {
        let _connecting = self.connecting.lock().await;
        if let Some(connection) = self.take() {
            return Ok(connection);
        }
        let made = SharedConnection::open(address, limit).await?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(made.clone());
        Ok(Connection::on(made))
    }
}

/// Makes a request the way HTTP/2 writes it.
pub(crate) fn written_for_http2(mut request: Request<RequestBody>) -> Request<RequestBody> {
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
    let host = headers.remove(HOST);
    let authority = host
        .as_ref()
        .and_then(|host| Authority::try_from(host.as_bytes()).ok())
        .unwrap_or(Authority::from_static("localhost"));
    let mut parts = request.uri().clone().into_parts();
    // A request that comes back unsent has both already.
    if parts.authority.is_none() {
        parts.authority = Some(authority);
        parts.scheme = Some(Scheme::HTTP);
    }
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request
}
