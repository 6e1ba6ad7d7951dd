//! A connection that has become a WebSocket: bytes both ways until either side closes it.
//!
//! Knows nothing of what the bytes mean; it only notices when none pass any more.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::call::Call;
use crate::log::Log;

const BUFFER: usize = 8 * 1024;

/// Passes bytes until one side closes, or none have passed for `idle`; the call's place is kept
/// that long.
pub(super) async fn run(
    client: OnUpgrade,
    function: OnUpgrade,
    call: Box<Call>,
    idle: Option<Duration>,
    log: Log,
) {
    if let (Ok(client), Ok(function)) = tokio::join!(client, function) {
        let passed = Mutex::new(Instant::now());
        let (from_client, to_client) = tokio::io::split(TokioIo::new(client));
        let (from_function, to_function) = tokio::io::split(TokioIo::new(function));
        tokio::select! {
            // Either side may end a tunnel at any time; there is nobody to report to.
            _either_end = async {
                tokio::try_join!(
                    pump(from_client, to_function, &passed),
                    pump(from_function, to_client, &passed),
                )
            } => {}
            idle = silence(&passed, idle) => {
                log.line(format_args!("a WebSocket was idle for {idle:?} and has been closed"));
            }
        }
    }
    drop(call);
}

/// Passes one direction on to its end.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    passed: &Mutex<Instant>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        *passed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        to.write_all(buffer.get(..read).unwrap_or_default()).await?;
        to.flush().await?;
    }
}

/// Ends once nothing has passed for so long; never without a limit.
async fn silence(passed: &Mutex<Instant>, idle: Option<Duration>) -> Duration {
    let Some(idle) = idle else { return std::future::pending().await };
    loop {
        let last = *passed.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= idle {
            return idle;
        }
        tokio::time::sleep_until(last + idle).await;
    }
}
