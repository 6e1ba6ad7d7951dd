//! The outside of a test, and how replicas look from there.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command};
use std::time::{Duration, Instant};

use updraft_engine::{Engine, Wake};
use updraft_engine_local::{LocalEngine, RuntimeChoice};
use updraft_model::{FunctionId, FunctionSpec};

use crate::harness::{Instance, answer, app};

/// Deploys the app and tells its address.
async fn deploy(engine: &LocalEngine, name: &str) -> SocketAddr {
    let spec = FunctionSpec::new(FunctionId::in_default(name.parse().unwrap()), app());
    let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    engine.wait_ready(&spec.id, revision, Duration::from_secs(30)).await.unwrap();
    engine.endpoints().borrow()[&spec.id].ready[0].address
}

/// The address that this machine sends from, or one it has anyway.
pub(crate) fn host_address() -> Ipv4Addr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: the kernel only chooses a route.
    let local = socket.connect("192.0.2.200:9").and_then(|()| socket.local_addr());
    match local.map(|address| address.ip()) {
        Ok(std::net::IpAddr::V4(address)) => address,
        _ => Ipv4Addr::LOCALHOST,
    }
}

/// Where tests note who has which block of addresses for documentation.
const BLOCKS: &str = "/run/updraft-outside-tests";

/// A network outside of the machine: a namespace behind a pair of devices.
#[derive(Debug)]
pub(crate) struct Outside {
    name: String,
    pub(crate) address: Ipv4Addr,
    /// Held as long as the block is this test's.
    _block: File,
}

/// Takes one of the 64 blocks of four addresses, and clears away what a test that was killed left
/// there. Its number, and what holds it.
fn take_block(name: &str) -> (u8, File) {
    fs::create_dir_all(BLOCKS).unwrap();
    let begin = Instant::now();
    loop {
        for number in 0..64 {
            let path = Path::new(BLOCKS).join(number.to_string());
            let mut options = File::options();
            options.create(true).truncate(false).read(true).write(true);
            let mut file = options.open(path).unwrap();
            if file.try_lock().is_err() {
                continue;
            }
            let mut before = String::new();
            file.read_to_string(&mut before).unwrap();
            let instance = before.strip_prefix("outside-").unwrap_or_default();
            if Path::new("/sys/class/net").join(format!("upd{instance}")).exists() {
                ip(&["link", "del", &format!("upd{instance}")]);
            }
            if !instance.is_empty() && Path::new("/run/netns").join(&before).exists() {
                ip(&["netns", "del", &before]);
            }
            file.set_len(0).unwrap();
            file.write_all_at(name.as_bytes(), 0).unwrap();
            return (number, file);
        }
        assert!(begin.elapsed() < Duration::from_mins(1), "no addresses are free");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Outside {
    pub(crate) fn new(instance: &str) -> Self {
        let name = format!("outside-{instance}");
        let (number, block) = take_block(&name);
        let (near, far) = ([203, 0, 113, number * 4 + 1], [203, 0, 113, number * 4 + 2]);
        let outside = Self { name, address: far.into(), _block: block };
        let name = outside.name.as_str();
        let (device, far) = (format!("upd{instance}"), Ipv4Addr::from(far).to_string() + "/30");
        let near = Ipv4Addr::from(near).to_string() + "/30";
        ip(&["netns", "add", name]);
        let pair = ["link", "add", &device, "type", "veth", "peer", "name", "far", "netns", name];
        ip(&pair);
        ip(&["addr", "add", &near, "dev", &device]);
        ip(&["link", "set", &device, "up"]);
        ip(&["-n", name, "addr", "add", &far, "dev", "far"]);
        ip(&["-n", name, "link", "set", "far", "up"]);
        outside
    }

    /// A Python program out there, and the lines that it prints.
    pub(crate) fn python(&self, program: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name, "python3", "-c", program])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    }

    /// Something that accepts connections on a port as long as it is held.
    pub(crate) fn service(&self, port: u16) -> Service {
        let program = format!(
            "import socket; s = socket.create_server(('0.0.0.0', {port})); \
             print('up', flush=True)\nwhile True: s.accept()"
        );
        let (child, mut lines) = self.python(&program);
        assert_eq!(lines.next().unwrap().unwrap(), "up");
        Service(child)
    }
}

/// A program that ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The kernel takes the namespace apart when it likes; the near end is to be gone before
        // somebody else has the block.
        ip(&["link", "del", &format!("upd{}", &self.name["outside-".len()..])]);
        ip(&["netns", "del", &self.name]);
    }
}

/// What `ip` prints.
pub(crate) fn ip_says(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_reaches_the_outside_under_the_hosts_address() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let caller = deploy(&engine, "caller").await;
    let outside = Outside::new(&instance.options.instance);
    // The outside has no route to replicas: only the host's own address gets an answer.
    let server = "import socket; s = socket.create_server(('0.0.0.0', 9)); print('up', flush=True); c, a = s.accept(); print(a[0], flush=True)";
    let mut listener = Command::new("ip")
        .args(["netns", "exec", &outside.name, "python3", "-c", server])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = std::io::BufReader::new(listener.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    assert_eq!(answer(caller, &format!("/connect/{}:9", outside.address)).await, "connected");
    line.clear();
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    let seen: Ipv4Addr = line.trim().parse().unwrap();
    assert_eq!(u32::from(seen) + 1, u32::from(outside.address), "seen as {seen}");
    listener.wait().unwrap();
    drop(outside);
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}
