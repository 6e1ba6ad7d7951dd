//! What the end-to-end tests share: a whole cloud in a folder of its own, repositories pushed to
//! it with real git, and requests as a client sends them.
//!
//! A test that crashes leaves a cloud behind; the next test that starts sweeps it.

mod base_images;
mod cloud;
mod data_plane;
pub mod fixture;
mod git;
mod http;
pub mod images;
mod nats;
mod sweep;
mod traces;

use std::future::Future;
use std::time::{Duration, Instant};

pub use cloud::{Cloud, CommandOutput, binary};
pub use data_plane::DataPlane;
pub use git::{PushOutcome, Repository};
pub use http::{Answer, Connection};
pub use nats::Nats;
pub use traces::Traces;

/// The bytes in base64, as JSON carries them.
pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Removes what crashed test runs have left on the machine.
///
/// # Panics
/// When something of it stays.
pub fn sweep_leftovers() {
    sweep::sweep(&binary());
}

/// Asks again and again until there is an answer, at most for `limit`; panics with `what` then.
pub async fn eventually<T, F, Answer>(what: &str, limit: Duration, mut question: F) -> T
where
    F: FnMut() -> Answer,
    Answer: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = question().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
