//! The short name of a key, the same for its public and its private half.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// `SHA256:` and the digest of the key in SSH's wire format, as `ssh-keygen -l` prints it. `None`
/// where the key is no RSA key.
pub(crate) fn fingerprint(public_key_info: &[u8]) -> Option<String> {
    let (_, info) = SubjectPublicKeyInfo::from_der(public_key_info).ok()?;
    let Ok(PublicKey::RSA(key)) = info.parsed() else { return None };
    let mut wire = Vec::with_capacity(key.modulus.len() + 32);
    for part in [&b"ssh-rsa"[..], &integer(key.exponent), &integer(key.modulus)] {
        wire.extend(u32::try_from(part.len()).ok()?.to_be_bytes());
        wire.extend(part);
    }
    Some(format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&wire))))
}

/// A number as SSH writes it: shortest form, with a zero before a set top bit.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    let bytes = &bytes[start..];
    let mut number = Vec::with_capacity(bytes.len() + 1);
    if bytes.first().is_some_and(|first| first & 0x80 != 0) {
        number.push(0);
    }
    number.extend(bytes);
    number
}
