//! The numbers of one process: the registry's text, what the process itself uses, and a listener
//! of their own for who scrapes without a password.
//!
//! Every part registers its families into one [`Registry`](prometheus_client::registry::Registry);
//! this crate turns it into the text that Prometheus reads. It counts nothing that another part
//! does, and it decides nothing about who may read: the gateway does for its route, and the
//! operator does by where the listener is bound.

mod listener;
mod process;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

pub use listener::serve;
pub use process::register_process;

/// The content type of [`encode`]: OpenMetrics 1.0.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The registry as OpenMetrics text.
///
/// # Errors
/// A collector failed; the message is for the log, there is nothing a caller can do.
pub fn encode(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    text::encode(&mut out, registry)?;
    Ok(out)
}
