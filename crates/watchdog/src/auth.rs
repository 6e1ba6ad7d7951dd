//! Authentication of callers by tokens of the platform (`jwt_auth`).
//!
//! A call passes with a token that the issuer has signed, for itself, and that permits this very
//! function. Answers are refusals only; what happens to a call that passes is the modes' matter.

mod keys;
mod permission;
mod token;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::body::Body;
use crate::config::JwtAuth;
use crate::duration::format_go;
use crate::log::Log;
use crate::resolve::Resolver;
use crate::server::{INTERNAL, MIDDLEWARE, plain};
use keys::{KeyRing, Keys};
use token::{Claims, TokenError, Unverified};

pub(crate) use keys::KeyError;

/// Tells the function how long the check took.
const AUTH_SECONDS: HeaderName = HeaderName::from_static("x-auth-seconds");
/// `faas-cli` looks for these words and then exchanges its token for one of the function.
const REALM: HeaderValue = HeaderValue::from_static("Bearer realm=IAM function invoke");
/// Most tokens whose signature is remembered to be right.
const MAX_REMEMBERED: usize = 256;

/// Lets callers pass, or refuses them.
pub(crate) struct Authenticator {
    ring: Arc<KeyRing>,
    /// `namespace:name` of the function.
    function: String,
    debug: bool,
    log: Log,
    /// By the hash of the token: checking a signature costs a tenth of a millisecond.
    verified: Mutex<HashMap<[u8; 32], Verified>>,
}

/// Claims that a key of these has signed.
struct Verified {
    keys: Arc<Keys>,
    claims: Arc<Claims>,
}

/// Why a caller is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Denied {
    #[error(transparent)]
    Unauthorized(#[from] TokenError),
    #[error("insufficient permissions")]
    Forbidden,
}

impl Denied {
    fn status(self) -> StatusCode {
        match self {
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
        }
    }
}

impl Authenticator {
    /// Fetches the keys.
    ///
    /// # Errors
    /// When the issuer cannot be reached or publishes no keys; the deployment or the platform must
    /// be put right, nothing may be let in without them.
    pub(crate) async fn start(settings: &JwtAuth, log: &Log) -> Result<Self, KeyError> {
        let ring =
            KeyRing::start(&settings.authority, settings.refresh, Resolver::default(), log.clone())
                .await?;
        Ok(Self {
            ring,
            function: settings.function.clone(),
            debug: settings.debug,
            log: log.clone(),
            verified: Mutex::default(),
        })
    }

    /// Marks a request that may pass; otherwise the answer it gets.
    pub(crate) async fn admit<B>(
        &self,
        request: &mut Request<B>,
    ) -> Result<(), Box<Response<Body>>> {
        let begun = Instant::now();
        let denied = match self.check(request.headers()).await {
            Ok(()) => {
                let seconds = format!("{:.6}", begun.elapsed().as_secs_f64());
                if let Ok(value) = HeaderValue::try_from(seconds) {
                    request.headers_mut().insert(AUTH_SECONDS, value);
                }
                return Ok(());
            }
            Err(denied) => denied,
        };
        let status = denied.status();
        let took = Duration::from_millis(u64::try_from(begun.elapsed().as_millis()).unwrap_or(0));
        self.log.line(format_args!(
            "{} {} - {} ACCESS DENIED - ({})",
            request.method(),
            request.uri().path(),
            status.as_u16(),
            format_go(took),
        ));
        let mut response = plain(status, &denied.to_string());
        let headers = response.headers_mut();
        headers.insert(INTERNAL, MIDDLEWARE);
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, REALM);
        }
        Err(Box::new(response))
    }

    async fn check(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let result = self.authorize(headers).await;
        if self.debug
            && let Err(denied) = &result
        {
            self.log.line(format_args!("jwt_auth: refused: {denied}"));
        }
        result
    }

    async fn authorize(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let token = bearer(headers).ok_or(TokenError::Missing)?;
        let Verified { keys, claims } = self.verified(token).await?;
        if self.debug {
            let function = &claims.function;
            self.log.line(format_args!(
                "jwt_auth: {} is asked for, permissions: {:?}, audience: {:?}",
                self.function, function.permissions, function.audience
            ));
        }
        claims.check(&keys.issuer, now())?;
        let granted = permission::permits(&claims.function.permissions, &self.function);
        let audience = &claims.function.audience;
        let meant = audience.is_empty() || permission::permits(audience, &self.function);
        if granted && meant { Ok(()) } else { Err(Denied::Forbidden) }
    }

    /// What the token says, if one of the issuer's present keys has signed it.
    async fn verified(&self, token: &str) -> Result<Verified, TokenError> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let current = self.ring.current();
        if let Some(claims) = self.remembered(&hash, &current) {
            return Ok(Verified { keys: current, claims });
        }
        let parsed = Unverified::parse(token)?;
        let keys = self.ring.with(&parsed.key_id).await;
        let key = keys.get(&parsed.key_id).ok_or(TokenError::UnknownKey)?;
        let claims = Arc::new(parsed.verify(key)?);
        let mut remembered = self.memory();
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        let entry = Verified { keys: Arc::clone(&keys), claims: Arc::clone(&claims) };
        remembered.insert(hash, entry);
        Ok(Verified { keys, claims })
    }

    fn remembered(&self, hash: &[u8; 32], current: &Arc<Keys>) -> Option<Arc<Claims>> {
        let memory = self.memory();
        let entry = memory.get(hash)?;
        // A key that is no longer published signs nothing any more.
        Arc::ptr_eq(&entry.keys, current).then(|| Arc::clone(&entry.claims))
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<[u8; 32], Verified>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
