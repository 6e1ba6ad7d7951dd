//! Names: of owners, repositories, functions, secrets and namespaces.
//!
//! A function is addressed in two ways: by the pair (owner, name in the stack), which is its
//! identity, and by the visible name `<owner>-<name>`, which is what OpenFaaS clients and the
//! engine see. The rules here make sure that two pairs never share a visible name.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest DNS label, and so the longest name of anything that becomes a host or a service.
const DNS_LABEL_MAX: usize = 63;

/// Longest repository name accepted; forges allow 100.
const REPOSITORY_NAME_MAX: usize = 100;

/// Longest secret name: a DNS subdomain, as Kubernetes has it.
const SECRET_NAME_MAX: usize = 253;

/// Longest key of a secret's item, as Kubernetes has it.
const ITEM_KEY_MAX: usize = 253;

/// Owners that nobody may be: hosts and name prefixes that belong to the platform.
const RESERVED_OWNERS: &[&str] = &[
    "admin",
    "api",
    "auth",
    "dashboard",
    "edge",
    "faas",
    "function",
    "gateway",
    "git",
    "github",
    "gitlab",
    "kube",
    "localhost",
    "metrics",
    "of",
    "openfaas",
    "pipeline",
    "registry",
    "root",
    "static",
    "system",
    "updraft",
    "www",
];

/// Namespaces that hold the platform itself or the cluster below it, never functions.
const RESERVED_NAMESPACES: &[&str] = &["default", "openfaas", "updraft"];

/// Why a text is not a name. The fault is the caller's; the message says what to change.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("{what} is missing")]
    Empty {
        /// Which kind of name was read, for instance `owner`.
        what: &'static str,
    },
    /// More characters than the kind of name may have.
    #[error("{what} `{name}` has {} characters, {max} are allowed", name.chars().count())]
    TooLong {
        /// Which kind of name was read.
        what: &'static str,
        /// The text as given.
        name: String,
        /// The most characters allowed.
        max: usize,
    },
    /// A character, or a position of one, that the grammar does not allow.
    #[error("{what} `{name}` is invalid, must be a valid DNS entry: {rule}")]
    Grammar {
        /// Which kind of name was read.
        what: &'static str,
        /// The text as given.
        name: String,
        /// The rule in words.
        rule: &'static str,
    },
    /// A character, or a position of one, that the name of such a file may not have.
    #[error("{what} `{name}` is invalid, allowed are {rule}")]
    File {
        /// Which kind of name was read.
        what: &'static str,
        /// The text as given.
        name: String,
        /// The rule in words.
        rule: &'static str,
    },
    /// The name belongs to the platform.
    #[error("{what} `{name}` is reserved for the platform, choose another")]
    Reserved {
        /// Which kind of name was read.
        what: &'static str,
        /// The text as given.
        name: String,
    },
}

const DNS_LABEL_RULE: &str =
    "lower-case letters, digits and `-`, with a letter or digit first and last";

fn check_dns_label(what: &'static str, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    if name.len() > DNS_LABEL_MAX {
        return Err(NameError::TooLong { what, name: name.to_owned(), max: DNS_LABEL_MAX });
    }
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let inner_fits = bytes.iter().all(|&byte| alphanumeric(byte) || byte == b'-');
    if inner_fits && alphanumeric(bytes[0]) && alphanumeric(bytes[bytes.len() - 1]) {
        Ok(())
    } else {
        Err(NameError::Grammar { what, name: name.to_owned(), rule: DNS_LABEL_RULE })
    }
}

/// Defines a name type: a checked text with the conversions that every name has.
macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `name` and keeps it.
            ///
            /// # Errors
            /// The caller's fault: the text breaks the rule for this kind of name.
            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                let check: fn(&str) -> Result<(), NameError> = $check;
                check(&name)?;
                Ok(Self(name))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name_type!(
    /// A tenant: a user, organisation or group of a forge, or a local account; always lower case.
    ///
    /// It is a host label (`<owner>.<root>`), so it follows the DNS grammar, and it holds no `--`,
    /// which separates a preview's name from the owner's.
    OwnerName,
    |name| {
        check_dns_label("owner", name)?;
        if name.contains("--") {
            return Err(NameError::Grammar {
                what: "owner",
                name: name.to_owned(),
                rule: "no two `-` in a row",
            });
        }
        if RESERVED_OWNERS.contains(&name) || name.starts_with("kube-") {
            return Err(NameError::Reserved { what: "owner", name: name.to_owned() });
        }
        Ok(())
    }
);

name_type!(
    /// A function's name: what the stack calls it, or the visible name that the engine sees.
    FunctionName,
    |name| check_dns_label("function", name)
);

name_type!(
    /// A namespace of functions, as OpenFaaS has them; the default one is `openfaas-fn`.
    Namespace,
    |name| {
        check_dns_label("namespace", name)?;
        if RESERVED_NAMESPACES.contains(&name) || name.starts_with("kube-") {
            return Err(NameError::Reserved { what: "namespace", name: name.to_owned() });
        }
        Ok(())
    }
);

name_type!(
    /// A repository's name as forges have them: letters, digits, `-`, `_` and `.`.
    RepositoryName,
    |name| {
        let what = "repository";
        if name.is_empty() {
            return Err(NameError::Empty { what });
        }
        if name.len() > REPOSITORY_NAME_MAX {
            return Err(NameError::TooLong {
                what,
                name: name.to_owned(),
                max: REPOSITORY_NAME_MAX,
            });
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let starts_well = name.as_bytes()[0].is_ascii_alphanumeric();
        let ends_like_git = name.to_ascii_lowercase().ends_with(".git");
        if starts_well && !ends_like_git && !name.contains("..") && name.bytes().all(fits) {
            Ok(())
        } else {
            Err(NameError::Grammar {
                what,
                name: name.to_owned(),
                rule: "letters, digits, `-`, `_` and `.`, starting with a letter or digit, no `..`, no `.git` at the end",
            })
        }
    }
);

name_type!(
    /// The key of one item of a secret: also the item's file name under `/var/openfaas/secrets`.
    ItemKey,
    |key| {
        let what = "secret item";
        if key.is_empty() {
            return Err(NameError::Empty { what });
        }
        if key.len() > ITEM_KEY_MAX {
            return Err(NameError::TooLong { what, name: key.to_owned(), max: ITEM_KEY_MAX });
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if key != "." && !key.starts_with("..") && key.bytes().all(fits) {
            Ok(())
        } else {
            Err(NameError::File {
                what,
                name: key.to_owned(),
                rule: "letters, digits, `-`, `_` and `.`, without `..` in front",
            })
        }
    }
);

name_type!(
    /// A secret's name. A secret of one value is a file of that name under
    /// `/var/openfaas/secrets`.
    SecretName,
    |name| {
        let what = "secret";
        if name.is_empty() {
            return Err(NameError::Empty { what });
        }
        if name.len() > SECRET_NAME_MAX {
            return Err(NameError::TooLong { what, name: name.to_owned(), max: SECRET_NAME_MAX });
        }
        if name.split('.').all(|label| check_dns_label(what, label).is_ok()) {
            Ok(())
        } else {
            Err(NameError::Grammar {
                what,
                name: name.to_owned(),
                rule: "DNS labels joined by `.`",
            })
        }
    }
);

impl From<&SecretName> for ItemKey {
    /// The key of the one item of a secret of one value.
    fn from(name: &SecretName) -> Self {
        Self(name.0.clone())
    }
}

impl OwnerName {
    /// The visible name of this owner's function: `<owner>-<function>`.
    ///
    /// # Errors
    /// The caller's fault: the two together are longer than a DNS label.
    pub fn visible_name(&self, function: &FunctionName) -> Result<FunctionName, NameError> {
        FunctionName::new(format!("{self}-{function}"))
    }

    /// What the owner calls a function whose visible name is given, if it can be theirs.
    pub fn own_name(&self, visible: &FunctionName) -> Option<FunctionName> {
        let rest = visible.as_str().strip_prefix(self.as_str())?.strip_prefix('-')?;
        FunctionName::new(rest).ok()
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self("openfaas-fn".to_owned())
    }
}

/// Whether functions of the two owners could share a visible name: one is a `-`-prefix of the
/// other (`alice` and `alice-b`: is `alice-b-c` `b-c` of the first or `c` of the second?).
///
/// Two such owners never exist on one platform; the second one is refused.
pub fn owners_collide(one: &OwnerName, other: &OwnerName) -> bool {
    let is_prefix = |short: &OwnerName, long: &OwnerName| {
        long.0.strip_prefix(short.as_str()).is_some_and(|rest| rest.starts_with('-'))
    };
    is_prefix(one, other) || is_prefix(other, one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> OwnerName {
        OwnerName::new(name).unwrap()
    }

    #[test]
    fn owner_names_follow_the_dns_label_grammar() {
        for good in ["a", "alice", "a1-b2", "0x", &"a".repeat(63)] {
            assert!(OwnerName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "Alice", "a.b", "a_b", "a--b", "ä", "a/b", &"a".repeat(64)] {
            assert!(OwnerName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn owners_of_the_platform_are_reserved() {
        for name in ["system", "git", "gateway", "admin", "kube-system", "openfaas"] {
            assert!(matches!(OwnerName::new(name), Err(NameError::Reserved { .. })), "{name}");
        }
    }

    #[test]
    fn an_owner_that_is_a_dash_prefix_of_another_collides() {
        assert!(owners_collide(&owner("stefan"), &owner("stefan-prodan")));
        assert!(owners_collide(&owner("stefan-prodan"), &owner("stefan")));
        assert!(!owners_collide(&owner("alexellis"), &owner("alexe")));
        assert!(!owners_collide(&owner("same"), &owner("same")));
    }

    #[test]
    fn visible_names_join_owner_and_function_and_come_apart_again() {
        let hello = FunctionName::new("hello-world").unwrap();
        let visible = owner("demo").visible_name(&hello).unwrap();
        assert_eq!(visible.as_str(), "demo-hello-world");
        assert_eq!(owner("demo").own_name(&visible), Some(hello));
        assert_eq!(owner("dem").own_name(&visible), None);
        let long = FunctionName::new("f".repeat(60)).unwrap();
        assert!(owner("demo").visible_name(&long).is_err());
    }

    #[test]
    fn repository_names_cannot_leave_their_folder() {
        for good in ["repo", "My.Repo_1", "a-b"] {
            assert!(RepositoryName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "x.git", ".hidden", "a..b", "-rf", "a b"] {
            assert!(RepositoryName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secret_names_are_safe_file_names() {
        for good in ["a", "db-password", "tls.key"] {
            assert!(SecretName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "..", "a..b", "a/b", "A", ".a"] {
            assert!(SecretName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn item_keys_are_what_kubernetes_allows_and_safe_file_names() {
        for good in ["a", "API_KEY", "tls.key", ".dockerconfigjson", "a..b", &"k".repeat(253)] {
            assert!(ItemKey::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "..data", "a/b", "a b", "ä", "a\n", &"k".repeat(254)] {
            assert!(ItemKey::new(bad).is_err(), "{bad}");
        }
        let name = SecretName::new("s".repeat(63)).unwrap();
        assert_eq!(ItemKey::from(&name).as_str(), name.as_str());
    }

    #[test]
    fn a_namespace_of_the_cluster_is_reserved() {
        assert!(Namespace::new("kube-system").is_err());
        assert!(Namespace::new("openfaas").is_err());
        assert_eq!(Namespace::default().as_str(), "openfaas-fn");
    }

    #[test]
    fn serde_refuses_a_wrong_name() {
        assert!(serde_json::from_str::<FunctionName>("\"Bad Name\"").is_err());
        assert_eq!(serde_json::from_str::<FunctionName>("\"ok\"").unwrap().as_str(), "ok");
    }
}
