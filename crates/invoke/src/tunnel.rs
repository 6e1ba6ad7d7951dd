//! Connections that stop speaking HTTP: WebSockets and everything else behind `Upgrade`, and
//! streams of HTTP/2 that an extended `CONNECT` makes the same (RFC 8441).

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use http::Response;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::Connection;
use crate::line::Hold;
use crate::metrics::Account;

/// Something of the caller's connection that lives as long as a tunnel through it: put into the
/// extensions of a request that may become one.
#[derive(Clone)]
pub struct TunnelGuard(pub Arc<dyn Any + Send + Sync>);

impl fmt::Debug for TunnelGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TunnelGuard")
    }
}

/// The caller's end of a tunnel.
pub(crate) struct CallerEnd {
    pub(crate) upgrade: OnUpgrade,
    pub(crate) guard: Option<TunnelGuard>,
}

/// Carries bytes both ways after a `101`, until both sides have closed or the platform does.
/// The replica is held and the account stays open as long.
pub(crate) fn open(
    caller: CallerEnd,
    response: &mut Response<Incoming>,
    connection: Connection,
    hold: Hold,
    account: Account,
    tunnels: &TaskTracker,
    closing: CancellationToken,
) {
    let replica = hyper::upgrade::on(response);
    tunnels.spawn(async move {
        let function = account.state().qualified.clone();
        let carried = closing
            .run_until_cancelled(async {
                let ((), replica, upgraded) =
                    tokio::join!(connection.release(), replica, caller.upgrade);
                let mut replica = TokioIo::new(replica?);
                let mut upgraded = TokioIo::new(upgraded?);
                // An end without farewell on either side is how tunnels often end.
                drop(copy_bidirectional(&mut upgraded, &mut replica).await);
                Ok::<_, hyper::Error>(())
            })
            .await;
        if let Some(Err(error)) = carried {
            tracing::debug!(%function, %error, "a connection was not upgraded");
        }
        drop((account, hold, caller.guard));
    });
}
