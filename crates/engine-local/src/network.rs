//! The network of one instance: for each replica a network namespace with one address, on a pair
//! of devices that it shares with nobody.
//!
//! Namespaces are made ahead and held by file descriptors only: one that no replica took
//! disappears with the process, one that a replica took disappears with the replica, and the
//! pair of devices with it. Which tenant a namespace is for need not be known when it is made:
//! replicas share no wire, and what one may reach and how much of the wire its tenant has follow
//! from the group of its device ([`group`]), which is set when it is taken. A bridge without ports holds the host's own address; replicas of
//! Updrafts that knew no tenants still hang on it.

mod block;
mod forwarding;
pub(crate) mod group;
mod slot;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt;
use futures_util::future::join_all;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, new_connection};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use updraft_model::EgressPolicy;

use crate::address::{AddressPool, Subnet};
use crate::egress::{HostLookup, Lookup, Names};
use crate::firewall::{self, Rules};
use crate::options::{LocalEngineOptions, OpenError};
pub(crate) use block::name_servers;
pub(crate) use slot::Slot;

/// Says where the part of a replica's `/etc/hosts` begins that follows the names of its policies.
pub(crate) const NAMES_MARK: &str = "# names that this function may reach\n";

/// A replica of an earlier run, as far as the network goes.
#[derive(Debug)]
pub(crate) struct Neighbour {
    pub(crate) address: Ipv4Addr,
    /// Its device; one of an Updraft that knew no tenants hangs on the bridge.
    pub(crate) device: Option<String>,
    /// The number of its tenant, see [`group`]; 0 where there is none.
    pub(crate) tenant: u32,
    pub(crate) policies: Vec<EgressPolicy>,
    /// Its `/etc/hosts`.
    pub(crate) hosts: PathBuf,
}

/// The instance's devices, its firewall and its spare slots.
pub(crate) struct Network {
    parts: Arc<Parts>,
    tasks: [JoinHandle<()>; 2],
}

struct Parts {
    options: LocalEngineOptions,
    host: Handle,
    subnet: Subnet,
    resolvers: Vec<Ipv4Addr>,
    addresses: Mutex<AddressPool>,
    spare: Mutex<VecDeque<Slot>>,
    taken: Notify,
    segments: Mutex<Segments>,
    /// Held while the firewall is written, so that an older table never follows a newer one.
    writing: tokio::sync::Mutex<()>,
}

/// Who may reach what.
#[derive(Debug)]
struct Segments {
    /// The numbers of segments, with the policies of each. The first is that of devices nobody
    /// took, and of functions that have what the operator gives to all.
    all: Vec<(u32, Vec<EgressPolicy>)>,
    /// The number of the next segment.
    next: u32,
    names: Names,
    /// The `/etc/hosts` of replicas whose policies have names.
    hosts: BTreeMap<PathBuf, Vec<EgressPolicy>>,
}

impl Segments {
    fn number(&self, policies: &[EgressPolicy]) -> Option<u32> {
        self.all.iter().find(|(_, known)| known == policies).map(|(number, _)| *number)
    }

    fn names(&self) -> BTreeSet<String> {
        let policies = self.all.iter().flat_map(|(_, policies)| policies);
        policies.flat_map(EgressPolicy::names).map(str::to_owned).collect()
    }

    /// Adds a segment. Segments count from a number that every run draws anew: devices that an
    /// earlier run left are in none until they are put in one.
    fn add(&mut self, policies: &[EgressPolicy]) -> u32 {
        if let Some(number) = self.number(policies) {
            return number;
        }
        let number = self.next;
        self.next = group::segment_after(number);
        self.all.push((number, policies.to_vec()));
        number
    }
}

impl Network {
    /// Brings up devices and firewall, with `neighbours` running already.
    ///
    /// Returns what is degraded, for people, beside it.
    pub(crate) async fn open(
        options: &LocalEngineOptions,
        neighbours: Vec<Neighbour>,
        resolvers: Vec<Ipv4Addr>,
    ) -> Result<(Self, Vec<String>), OpenError> {
        let (connection, host, _) = new_connection().map_err(|error| OpenError::Network {
            doing: "talk to the kernel about network devices".to_owned(),
            reason: error.to_string(),
        })?;
        // Ends by itself with the last handle.
        drop(tokio::spawn(connection));
        let mut degraded = Vec::new();
        let mut segments = Segments {
            all: vec![(0, vec![options.egress.of_all.clone()])],
            next: group::first_segment(),
            names: Names::default(),
            hosts: BTreeMap::new(),
        };
        for neighbour in &neighbours {
            let segment = segments.add(&neighbour.policies);
            let group = group::of(segment, neighbour.tenant);
            segments.watch(&neighbour.hosts, &neighbour.policies);
            // Until the table knows the group, what is in it reaches nothing.
            if let Some(device) = &neighbour.device {
                put_in_group(&host, device, group).await.map_err(|reason| OpenError::Network {
                    doing: format!("set the group of device `{device}`"),
                    reason,
                })?;
            }
        }
        for (name, answer) in look_up(segments.names()).await {
            segments.names.learn(&name, &answer, Instant::now());
        }
        let bridge = options.bridge();
        let parts = {
            // Two instances that start at the same time must not choose the same block.
            let _lock = block::lock_choice().await?;
            let subnet = block::stored_or_chosen(options, &host, !neighbours.is_empty()).await?;
            let mut addresses = AddressPool::new(subnet);
            for neighbour in &neighbours {
                addresses.mark(neighbour.address);
            }
            let parts = Parts {
                options: options.clone(),
                host,
                subnet,
                resolvers,
                addresses: Mutex::new(addresses),
                spare: Mutex::default(),
                taken: Notify::new(),
                segments: Mutex::new(segments),
                writing: tokio::sync::Mutex::default(),
            };
            parts.write_firewall().await?;
            bring_up(&parts.host, &bridge, subnet).await?;
            Arc::new(parts)
        };
        if let Err(error) = forwarding::switch_on() {
            degraded.push(format!(
                "replicas cannot reach the outside: forwarding of IPv4 could not be turned on ({error})"
            ));
        }
        let tasks = [
            tokio::spawn(keep_spare(Arc::clone(&parts))),
            tokio::spawn(follow_names(Arc::clone(&parts))),
        ];
        Ok((Self { parts, tasks }, degraded))
    }

    pub(crate) fn subnet(&self) -> Subnet {
        self.parts.subnet
    }

    /// A namespace for one replica of the tenant with this number that may reach what all
    /// `policies` allow: a spare one, or a new one when there is none.
    pub(crate) async fn take(
        &self,
        tenant: u32,
        policies: &[EgressPolicy],
    ) -> Result<Slot, String> {
        let group = group::of(self.parts.segment(policies).await?, tenant);
        let spare = lock(&self.parts.spare).pop_front();
        self.parts.taken.notify_one();
        let slot = match spare {
            Some(slot) => slot,
            None => self.parts.make().await?,
        };
        let put = put_in_group(&self.parts.host, &slot.device, group).await;
        if let Err(reason) = put {
            self.give_back(slot.address);
            return Err(format!("cannot set what a replica may reach: {reason}"));
        }
        Ok(slot)
    }

    /// Says that no replica has the address any more.
    pub(crate) fn give_back(&self, address: Ipv4Addr) {
        lock(&self.parts.addresses).give_back(address);
    }

    /// The lines of a replica's `/etc/hosts` for the names of its policies, and a promise to
    /// keep them right in the file at `path`.
    pub(crate) fn hosts(&self, path: &Path, policies: &[EgressPolicy]) -> String {
        let mut segments = lock(&self.parts.segments);
        segments.watch(path, policies);
        segments.hosts_lines(policies)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Segments {
    fn watch(&mut self, path: &Path, policies: &[EgressPolicy]) {
        if policies.iter().any(|policy| policy.names().next().is_some()) {
            self.hosts.insert(path.to_owned(), policies.to_vec());
        }
    }

    fn hosts_lines(&self, policies: &[EgressPolicy]) -> String {
        let lines = self.names.hosts(policies.iter().flat_map(EgressPolicy::names));
        if lines.is_empty() { lines } else { format!("{NAMES_MARK}{lines}") }
    }

    /// Brings the files of running replicas up to date. They are written in place: a container
    /// sees the file, not its name.
    fn rewrite_hosts(&mut self) {
        self.hosts.retain(|path, _| path.exists());
        for (path, policies) in &self.hosts {
            let written = fs::read_to_string(path).and_then(|text| {
                let own = text.split(NAMES_MARK).next().unwrap_or_default();
                fs::write(path, format!("{own}{}", self.hosts_lines(policies)))
            });
            if let Err(error) = written {
                tracing::debug!(%error, path = %path.display(), "a replica keeps its old names");
            }
        }
    }
}

/// Looks names up, all at once.
async fn look_up(names: BTreeSet<String>) -> Vec<(String, Vec<IpAddr>)> {
    let asked = names.into_iter().map(|name| async move {
        let answer = HostLookup.lookup(&name).await;
        (name, answer)
    });
    join_all(asked).await
}

/// Keeps as many spare namespaces as wanted; a failure is tried again at the next need.
async fn keep_spare(parts: Arc<Parts>) {
    loop {
        while lock(&parts.spare).len() < parts.options.spare_networks {
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

/// Looks the names of all policies up again and again.
async fn follow_names(parts: Arc<Parts>) {
    loop {
        tokio::time::sleep(parts.options.names_again).await;
        let names = lock(&parts.segments).names();
        let answers = look_up(names).await;
        let changed = {
            let mut segments = lock(&parts.segments);
            let now = Instant::now();
            let mut changed = false;
            for (name, answer) in answers {
                changed |= segments.names.learn(&name, &answer, now);
            }
            changed
        };
        if !changed {
            continue;
        }
        // Opened first, told then: a function never learns of an address that is still closed.
        if let Err(error) = parts.write_firewall().await {
            tracing::warn!(%error, "names of egress policies keep their old addresses");
        }
        lock(&parts.segments).rewrite_hosts();
    }
}

impl Parts {
    /// The number of the segment with these policies, which the firewall knows by then.
    async fn segment(&self, policies: &[EgressPolicy]) -> Result<u32, String> {
        if let Some(number) = lock(&self.segments).number(policies) {
            return Ok(number);
        }
        let fresh: BTreeSet<String> = {
            let segments = lock(&self.segments);
            let names = policies.iter().flat_map(EgressPolicy::names);
            names.filter(|name| !segments.names.has(name)).map(str::to_owned).collect()
        };
        let answers = look_up(fresh).await;
        let before = {
            let mut segments = lock(&self.segments);
            let now = Instant::now();
            for (name, answer) in answers {
                segments.names.learn(&name, &answer, now);
            }
            segments.all.clone()
        };
        let number = lock(&self.segments).add(policies);
        if let Err(error) = self.write_firewall().await {
            lock(&self.segments).all.retain(|segment| before.contains(segment));
            return Err(error.to_string());
        }
        Ok(number)
    }

    async fn write_firewall(&self) -> Result<(), OpenError> {
        let _writing = self.writing.lock().await;
        let (segments, names) = {
            let segments = lock(&self.segments);
            (segments.all.clone(), segments.names.clone())
        };
        let options = &self.options;
        firewall::install(&Rules {
            table: &options.table(),
            bridge: &options.bridge(),
            devices: &options.devices(),
            subnet: self.subnet,
            gateway: options.gateway_port,
            resolvers: &self.resolvers,
            bandwidth: options.bandwidth,
            connections: options.connections,
            segments: &segments,
            names: &names,
        })
        .await
    }

    /// Makes a namespace with a device, its address and its routes.
    async fn make(&self) -> Result<Slot, String> {
        let address = lock(&self.addresses)
            .take()
            .ok_or_else(|| format!("all addresses of {} are in use", self.subnet))?;
        let devices = self.options.devices();
        let made = slot::make(&self.host, &devices, self.subnet.gateway(), address).await;
        if made.is_err() {
            lock(&self.addresses).give_back(address);
        }
        made
    }
}

/// Says by the group of its device what a replica may reach and whose it is.
async fn put_in_group(host: &Handle, device: &str, group: u32) -> Result<(), String> {
    let link = LinkUnspec::new_with_name(device).link_group(group).build();
    host.link().set(link).execute().await.map_err(|error| error.to_string())
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

/// Takes down devices and firewall table of an instance, whatever is left of them.
pub(crate) async fn destroy(options: &LocalEngineOptions) -> Result<(), OpenError> {
    let (connection, host, _) = new_connection().map_err(|error| OpenError::Network {
        doing: "talk to the kernel about network devices".to_owned(),
        reason: error.to_string(),
    })?;
    drop(tokio::spawn(connection));
    let failed = || OpenError::network("remove the devices of the instance");
    for device in block::devices(&host, options).await.map_err(failed())? {
        // One whose replica just ended may be gone by now.
        drop(host.link().del(device).execute().await);
    }
    if let Some(left) = block::devices(&host, options).await.map_err(failed())?.first() {
        return Err(OpenError::Network {
            doing: "remove the devices of the instance".to_owned(),
            reason: format!("device number {left} stays"),
        });
    }
    if let Err(error) = forwarding::switch_back() {
        tracing::warn!(%error, "forwarding of IPv4 stays on");
    }
    firewall::remove(&options.table()).await
}
