//! What a cloud has on the machine outside its folder: to be compared, and to be gone in the end.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything on the machine that belongs to one cloud, one line each, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces(pub BTreeSet<String>);

impl Traces {
    /// Looks for all of a cloud; nothing when it never had an instance id.
    pub fn of(data_dir: &Path) -> Self {
        let Ok(instance) = fs::read_to_string(data_dir.join("instance")) else {
            return Self::default();
        };
        Self::of_instance(instance.trim(), data_dir)
    }

    pub(crate) fn of_instance(instance: &str, data_dir: &Path) -> Self {
        let volatile = format!("/run/updraft-{instance}");
        let data_dir = data_dir.to_string_lossy();
        let mut found = BTreeSet::new();
        if Path::new(&volatile).is_dir() {
            found.insert(format!("folder {volatile}"));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for target in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            let inside = |folder: &str| {
                target.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
            };
            if inside(&volatile) || inside(&data_dir) {
                found.insert(format!("mount {target}"));
            }
        }
        for group in control_groups(instance) {
            found.insert(format!("control group {}", group.display()));
        }
        let bridge = format!("updraft{instance}");
        for device in names_in("/sys/class/net") {
            let master = fs::read_link(format!("/sys/class/net/{device}/master"));
            if device == bridge || master.is_ok_and(|master| master.ends_with(&bridge)) {
                found.insert(format!("network device {device}"));
            }
        }
        if firewall_tables().contains(&format!("updraft_{instance}")) {
            found.insert(format!("firewall table updraft_{instance}"));
        }
        for process in names_in("/proc").filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
            let read = |file: &str| {
                let bytes = fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
                String::from_utf8_lossy(&bytes).replace('\0', " ")
            };
            let command = read("cmdline");
            let ours = [&volatile, data_dir.as_ref()].iter().any(|word| command.contains(*word));
            if ours || read("cgroup").contains(&format!("updraft-{instance}")) {
                found.insert(format!("process {process} {command}"));
            }
        }
        Self(found)
    }

    /// Those of them that are still there: of the devices, which carry no instance in their name
    /// once the bridge is gone, those with the same name.
    pub(crate) fn left_of(&self, now: Self) -> Self {
        let mut left = now.0;
        let device = |line: &&String| {
            line.strip_prefix("network device ")
                .is_some_and(|name| Path::new("/sys/class/net").join(name).exists())
        };
        left.extend(self.0.iter().filter(device).cloned());
        Self(left)
    }

    /// Those whose line begins so, for instance `process`.
    pub fn of_kind(&self, kind: &str) -> Vec<&str> {
        self.0.iter().filter(|line| line.starts_with(kind)).map(String::as_str).collect()
    }
}

/// The groups of an instance in every tree, whichever layout the machine has.
fn control_groups(instance: &str) -> Vec<PathBuf> {
    let name = format!("updraft-{instance}");
    let root = Path::new("/sys/fs/cgroup");
    let trees = names_in("/sys/fs/cgroup").map(|tree| root.join(tree));
    std::iter::once(root.to_owned())
        .chain(trees)
        .map(|tree| tree.join(&name))
        .filter(|group| group.is_dir())
        .collect()
}

fn firewall_tables() -> BTreeSet<String> {
    let output = Command::new("nft").args(["list", "tables"]).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().filter_map(|line| line.split(' ').next_back()).map(str::to_owned).collect()
}

fn names_in(folder: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}
