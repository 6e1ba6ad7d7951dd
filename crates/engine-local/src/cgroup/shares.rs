//! Shares of processor and disk: what groups that lie beside each other get when all want more
//! than there is.
//!
//! Everything of the functions lies in one group with the kernel's usual weight; below it each
//! tenant has a group of the usual weight too, and below that each replica. Updraft itself, whose
//! threads stand between every request and its function, gets a group of its own with a
//! higher weight beside it, unless somebody else has put Updraft in a group already.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Cgroups, Layout};

/// The weight that the kernel gives a group by itself, in version 2's numbers.
const USUAL_WEIGHT: u64 = 100;
/// The same in version 1's numbers.
const USUAL_SHARES: u64 = 1024;
/// The most that the disk's files take.
const DISK_WEIGHT_MAX: u64 = 1000;

/// Where the kernel tells which group a process is in.
const OWN_GROUPS: &str = "/proc/self/cgroup";

impl Cgroups {
    /// Puts this process into a group with a weight, where functions together have 100, in the
    /// trees that share out processor and disk.
    ///
    /// # Errors
    /// A sentence for people: why it stays where it is.
    pub(crate) fn favour_this_process(&self, group: &str, weight: u32) -> Result<(), String> {
        let own = fs::read_to_string(OWN_GROUPS).map_err(|error| error.to_string())?;
        self.favour(&own, group, weight)
    }

    fn favour(&self, own: &str, group: &str, weight: u32) -> Result<(), String> {
        let trees = self.sharing();
        for (tree, controller) in &trees {
            let path = own_path(own, controller).unwrap_or("/");
            // Its own from an earlier start is as good as none.
            if path != "/" && path.trim_start_matches('/') != group {
                return Err(format!("`{path}` is in charge of it, give that more weight there"));
            }
            if self.layout == Layout::V2 {
                turn_on(tree);
            }
        }
        for (tree, _) in trees {
            let folder = tree.join(group);
            let done = (|| {
                match fs::create_dir(&folder) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                    _ => Ok(()),
                }?;
                set_weights(&folder, weight);
                fs::write(folder.join("cgroup.procs"), std::process::id().to_string())
            })();
            done.map_err(|error| format!("`{}`: {error}", folder.display()))?;
        }
        Ok(())
    }

    /// Removes the group that this process, or one before it, was put in.
    pub(crate) fn unfavour(&self, group: &str) {
        for (tree, controller) in self.sharing() {
            let folder = tree.join(group);
            if !folder.is_dir() {
                continue;
            }
            let own = fs::read_to_string(OWN_GROUPS).unwrap_or_default();
            let is_in = own_path(&own, controller).is_some_and(|path| &path[1..] == group);
            if is_in
                && let Err(error) =
                    fs::write(tree.join("cgroup.procs"), std::process::id().to_string())
            {
                tracing::debug!(%error, "this process stays in its group");
            }
            if let Err(error) = fs::remove_dir(&folder) {
                tracing::debug!(%error, folder = %folder.display(), "a group stays");
            }
        }
    }

    /// The trees that share out processor and disk, with a name that the kernel lists them by.
    fn sharing(&self) -> Vec<(PathBuf, &'static str)> {
        match self.layout {
            Layout::V2 => vec![(self.root.clone(), "")],
            Layout::V1 | Layout::Hybrid => ["cpu", "blkio"]
                .into_iter()
                .map(|controller| (self.root.join(controller), controller))
                .filter(|(tree, _)| tree.is_dir())
                .collect(),
        }
    }

    /// Whether the disk that a folder lies on gives groups shares, in words for people.
    ///
    /// # Errors
    /// A sentence for people: why it does not.
    pub(crate) fn disk_shares(&self, folder: &Path) -> Result<String, String> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(folder).map_err(|error| error.to_string())?;
        let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
        self.disk_shares_of(Path::new("/sys"), major, minor)
    }

    fn disk_shares_of(&self, sys: &Path, major: u32, minor: u32) -> Result<String, String> {
        let number = format!("{major}:{minor}");
        let device = fs::canonicalize(sys.join("dev/block").join(&number))
            .map_err(|_| "it lies on no disk of this machine's own".to_owned())?;
        // A partition has the scheduler of its disk.
        let disk = if device.join("partition").exists() {
            device.parent().map_or_else(|| device.clone(), Path::to_owned)
        } else {
            device
        };
        let name = disk.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = fs::read_to_string(disk.join("dev")).unwrap_or(number);
        let cost = fs::read_to_string(self.root.join("io.cost.qos")).unwrap_or_default();
        let is_costed = cost.lines().any(|line| {
            line.split_whitespace().next() == Some(number.trim()) && line.contains("enable=1")
        });
        if self.layout == Layout::V2 && is_costed {
            return Ok(format!("`io.cost` on `{name}`"));
        }
        let schedulers = fs::read_to_string(disk.join("queue/scheduler")).unwrap_or_default();
        let chosen = schedulers
            .split_whitespace()
            .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
            .unwrap_or("none");
        if chosen == "bfq" {
            return Ok(format!("`bfq` on `{name}`"));
        }
        let how = if schedulers.contains("bfq") {
            format!("; `echo bfq > /sys/block/{name}/queue/scheduler` changes that")
        } else {
            String::new()
        };
        Err(format!("scheduler `{chosen}` of `{name}` knows no shares{how}"))
    }
}

/// The group of a process in one tree, from what the kernel tells of all.
fn own_path<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|one| one == controller).then_some(path)
    })
}

/// Lets groups below a tree have weights. Where the machine does not let go of them, the files are
/// missing below, and nothing is set.
fn turn_on(tree: &Path) {
    for controller in ["+cpu", "+io"] {
        if let Err(error) = fs::write(tree.join("cgroup.subtree_control"), controller) {
            tracing::debug!(%error, controller, "not shared out by weight");
        }
    }
}

/// Sets what of the weight's files the kernel has in this group.
fn set_weights(folder: &Path, weight: u32) {
    let weight = u64::from(weight);
    let disk = weight.clamp(1, DISK_WEIGHT_MAX).to_string();
    for (file, value) in [
        ("cpu.shares", (weight * USUAL_SHARES / USUAL_WEIGHT).max(2).to_string()),
        ("cpu.weight", weight.clamp(1, 10_000).to_string()),
        ("blkio.bfq.weight", disk.clone()),
        ("blkio.weight", weight.clamp(10, DISK_WEIGHT_MAX).to_string()),
        ("io.bfq.weight", disk),
        ("io.weight", weight.clamp(1, 10_000).to_string()),
    ] {
        let path = folder.join(file);
        if path.is_file()
            && let Err(error) = fs::write(&path, value)
        {
            tracing::debug!(%error, file, "a weight stays as it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    fn read(root: &tempfile::TempDir, path: &str) -> String {
        fs::read_to_string(root.path().join(path)).unwrap()
    }

    #[test]
    fn updraft_gets_a_group_with_more_weight_in_both_versions() {
        let pid = std::process::id().to_string();
        let v2 = tree(&[
            ("cgroup.controllers", "cpu io memory"),
            ("cgroup.subtree_control", ""),
            ("own/cpu.weight", "100"),
            ("own/io.weight", "default 100"),
        ]);
        Cgroups::detect_at(v2.path()).favour("0::/\n", "own", 1000).unwrap();
        assert_eq!(read(&v2, "own/cpu.weight"), "1000");
        assert_eq!(read(&v2, "own/io.weight"), "1000");
        assert_eq!(read(&v2, "own/cgroup.procs"), pid);
        assert_eq!(read(&v2, "cgroup.subtree_control"), "+io");
        let v1 = tree(&[
            ("memory/tasks", ""),
            ("cpu/own/cpu.shares", "1024"),
            ("blkio/own/blkio.bfq.weight", "100"),
        ]);
        let own = "9:memory:/somewhere\n7:blkio:/\n4:cpu,cpuacct:/own\n0::/\n";
        Cgroups::detect_at(v1.path()).favour(own, "own", 5000).unwrap();
        assert_eq!(read(&v1, "cpu/own/cpu.shares"), "51200");
        assert_eq!(read(&v1, "blkio/own/blkio.bfq.weight"), "1000");
        assert_eq!(read(&v1, "cpu/own/cgroup.procs"), pid);
        assert!(!v1.path().join("memory/own").exists());
    }

    /// Each kernel has some of these files, by its version and its disks' schedulers.
    #[test]
    fn each_file_of_a_weight_gets_it_in_its_own_numbers() {
        const FILES: [&str; 6] = [
            "cpu.shares",
            "cpu.weight",
            "blkio.weight",
            "blkio.bfq.weight",
            "io.weight",
            "io.bfq.weight",
        ];
        for (weight, values) in [
            (100, ["1024", "100", "100", "100", "100", "100"]),
            (250, ["2560", "250", "250", "250", "250", "250"]),
            // The most and the least that the kernel takes.
            (20_000, ["204800", "10000", "1000", "1000", "10000", "1000"]),
            (1, ["10", "1", "10", "1", "1", "1"]),
        ] {
            let all = tree(&FILES.map(|file| (file, "as it was, and longer than a number")));
            set_weights(all.path(), weight);
            for (file, value) in FILES.iter().zip(values) {
                assert_eq!(read(&all, file), value, "{file} of {weight}");
            }
            // One that the kernel does not have is not made.
            let one = tree(&[("io.weight", "default 100")]);
            set_weights(one.path(), weight);
            assert_eq!(fs::read_dir(one.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn updraft_stays_where_a_service_manager_put_it() {
        let v2 = tree(&[("cgroup.controllers", "cpu"), ("cgroup.subtree_control", "")]);
        let cgroups = Cgroups::detect_at(v2.path());
        let kept = cgroups.favour("0::/system.slice/updraft.service\n", "own", 1000).unwrap_err();
        assert!(kept.contains("/system.slice/updraft.service"), "{kept}");
        assert!(!v2.path().join("own").exists());
        assert_eq!(read(&v2, "cgroup.subtree_control"), "");
    }

    #[test]
    fn disks_that_give_shares_are_told_from_those_that_do_not() {
        let sys = tree(&[
            ("devices/vda/dev", "254:0\n"),
            ("devices/vda/queue/scheduler", "none [mq-deadline] kyber bfq\n"),
            ("devices/vda/vda1/partition", "1\n"),
            ("devices/vda/vda1/dev", "254:1\n"),
            ("devices/vdb/dev", "254:16\n"),
            ("devices/vdb/queue/scheduler", "none [bfq]\n"),
            ("devices/vdc/queue/scheduler", "[none]\n"),
        ]);
        fs::create_dir_all(sys.path().join("dev/block")).unwrap();
        for (number, disk) in
            [("254:0", "vda"), ("254:1", "vda/vda1"), ("254:16", "vdb"), ("254:32", "vdc")]
        {
            let target = sys.path().join("devices").join(disk);
            std::os::unix::fs::symlink(target, sys.path().join("dev/block").join(number)).unwrap();
        }
        let v1 = tree(&[("memory/tasks", "")]);
        let v1 = Cgroups::detect_at(v1.path());
        assert_eq!(v1.disk_shares_of(sys.path(), 254, 16), Ok("`bfq` on `vdb`".to_owned()));
        let told = v1.disk_shares_of(sys.path(), 254, 1).unwrap_err();
        assert!(told.contains("`mq-deadline` of `vda`") && told.contains("echo bfq"), "{told}");
        let told = v1.disk_shares_of(sys.path(), 254, 32).unwrap_err();
        assert!(told.contains("`none`") && !told.contains("echo"), "{told}");
        assert!(v1.disk_shares_of(sys.path(), 0, 40).unwrap_err().contains("no disk"));
        let costed = tree(&[
            ("cgroup.controllers", "io"),
            ("io.cost.qos", "254:0 enable=1 ctrl=auto\n254:16 enable=0\n"),
        ]);
        let v2 = Cgroups::detect_at(costed.path());
        assert_eq!(v2.disk_shares_of(sys.path(), 254, 1), Ok("`io.cost` on `vda`".to_owned()));
        assert!(v2.disk_shares_of(sys.path(), 254, 32).is_err());
    }
}
