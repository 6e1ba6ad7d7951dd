//! The private half of a key.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SerialNumber,
};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{Certificate, fingerprint, pem};

/// A private RSA key. Never printed.
pub struct PrivateKey {
    key: OaepPrivateDecryptingKey,
    pkcs8: Zeroizing<Vec<u8>>,
    fingerprint: String,
    bits: usize,
}

/// A private key cannot be read or made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// There is none in it.
    #[error("there is no `RSA PRIVATE KEY` or `PRIVATE KEY` block in it")]
    Missing,
    /// It is damaged, no RSA key, or of another size.
    #[error("the private key cannot be used, an RSA key of 2048 to 8192 bits can")]
    Unusable,
    /// Making one failed. The machine's fault.
    #[error("cannot make an RSA key of {bits} bits")]
    Generate {
        /// How large.
        bits: u32,
    },
    /// Making a certificate failed.
    #[error("cannot make a certificate for the key")]
    Certify,
}

impl PrivateKey {
    /// Makes one of 2048, 3072, 4096 or 8192 bits. Takes a second.
    ///
    /// # Errors
    /// Another size; the machine's fault.
    pub fn generate(bits: u32) -> Result<Self, KeyError> {
        let size = match bits {
            2048 => KeySize::Rsa2048,
            3072 => KeySize::Rsa3072,
            4096 => KeySize::Rsa4096,
            8192 => KeySize::Rsa8192,
            _ => return Err(KeyError::Generate { bits }),
        };
        let key = PrivateDecryptingKey::generate(size).map_err(|_| KeyError::Generate { bits })?;
        Self::new(key)
    }

    /// Reads the first private key of a PEM file, PKCS#1 or PKCS#8.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub fn from_pem(bytes: &[u8]) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(bytes).map_err(|_| KeyError::Missing)?;
        let blocks = pem::blocks(text, &["RSA PRIVATE KEY", "PRIVATE KEY"]);
        match blocks.first() {
            Some(("RSA PRIVATE KEY", pkcs1)) => Self::from_pkcs8(&wrap(pkcs1)),
            Some((_, pkcs8)) => Self::from_pkcs8(pkcs8),
            None => Err(KeyError::Missing),
        }
    }

    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let key = PrivateDecryptingKey::from_pkcs8(pkcs8).map_err(|_| KeyError::Unusable)?;
        Self::new(key)
    }

    fn new(key: PrivateDecryptingKey) -> Result<Self, KeyError> {
        let public = key.public_key().as_der().map_err(|_| KeyError::Unusable)?;
        let fingerprint = fingerprint::fingerprint(public.as_ref()).ok_or(KeyError::Unusable)?;
        let pkcs8: Pkcs8V1Der<'_> = key.as_der().map_err(|_| KeyError::Unusable)?;
        Ok(Self {
            pkcs8: Zeroizing::new(pkcs8.as_ref().to_vec()),
            fingerprint,
            bits: key.key_size_bits(),
            key: OaepPrivateDecryptingKey::new(key).map_err(|_| KeyError::Unusable)?,
        })
    }

    /// The key's short name, the same as of its certificate.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Bits of the key.
    pub const fn bits(&self) -> usize {
        self.bits
    }

    /// The key in the form that other tools expect: PKCS#1 in PEM.
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::encode("RSA PRIVATE KEY", unwrap(&self.pkcs8).unwrap_or_default())
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub(crate) const fn decrypting_key(&self) -> &OaepPrivateDecryptingKey {
        &self.key
    }

    /// A self-signed certificate for the key, of the profile that the original controller has:
    /// an authority whose key may only encipher, named `common_name` or nothing.
    ///
    /// # Errors
    /// The machine's fault.
    pub fn certify(
        &self,
        common_name: &str,
        now: Timestamp,
        lifetime: jiff::SignedDuration,
    ) -> Result<Certificate, KeyError> {
        let failed = |_| KeyError::Certify;
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(
            &self.pkcs8.as_slice().into(),
            &rcgen::PKCS_RSA_SHA256,
        );
        let pair = pair.map_err(failed)?;
        let mut serial = [0; 16];
        getrandom::fill(&mut serial).map_err(|_| KeyError::Certify)?;
        // A set top bit would cost another byte, and zero is no serial number.
        serial[0] = serial[0] & 0x7f | 0x40;
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial.to_vec()));
        params.distinguished_name = DistinguishedName::new();
        if !common_name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, common_name);
        }
        let end = now.checked_add(lifetime).map_err(|_| KeyError::Certify)?;
        let moment = |time: Timestamp| {
            let seconds = time.as_second().max(0).unsigned_abs();
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
        };
        params.not_before = moment(now);
        params.not_after = moment(end);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::EncipherOnly];
        let certificate = params.self_signed(&pair).map_err(failed)?;
        Certificate::from_der(certificate.der()).map_err(|_| KeyError::Certify)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// What stands before an RSA key in PKCS#8: version 0, algorithm `rsaEncryption`.
const RSA_ALGORITHM: &[u8] = &[
    0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01,
    0x05, 0x00,
];

/// PKCS#1 as PKCS#8.
fn wrap(pkcs1: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut inner = Zeroizing::new(Vec::with_capacity(pkcs1.len() + 32));
    inner.extend(RSA_ALGORITHM);
    inner.push(0x04);
    inner.extend(length(pkcs1.len()));
    inner.extend(pkcs1);
    let mut outer = Zeroizing::new(Vec::with_capacity(inner.len() + 8));
    outer.push(0x30);
    outer.extend(length(inner.len()));
    outer.extend(inner.iter());
    outer
}

/// The PKCS#1 inside PKCS#8.
fn unwrap(pkcs8: &[u8]) -> Option<&[u8]> {
    let (0x30, inner) = element(pkcs8)? else { return None };
    let rest = inner.strip_prefix(RSA_ALGORITHM)?;
    let (0x04, pkcs1) = element(rest)? else { return None };
    Some(pkcs1)
}

/// A length as DER writes it.
fn length(length: usize) -> Vec<u8> {
    let bytes = length.to_be_bytes();
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - 1);
    let bytes = &bytes[start..];
    if length < 0x80 {
        return bytes.to_vec();
    }
    let mut written = vec![0x80 | u8::try_from(bytes.len()).unwrap_or(8)];
    written.extend(bytes);
    written
}

/// Tag and content of the element that a DER text begins with.
fn element(der: &[u8]) -> Option<(u8, &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    if *first < 0x80 {
        return Some((*tag, rest.get(..usize::from(*first))?));
    }
    let count = usize::from(first & 0x7f);
    let (bytes, rest) = (rest.get(..count)?, rest.get(count..)?);
    if count > 4 {
        return None;
    }
    let length = bytes.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
    Some((*tag, rest.get(..length)?))
}
