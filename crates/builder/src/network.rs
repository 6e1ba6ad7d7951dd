//! The network of a build: its own, with one way out.
//!
//! Each build has a network namespace and a pair of devices with two addresses of a block that is
//! reserved for laboratories, so that it is nobody else's. From there it reaches the world
//! outside, translated to the host's address, or nothing, or what a list allows. It never reaches
//! a service of the host, the platform on 127.0.0.1 included, a function's replica, another
//! build, or a link-local (metadata) address, and nothing over IPv6.
//!
//! All goes away by itself with the namespace; only the firewall table ([`firewall`]) stays, and is
//! replaced by the next start.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use serde_json::json;
use thiserror::Error;

mod claim;
mod firewall;

use claim::Claim;

/// The block of addresses: two networks of 256 × 256 for measurements, never routed.
const BLOCK: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Pairs of addresses in it, each with a network and a broadcast address around.
const PAIRS: u32 = 1 << 15;
const PAIR_PREFIX: u8 = 30;
/// How often another pair is tried when one is taken.
const TRIES: usize = 16;
const INNER_DEVICE: &str = "eth0";
/// Where name servers are told that are not this machine's own, best first.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// What builds may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Egress {
    /// The world outside: every public address, and the machine's name servers.
    #[default]
    Open,
    /// Nothing.
    Closed,
    /// These, and the machine's name servers.
    Only(Vec<Destination>),
}

/// What builds may reach, one entry of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Every public address. Not the private networks around the machine, where a name that a
    /// stranger chose could lead.
    Public,
    /// A block of addresses, perhaps on one port only.
    Network {
        /// Its first address, or any in it.
        base: Ipv4Addr,
        /// How many leading bits its addresses share.
        prefix: u8,
        /// The port over TCP; every port and protocol when absent.
        port: Option<u16>,
    },
}

/// The text names no destination.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no destination, write for instance `public`, `192.0.2.0/24` or `192.0.2.7:443`")]
pub struct ParseDestinationError(String);

impl FromStr for Destination {
    type Err = ParseDestinationError;

    fn from_str(text: &str) -> Result<Self, ParseDestinationError> {
        if text == "public" {
            return Ok(Self::Public);
        }
        let wrong = || ParseDestinationError(text.to_owned());
        let (rest, port) = match text.split_once(':') {
            Some((rest, port)) => (rest, Some(port.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let (base, prefix) = match rest.split_once('/') {
            Some((base, prefix)) => (base, prefix.parse().map_err(|_| wrong())?),
            None => (rest, 32),
        };
        if prefix > 32 || port == Some(0) {
            return Err(wrong());
        }
        Ok(Self::Network { base: base.parse().map_err(|_| wrong())?, prefix, port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("public"),
            Self::Network { base, prefix, port } => {
                write!(f, "{base}/{prefix}")?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

/// The network of all builds of one store.
#[derive(Debug)]
pub(crate) struct Network {
    egress: Egress,
    /// Begins the names of devices; 8 characters.
    device_prefix: String,
    table: String,
    /// There is a firewall table to take away.
    claim: Mutex<Option<Claim>>,
}

impl Network {
    /// `hash` is of the store, 4 or more hexadecimal digits.
    pub(crate) fn new(egress: Egress, hash: &str) -> Self {
        let first = |digits: usize| &hash[..hash.len().min(digits)];
        Self {
            egress,
            // Names of devices have room for no more.
            device_prefix: format!("upb{}v", first(4)),
            table: format!("{}{}", claim::PREFIX, first(8)),
            claim: Mutex::default(),
        }
    }

    /// What a build finds as its `/etc/resolv.conf`: name servers of this machine itself are
    /// behind a door that builds cannot pass.
    pub(crate) fn resolver() -> String {
        let texts = RESOLVERS.iter().filter_map(|path| fs::read_to_string(path).ok());
        let mut usable = texts.map(|text| without_own(&text));
        usable.find(|text| text.contains("nameserver")).unwrap_or_default()
    }

    /// Puts the firewall table in place.
    pub(crate) async fn install(&self) -> Result<(), String> {
        let servers: Vec<Ipv4Addr> = Self::resolver()
            .lines()
            .filter_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok())
            .collect();
        let ruleset = firewall::ruleset(&self.table, &self.device_prefix, &self.egress, &servers);
        clear_abandoned().await;
        let claim = Claim::new(Path::new(claim::FOLDER), &self.table)
            .map_err(|error| format!("cannot note the firewall of builds: {error}"))?;
        *self.claim.lock().unwrap_or_else(PoisonError::into_inner) = Some(claim);
        firewall::apply(ruleset).await?;
        let forward = "/proc/sys/net/ipv4/ip_forward";
        let is_on = fs::read_to_string(forward).is_ok_and(|text| text.trim() == "1");
        if !is_on {
            fs::write(forward, "1")
                .map_err(|error| format!("cannot turn on forwarding: {error}"))?;
        }
        Ok(())
    }

    /// A namespace for one build.
    pub(crate) async fn namespace(&self) -> Result<OwnedFd, String> {
        let (namespace, inner) = new_namespace().await.map_err(|error| error.to_string())?;
        set_up(&inner, "lo").await?;
        if self.egress == Egress::Closed {
            return Ok(namespace);
        }
        let (connection, host, _) =
            rtnetlink::new_connection().map_err(|error| error.to_string())?;
        // Ends by itself with the last handle.
        drop(tokio::spawn(connection));
        let failed =
            |doing: &'static str| move |error: rtnetlink::Error| format!("cannot {doing}: {error}");
        let outer = format!("{}{:07x}", self.device_prefix, random()? & 0x0fff_ffff);
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(INNER_DEVICE)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(&outer, INNER_DEVICE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        host.link().add(pair).execute().await.map_err(failed("add a pair of devices"))?;
        // Without an address of its own: then the kernel has nothing to answer for.
        drop(fs::write(format!("/proc/sys/net/ipv6/conf/{outer}/disable_ipv6"), "1"));
        let index = index(&host, &outer).await?;
        let (here, there) = free_pair(&host).await?;
        let added = host.address().add(index, IpAddr::V4(here), PAIR_PREFIX).execute().await;
        added.map_err(failed("give a build's device its address"))?;
        set_up(&host, &outer).await?;
        let inside = index_of(&inner).await?;
        let added = inner.address().add(inside, IpAddr::V4(there), PAIR_PREFIX).execute().await;
        added.map_err(failed("give a build its address"))?;
        set_up(&inner, INNER_DEVICE).await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(here).build();
        inner.route().add(route).execute().await.map_err(failed("give a build its route"))?;
        Ok(namespace)
    }
}

impl Drop for Network {
    /// Takes the firewall table away with the last builder of a store; no build runs any more.
    fn drop(&mut self) {
        let claim = self.claim.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // Another process may work on the same store.
        let Some(alone) = claim.and_then(Claim::last) else { return };
        let ruleset = json!({ "nftables": firewall::without(&self.table) }).to_string();
        let arguments = nftables::helper::DEFAULT_ARGS.iter().copied();
        let program = nftables::helper::DEFAULT_NFT;
        match nftables::helper::apply_ruleset_raw(&ruleset, program, arguments) {
            Ok(_) => alone.forget(),
            Err(error) => tracing::debug!(%error, "the firewall table of builds stays"),
        }
    }
}

/// Removes the firewall tables of killed servers, of whatever store.
async fn clear_abandoned() {
    for cleared in claim::abandoned(Path::new(claim::FOLDER)) {
        let table = cleared.table().to_owned();
        match firewall::apply(json!({ "nftables": firewall::without(&table) })).await {
            Ok(()) => cleared.forget(),
            Err(error) => tracing::debug!(table, error, "an abandoned firewall table stays"),
        }
    }
}

/// Removes the firewall table of a store's builds, and those of killed servers.
pub(crate) async fn remove(hash: &str) -> Result<(), String> {
    let network = Network::new(Egress::Closed, hash);
    firewall::apply(json!({ "nftables": firewall::without(&network.table) })).await?;
    clear_abandoned().await;
    Ok(())
}

/// The two addresses of a pair that is not in use.
async fn free_pair(host: &Handle) -> Result<(Ipv4Addr, Ipv4Addr), String> {
    use futures_util::TryStreamExt as _;
    use rtnetlink::packet_route::address::AddressAttribute;
    let mut taken = BTreeSet::new();
    let mut addresses = host.address().get().execute();
    while let Some(address) = addresses.try_next().await.map_err(|error| error.to_string())? {
        taken.extend(address.attributes.iter().filter_map(|attribute| match attribute {
            AddressAttribute::Address(IpAddr::V4(address)) => Some(*address),
            _ => None,
        }));
    }
    for _ in 0..TRIES {
        let first = BLOCK.to_bits() + (random()? % PAIRS) * 4 + 1;
        let here = Ipv4Addr::from_bits(first);
        if !taken.contains(&here) {
            return Ok((here, Ipv4Addr::from_bits(first + 1)));
        }
    }
    Err("no pair of addresses is free for a build".to_owned())
}

async fn index_of(inner: &Handle) -> Result<u32, String> {
    index(inner, INNER_DEVICE).await
}

async fn index(handle: &Handle, name: &str) -> Result<u32, String> {
    use futures_util::TryStreamExt as _;
    let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
    let link = found.map_err(|error| format!("cannot find device `{name}`: {error}"))?;
    link.map(|link| link.header.index).ok_or_else(|| format!("device `{name}` is missing"))
}

async fn set_up(handle: &Handle, name: &str) -> Result<(), String> {
    let up = LinkUnspec::new_with_name(name).up().build();
    let done = handle.link().set(up).execute().await;
    done.map_err(|error| format!("cannot bring up device `{name}`: {error}"))
}

fn random() -> Result<u32, String> {
    getrandom::u32().map_err(|error| format!("no random numbers: {error}"))
}

/// A fresh namespace without IPv6, and a connection to the kernel that lives in it.
async fn new_namespace() -> io::Result<(OwnedFd, Handle)> {
    let runtime = tokio::runtime::Handle::current();
    let (sender, made) = tokio::sync::oneshot::channel();
    let make = move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        // Where the kernel has no IPv6 the files are missing, and all is well.
        for scope in ["all", "default"] {
            drop(fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1"));
        }
        let namespace = OwnedFd::from(fs::File::open("/proc/thread-self/ns/net")?);
        let entered = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection()?;
        drop(entered);
        drop(runtime.spawn(connection));
        Ok((namespace, handle))
    };
    // A thread of its own, because the namespace is the thread's from here on.
    let work = move || drop(sender.send(make()));
    std::thread::Builder::new().name("build-network".to_owned()).spawn(work)?;
    made.await.map_err(io::Error::other)?
}

/// A `resolv.conf` without name servers that only this machine reaches.
fn without_own(text: &str) -> String {
    let keep = |line: &&str| match line.trim().strip_prefix("nameserver") {
        Some(server) => server.trim().parse::<Ipv4Addr>().is_ok_and(|server| !server.is_loopback()),
        None => !line.trim_start().starts_with(['#', ';']),
    };
    text.lines().filter(keep).fold(String::new(), |text, line| text + line.trim() + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_blocks_and_ports() {
        let check = |text: &str, shown: &str| {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), shown);
        };
        check("192.0.2.0/24", "192.0.2.0/24");
        check("192.0.2.7:443", "192.0.2.7/32:443");
        check("public", "public");
        for wrong in ["", "example.com", "192.0.2.0/33", "192.0.2.7:0", "::1", "192.0.2.7:x"] {
            let error = wrong.parse::<Destination>().unwrap_err();
            assert!(error.to_string().contains("192.0.2.0/24"), "{error}");
        }
    }

    #[test]
    fn name_servers_of_this_machine_alone_are_left_out() {
        let text = "# comment\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch a b\n";
        assert_eq!(without_own(text), "nameserver 192.0.2.1\nsearch a b\n");
        assert_eq!(without_own("nameserver ::1\n"), "");
    }

    fn is_there(table: &str) -> bool {
        let mut command = std::process::Command::new("nft");
        command.args(["list", "table", "inet", table]).stderr(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null()).status().unwrap().success()
    }

    #[tokio::test]
    async fn the_next_start_takes_the_table_of_a_killed_server_and_no_living_ones() {
        let hash = |first: u32| format!("{first:01x}{:07x}", std::process::id());
        let living = Network::new(Egress::Closed, &hash(1));
        living.install().await.unwrap();
        let killed = Network::new(Egress::Closed, &hash(2));
        killed.install().await.unwrap();
        // The kernel does as much for a process that is killed, and its table stays.
        drop(killed.claim.lock().unwrap().take());
        let killed = killed.table.clone();
        assert!(is_there(&killed));
        let next = Network::new(Egress::Closed, &hash(3));
        next.install().await.unwrap();
        // Another test may be clearing up as well.
        let begin = std::time::Instant::now();
        while is_there(&killed) {
            assert!(begin.elapsed() < std::time::Duration::from_mins(1), "`{killed}` stays");
            std::thread::yield_now();
        }
        assert!(is_there(&living.table) && is_there(&next.table));
        let (living_table, next_table) = (living.table.clone(), next.table.clone());
        drop((living, next));
        assert!(!is_there(&living_table) && !is_there(&next_table));
    }
}
