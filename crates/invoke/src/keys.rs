//! The keys of a function: the lines of one of its secrets, so that a new one can be there before
//! the old one goes. Read through the engine, never printed.

use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout;
use updraft_engine::{Engine, EngineError, SecretValue};
use updraft_model::{Namespace, SecretName};

/// Most keys at once; further lines of the secret are not read.
const MOST_KEYS: usize = 32;

/// How long the engine may take to read a secret.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// Why there is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MissingKeys {
    /// The secret is not there, or has no line in it. The fault of the function's owner.
    #[error("the secret is missing or empty")]
    Absent,
    /// The engine did not say. The machine's fault; the log tells more.
    #[error("the secret could not be read")]
    Unread,
}

/// Reads the keys that are in a secret now.
pub(crate) async fn read(
    engine: &dyn Engine,
    namespace: &Namespace,
    name: &SecretName,
) -> Result<Vec<SecretValue>, MissingKeys> {
    let items = match timeout(READ_LIMIT, engine.read_secret(namespace, name)).await {
        Ok(Ok(items)) => items,
        Ok(Err(error)) => {
            let absent = matches!(
                error,
                EngineError::UnknownSecret { .. } | EngineError::UnknownNamespace(_)
            );
            let error = &error as &dyn std::error::Error;
            tracing::warn!(secret = %name, %namespace, error, "cannot read keys of a function");
            return Err(if absent { MissingKeys::Absent } else { MissingKeys::Unread });
        }
        Err(_) => {
            tracing::warn!(secret = %name, %namespace, "reading keys of a function took too long");
            return Err(MissingKeys::Unread);
        }
    };
    let Some(secret) = items.value(name) else { return Err(MissingKeys::Absent) };
    let lines = secret.expose().split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let keys: Vec<_> =
        lines.filter(|line| !line.is_empty()).take(MOST_KEYS).map(SecretValue::new).collect();
    if keys.is_empty() { Err(MissingKeys::Absent) } else { Ok(keys) }
}
