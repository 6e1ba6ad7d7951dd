//! Addresses of the few hosts the watchdog itself must find, without the C library.
//!
//! A static binary in a foreign image cannot use the system's resolver, so this reads `/etc/hosts`
//! and asks the name servers of `/etc/resolv.conf` itself, over UDP as
//! [RFC 1035](https://www.rfc-editor.org/rfc/rfc1035) has it. It keeps nothing: whoever asks often
//! should remember the answer.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::UdpSocket;

/// How long one name server may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Most name servers and search domains that are used, as in the C library.
const MAX_SERVERS: usize = 3;
const MAX_SEARCH: usize = 6;
/// Most addresses taken from one answer.
const MAX_ADDRESSES: usize = 16;
const DNS_PORT: u16 = 53;

/// Finds addresses with the settings of this container.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    hosts: PathBuf,
    settings: PathBuf,
    port: u16,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { hosts: "/etc/hosts".into(), settings: "/etc/resolv.conf".into(), port: DNS_PORT }
    }
}

/// What `/etc/resolv.conf` says.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    /// A name with fewer dots is first tried with the search domains.
    dots: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    A = 1,
    Aaaa = 28,
}

impl Resolver {
    /// The addresses of a host in the order to try them; never empty.
    ///
    /// # Errors
    /// When nobody knows the name, or no name server answers.
    pub(crate) async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let host = host.trim_matches(['[', ']']);
        let addresses = if let Ok(address) = host.parse() {
            vec![address]
        } else if host.eq_ignore_ascii_case("localhost") {
            vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
        } else {
            let known = in_hosts(&read(&self.hosts), host);
            if known.is_empty() { self.ask_all(host).await? } else { known }
        };
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    async fn ask_all(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let settings = Settings::parse(&read(&self.settings));
        let mut unreachable = None;
        for name in settings.names(host) {
            for kind in [Kind::A, Kind::Aaaa] {
                match self.ask_servers(&settings.servers, &name, kind).await {
                    Ok(found) if !found.is_empty() => return Ok(found),
                    Ok(_) => {}
                    Err(error) => unreachable = Some(error),
                }
            }
        }
        Err(unreachable.unwrap_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("no address is known for `{host}`"))
        }))
    }

    /// The answer of the first name server that gives one.
    async fn ask_servers(
        &self,
        servers: &[IpAddr],
        name: &str,
        kind: Kind,
    ) -> io::Result<Vec<IpAddr>> {
        let mut last = io::Error::other("/etc/resolv.conf names no name server");
        for server in servers {
            let asked = ask(SocketAddr::new(*server, self.port), name, kind);
            match tokio::time::timeout(ASK_TIMEOUT, asked).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(error)) => last = error,
                Err(_elapsed) => {
                    let text = format!("the name server {server} does not answer");
                    last = io::Error::new(io::ErrorKind::TimedOut, text);
                }
            }
        }
        Err(last)
    }
}

impl Settings {
    fn parse(text: &str) -> Self {
        let mut settings = Self { servers: Vec::new(), search: Vec::new(), dots: 1 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => settings.servers.extend(
                    words.next().and_then(|word| word.split('%').next()?.parse::<IpAddr>().ok()),
                ),
                Some("search" | "domain") => {
                    settings.search = words.take(MAX_SEARCH).map(str::to_owned).collect();
                }
                Some("options") => {
                    let mut dots =
                        words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    settings.dots = dots.next_back().unwrap_or(settings.dots);
                }
                _ => {}
            }
        }
        settings.servers.truncate(MAX_SERVERS);
        settings
    }

    /// The full names to ask for, in this order.
    fn names(&self, host: &str) -> Vec<String> {
        if host.ends_with('.') {
            return vec![host.to_owned()];
        }
        let own = format!("{host}.");
        let mut names: Vec<_> = self
            .search
            .iter()
            .map(|domain| format!("{own}{}.", domain.trim_matches('.')))
            .collect();
        if host.matches('.').count() >= self.dots {
            names.insert(0, own);
        } else {
            names.push(own);
        }
        names
    }
}

/// A file of a few lines; one that is missing or no text says nothing.
fn read(path: &PathBuf) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        if let Some(address) = words.next().and_then(|word| word.parse().ok())
            && words.any(|name| name.eq_ignore_ascii_case(host))
        {
            found.push(address);
        }
    }
    found
}

async fn ask(server: SocketAddr, name: &str, kind: Kind) -> io::Result<Vec<IpAddr>> {
    let local = if server.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let socket = UdpSocket::bind(local).await?;
    // From here on only this server's answers arrive.
    socket.connect(server).await?;
    let [high, low, ..] = RandomState::new().build_hasher().finish().to_be_bytes();
    let id = [high, low];
    socket.send(&question(id, name, kind)?).await?;
    let mut answer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut answer).await?;
        match addresses(answer.get(..length).unwrap_or_default(), id, kind) {
            Reading::Addresses(found) => return Ok(found),
            // Late or forged: the right one may still come.
            Reading::NotOurs => {}
            Reading::Failed(reason) => {
                return Err(io::Error::other(format!("the name server {server} {reason}")));
            }
        }
    }
}

fn question(id: [u8; 2], name: &str, kind: Kind) -> io::Result<Vec<u8>> {
    let mut packet = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        let Ok(length @ 1..=63) = u8::try_from(label.len()) else {
            let text = format!("`{name}` is no host name");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        packet.push(length);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, kind as u8, 0, 1]);
    Ok(packet)
}

/// What an answer turned out to be.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Addresses(Vec<IpAddr>),
    NotOurs,
    Failed(&'static str),
}

fn addresses(packet: &[u8], id: [u8; 2], kind: Kind) -> Reading {
    let Some(header) = packet.get(..12) else { return Reading::NotOurs };
    if header[..2] != id || header[2] & 0x80 == 0 {
        return Reading::NotOurs;
    }
    match header[3] & 0x0f {
        0 => {}
        // The name does not exist.
        3 => return Reading::Addresses(Vec::new()),
        _ => return Reading::Failed("refused the question"),
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    records(packet, count(4), count(6), kind)
        .map_or(Reading::Failed("answered nonsense"), Reading::Addresses)
}

/// The addresses among the records, whatever names they carry: aliases come with their targets.
fn records(packet: &[u8], questions: u16, answers: u16, kind: Kind) -> Option<Vec<IpAddr>> {
    let mut at = 12;
    for _ in 0..questions {
        at = after_name(packet, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..answers {
        at = after_name(packet, at)?;
        let fixed = packet.get(at..at + 10)?;
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let data = packet.get(at + 10..at + 10 + length)?;
        at += 10 + length;
        let is_internet = fixed[2..4] == [0, 1];
        if !is_internet || fixed[..2] != [0, kind as u8] || found.len() >= MAX_ADDRESSES {
            continue;
        }
        if let Ok(octets) = <[u8; 4]>::try_from(data) {
            found.push(IpAddr::from(octets));
        } else if let Ok(octets) = <[u8; 16]>::try_from(data) {
            found.push(IpAddr::from(octets));
        }
    }
    Some(found)
}

/// The place behind a name, which ends at an empty label or with a pointer to another name.
fn after_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as StdUdpSocket;

    use proptest::prelude::*;

    use super::*;

    fn answer_to(question: &[u8], data: &[u8]) -> Vec<u8> {
        let mut packet = question.to_vec();
        packet[2] |= 0x80;
        packet[7] = 2;
        // An alias first, then the address it stands for.
        let kind = question[question.len() - 3];
        packet.extend_from_slice(&[192, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 192, 12]);
        packet.extend_from_slice(&[192, 12, 0, kind, 0, 1, 0, 0, 0, 9]);
        packet.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
        packet.extend_from_slice(data);
        packet
    }

    /// A name server that knows one name; others do not exist.
    fn name_server(known: &'static str) -> u16 {
        let socket = StdUdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let encoded = question([0, 0], known, Kind::A).unwrap()[12..].to_vec();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let asked = &buffer[..length];
                let mut reply = if asked[12..] == encoded {
                    answer_to(asked, &[10, 1, 2, 3])
                } else {
                    let mut reply = asked.to_vec();
                    reply[2] |= 0x80;
                    reply[3] |= 3;
                    reply
                };
                // A forged answer comes first.
                reply[0] ^= 1;
                socket.send_to(&reply, from).unwrap();
                reply[0] ^= 1;
                socket.send_to(&reply, from).unwrap();
            }
        });
        port
    }

    fn resolver(folder: &tempfile::TempDir, hosts: &str, settings: &str, port: u16) -> Resolver {
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        Resolver { hosts: write("hosts", hosts), settings: write("resolv.conf", settings), port }
    }

    #[tokio::test]
    async fn literal_addresses_and_localhost_need_nobody() {
        let resolver = Resolver { hosts: "/none".into(), settings: "/none".into(), port: 1 };
        let check = async |host, expected: &[&str]| {
            let found = resolver.resolve(host, 80).await.unwrap();
            assert_eq!(
                found,
                expected.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>()
            );
        };
        check("10.0.0.1", &["10.0.0.1:80"]).await;
        check("[::1]", &["[::1]:80"]).await;
        check("LocalHost", &["127.0.0.1:80", "[::1]:80"]).await;
        assert!(resolver.resolve("gateway.openfaas", 80).await.is_err());
    }

    #[tokio::test]
    async fn the_hosts_file_is_asked_first() {
        let folder = tempfile::tempdir().unwrap();
        let hosts =
            "127.0.0.1 localhost\n# 1.1.1.1 gateway.openfaas\n10.9.8.7\tgw Gateway.OpenFaaS # x\n";
        let resolver = resolver(&folder, hosts, "", 1);
        let found = resolver.resolve("gateway.openfaas", 8080).await.unwrap();
        assert_eq!(found, ["10.9.8.7:8080".parse().unwrap()]);
    }

    #[tokio::test]
    async fn name_servers_are_asked_with_the_search_domains() {
        let folder = tempfile::tempdir().unwrap();
        let port = name_server("gateway.openfaas.svc.cluster.local.");
        let settings = "search openfaas-fn.svc.cluster.local svc.cluster.local\nnameserver 127.0.0.1\noptions ndots:5\n";
        let resolver = resolver(&folder, "", settings, port);
        let found = resolver.resolve("gateway.openfaas", 8080).await.unwrap();
        assert_eq!(found, ["10.1.2.3:8080".parse().unwrap()]);
        let error = resolver.resolve("other.example", 80).await.unwrap_err();
        assert_eq!(error.to_string(), "no address is known for `other.example`");
    }

    #[test]
    fn settings_are_read_as_the_c_library_reads_them() {
        let text = "# comment\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver junk\n\
                    search a.example b.example.\noptions timeout:1 ndots:2\n";
        let settings = Settings::parse(text);
        assert_eq!(settings.servers.len(), 2);
        assert_eq!(settings.names("x"), ["x.a.example.", "x.b.example.", "x."]);
        assert_eq!(settings.names("x.y.z"), ["x.y.z.", "x.y.z.a.example.", "x.y.z.b.example."]);
        assert_eq!(settings.names("x."), ["x."]);
    }

    #[test]
    fn names_that_are_none_are_not_asked_for() {
        for name in ["a..b.", ".", &format!("{}.", "x".repeat(64))] {
            assert!(question([0, 0], name, Kind::A).is_err(), "{name}");
        }
    }

    #[test]
    fn an_answer_of_the_other_family_is_read_and_a_cut_one_is_not() {
        let asked = question([7, 7], "a.example.", Kind::Aaaa).unwrap();
        let packet = answer_to(&asked, &Ipv6Addr::LOCALHOST.octets());
        let found = Reading::Addresses(vec![IpAddr::V6(Ipv6Addr::LOCALHOST)]);
        assert_eq!(addresses(&packet, [7, 7], Kind::Aaaa), found);
        let cut = &packet[..packet.len() - 1];
        assert_eq!(addresses(cut, [7, 7], Kind::Aaaa), Reading::Failed("answered nonsense"));
        assert_eq!(addresses(&packet, [7, 8], Kind::Aaaa), Reading::NotOurs);
    }

    proptest! {
        #[test]
        fn no_packet_makes_the_reader_panic(
            packet in prop::collection::vec(any::<u8>(), 0..80),
            flags in any::<bool>(),
        ) {
            let mut packet = packet;
            if flags && packet.len() > 4 {
                packet[..4].copy_from_slice(&[1, 2, 0x80, 0]);
            }
            let _any = addresses(&packet, [1, 2], Kind::A);
        }
    }
}
