//! One connection to one replica, driven by the request that uses it.
//!
//! There is no task per connection: whoever sends a request polls the connection until the last
//! byte of the answer, so a call costs no hand-over between tasks. A connection goes back to its
//! replica when the answer's **body** has ended, and only if both sides are done with it. Where
//! the replica speaks HTTP/2 a connection here is one stream of a shared one.

use std::fmt;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::body::{BodyError, RequestBody, Upload};
use crate::line::Hold;
use crate::metrics::Account;
use crate::replica::Replica;
use crate::shared_connection::{SharedConnection, written_for_http2};
use crate::wire::Wire;

/// Hyper's side of a connection; its type has no name outside of hyper.
type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send + Sync>>;

/// Why an exchange brought no answer.
pub(crate) enum ExchangeError {
    /// Nothing of the request has been written; here it is again.
    Unsent(Box<Request<RequestBody>>),
    /// The connection broke after the request, or part of it, was written.
    Broken(hyper::Error),
    /// The replica did not answer in time.
    ReplicaSilent,
    /// The caller did not go on sending in time.
    CallerSilent,
}

/// A connection to a replica.
pub(crate) struct Connection {
    channel: Channel,
    clock: Clock,
    pub(crate) last_used: Instant,
}

/// The way to the replica.
enum Channel {
    /// HTTP/1.1, for one request at a time.
    Own {
        sender: http1::SendRequest<RequestBody>,
        /// Reads and writes the socket when polled; none once the socket is closed or given away.
        driver: Option<Driver>,
    },
    /// A place on an HTTP/2 connection, which others use too.
    Shared(SharedConnection),
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(address: SocketAddr, limit: Duration) -> std::io::Result<Self> {
        let stream = tokio::time::timeout(limit, TcpStream::connect(address)).await??;
        let (sender, driver) = http1::Builder::new()
            .handshake(Wire::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        let driver: Driver = Box::pin(driver.with_upgrades());
        Ok(Self::through(Channel::Own { sender, driver: Some(driver) }))
    }

    /// One stream of a shared connection.
    pub(crate) fn on(shared: SharedConnection) -> Self {
        Self::through(Channel::Shared(shared))
    }

    fn through(channel: Channel) -> Self {
        Self { channel, clock: Clock::new(), last_used: Instant::now() }
    }

    /// Moves bytes in both directions as far as they go.
    fn drive(&mut self, context: &mut Context<'_>) {
        if let Channel::Own { driver, .. } = &mut self.channel {
            drive(driver, context);
        }
    }

    /// Whether the next request can go over it: open on both sides, nothing under way.
    pub(crate) fn is_usable(&mut self, context: &mut Context<'_>) -> bool {
        self.drive(context);
        match &self.channel {
            Channel::Own { sender, driver } => driver.is_some() && sender.is_ready(),
            Channel::Shared(shared) => !shared.sender.is_closed(),
        }
    }

    /// Sends the request and waits for the head of the answer, at most `limit` without movement;
    /// what a call has waited before counts from `since`.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
        upload: Option<&Upload>,
        limit: Duration,
        since: Option<Instant>,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let Self { channel, clock, .. } = self;
        clock.start(limit, since);
        match channel {
            Channel::Own { sender, driver } => {
                let answer = sender.try_send_request(request);
                answered(answer, |context| drive(driver, context), clock, upload).await
            }
            Channel::Shared(shared) => {
                let answer = shared.sender.try_send_request(written_for_http2(request));
                // Boxed, so that the usual way does not hold room for it.
                Box::pin(answered(answer, |_| {}, clock, upload)).await
            }
        }
    }

    /// Ends HTTP on the connection after a `101`, so that the raw bytes can be had.
    pub(crate) async fn release(self) {
        if let Channel::Own { driver: Some(driver), .. } = self.channel {
            // Its outcome is that of the upgrade that waits for it.
            drop(driver.await);
        }
    }

    /// Whether others use it too.
    const fn is_shared(&self) -> bool {
        matches!(self.channel, Channel::Shared(_))
    }

    /// The part that moves bytes, where it is this connection's own.
    fn take_driver(&mut self) -> Option<Driver> {
        match &mut self.channel {
            Channel::Own { driver, .. } => driver.take(),
            Channel::Shared(_) => None,
        }
    }
}

fn drive(driver: &mut Option<Driver>, context: &mut Context<'_>) {
    if let Some(running) = driver
        && running.as_mut().poll(context).is_ready()
    {
        *driver = None;
    }
}

/// Waits for the head of an answer, or for the clock.
async fn answered(
    answer: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
    mut drive: impl FnMut(&mut Context<'_>),
    clock: &mut Clock,
    upload: Option<&Upload>,
) -> Result<Response<Incoming>, ExchangeError> {
    let mut answer = pin!(answer);
    poll_fn(|context| {
        drive(context);
        if let Poll::Ready(answer) = answer.as_mut().poll(context) {
            return Poll::Ready(answer.map_err(|mut error| match error.take_message() {
                Some(request) => ExchangeError::Unsent(Box::new(request)),
                None => ExchangeError::Broken(error.into_error()),
            }));
        }
        clock.poll_expired(context, upload).map(|()| {
            let starved = upload.is_some_and(Upload::is_starved);
            Err(if starved { ExchangeError::CallerSilent } else { ExchangeError::ReplicaSilent })
        })
    })
    .await
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("last_used", &self.last_used).finish_non_exhaustive()
    }
}

/// Tells when nothing has moved for too long.
///
/// The timer stays armed from request to request and is set again only when it fires, so that a
/// call that is in time touches no timer at all.
struct Clock {
    timer: Pin<Box<Sleep>>,
    moved: Instant,
    /// Whether something has moved that `moved` does not count yet; the clock is read when there
    /// is nothing else to do.
    moving: bool,
    limit: Duration,
}

impl Clock {
    fn new() -> Self {
        let far = Duration::from_hours(24);
        Self {
            timer: Box::pin(tokio::time::sleep(far)),
            moved: Instant::now(),
            moving: false,
            limit: far,
        }
    }

    fn start(&mut self, limit: Duration, since: Option<Instant>) {
        self.limit = limit;
        self.moved = since.unwrap_or_else(Instant::now);
        self.moving = false;
        let due = (self.moved + limit).into();
        if self.timer.deadline() > due || self.timer.is_elapsed() {
            self.timer.as_mut().reset(due);
        }
    }

    fn poll_expired(&mut self, context: &mut Context<'_>, upload: Option<&Upload>) -> Poll<()> {
        if std::mem::take(&mut self.moving) {
            self.moved = Instant::now();
        }
        while self.timer.as_mut().poll(context).is_ready() {
            if let Some(upload) = upload {
                self.moved = self.moved.max(upload.moved_at());
            }
            let due = self.moved + self.limit;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due.into());
        }
        Poll::Pending
    }
}

/// The body of a function's answer, with all that must be held until it has ended.
pub(crate) struct Flow {
    incoming: Incoming,
    link: Option<Link>,
    upload: Option<Arc<Upload>>,
}

/// What a call holds while its answer is under way.
struct Link {
    connection: Connection,
    /// Moves the rest of the request while the caller may not be reading; a connection that
    /// needed it is not used again.
    uploading: Option<AbortOnDropHandle<()>>,
    replica: Arc<Replica>,
    _hold: Hold,
    account: Account,
}

impl Flow {
    /// The body of an answer whose head has just arrived.
    pub(crate) fn new(
        incoming: Incoming,
        mut connection: Connection,
        replica: Arc<Replica>,
        hold: Hold,
        account: Account,
        upload: Option<Arc<Upload>>,
    ) -> Self {
        connection.clock.moving = true;
        // An answer before the end of the request: both must go on independently of whether the
        // caller reads, or a caller who sends everything first would wait for itself.
        let uploading = match &upload {
            Some(upload) if !upload.is_done() => connection.take_driver().map(|driver| {
                AbortOnDropHandle::new(tokio::spawn(async move {
                    // A failure shows in the body of the answer.
                    drop(driver.await);
                }))
            }),
            _ => None,
        };
        let link = Link { connection, uploading, replica, _hold: hold, account };
        Self { incoming, link: Some(link), upload }
    }

    /// Lets go of everything held as soon as an answer without body is complete.
    pub(crate) fn settle(&mut self, context: &mut Context<'_>) {
        if self.incoming.is_end_stream() {
            self.finish(context);
        }
    }

    fn finish(&mut self, context: &mut Context<'_>) {
        let Some(mut link) = self.link.take() else { return };
        if link.connection.is_usable(context) {
            let now = Instant::now();
            link.account.close(now);
            link.connection.last_used = now;
            link.replica.put(link.connection);
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(link) = &mut self.link else { return Poll::Ready(None) };
        let mut polled = Pin::new(&mut self.incoming).poll_frame(context);
        if polled.is_pending() && link.uploading.is_none() {
            link.connection.drive(context);
            polled = Pin::new(&mut self.incoming).poll_frame(context);
        }
        match polled {
            Poll::Pending => {
                let clock = &mut link.connection.clock;
                ready!(clock.poll_expired(context, self.upload.as_deref()));
                let limit = clock.limit;
                let error = self.broken(|replica| BodyError::Stalled { replica, limit });
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                link.connection.clock.moving = true;
                if self.incoming.is_end_stream() {
                    self.finish(context);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(source))) => Poll::Ready(Some(Err(
                self.broken(|replica| BodyError::Replica { replica, source })
            ))),
            // Hyper takes a stream that the replica has cancelled for one that has ended.
            Poll::Ready(None) if link.connection.is_shared() && !self.incoming.is_end_stream() => {
                let error = self.broken(|replica| BodyError::Cancelled { replica });
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.finish(context);
                Poll::Ready(None)
            }
        }
    }

    /// Lets go of everything and says why.
    fn broken(&mut self, error: impl FnOnce(String) -> BodyError) -> BodyError {
        let Some(link) = self.link.take() else { return error(String::new()) };
        let error = error(link.replica.endpoint.replica.to_string());
        let function = &link.account.state().qualified;
        tracing::warn!(%function, %error, "an answer ended before its end");
        error
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.link.is_none() || self.incoming.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow").field("open", &self.link.is_some()).finish_non_exhaustive()
    }
}
