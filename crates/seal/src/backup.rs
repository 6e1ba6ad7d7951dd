//! All keys in one encrypted file, for the day the machine is gone.
//!
//! Inside is what [`export_keys`] writes, around it the format of the `age` tool, so a backup can
//! be opened and used without us: `age -d keys.age > keys.yaml`.

use age::secrecy::SecretString;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::exchange::{ImportError, export_keys, import_keys};
use crate::ring::KeyPair;

/// Namespace that the exported `Secret` resources name, the usual one of the controller.
const NAMESPACE: &str = "kube-system";

/// Most work that opening a backup may ask for: some seconds.
const WORK_MAX: u8 = 22;

/// Shortest passphrase accepted for a new backup.
const PASSPHRASE_MIN: usize = 12;

/// Who may open a backup.
pub enum BackupTo {
    /// Whoever knows the passphrase.
    Passphrase(Zeroizing<String>),
    /// Whoever has the identity of this recipient, `age1…`.
    Recipient(String),
}

/// What opens a backup.
pub enum BackupFrom {
    /// The passphrase.
    Passphrase(Zeroizing<String>),
    /// The text of an identity file, with a line `AGE-SECRET-KEY-1…`.
    Identity(Zeroizing<String>),
}

/// A backup cannot be written.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The caller's fault.
    #[error(
        "the passphrase has fewer than {PASSPHRASE_MIN} characters; whoever finds the file can try many"
    )]
    ShortPassphrase,
    /// The caller's fault.
    #[error(
        "`{recipient}` is no age recipient: {reason}; expected one such as `age1…`, `age-keygen` makes it"
    )]
    Recipient {
        /// What was given.
        recipient: String,
        /// Why.
        reason: &'static str,
    },
    /// There is nothing to back up.
    #[error("there are no keys to back up")]
    Empty,
    /// The machine's fault.
    #[error("the backup cannot be encrypted")]
    Encrypt(#[source] age::EncryptError),
}

/// A backup cannot be read.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The caller's fault.
    #[error("there is no line `AGE-SECRET-KEY-1…` in the identity file")]
    Identity,
    /// Wrong passphrase or identity, or a damaged file.
    #[error(
        "the backup does not open: {0}; check the passphrase or identity, and that the file is whole"
    )]
    Decrypt(age::DecryptError),
    /// What is inside is no backup of keys.
    #[error("the backup holds no keys")]
    Content(#[source] ImportError),
}

/// Encrypts keys to whoever may open them.
///
/// # Errors
/// See [`BackupError`].
pub fn back_up(pairs: &[KeyPair], to: &BackupTo) -> Result<String, BackupError> {
    if pairs.is_empty() {
        return Err(BackupError::Empty);
    }
    let keys = export_keys(pairs, NAMESPACE);
    let encrypted = match to {
        BackupTo::Passphrase(passphrase) => {
            if passphrase.chars().count() < PASSPHRASE_MIN {
                return Err(BackupError::ShortPassphrase);
            }
            let passphrase = SecretString::from(passphrase.to_string());
            age::encrypt_and_armor(&age::scrypt::Recipient::new(passphrase), keys.as_bytes())
        }
        BackupTo::Recipient(text) => {
            let recipient: age::x25519::Recipient = text
                .trim()
                .parse()
                .map_err(|reason| BackupError::Recipient { recipient: text.clone(), reason })?;
            age::encrypt_and_armor(&recipient, keys.as_bytes())
        }
    };
    encrypted.map_err(BackupError::Encrypt)
}

/// Reads the keys of a backup.
///
/// # Errors
/// See [`RestoreError`].
pub fn read_backup(backup: &[u8], from: &BackupFrom) -> Result<Vec<KeyPair>, RestoreError> {
    let keys = match from {
        BackupFrom::Passphrase(passphrase) => {
            let mut identity =
                age::scrypt::Identity::new(SecretString::from(passphrase.to_string()));
            identity.set_max_work_factor(WORK_MAX);
            age::decrypt(&identity, backup)
        }
        BackupFrom::Identity(text) => {
            let identity = text.lines().find_map(|line| line.trim().parse().ok());
            let identity: age::x25519::Identity = identity.ok_or(RestoreError::Identity)?;
            age::decrypt(&identity, backup)
        }
    };
    let keys = Zeroizing::new(keys.map_err(RestoreError::Decrypt)?);
    import_keys(&keys).map_err(RestoreError::Content)
}

impl std::fmt::Debug for BackupTo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Passphrase(_) => f.write_str("Passphrase(…)"),
            Self::Recipient(recipient) => f.debug_tuple("Recipient").field(recipient).finish(),
        }
    }
}

impl std::fmt::Debug for BackupFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase(…)",
            Self::Identity(_) => "Identity(…)",
        })
    }
}
