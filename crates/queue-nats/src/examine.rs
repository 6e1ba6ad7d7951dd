//! Looking at the broker without changing it, for an operator's check.

use std::time::Duration;

use async_nats::ServerAddr;

use crate::NatsOptions;
use crate::link::{connect_options, with_causes};

/// Longest time of a look.
const LIMIT: Duration = Duration::from_secs(5);

/// Messages shorter than this leave no room for what callers send.
const MESSAGE_WANTED: usize = 512 << 10;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatsFinding {
    /// All is well: a sentence about it.
    Good(String),
    /// It works, but not as it should: what, and what to do.
    Warning(String, String),
    /// It does not work: what, and what to do.
    Missing(String, String),
}

/// Connects, and asks for what the queue needs.
pub async fn examine(options: &NatsOptions) -> NatsFinding {
    match tokio::time::timeout(LIMIT, look(options)).await {
        Ok(Ok(finding) | Err(finding)) => finding,
        Err(_) => {
            missing("no server answers", "start nats-server, or correct `queue.nats.servers`")
        }
    }
}

fn missing(found: impl Into<String>, advice: &str) -> NatsFinding {
    NatsFinding::Missing(found.into(), advice.to_owned())
}

async fn look(options: &NatsOptions) -> Result<NatsFinding, NatsFinding> {
    let settings = "correct `queue.nats` in the configuration";
    let mut addresses: Vec<ServerAddr> = Vec::new();
    for address in &options.servers {
        addresses.push(address.parse().map_err(|error| missing(format!("{error}"), settings))?);
    }
    let connect =
        connect_options(options, "NATS").map_err(|error| missing(with_causes(&error), settings))?;
    let client = connect.connect(addresses).await.map_err(|error| {
        missing(with_causes(&error), "start nats-server, or correct `queue.nats`")
    })?;
    let server = client.server_info();
    let nothing = |reason: &str| {
        missing(
            format!("the server {} has no JetStream for this account ({reason})", server.version),
            "start it with `--jetstream`, or enable JetStream for the account",
        )
    };
    let account = client.request("$JS.API.INFO", "".into()).await;
    let account = account.map_err(|error| nothing(&with_causes(&error)))?;
    // Read by hand: servers of different ages tell different things.
    let account: serde_json::Value =
        serde_json::from_slice(&account.payload).map_err(|error| nothing(&error.to_string()))?;
    if let Some(refusal) = account["error"]["description"].as_str() {
        return Err(nothing(refusal));
    }
    let number = |name: &str| account[name].as_f64().unwrap_or_default();
    let found = format!(
        "version {}, {} streams, {:.1} GiB stored",
        server.version,
        number("streams"),
        number("storage") / f64::from(1 << 30),
    );
    if server.max_payload < MESSAGE_WANTED {
        let advice = "raise `max_payload` of the server to 1MB".to_owned();
        let found = format!("{found}; messages may have {} bytes only", server.max_payload);
        return Ok(NatsFinding::Warning(found, advice));
    }
    Ok(NatsFinding::Good(found))
}
