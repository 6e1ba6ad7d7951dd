//! What a function may reach: said once, carried out by whichever engine runs it.
//!
//! A policy is a list of what is allowed, and everything else is refused. The operator gives one
//! to each tenant; a function may narrow it for itself by the annotation `updraft.egress`, and can
//! never widen it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::function::annotations::EGRESS;
use crate::{FunctionSpec, SpecError};

/// Most entries of one policy.
const RULES_MAX: usize = 64;

/// Longest text of one policy.
const TEXT_MAX: usize = 4096;

const EXPECTED: &str =
    "`open`, `closed` or a list such as `gateway, 198.51.100.0/24:5432, api.example.com:443`";

/// What may be reached. Written `open`, `closed`, or as a list separated by commas.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EgressPolicy {
    rules: Vec<EgressRule>,
}

/// One thing that may be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EgressRule {
    /// Where.
    pub target: EgressTarget,
    /// On which port; on all when absent.
    pub port: Option<u16>,
    /// By what; by both when absent.
    pub transport: Option<Transport>,
}

/// Where a packet may go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EgressTarget {
    /// Every public address, and the name servers. Not the private networks around the machine.
    Public,
    /// The platform's gateway.
    Gateway,
    /// The addresses of a block.
    Network(IpBlock),
    /// The public addresses that a name has at the time. What it resolves to inside stays closed.
    Name(String),
}

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A block of addresses such as `198.51.100.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no egress policy. The caller's fault; the message says what is expected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseEgressError {
    /// One entry is not understood.
    #[error("`{0}` is nothing that can be allowed, expected {EXPECTED}")]
    Rule(String),
    /// The list is too long.
    #[error("an egress policy has at most {RULES_MAX} entries in {TEXT_MAX} characters")]
    TooLong,
}

impl IpBlock {
    /// The block that `address` lies in, its host bits cleared.
    ///
    /// Returns nothing when the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32_u32.checked_sub(prefix.into())?).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128_u32.checked_sub(prefix.into())?).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        };
        Some(Self { address, prefix })
    }

    /// Its first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many leading bits its addresses share.
    pub fn prefix(self) -> u8 {
        self.prefix
    }
}

impl EgressPolicy {
    /// Everything outside, and the gateway.
    pub fn open() -> Self {
        let all = |target| EgressRule { target, port: None, transport: None };
        Self { rules: vec![all(EgressTarget::Public), all(EgressTarget::Gateway)] }
    }

    /// Nothing at all.
    pub fn closed() -> Self {
        Self { rules: Vec::new() }
    }

    /// What is allowed.
    pub fn rules(&self) -> &[EgressRule] {
        &self.rules
    }

    /// Whether some entry allows `target` as a whole.
    pub fn allows(&self, target: &EgressTarget) -> bool {
        self.rules.iter().any(|rule| rule.target == *target)
    }

    /// The names of its entries.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().filter_map(|rule| match &rule.target {
            EgressTarget::Name(name) => Some(name.as_str()),
            _ => None,
        })
    }
}

impl FunctionSpec {
    /// How the function narrows what its tenant may reach; nothing when it does not.
    ///
    /// # Errors
    /// The annotation cannot be followed: then the function may not run.
    pub fn egress(&self) -> Result<Option<EgressPolicy>, SpecError> {
        let Some(value) = self.annotations.get(EGRESS) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| SpecError::Annotation {
            key: EGRESS,
            value: value.chars().take(128).collect(),
            expected: EXPECTED,
        })
    }
}

impl FromStr for EgressPolicy {
    type Err = ParseEgressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "open" => return Ok(Self::open()),
            "closed" => return Ok(Self::closed()),
            _ => {}
        }
        if text.len() > TEXT_MAX {
            return Err(ParseEgressError::TooLong);
        }
        let entries = text.split(',').map(str::trim);
        let rules: Vec<EgressRule> = entries.map(str::parse).collect::<Result<_, _>>()?;
        if rules.len() > RULES_MAX {
            return Err(ParseEgressError::TooLong);
        }
        Ok(Self { rules })
    }
}

impl FromStr for EgressRule {
    type Err = ParseEgressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseEgressError::Rule(text.chars().take(128).collect());
        let all = |target| Ok(Self { target, port: None, transport: None });
        match text {
            "public" => return all(EgressTarget::Public),
            "gateway" => return all(EgressTarget::Gateway),
            _ => {}
        }
        let (rest, transport) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Transport::Tcp)),
            Some((rest, "udp")) => (rest, Some(Transport::Udp)),
            _ => (text, None),
        };
        let (place, port) = if let Some(inner) = rest.strip_prefix('[') {
            let (place, port) = inner.split_once(']').ok_or_else(wrong)?;
            (
                place,
                if port.is_empty() {
                    None
                } else {
                    Some(port.strip_prefix(':').ok_or_else(wrong)?)
                },
            )
        } else if rest.matches(':').count() > 1 {
            // An IPv6 address whose port would need brackets around it.
            (rest, None)
        } else {
            rest.split_once(':').map_or((rest, None), |(place, port)| (place, Some(port)))
        };
        let port = match port {
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong)?)
            }
            Some(_) => return Err(wrong()),
            None => None,
        };
        if transport.is_some() && port.is_none() {
            return Err(wrong());
        }
        let (address, prefix) = place.split_once('/').map_or((place, None), |(a, p)| (a, Some(p)));
        let target = match (address.parse::<IpAddr>(), prefix) {
            (Ok(address), None) => IpBlock::new(address, if address.is_ipv4() { 32 } else { 128 }),
            (Ok(address), Some(prefix)) => {
                prefix.parse().ok().and_then(|prefix| IpBlock::new(address, prefix))
            }
            (Err(_), _) => None,
        };
        let target = match target {
            Some(block) => EgressTarget::Network(block),
            None if prefix.is_none() && is_name(place) => {
                EgressTarget::Name(place.to_ascii_lowercase())
            }
            None => return Err(wrong()),
        };
        Ok(Self { target, port, transport })
    }
}

/// A host name of at least two labels whose last is no number: nothing that looks like an address
/// to some program, and no short name that a search list would complete.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253
        && text.contains('.')
        && text.split('.').all(label)
        && last.starts_with(|first: char| first.is_ascii_alphabetic())
}

impl fmt::Display for EgressPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rules.is_empty() {
            return f.write_str("closed");
        }
        for (number, rule) in self.rules.iter().enumerate() {
            write!(f, "{}{rule}", if number == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            EgressTarget::Public => f.write_str("public")?,
            EgressTarget::Gateway => f.write_str("gateway")?,
            EgressTarget::Network(IpBlock { address: IpAddr::V6(address), prefix }) => {
                write!(f, "[{address}/{prefix}]")?;
            }
            EgressTarget::Network(block) => write!(f, "{}/{}", block.address, block.prefix)?,
            EgressTarget::Name(name) => f.write_str(name)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        match self.transport {
            Some(Transport::Tcp) => f.write_str("/tcp"),
            Some(Transport::Udp) => f.write_str("/udp"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for EgressPolicy {
    type Error = ParseEgressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EgressPolicy> for String {
    fn from(policy: EgressPolicy) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(text: &str) -> EgressPolicy {
        text.parse().unwrap()
    }

    #[test]
    fn a_policy_is_a_word_or_a_list_of_what_is_allowed() {
        assert_eq!(policy("open").to_string(), "public, gateway");
        assert_eq!(policy("closed").rules(), []);
        let text = "gateway, 10.1.2.3:5432,198.51.100.7/24:53/udp, API.Example.com:443, \
                    [2001:db8::1/32]:443, 2001:db8::1";
        assert_eq!(
            policy(text).to_string(),
            "gateway, 10.1.2.3/32:5432, 198.51.100.0/24:53/udp, api.example.com:443, \
             [2001:db8::/32]:443, [2001:db8::1/128]"
        );
        assert_eq!(policy(text).names().collect::<Vec<_>>(), ["api.example.com"]);
    }

    #[test]
    fn what_is_not_clearly_one_place_is_refused() {
        for text in [
            "",
            ",",
            "opened",
            "open, closed",
            "localhost",
            "*.example.com",
            "example.com:0",
            "example.com:70000",
            "example.com:+1",
            "example.com/24",
            "1.2.3",
            "1.2.3.4.5",
            "0x7f.1",
            "1.2.3.4/33",
            "1.2.3.4/tcp",
            "[::1",
            "[::1]443",
            "a b.example",
            "-a.example",
            "a..b",
            "example.com.",
            "::1/129",
        ] {
            assert!(text.parse::<EgressPolicy>().is_err(), "{text}");
        }
        assert_eq!(
            vec!["a.example"; 65].join(",").parse::<EgressPolicy>(),
            Err(ParseEgressError::TooLong)
        );
    }

    proptest! {
        #[test]
        fn every_policy_survives_its_written_form(text in "\\PC{0,60}", port in 1_u16.., bits: u32, prefix in 0_u8..=32) {
            let block = format!("{}/{prefix}:{port}", Ipv4Addr::from_bits(bits));
            for text in [text, block, format!("a{port}.example.com:{port}/tcp, gateway")] {
                if let Ok(policy) = text.parse::<EgressPolicy>() {
                    prop_assert_eq!(policy.to_string().parse::<EgressPolicy>(), Ok(policy));
                }
            }
        }
    }
}
