//! Tenants: who a function belongs to, as far as walls between functions go.
//!
//! Functions of one tenant trust each other with nothing but what they share anyway; functions of
//! two tenants share nothing. A function that came by a push belongs to the owner who pushed it,
//! any other to its namespace. The two kinds are kept apart: an owner who calls himself like a
//! namespace is not that namespace.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{FunctionSpec, NameError, Namespace, OwnerName};

/// Who a function belongs to. Written `owner/<name>` or `namespace/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Tenant {
    /// The owner whose pushes deploy it.
    Owner(OwnerName),
    /// The namespace it was deployed to by other means than a push.
    Namespace(Namespace),
}

/// Why a text names no tenant. The caller's fault; the message says what is expected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseTenantError {
    /// Neither an owner nor a namespace is meant.
    #[error("tenant `{0}` is invalid, expected `owner/<name>` or `namespace/<name>`")]
    Kind(String),
    /// The name after the slash does not fit.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FunctionSpec {
    /// Who the function belongs to.
    pub fn tenant(&self) -> Tenant {
        match self.owner() {
            Some(owner) => Tenant::Owner(owner),
            None => Tenant::Namespace(self.id.namespace.clone()),
        }
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(name) => write!(f, "owner/{name}"),
            Self::Namespace(name) => write!(f, "namespace/{name}"),
        }
    }
}

impl FromStr for Tenant {
    type Err = ParseTenantError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some(("owner", name)) => Ok(Self::Owner(OwnerName::new(name)?)),
            Some(("namespace", name)) => Ok(Self::Namespace(Namespace::new(name)?)),
            _ => Err(ParseTenantError::Kind(text.chars().take(128).collect())),
        }
    }
}

impl TryFrom<String> for Tenant {
    type Error = ParseTenantError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FunctionId, FunctionName, labels};

    fn spec() -> FunctionSpec {
        let id = FunctionId::in_default(FunctionName::new("alice-hello").unwrap());
        FunctionSpec::new(id, "localhost/hello:1".parse().unwrap())
    }

    #[test]
    fn a_pushed_function_belongs_to_its_owner_and_any_other_to_its_namespace() {
        let mut spec = spec();
        assert_eq!(spec.tenant().to_string(), "namespace/openfaas-fn");
        spec.labels.insert(labels::GIT_OWNER.into(), "Alice".into());
        assert_eq!(spec.tenant().to_string(), "owner/alice");
        spec.labels.insert(labels::GIT_OWNER.into(), "../alice".into());
        assert_eq!(spec.tenant().to_string(), "namespace/openfaas-fn");
    }

    #[test]
    fn an_owner_named_like_a_namespace_is_not_that_namespace() {
        let mut spec = spec();
        let namespace = spec.tenant();
        spec.labels.insert(labels::GIT_OWNER.into(), "openfaas-fn".into());
        assert_ne!(spec.tenant(), namespace);
    }

    #[test]
    fn a_tenant_survives_its_written_form_and_nothing_else_is_one() {
        for text in ["owner/alice", "namespace/openfaas-fn"] {
            assert_eq!(text.parse::<Tenant>().unwrap().to_string(), text);
        }
        for text in ["alice", "owner/", "owner/a/b", "group/alice", ""] {
            assert!(text.parse::<Tenant>().is_err(), "{text}");
        }
    }
}
