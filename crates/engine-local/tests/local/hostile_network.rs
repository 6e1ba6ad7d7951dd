//! The hostile battery on the wire: a function tries to reach what is not its business, and to
//! take more of the wire than its tenant's part.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use updraft_engine::Engine;
use updraft_engine_local::RuntimeChoice;
use updraft_model::{annotations, labels};

use crate::harness::{Instance, answer, call, status, until};
use crate::hostile::{Battlefield, deploy, owned};
use crate::names::NameServer;
use crate::network::{Outside, gateway, host_address};

#[tokio::test(flavor = "multi_thread")]
async fn the_host_another_tenant_and_metadata_are_refused_at_once() {
    let field = Battlefield::new().await;
    let service = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    let own = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for target in [
        SocketAddr::from((gateway(&field.engine), port)),
        SocketAddr::from((host_address(), port)),
        own.local_addr().unwrap(),
        field.neighbour,
        "169.254.169.254:80".parse().unwrap(),
        "168.63.129.16:80".parse().unwrap(),
        "100.100.100.200:80".parse().unwrap(),
        "[fd00:ec2::254]:80".parse().unwrap(),
        // Where names that were bound anew by their owner would lead.
        "10.0.0.1:80".parse().unwrap(),
        "172.16.0.1:80".parse().unwrap(),
        "192.168.0.1:80".parse().unwrap(),
        "100.64.0.1:80".parse().unwrap(),
    ] {
        let (code, why) = call(field.attacker, &format!("/connect/{target}")).await;
        assert_eq!(code, 500, "{target} can be reached");
        // Not heard of again is what the app calls timed out, after half a second.
        assert!(!why.contains("timed out"), "{target} was not refused: {why}");
    }
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateways_door_is_the_only_one_and_a_closed_function_has_none() {
    let door = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = door.local_addr().unwrap().port();
    let mut instance = Instance::new(RuntimeChoice::Detect).await;
    instance.options.gateway_port = Some(port);
    let engine = instance.open().await;
    let open = deploy(&engine, &owned("alice")).await;
    let mut spec = owned("bob");
    spec.annotations.insert(annotations::EGRESS.into(), "closed".into());
    let closed = deploy(&engine, &spec).await;
    let gate = SocketAddr::from((engine.gateway_address(), port));
    assert_eq!(answer(open, &format!("/connect/{gate}")).await, "connected");
    let hosts = answer(open, "/read/etc/hosts").await;
    assert!(hosts.contains(&format!("{}\tgateway.openfaas gateway", gate.ip())), "{hosts}");
    for target in
        [SocketAddr::from((host_address(), port)), SocketAddr::from((gate.ip(), port + 1))]
    {
        assert_eq!(status(open, &format!("/connect/{target}")).await, 500, "{target}");
    }
    assert_eq!(status(closed, &format!("/connect/{gate}")).await, 500);
    assert_eq!(answer(open, "/").await, "hello");
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
    let field = Battlefield::on(|instance| instance.options.connections = 40, |_| {}).await;
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
    let field = Battlefield::on(|instance| instance.options.bandwidth = BANDWIDTH, |_| {}).await;
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
    let flood = |letter: &str, packets: &str| {
        format!("/attack/{}", ["udp", &target, "9", letter, packets].join("//"))
    };
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

/// In a mount namespace of its own, where the machine's name server is one of the test's.
#[test]
fn a_name_that_its_server_turns_to_the_inside_opens_nothing_there() {
    let server = NameServer::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(rebind(&server));
}

async fn rebind(server: &NameServer) {
    let moving = |spec: &mut updraft_model::FunctionSpec| {
        let list = "moving.example.net, inside.example.net".to_owned();
        spec.annotations.insert(annotations::EGRESS.into(), list);
    };
    let mut instance = Instance::new(RuntimeChoice::Detect).await;
    instance.options.names_again = Duration::from_millis(50);
    let outside = Outside::new(&instance.options.instance);
    let service = outside.service(9);
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    server.set("moving.example.net", &[outside.address]);
    server.set("inside.example.net", &[metadata, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::LOCALHOST]);
    let engine = instance.open().await;
    let neighbour = deploy(&engine, &owned("alice")).await;
    let mut spec = owned("mallory");
    moving(&mut spec);
    let attacker = deploy(&engine, &spec).await;
    let there = format!("/connect/{}:9", outside.address);
    assert_eq!(answer(attacker, &there).await, "connected");
    let line = format!("{}\tmoving.example.net\n", outside.address);
    let hosts = answer(attacker, "/read/etc/hosts").await;
    assert!(hosts.contains(&line) && !hosts.contains("inside.example.net"), "{hosts}");

    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let std::net::IpAddr::V4(victim) = neighbour.ip() else { unreachable!("replicas have IPv4") };
    let inside = [
        SocketAddr::from((victim, neighbour.port())),
        SocketAddr::from((gateway(&engine), port)),
        SocketAddr::from((host_address(), port)),
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((metadata, 80)),
        "10.0.0.1:80".parse().unwrap(),
    ];
    let addresses = inside.map(|target| match target.ip() {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(_) => unreachable!("all are IPv4"),
    });
    // Asked a third time, what the first answer after the turn said has been dealt with.
    server.set("moving.example.net", &addresses);
    let asked = server.asked("moving.example.net");
    until("the name was looked up after it turned", async || {
        server.asked("moving.example.net") >= asked + 3
    })
    .await;
    for target in inside {
        let (code, why) = call(attacker, &format!("/connect/{target}")).await;
        assert_eq!(code, 500, "{target} can be reached");
        assert!(!why.contains("timed out"), "{target} was not refused: {why}");
        let hosts = answer(attacker, "/read/etc/hosts").await;
        let line = format!("{}\tmoving.example.net", target.ip());
        // The machine's own address may be a public one; it is closed all the same.
        assert!(target.ip() == host_address() || !hosts.contains(&line), "{hosts}");
    }
    // In public it may go where it likes.
    let other = Ipv4Addr::new(198, 51, 100, 77);
    server.set("moving.example.net", &[other]);
    until("the name has moved", async || {
        answer(attacker, "/read/etc/hosts").await.contains(&format!("{other}\tmoving"))
    })
    .await;
    assert_eq!(answer(neighbour, "/").await, "hello");
    drop((service, outside));
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}
