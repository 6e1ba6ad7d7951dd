//! Claims about what no function reaches, whatever it is allowed: the platform, its machines, other
//! networks inside, and a name that is not its own.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Harness, Judge, narrowed};

/// Networks behind a machine, and where clouds answer questions about it, over IPv4 and IPv6.
const ELSEWHERE: [&str; 8] = [
    "169.254.169.254:80",
    "168.63.129.16:80",
    "100.100.100.200:80",
    "[fd00:ec2::254]:80",
    "10.0.0.1:80",
    "172.16.0.1:80",
    "192.168.0.1:80",
    "100.64.0.1:80",
];

/// Neither by the machine's addresses nor by those of the platform.
pub async fn the_platform_and_its_machines_are_out_of_reach<H: Harness>(judge: Arc<Judge<H>>) {
    let inside = judge.harness.inside();
    assert!(!inside.is_empty(), "something is there to be reached");
    let spec = narrowed(judge.owned("mallory", "curious"), "open");
    judge.deploy(&spec).await;
    for target in inside {
        assert!(!judge.reaches(&spec, target).await, "{target} is reached");
    }
    // Itself it reaches, so that it is not the question that fails.
    let own = SocketAddr::from(([127, 0, 0, 1], judge.address(&spec.id).port()));
    assert!(judge.reaches(&spec, own).await);
}

/// What a cloud tells its machines is not for functions, nor are private networks.
pub async fn metadata_and_private_networks_are_out_of_reach<H: Harness>(judge: Arc<Judge<H>>) {
    let [outside, _] = judge.harness.outside().await;
    let spec = narrowed(judge.owned("mallory", "inquisitive"), "open");
    judge.deploy(&spec).await;
    assert!(judge.reaches(&spec, outside).await);
    for target in ELSEWHERE {
        assert!(!judge.reaches(&spec, target).await, "{target} is reached");
    }
}

/// The one thing inside that functions may reach, by a name; who is closed does not reach it.
pub async fn the_gateways_door_is_open_to_those_who_may_use_it<H: Harness>(judge: Arc<Judge<H>>) {
    let gateway = judge.harness.gateway();
    for (name, egress, reached) in
        [("open", "open", true), ("listed", "gateway", true), ("closed", "closed", false)]
    {
        let spec = narrowed(judge.owned("alice", name), egress);
        judge.deploy(&spec).await;
        assert_eq!(judge.reaches(&spec, &gateway).await, reached, "{egress}");
        assert_eq!(judge.body(&spec.id, "/").await, "hello");
    }
}

/// No packet leaves with the address of a neighbour, or of a stranger, as the one it comes from.
pub async fn nobody_speaks_under_the_address_of_another<H: Harness>(judge: Arc<Judge<H>>) {
    /// Options of a socket for addresses that are not its machine's: free and transparent.
    const OPTIONS: [&str; 2] = ["15", "19"];
    let [outside, _] = judge.harness.outside().await;
    let mut attacker = judge.owned("mallory", "forger");
    attacker.image = judge.harness.root_image();
    let neighbour = judge.owned("alice", "honest");
    judge.deploy(&attacker).await;
    judge.deploy(&neighbour).await;
    let neighbours = judge.address(&neighbour.id).ip().to_string();
    let (to, port) = (outside.ip().to_string(), outside.port().to_string());
    for from in [neighbours.as_str(), "192.0.2.77", to.as_str()] {
        for option in OPTIONS {
            let outcome = judge.attack(&attacker, &["forge", from, &to, &port, option]).await;
            assert_ne!(outcome, "done", "a packet was sent from {from}");
        }
    }
    assert_eq!(judge.body(&neighbour.id, "/").await, "hello");
}
