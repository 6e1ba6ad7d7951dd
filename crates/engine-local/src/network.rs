//! The network of one instance: a bridge, and for each replica a network namespace with one
//! address on it.
//!
//! Namespaces are made ahead and held by file descriptors only: one that no replica took
//! disappears with the process, one that a replica took disappears with the replica, and the
//! pair of virtual devices with it. All replicas share one bridge today; a segment per tenant
//! would be a bridge more here and nothing elsewhere.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder, new_connection,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::address::{AddressPool, PREFIX, Subnet, choose};
use crate::firewall;
use crate::options::{LocalEngineOptions, OpenError};
use crate::private_mounts::on_own_thread;
use crate::record::write_atomically;

/// The device inside a replica.
const INNER_DEVICE: &str = "eth0";

/// A network namespace that is ready for one replica.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Keeps the namespace alive until a replica lives in it.
    pub(crate) namespace: OwnedFd,
    /// The replica's address.
    pub(crate) address: Ipv4Addr,
}

/// The instance's bridge and its spare slots.
pub(crate) struct Network {
    parts: Arc<Parts>,
    filler: JoinHandle<()>,
}

struct Parts {
    host: Handle,
    bridge_index: u32,
    subnet: Subnet,
    addresses: Mutex<AddressPool>,
    spare: Mutex<VecDeque<Slot>>,
    wanted_spare: usize,
    taken: Notify,
}

impl Network {
    /// Brings up bridge and firewall. `in_use` are the addresses of replicas that run already.
    ///
    /// Returns what is degraded, for people, beside it.
    pub(crate) async fn open(
        options: &LocalEngineOptions,
        in_use: &[Ipv4Addr],
    ) -> Result<(Self, Vec<String>), OpenError> {
        let (connection, host, _) = new_connection().map_err(|error| OpenError::Network {
            doing: "talk to the kernel about network devices".to_owned(),
            reason: error.to_string(),
        })?;
        // Ends by itself with the last handle.
        drop(tokio::spawn(connection));
        let mut degraded = Vec::new();
        let bridge = options.bridge();
        let (subnet, bridge_index) = {
            // Two instances that start at the same time must not choose the same block.
            let _lock = lock_choice().await?;
            let subnet = stored_or_chosen(options, &host, !in_use.is_empty()).await?;
            firewall::install(&options.table(), &bridge, subnet).await?;
            (subnet, bring_up(&host, &bridge, subnet).await?)
        };
        if let Err(error) = route_for_replicas() {
            degraded.push(format!(
                "replicas cannot reach the outside: forwarding of IPv4 could not be turned on ({error})"
            ));
        }
        let mut addresses = AddressPool::new(subnet);
        for address in in_use {
            addresses.mark(*address);
        }
        let parts = Arc::new(Parts {
            host,
            bridge_index,
            subnet,
            addresses: Mutex::new(addresses),
            spare: Mutex::default(),
            wanted_spare: options.spare_networks,
            taken: Notify::new(),
        });
        let filler = tokio::spawn(keep_spare(Arc::clone(&parts)));
        Ok((Self { parts, filler }, degraded))
    }

    pub(crate) fn subnet(&self) -> Subnet {
        self.parts.subnet
    }

    /// A namespace for one replica: a spare one, or a new one when there is none.
    pub(crate) async fn take(&self) -> Result<Slot, String> {
        let spare = lock(&self.parts.spare).pop_front();
        self.parts.taken.notify_one();
        match spare {
            Some(slot) => Ok(slot),
            None => self.parts.make().await,
        }
    }

    /// Says that no replica has the address any more.
    pub(crate) fn give_back(&self, address: Ipv4Addr) {
        lock(&self.parts.addresses).give_back(address);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.filler.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps as many spare namespaces as wanted; a failure is tried again at the next need.
async fn keep_spare(parts: Arc<Parts>) {
    loop {
        while lock(&parts.spare).len() < parts.wanted_spare {
            match parts.make().await {
                Ok(slot) => lock(&parts.spare).push_back(slot),
                Err(error) => {
                    tracing::warn!(%error, "no network namespace can be made ahead");
                    break;
                }
            }
        }
        parts.taken.notified().await;
    }
}

impl Parts {
    /// Makes a namespace with a device on the bridge, its address and its route.
    async fn make(&self) -> Result<Slot, String> {
        let address = lock(&self.addresses)
            .take()
            .ok_or_else(|| format!("all addresses of {} are in use", self.subnet))?;
        let made = self.make_with(address).await;
        if made.is_err() {
            lock(&self.addresses).give_back(address);
        }
        made
    }

    async fn make_with(&self, address: Ipv4Addr) -> Result<Slot, String> {
        let failed =
            |doing: &'static str| move |error: rtnetlink::Error| format!("cannot {doing}: {error}");
        let (namespace, inner) = new_namespace()
            .await
            .map_err(|error| format!("cannot make a network namespace: {error}"))?;
        let outer_device = device_name()?;
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(INNER_DEVICE)
            .address(hardware_address(address).to_vec())
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(&outer_device, INNER_DEVICE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(self.bridge_index)
            .build();
        self.host.link().add(pair).execute().await.map_err(failed("add a pair of devices"))?;
        // Isolated before it is up: never a moment in which replicas reach each other.
        let port = LinkBridgePort::new(0).name(outer_device.as_str()).isolated(true).build();
        self.host.link().set_port(port).execute().await.map_err(failed("isolate a bridge port"))?;
        let outer = LinkUnspec::new_with_name(&outer_device).up().build();
        self.host.link().set(outer).execute().await.map_err(failed("bring up a bridge port"))?;

        let index = link_index(&inner, INNER_DEVICE)
            .await
            .map_err(failed("find the device of a replica"))?
            .ok_or("the device of a replica is missing")?;
        let prefix = self.subnet.prefix();
        let added = inner.address().add(index, IpAddr::V4(address), prefix).execute().await;
        added.map_err(failed("give a replica its address"))?;
        for device in ["lo", INNER_DEVICE] {
            let up = LinkUnspec::new_with_name(device).up().build();
            inner.link().set(up).execute().await.map_err(failed("bring up a replica's device"))?;
        }
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(self.subnet.gateway()).build();
        inner.route().add(route).execute().await.map_err(failed("give a replica its route"))?;
        Ok(Slot { namespace, address })
    }
}

/// A fresh network namespace without IPv6, and a connection to the kernel that lives in it.
async fn new_namespace() -> io::Result<(OwnedFd, Handle)> {
    let runtime = tokio::runtime::Handle::current();
    on_own_thread("updraft-netns", move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        // The firewall drops IPv6 anyway; without it no replica wastes time on trying. Where the
        // kernel has none, the files are missing and all is well.
        for scope in ["all", "default"] {
            drop(fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1"));
        }
        let namespace = OwnedFd::from(fs::File::open("/proc/thread-self/ns/net")?);
        let entered = runtime.enter();
        let (connection, handle, _) = new_connection()?;
        drop(entered);
        drop(runtime.spawn(connection));
        Ok((namespace, handle))
    })
    .await
}

/// The hardware address that goes with an address. The host remembers the pair for most of a
/// minute; were it another one each time, whoever is given a used address would not be reached
/// until then.
fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x72, a, b, c, d]
}

/// A device name that fits the kernel's 15 characters and belongs to nobody yet. `v` keeps it
/// apart from bridges, whose names go on with hexadecimal digits.
fn device_name() -> Result<String, String> {
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|error| format!("no random numbers: {error}"))?;
    let number = u32::from_le_bytes(random) & 0x0fff_ffff;
    Ok(format!("updraftv{number:07x}"))
}

async fn link_index(handle: &Handle, name: &str) -> Result<Option<u32>, rtnetlink::Error> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENODEV => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The bridge, with the host's address on it and up.
async fn bring_up(host: &Handle, bridge: &str, subnet: Subnet) -> Result<u32, OpenError> {
    let failed = |doing: &str| OpenError::network(format!("{doing} bridge `{bridge}`"));
    if link_index(host, bridge).await.map_err(failed("look for"))?.is_none() {
        // A fixed address: else it would change with the lowest of its ports.
        let [_, b, c, d] = subnet.gateway().octets();
        let added = host
            .link()
            .add(LinkBridge::new(bridge).address(vec![0x02, 0x75, 0x70, b, c, d]).build())
            .execute()
            .await;
        added.map_err(failed("add"))?;
        let path = format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6");
        if let Err(error) = fs::write(&path, "1")
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, path, "IPv6 stays on on the bridge; the firewall drops it");
        }
    }
    let index = link_index(host, bridge).await.map_err(failed("look for"))?;
    let index = index.ok_or_else(|| OpenError::Network {
        doing: format!("find bridge `{bridge}`"),
        reason: "it vanished; does another program manage network devices?".to_owned(),
    })?;
    let gateway = IpAddr::V4(subnet.gateway());
    let added = host.address().add(index, gateway, subnet.prefix()).replace().execute().await;
    added.map_err(failed("give an address to"))?;
    let up = LinkUnspec::new_with_index(index).up().build();
    host.link().set(up).execute().await.map_err(failed("bring up"))?;
    Ok(index)
}

/// Lets packets of replicas leave through the host's other devices.
fn route_for_replicas() -> io::Result<()> {
    let path = Path::new("/proc/sys/net/ipv4/ip_forward");
    if fs::read_to_string(path)?.trim() == "1" { Ok(()) } else { fs::write(path, "1") }
}

/// Held while a block is chosen and put on a bridge.
async fn lock_choice() -> Result<fs::File, OpenError> {
    let path = Path::new("/run/updraft-network.lock").to_owned();
    let failed = OpenError::file("lock", &path);
    tokio::task::spawn_blocking(move || {
        let file = fs::File::create(&path)?;
        file.lock()?;
        Ok(file)
    })
    .await
    .unwrap_or_else(|error| Err(io::Error::other(error)))
    .map_err(failed)
}

/// The block of earlier starts, unless something else took it meanwhile and no replica is in it.
async fn stored_or_chosen(
    options: &LocalEngineOptions,
    host: &Handle,
    replicas_run: bool,
) -> Result<Subnet, OpenError> {
    let path = options.state.join("network.json");
    let stored = match fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice::<StoredNetwork>(&bytes).ok().map(|stored| stored.subnet)
        }
        Err(_) => None,
    };
    let taken = taken(host, &options.bridge()).await.map_err(OpenError::network("list routes"))?;
    if let Some(stored) = stored
        && (replicas_run || choose_fits(stored, &taken))
    {
        return Ok(stored);
    }
    let subnet = choose(&options.instance, &taken).ok_or_else(|| OpenError::Network {
        doing: "choose addresses for replicas".to_owned(),
        reason: format!("no /{PREFIX} of 10.64.0.0/10 is free of the host's routes"),
    })?;
    let record = StoredNetwork { version: 1, subnet };
    write_atomically(&path, &serde_json::to_vec(&record).unwrap_or_default(), true)
        .map_err(OpenError::file("write", &path))?;
    Ok(subnet)
}

#[derive(serde::Serialize, serde::Deserialize)]
struct StoredNetwork {
    version: u32,
    subnet: Subnet,
}

fn choose_fits(subnet: Subnet, taken: &[Subnet]) -> bool {
    !taken.iter().any(|other| other.prefix() > 0 && other.overlaps(subnet))
}

/// What the host's routes, addresses and name servers occupy, our own bridge left out.
async fn taken(host: &Handle, bridge: &str) -> Result<Vec<Subnet>, rtnetlink::Error> {
    let own = link_index(host, bridge).await?;
    let mut taken = Vec::new();
    let mut routes = host.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(route) = routes.try_next().await? {
        let mut target = None;
        let mut device = None;
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => target = Some(*address),
                RouteAttribute::Oif(index) => device = Some(*index),
                _ => {}
            }
        }
        if let Some(target) = target
            && (own.is_none() || device != own)
        {
            taken.push(Subnet::new(target, route.header.destination_prefix_length));
        }
    }
    let mut addresses = host.address().get().execute();
    while let Some(address) = addresses.try_next().await? {
        for attribute in &address.attributes {
            if let AddressAttribute::Address(IpAddr::V4(found)) = attribute
                && own != Some(address.header.index)
            {
                taken.push(Subnet::new(*found, address.header.prefix_len));
            }
        }
    }
    let resolvers = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    taken.extend(name_servers(&resolvers).filter_map(|server| match server {
        IpAddr::V4(address) => Some(Subnet::new(address, 32)),
        IpAddr::V6(_) => None,
    }));
    Ok(taken)
}

/// The addresses of the name servers that a `resolv.conf` names.
pub(crate) fn name_servers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    })
}

/// Takes down bridge, ports and firewall table of an instance, whatever is left of them.
pub(crate) async fn destroy(options: &LocalEngineOptions) -> Result<(), OpenError> {
    let (connection, host, _) = new_connection().map_err(|error| OpenError::Network {
        doing: "talk to the kernel about network devices".to_owned(),
        reason: error.to_string(),
    })?;
    drop(tokio::spawn(connection));
    let bridge = options.bridge();
    let failed = || OpenError::network(format!("remove bridge `{bridge}`"));
    if let Some(index) = link_index(&host, &bridge).await.map_err(failed())? {
        let mut links = host.link().get().execute();
        let mut ports = Vec::new();
        while let Some(link) = links.try_next().await.map_err(failed())? {
            if link.attributes.contains(&LinkAttribute::Controller(index)) {
                ports.push(link.header.index);
            }
        }
        for port in ports {
            // One whose replica just ended may be gone by now.
            drop(host.link().del(port).execute().await);
        }
        host.link().del(index).execute().await.map_err(failed())?;
    }
    firewall::remove(&options.table()).await
}
