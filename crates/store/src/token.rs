//! Tokens: what an owner's git and command line show instead of a password.
//!
//! A token is random, told once and kept only as its SHA-256: a copy of the database opens
//! nothing.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rusqlite::OptionalExtension;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use updraft_model::OwnerName;

use crate::error::StoreError;
use crate::owner::{self, EnsureOwnerError};
use crate::stored::{moment, now, optional_moment, text};
use crate::{Store, TokenId};

/// Makes a token recognisable, for people and for scanners of leaked secrets.
const PREFIX: &str = "updraft_";

const RANDOM_BYTES: usize = 32;

/// Longest token name.
const NAME_MAX: usize = 100;

/// A use is noted at most this often, so that reads do not become writes.
const LAST_USED_STEP_MILLIS: i64 = 60_000;

/// A token as it is sent. Shown once, to whoever asked for it; never printed otherwise.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSecret(String);

impl TokenSecret {
    /// The text to hand to the caller and then forget.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(…)")
    }
}

/// A token that was just made.
#[derive(Debug)]
pub struct NewToken {
    /// What lists and revocations call it.
    pub id: TokenId,
    /// The token; it cannot be read again.
    pub secret: TokenSecret,
}

/// What is known of a token; not the token itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What revocations call it.
    pub id: TokenId,
    /// Whose it is.
    pub owner: OwnerName,
    /// What its maker called it.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last accepted, to the minute.
    pub last_used: Option<Timestamp>,
}

/// Why no token was made.
#[derive(Debug, Error)]
pub enum CreateTokenError {
    /// The owner cannot exist. The caller's fault.
    #[error(transparent)]
    Owner(#[from] EnsureOwnerError),
    /// The token's name is empty or too long. The caller's fault.
    #[error("token name must be 1 to {NAME_MAX} characters without control characters")]
    Name,
    /// The machine gave no random numbers.
    #[error("the machine gives no random numbers")]
    Random(#[source] getrandom::Error),
}

impl From<StoreError> for CreateTokenError {
    fn from(error: StoreError) -> Self {
        Self::Owner(error.into())
    }
}

impl Store {
    /// Makes a token for an owner, who comes into being with it when new.
    ///
    /// # Errors
    /// The caller's fault when the owner collides with another or the name is wrong.
    pub async fn create_token(
        &self,
        owner: &OwnerName,
        name: &str,
    ) -> Result<NewToken, CreateTokenError> {
        let fits = |name: &str| {
            (1..=NAME_MAX).contains(&name.chars().count()) && !name.contains(char::is_control)
        };
        if !fits(name) {
            return Err(CreateTokenError::Name);
        }
        let mut bytes = [0; RANDOM_BYTES];
        getrandom::fill(&mut bytes).map_err(CreateTokenError::Random)?;
        let secret = TokenSecret(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)));
        let hash = hash(secret.expose());
        let (for_owner, name) = (owner.clone(), name.to_owned());
        let made = self
            .database
            .write("create the token", move |c| {
                if let Some(existing) = owner::ensure(c, &for_owner)? {
                    return Ok(Err(existing));
                }
                c.prepare_cached(
                    "INSERT INTO tokens (owner, name, hash, created_at) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute((for_owner.as_str(), name, hash, now()))?;
                Ok(Ok(TokenId::new(c.last_insert_rowid())))
            })
            .await?;
        match made {
            Ok(id) => Ok(NewToken { id, secret }),
            Err(existing) => {
                Err(EnsureOwnerError::Collision { owner: owner.clone(), existing }.into())
            }
        }
    }

    /// Whose token this is; nobody's when it is unknown or revoked.
    ///
    /// The look-up is by hash: how long it takes tells nothing about a stored token.
    pub async fn verify_token(&self, token: &str) -> Result<Option<OwnerName>, StoreError> {
        if !token.starts_with(PREFIX) {
            return Ok(None);
        }
        let hash = hash(token);
        let found = self
            .database
            .read("look the token up", move |c| {
                c.prepare_cached("SELECT id, owner, last_used FROM tokens WHERE hash = ?1")?
                    .query_row([hash], |row| {
                        Ok((
                            row.get::<_, TokenId>(0)?,
                            text(row, 1)?,
                            row.get::<_, Option<i64>>(2)?,
                        ))
                    })
                    .optional()
            })
            .await?;
        let Some((id, owner, last_used)) = found else { return Ok(None) };
        if last_used.is_none_or(|last| now() - last >= LAST_USED_STEP_MILLIS) {
            let noted = self
                .database
                .write("note the token's use", move |c| {
                    c.prepare_cached("UPDATE tokens SET last_used = ?2 WHERE id = ?1")?
                        .execute((id, now()))
                })
                .await;
            // A full disk must not lock people out.
            if let Err(error) = noted {
                tracing::warn!(%error, "the use of a token was not noted");
            }
        }
        Ok(Some(owner))
    }

    /// The tokens of an owner, or of everybody, oldest first.
    pub async fn tokens(&self, owner: Option<&OwnerName>) -> Result<Vec<Token>, StoreError> {
        let owner = owner.cloned();
        self.database
            .read("list the tokens", move |c| {
                c.prepare_cached(
                    "SELECT id, owner, name, created_at, last_used FROM tokens
                     WHERE ?1 IS NULL OR owner = ?1 ORDER BY id",
                )?
                .query_map([owner.as_ref().map(OwnerName::as_str)], |row| {
                    Ok(Token {
                        id: row.get(0)?,
                        owner: text(row, 1)?,
                        name: row.get(2)?,
                        created_at: moment(row, 3)?,
                        last_used: optional_moment(row, 4)?,
                    })
                })?
                .collect()
            })
            .await
    }

    /// Revokes a token of an owner: the next use of it is refused. False when there is none.
    pub async fn revoke_token(&self, owner: &OwnerName, id: TokenId) -> Result<bool, StoreError> {
        let owner = owner.clone();
        self.database
            .write("revoke the token", move |c| {
                c.prepare_cached("DELETE FROM tokens WHERE id = ?1 AND owner = ?2")?
                    .execute((id, owner.as_str()))
            })
            .await
            .map(|removed| removed > 0)
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
