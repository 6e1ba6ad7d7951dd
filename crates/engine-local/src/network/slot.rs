//! One slot: a network namespace with one address, on a pair of devices of its own.
//!
//! Nothing is shared between two of them. The host has a route to each address over its own
//! device, knows the hardware address at the other end for good, and believes no packet that
//! comes over a device which is not the way back to its source.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
};

use super::link_index;
use crate::private_mounts::on_own_thread;

/// The device inside a replica.
const INNER_DEVICE: &str = "eth0";

/// A network namespace that is ready for one replica.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Keeps the namespace alive until a replica lives in it.
    pub(crate) namespace: OwnedFd,
    /// The replica's address.
    pub(crate) address: Ipv4Addr,
    /// The host's end of the replica's pair of devices.
    pub(crate) device: String,
}

/// Makes a namespace with `address`, which reaches everything through the host's `gateway`.
pub(super) async fn make(
    host: &Handle,
    devices: &str,
    gateway: Ipv4Addr,
    address: Ipv4Addr,
) -> Result<Slot, String> {
    let failed =
        |doing: &'static str| move |error: rtnetlink::Error| format!("cannot {doing}: {error}");
    let (namespace, inner) = new_namespace()
        .await
        .map_err(|error| format!("cannot make a network namespace: {error}"))?;
    let device = device_name(devices)?;
    let (near, far) = hardware_addresses(address);
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(INNER_DEVICE)
        .address(far.to_vec())
        .setns_by_fd(namespace.as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new(&device, INNER_DEVICE)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .address(near.to_vec())
        .build();
    host.link().add(pair).execute().await.map_err(failed("add a pair of devices"))?;
    // Before it is up: never a moment in which a forged source is believed.
    let settings = format!("/proc/sys/net/ipv4/conf/{device}/rp_filter");
    fs::write(&settings, "1").map_err(|error| format!("cannot write `{settings}`: {error}"))?;
    // The firewall drops IPv6 anyway; where the kernel has none, the file is missing.
    drop(fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1"));
    let outer = link_index(host, &device)
        .await
        .map_err(failed("find a replica's device"))?
        .ok_or("a replica's device vanished; does another program manage network devices?")?;
    let up = LinkUnspec::new_with_index(outer).up().build();
    host.link().set(up).execute().await.map_err(failed("bring up a replica's device"))?;
    let neighbour = host.neighbours().add(outer, IpAddr::V4(address)).link_layer_address(&far);
    let known = neighbour.state(NeighbourState::Permanent).replace().execute().await;
    known.map_err(failed("note a replica's hardware address"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, 32)
        .output_interface(outer)
        .scope(RouteScope::Link)
        .pref_source(gateway)
        .build();
    host.route().add(route).replace().execute().await.map_err(failed("route to a replica"))?;

    let index = link_index(&inner, INNER_DEVICE)
        .await
        .map_err(failed("find the device of a replica"))?
        .ok_or("the device of a replica is missing")?;
    let added = inner.address().add(index, IpAddr::V4(address), 32).execute().await;
    added.map_err(failed("give a replica its address"))?;
    for device in ["lo", INNER_DEVICE] {
        let up = LinkUnspec::new_with_name(device).up().build();
        inner.link().set(up).execute().await.map_err(failed("bring up a replica's device"))?;
    }
    let neighbour = inner.neighbours().add(index, IpAddr::V4(gateway)).link_layer_address(&near);
    let known = neighbour.state(NeighbourState::Permanent).replace().execute().await;
    known.map_err(failed("tell a replica the host's hardware address"))?;
    let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(gateway, 32)
        .output_interface(index)
        .scope(RouteScope::Link)
        .build();
    let to_all = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
    for route in [to_gateway, to_all] {
        inner.route().add(route).execute().await.map_err(failed("give a replica its route"))?;
    }
    Ok(Slot { namespace, address, device })
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

/// The hardware addresses of the two ends. They follow from the address, so that one that is given
/// out again is never remembered with another.
fn hardware_addresses(address: Ipv4Addr) -> ([u8; 6], [u8; 6]) {
    let [a, b, c, d] = address.octets();
    ([0x02, 0x73, a, b, c, d], [0x02, 0x72, a, b, c, d])
}

/// A device name that belongs to nobody yet: the instance's beginning, and five digits to fill
/// the kernel's 15 characters.
fn device_name(devices: &str) -> Result<String, String> {
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|error| format!("no random numbers: {error}"))?;
    let number = u32::from_le_bytes(random) & 0x000f_ffff;
    Ok(format!("{devices}{number:05x}"))
}
