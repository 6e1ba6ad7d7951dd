//! Addresses: which block of private addresses an instance takes, and which of them are in use.

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Length of the prefix of an instance's block: 4094 addresses.
pub(crate) const PREFIX: u8 = 20;

/// Blocks are taken from 10.64.0.0/10, which leaves the ends of 10.0.0.0/8 to everybody else.
const FIRST_BLOCK: u32 = u32::from_be_bytes([10, 64, 0, 0]);
const BLOCKS: u32 = 1 << (PREFIX - 10);

/// A block of IPv4 addresses.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Subnet {
    base: u32,
    prefix: u8,
}

impl Subnet {
    pub(crate) fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { base: u32::from(address) & mask(prefix), prefix }
    }

    /// The block's address.
    pub(crate) fn base(self) -> Ipv4Addr {
        self.base.into()
    }

    pub(crate) fn prefix(self) -> u8 {
        self.prefix
    }

    /// The host's own address in the block, the replicas' gateway.
    pub(crate) fn gateway(self) -> Ipv4Addr {
        (self.base + 1).into()
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        let common = mask(self.prefix.min(other.prefix));
        self.base & common == other.base & common
    }

    fn host(self, number: u32) -> Ipv4Addr {
        (self.base + number).into()
    }

    fn last_host(self) -> u32 {
        !mask(self.prefix) - 1
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

/// A block for `instance` that touches nothing in `taken`: the same one each time where possible.
pub(crate) fn choose(instance: &str, taken: &[Subnet]) -> Option<Subnet> {
    let wanted = u32::from_str_radix(instance, 16).unwrap_or(0) % BLOCKS;
    (0..BLOCKS)
        .map(|step| (wanted + step) % BLOCKS)
        .map(|block| Subnet { base: FIRST_BLOCK + (block << (32 - PREFIX)), prefix: PREFIX })
        // A default route covers everything and takes nothing.
        .find(|block| !taken.iter().any(|other| other.prefix > 0 && other.overlaps(*block)))
}

/// Which addresses of a block are in use. They are given out in turn, so that one that was just
/// given back rests a while.
#[derive(Debug)]
pub(crate) struct AddressPool {
    subnet: Subnet,
    next: u32,
    used: HashSet<Ipv4Addr>,
}

impl AddressPool {
    pub(crate) fn new(subnet: Subnet) -> Self {
        Self { subnet, next: 2, used: HashSet::new() }
    }

    /// Marks an address that an adopted replica has.
    pub(crate) fn mark(&mut self, address: Ipv4Addr) {
        self.used.insert(address);
    }

    /// A free address, or nothing when all are in use.
    pub(crate) fn take(&mut self) -> Option<Ipv4Addr> {
        let last = self.subnet.last_host();
        for _ in 2..=last {
            let address = self.subnet.host(self.next);
            self.next = if self.next >= last { 2 } else { self.next + 1 };
            if self.used.insert(address) {
                return Some(address);
            }
        }
        None
    }

    pub(crate) fn give_back(&mut self, address: Ipv4Addr) {
        self.used.remove(&address);
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{text}` is no block of IPv4 addresses");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(wrong)?;
        Ok(Self::new(address.parse().map_err(|_| wrong())?, prefix))
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn an_instance_keeps_its_block_and_avoids_what_is_taken() {
        let first = choose("0000002a", &[subnet("0.0.0.0/0"), subnet("192.0.2.0/24")]).unwrap();
        assert_eq!(first.to_string(), "10.66.160.0/20");
        assert_eq!(first.gateway().to_string(), "10.66.160.1");
        let second = choose("0000002a", &[subnet("10.66.161.0/24")]).unwrap();
        assert_eq!(second.to_string(), "10.66.176.0/20");
        assert!(choose("0000002a", &[subnet("10.0.0.0/8")]).is_none());
    }

    #[test]
    fn addresses_are_given_out_in_turn_until_none_is_left() {
        let mut pool = AddressPool::new(subnet("10.64.0.0/29"));
        pool.mark("10.64.0.3".parse().unwrap());
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).map(|a| a.octets()[3]).collect();
        assert_eq!(taken, [2, 4, 5, 6]);
        pool.give_back("10.64.0.4".parse().unwrap());
        assert_eq!(pool.take(), Some("10.64.0.4".parse().unwrap()));
        assert_eq!(pool.take(), None);
    }
}
