//! The key ring of a running cloud: opened at start, renewed while it runs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use updraft_seal::{KeyRing, KeyRingOptions};

use crate::data_dir::DataDir;

/// Longest time between two looks at the clock, which may be set meanwhile.
const LOOK: Duration = Duration::from_hours(1);

/// Opens the ring; making the first key takes a second.
pub(crate) async fn open(data_dir: &DataDir, options: KeyRingOptions) -> Result<Arc<KeyRing>> {
    let folder = data_dir.sealing_keys();
    let opening = tokio::task::spawn_blocking(move || KeyRing::open(&folder, options));
    let ring = opening.await.context("opening the keys of sealed secrets failed")?;
    Ok(Arc::new(ring.context("the keys of sealed secrets cannot be used")?))
}

/// Makes a new key whenever one is due, and at SIGUSR1 as the original controller does, until it is
/// aborted.
pub(crate) fn keep_renewed(ring: Arc<KeyRing>) -> Result<JoinHandle<()>> {
    let mut asked = signal(SignalKind::user_defined1()).context("cannot listen for signals")?;
    Ok(tokio::spawn(async move {
        loop {
            let due = ring.renewal_due_in(Timestamp::now()).unwrap_or(LOOK);
            let at_once = tokio::select! {
                () = tokio::time::sleep(due.clamp(Duration::from_secs(1), LOOK)) => false,
                _ = asked.recv() => true,
            };
            let renewing = Arc::clone(&ring);
            let renewed = tokio::task::spawn_blocking(move || {
                let now = Timestamp::now();
                if at_once { renewing.renew(now).map(Some) } else { renewing.renew_if_due(now) }
            });
            match renewed.await {
                Ok(Ok(Some(certificate))) => tracing::warn!(
                    fingerprint = certificate.fingerprint(),
                    "there is a new key for sealed secrets: back up the keys (updraft keys backup)"
                ),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    tracing::error!(%error, "the key of sealed secrets could not be renewed");
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) => tracing::error!(%error, "renewing a key failed"),
            }
        }
    }))
}
