//! Where a sealed value may be opened.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// How tightly a value is bound to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scope {
    /// Opens under one namespace and one name only.
    #[default]
    Strict,
    /// Opens under any name of one namespace.
    NamespaceWide,
    /// Opens anywhere.
    ClusterWide,
}

/// The text is no scope. The caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("scope `{0}` is unknown, expected `strict`, `namespace-wide` or `cluster-wide`")]
pub struct ScopeError(String);

impl Scope {
    /// All scopes, the tightest first.
    pub const ALL: [Self; 3] = [Self::Strict, Self::NamespaceWide, Self::ClusterWide];

    /// The annotation that says it; a strict object has none.
    pub const fn annotation(self) -> Option<&'static str> {
        match self {
            Self::Strict => None,
            Self::NamespaceWide => Some("sealedsecrets.bitnami.com/namespace-wide"),
            Self::ClusterWide => Some("sealedsecrets.bitnami.com/cluster-wide"),
        }
    }

    /// The scope that annotations say: only the exact text `true` counts, and the widest wins.
    pub fn of_annotations<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Self {
        let says = |scope: Self| scope.annotation().and_then(&value) == Some("true");
        if says(Self::ClusterWide) {
            Self::ClusterWide
        } else if says(Self::NamespaceWide) {
            Self::NamespaceWide
        } else {
            Self::Strict
        }
    }

    /// What a value is bound to: the label of its encryption.
    pub fn label(self, namespace: &str, name: &str) -> Vec<u8> {
        match self {
            Self::Strict => format!("{namespace}/{name}").into_bytes(),
            Self::NamespaceWide => namespace.as_bytes().to_vec(),
            Self::ClusterWide => Vec::new(),
        }
    }

    /// As it is written on a command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::NamespaceWide => "namespace-wide",
            Self::ClusterWide => "cluster-wide",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| ScopeError(text.to_owned()))
    }
}

/// Whether a text may be a namespace, a name or an item key. A slash in one of the first two
/// would let one place pass for another.
pub(crate) fn is_plain_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=253).contains(&text.len()) && text.bytes().all(plain) && text != "." && text != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(annotations: &[(&str, &str)]) -> Scope {
        Scope::of_annotations(|wanted| {
            annotations.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value)
        })
    }

    #[test]
    fn only_the_exact_text_true_widens_and_the_widest_wins() {
        let (namespace, cluster) =
            ("sealedsecrets.bitnami.com/namespace-wide", "sealedsecrets.bitnami.com/cluster-wide");
        assert_eq!(scope(&[]), Scope::Strict);
        assert_eq!(scope(&[(namespace, "true")]), Scope::NamespaceWide);
        assert_eq!(scope(&[(namespace, "true"), (cluster, "true")]), Scope::ClusterWide);
        for almost in ["True", "TRUE", "1", "yes", "true ", "", "false"] {
            assert_eq!(scope(&[(cluster, almost), (namespace, almost)]), Scope::Strict, "{almost}");
        }
        assert_eq!(scope(&[(namespace, "true"), (cluster, "false")]), Scope::NamespaceWide);
    }

    #[test]
    fn labels_are_those_of_the_format() {
        assert_eq!(Scope::Strict.label("openfaas-fn", "a"), b"openfaas-fn/a");
        assert_eq!(Scope::NamespaceWide.label("openfaas-fn", "a"), b"openfaas-fn");
        assert_eq!(Scope::ClusterWide.label("openfaas-fn", "a"), b"");
    }

    #[test]
    fn scopes_are_read_as_they_are_written() {
        for scope in Scope::ALL {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        assert!("wide".parse::<Scope>().unwrap_err().to_string().contains("`wide`"));
    }

    #[test]
    fn a_slash_is_in_no_name() {
        for bad in ["", "a/b", "a b", "..", ".", "ä", "a\0", &"a".repeat(254)] {
            assert!(!is_plain_name(bad), "{bad}");
        }
        for good in ["a", "A_b.c-d", "tls.crt", ".dockerconfigjson"] {
            assert!(is_plain_name(good), "{good}");
        }
    }
}
