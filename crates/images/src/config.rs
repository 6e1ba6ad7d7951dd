//! The part of an image's configuration that a replica is started from.

use std::collections::BTreeMap;

use serde::Deserialize;

/// This machine's processor as images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// How the image's author wants a container of it started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// Environment variables in the order written.
    pub env: Vec<(String, String)>,
    /// Program and first arguments; may be empty.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the whole command when there is no entrypoint.
    pub cmd: Vec<String>,
    /// `user[:group]`, names or numbers; empty means root.
    pub user: String,
    /// Folder the command starts in; empty means `/`.
    pub working_dir: String,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// Ports the image says it listens on, such as `8080/tcp`.
    pub exposed_ports: Vec<String>,
    /// Signal that asks it to stop, such as `SIGTERM`; empty means that one.
    pub stop_signal: String,
}

/// The stored form: an image configuration of OCI or Docker.
#[derive(Debug, Deserialize)]
struct Stored {
    #[serde(default)]
    config: Option<StoredConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StoredConfig {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
}

impl ImageConfig {
    /// Reads the configuration file of an image, OCI or Docker.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let stored: Stored = serde_json::from_slice(bytes)?;
        let stored = stored.config.unwrap_or_default();
        let pair = |line: String| match line.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (line, String::new()),
        };
        Ok(Self {
            env: stored.env.unwrap_or_default().into_iter().map(pair).collect(),
            entrypoint: stored.entrypoint.unwrap_or_default(),
            cmd: stored.cmd.unwrap_or_default(),
            user: stored.user.unwrap_or_default(),
            working_dir: stored.working_dir.unwrap_or_default(),
            labels: stored.labels.unwrap_or_default(),
            exposed_ports: stored.exposed_ports.unwrap_or_default().into_keys().collect(),
            stop_signal: stored.stop_signal.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_with_values_that_hold_equals_signs() {
        let config = ImageConfig::parse(
            br#"{"architecture":"amd64","config":{"Env":["A=b=c","D"],"Cmd":["/x"],
                "Entrypoint":null,"User":"app","ExposedPorts":{"8080/tcp":{}}}}"#,
        )
        .unwrap();
        assert_eq!(config.env, [("A".into(), "b=c".into()), ("D".into(), String::new())]);
        assert_eq!((config.cmd.as_slice(), config.user.as_str()), (&["/x".to_owned()][..], "app"));
        assert_eq!(config.exposed_ports, ["8080/tcp"]);
    }

    #[test]
    fn an_image_without_configuration_starts_nothing() {
        assert_eq!(ImageConfig::parse(b"{}").unwrap(), ImageConfig::default());
    }
}
