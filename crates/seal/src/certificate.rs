//! The public half of a key: all that is needed to seal.

use std::fmt;

use aws_lc_rs::rsa::{OaepPublicEncryptingKey, PublicEncryptingKey};
use jiff::Timestamp;
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::{fingerprint, pem};

/// Largest certificate file accepted, in bytes.
const FILE_MAX: usize = 1 << 20;

/// A certificate to seal with. Only its key and its end are looked at: it is trusted because of
/// where it was fetched, not because of who signed it.
#[derive(Clone)]
pub struct Certificate {
    key: PublicEncryptingKey,
    pem: String,
    fingerprint: String,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// The certificate cannot be used. The fault of whoever made the file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// There is no certificate in it.
    #[error("failed to read any certificates: there is no `BEGIN CERTIFICATE` block in it")]
    Missing,
    /// The first block is broken.
    #[error("the certificate is damaged, fetch it again")]
    Damaged,
    /// Its key is for something else.
    #[error("expected RSA public key but found {found}")]
    NotRsa {
        /// What it is instead.
        found: &'static str,
    },
    /// Its key is too small or too large.
    #[error("the certificate's RSA key cannot be used, 2048 to 8192 bits can")]
    KeySize,
    /// Its time is over.
    #[error("failed to encrypt using an expired certificate on {date}, fetch the newest one", date = .expired.strftime("%B %-d, %Y"))]
    Expired {
        /// When.
        expired: Timestamp,
    },
}

impl Certificate {
    /// Reads the first certificate of a PEM file, expired or not.
    ///
    /// # Errors
    /// The writer's fault; see [`CertificateError`].
    pub fn from_pem(bytes: &[u8]) -> Result<Self, CertificateError> {
        let text = bytes.get(..bytes.len().min(FILE_MAX)).unwrap_or_default();
        let text = std::str::from_utf8(text).map_err(|_| CertificateError::Missing)?;
        let blocks = pem::blocks(text, &["CERTIFICATE"]);
        let (_, der) = blocks.first().ok_or(CertificateError::Missing)?;
        Self::from_der(der)
    }

    pub(crate) fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| CertificateError::Damaged)?;
        let info = parsed.public_key();
        match info.parsed() {
            Ok(PublicKey::RSA(_)) => {}
            Ok(PublicKey::EC(_)) => return Err(CertificateError::NotRsa { found: "an ECDSA key" }),
            _ => return Err(CertificateError::NotRsa { found: "another kind of key" }),
        }
        let key = PublicEncryptingKey::from_der(info.raw).map_err(|_| CertificateError::KeySize)?;
        let time = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_second(time.timestamp()).map_err(|_| CertificateError::Damaged)
        };
        let fingerprint = fingerprint::fingerprint(info.raw).ok_or(CertificateError::Damaged)?;
        Ok(Self {
            key,
            pem: pem::encode("CERTIFICATE", der).to_string(),
            fingerprint,
            not_before: time(parsed.validity().not_before)?,
            not_after: time(parsed.validity().not_after)?,
        })
    }

    /// The certificate as it is served.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// The key's short name, such as `SHA256:n0Ei…`.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// From when it counts.
    pub const fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Until when it counts.
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Bits of its key.
    pub fn key_bits(&self) -> usize {
        self.key.key_size_bits()
    }

    /// Refuses a certificate whose time is over.
    ///
    /// # Errors
    /// [`CertificateError::Expired`].
    pub fn check_time(&self, now: Timestamp) -> Result<(), CertificateError> {
        if now > self.not_after {
            return Err(CertificateError::Expired { expired: self.not_after });
        }
        Ok(())
    }

    pub(crate) fn encrypting_key(&self) -> Option<OaepPublicEncryptingKey> {
        OaepPublicEncryptingKey::new(self.key.clone()).ok()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("fingerprint", &self.fingerprint)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
