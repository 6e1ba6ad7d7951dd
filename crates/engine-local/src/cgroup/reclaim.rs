//! Putting the memory of a frozen group out to swap, where the machine has any.
//!
//! Running replicas may not swap: their limits count it and allow none. A frozen one touches
//! nothing, so swap is opened to it for the moment in which the kernel is asked to take its
//! memory, and closed again after. Without swap nothing is done: all that could be dropped then is
//! the program itself, which the next request would have to read from disk.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use super::{Cgroups, Layout};

/// Where the kernel lists swap, below a heading.
const SWAPS: &str = "/proc/swaps";

impl Cgroups {
    /// Whether the machine has swap, and a group that exists can be asked for its memory.
    pub(crate) fn can_reclaim(&self, group: &str) -> bool {
        let (ask, limit) = self.reclaim_files(group);
        has_swap(&fs::read_to_string(SWAPS).unwrap_or_default()) && ask.is_file() && limit.is_file()
    }

    /// The file that asks for memory, and the one that limits swap.
    fn reclaim_files(&self, group: &str) -> (std::path::PathBuf, std::path::PathBuf) {
        let group = group.trim_start_matches('/');
        match self.layout {
            Layout::V2 => {
                let folder = self.root.join(group);
                (folder.join("memory.reclaim"), folder.join("memory.swap.max"))
            }
            Layout::V1 | Layout::Hybrid => {
                let folder = self.root.join("memory").join(group);
                (folder.join("memory.force_empty"), folder.join("memory.memsw.limit_in_bytes"))
            }
        }
    }

    /// Asks the kernel to put out what memory a group has. Returns how many bytes it took.
    pub(crate) fn reclaim(&self, group: &str) -> io::Result<u64> {
        let used = || self.memory(group).unwrap_or(0);
        let before = used();
        let (ask, limit) = self.reclaim_files(group);
        let allowed = fs::read_to_string(&limit)?;
        let (open, wanted) = match self.layout {
            Layout::V2 => ("max", before.to_string()),
            Layout::V1 | Layout::Hybrid => ("-1", "0".to_owned()),
        };
        write(&limit, open)?;
        let asked = write(&ask, &wanted);
        // Whatever came of it: what runs again may not swap.
        write(&limit, allowed.trim())?;
        match asked {
            // The kernel says so when it took less than it was asked for.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(before.saturating_sub(used())),
        }
    }
}

fn has_swap(swaps: &str) -> bool {
    swaps.lines().count() > 1
}

/// Files of these names are the kernel's: they are never made here.
fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    #[test]
    fn a_machine_without_swap_is_told_from_one_with_it() {
        let heading = "Filename\tType\tSize\tUsed\tPriority\n";
        assert!(!has_swap(heading) && !has_swap(""));
        assert!(has_swap(&format!("{heading}/dev/zram0 partition 100 0 5\n")));
    }

    #[test]
    fn swap_is_open_only_while_memory_is_asked_for() {
        let v2 = tree(&[
            ("cgroup.controllers", ""),
            ("g/cpu.stat", "usage_usec 1\n"),
            ("g/memory.current", "5000"),
            ("g/memory.reclaim", ""),
            ("g/memory.swap.max", "0\n"),
        ]);
        let cgroups = Cgroups::detect_at(v2.path());
        assert_eq!(cgroups.reclaim("/g").unwrap(), 0);
        let read = |path: &str| fs::read_to_string(v2.path().join(path)).unwrap();
        assert_eq!(read("g/memory.reclaim"), "5000");
        // Written over `max` in an ordinary file: what counts is what was written last.
        assert!(read("g/memory.swap.max").starts_with('0'));
        let v1 = tree(&[
            ("memory/g/memory.force_empty", ""),
            ("memory/g/memory.memsw.limit_in_bytes", "268435456\n"),
        ]);
        let cgroups = Cgroups::detect_at(v1.path());
        cgroups.reclaim("/g").unwrap();
        let read = |path: &str| fs::read_to_string(v1.path().join(path)).unwrap();
        assert_eq!(read("memory/g/memory.force_empty"), "0");
        assert!(read("memory/g/memory.memsw.limit_in_bytes").starts_with("268435456"));
    }

    #[test]
    fn a_group_without_these_files_is_left_alone() {
        let v2 = tree(&[("cgroup.controllers", ""), ("g/memory.current", "5000")]);
        let cgroups = Cgroups::detect_at(v2.path());
        assert!(!cgroups.can_reclaim("/g"));
        assert!(cgroups.reclaim("/g").is_err());
        assert!(!v2.path().join("g/memory.reclaim").exists());
    }
}
