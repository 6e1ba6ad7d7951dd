//! How the keys of an installation are made and chosen.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::KeyPair;
use crate::Limits;

/// How keys are made and chosen.
#[derive(Debug, Clone)]
pub struct KeyRingOptions {
    /// File of the key that encrypts the others; made if it and they are missing.
    pub machine_key: PathBuf,
    /// Bits of new keys.
    pub key_bits: u32,
    /// How long the certificates of new keys count.
    pub lifetime: Duration,
    /// After how long there shall be a new key; `None` for never.
    pub renew_after: Option<Duration>,
    /// Name in the certificates of new keys; may be empty.
    pub common_name: String,
    /// Keys from before do not count as current, which makes a new one necessary.
    pub cutoff: Option<Timestamp>,
    /// What decides which key is the newest.
    pub order: KeyOrder,
    /// Whether to make a key where none is current.
    pub make: bool,
    /// What a secret may hold.
    pub limits: Limits,
}

impl KeyRingOptions {
    /// As the original: 4096 bits, ten years, renewed after thirty days.
    pub fn usual(machine_key: PathBuf) -> Self {
        Self {
            machine_key,
            key_bits: 4096,
            lifetime: Duration::from_hours(87_600),
            renew_after: Some(Duration::from_hours(720)),
            common_name: String::new(),
            cutoff: None,
            order: KeyOrder::CertificateNotBefore,
            make: true,
            limits: Limits::usual(),
        }
    }
}

/// What decides which key is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyOrder {
    /// When its certificate begins to count.
    #[default]
    CertificateNotBefore,
    /// When it was made.
    Created,
}

impl KeyOrder {
    /// The moment that a key is as old as.
    pub(super) fn age(self, pair: &KeyPair) -> Timestamp {
        match self {
            Self::CertificateNotBefore => pair.certificate.not_before(),
            Self::Created => pair.created,
        }
    }
}
