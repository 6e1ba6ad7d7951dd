//! Who is calling: the operator, by the generated password, or an owner, by a token.
//!
//! One place checks credentials for every door (git, API, gateway); what a caller may do with
//! what is decided where it is served.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use updraft_model::OwnerName;

use crate::Store;
use crate::error::StoreError;

/// The operator's user name.
pub const ADMIN: &str = "admin";

/// The answer to a refused caller's question how to log in: the `WWW-Authenticate` header.
pub const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"Updraft\"");

/// Random bytes of a generated password; 43 characters.
const PASSWORD_BYTES: usize = 32;

/// Longest password file that is read.
const PASSWORD_MAX: u64 = 4096;

/// Checks credentials. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    store: Store,
    // Only the hash stays in memory.
    password_hash: Arc<[u8; 32]>,
    generated: bool,
}

/// Who a caller proved to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// The operator: may do everything.
    Admin,
    /// An owner: may do everything with what is theirs.
    Owner(OwnerName),
}

/// Why a caller is nobody. Answer 401 with [`CHALLENGE`], except to [`Denied::Store`]: 503.
#[derive(Debug, Error)]
pub enum Denied {
    /// No credentials came with the request.
    #[error("credentials are missing, log in as `admin` or with a token")]
    Missing,
    /// The header is not one of the forms understood.
    #[error("the authorization header is neither `Basic` nor `Bearer`")]
    Malformed,
    /// Nobody has these credentials; which part is wrong is not told.
    #[error("the credentials are wrong or revoked")]
    Wrong,
    /// They could not be checked.
    #[error("the credentials could not be checked")]
    Store(#[from] StoreError),
}

/// Why the operator's password could not be set up.
#[derive(Debug, Error)]
pub enum OpenAccessError {
    /// The file could not be read or made.
    #[error("cannot use the password file `{path}`", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is empty: everybody could be the operator.
    #[error("the password file `{path}` is empty, write a password or remove the file", path = path.display())]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// The machine gave no random numbers.
    #[error("the machine gives no random numbers")]
    Random(#[source] getrandom::Error),
}

impl Principal {
    /// Whether this caller may act for `owner`.
    pub fn may_act_for(&self, owner: &OwnerName) -> bool {
        match self {
            Self::Admin => true,
            Self::Owner(own) => own == owner,
        }
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Access(…)")
    }
}

impl Access {
    /// Reads the operator's password, generating it into a new file (mode 0600) when there is
    /// none. Blocks shortly.
    ///
    /// # Errors
    /// The machine's or the operator's fault; the message names the file.
    pub fn open(store: Store, password_file: &Path) -> Result<Self, OpenAccessError> {
        let path = password_file;
        let failed = |source| OpenAccessError::File { path: path.to_owned(), source };
        let generated = match File::open(path) {
            Ok(_) => false,
            Err(error) if error.kind() == ErrorKind::NotFound => generate(path)?,
            Err(error) => return Err(failed(error)),
        };
        let mut password = String::new();
        File::open(path)
            .and_then(|file| file.take(PASSWORD_MAX).read_to_string(&mut password))
            .map_err(failed)?;
        let password = password.trim();
        if password.is_empty() {
            return Err(OpenAccessError::Empty { path: path.to_owned() });
        }
        Ok(Self { store, password_hash: Arc::new(hash(password)), generated })
    }

    /// Whether [`Self::open`] generated the password, so that it can be shown once.
    pub const fn password_was_generated(&self) -> bool {
        self.generated
    }

    /// Finds out who sent a request with these headers.
    ///
    /// Accepted: `Basic admin:<password>`, `Basic <owner>:<token>`, `Bearer <token>` and
    /// `Bearer <password>`.
    ///
    /// # Errors
    /// See [`Denied`].
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, Denied> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values.next().ok_or(Denied::Missing)?;
        if values.next().is_some() {
            return Err(Denied::Malformed);
        }
        let value = value.to_str().map_err(|_| Denied::Malformed)?;
        let (scheme, credentials) = value.split_once(' ').ok_or(Denied::Malformed)?;
        let credentials = credentials.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.by_secret(None, credentials).await;
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(Denied::Malformed);
        }
        let decoded = STANDARD.decode(credentials).map_err(|_| Denied::Malformed)?;
        let decoded = String::from_utf8(decoded).map_err(|_| Denied::Malformed)?;
        let (user, secret) = decoded.split_once(':').ok_or(Denied::Malformed)?;
        self.by_secret(Some(user), secret).await
    }

    async fn by_secret(&self, user: Option<&str>, secret: &str) -> Result<Principal, Denied> {
        // Hashes of equal length are compared, in constant time.
        let is_password: bool = hash(secret).ct_eq(&*self.password_hash).into();
        if is_password && user.is_none_or(|user| user == ADMIN) {
            return Ok(Principal::Admin);
        }
        let owner = self.store.verify_token(secret).await?.ok_or(Denied::Wrong)?;
        // Git and browsers write the user name as people type it.
        if user.is_none_or(|user| user.eq_ignore_ascii_case(owner.as_str())) {
            Ok(Principal::Owner(owner))
        } else {
            Err(Denied::Wrong)
        }
    }
}

/// Writes a random password where none is, whole or not at all. False when another process was
/// first.
fn generate(path: &Path) -> Result<bool, OpenAccessError> {
    let failed = |source| OpenAccessError::File { path: path.to_owned(), source };
    let mut bytes = [0; PASSWORD_BYTES];
    getrandom::fill(&mut bytes).map_err(OpenAccessError::Random)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let unfinished = path.with_extension(format!("new-{}", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&unfinished)?;
        writeln!(file, "{}", URL_SAFE_NO_PAD.encode(bytes))?;
        file.sync_all()?;
        // A link, unlike a rename, does not replace what another process wrote meanwhile.
        let linked = match std::fs::hard_link(&unfinished, path) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        File::open(folder)?.sync_all()?;
        Ok(linked)
    };
    let written = write().map_err(failed);
    drop(std::fs::remove_file(&unfinished));
    written
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn access() -> (tempfile::TempDir, Store, Access, String) {
        let folder = tempfile::tempdir().unwrap();
        let store =
            Store::open(&folder.path().join("updraft.db"), &folder.path().join("blobs")).unwrap();
        let file = folder.path().join("secrets/basic-auth-password");
        let access = Access::open(store.clone(), &file).unwrap();
        let password = std::fs::read_to_string(file).unwrap().trim().to_owned();
        (folder, store, access, password)
    }

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    fn basic(user: &str, password: &str) -> HeaderMap {
        headers(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
    }

    #[test]
    fn the_password_file_is_private_long_and_kept() {
        let (folder, store, access, password) = access();
        let file = folder.path().join("secrets/basic-auth-password");
        assert!(password.len() >= 32);
        assert!(access.password_was_generated());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file), 0o600);
        assert_eq!(mode(file.parent().unwrap()), 0o700);
        let again = Access::open(store, &file).unwrap();
        assert!(!again.password_was_generated());
        assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), password);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn an_empty_password_file_is_refused() {
        let (folder, store, ..) = access();
        let file = folder.path().join("empty");
        std::fs::write(&file, "\n").unwrap();
        assert!(matches!(Access::open(store, &file), Err(OpenAccessError::Empty { .. })));
    }

    #[tokio::test]
    async fn the_operator_and_owners_are_told_apart() {
        let (_folder, store, access, password) = access();
        let alice = OwnerName::new("alice").unwrap();
        let token = store.create_token(&alice, "laptop").await.unwrap().secret;
        let token = token.expose();
        let owner = Principal::Owner(alice.clone());
        for (headers, expected) in [
            (basic("admin", &password), &Principal::Admin),
            (headers(&format!("Bearer {password}")), &Principal::Admin),
            (basic("alice", token), &owner),
            (basic("Alice", token), &owner),
            (headers(&format!("bearer {token}")), &owner),
        ] {
            assert_eq!(&access.authenticate(&headers).await.unwrap(), expected);
        }
        for wrong in [
            basic("bob", token),
            basic("admin", token),
            basic("alice", &password),
            basic("admin", "password"),
            basic("admin", ""),
            headers("Bearer updraft_nothing"),
        ] {
            assert!(matches!(access.authenticate(&wrong).await, Err(Denied::Wrong)), "{wrong:?}");
        }
        assert!(owner.may_act_for(&alice));
        assert!(!owner.may_act_for(&OwnerName::new("bob").unwrap()));
    }

    #[tokio::test]
    async fn missing_and_unreadable_credentials_are_denied() {
        let (_folder, _store, access, password) = access();
        let none = HeaderMap::new();
        assert!(matches!(access.authenticate(&none).await, Err(Denied::Missing)));
        for text in ["Basic", "Basic !!!", "Digest abc", "Basic YQ==", ""] {
            let result = access.authenticate(&headers(text)).await;
            assert!(matches!(result, Err(Denied::Malformed)), "{text}: {result:?}");
        }
        let mut two = basic("admin", &password);
        two.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        assert!(matches!(access.authenticate(&two).await, Err(Denied::Malformed)));
    }

    #[tokio::test]
    async fn a_revoked_token_is_refused_at_once() {
        let (_folder, store, access, _password) = access();
        let alice = OwnerName::new("alice").unwrap();
        let token = store.create_token(&alice, "laptop").await.unwrap();
        let headers = basic("alice", token.secret.expose());
        access.authenticate(&headers).await.unwrap();
        assert!(store.revoke_token(&alice, token.id).await.unwrap());
        assert!(!store.revoke_token(&alice, token.id).await.unwrap());
        assert!(matches!(access.authenticate(&headers).await, Err(Denied::Wrong)));
    }

    #[tokio::test]
    async fn secrets_do_not_print() {
        let (_folder, store, access, password) = access();
        let token = store.create_token(&OwnerName::new("a").unwrap(), "x").await.unwrap();
        let printed = format!("{access:?} {token:?}");
        assert!(!printed.contains(&password) && !printed.contains(token.secret.expose()));
    }
}
