//! Connections that stop speaking HTTP: WebSockets and everything else behind `Upgrade`.

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

/// Carries bytes both ways after a `101`, until both sides have closed or the platform does.
/// The replica is held and the account stays open as long.
pub(crate) fn open(
    caller: OnUpgrade,
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
                let ((), replica, caller) = tokio::join!(connection.release(), replica, caller);
                let mut replica = TokioIo::new(replica?);
                let mut caller = TokioIo::new(caller?);
                // An end without farewell on either side is how tunnels often end.
                drop(copy_bidirectional(&mut caller, &mut replica).await);
                Ok::<_, hyper::Error>(())
            })
            .await;
        if let Some(Err(error)) = carried {
            tracing::debug!(%function, %error, "a connection was not upgraded");
        }
        drop((account, hold));
    });
}
