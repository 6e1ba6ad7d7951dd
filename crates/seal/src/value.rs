//! The format of one sealed value.
//!
//! Two bytes tell the length of the first part, a fresh session key encrypted to the RSA key
//! (OAEP, SHA-256, bound to a label); what follows is the value under that session key
//! (AES-256-GCM). The nonce is all zero, which is sound because no session key is used twice: one
//! is made inside [`seal_value`] and lives nowhere else.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rsa::OAEP_SHA256_MGF1SHA256;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{Certificate, PrivateKey, SecretBytes};

/// Bytes of a session key.
const SESSION_KEY: usize = 32;

/// Bytes of the tag at the end.
pub(crate) const TAG: usize = 16;

/// A value could not be sealed. The machine's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the value cannot be encrypted with this certificate's key")]
pub struct SealValueError;

/// The text is no sealed value. The writer's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ValueError {
    /// Not strict base64: another alphabet, no padding, a line break.
    #[error("the value is not valid base64 (standard alphabet, padded, no line breaks)")]
    Base64,
    /// Larger than any value may be.
    #[error("the value is too large")]
    TooLarge,
}

/// Why one key did not open a value. Never told to strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// Cut off, or its first part has not the key's length.
    Shape,
    /// The first part is for another key or another label, or damaged.
    Session,
    /// The first part opened, the rest is damaged.
    Payload,
}

/// Seals `plaintext` so that only the certificate's key opens it, and only under `label`.
///
/// # Errors
/// The machine's fault: no random numbers, no memory.
pub fn seal_value(
    certificate: &Certificate,
    label: &[u8],
    plaintext: &[u8],
) -> Result<String, SealValueError> {
    let mut session_key = Zeroizing::new([0; SESSION_KEY]);
    getrandom::fill(session_key.as_mut_slice()).map_err(|_| SealValueError)?;
    Ok(STANDARD.encode(seal_under(&session_key, certificate, label, plaintext)?))
}

/// The bytes of a sealed value. A session key must not come here twice.
fn seal_under(
    session_key: &[u8; SESSION_KEY],
    certificate: &Certificate,
    label: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, SealValueError> {
    let key = certificate.encrypting_key().ok_or(SealValueError)?;
    let length = key.ciphertext_size();
    let prefix = u16::try_from(length).map_err(|_| SealValueError)?.to_be_bytes();

    // The whole value is built in one buffer: a copy of the plaintext would have to be wiped.
    let mut sealed = Vec::with_capacity(2 + length + plaintext.len() + TAG);
    sealed.extend(prefix);
    sealed.resize(2 + length, 0);
    key.encrypt(&OAEP_SHA256_MGF1SHA256, session_key, &mut sealed[2..], label_option(label))
        .map_err(|_| SealValueError)?;
    let start = sealed.len();
    sealed.extend(plaintext);
    let tag = cipher(session_key)?
        .seal_in_place_separate_tag(zero_nonce(), Aad::empty(), &mut sealed[start..])
        .map_err(|_| SealValueError)?;
    sealed.extend(tag.as_ref());
    Ok(sealed)
}

/// The bytes of a sealed value.
pub(crate) fn decode(text: &str, most: usize) -> Result<Vec<u8>, ValueError> {
    if text.len() / 4 * 3 > most.saturating_add(3) {
        return Err(ValueError::TooLarge);
    }
    let bytes = STANDARD.decode(text).map_err(|_| ValueError::Base64)?;
    if bytes.len() > most { Err(ValueError::TooLarge) } else { Ok(bytes) }
}

/// Opens a value with one key. Every failure costs an attacker the same.
pub(crate) fn open(
    key: &PrivateKey,
    label: &[u8],
    sealed: &[u8],
) -> Result<SecretBytes, OpenError> {
    let (prefix, rest) = sealed.split_first_chunk::<2>().ok_or(OpenError::Shape)?;
    let length = usize::from(u16::from_be_bytes(*prefix));
    let decrypting = key.decrypting_key();
    if length != decrypting.key_size_bytes() {
        return Err(OpenError::Shape);
    }
    let (wrapped, payload) = rest.split_at_checked(length).ok_or(OpenError::Shape)?;
    let mut buffer = Zeroizing::new(vec![0; decrypting.min_output_size()]);
    let unwrapped =
        decrypting.decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut buffer, label_option(label));
    // A first part that does not open is followed by a try with a key of zeros, so that it takes
    // as long as a payload that does not.
    let mut session_key = Zeroizing::new([0; SESSION_KEY]);
    let fits = match unwrapped {
        Ok(unwrapped) if unwrapped.len() == SESSION_KEY => {
            session_key.copy_from_slice(unwrapped);
            true
        }
        _ => false,
    };
    let mut plaintext = Zeroizing::new(payload.to_vec());
    let opened = cipher(&session_key)
        .map_err(|_| OpenError::Payload)?
        .open_in_place(zero_nonce(), Aad::empty(), &mut plaintext)
        .map(|plaintext| plaintext.len());
    match (fits, opened) {
        (true, Ok(length)) => {
            plaintext.truncate(length);
            Ok(plaintext.into())
        }
        (true, Err(_)) => Err(OpenError::Payload),
        (false, _) => Err(OpenError::Session),
    }
}

fn cipher(session_key: &[u8; SESSION_KEY]) -> Result<LessSafeKey, SealValueError> {
    let key = UnboundKey::new(&AES_256_GCM, session_key).map_err(|_| SealValueError)?;
    Ok(LessSafeKey::new(key))
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// The library takes no label for an empty one.
const fn label_option(label: &[u8]) -> Option<&[u8]> {
    if label.is_empty() { None } else { Some(label) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the session keys of published values the second part is theirs, byte for byte.
    #[test]
    fn a_session_key_that_is_known_gives_the_payload_that_is_known() {
        let pem = include_bytes!("../tests/vectors/test.pem");
        let key = PrivateKey::from_pem(pem).unwrap();
        let lifetime = jiff::SignedDuration::from_hours(1);
        let certificate = key.certify("", jiff::Timestamp::now(), lifetime).unwrap();
        let counted = hex::encode((0..32).collect::<Vec<u8>>());
        let plain = &b"s3cr3t-v4lue"[..];
        for (session_key, label, plaintext, payload) in [
            (
                "f475b16d1a37932ad06d57b6dad1d6e46294703eeea81ed19a30678176b61155",
                "openfaas-fn/alexellis-api",
                plain,
                "b10eb12bf19894348779a3b96ef563dc6b8ee308a3d0902289fca0c6",
            ),
            (
                "8bf7f8183af57f3853518dcc1674e83a05c5c41ea31db12a67061e6799887d93",
                "openfaas-fn",
                plain,
                "145829222971eebdaa4f85759e63ba8ac2cc17be495c12e7d959523a",
            ),
            (
                "840493713b4c2fc12a9a3a06d75905f7e9dc68b53989a0a5d4934462eeeabce1",
                "",
                plain,
                "80acc9ce6237d6eb78abab265152b9f015a30ecf37f75aa1effa6b62",
            ),
            (&counted, "", plain, "7d8fd6ac8658aecb3cc4dc50c825400cd341c7e14d276361f8f57347"),
            (&counted, "", b"", "f05d76ae4ab99fe5a6f69b3148c2363d"),
        ] {
            let session_key: [u8; SESSION_KEY] =
                hex::decode(session_key).unwrap().try_into().unwrap();
            let sealed =
                seal_under(&session_key, &certificate, label.as_bytes(), plaintext).unwrap();
            assert_eq!(sealed[..2], [1, 0], "the length of the first part");
            assert_eq!(hex::encode(&sealed[258..]), payload, "{label}");
            let opened = open(&key, label.as_bytes(), &sealed).unwrap();
            assert_eq!(opened.expose(), plaintext, "{label}");
        }
    }
}
