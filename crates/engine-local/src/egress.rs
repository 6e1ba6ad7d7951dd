//! Names in egress policies: what they stand for, looked up by the host, never by the function.
//!
//! A function with a list of names is given no name server. The host looks the names up, throws
//! away every answer that is not public, opens the addresses in the firewall and writes the same
//! addresses into the function's `/etc/hosts`. So whoever answers for a name can move it about in
//! public, and can never make it mean something inside; and nothing leaks out through lookups.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::time::Instant;

use crate::firewall::is_public;

/// How long an address stays open after the name was last seen to have it.
const KEPT: Duration = Duration::from_mins(10);

/// How long a lookup may take.
const LOOKUP_LIMIT: Duration = Duration::from_secs(3);

/// Most addresses of one name.
const ADDRESSES_MAX: usize = 32;

/// Where names become addresses.
pub(crate) trait Lookup: Send + Sync + std::fmt::Debug {
    /// Every address of a name; none when there is no answer.
    fn lookup(&self, name: &str) -> impl Future<Output = Vec<IpAddr>> + Send;
}

/// The host's own way of looking names up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostLookup;

impl Lookup for HostLookup {
    async fn lookup(&self, name: &str) -> Vec<IpAddr> {
        let found = tokio::time::timeout(LOOKUP_LIMIT, tokio::net::lookup_host((name, 0))).await;
        match found {
            Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
            Ok(Err(error)) => {
                tracing::debug!(name, %error, "a name of an egress policy has no answer");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }
}

/// What names stand for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    known: BTreeMap<String, BTreeMap<Ipv4Addr, Instant>>,
}

impl Names {
    /// The addresses of a name.
    pub(crate) fn of(&self, name: &str) -> impl Iterator<Item = Ipv4Addr> {
        self.known.get(name).into_iter().flat_map(|addresses| addresses.keys().copied())
    }

    /// Whether a name was looked up before, with or without an answer.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// Takes in an answer. Returns whether anything changed.
    pub(crate) fn learn(&mut self, name: &str, answer: &[IpAddr], now: Instant) -> bool {
        let addresses = self.known.entry(name.to_owned()).or_default();
        let before: BTreeSet<Ipv4Addr> = addresses.keys().copied().collect();
        for address in answer {
            match address {
                IpAddr::V4(address) if is_public(*address) => {
                    addresses.insert(*address, now);
                }
                IpAddr::V4(_) => {
                    tracing::warn!(name, %address, "a name of an egress policy points inside");
                }
                IpAddr::V6(_) => {}
            }
        }
        addresses.retain(|_, seen| now.saturating_duration_since(*seen) < KEPT);
        while addresses.len() > ADDRESSES_MAX {
            let oldest = addresses.iter().min_by_key(|(_, seen)| **seen);
            let Some(oldest) = oldest.map(|(address, _)| *address) else { break };
            addresses.remove(&oldest);
        }
        !addresses.keys().eq(&before)
    }

    /// Lines for `/etc/hosts`.
    pub(crate) fn hosts<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> String {
        let names: BTreeSet<&str> = names.into_iter().collect();
        let lines = names
            .into_iter()
            .flat_map(|name| self.of(name).map(move |address| format!("{address}\t{name}\n")));
        lines.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_name_rebound_to_the_inside_stands_for_nothing_there() {
        let (mut names, now) = (Names::default(), Instant::now());
        let rebound =
            ["127.0.0.1", "169.254.169.254", "10.64.0.1", "192.168.1.1", "0.0.0.0", "::1"];
        assert!(!names.learn("evil.example.com", &addresses(&rebound), now));
        assert_eq!(names.of("evil.example.com").count(), 0);
        assert!(names.has("evil.example.com"));
        assert!(names.learn("evil.example.com", &addresses(&["203.0.113.7", "10.0.0.1"]), now));
        assert_eq!(names.hosts(["evil.example.com"]), "203.0.113.7\tevil.example.com\n");
    }

    #[test]
    fn an_address_stays_open_a_while_after_the_name_left_it() {
        let (mut names, now) = (Names::default(), Instant::now());
        names.learn("a.example.com", &addresses(&["203.0.113.1"]), now);
        let minute = Duration::from_mins(1);
        let later = now + minute;
        assert!(names.learn("a.example.com", &addresses(&["203.0.113.2"]), later));
        assert_eq!(names.of("a.example.com").count(), 2);
        assert!(!names.learn("a.example.com", &addresses(&["203.0.113.2"]), later + minute));
        assert!(names.learn("a.example.com", &addresses(&["203.0.113.2"]), now + KEPT));
        assert_eq!(names.hosts(["a.example.com", "b.example.com"]), "203.0.113.2\ta.example.com\n");
    }

    #[test]
    fn an_answer_without_end_is_cut() {
        let mut names = Names::default();
        let many: Vec<IpAddr> = (0..200).map(|last| IpAddr::from([203, 0, 113, last])).collect();
        names.learn("a.example.com", &many, Instant::now());
        assert_eq!(names.of("a.example.com").count(), ADDRESSES_MAX);
    }
}
