//! Where the broker is, who we are there, and what our streams are called.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// What a [`NatsCallStore`](crate::NatsCallStore) needs to know.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// Servers of one cluster, such as `nats://127.0.0.1:4222`; `tls://` asks for TLS.
    pub servers: Vec<String>,
    /// Who we are there.
    pub login: NatsLogin,
    /// How the way there is protected.
    pub tls: NatsTls,
    /// What the names of our streams begin with.
    pub stream: StreamName,
    /// On how many servers of the cluster each stream lies.
    pub replicas: usize,
    /// How long a call is held without a sign of life; must be what the queue leases for.
    pub lease: Duration,
    /// The name of this instance among those that share the streams.
    pub instance: String,
    /// The file of the index, which is made anew.
    pub index: PathBuf,
}

/// How we show who we are. Secrets are read from files and never printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatsLogin {
    /// Not at all.
    Nobody,
    /// By a token in a file.
    Token(PathBuf),
    /// By a user and a password in a file.
    Password(String, PathBuf),
    /// By the seed of a key pair (`NKey`) in a file.
    NKey(PathBuf),
    /// By a credentials file, as `nsc` makes it.
    Credentials(PathBuf),
}

/// How the way to the servers is protected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NatsTls {
    /// Whether a way in the clear is refused.
    pub required: bool,
    /// A PEM file with certificates to believe beside the system's.
    pub roots: Option<PathBuf>,
    /// Our certificate and its key, where the servers ask for one.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// What stream names begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamName(String);

/// The text can begin no stream name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` cannot begin the name of a stream, use 1 to 32 letters, digits, `-` and `_`")]
pub struct ParseStreamNameError(String);

impl FromStr for StreamName {
    type Err = ParseStreamNameError;

    fn from_str(text: &str) -> Result<Self, ParseStreamNameError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if (1..=32).contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseStreamNameError(text.chars().take(64).collect()))
        }
    }
}

impl StreamName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for StreamName {
    fn default() -> Self {
        Self("UPDRAFT".to_owned())
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_name_holds_nothing_that_means_something_to_the_broker() {
        for good in ["UPDRAFT", "a", "team_1-queue"] {
            assert!(good.parse::<StreamName>().is_ok(), "{good}");
        }
        for bad in ["", "a.b", "a b", "a*", ">", "a/b", &"x".repeat(33)] {
            assert!(bad.parse::<StreamName>().is_err(), "{bad}");
        }
    }
}
