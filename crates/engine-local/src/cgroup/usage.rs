//! What the processes of a group use: processor time and memory.

use std::fs;
use std::path::Path;

use super::{Cgroups, Layout};

/// What one replica uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct GroupUsage {
    pub(crate) cpu_seconds: f64,
    pub(crate) memory_bytes: u64,
}

impl Cgroups {
    /// What a group uses, memory without what the kernel can drop at once (inactive pages of
    /// files). Nothing where the controllers are missing or the group is gone.
    pub(crate) fn usage(&self, group: &str) -> Option<GroupUsage> {
        let group = group.trim_start_matches('/');
        let cpu_seconds = match self.layout {
            Layout::V2 => {
                field(&self.root.join(group).join("cpu.stat"), "usage_usec")? as f64 / 1e6
            }
            Layout::V1 | Layout::Hybrid => {
                number(&self.root.join("cpuacct").join(group).join("cpuacct.usage"))? as f64 / 1e9
            }
        };
        Some(GroupUsage { cpu_seconds, memory_bytes: self.memory(group)? })
    }

    /// The memory part of it.
    pub(super) fn memory(&self, group: &str) -> Option<u64> {
        let group = group.trim_start_matches('/');
        let (folder, used, inactive) = match self.layout {
            Layout::V2 => (self.root.join(group), "memory.current", "inactive_file"),
            Layout::V1 | Layout::Hybrid => {
                let folder = self.root.join("memory").join(group);
                (folder, "memory.usage_in_bytes", "total_inactive_file")
            }
        };
        let inactive = field(&folder.join("memory.stat"), inactive).unwrap_or(0);
        Some(number(&folder.join(used))?.saturating_sub(inactive))
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind `name` in a file with one pair a line.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(found, _)| *found == name)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    #[test]
    fn usage_is_read_from_both_versions() {
        let expected = Some(GroupUsage { cpu_seconds: 1.5, memory_bytes: 700 });
        let v2 = tree(&[
            ("cgroup.controllers", ""),
            ("g/x/cpu.stat", "usage_usec 1500000\nuser_usec 1\n"),
            ("g/x/memory.current", "1000\n"),
            ("g/x/memory.stat", "anon 1\ninactive_anon 5\ninactive_file 300\n"),
        ]);
        assert_eq!(Cgroups::detect_at(v2.path()).usage("/g/x"), expected);
        let v1 = tree(&[
            ("cpuacct/g/x/cpuacct.usage", "1500000000\n"),
            ("memory/g/x/memory.usage_in_bytes", "1000\n"),
            ("memory/g/x/memory.stat", "inactive_file 1\ntotal_inactive_file 300\n"),
        ]);
        assert_eq!(Cgroups::detect_at(v1.path()).usage("/g/x"), expected);
    }

    #[test]
    fn without_a_controller_nothing_is_told() {
        let v2 = tree(&[("cgroup.controllers", ""), ("x/cpu.stat", "usage_usec 1\n")]);
        assert_eq!(Cgroups::detect_at(v2.path()).usage("x"), None);
        let v1 = tree(&[("memory/x/memory.usage_in_bytes", "1000\n")]);
        assert_eq!(Cgroups::detect_at(v1.path()).usage("x"), None);
    }
}
