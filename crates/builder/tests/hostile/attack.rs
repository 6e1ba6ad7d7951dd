//! What a hostile build step tries. Compiled by the test into a static program; prints a line for
//! each attempt that did what it must not.

use std::ffi::CString;
use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::time::Duration;

/// What a victim leaves where others must not find it.
const MARK: &str = "victim-was-here";
/// The name of memory that processes share.
const SHARED: i64 = 0x5ca1_ab1e;
/// The kernel's name for the keys of this user.
const USER_KEYS: i64 = -4;

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
    match words.as_slice() {
        [_, mode, port] if mode == "victim" => return victim(port.parse().unwrap()),
        [_, mode, file] if mode == "mark" => {
            return fs::set_permissions(file, fs::Permissions::from_mode(0o6755)).unwrap();
        }
        _ => {}
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
    // Keys that the kernel keeps.
    let (_key, key) = text("user");
    attempt("keeping a key", call(248, [key, kind, kind, 5, USER_KEYS]));
    attempt("asking for a key", call(249, [key, kind, 0, USER_KEYS, 0]));
    attempt("finding the user's keys", call(250, [0, USER_KEYS, 0, 0, 0]));
    attempt("finding the session's keys", call(250, [0, -3, 0, 0, 0]));
    attempt("joining another session's keys", call(250, [1, kind, 0, 0, 0]));
    attempt("a program in the kernel", call(321, [5, place, 128, 0, 0]));
    attempt("another kernel", call(246, [0, 0, 0, 0, 0]));
    attempt("swap on a file", call(167, [place, 0, 0, 0, 0]));
    attempt("an open mount", call(428, [-100, place, 1, 0, 0]));
    attempt("a new file system", call(430, [kind, 0, 0, 0, 0]));
    attempt("port 80", TcpListener::bind("0.0.0.0:80").is_ok());
    attempt("sending as another", sends_as([198, 51, 100, 77], 15));
    attempt("a socket for any address", sends_as([198, 51, 100, 77], 19));
    for pid in other_processes() {
        attempt(&format!("tracing {pid}"), call(101, [16, pid, 0, 0, 0]));
        if is_like_this_one(pid) {
            // The program that started this one, as confined as it.
            continue;
        }
        for part in ["environ", "mem", "root", "cwd", "maps"] {
            let path = format!("/proc/{pid}/{part}");
            let read = fs::read_dir(&path).is_ok()
                || fs::File::open(&path).is_ok_and(|mut file| {
                    file.read(&mut [0; 16]).is_ok_and(|length| length > 0)
                });
            attempt(&format!("looking into {path}"), read);
        }
    }
    attempt("processes beside its own", other_processes().len() > 8);
    attempt("memory of others", call(29, [SHARED, 0, 0, 0, 0]));
    let hidden = UnixAddress::from_abstract_name(MARK).unwrap();
    attempt("a socket of others", UnixStream::connect_addr(&hidden).is_ok());
    for folder in ["/tmp", "/var/tmp", "/run", "/dev/shm", "/"] {
        let mark = format!("{folder}/{MARK}");
        attempt(&format!("finding {mark}"), fs::symlink_metadata(&mark).is_ok());
    }
    // A program that is set to run as root, for whoever is not.
    // SAFETY: these calls take no pointers.
    let (user, root) = unsafe { (syscall(102), syscall(107)) };
    attempt("becoming root by a program's mark", user != 0 && root == 0);
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
    for tree in ["", "memory", "pids", "cpu", "unified", "systemd"] {
        let folder = format!("/sys/fs/cgroup/{tree}/hostile");
        attempt(&format!("making {folder}"), fs::create_dir(&folder).is_ok());
        for file in ["cgroup.procs", "release_agent", "tasks", "memory.max", "cgroup.kill"] {
            let path = format!("/sys/fs/cgroup/{tree}/{file}");
            attempt(&format!("writing {path}"), fs::write(&path, "0").is_ok());
        }
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

/// The processes this one sees, without itself.
fn other_processes() -> Vec<i64> {
    let own = i64::from(std::process::id());
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != own).collect()
}

/// Whether another process has this one's root folder and rights, and none more.
fn is_like_this_one(pid: i64) -> bool {
    let rights = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let told = |line: &&str| ["Cap", "Seccomp:", "NoNewPrivs"].iter().any(|w| line.starts_with(w));
        status.lines().filter(told).map(str::to_owned).collect::<Vec<_>>()
    };
    let root = |pid: &str| {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(format!("/proc/{pid}/root")).ok().map(|found| (found.dev(), found.ino()))
    };
    let other = pid.to_string();
    rights(&other) == rights("self") && root(&other).is_some() && root(&other) == root("self")
}

/// Whether a packet leaves under an address that is not this build's, with the help of this option
/// of sockets.
fn sends_as(address: [u8; 4], option: i64) -> bool {
    let socket_address = |ip: [u8; 4], port: u16| {
        let mut bytes = [0_u8; 16];
        bytes[..2].copy_from_slice(&2_u16.to_ne_bytes());
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        bytes[4..8].copy_from_slice(&ip);
        bytes
    };
    let (own, other) = (socket_address(address, 4000), socket_address([192, 0, 2, 1], 9));
    let yes = 1_i32;
    // SAFETY: the pointers are to values that live until the calls return, with their lengths.
    unsafe {
        let socket = syscall(41, 2_i64, 2_i64, 0_i64);
        syscall(54, socket, 0_i64, option, &raw const yes, 4_i64) >= 0
            && syscall(49, socket, own.as_ptr(), 16_i64) >= 0
            && syscall(44, socket, b"x".as_ptr(), 1_i64, 0_i64, other.as_ptr(), 16_i64) >= 0
    }
}

/// Offers whatever another build could take, and says all the time that it is well.
fn victim(port: u16) {
    for folder in ["/tmp", "/var/tmp", "/run", "/dev/shm", "/"] {
        // Not every image has each of them.
        drop(fs::write(format!("{folder}/{MARK}"), "a secret"));
    }
    // SAFETY: this call takes no pointers.
    let shared = unsafe { syscall(29, SHARED, 4096_i64, 0o1666_i64) };
    let hidden = UnixAddress::from_abstract_name(MARK).unwrap();
    let _hidden = UnixListener::bind_addr(&hidden).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    // Nothing is sent: the kernel only looks the route up.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    probe.connect("192.0.2.1:9").unwrap();
    println!("VICTIM {} {}", probe.local_addr().unwrap().ip(), shared >= 0);
    std::thread::spawn(move || {
        for peer in listener.incoming().flatten() {
            println!("VISITED {peer:?}");
        }
    });
    loop {
        println!("WELL");
        std::thread::sleep(Duration::from_millis(50));
    }
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
