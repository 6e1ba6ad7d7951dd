//! The issuer's name and keys: fetched at the start, then regularly, and when a token names a key
//! that is not known yet.
//!
//! What a fetch fails to bring does not end what is known; what a fetch no longer brings is
//! forgotten. Decides nothing about tokens.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use p256::ecdsa::VerifyingKey;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::body::Upload;
use crate::log::Log;
use crate::resolve::Resolver;

/// How long one document may take to arrive.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of one document.
const MAX_DOCUMENT: usize = 256 * 1024;
/// Most keys that are kept.
const MAX_KEYS: usize = 100;
/// How long unknown keys are believed to be unknown: callers choose what their tokens name.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(10);
const USER_AGENT: HeaderValue = HeaderValue::from_static("openfaas-watchdog");
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Why keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("`{url}` cannot be fetched: it must begin with `http://` and name a host")]
    Url { url: String },
    #[error("cannot reach `{url}`: {cause}")]
    Connect { url: String, cause: io::Error },
    #[error("`{url}` did not answer in HTTP: {cause}")]
    Exchange { url: String, cause: hyper::Error },
    #[error("`{url}` answered {status}")]
    Status { url: String, status: StatusCode },
    #[error("the answer of `{url}` broke off or is larger than {MAX_DOCUMENT} bytes")]
    Document { url: String },
    #[error("`{url}` has not answered within {FETCH_TIMEOUT:?}")]
    TimedOut { url: String },
    #[error("`{url}` is not what was expected: {cause}")]
    Json { url: String, cause: serde_json::Error },
    #[error("`{url}` lists no key for ES256")]
    NoKeys { url: String },
}

/// What an issuer has published.
pub(super) struct Keys {
    pub(super) issuer: String,
    by_id: HashMap<String, VerifyingKey>,
}

impl Keys {
    pub(super) fn get(&self, id: &str) -> Option<&VerifyingKey> {
        self.by_id.get(id)
    }
}

/// The keys as they are now.
pub(super) struct KeyRing {
    discovery: String,
    resolver: Resolver,
    log: Log,
    current: Mutex<Arc<Keys>>,
    /// When an unknown key last led to a fetch; held while fetching, so that one fetch serves all.
    asked: tokio::sync::Mutex<Option<Instant>>,
}

impl KeyRing {
    /// Fetches the keys of the issuer at this address, and keeps them fresh from then on.
    pub(super) async fn start(
        authority: &str,
        every: Duration,
        resolver: Resolver,
        log: Log,
    ) -> Result<Arc<Self>, KeyError> {
        let discovery = format!("{authority}{DISCOVERY}");
        let current = Mutex::new(Arc::new(load(&discovery, &resolver).await?));
        let asked = tokio::sync::Mutex::new(None);
        let ring = Arc::new(Self { discovery, resolver, log, current, asked });
        let refresher = Arc::clone(&ring);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                refresher.refresh().await;
            }
        });
        Ok(ring)
    }

    pub(super) fn current(&self) -> Arc<Keys> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The keys with this one among them if the issuer has it; asks again, but not often.
    pub(super) async fn with(self: &Arc<Self>, id: &str) -> Arc<Keys> {
        let known = self.current();
        if known.get(id).is_some() {
            return known;
        }
        let mut asked = self.asked.lock().await;
        // Whoever had the lock may have fetched it.
        let pause = asked.is_some_and(|asked| asked.elapsed() < UNKNOWN_KEY_PAUSE);
        if !pause && self.current().get(id).is_none() {
            *asked = Some(Instant::now());
            // A caller that goes away does not take the fetch along: others wait for it.
            let ring = Arc::clone(self);
            let fetched = tokio::spawn(async move { ring.refresh().await }).await;
            if let Err(error) = fetched {
                self.log.line(format_args!("error: fetching the keys of jwt_auth failed: {error}"));
            }
        }
        self.current()
    }

    async fn refresh(&self) {
        match load(&self.discovery, &self.resolver).await {
            Ok(keys) => {
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
            }
            Err(error) => self.log.line(format_args!(
                "error: cannot refresh the keys of jwt_auth, the known ones stay: {error}"
            )),
        }
    }
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Key {
    kty: String,
    crv: String,
    kid: String,
    x: String,
    y: String,
    #[serde(rename = "use")]
    usage: Option<String>,
}

async fn load(discovery: &str, resolver: &Resolver) -> Result<Keys, KeyError> {
    let Discovery { issuer, jwks_uri } = fetch(discovery, resolver).await?;
    let set: KeySet = fetch(&jwks_uri, resolver).await?;
    let usable = set.keys.into_iter().filter_map(key).take(MAX_KEYS);
    let by_id: HashMap<_, _> = usable.collect();
    if by_id.is_empty() {
        return Err(KeyError::NoKeys { url: jwks_uri });
    }
    Ok(Keys { issuer, by_id })
}

/// A key for ES256 with its id; keys for other uses may stand beside it.
fn key(value: serde_json::Value) -> Option<(String, VerifyingKey)> {
    let key: Key = serde_json::from_value(value).ok()?;
    let for_signatures = key.usage.is_none_or(|usage| usage == "sig");
    if key.kty != "EC" || key.crv != "P-256" || !for_signatures {
        return None;
    }
    let mut point = vec![4];
    for coordinate in [key.x, key.y] {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(coordinate).ok()?;
        point.extend_from_slice(bytes.get(..32).filter(|_| bytes.len() == 32)?);
    }
    let verifying = VerifyingKey::from_sec1_bytes(&point).ok()?;
    Some((key.kid, verifying))
}

async fn fetch<T: DeserializeOwned>(url: &str, resolver: &Resolver) -> Result<T, KeyError> {
    let bytes = tokio::time::timeout(FETCH_TIMEOUT, get(url, resolver))
        .await
        .map_err(|_elapsed| KeyError::TimedOut { url: url.to_owned() })??;
    serde_json::from_slice(&bytes).map_err(|cause| KeyError::Json { url: url.to_owned(), cause })
}

/// One document over plain HTTP: this binary has no TLS, the issuer is the platform's own gateway.
async fn get(url: &str, resolver: &Resolver) -> Result<Bytes, KeyError> {
    let bad = || KeyError::Url { url: url.to_owned() };
    let connect_error = |cause| KeyError::Connect { url: url.to_owned(), cause };
    let exchange_error = |cause| KeyError::Exchange { url: url.to_owned(), cause };
    let uri: Uri = url.parse().map_err(|_unspecific| bad())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(bad)?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_unspecific| bad())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());

    let port = authority.port_u16().unwrap_or(80);
    let addresses = resolver.resolve(authority.host(), port).await.map_err(connect_error)?;
    let stream = dial(&addresses).await.map_err(connect_error)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(exchange_error)?;
    tokio::spawn(async move {
        // Its failures reach whoever waits for the answer.
        let _reported_there = connection.await;
    });
    let mut request = Request::new(Upload::Full(Bytes::new()));
    *request.uri_mut() = path.parse().map_err(|_unspecific| bad())?;
    request.headers_mut().insert(header::HOST, host);
    request.headers_mut().insert(header::USER_AGENT, USER_AGENT);
    let response = sender.send_request(request).await.map_err(exchange_error)?;
    if response.status() != StatusCode::OK {
        return Err(KeyError::Status { url: url.to_owned(), status: response.status() });
    }
    let body = Limited::new(response.into_body(), MAX_DOCUMENT).collect().await;
    Ok(body.map_err(|_cut| KeyError::Document { url: url.to_owned() })?.to_bytes())
}

async fn dial(addresses: &[std::net::SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_signing_keys_on_the_right_curve_are_taken() {
        let signing = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let point = signing.verifying_key().to_sec1_point(false);
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let good = json!({
            "kty": "EC", "crv": "P-256", "kid": "k", "use": "sig", "alg": "ES256",
            "x": encode(point.x().unwrap()), "y": encode(point.y().unwrap()),
        });
        assert_eq!(key(good.clone()).unwrap(), ("k".to_owned(), *signing.verifying_key()));
        for (field, value) in [
            ("kty", json!("RSA")),
            ("crv", json!("P-384")),
            ("use", json!("enc")),
            ("x", json!("AAAA")),
            ("y", json!(encode(&[1; 32]))),
            ("kid", json!(null)),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            assert!(key(bad).is_none(), "{field}");
        }
    }
}
