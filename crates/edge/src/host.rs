//! The host that a request asks for, read strictly: what is not clearly one host is none.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::HOST;
use http::{HeaderMap, Uri, Version};
use thiserror::Error;

/// Longest name that DNS knows, without the trailing dot.
const NAME_MAX: usize = 253;

/// Why a request names no host. The caller's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HostError {
    /// There is no `Host`, where the protocol demands one.
    #[error("the request names no host")]
    Missing,
    /// There are several, and they are not the same.
    #[error("the request names more than one host")]
    Several,
    /// It is no host name, no address, or has something around it.
    #[error("the request's host is not a valid host name or address")]
    Invalid,
}

/// A host without its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host<'a> {
    /// An address, brackets removed.
    Address(IpAddr),
    /// A name: lower case, without the trailing dot.
    Name(Cow<'a, str>),
}

impl<'a> Host<'a> {
    /// Reads `name`, `name:port`, `1.2.3.4:port` or `[::1]:port`.
    ///
    /// # Errors
    /// [`HostError::Invalid`] for everything else, user information included.
    pub fn parse(text: &'a str) -> Result<Self, HostError> {
        if let Some(rest) = text.strip_prefix('[') {
            let (address, port) = rest.split_once(']').ok_or(HostError::Invalid)?;
            check_port(port)?;
            let address: Ipv6Addr = address.parse().map_err(|_| HostError::Invalid)?;
            return Ok(Self::Address(IpAddr::V6(address).to_canonical()));
        }
        let end = text.find(':').unwrap_or(text.len());
        let (name, port) = text.split_at(end);
        check_port(port)?;
        let name = name.strip_suffix('.').unwrap_or(name);
        if let Ok(address) = name.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        let label = |label: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=63).contains(&label.len()) && label.bytes().all(fits)
        };
        if name.len() > NAME_MAX || !name.split('.').all(label) {
            return Err(HostError::Invalid);
        }
        let lower = !name.bytes().any(|byte| byte.is_ascii_uppercase());
        Ok(Self::Name(if lower { name.into() } else { name.to_ascii_lowercase().into() }))
    }

    /// The host of a request: of its target if that is absolute, else of its one `Host` header.
    ///
    /// # Errors
    /// None, several that differ, or one that is invalid.
    pub fn of(uri: &'a Uri, headers: &'a HeaderMap, version: Version) -> Result<Self, HostError> {
        let mut named = headers.get_all(HOST).iter();
        let header = named.next();
        if named.next().is_some() {
            return Err(HostError::Several);
        }
        let header = header
            .map(|value| value.to_str().map_err(|_| HostError::Invalid).and_then(Self::parse))
            .transpose()?;
        match (uri.authority(), header) {
            (Some(authority), header) => {
                let target = Self::parse(authority.as_str())?;
                // HTTP/1 lets an absolute target win over `Host`; in HTTP/2 the two must agree.
                if version == Version::HTTP_2 && header.is_some_and(|header| header != target) {
                    return Err(HostError::Several);
                }
                Ok(target)
            }
            (None, Some(header)) => Ok(header),
            (None, None) => Err(HostError::Missing),
        }
    }
}

/// Nothing, or a colon and a port number.
fn check_port(text: &str) -> Result<(), HostError> {
    let Some(port) = text.strip_prefix(':') else {
        return if text.is_empty() { Ok(()) } else { Err(HostError::Invalid) };
    };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if port.is_empty() || digits && port.parse::<u16>().is_ok() {
        Ok(())
    } else {
        Err(HostError::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Host<'_> {
        Host::Name(text.into())
    }

    #[test]
    fn ports_case_and_the_trailing_dot_do_not_matter() {
        for text in ["a.example", "A.Example", "a.example.", "a.example:80", "A.EXAMPLE.:8080"] {
            assert_eq!(Host::parse(text), Ok(name("a.example")), "{text}");
        }
        assert_eq!(Host::parse("a.example:"), Ok(name("a.example")));
    }

    #[test]
    fn addresses_are_told_from_names() {
        let check = |text: &str, address: &str| {
            assert_eq!(Host::parse(text), Ok(Host::Address(address.parse().unwrap())), "{text}");
        };
        check("127.0.0.1", "127.0.0.1");
        check("127.0.0.1:8080", "127.0.0.1");
        check("127.0.0.1.:8080", "127.0.0.1");
        check("[::1]", "::1");
        check("[::1]:8080", "::1");
        check("[::ffff:10.0.0.1]", "10.0.0.1");
    }

    #[test]
    fn what_is_not_clearly_one_host_is_none() {
        for bad in [
            "",
            ".",
            ":80",
            "a..b",
            "..",
            "a b",
            "a/b",
            "a@b",
            "user:pass@a",
            "a:b",
            "a:80:80",
            "a:99999",
            "a:-1",
            "a:+80",
            "::1",
            "[::1",
            "[::1]x",
            "[]",
            "[127.0.0.1]",
            "a%2eb",
            "a\\b",
            "a,b",
            "é.example",
            "a.example..",
            "a#b",
            "a?b",
            "*",
            "[::1%eth0]",
        ] {
            assert_eq!(Host::parse(bad), Err(HostError::Invalid), "{bad}");
        }
        assert_eq!(Host::parse(&"a".repeat(64)), Err(HostError::Invalid));
        assert!(Host::parse(&"a.".repeat(127)).is_ok());
        assert_eq!(Host::parse(&"a.".repeat(128)), Err(HostError::Invalid));
    }

    #[test]
    fn several_hosts_are_refused_and_an_absolute_target_wins() {
        let mut headers = HeaderMap::new();
        let plain: Uri = "/x".parse().unwrap();
        let absolute: Uri = "http://b.example:80/x".parse().unwrap();
        assert_eq!(Host::of(&plain, &headers, Version::HTTP_11), Err(HostError::Missing));
        headers.append(HOST, "a.example".parse().unwrap());
        assert_eq!(Host::of(&plain, &headers, Version::HTTP_11), Ok(name("a.example")));
        assert_eq!(Host::of(&absolute, &headers, Version::HTTP_11), Ok(name("b.example")));
        assert_eq!(Host::of(&absolute, &headers, Version::HTTP_2), Err(HostError::Several));
        headers.append(HOST, "a.example".parse().unwrap());
        assert_eq!(Host::of(&plain, &headers, Version::HTTP_11), Err(HostError::Several));
    }

    proptest! {
        #[test]
        fn any_text_is_a_host_or_an_error(text in "\\PC{0,80}") {
            if let Ok(Host::Name(name)) = Host::parse(&text) {
                prop_assert!(!name.is_empty() && !name.starts_with('.') && !name.ends_with('.'));
                prop_assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase()));
                prop_assert_eq!(Host::parse(&name), Ok(Host::Name(name.clone())));
            }
        }

        #[test]
        fn every_address_is_read_back(bits: u128) {
            let v6 = Ipv6Addr::from_bits(bits);
            let text = format!("[{v6}]:1");
            let read = Host::parse(&text);
            prop_assert_eq!(read, Ok(Host::Address(IpAddr::V6(v6).to_canonical())));
        }
    }
}
