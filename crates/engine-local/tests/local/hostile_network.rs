//! What only this engine promises on the wire: how it refuses, what root of the machine cannot
//! forge in a function's network, what operators allow, and that nobody takes more than its part.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Instant;

use updraft_engine::Engine;
use updraft_engine::conformance::attack_path;
use updraft_engine_local::RuntimeChoice;
use updraft_model::{annotations, labels};

use crate::harness::{Instance, answer, call, status};
use crate::hostile::{Battlefield, deploy, owned};
use crate::network::{Outside, host_address};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_refused_at_once() {
    let field = Battlefield::new().await;
    let service = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    for target in [
        SocketAddr::from((field.engine.gateway_address(), port)),
        SocketAddr::from((host_address(), port)),
        field.neighbour,
        "169.254.169.254:80".parse().unwrap(),
        "[fd00:ec2::254]:80".parse().unwrap(),
        "10.0.0.1:80".parse().unwrap(),
    ] {
        let (code, why) = call(field.attacker, &format!("/connect/{target}")).await;
        assert_eq!(code, 500, "{target} can be reached");
        // Not heard of again is what the app calls timed out, after half a second.
        assert!(!why.contains("timed out"), "{target} was not refused: {why}");
    }
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_reach_the_gateway_is_not_told_its_name() {
    let mut instance = Instance::new(RuntimeChoice::Detect).await;
    instance.options.gateway_port = Some(80);
    let engine = instance.open().await;
    let open = deploy(&engine, &owned("alice")).await;
    let mut spec = owned("bob");
    spec.annotations.insert(annotations::EGRESS.into(), "closed".into());
    let closed = deploy(&engine, &spec).await;
    let line = format!("{}\tgateway.openfaas gateway", engine.gateway_address());
    let hosts = answer(open, "/read/etc/hosts").await;
    assert!(hosts.contains(&line), "{hosts}");
    assert!(!answer(closed, "/read/etc/hosts").await.contains("gateway"));
    assert_eq!(answer(closed, "/read/etc/resolv.conf").await, "");
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_reaches_what_its_list_and_its_tenants_both_allow() {
    let mut instance = Instance::new(RuntimeChoice::Detect).await;
    let outside = Outside::new(&instance.options.instance);
    let other = outside.service(10);
    let wanted = outside.service(9);
    let only = format!("{}:9/tcp", outside.address);
    instance.options.egress.of.insert("owner/bob".parse().unwrap(), only.parse().unwrap());
    instance.options.egress.of.insert("owner/carol".parse().unwrap(), "gateway".parse().unwrap());
    let engine = instance.open().await;
    let mut check = Vec::new();
    for (owner, annotation, reached) in [
        ("alice", Some(only.as_str()), [true, false]),
        ("alice", Some("closed"), [false, false]),
        ("alice", Some("public"), [true, true]),
        ("alice", None, [true, true]),
        ("bob", None, [true, false]),
        ("bob", Some("open"), [true, false]),
        ("carol", None, [false, false]),
        ("carol", Some("open"), [false, false]),
    ] {
        let mut spec = owned(owner);
        if let Some(annotation) = annotation {
            spec.annotations.insert(annotations::EGRESS.into(), annotation.into());
        }
        let address = deploy(&engine, &spec).await;
        for (port, reached) in [9, 10].into_iter().zip(reached) {
            let path = format!("/connect/{}:{port}", outside.address);
            let code = status(address, &path).await;
            check.push((owner, annotation, port, code == 200, reached));
        }
    }
    for (owner, annotation, port, found, expected) in check {
        assert_eq!(found, expected, "{owner} with {annotation:?} on port {port}");
    }
    drop((other, wanted, outside));
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_with_a_forged_source_go_nowhere() {
    let field = Battlefield::new().await;
    let outside = Outside::new(&field.instance.options.instance);
    let (mut service, mut lines) = outside.python(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
         s.bind(('0.0.0.0', 9)); print('up', flush=True); print(s.recv(99).decode(), flush=True)",
    );
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    // What no function can do by itself: root of the machine does it in the function's network.
    let send = |address: &str, words: &str| {
        let script = format!(
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
             s.bind(('{address}', 0)); s.sendto(b'{words}', ('{}', 9))",
            outside.address
        );
        let pid = field.pid().to_string();
        let nsenter = |args: &[&str]| {
            let done = Command::new("nsenter").args(["-t", &pid, "-n"]).args(args).status();
            assert!(done.unwrap().success(), "{args:?}");
        };
        if address != "0.0.0.0" {
            nsenter(&["ip", "addr", "add", address, "dev", "eth0"]);
        }
        nsenter(&["python3", "-c", &script]);
    };
    send(&field.neighbour.ip().to_string(), "forged neighbour");
    send("192.0.2.77", "forged stranger");
    send("0.0.0.0", "honest");
    assert_eq!(lines.next().unwrap().unwrap(), "honest");
    service.wait().unwrap();
    drop(outside);
    field.end().await;
}

/// Another function of an owner.
fn second(owner: &str) -> updraft_model::FunctionSpec {
    let mut spec = owned(&format!("{owner}-second"));
    spec.labels.insert(labels::GIT_OWNER.into(), owner.into());
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_very_many_connections_gets_no_more_and_others_do() {
    let field = Battlefield::on(|instance| instance.options.connections = 40).await;
    let outside = Outside::new(&field.instance.options.instance);
    let service = outside.service(9);
    let target = outside.address.to_string();
    // 111 is refused. One that ends in the very moment in which it is counted is not missed.
    let outcome = field.attack(&["connections", &target, "9", "100"]).await;
    let (error, count) = outcome.split_once(' ').unwrap();
    assert_eq!(error, "111", "{outcome}");
    assert!((30..=41).contains(&count.parse::<u32>().unwrap()), "{outcome}");
    let path = format!("/connect/{target}:9");
    assert_eq!(answer(field.neighbour, &path).await, "connected");
    drop((service, outside));
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_more_replicas_gets_no_more_of_the_wire() {
    const BANDWIDTH: u64 = 50_000;
    // What may pass at once whatever the bandwidth.
    const BURST: u64 = 200_000;
    let field = Battlefield::on(|instance| instance.options.bandwidth = BANDWIDTH).await;
    let second = deploy(&field.engine, &second("mallory")).await;
    let outside = Outside::new(&field.instance.options.instance);
    let (mut service, mut lines) = outside.python(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
         s.setsockopt(socket.SOL_SOCKET, 33, 1 << 24); s.bind(('0.0.0.0', 9)); \
         print('up', flush=True); got = {}\n\
         while True:\n \
         data = s.recv(2000); key = data[:1].decode(); got[key] = got.get(key, 0) + len(data) + 28\n \
         if key == 'q': print(got.get('m', 0), got.get('a', 0), flush=True); break",
    );
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    let target = outside.address.to_string();
    let flood = |letter: &str, packets: &str| attack_path(&["udp", &target, "9", letter, packets]);
    let begin = Instant::now();
    let much = flood("m", "2000");
    let (one, other) = tokio::join!(answer(field.attacker, &much), answer(second, &much));
    assert_eq!((one.trim(), other.trim()), ("done", "done"));
    let took = begin.elapsed();
    // Another tenant has a part of his own.
    assert_eq!(answer(field.neighbour, &flood("a", "20")).await.trim(), "done");
    let end = UdpSocket::bind("0.0.0.0:0").unwrap();
    end.send_to(b"q", SocketAddr::from((outside.address, 9))).unwrap();
    let got = lines.next().unwrap().unwrap();
    service.wait().unwrap();
    let (mallory, alice) = got.split_once(' ').unwrap();
    let (mallory, alice): (u64, u64) = (mallory.parse().unwrap(), alice.parse().unwrap());
    // The kernel lets a second's worth pass before it counts.
    let most = BURST + BANDWIDTH * (took.as_secs() + 2);
    assert!(mallory > 0 && mallory <= most, "{mallory} bytes in {took:?}");
    assert_eq!(alice, 20 * 1028);
    drop(outside);
    field.end().await;
}
