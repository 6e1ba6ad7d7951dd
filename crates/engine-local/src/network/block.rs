//! Which block of addresses an instance has.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::address::{PREFIX, Subnet, choose};
use crate::options::{LocalEngineOptions, OpenError};
use crate::record::write_atomically;

/// Held while a block is chosen and put on a bridge.
pub(super) async fn lock_choice() -> Result<fs::File, OpenError> {
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
pub(super) async fn stored_or_chosen(
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
    let taken = taken(host, options).await.map_err(OpenError::network("list routes"))?;
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

/// What the host's routes, addresses and name servers occupy, our own devices left out.
async fn taken(
    host: &Handle,
    options: &LocalEngineOptions,
) -> Result<Vec<Subnet>, rtnetlink::Error> {
    let own = devices(host, options).await?;
    let mut taken = Vec::new();
    let mut routes = host.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(route) = routes.try_next().await? {
        let mut target = None;
        let mut device = 0;
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => target = Some(*address),
                RouteAttribute::Oif(index) => device = *index,
                _ => {}
            }
        }
        if let Some(target) = target
            && !own.contains(&device)
        {
            taken.push(Subnet::new(target, route.header.destination_prefix_length));
        }
    }
    let mut addresses = host.address().get().execute();
    while let Some(address) = addresses.try_next().await? {
        for attribute in &address.attributes {
            if let AddressAttribute::Address(IpAddr::V4(found)) = attribute
                && !own.contains(&address.header.index)
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

/// The instance's devices on the host: the bridge, its ports, and the replicas' own.
pub(super) async fn devices(
    host: &Handle,
    options: &LocalEngineOptions,
) -> Result<Vec<u32>, rtnetlink::Error> {
    let (bridge, prefix) = (options.bridge(), options.devices());
    let mut found = Vec::new();
    let mut all = Vec::new();
    let mut links = host.link().get().execute();
    while let Some(link) = links.try_next().await? {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        if name.is_some_and(|name| name == bridge || name.starts_with(&prefix)) {
            found.push(link.header.index);
        }
        all.push(link);
    }
    // Replicas of older Updrafts hang on the bridge.
    let is_port = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::Controller(index) => found.contains(index),
        _ => false,
    };
    let ports: Vec<u32> = all
        .iter()
        .filter(|link| link.attributes.iter().any(is_port))
        .map(|link| link.header.index)
        .collect();
    found.extend(ports);
    Ok(found)
}
