//! The machine's switch for forwarding IPv4: turned on when replicas need it, and turned back by
//! the last instance to go, if it was one of ours that turned it on.

use std::fs;
use std::io;
use std::path::Path;

const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";

/// Says that the switch was off before us. Below `/run`, because a boot forgets the switch too.
const NOTE: &str = "/run/updraft-ip-forward";

const DEVICES: &str = "/sys/class/net";

/// Lets packets of replicas leave through the host's other devices.
pub(super) fn switch_on() -> io::Result<()> {
    on(Path::new(SWITCH), Path::new(NOTE))
}

/// Puts the switch back as it was, unless another instance needs it.
pub(super) fn switch_back() -> io::Result<()> {
    let others = fs::read_dir(DEVICES)?.flatten().any(|device| {
        let name = device.file_name();
        name.to_str().is_some_and(is_bridge)
    });
    back(Path::new(SWITCH), Path::new(NOTE), others)
}

/// Whether a device is the bridge of an instance.
fn is_bridge(name: &str) -> bool {
    name.strip_prefix("updraft")
        .is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn on(switch: &Path, note: &Path) -> io::Result<()> {
    if fs::read_to_string(switch)?.trim() == "1" {
        return Ok(());
    }
    fs::write(note, "0")?;
    fs::write(switch, "1")
}

fn back(switch: &Path, note: &Path, others: bool) -> io::Result<()> {
    if others || !note.exists() {
        return Ok(());
    }
    fs::write(switch, "0")?;
    fs::remove_file(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_goes_back_only_when_we_turned_it_and_nobody_needs_it() {
        let folder = tempfile::tempdir().unwrap();
        let (switch, note) = (folder.path().join("switch"), folder.path().join("note"));
        let reads = || fs::read_to_string(&switch).unwrap();
        fs::write(&switch, "1").unwrap();
        on(&switch, &note).unwrap();
        back(&switch, &note, false).unwrap();
        assert_eq!(reads(), "1", "it was on before us");
        fs::write(&switch, "0\n").unwrap();
        on(&switch, &note).unwrap();
        on(&switch, &note).unwrap();
        back(&switch, &note, true).unwrap();
        assert_eq!(reads(), "1", "another instance needs it");
        back(&switch, &note, false).unwrap();
        assert_eq!((reads().as_str(), note.exists()), ("0", false));
    }

    #[test]
    fn only_bridges_of_instances_count() {
        assert!(is_bridge("updraft0123abcd"));
        assert!(
            !is_bridge("updraft0123abc") && !is_bridge("updraftv123abcd") && !is_bridge("eth0")
        );
    }
}
