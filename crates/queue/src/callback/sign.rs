//! Signing what is told, so that the receiver knows that it comes from here.
//!
//! One key lies on the server; each owner gets a key derived from it. Who can check what is told
//! of their own calls can therefore not pretend to tell of another owner's. A function whose
//! callbacks go to somebody who should not know the owner's key has keys of its own, in a secret.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::iter;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;
use updraft_engine::SecretValue;
use updraft_model::OwnerName;
use updraft_store::queue::CallRecord;

use crate::shared::Shared;

/// Bytes of a key.
const LENGTH: usize = 32;

/// The key of the server. Never printed.
#[derive(Clone)]
pub struct SigningKey([u8; LENGTH]);

/// The key of one owner, as the owner gets it: 64 hex digits, whose text is the HMAC key.
#[derive(Clone, PartialEq, Eq)]
pub struct OwnerKey(String);

/// The key file cannot be read or made.
#[derive(Debug, Error)]
pub enum OpenKeyError {
    /// The machine's fault.
    #[error("cannot use the key file `{path}`, check the folder's permissions", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody changed it.
    #[error("the key file `{path}` does not hold {LENGTH} bytes in hex, restore it or remove it", path = path.display())]
    Content {
        /// Which file.
        path: PathBuf,
    },
}

impl SigningKey {
    /// A key of these bytes.
    pub const fn new(bytes: [u8; LENGTH]) -> Self {
        Self(bytes)
    }

    /// Reads the key file, or makes one that this user alone can read.
    ///
    /// # Errors
    /// See [`OpenKeyError`].
    pub fn open(path: &Path) -> Result<Self, OpenKeyError> {
        let failed = |source| OpenKeyError::File { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let mut file = file.open(path).map_err(failed)?;
        let mut text = String::new();
        (&file).take(1024).read_to_string(&mut text).map_err(failed)?;
        if text.trim().is_empty() {
            let mut bytes = [0; LENGTH];
            getrandom::fill(&mut bytes).map_err(|error| failed(io::Error::other(error)))?;
            writeln!(file, "{}", hex::encode(bytes)).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            return Ok(Self(bytes));
        }
        let mut bytes = [0; LENGTH];
        hex::decode_to_slice(text.trim(), &mut bytes)
            .map_err(|_| OpenKeyError::Content { path: path.to_owned() })?;
        Ok(Self(bytes))
    }

    /// The key of an owner; the functions of nobody have one together.
    pub fn of(&self, owner: Option<&OwnerName>) -> OwnerKey {
        let name = owner.map_or("", OwnerName::as_str);
        let mut mac = mac(&self.0);
        mac.update(b"updraft callback key of ");
        mac.update(name.as_bytes());
        OwnerKey(hex::encode(mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

impl OwnerKey {
    /// The text to hand to the owner.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What signs one callback.
pub(super) enum Signer {
    /// The keys in the function's own secret.
    Function(Vec<SecretValue>),
    /// The key of the function's owner.
    Owner(OwnerKey),
}

impl Signer {
    /// What signs for a call of `owner`'s function, as it is now. A function that is gone has no
    /// keys of its own any more.
    ///
    /// # Errors
    /// The function's own keys are not to be had. Another key would not be believed, so nothing is
    /// told without them.
    pub(super) async fn of(shared: &Shared, record: &CallRecord) -> Result<Self, String> {
        let owners = || Self::Owner(shared.options.callback.key.of(record.owner.as_ref()));
        let Some(function) = shared.invoker.find(&record.function.to_string()) else {
            return Ok(owners());
        };
        let secret = function.spec().callback_secret();
        let Some(secret) = secret.map_err(|error| format!("cannot be signed: {error}"))? else {
            return Ok(owners());
        };
        let keys = shared.invoker.keys(&function, secret).await;
        keys.map(Self::Function)
            .map_err(|error| format!("cannot be signed with secret `{secret}`: {error}"))
    }

    /// The signature of what is told of a call now.
    pub(super) fn sign(&self, seconds: i64, call: &str, status: u16, body: &[u8]) -> String {
        match self {
            Self::Function(keys) => {
                signature(keys.iter().map(SecretValue::expose), seconds, call, status, body)
            }
            Self::Owner(key) => {
                signature(iter::once(key.0.as_bytes()), seconds, call, status, body)
            }
        }
    }
}

/// The signature of what is told: `t=<seconds>`, and for each key `,v1=<hex>`, the HMAC-SHA256 of
/// `<seconds>.<call id>.<status>.<body>`.
pub(super) fn signature<'a>(
    keys: impl Iterator<Item = &'a [u8]>,
    seconds: i64,
    call: &str,
    status: u16,
    body: &[u8],
) -> String {
    let mut told = format!("t={seconds}");
    for key in keys {
        let mut mac = mac(key);
        mac.update(format!("{seconds}.{call}.{status}.").as_bytes());
        mac.update(body);
        told.push_str(",v1=");
        told.push_str(&hex::encode(mac.finalize().into_bytes()));
    }
    told
}

impl fmt::Debug for OwnerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnerKey(…)")
    }
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_this_user_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let made = SigningKey::open(&path).unwrap();
        assert_eq!(SigningKey::open(&path).unwrap().of(None), made.of(None));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(SigningKey::open(&path), Err(OpenKeyError::Content { .. })));
    }

    #[test]
    fn owners_have_different_keys_and_no_key_prints() {
        let key = SigningKey::new([1; 32]);
        let (alice, bob) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        assert_ne!(key.of(Some(&alice)), key.of(Some(&bob)));
        assert_ne!(key.of(Some(&alice)), key.of(None));
        assert_eq!(format!("{key:?} {:?}", key.of(None)), "SigningKey(…) OwnerKey(…)");
    }

    #[test]
    fn the_signature_is_what_the_documentation_says() {
        // printf '5.id.200.body' | openssl dgst -sha256 -hmac key
        let sign = |keys: &[&[u8]]| signature(keys.iter().copied(), 5, "id", 200, b"body");
        let expected = "51bc6a9ff2de3e7a1b7a408f5f9c05322ea5567e1f03ca246ca6788f60159cf8";
        assert_eq!(sign(&[b"key"]), format!("t=5,v1={expected}"));
        // With several keys whoever has one of them can check it.
        let both = sign(&[b"new", b"key"]);
        assert!(
            both.starts_with("t=5,v1=") && both.ends_with(&format!(",v1={expected}")),
            "{both}"
        );
        assert_eq!(both.matches("v1=").count(), 2);
    }
}
