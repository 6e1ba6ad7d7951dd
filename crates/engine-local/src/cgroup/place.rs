//! Putting a container into its groups without waiting for the kernel.
//!
//! A runtime moves a process into its groups by the process's id. Before the kernel does that it
//! waits until all of its processors have come by (an RCU grace period), which takes longer than
//! everything else of a start together. A thread that moves *itself* is not waited for, and what
//! it starts is born where it is. So where groups hold threads (version 1), the thread that calls
//! the runtime goes into the groups first, and the runtime is told to leave groups alone.
//! Version 2 moves whole processes only: there the runtime does it, as it always did.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Cgroups, Layout};
use crate::bundle::{CpuShare, Limits};

/// Trees that a container stays out of: groups of `cpuset` take nobody before they are told which
/// processors they have, and `unified` is the one of version 2.
const LEFT_OUT: [&str; 2] = ["cpuset", "unified"];

/// The devices that may be used: null, zero, full, random, urandom, tty, console, and terminals.
/// Nothing else is in `/dev`, and nobody inside could make it.
const DEVICES: [&str; 9] = [
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// This thread is in the groups of a container; dropped, it is back where it was.
#[derive(Debug)]
pub(crate) struct Inside {
    back: Vec<PathBuf>,
}

impl Cgroups {
    /// Whether a thread can go into groups ahead of what it starts.
    pub(crate) fn can_place(&self) -> bool {
        self.layout != Layout::V2
    }

    /// The trees of version 1 that a container has a group in.
    fn trees(&self) -> io::Result<Vec<PathBuf>> {
        let mut trees = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let left_out = LEFT_OUT.iter().any(|name| entry.file_name() == *name);
            // Some controllers are links to a mount they share.
            if !left_out && entry.file_type()?.is_dir() && entry.path().join("tasks").is_file() {
                trees.push(entry.path());
            }
        }
        Ok(trees)
    }

    /// Makes a group in every tree and sets its limits. Once this has returned, whatever is in
    /// the group is held by all of them.
    ///
    /// # Errors
    /// A group cannot be made or does not take a limit; what was made stays.
    pub(crate) fn make(&self, group: &str, limits: &Limits) -> io::Result<()> {
        let group = group.trim_start_matches('/');
        for tree in self.trees()? {
            fs::create_dir_all(tree.join(group))?;
        }
        let set = |tree: &str, file: &str, value: &str| self.set(tree, group, file, value);
        let memory = limits.memory_bytes.to_string();
        set("memory", "memory.limit_in_bytes", &memory)?;
        if limits.swap_limit {
            // Memory and swap together: no more than memory alone.
            set("memory", "memory.memsw.limit_in_bytes", &memory)?;
        }
        self.limit_sockets(group, limits)?;
        set("pids", "pids.max", &limits.processes.to_string())?;
        if let Some(CpuShare { quota, period }) = limits.cpu() {
            set("cpu", "cpu.cfs_period_us", &period.to_string())?;
            set("cpu", "cpu.cfs_quota_us", &quota.to_string())?;
        }
        set("devices", "devices.deny", "a")?;
        DEVICES.iter().try_for_each(|device| set("devices", "devices.allow", device))
    }

    /// Sets the limit of what connections hold in the kernel, which no runtime sets any more.
    ///
    /// # Errors
    /// The group does not take it.
    pub(crate) fn limit_sockets(&self, group: &str, limits: &Limits) -> io::Result<()> {
        let Some(bytes) = limits.socket_bytes() else { return Ok(()) };
        let group = group.trim_start_matches('/');
        self.set("memory", group, "memory.kmem.tcp.limit_in_bytes", &bytes.to_string())
    }

    fn set(&self, tree: &str, group: &str, file: &str, value: &str) -> io::Result<()> {
        let path = self.root.join(tree).join(group).join(file);
        write(&path, value).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot set `{}`: {error}", path.display()))
        })
    }

    /// Moves this thread into a group that was made, and nobody else.
    ///
    /// # Errors
    /// The kernel refuses it somewhere; the thread is back where it was.
    pub(crate) fn enter(&self, group: &str) -> io::Result<Inside> {
        let group = group.trim_start_matches('/');
        let own = fs::read_to_string("/proc/thread-self/cgroup")?;
        let mut inside = Inside { back: Vec::new() };
        for tree in self.trees()? {
            let back = own_place(&own, &tree).unwrap_or_else(|| tree.clone());
            write(&tree.join(group).join("tasks"), THIS_THREAD)?;
            inside.back.push(back.join("tasks"));
        }
        Ok(inside)
    }
}

/// What `tasks` takes for whoever writes it.
const THIS_THREAD: &str = "0";

impl Drop for Inside {
    fn drop(&mut self) {
        for tasks in &self.back {
            if let Err(error) = write(tasks, THIS_THREAD) {
                tracing::warn!(%error, place = %tasks.display(), "a thread stays in a container's group");
            }
        }
    }
}

/// Where a thread is in a tree, from its own list: lines of number, controllers and path.
fn own_place(list: &str, tree: &Path) -> Option<PathBuf> {
    let name = tree.file_name()?.to_str()?;
    let path = list.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        // Mounts are named after their controllers, and those without one after their name.
        let is = controllers == name
            || controllers.strip_prefix("name=") == Some(name)
            || name.split(',').any(|name| controllers.split(',').any(|known| known == name));
        is.then_some(path)
    })?;
    Some(tree.join(path.trim_start_matches('/')))
}

/// Files of these names are the kernel's: they are never made here.
fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    fn limits() -> Limits {
        Limits {
            memory_bytes: 64 << 20,
            swap_limit: true,
            sockets_apart: true,
            cpu_millis: Some(250),
            processes: 12,
            tmp_bytes: 1,
            file_bytes: 1,
        }
    }

    #[test]
    fn every_limit_is_written_before_anybody_is_in_the_group() {
        let files = [
            "memory/tasks",
            "pids/tasks",
            "cpu/tasks",
            "devices/tasks",
            "freezer/tasks",
            "cpuset/tasks",
            "unified/cgroup.controllers",
            "memory/g/x/memory.limit_in_bytes",
            "memory/g/x/memory.memsw.limit_in_bytes",
            "memory/g/x/memory.kmem.tcp.limit_in_bytes",
            "pids/g/x/pids.max",
            "cpu/g/x/cpu.cfs_period_us",
            "cpu/g/x/cpu.cfs_quota_us",
            "devices/g/x/devices.deny",
            "devices/g/x/devices.allow",
        ];
        let v1 = tree(&files.map(|file| (file, "")));
        let cgroups = Cgroups::detect_at(v1.path());
        assert!(cgroups.can_place());
        cgroups.make("/g/x", &limits()).unwrap();
        for (file, value) in [
            ("memory/g/x/memory.limit_in_bytes", "67108864"),
            ("memory/g/x/memory.memsw.limit_in_bytes", "67108864"),
            ("memory/g/x/memory.kmem.tcp.limit_in_bytes", "16777216"),
            ("pids/g/x/pids.max", "12"),
            ("cpu/g/x/cpu.cfs_period_us", "20000"),
            ("cpu/g/x/cpu.cfs_quota_us", "5000"),
            ("devices/g/x/devices.deny", "a"),
        ] {
            assert_eq!(fs::read_to_string(v1.path().join(file)).unwrap(), value, "{file}");
        }
        assert!(v1.path().join("freezer/g/x").is_dir());
        assert!(!v1.path().join("cpuset/g").exists() && !v1.path().join("unified/g").exists());
    }

    #[test]
    fn a_limit_that_cannot_be_set_is_no_start() {
        let v1 = tree(&[("memory/tasks", ""), ("pids/tasks", ""), ("unified/x", "")]);
        let error = Cgroups::detect_at(v1.path()).make("/g", &limits()).unwrap_err();
        assert!(error.to_string().contains("memory.limit_in_bytes"), "{error}");
    }

    #[test]
    fn version_2_is_left_to_the_runtime() {
        let v2 = tree(&[("cgroup.controllers", "cpu memory pids")]);
        assert!(!Cgroups::detect_at(v2.path()).can_place());
    }

    #[test]
    fn a_thread_knows_where_it_was() {
        let list = "9:name=systemd:/a/b\n5:cpu,cpuacct:/c\n4:memory:/\n0::/u\n";
        let place = |tree: &str| own_place(list, &Path::new("/t").join(tree)).unwrap();
        assert_eq!(place("systemd"), Path::new("/t/systemd/a/b"));
        assert_eq!(place("cpu,cpuacct"), Path::new("/t/cpu,cpuacct/c"));
        assert_eq!(place("memory"), Path::new("/t/memory/"));
        assert_eq!(own_place(list, Path::new("/t/pids")), None);
    }

    /// On the machine's own groups, where it has any of version 1.
    #[test]
    fn what_a_thread_inside_starts_is_born_there_and_the_thread_comes_back() {
        let cgroups = Cgroups::detect();
        if !cgroups.can_place() {
            eprintln!("this machine has control groups of version 2 only");
            return;
        }
        let group = format!("updraft-place-test-{}", std::process::id());
        cgroups.make(&group, &limits()).unwrap();
        let own = || fs::read_to_string("/proc/thread-self/cgroup").unwrap();
        let before = own();
        let inside = cgroups.enter(&group).unwrap();
        let child = std::process::Command::new("cat").arg("/proc/self/cgroup").output().unwrap();
        drop(inside);
        assert_eq!(own(), before);
        let born = String::from_utf8(child.stdout).unwrap();
        for controller in ["memory", "pids", "cpu", "devices", "freezer"] {
            let there = |line: &&str| line.contains(controller) && line.ends_with(&group);
            assert!(born.lines().any(|line| there(&line)), "{controller}: {born}");
        }
        cgroups.remove(&group).unwrap();
    }
}
