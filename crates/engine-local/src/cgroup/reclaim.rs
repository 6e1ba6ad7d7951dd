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
    use super::super::tests::{Inmate, tree};
    use super::*;
    use std::io::Read;
    use std::process::{Command, Stdio};

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

    /// Compressed memory of this machine as swap, for one test. Its label tells whose it is.
    struct Swap(String);

    const LABEL: &str = "updraft-";

    fn run(program: &str, args: &[&str]) -> Option<String> {
        let output = Command::new(program).args(args).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    impl Swap {
        /// Nothing where the kernel makes no such devices.
        fn new() -> Option<Self> {
            Self::clear_leftovers();
            let number = fs::read_to_string("/sys/class/zram-control/hot_add").ok()?;
            let swap = Self(format!("zram{}", number.trim()));
            let (name, device) = (swap.0.clone(), swap.device());
            let about = Path::new("/sys/block").join(name);
            fs::write(about.join("disksize"), "128M").unwrap();
            if !Path::new(&device).exists() {
                let numbers = fs::read_to_string(about.join("dev")).unwrap();
                let (major, minor) = numbers.trim().split_once(':').unwrap();
                run("mknod", &[&device, "b", major, minor]).unwrap();
            }
            let label = format!("{LABEL}{}", std::process::id());
            run("mkswap", &["--label", &label, &device]).unwrap();
            run("swapon", &[&device]).unwrap();
            Some(swap)
        }

        fn device(&self) -> String {
            format!("/dev/{}", self.0)
        }

        /// Takes away those of tests that were killed.
        fn clear_leftovers() {
            let swaps = fs::read_to_string(SWAPS).unwrap_or_default();
            let devices = swaps.lines().filter_map(|line| line.split_whitespace().next());
            for name in devices.filter_map(|device| device.strip_prefix("/dev/zram")) {
                let swap = Self(format!("zram{name}"));
                let told = run("swaplabel", &[&swap.device()]).unwrap_or_default();
                let owner =
                    told.split(LABEL).nth(1).and_then(|told| told.split_whitespace().next());
                if owner.is_none_or(|owner| Path::new("/proc").join(owner).exists()) {
                    std::mem::forget(swap);
                }
            }
        }
    }

    impl Drop for Swap {
        fn drop(&mut self) {
            run("swapoff", &[&self.device()]);
            let number = self.0.trim_start_matches("zram");
            fs::write(Path::new("/sys/block").join(&self.0).join("reset"), "1").unwrap();
            fs::write("/sys/class/zram-control/hot_remove", number).unwrap();
        }
    }

    /// How much of a process is in memory and in swap, in KiB.
    fn sizes(pid: u32) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let of = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        (of("VmRSS:"), of("VmSwap:"))
    }

    /// On the machine's own groups, with swap of its own.
    #[test]
    fn memory_of_a_frozen_process_really_goes_to_swap_and_comes_back() {
        const HELD: u64 = 32 << 10;
        let cgroups = Cgroups::detect();
        let (tree, limit) = match cgroups.layout {
            Layout::V2 => (cgroups.root.clone(), "memory.swap.max"),
            Layout::V1 | Layout::Hybrid => {
                (cgroups.root.join("memory"), "memory.memsw.limit_in_bytes")
            }
        };
        let Some(_swap) = Swap::new() else {
            eprintln!("this kernel makes no zram devices, so there is no swap to try it with");
            return;
        };
        // Asked for the first time it takes memory, for the second time it counts what it has.
        let work = "$| = 1; <STDIN>; my $held = 'x' x $ARGV[0]; print 'has'; <STDIN>; \
                    print $held =~ tr/x//; <STDIN>";
        let mut command = Command::new("perl");
        let bytes = (HELD << 10).to_string();
        command.args(["-e", work, &bytes]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut inmate = Inmate::new(cgroups.clone(), &tree, "", &mut command);
        let group = inmate.group.clone();
        if !tree.join(&group).join(limit).exists() {
            eprintln!("this kernel does not count the swap of groups");
            return;
        }
        assert!(cgroups.can_reclaim(&group));
        let mut said = [0; 3];
        let mut input = inmate.child.stdin.take().unwrap();
        let mut output = inmate.child.stdout.take().unwrap();
        input.write_all(b"\n").unwrap();
        output.read_exact(&mut said).unwrap();
        let pid = inmate.child.id();
        assert!(sizes(pid).0 > HELD, "{:?}", sizes(pid));
        let allowed = fs::read_to_string(tree.join(&group).join(limit)).unwrap();
        let taken = cgroups.reclaim(&group).unwrap();
        assert!(taken > HELD << 9, "{taken} bytes");
        assert!(sizes(pid).1 > HELD / 2, "{:?}", sizes(pid));
        assert_eq!(fs::read_to_string(tree.join(&group).join(limit)).unwrap(), allowed);
        input.write_all(b"\n").unwrap();
        let mut counted = vec![0; bytes.len()];
        output.read_exact(&mut counted).unwrap();
        assert_eq!(counted, bytes.as_bytes());
        assert!(sizes(pid).0 > HELD, "{:?}", sizes(pid));
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
