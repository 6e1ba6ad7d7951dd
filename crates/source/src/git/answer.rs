//! The answer to a push: progress while the work goes on, then the report.
//!
//! Writing never fails and never blocks for long: what a client who has left would have read is
//! dropped.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::pktline::{self, Band};
use super::push::{PushProgress, PushVerdict};
use super::report::{Report, terminal_bytes, terminal_line};

/// How often a quiet answer shows that it is alive; proxies give up after 30 to 60 seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Longest line passed to the terminal.
const MAX_LINE_CHARACTERS: usize = 4096;

/// Packets on their way to the network before the writer has to wait.
const PACKETS_IN_FLIGHT: usize = 16;

/// The answer to a push while it is being written. Once the client has left, everything written
/// to it vanishes.
pub(super) struct Answer {
    tx: Option<mpsc::Sender<Bytes>>,
    side_band: bool,
    idle_limit: Duration,
}

impl Answer {
    /// An answer, and the bytes of it as they come. A client that reads nothing for `idle_limit`
    /// counts as gone.
    pub(super) fn new(side_band: bool, idle_limit: Duration) -> (Self, mpsc::Receiver<Bytes>) {
        let (tx, rx) = mpsc::channel(PACKETS_IN_FLIGHT);
        (Self { tx: Some(tx), side_band, idle_limit }, rx)
    }

    fn client_left(&self) -> bool {
        self.tx.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// A line for the terminal.
    pub(super) async fn line(&mut self, line: &str) {
        for line in line.lines() {
            let mut line: String = terminal_line(line).chars().take(MAX_LINE_CHARACTERS).collect();
            line.push('\n');
            self.band(Band::Progress, line.as_bytes()).await;
        }
    }

    /// Git's own progress.
    pub(super) async fn progress(&mut self, bytes: &[u8]) {
        self.band(Band::Progress, &terminal_bytes(bytes)).await;
    }

    pub(super) async fn keep_alive(&mut self) {
        self.band(Band::Data, b"").await;
    }

    pub(super) async fn report(&mut self, report: &Report) {
        let bytes = report.to_bytes();
        if self.side_band {
            self.band(Band::Data, &bytes).await;
            self.send(Bytes::from_static(pktline::FLUSH)).await;
        } else {
            self.send(bytes.freeze()).await;
        }
    }

    /// Side-band packets; a client without side bands has no ear for anything but the report.
    async fn band(&mut self, band: Band, data: &[u8]) {
        if self.side_band {
            self.send(pktline::band(band, data)).await;
        }
    }

    async fn send(&mut self, bytes: Bytes) {
        let Some(tx) = &self.tx else { return };
        // A client that stays but reads nothing is as good as gone.
        let sent = tokio::time::timeout(self.idle_limit, tx.send(bytes)).await;
        if !matches!(sent, Ok(Ok(()))) {
            self.tx = None;
        }
    }
}

/// Passes the sink's lines to the terminal until the verdict.
pub(super) async fn follow(
    mut progress: PushProgress,
    answer: &mut Answer,
    limit: Duration,
) -> Option<PushVerdict> {
    let deadline = Instant::now() + limit;
    let mut keep_alive = tokio::time::interval(KEEP_ALIVE);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    keep_alive.reset();
    let still_going = "still going on: it is not waited for any longer";
    loop {
        tokio::select! {
            line = progress.next_line() => match line {
                Some(line) => {
                    answer.line(&line).await;
                    keep_alive.reset();
                }
                None => break,
            },
            _ = keep_alive.tick() => answer.keep_alive().await,
            () = tokio::time::sleep_until(deadline) => {
                answer.line(still_going).await;
                return Some(PushVerdict::accepted());
            }
        }
        if answer.client_left() {
            // Nobody reads the verdict. The work behind the progress goes on.
            return None;
        }
    }
    let mut verdict = std::pin::pin!(progress.verdict());
    loop {
        tokio::select! {
            verdict = &mut verdict => return verdict,
            _ = keep_alive.tick() => answer.keep_alive().await,
            () = tokio::time::sleep_until(deadline) => {
                answer.line(still_going).await;
                return Some(PushVerdict::accepted());
            }
        }
    }
}
