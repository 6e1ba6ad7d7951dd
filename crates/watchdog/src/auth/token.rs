//! A token as it arrives: its parts, its signature and its times.
//!
//! Takes ES256 and nothing else, so that no token can choose how it is checked. Where keys come
//! from and what a caller may do is not known here.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use serde::{Deserialize, Deserializer};

/// How far the clocks of issuer and watchdog may differ, in seconds.
const LEEWAY: f64 = 1.0;
/// Longest token that is looked at.
const MAX_TOKEN: usize = 16 * 1024;

/// Why a token is no good; the text is for its bearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenError {
    #[error("the request has no bearer token")]
    Missing,
    #[error("the token is malformed")]
    Malformed,
    #[error("the token is not signed with ES256")]
    Algorithm,
    #[error("the token is signed with an unknown key")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token is of another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
}

/// A token split into its parts, with nothing verified.
pub(super) struct Unverified<'a> {
    /// What the signature is over.
    signed: &'a str,
    claims: &'a str,
    signature: Signature,
    pub(super) key_id: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood: none is.
    crit: Option<serde::de::IgnoredAny>,
}

/// What a token says; only `verify` makes one.
#[derive(Debug, Clone, Deserialize, PartialEq)]
pub(super) struct Claims {
    iss: String,
    #[serde(default, deserialize_with = "one_or_many")]
    aud: Vec<String>,
    exp: f64,
    nbf: Option<f64>,
    #[serde(default)]
    pub(super) function: FunctionClaim,
}

/// Which functions a caller may call.
#[derive(Debug, Clone, Default, Deserialize, PartialEq)]
pub(super) struct FunctionClaim {
    #[serde(default)]
    pub(super) permissions: Vec<String>,
    #[serde(default)]
    pub(super) audience: Vec<String>,
}

impl<'a> Unverified<'a> {
    /// Takes a token apart.
    pub(super) fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = json(header)?;
        if header.alg != "ES256" || header.crit.is_some() {
            return Err(TokenError::Algorithm);
        }
        let signature = decode(signature)?;
        let signature =
            Signature::from_slice(&signature).map_err(|_unspecific| TokenError::Malformed)?;
        let key_id = header.kid.ok_or(TokenError::UnknownKey)?;
        Ok(Self { signed, claims, signature, key_id })
    }

    /// What the token says, once the key has signed it.
    pub(super) fn verify(&self, key: &VerifyingKey) -> Result<Claims, TokenError> {
        key.verify(self.signed.as_bytes(), &self.signature)
            .map_err(|_unspecific| TokenError::Signature)?;
        json(self.claims)
    }
}

impl Claims {
    /// Whether the token is of this issuer, for it, and valid now (seconds since 1970).
    pub(super) fn check(&self, issuer: &str, now: f64) -> Result<(), TokenError> {
        if self.iss != issuer {
            return Err(TokenError::Issuer);
        }
        if !self.aud.iter().any(|audience| audience == issuer) {
            return Err(TokenError::Audience);
        }
        // Written so that a time that is no number fails.
        let alive = now < self.exp + LEEWAY;
        if !alive {
            return Err(TokenError::Expired);
        }
        match self.nbf {
            Some(begin) if now + LEEWAY < begin => Err(TokenError::NotYet),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Unverified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever reads a token can use it.
        f.debug_struct("Unverified").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_unspecific| TokenError::Malformed)
}

fn json<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, TokenError> {
    serde_json::from_slice(&decode(part)?).map_err(|_unspecific| TokenError::Malformed)
}

/// An audience is one text or a list of them.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::Signer as _;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const ISSUER: &str = "http://issuer.example";

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_slice(&[seed; 32]).unwrap()
    }

    fn sign(header: &Value, claims: &Value, key: &SigningKey) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature: Signature = key.sign(signed.as_bytes());
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }

    fn verify(header: &Value, claims: &Value, now: f64) -> Result<Claims, TokenError> {
        let token = sign(header, claims, &key(1));
        let claims = Unverified::parse(&token)?.verify(key(1).verifying_key())?;
        claims.check(ISSUER, now)?;
        Ok(claims)
    }

    fn header() -> Value {
        json!({ "alg": "ES256", "kid": "k", "typ": "JWT" })
    }

    fn claims() -> Value {
        json!({ "iss": ISSUER, "aud": [ISSUER], "exp": 1000, "nbf": 900 })
    }

    /// Valid claims but for one field; `Null` takes it away.
    fn with(field: &str, value: Value) -> Value {
        let mut claims = claims();
        let object = claims.as_object_mut().unwrap();
        match value {
            Value::Null => {
                object.remove(field);
            }
            value => {
                object.insert(field.to_owned(), value);
            }
        }
        claims
    }

    #[test]
    fn issuer_and_audience_must_be_the_issuers() {
        let check = |field, value, expected| {
            assert_eq!(verify(&header(), &with(field, value), 950.0).err(), expected);
        };
        check("iss", json!(ISSUER), None);
        check("iss", json!("http://issuer.example/"), Some(TokenError::Issuer));
        check("aud", json!(ISSUER), None);
        check("aud", json!(["other", ISSUER]), None);
        check("aud", json!(["other"]), Some(TokenError::Audience));
        check("aud", json!([]), Some(TokenError::Audience));
        check("aud", Value::Null, Some(TokenError::Audience));
        check("aud", json!(7), Some(TokenError::Malformed));
    }

    #[test]
    fn times_have_one_second_of_leeway_and_an_end_is_required() {
        let check = |now, expected| assert_eq!(verify(&header(), &claims(), now).err(), expected);
        check(899.5, None);
        check(898.5, Some(TokenError::NotYet));
        check(1000.5, None);
        check(1001.5, Some(TokenError::Expired));
        let endless = verify(&header(), &with("exp", Value::Null), 950.0);
        assert_eq!(endless.err(), Some(TokenError::Malformed));
    }

    #[test]
    fn no_token_chooses_another_algorithm() {
        for alg in ["none", "HS256", "es256", "RS256", ""] {
            let header = json!({ "alg": alg, "kid": "k" });
            assert_eq!(verify(&header, &claims(), 950.0).err(), Some(TokenError::Algorithm));
        }
        let header = json!({ "alg": "ES256", "kid": "k", "crit": ["b64"] });
        assert_eq!(verify(&header, &claims(), 950.0).err(), Some(TokenError::Algorithm));
        let header = json!({ "alg": "ES256" });
        assert_eq!(verify(&header, &claims(), 950.0).err(), Some(TokenError::UnknownKey));
    }

    #[test]
    fn another_key_and_changed_claims_are_found_out() {
        let token = sign(&header(), &claims(), &key(1));
        let parsed = Unverified::parse(&token).unwrap();
        assert_eq!(parsed.verify(key(2).verifying_key()), Err(TokenError::Signature));
        let (head, rest) = token.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        let forged =
            BASE64_URL_SAFE_NO_PAD.encode(with("exp", json!(9_000_000_000_u64)).to_string());
        let forged = format!("{head}.{forged}.{signature}");
        let parsed = Unverified::parse(&forged).unwrap();
        assert_eq!(parsed.verify(key(1).verifying_key()), Err(TokenError::Signature));
    }

    #[test]
    fn a_token_never_shows_itself_in_logs() {
        let token = sign(&header(), &claims(), &key(1));
        let shown = format!("{:?}", Unverified::parse(&token).unwrap());
        assert!(!shown.contains(&token[..20]), "{shown}");
    }

    #[test]
    fn tokens_beyond_the_limit_are_not_looked_at() {
        let large = with("junk", json!("x".repeat(MAX_TOKEN)));
        assert_eq!(verify(&header(), &large, 950.0).err(), Some(TokenError::Malformed));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,80}") {
            let _any = Unverified::parse(&text);
        }

        #[test]
        fn no_parts_make_the_parser_panic(head in ".{0,40}", claims in ".{0,40}") {
            let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
            let _any = Unverified::parse(&format!("{}.{}.{}", part(&head), part(&claims), "AA"));
        }
    }
}
