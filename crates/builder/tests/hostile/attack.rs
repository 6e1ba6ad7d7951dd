//! What a hostile build step tries. Compiled by the test into a static program; prints a line for
//! each attempt that did what it must not.

use std::ffi::CString;
use std::fs;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
}

/// Whether a system call with these numbers succeeds. Pointers are given as numbers.
fn call(number: i64, arguments: [i64; 5]) -> bool {
    let [a, b, c, d, e] = arguments;
    // SAFETY: each caller passes what the call with this number takes.
    unsafe { syscall(number, a, b, c, d, e) >= 0 }
}

fn text(text: &str) -> (CString, i64) {
    let text = CString::new(text).unwrap();
    let address = text.as_ptr() as i64;
    (text, address)
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, again, folder] = words.as_slice()
        && again == "again"
    {
        fs::remove_dir_all(folder).unwrap();
        fs::create_dir(folder).unwrap();
        return fs::write(format!("{folder}/two"), "2").unwrap();
    }
    let mut reached = Vec::new();
    let mut attempt = |what: &str, done: bool| {
        if done {
            reached.push(what.to_owned());
        }
    };
    let (_kind, kind) = text("tmpfs");
    let (_place, place) = text("/tmp");
    attempt("mount", call(165, [kind, place, kind, 0, 0]));
    attempt("unmount /proc", { let (_p, p) = text("/proc"); call(166, [p, 2, 0, 0, 0]) });
    attempt("chroot", call(161, [place, 0, 0, 0, 0]));
    attempt("a user namespace", call(272, [0x1000_0000, 0, 0, 0, 0]));
    attempt("a mount namespace", call(272, [0x2_0000, 0, 0, 0, 0]));
    attempt("tracing the first process", call(101, [16, 1, 0, 0, 0]));
    attempt("a raw socket", call(41, [2, 3, 1, 0, 0]));
    attempt("a packet socket", call(41, [17, 3, 0, 0, 0]));
    let (_disk, disk) = text("/tmp/disk");
    attempt("a block device", call(133, [disk, 0o060_666, 0x0800, 0, 0]));
    attempt("a character device", call(133, [disk, 0o020_666, 0x0101, 0, 0]));
    attempt("loading a module", call(175, [0, 0, kind, 0, 0]));
    attempt("a new root", call(155, [place, place, 0, 0, 0]));
    attempt("the clock", call(227, [0, place, 0, 0, 0]));
    attempt("a host name", call(170, [kind, 5, 0, 0, 0]));
    for file in [
        "/proc/1/environ",
        "/proc/1/mem",
        "/proc/kcore",
        "/proc/kmsg",
        "/dev/mem",
        "/dev/kmsg",
        "/dev/sda",
        "/dev/vda",
        "/etc/shadow",
    ] {
        let content = fs::File::open(file).and_then(|mut file| {
            use std::io::Read as _;
            file.read(&mut [0; 16])
        });
        attempt(&format!("reading {file}"), content.is_ok_and(|length| length > 0));
    }
    for folder in ["/proc/1/root", "/proc/1/cwd"] {
        attempt(&format!("listing {folder}"), fs::read_dir(folder).is_ok());
    }
    for number in 0..64 {
        // The numbers may be listed; what is behind them is not to be had.
        let behind = fs::read_link(format!("/proc/1/fd/{number}"));
        attempt(&format!("what is open as {number}"), behind.is_ok());
    }
    for file in ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches"] {
        attempt(&format!("writing {file}"), fs::write(file, "").is_ok());
    }
    for tree in ["", "memory", "pids", "cpu", "unified"] {
        let folder = format!("/sys/fs/cgroup/{tree}/hostile");
        attempt(&format!("making {folder}"), fs::create_dir(&folder).is_ok());
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    for argument in &arguments {
        match argument.parse::<SocketAddr>() {
            Ok(address) => {
                let opened = TcpStream::connect_timeout(&address, Duration::from_secs(1));
                attempt(&format!("reaching {address}"), opened.is_ok());
            }
            // A path of the machine.
            Err(_) => attempt(&format!("finding {argument}"), fs::symlink_metadata(argument).is_ok()),
        }
    }
    if let Some(gateway) = gateway() {
        for argument in &arguments {
            let Ok(address) = argument.parse::<SocketAddr>() else { continue };
            let address = SocketAddr::new(gateway, address.port());
            let opened = TcpStream::connect_timeout(&address, Duration::from_secs(1));
            attempt(&format!("reaching the host by {address}"), opened.is_ok());
        }
    }
    for what in reached {
        println!("REACHED {what}");
    }
    println!("USERS {}", fs::read_to_string("/proc/self/uid_map").unwrap().trim());
    println!("TRIED {}", UdpSocket::bind("0.0.0.0:0").is_ok());
}

/// The address of the way out.
fn gateway() -> Option<std::net::IpAddr> {
    let routes = fs::read_to_string("/proc/net/route").ok()?;
    routes.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let gateway = u32::from_str_radix(fields.get(2)?, 16).ok()?;
        (fields.get(1) == Some(&"00000000"))
            .then(|| std::net::Ipv4Addr::from(gateway.to_le_bytes()).into())
    })
}
