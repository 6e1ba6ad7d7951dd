//! Where a function or secret is: its name and namespace, from the places clients put them.
//!
//! Depending on verb and client a namespace comes in the body, in the query or behind the last
//! dot of the name; all are read on every verb.

use thiserror::Error;
use updraft_model::{FunctionId, FunctionName, NameError, Namespace};

/// The namespace of the cluster itself, which OpenFaaS clients expect to be refused by `401`.
const CLUSTER_NAMESPACE: &str = "kube-system";

/// Why a place is none.
#[derive(Debug, Error)]
pub(crate) enum PlaceError {
    #[error("the {0} namespace is not for functions")]
    Cluster(String),
    #[error(transparent)]
    Namespace(NameError),
    #[error(transparent)]
    Name(NameError),
    #[error("the name says namespace `{in_name}` but the request says `{given}`, leave one out")]
    Contradiction { in_name: String, given: String },
}

/// The namespace of a request: the body's, else the query's, else the default one.
pub(crate) fn namespace(body: Option<&str>, query: Option<&str>) -> Result<Namespace, PlaceError> {
    match given(body).or(given(query)) {
        Some(CLUSTER_NAMESPACE) => Err(PlaceError::Cluster(CLUSTER_NAMESPACE.to_owned())),
        Some(name) => Namespace::new(name).map_err(PlaceError::Namespace),
        None => Ok(Namespace::default()),
    }
}

/// The function that `name` means; `name` may carry its namespace behind the last dot.
pub(crate) fn function(
    name: &str,
    body: Option<&str>,
    query: Option<&str>,
) -> Result<FunctionId, PlaceError> {
    let (name, in_name) = split(name);
    let namespace = match (in_name, given(body).or(given(query))) {
        (Some(in_name), Some(given)) if in_name != given => {
            return Err(PlaceError::Contradiction {
                in_name: in_name.to_owned(),
                given: given.to_owned(),
            });
        }
        (in_name, given) => namespace(in_name, given)?,
    };
    let name = FunctionName::new(name).map_err(PlaceError::Name)?;
    Ok(FunctionId { namespace, name })
}

/// Splits at the last dot, unless that is the first character or the last.
fn split(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once('.') {
        Some((name, namespace)) if !name.is_empty() && !namespace.is_empty() => {
            (name, Some(namespace))
        }
        _ => (name, None),
    }
}

/// An empty text is what a client sends for "none given".
fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_splits_at_its_last_dot_unless_that_comes_first_or_last() {
        assert_eq!(split("fn"), ("fn", None));
        assert_eq!(split("fn.ns"), ("fn", Some("ns")));
        assert_eq!(split("fn.a.b"), ("fn.a", Some("b")));
        assert_eq!(split(".openfaas-fn"), (".openfaas-fn", None));
        assert_eq!(split("fn."), ("fn.", None));
    }

    #[test]
    fn the_namespace_is_the_bodys_else_the_querys_else_the_default() {
        let check = |body, query, expected: &str| {
            assert_eq!(namespace(body, query).unwrap().as_str(), expected);
        };
        check(Some("a"), Some("b"), "a");
        check(None, Some("b"), "b");
        check(Some(""), Some("b"), "b");
        check(None, Some(""), "openfaas-fn");
        check(None, None, "openfaas-fn");
    }

    #[test]
    fn namespaces_of_cluster_and_platform_are_refused() {
        assert!(matches!(namespace(Some("kube-system"), None), Err(PlaceError::Cluster(_))));
        for name in ["openfaas", "default", "kube-public", "Not A Namespace"] {
            assert!(matches!(namespace(None, Some(name)), Err(PlaceError::Namespace(_))), "{name}");
        }
    }

    #[test]
    fn a_qualified_name_must_agree_with_the_namespace_given() {
        assert_eq!(function("fn.a", None, Some("a")).unwrap().to_string(), "fn.a");
        assert_eq!(function("fn.a", None, None).unwrap().to_string(), "fn.a");
        let refused = function("fn.a", None, Some("b"));
        assert!(matches!(refused, Err(PlaceError::Contradiction { .. })));
        assert!(matches!(function(".openfaas-fn", None, None), Err(PlaceError::Name(_))));
    }
    proptest! {
        #[test]
        fn a_place_names_what_was_asked_for_or_is_none(name in "[a-zA-Z0-9._-]{0,40}") {
            if let Ok(id) = function(&name, None, None) {
                let shown = id.to_string();
                prop_assert!(shown == name || shown == format!("{name}.openfaas-fn"), "{shown}");
            }
        }
    }
}
