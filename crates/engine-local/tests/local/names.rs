//! A name server for one test, which says of names what the test wants.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// What is said of names.
type Known = BTreeMap<String, Vec<Ipv4Addr>>;

/// The only name server that this thread, and those started by it from now on, know of.
#[derive(Debug)]
pub(crate) struct NameServer {
    known: Arc<Mutex<Known>>,
    /// What `/etc/resolv.conf` shows.
    _file: tempfile::NamedTempFile,
}

impl NameServer {
    pub(crate) fn start() -> Self {
        // An address of this process alone: several tests may run at once.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 53, high, low);
        let socket = UdpSocket::bind((address, 53)).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), format!("nameserver {address}\noptions timeout:1\n")).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let nothing = None::<&str>;
        // Or the whole machine would ask here.
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing).unwrap();
        let place = Path::new("/etc/resolv.conf").canonicalize().unwrap();
        mount(Some(file.path()), &place, nothing, MsFlags::MS_BIND, nothing).unwrap();
        let known: Arc<Mutex<Known>> = Arc::default();
        let answers = Arc::clone(&known);
        // Ends with the process.
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut question) {
                if let Some(answer) = answer(&question[..length], &answers) {
                    // Whoever gets no answer asks again.
                    drop(socket.send_to(&answer, from));
                }
            }
        });
        Self { known, _file: file }
    }

    /// What a name stands for from now on.
    pub(crate) fn set(&self, name: &str, addresses: &[Ipv4Addr]) {
        self.known.lock().unwrap().insert(name.to_owned(), addresses.to_vec());
    }
}

/// The answer to a question as RFC 1035 has it (section 4.1).
fn answer(question: &[u8], known: &Mutex<Known>) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut rest = question.get(12..)?;
    loop {
        let (&length, after) = rest.split_first()?;
        if length == 0 {
            rest = after;
            break;
        }
        let (label, after) = after.split_at_checked(usize::from(length))?;
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        rest = after;
    }
    let kind = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
    let end = question.len() - rest.len() + 4;
    let mut addresses = Vec::new();
    if kind == 1
        && let Some(of) = known.lock().unwrap().get(&labels.join("."))
    {
        addresses.clone_from(of);
    }
    let mut answer = question[..2].to_vec();
    // An answer, without more to come, and without error.
    answer.extend([0x81, 0x80, 0, 1]);
    answer.extend(u16::try_from(addresses.len()).ok()?.to_be_bytes());
    answer.extend([0; 4]);
    answer.extend(question.get(12..end)?);
    for address in addresses {
        // The name of the question, type A, class IN, good for no time at all.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
