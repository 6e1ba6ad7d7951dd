//! Which addresses may be told. A name is looked up once, what it stands for is judged, and the
//! connection goes to what was judged: a name that changes meanwhile gains nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use http::Uri;
use thiserror::Error;

use super::CallbackOptions;

/// What may be told although it lies inside: a host by name, or a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallbackTarget {
    /// This host name, whatever it stands for.
    Host(String),
    /// These addresses.
    Network(IpAddr, u8),
}

/// The text is neither a host name nor a network.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is neither a host name nor a network such as `10.0.0.0/8`")]
pub struct ParseCallbackTargetError(String);

impl FromStr for CallbackTarget {
    type Err = ParseCallbackTargetError;

    fn from_str(text: &str) -> Result<Self, ParseCallbackTargetError> {
        let wrong = || ParseCallbackTargetError(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        if let Ok(address) = address.parse::<IpAddr>() {
            let whole = if address.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.map_or(Ok(whole), |prefix| prefix.parse().map_err(|_| wrong()))?;
            return if prefix <= whole { Ok(Self::Network(address, prefix)) } else { Err(wrong()) };
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if prefix.is_some() || text.is_empty() || text.len() > 253 || !text.bytes().all(fits) {
            return Err(wrong());
        }
        Ok(Self::Host(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for CallbackTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => f.write_str(host),
            Self::Network(address, prefix) => write!(f, "{address}/{prefix}"),
        }
    }
}

impl CallbackTarget {
    fn holds(&self, address: IpAddr) -> bool {
        let Self::Network(network, prefix) = self else { return false };
        match (network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(*prefix);
                network.to_bits().checked_shr(shift).unwrap_or(0)
                    == address.to_bits().checked_shr(shift).unwrap_or(0)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(*prefix);
                network.to_bits().checked_shr(shift).unwrap_or(0)
                    == address.to_bits().checked_shr(shift).unwrap_or(0)
            }
            _ => false,
        }
    }
}

/// Host in small letters, without brackets or the root's dot, and port of an address.
pub(super) fn host_and_port(url: &Uri) -> (String, u16) {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let usual = if url.scheme_str() == Some("https") { 443 } else { 80 };
    (host, url.port_u16().unwrap_or(usual))
}

/// Judges what needs no look-up, so that an obvious mistake is told when the call is submitted.
pub(super) fn check_literal(url: &Uri, options: &CallbackOptions) -> Result<(), String> {
    let (host, port) = host_and_port(url);
    match host.parse::<IpAddr>() {
        Ok(address) => judge(url, &host, SocketAddr::new(address, port), options),
        Err(_) => judge_name(url, &host, port, options),
    }
}

/// The addresses that the host stands for and that may be told.
///
/// The outer error is temporary, the inner one final.
pub(super) async fn resolve(
    url: &Uri,
    options: &CallbackOptions,
) -> Result<Result<Vec<SocketAddr>, String>, String> {
    let (host, port) = host_and_port(url);
    if let Err(reason) = check_literal(url, options) {
        return Ok(Err(reason));
    }
    let found = tokio::net::lookup_host((host.as_str(), port)).await;
    let found: Vec<SocketAddr> = match found {
        Ok(found) => found.collect(),
        Err(error) => return Err(format!("host `{host}` cannot be looked up: {error}")),
    };
    let mut refusal = None;
    let mut allowed = Vec::new();
    for address in found {
        match judge(url, &host, address, options) {
            Ok(()) => allowed.push(address),
            Err(reason) => refusal = Some(reason),
        }
    }
    match (allowed.is_empty(), refusal) {
        (false, _) => Ok(Ok(allowed)),
        (true, Some(reason)) => Ok(Err(reason)),
        (true, None) => Err(format!("host `{host}` stands for no address")),
    }
}

fn is_allowed_by_name(host: &str, options: &CallbackOptions) -> bool {
    options.allow.iter().any(|target| matches!(target, CallbackTarget::Host(name) if name == host))
}

/// Whether the host is the platform's by its name.
fn is_own_name(host: &str, options: &CallbackOptions) -> bool {
    let root = options.own.0.as_str();
    host == root || host.strip_suffix(root).is_some_and(|rest| rest.ends_with('.'))
}

fn judge_name(url: &Uri, host: &str, port: u16, options: &CallbackOptions) -> Result<(), String> {
    if !is_own_name(host, options) {
        return Ok(());
    }
    if !is_allowed_by_name(host, options) {
        return Err(refused(host, "is the platform itself"));
    }
    judge_own_path(url, host, port, options)
}

/// Whether `address`, for which `host` stands, may be told.
fn judge(
    url: &Uri,
    host: &str,
    address: SocketAddr,
    options: &CallbackOptions,
) -> Result<(), String> {
    judge_name(url, host, address.port(), options)?;
    let ip = address.ip().to_canonical();
    let allowed =
        is_allowed_by_name(host, options) || options.allow.iter().any(|target| target.holds(ip));
    if allowed {
        return if is_of_this_machine(ip) {
            judge_own_path(url, host, address.port(), options)
        } else {
            Ok(())
        };
    }
    if let Some(what) = inside(ip) {
        return Err(refused(host, &format!("stands for {ip}, {what}")));
    }
    if is_of_this_machine(ip) {
        return Err(refused(host, &format!("stands for {ip}, this machine")));
    }
    Ok(())
}

/// Of the platform itself only functions may be told, however the address is allowed.
fn judge_own_path(
    url: &Uri,
    host: &str,
    port: u16,
    options: &CallbackOptions,
) -> Result<(), String> {
    if port != options.own.1 {
        return Ok(());
    }
    let path = url.path();
    let straight = !path.split('/').any(|part| {
        let part = part.to_ascii_lowercase().replace("%2e", ".");
        part == "." || part == ".."
    });
    let root = options.own.0.as_str();
    let label = host.strip_suffix(root).and_then(|rest| rest.strip_suffix('.')).unwrap_or("");
    let of_owner = !label.is_empty() && !matches!(label, "system" | "gateway" | "auth.system");
    if straight
        && (of_owner || path.starts_with("/function/") || path.starts_with("/async-function/"))
    {
        Ok(())
    } else {
        Err(refused(host, "is the platform itself, of which only functions may be told"))
    }
}

fn refused(host: &str, what: &str) -> String {
    format!("the callback address is refused: `{host}` {what}")
}

/// Whether the address is one of this machine's: only those can be bound.
fn is_of_this_machine(ip: IpAddr) -> bool {
    UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok()
}

/// What an address that the open Internet does not reach is.
fn inside(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => inside_v4(ip),
        IpAddr::V6(ip) => inside_v6(ip),
    }
}

fn inside_v4(ip: Ipv4Addr) -> Option<&'static str> {
    match ip.octets() {
        [0, ..] => Some("an unspecified address"),
        [127, ..] => Some("a loopback address"),
        [169, 254, ..] => Some("a link-local address"),
        // 100.64/10 is shared by carriers, and holds the metadata service of one cloud.
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => {
            Some("a private address")
        }
        [192, 0, 0, _] | [198, 18..=19, ..] => Some("an address of no host on the Internet"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some("an address of examples"),
        [192, 88, 99, _] => Some("an address of a relay"),
        [224..=239, ..] => Some("a multicast address"),
        [240..=255, ..] => Some("a reserved address"),
        _ => None,
    }
}

fn inside_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        inside_v4(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("an unspecified address"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback address"),
        // Forms in which an IPv4 address hides: mapped, compatible, translated.
        [0, 0, 0, 0, 0, _, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] => {
            Some("an IPv4 address in disguise")
        }
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        [0x2001, 0, ..] => Some("an address of a tunnel"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some("an address of examples"),
        [0x100, 0, 0, 0, ..] => Some("an address of no host"),
        [0x64, 0xff9b, ..] | [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Some("a private address"),
        [0xfe80..=0xfebf, ..] => Some("a link-local address"),
        [0xff00..=0xffff, ..] => Some("a multicast address"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::SigningKey;

    fn options(allow: &[&str]) -> CallbackOptions {
        let key = SigningKey::new([7; 32]);
        let allow = allow.iter().map(|target| target.parse().unwrap()).collect();
        CallbackOptions { allow, ..CallbackOptions::usual("cloud.test", 8080, key, "0") }
    }

    fn judged(url: &str, ip: &str, allow: &[&str]) -> Result<(), String> {
        let url: Uri = url.parse().unwrap();
        let (host, port) = host_and_port(&url);
        judge(&url, &host, SocketAddr::new(ip.parse().unwrap(), port), &options(allow))
    }

    #[test]
    fn what_lies_inside_is_refused_whatever_its_form() {
        for ip in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.7",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            let url = format!("http://{}/", SocketAddr::new(ip, 80));
            // A mapped address counts as what it stands for; public ones stay public.
            let is_public = ip.to_canonical().to_string() == "8.8.8.8";
            assert_eq!(
                check_literal(&url.parse().unwrap(), &options(&[])).is_ok(),
                is_public,
                "{ip}"
            );
        }
        for ip in ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111"] {
            assert_eq!(judged("http://example.org/", ip, &[]), Ok(()), "{ip}");
        }
    }

    #[test]
    fn a_name_that_stands_for_something_inside_is_refused() {
        let refusal = judged("http://sneaky.example.org/", "169.254.169.254", &[]).unwrap_err();
        assert!(refusal.contains("sneaky.example.org"), "{refusal}");
        assert!(refusal.contains("link-local"), "{refusal}");
    }

    #[test]
    fn a_network_or_a_name_can_be_allowed() {
        assert_eq!(judged("http://in.example.org/", "10.1.2.3", &["10.0.0.0/8"]), Ok(()));
        assert_eq!(judged("http://in.example.org/", "10.1.2.3", &["in.example.org"]), Ok(()));
        assert!(judged("http://in.example.org/", "10.1.2.3", &["out.example.org"]).is_err());
        assert!(judged("http://in.example.org/", "11.0.0.1", &["0.0.0.0/0"]).is_ok());
        assert!(judged("http://in.example.org/", "192.168.0.1", &["10.0.0.0/8"]).is_err());
        assert!(judged("http://in.example.org/", "fd00::1", &["fd00::/8"]).is_ok());
    }

    #[test]
    fn of_the_platform_itself_only_functions_may_be_told_and_only_by_name() {
        let own = |url: &str, allow: &[&str]| check_literal(&url.parse().unwrap(), &options(allow));
        assert!(own("http://gateway.cloud.test:8080/function/f", &[]).is_err());
        assert!(own("http://cloud.test/", &[]).is_err());
        assert!(own("http://CLOUD.test./", &[]).is_err());
        let named = ["gateway.cloud.test", "alice.cloud.test", "127.0.0.1"];
        assert!(own("http://gateway.cloud.test:8080/function/f", &named).is_ok());
        assert!(own("http://gateway.cloud.test:8080/system/functions", &named).is_err());
        assert!(
            own("http://gateway.cloud.test:8080/function/../system/functions", &named).is_err()
        );
        assert!(own("http://gateway.cloud.test:8080/function/%2E%2e/system", &named).is_err());
        assert!(own("http://alice.cloud.test:8080/hello", &named).is_ok());
        assert!(own("http://127.0.0.1:8080/system/alert", &named).is_err());
        assert!(own("http://127.0.0.1:8080/function/f", &named).is_ok());
        assert!(own("http://127.0.0.1:9999/anything", &named).is_ok());
        assert!(own("http://mycloud.test:8080/", &[]).is_ok());
    }

    #[test]
    fn only_hosts_and_networks_can_be_allowed() {
        for bad in ["", "10.0.0.0/33", "::/129", "a b", "http://a", "a/8", "10.0.0.0/x"] {
            assert!(bad.parse::<CallbackTarget>().is_err(), "{bad}");
        }
        for good in ["a.example.org", "10.0.0.0/8", "::1", "fd00::/8", "1.2.3.4"] {
            assert!(good.parse::<CallbackTarget>().is_ok(), "{good}");
        }
    }

    proptest! {
        #[test]
        fn no_private_address_passes_in_any_embedding(
            a in prop_oneof![Just(10u8), Just(127u8)], b: u8, c: u8, d: u8,
        ) {
            let v4 = Ipv4Addr::new(a, b, c, d);
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            for ip in [
                IpAddr::V4(v4),
                IpAddr::V6(v4.to_ipv6_mapped()),
                IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low)),
                IpAddr::V6(Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1)),
                IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low)),
            ] {
                prop_assert!(inside(ip.to_canonical()).is_some(), "{}", ip);
            }
        }
    }
}
