//! The door of a private function: who comes in shows a token, or a body signed with a key.
//!
//! Keys are the lines of one of the function's secrets, so that a new one can be accepted before
//! the old one goes. They are read through the engine, kept for seconds, compared in constant time
//! and never printed. A door whose keys cannot be read stays shut.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use futures_util::future::poll_fn;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::Body;
use http_body_util::{Either, Full};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};
use tokio::sync::Mutex;
use tokio::time::timeout;
use updraft_engine::{Engine, SecretValue};
use updraft_model::{FunctionSpec, Namespace, Proof, Protection, format_duration};

use crate::failure::Failure;
use crate::keys::{self, MissingKeys};
use crate::options::InvokeOptions;

/// Headers that carry a signature, the first that is there counts.
static SIGNATURES: [HeaderName; 2] =
    [HeaderName::from_static("x-hub-signature-256"), HeaderName::from_static("x-hmac-signature")];

/// The door of one private function.
pub(crate) struct Gate {
    name: String,
    namespace: Namespace,
    /// What is asked for; nobody comes in where it is unclear.
    asked: Result<Protection, String>,
    keys: ArcSwapOption<Keys>,
    /// Held while keys are read, so that a crowd reads them once.
    reading: Mutex<()>,
}

/// The keys as they were read.
struct Keys {
    read: Instant,
    /// Why there are none, for the log.
    lines: Result<Vec<SecretValue>, MissingKeys>,
}

impl Gate {
    /// The door that the function asks for.
    pub(crate) fn of(spec: &FunctionSpec) -> Option<Box<Self>> {
        let asked = match spec.protection() {
            Ok(None) => return None,
            Ok(Some(protection)) => Ok(protection),
            Err(error) => Err(error.to_string()),
        };
        Some(Box::new(Self {
            name: spec.id.name.to_string(),
            namespace: spec.id.namespace.clone(),
            asked,
            keys: ArcSwapOption::empty(),
            reading: Mutex::new(()),
        }))
    }

    /// Lets a request in or says why not. Returns its body, read where it had to be.
    ///
    /// # Errors
    /// 401 without a valid proof; 503 when the door's own keys are missing; 413 and 408 for a
    /// signed body that is too long or too slow.
    pub(crate) async fn check<B>(
        &self,
        engine: &dyn Engine,
        options: &InvokeOptions,
        patience: Duration,
        headers: &HeaderMap,
        body: B,
    ) -> Result<Either<B, Full<Bytes>>, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let protection = self.asked.as_ref().map_err(|unclear| {
            tracing::warn!(function = self.name, reason = unclear, "a private function is shut");
            let reason = "the function is private and does not say rightly how: its owner must \
                          correct the annotations `updraft.auth` and `updraft.auth-secret`";
            self.refusal(StatusCode::SERVICE_UNAVAILABLE, reason)
        })?;
        match protection.proof {
            Proof::Token => {
                let token = token(headers).ok_or_else(|| self.unproved(Proof::Token))?;
                let keys = self.keys(engine, options, protection).await?;
                let fits =
                    keys.iter().fold(Choice::from(0), |fits, key| fits | key.expose().ct_eq(token));
                if !bool::from(fits) {
                    return Err(self.unproved(Proof::Token));
                }
                Ok(Either::Left(body))
            }
            Proof::Hmac => {
                let signature = signature(headers).ok_or_else(|| self.unproved(Proof::Hmac))?;
                let keys = self.keys(engine, options, protection).await?;
                let body = self.read(headers, body, options.signed_body, patience).await?;
                let fits = keys.iter().fold(false, |fits, key| {
                    let mac = Hmac::<Sha256>::new_from_slice(key.expose());
                    let fits_this = mac
                        .is_ok_and(|mac| mac.chain_update(&body).verify_slice(&signature).is_ok());
                    fits | fits_this
                });
                if !fits {
                    return Err(self.unproved(Proof::Hmac));
                }
                Ok(Either::Right(Full::new(body)))
            }
        }
    }

    /// The keys that are accepted now, never older than the options allow.
    async fn keys(
        &self,
        engine: &dyn Engine,
        options: &InvokeOptions,
        protection: &Protection,
    ) -> Result<Vec<SecretValue>, Failure> {
        let fresh = || {
            let keys = self.keys.load_full()?;
            (keys.read.elapsed() < options.key_age).then_some(keys)
        };
        let keys = if let Some(keys) = fresh() {
            keys
        } else {
            let _reading = self.reading.lock().await;
            if let Some(keys) = fresh() {
                keys
            } else {
                // Noted before the read: a change during it counts as after.
                let read = Instant::now();
                let lines = keys::read(engine, &self.namespace, &protection.secret).await;
                let keys = Arc::new(Keys { read, lines });
                self.keys.store(Some(Arc::clone(&keys)));
                keys
            }
        };
        keys.lines.clone().map_err(|missing| {
            let reason = match missing {
                MissingKeys::Absent => format!(
                    "the function is private and has no key: its owner must put one into secret \
                     `{}`",
                    protection.secret
                ),
                MissingKeys::Unread => "the function's key could not be read".to_owned(),
            };
            self.refusal(StatusCode::SERVICE_UNAVAILABLE, &reason).retry_after(5)
        })
    }

    /// Reads the whole body, which may not be long and may not stand still.
    async fn read<B>(
        &self,
        headers: &HeaderMap,
        mut body: B,
        most: usize,
        patience: Duration,
    ) -> Result<Bytes, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let too_long = || {
            let reason = format!("a signed body may have {most} bytes at most");
            self.refusal(StatusCode::PAYLOAD_TOO_LARGE, &reason)
        };
        let told = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        if told.and_then(|length| length.parse::<u64>().ok()) > u64::try_from(most).ok() {
            return Err(too_long());
        }
        let mut read = BytesMut::new();
        loop {
            let frame = poll_fn(|context| std::pin::Pin::new(&mut body).poll_frame(context));
            match timeout(patience, frame).await {
                Ok(None) => return Ok(read.freeze()),
                Ok(Some(Ok(frame))) => {
                    // Trailers are not signed and go no further.
                    if let Ok(data) = frame.into_data() {
                        if read.len() + data.len() > most {
                            return Err(too_long());
                        }
                        read.extend_from_slice(&data);
                    }
                }
                Ok(Some(Err(_))) => {
                    let reason = "the request body broke off";
                    return Err(self.refusal(StatusCode::BAD_REQUEST, reason));
                }
                Err(_) => {
                    let limit = format_duration(patience);
                    let reason =
                        format!("the request body stood still for {limit}, the function's timeout");
                    return Err(self.refusal(StatusCode::REQUEST_TIMEOUT, &reason));
                }
            }
        }
    }

    fn refusal(&self, status: StatusCode, reason: &str) -> Failure {
        Failure::invoke(status, &self.name, reason)
    }

    /// What whoever has shown nothing, or the wrong thing, is told. It does not say which.
    fn unproved(&self, proof: Proof) -> Failure {
        let (reason, challenge) = match proof {
            Proof::Token => (
                "the function is private: send `Authorization: Bearer <token>` with a valid token",
                HeaderValue::try_from(format!("Bearer realm=\"{}\"", self.name)),
            ),
            Proof::Hmac => (
                "the function is private: sign the body with HMAC-SHA256 and send \
                 `X-Hub-Signature-256: sha256=<hex>` or `X-Hmac-Signature: sha256=<hex>`",
                HeaderValue::try_from(format!("HMAC-SHA256 realm=\"{}\"", self.name)),
            ),
        };
        Failure { challenge: challenge.ok(), ..self.refusal(StatusCode::UNAUTHORIZED, reason) }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("asked", &self.asked).finish_non_exhaustive()
    }
}

/// The one bearer token of a request.
fn token(headers: &HeaderMap) -> Option<&[u8]> {
    let value = only(headers, &AUTHORIZATION)?;
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// The one signature of a request.
fn signature(headers: &HeaderMap) -> Option<Vec<u8>> {
    let name = SIGNATURES.iter().find(|name| headers.contains_key(*name))?;
    let digits = only(headers, name)?.strip_prefix(b"sha256=")?;
    hex::decode(digits).ok().filter(|signature| signature.len() == 32)
}

/// The value of a header that is there once; of several it is not clear which counts.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_token_is_read_only_where_it_is_clear() {
        let read = |pairs: &[_]| token(&headers(pairs)).map(<[u8]>::to_vec);
        assert_eq!(read(&[("authorization", "Bearer abc")]).unwrap(), b"abc");
        assert_eq!(read(&[("authorization", "bearer  abc ")]).unwrap(), b"abc");
        assert_eq!(read(&[("authorization", "Basic abc")]), None);
        assert_eq!(read(&[("authorization", "Bearer")]), None);
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[("authorization", "Bearer a"), ("authorization", "Bearer b")]), None);
    }

    #[test]
    fn a_signature_is_sixty_four_digits_behind_its_scheme() {
        const GOOD: &str =
            "sha256=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1F";
        let read = |pairs: &[_]| signature(&headers(pairs));
        let expected: Vec<u8> = (0..32).collect();
        assert_eq!(read(&[("x-hub-signature-256", GOOD)]).unwrap(), expected);
        assert_eq!(read(&[("x-hmac-signature", GOOD)]).unwrap(), expected);
        assert_eq!(read(&[("x-hub-signature-256", "sha1=00"), ("x-hmac-signature", GOOD)]), None);
        assert_eq!(read(&[("x-hub-signature-256", GOOD), ("x-hub-signature-256", GOOD)]), None);
        for bad in ["", "sha256=", "sha256=00", "000102", "sha256=zz"] {
            assert_eq!(read(&[("x-hmac-signature", bad)]), None, "{bad}");
        }
    }
}
