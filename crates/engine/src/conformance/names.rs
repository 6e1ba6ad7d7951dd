//! Claims about names in policies: a name opens what it stands for in public, and whoever answers
//! for it can never make it mean something inside.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::{Harness, Judge, narrowed};

/// An address in public that is none of the harness's.
const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);

fn version_4(target: SocketAddr) -> Option<Ipv4Addr> {
    match target.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// With the port that is said, and for those who say it.
pub async fn a_name_on_a_list_opens_what_it_stands_for_and_nothing_else<H: Harness>(
    judge: Arc<Judge<H>>,
) {
    let [one, other] = judge.harness.outside().await;
    judge.harness.set_name("service.example.net", &[version_4(one).unwrap()]);
    judge.harness.set_name("elsewhere.example.net", &[STRANGER]);
    let (there, port) = (format!("service.example.net:{}", one.port()), other.port());
    let spec = narrowed(judge.spec("caller"), &there);
    judge.deploy(&spec).await;
    judge.until("the name is reached", || judge.reaches(&spec, &there)).await;
    assert!(!judge.reaches(&spec, format!("service.example.net:{port}")).await);
    assert!(!judge.reaches(&spec, other).await);
    let stranger = narrowed(judge.spec("stranger"), "elsewhere.example.net");
    judge.deploy(&stranger).await;
    assert!(!judge.reaches(&stranger, &there).await && !judge.reaches(&stranger, one).await);
}

/// Services move, and functions that call them are not started afresh for it.
pub async fn a_name_that_moves_in_public_is_followed<H: Harness>(judge: Arc<Judge<H>>) {
    let [one, _] = judge.harness.outside().await;
    judge.harness.set_name("moving.example.net", &[STRANGER]);
    let there = format!("moving.example.net:{}", one.port());
    let spec = narrowed(judge.spec("follower"), &there);
    judge.deploy(&spec).await;
    let before = judge.first_replica(&spec.id);
    assert!(!judge.reaches(&spec, one).await);
    judge.harness.set_name("moving.example.net", &[version_4(one).unwrap()]);
    judge.until("the name is followed", || judge.reaches(&spec, one)).await;
    judge.until("the name means it", || judge.reaches(&spec, &there)).await;
    assert_eq!(judge.first_replica(&spec.id), before);
}

/// Rebinding: what a name is turned to afterwards is no more open than what it was at first.
pub async fn a_name_that_is_turned_to_the_inside_opens_nothing_there<H: Harness>(
    judge: Arc<Judge<H>>,
) {
    let [one, _] = judge.harness.outside().await;
    let neighbour = judge.owned("alice", "victim");
    judge.deploy(&neighbour).await;
    let mut inside = judge.harness.inside();
    inside.push(judge.address(&neighbour.id));
    inside.extend(
        ["169.254.169.254:80", "10.0.0.1:80"].map(|one| SocketAddr::V4(one.parse().unwrap())),
    );
    let mut addresses: Vec<_> = inside.iter().copied().filter_map(version_4).collect();
    addresses.sort_unstable();
    addresses.dedup();
    judge.harness.set_name("inside.example.net", &addresses);
    judge.harness.set_name("turning.example.net", &[]);
    let spec =
        narrowed(judge.owned("mallory", "turner"), "turning.example.net, inside.example.net");
    judge.deploy(&spec).await;
    assert!(!judge.reaches(&spec, one).await);
    let refused = async |when: &str| {
        for target in &inside {
            assert!(!judge.reaches(&spec, target).await, "{target} is reached {when}");
            for name in ["turning.example.net", "inside.example.net"] {
                let named = format!("{name}:{}", target.port());
                assert!(!judge.reaches(&spec, &named).await, "{named} is reached {when}");
            }
        }
    };
    refused("before").await;
    // With one address in public among them: once that is open the answer has been dealt with.
    addresses.push(version_4(one).unwrap());
    judge.harness.set_name("turning.example.net", &addresses);
    judge.until("the name has turned", || judge.reaches(&spec, one)).await;
    refused("after").await;
    assert_eq!(judge.body(&neighbour.id, "/").await, "hello");
}
