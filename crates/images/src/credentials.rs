//! Credentials for registries, in the form that Docker's clients keep them in (`config.json`,
//! also `kubernetes.io/dockerconfigjson`): checked, cut down to what says who somebody is, and
//! handed to `buildah` in a file that nobody else can read.
//!
//! Only `auths` is taken over. The other members of such a file name programs to be run for
//! credentials, which is not for the author of a secret to decide.

use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::ImageError;

/// Longest configuration that is read; one with a dozen registries has 2 KiB.
const LENGTH_MAX: usize = 64 * 1024;

/// Who to be towards which registry. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryCredentials {
    /// `{"auths": …}` and nothing else.
    file: String,
}

/// Why a configuration holds no credentials. The author's fault; nothing of its content is told
/// but registries' names.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CredentialsError {
    /// It is too long to be one.
    #[error("it is longer than {} KiB", LENGTH_MAX >> 10)]
    TooLong,
    /// It is no JSON object.
    #[error("it is no JSON object such as {EXAMPLE}")]
    NotJson,
    /// There is no registry in it.
    #[error("it names no registry below `auths`, write {EXAMPLE}")]
    Empty,
    /// What a registry has is not understood.
    #[error("what it has for registry `{0}` is no user with password, write {EXAMPLE}")]
    Entry(String),
}

const EXAMPLE: &str =
    r#"`{"auths":{"registry.example.com":{"auth":"<base64 of user:password>"}}}`"#;

impl RegistryCredentials {
    /// Reads a Docker client's configuration.
    ///
    /// # Errors
    /// It is not one, or holds no credentials.
    pub fn parse(bytes: &[u8]) -> Result<Self, CredentialsError> {
        if bytes.len() > LENGTH_MAX {
            return Err(CredentialsError::TooLong);
        }
        let config: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|_| CredentialsError::NotJson)?;
        let Some(Value::Object(auths)) = config.get("auths") else {
            return Err(CredentialsError::Empty);
        };
        let mut kept = Map::new();
        for (registry, entry) in auths {
            let entry = identity(entry).ok_or_else(|| {
                CredentialsError::Entry(registry.chars().take(256).collect::<String>())
            })?;
            kept.insert(registry.clone(), entry);
        }
        if kept.is_empty() {
            return Err(CredentialsError::Empty);
        }
        Ok(Self { file: json!({ "auths": kept }).to_string() })
    }
}

impl fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryCredentials(…)")
    }
}

/// The part of a registry's entry that says who somebody is, as `buildah` reads it.
fn identity(entry: &Value) -> Option<Value> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        let auth = text("auth").unwrap_or_default();
        return Some(json!({ "auth": auth, "identitytoken": token }));
    }
    let auth = match (text("auth"), text("username"), text("password")) {
        (Some(auth), _, _) => auth.trim().to_owned(),
        (None, Some(user), Some(password)) => STANDARD.encode(format!("{user}:{password}")),
        _ => return None,
    };
    let decoded = STANDARD.decode(&auth).ok()?;
    decoded.contains(&b':').then(|| json!({ "auth": auth }))
}

/// Credentials in a file for the time of one program's run.
#[derive(Debug)]
pub(crate) struct AuthFile(PathBuf);

impl AuthFile {
    /// Writes the file below `run_root`, which is in memory.
    pub(crate) fn write(
        run_root: &Path,
        credentials: &RegistryCredentials,
    ) -> Result<Self, ImageError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let folder = folder(run_root);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&folder).map_err(ImageError::io("create", &folder))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{}-{number}.json", std::process::id()));
        // A process of that number may have ended without taking its file along.
        drop(fs::remove_file(&path));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.map_err(ImageError::io("create", &path))?;
        let this = Self(path);
        file.write_all(credentials.file.as_bytes()).map_err(ImageError::io("write", &this.0))?;
        Ok(this)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for AuthFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "a file with credentials stays");
        }
    }
}

/// Where such files lie.
fn folder(run_root: &Path) -> PathBuf {
    run_root.join("updraft-auth")
}

/// Removes what processes that were killed left.
pub(crate) fn clear(run_root: &Path) {
    for entry in fs::read_dir(folder(run_root)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next());
        if owner.is_none_or(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another process may be clearing the same folder.
            drop(fs::remove_file(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: &Result<&str, CredentialsError>) {
        let parsed = RegistryCredentials::parse(text.as_bytes());
        let parsed = parsed.map(|credentials| credentials.file);
        assert_eq!(parsed.as_deref().map_err(Clone::clone), expected.clone(), "{text}");
    }

    #[test]
    fn only_who_somebody_is_is_taken_over() {
        check(
            r#"{"auths":{"r.example":{"auth":"dTpw","email":"u@e"}},"credsStore":"evil",
                "credHelpers":{"r.example":"evil"},"HttpHeaders":{"a":"b"}}"#,
            &Ok(r#"{"auths":{"r.example":{"auth":"dTpw"}}}"#),
        );
        check(
            r#"{"auths":{"r":{"username":"u","password":"p"}}}"#,
            &Ok(r#"{"auths":{"r":{"auth":"dTpw"}}}"#),
        );
        check(
            r#"{"auths":{"r":{"identitytoken":"t"}}}"#,
            &Ok(r#"{"auths":{"r":{"auth":"","identitytoken":"t"}}}"#),
        );
    }

    #[test]
    fn what_holds_no_credentials_is_told_without_its_content() {
        check("", &Err(CredentialsError::NotJson));
        check("u:p", &Err(CredentialsError::NotJson));
        check("[]", &Err(CredentialsError::NotJson));
        check("{}", &Err(CredentialsError::Empty));
        check(r#"{"auths":{}}"#, &Err(CredentialsError::Empty));
        check(r#"{"auths":[]}"#, &Err(CredentialsError::Empty));
        for entry in ["{}", "3", r#"{"auth":"no base64!"}"#, r#"{"auth":"dXA="}"#] {
            let text = format!(r#"{{"auths":{{"r":{entry}}}}}"#);
            check(&text, &Err(CredentialsError::Entry("r".to_owned())));
        }
        let long = vec![b' '; LENGTH_MAX + 1];
        assert_eq!(RegistryCredentials::parse(&long), Err(CredentialsError::TooLong));
    }

    #[test]
    fn credentials_do_not_print() {
        let credentials = RegistryCredentials::parse(br#"{"auths":{"r":{"auth":"dTpw"}}}"#);
        assert!(!format!("{credentials:?}").contains("dTpw"));
    }

    #[test]
    fn a_file_with_credentials_is_private_and_goes_with_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let run_root = tempfile::tempdir().unwrap();
        let credentials = RegistryCredentials::parse(br#"{"auths":{"r":{"auth":"dTpw"}}}"#);
        let file = AuthFile::write(run_root.path(), &credentials.unwrap()).unwrap();
        let path = file.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        clear(run_root.path());
        assert!(path.exists(), "its process lives");
        drop(file);
        assert!(!path.exists());
        let left = folder(run_root.path()).join("4000000000-0.json");
        fs::write(&left, "secret").unwrap();
        clear(run_root.path());
        assert!(!left.exists());
    }

    proptest! {
        #[test]
        fn whatever_is_taken_over_is_read_again_as_the_same(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            user in "[a-z]{1,8}",
            password in "\\PC{1,20}",
        ) {
            drop(RegistryCredentials::parse(&bytes));
            let entry = json!({ "auths": { "r": { "username": user, "password": password } } });
            let one = RegistryCredentials::parse(entry.to_string().as_bytes()).unwrap();
            let two = RegistryCredentials::parse(one.file.as_bytes()).unwrap();
            prop_assert_eq!(one, two);
        }
    }
}
