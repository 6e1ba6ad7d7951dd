//! `[queue.nats]`: the broker that keeps asynchronous calls, where `queue.backend` is `nats`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Deserialize;
use updraft_queue_nats::{NatsLogin, NatsOptions, NatsTls, StreamName};

/// What keeps asynchronous calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QueueBackend {
    /// A database file on this machine.
    #[default]
    Sqlite,
    /// NATS `JetStream`.
    Nats,
}

/// `[queue.nats]`: where the broker is, and who we are there.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NatsConfig {
    /// Servers of one cluster.
    servers: Vec<String>,
    /// What the names of our streams begin with.
    stream: String,
    /// On how many servers of the cluster each stream lies.
    replicas: usize,
    /// The name of this instance among those that share the streams.
    instance: Option<String>,
    /// A file with a token.
    token_file: Option<PathBuf>,
    /// A user.
    user: Option<String>,
    /// A file with the user's password.
    password_file: Option<PathBuf>,
    /// A file with the seed of an `NKey`.
    nkey_file: Option<PathBuf>,
    /// A credentials file, as `nsc` makes it.
    credentials_file: Option<PathBuf>,
    /// Whether a way in the clear is refused.
    tls: bool,
    /// Certificates to believe beside the system's.
    tls_roots: Option<PathBuf>,
    /// Our own certificate.
    tls_certificate: Option<PathBuf>,
    /// Its key.
    tls_key: Option<PathBuf>,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            stream: StreamName::default().as_str().to_owned(),
            replicas: 1,
            instance: None,
            token_file: None,
            user: None,
            password_file: None,
            nkey_file: None,
            credentials_file: None,
            tls: false,
            tls_roots: None,
            tls_certificate: None,
            tls_key: None,
        }
    }
}

impl NatsConfig {
    /// The options for the instance of that name unless the file gives it another.
    pub(crate) fn options(
        &self,
        instance: &str,
        index: &Path,
        lease: Duration,
    ) -> Result<NatsOptions> {
        if self.servers.is_empty() {
            bail!("queue.nats.servers is empty; name one, for instance `nats://127.0.0.1:4222`");
        }
        if !(1..=5).contains(&self.replicas) {
            bail!("queue.nats.replicas is {}; choose 1, 3 or 5", self.replicas);
        }
        let stream: StreamName =
            self.stream.parse().map_err(|error| anyhow::anyhow!("queue.nats.stream: {error}"))?;
        let instance = self.instance.as_deref().unwrap_or(instance);
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !(1..=64).contains(&instance.len()) || !instance.bytes().all(fits) {
            bail!("queue.nats.instance: use 1 to 64 letters, digits and `-_.`");
        }
        let own = match (&self.tls_certificate, &self.tls_key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            _ => bail!("queue.nats.tls_certificate and queue.nats.tls_key go together"),
        };
        Ok(NatsOptions {
            servers: self.servers.clone(),
            login: self.login()?,
            tls: NatsTls { required: self.tls, roots: self.tls_roots.clone(), own },
            stream,
            replicas: self.replicas,
            lease,
            instance: instance.to_owned(),
            index: index.to_owned(),
        })
    }

    fn login(&self) -> Result<NatsLogin> {
        let mut logins = Vec::new();
        logins.extend(self.token_file.clone().map(NatsLogin::Token));
        logins.extend(self.nkey_file.clone().map(NatsLogin::NKey));
        logins.extend(self.credentials_file.clone().map(NatsLogin::Credentials));
        match (&self.user, &self.password_file) {
            (Some(user), Some(file)) => {
                logins.push(NatsLogin::Password(user.clone(), file.clone()));
            }
            (None, None) => {}
            _ => bail!("queue.nats.user and queue.nats.password_file go together"),
        }
        if logins.len() > 1 {
            bail!(
                "queue.nats names several ways to log in; choose one of token_file, nkey_file, \
                 credentials_file, and user with password_file"
            );
        }
        Ok(logins.pop().unwrap_or(NatsLogin::Nobody))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<NatsOptions> {
        let config: NatsConfig = toml::from_str(text)?;
        config.options("0123abcd", Path::new("/index.db"), Duration::from_secs(30))
    }

    #[test]
    fn one_way_to_log_in_is_taken_with_its_file() {
        assert_eq!(options("").unwrap().login, NatsLogin::Nobody);
        assert_eq!(options("").unwrap().instance, "0123abcd");
        let login = options("user = 'u'\npassword_file = '/p'").unwrap().login;
        assert_eq!(login, NatsLogin::Password("u".to_owned(), "/p".into()));
        let options = options("token_file = '/t'\nreplicas = 3\ninstance = 'a'").unwrap();
        assert_eq!(options.login, NatsLogin::Token("/t".into()));
        assert_eq!((options.replicas, options.instance.as_str()), (3, "a"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_key() {
        for (text, key) in [
            ("servers = []", "queue.nats.servers"),
            ("replicas = 0", "queue.nats.replicas"),
            ("stream = 'a.b'", "queue.nats.stream"),
            ("instance = 'a b'", "queue.nats.instance"),
            ("user = 'u'", "queue.nats.password_file"),
            ("token_file = '/t'\nnkey_file = '/n'", "several ways"),
            ("tls_key = '/k'", "queue.nats.tls_certificate"),
            ("server = 'x'", "server"),
        ] {
            let refusal = options(text).unwrap_err().to_string();
            assert!(refusal.contains(key), "{refusal}");
        }
    }
}
