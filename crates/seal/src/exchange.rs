//! Keys as other tools keep them: `Secret` resources of a cluster, or bare PEM files.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::document::{ParseError, PlainSecret};
use crate::ring::{KeyPair, KeyState};
use crate::write::yaml;
use crate::{
    Certificate, CertificateError, KeyError, Limits, PrivateKey, SecretBytes, parse_secrets,
};

/// The label that makes a `Secret` a key, and says whether it is used.
const LABEL: &str = "sealedsecrets.bitnami.com/sealed-secrets-key";

/// Name of the key of the first controllers, which had no label.
const LEGACY_NAME: &str = "sealed-secrets-key";

/// How long the certificate of a key counts that came without one.
const LIFETIME: SignedDuration = SignedDuration::from_hours(87_600);

/// A file of keys cannot be read. The writer's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImportError {
    /// It is neither PEM nor YAML nor JSON that we understand.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// A key of it cannot be used.
    #[error("the key `{name}` cannot be used: {source}")]
    Key {
        /// Name of the `Secret`, or `PEM`.
        name: String,
        /// Why.
        source: KeyError,
    },
    /// A certificate of it cannot be used.
    #[error("the certificate of the key `{name}` cannot be used: {source}")]
    Certificate {
        /// Name of the `Secret`, or `PEM`.
        name: String,
        /// Why.
        source: CertificateError,
    },
    /// Key and certificate are not of one pair.
    #[error("the certificate of the key `{name}` belongs to another key")]
    Mismatch {
        /// Name of the `Secret`, or `PEM`.
        name: String,
    },
    /// A `Secret` that says it is a key holds none.
    #[error("the secret `{name}` has no `tls.key`")]
    NoKey {
        /// Name of the `Secret`.
        name: String,
    },
    /// There is none.
    #[error(
        "there is no key in it; a `Secret` needs the label `{LABEL}`, or give a private key in PEM"
    )]
    Empty,
}

/// Reads the keys of a backup (`Secret` resources, one by one or in a List), or a private key in
/// PEM with its certificate if it has one.
///
/// # Errors
/// The writer's fault.
pub fn import_keys(bytes: &[u8]) -> Result<Vec<KeyPair>, ImportError> {
    if bytes.windows(10).any(|window| window == b"-----BEGIN") {
        let trimmed = bytes.trim_ascii_start();
        if trimmed.starts_with(b"-----BEGIN") || trimmed.starts_with(b"Bag Attributes") {
            return pair("PEM", bytes, Some(bytes), None, KeyState::Active).map(|pair| vec![pair]);
        }
    }
    let mut pairs = Vec::new();
    for secret in parse_secrets(bytes, Limits::usual())? {
        let label = secret.template.labels.get(LABEL);
        let name = secret.name.clone().unwrap_or_default();
        let is_tls = secret.template.kind.as_deref() == Some("kubernetes.io/tls");
        if label.is_none() && name != LEGACY_NAME && !is_tls {
            continue;
        }
        pairs.push(of_secret(&secret, name, label.map(String::as_str))?);
    }
    if pairs.is_empty() { Err(ImportError::Empty) } else { Ok(pairs) }
}

fn of_secret(
    secret: &PlainSecret,
    name: String,
    label: Option<&str>,
) -> Result<KeyPair, ImportError> {
    let Some(key) = secret.items.get("tls.key") else { return Err(ImportError::NoKey { name }) };
    let certificate = secret.items.get("tls.crt").map(SecretBytes::expose);
    let created = secret.created.as_ref().and_then(|created| created.parse().ok());
    let state = label.map_or(KeyState::Active, KeyState::of_label);
    pair(&name, key.expose(), certificate, created, state)
}

fn pair(
    name: &str,
    key: &[u8],
    certificate: Option<&[u8]>,
    created: Option<Timestamp>,
    state: KeyState,
) -> Result<KeyPair, ImportError> {
    let name = || name.to_owned();
    let failed = |source| ImportError::Key { name: name(), source };
    let private = PrivateKey::from_pem(key).map_err(failed)?;
    let certificate = match certificate.map(Certificate::from_pem) {
        Some(Ok(certificate)) => certificate,
        None | Some(Err(CertificateError::Missing)) => {
            let from = created.unwrap_or_else(Timestamp::now);
            private.certify("", from, LIFETIME).map_err(failed)?
        }
        Some(Err(source)) => return Err(ImportError::Certificate { name: name(), source }),
    };
    if certificate.fingerprint() != private.fingerprint() {
        return Err(ImportError::Mismatch { name: name() });
    }
    let created = created.unwrap_or_else(|| certificate.not_before());
    Ok(KeyPair { private: Arc::new(private), certificate, created, state })
}

/// Keys as a List of `Secret` resources, which a cluster's controller and `kubeseal
/// --recovery-unseal` read. Wiped when dropped.
pub fn export_keys(pairs: &[KeyPair], namespace: &str) -> Zeroizing<String> {
    let secret = |pair: &KeyPair| {
        let fingerprint = hex::encode(pair.private.fingerprint());
        let mut labels = BTreeMap::new();
        labels.insert(LABEL, pair.state.as_str());
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {
                // Names are chosen by the cluster's controller at random; ours follow the key.
                "name": format!("{LEGACY_NAME}{}", &fingerprint[14..24]),
                "namespace": namespace,
                "labels": labels,
                "creationTimestamp": pair.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            },
            "data": {
                "tls.crt": STANDARD.encode(pair.certificate.to_pem()),
                "tls.key": STANDARD.encode(pair.private.to_pem().as_bytes()),
            },
        })
    };
    let secrets: Vec<_> = pairs.iter().map(secret).collect();
    Zeroizing::new(format!(
        "---\n{}",
        yaml(&json!({"apiVersion": "v1", "kind": "List", "items": secrets}))
    ))
}
