//! Where a request goes: from host and raw path to one place, without touching anything.

use thiserror::Error;
use updraft_model::OwnerName;

use crate::host::Host;

/// The domain below which everything of this installation lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(String);

/// The text is no domain. The caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("root `{0}` is not a domain name, expected one such as `example.com` or `localhost`")]
pub struct RootError(String);

impl Root {
    /// Reads a domain name; case and a trailing dot do not matter.
    ///
    /// # Errors
    /// The text is no domain name, is an address, or carries a port.
    pub fn new(root: &str) -> Result<Self, RootError> {
        match Host::parse(root) {
            Ok(Host::Name(name)) if !root.contains(':') => Ok(Self(name.into_owned())),
            _ => Err(RootError(root.to_owned())),
        }
    }

    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whom a host belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site<'a> {
    /// `<owner>.<root>`: that owner's functions.
    Owner(&'a str),
    /// `<preview>--<owner>.<root>`: kept for previews.
    Preview,
    /// `system.<root>`.
    System,
    /// `gateway.<root>`.
    Gateway,
    /// `localhost` or a bare address: the gateway, with git and the API beside it.
    Loopback,
    /// Nobody's.
    Unknown,
}

impl<'a> Site<'a> {
    /// Finds out whom `host` belongs to.
    pub fn of(host: &'a Host<'_>, root: &Root) -> Self {
        let name = match host {
            Host::Address(_) => return Self::Loopback,
            Host::Name(name) => name.as_ref(),
        };
        if name == "localhost" {
            return Self::Loopback;
        }
        let label = name.strip_suffix(root.as_str()).and_then(|label| label.strip_suffix('.'));
        match label {
            Some("system") => Self::System,
            Some("gateway") => Self::Gateway,
            Some(label) if label.contains('.') => Self::Unknown,
            Some(label) if label.contains("--") => Self::Preview,
            Some(label) if OwnerName::new(label).is_ok() => Self::Owner(label),
            None | Some(_) => Self::Unknown,
        }
    }
}

/// Where one request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place<'a> {
    /// `/healthz`, on every host.
    Health,
    /// An owner's function by the owner's own name, with the raw rest of the path.
    Owned {
        /// The owner, from the host.
        owner: &'a str,
        /// The first segment of the path.
        function: &'a str,
        /// What follows it: empty, or from a `/` on.
        rest: &'a str,
    },
    /// A function by `name` or `name.namespace`, with the raw rest of the path.
    Function {
        /// As the path names it.
        name: &'a str,
        /// What follows it: empty, or from a `/` on.
        rest: &'a str,
    },
    /// The OpenFaaS API.
    Gateway,
    /// The platform's own API, pages and git.
    System,
    /// The root of an owner's host, where there is nothing.
    OwnerRoot,
    /// A preview's host.
    Preview,
    /// A host that is not ours.
    Unknown,
}

impl<'a> Place<'a> {
    /// Routes the raw path of a request on `site`.
    pub fn of(site: Site<'a>, path: &'a str) -> Self {
        if path == "/healthz" {
            return Self::Health;
        }
        match site {
            Site::Unknown => Self::Unknown,
            Site::Preview => Self::Preview,
            Site::System => Self::System,
            Site::Owner(owner) => {
                let path = path.trim_start_matches('/');
                if path.is_empty() {
                    return Self::OwnerRoot;
                }
                let (function, rest) = split_segment(path);
                Self::Owned { owner, function, rest }
            }
            Site::Gateway | Site::Loopback => {
                if let Some(path) = path.strip_prefix("/function/") {
                    let (name, rest) = split_segment(path);
                    if !name.is_empty() {
                        return Self::Function { name, rest };
                    }
                }
                let below = |prefix: &str| {
                    path.strip_prefix(prefix)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                };
                // `/v1` is where tools ask for the certificate of sealed secrets.
                if below("/v1") || site == Site::Loopback && (below("/git") || below("/api/v1")) {
                    Self::System
                } else {
                    Self::Gateway
                }
            }
        }
    }
}

fn split_segment(path: &str) -> (&str, &str) {
    path.split_at(path.find('/').unwrap_or(path.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn site<'a>(host: &'a Host<'a>, root: &str) -> Site<'a> {
        Site::of(host, &Root::new(root).unwrap())
    }

    fn check_site(text: &str, root: &str, expected: &Site<'_>) {
        let host = Host::parse(text).unwrap();
        assert_eq!(&site(&host, root), expected, "{text} on {root}");
    }

    #[test]
    fn hosts_belong_to_whom_the_design_says() {
        for (host, expected) in [
            ("alice.localhost:8080", Site::Owner("alice")),
            ("ALICE.localhost.", Site::Owner("alice")),
            ("system.localhost", Site::System),
            ("gateway.localhost", Site::Gateway),
            ("localhost:8080", Site::Loopback),
            ("127.0.0.1:8080", Site::Loopback),
            ("[::1]:8080", Site::Loopback),
            ("pr-1--alice.localhost", Site::Preview),
            ("auth.system.localhost", Site::Unknown),
            ("a.b.localhost", Site::Unknown),
            ("admin.localhost", Site::Unknown),
            ("-a.localhost", Site::Unknown),
            ("alicelocalhost", Site::Unknown),
            ("example.com", Site::Unknown),
            ("localhost.example.com", Site::Unknown),
        ] {
            check_site(host, "localhost", &expected);
        }
        check_site("alice.example.com", "example.com", &Site::Owner("alice"));
        check_site("alice.xexample.com", "example.com", &Site::Unknown);
        check_site("example.com", "example.com", &Site::Unknown);
        check_site("localhost", "example.com", &Site::Loopback);
        check_site("alice.localhost", "example.com", &Site::Unknown);
    }

    #[test]
    fn an_owners_path_is_the_function_and_the_raw_rest() {
        for (path, function, rest) in [
            ("/fn", "fn", ""),
            ("/fn/", "fn", "/"),
            ("//fn/a", "fn", "/a"),
            ("/////fn", "fn", ""),
            ("/fn//a", "fn", "//a"),
            ("/fn/a%2Fb/../c", "fn", "/a%2Fb/../c"),
            ("/../fn", "..", "/fn"),
            ("/fn%2Fa", "fn%2Fa", ""),
        ] {
            let place = Place::of(Site::Owner("alice"), path);
            assert_eq!(place, Place::Owned { owner: "alice", function, rest }, "{path}");
        }
        assert_eq!(Place::of(Site::Owner("alice"), "/"), Place::OwnerRoot);
        assert_eq!(Place::of(Site::Owner("alice"), "///"), Place::OwnerRoot);
    }

    #[test]
    fn the_gateway_has_functions_and_its_api_and_the_loopback_git_too() {
        for site in [Site::Gateway, Site::Loopback] {
            let function = |name, rest| Place::Function { name, rest };
            assert_eq!(Place::of(site, "/function/f"), function("f", ""));
            assert_eq!(Place::of(site, "/function/f.ns/"), function("f.ns", "/"));
            assert_eq!(Place::of(site, "/function/f/%2F"), function("f", "/%2F"));
            assert_eq!(Place::of(site, "/function/"), Place::Gateway);
            assert_eq!(Place::of(site, "/function"), Place::Gateway);
            assert_eq!(Place::of(site, "/system/functions"), Place::Gateway);
            assert_eq!(Place::of(site, "/v1/cert.pem"), Place::System);
            assert_eq!(Place::of(site, "/v10"), Place::Gateway);
        }
        assert_eq!(Place::of(Site::Loopback, "/git/a/b.git/info/refs"), Place::System);
        assert_eq!(Place::of(Site::Loopback, "/api/v1"), Place::System);
        assert_eq!(Place::of(Site::Loopback, "/api/v10"), Place::Gateway);
        assert_eq!(Place::of(Site::Gateway, "/git/a/b.git"), Place::Gateway);
    }

    #[test]
    fn health_is_everywhere_and_nothing_else_is_on_unknown_hosts() {
        for site in [Site::Unknown, Site::Preview, Site::Owner("a"), Site::System, Site::Gateway] {
            assert_eq!(Place::of(site, "/healthz"), Place::Health);
        }
        assert_eq!(Place::of(Site::Unknown, "/function/f"), Place::Unknown);
        assert_eq!(Place::of(Site::Preview, "/f"), Place::Preview);
    }

    #[test]
    fn a_root_is_a_domain_name() {
        for good in ["localhost", "example.com", "Example.COM."] {
            assert!(Root::new(good).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1", "example.com:80", "http://a", "a b"] {
            assert!(Root::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_parts_of_an_owners_path_make_up_the_path(path in "/[ -~]{0,60}") {
            match Place::of(Site::Owner("alice"), &path) {
                Place::Owned { owner, function, rest } => {
                    prop_assert_eq!(owner, "alice");
                    prop_assert!(!function.is_empty() && !function.contains('/'));
                    prop_assert!(rest.is_empty() || rest.starts_with('/'));
                    prop_assert_eq!(path.trim_start_matches('/'), format!("{function}{rest}"));
                }
                Place::OwnerRoot => prop_assert!(path.bytes().all(|byte| byte == b'/')),
                place => prop_assert_eq!((place, path.as_str()), (Place::Health, "/healthz")),
            }
        }

        #[test]
        fn no_host_reaches_another_owner(label in "[a-z0-9-]{1,20}", below in "(\\.[a-z]{1,5})?") {
            let text = format!("{label}{below}.example.com");
            if let Ok(host) = Host::parse(&text)
                && let Site::Owner(owner) = site(&host, "example.com")
            {
                prop_assert_eq!(&text, &format!("{owner}.example.com"));
            }
        }
    }
}
