//! Control groups: which layout this machine has, and what they tell about a replica.
//!
//! The OCI runtime makes a replica's groups and sets the limits; this reads them, freezes and
//! thaws (`freezer`), weighs Updraft itself (`shares`), refuses a machine that cannot limit
//! (`controllers`), and clears away what is left of an instance.

mod controllers;
mod freezer;
mod place;
mod reclaim;
mod shares;
mod usage;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::options::OpenError;
use crate::record::folder_entries;
pub(crate) use place::Inside;

const ROOT: &str = "/sys/fs/cgroup";

/// How control groups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One hierarchy for everything.
    V2,
    /// One hierarchy per controller.
    V1,
    /// Version 1 for the controllers, and version 2 beside it without any.
    Hybrid,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "v2",
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
        })
    }
}

/// What a machine's control groups can do.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    root: PathBuf,
    pub(crate) layout: Layout,
    /// Whether memory limits can include swap.
    pub(crate) swap_limit: bool,
    /// Whether what connections hold in the kernel is counted beside memory, with a limit of its
    /// own: version 1 does, and without that limit lets one group take what all have together.
    pub(crate) sockets_apart: bool,
}

impl Cgroups {
    pub(crate) fn detect() -> Self {
        Self::detect_at(Path::new(ROOT))
    }

    pub(crate) fn detect_at(root: &Path) -> Self {
        let is = |path: &str| root.join(path).exists();
        let layout = if is("cgroup.controllers") {
            Layout::V2
        } else if is("unified/cgroup.controllers") {
            Layout::Hybrid
        } else {
            Layout::V1
        };
        let swap_limit = layout == Layout::V2 || is("memory/memory.memsw.limit_in_bytes");
        let sockets_apart = layout != Layout::V2 && is("memory/memory.kmem.tcp.limit_in_bytes");
        Self { root: root.to_owned(), layout, swap_limit, sockets_apart }
    }

    /// How often the kernel killed a process of the group for want of memory.
    pub(crate) fn memory_kills(&self, group: &str) -> u64 {
        let group = group.trim_start_matches('/');
        let path = match self.layout {
            Layout::V2 => self.root.join(group).join("memory.events"),
            Layout::V1 | Layout::Hybrid => {
                self.root.join("memory").join(group).join("memory.oom_control")
            }
        };
        let text = fs::read_to_string(path).unwrap_or_default();
        let number = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        number.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
    }

    /// Every place where a group of that name can be.
    fn places(&self, group: &str) -> Vec<PathBuf> {
        // An absolute path would replace the root it is joined to.
        let group = group.trim_start_matches('/');
        match self.layout {
            Layout::V2 => vec![self.root.join(group)],
            Layout::V1 | Layout::Hybrid => {
                let mounts = fs::read_dir(&self.root).into_iter().flatten().flatten();
                mounts
                    // Some controllers are links to a mount they share.
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path().join(group))
                    .collect()
            }
        }
    }

    /// The names of the groups below a group, in whichever tree.
    pub(crate) fn children(&self, group: &str) -> BTreeSet<String> {
        let entries = self.places(group).into_iter().flat_map(fs::read_dir).flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// Kills every process in the group and below it, frozen ones included. Returns whether there
    /// was one.
    pub(crate) fn kill_all(&self, group: &str) -> bool {
        let mut found = false;
        for place in self.places(group) {
            walk(&place, &mut |folder| {
                let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                // A process that this one cannot name is listed as 0, which `kill` takes for us all.
                // Updraft itself is listed while a thread of it is inside (`place`).
                let own = i32::try_from(std::process::id()).unwrap_or(1);
                let pids = text.lines().filter_map(|line| line.parse().ok());
                for pid in pids.filter(|pid| *pid > 1 && *pid != own) {
                    found = true;
                    // One that ended meanwhile is what is wanted.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                // After the signal: they end without doing anything first.
                freezer::thaw_folder(folder);
            });
        }
        found
    }

    /// Removes the group and those below it, once they are empty.
    pub(crate) fn remove(&self, group: &str) -> Result<(), OpenError> {
        for place in self.places(group) {
            let mut folders = Vec::new();
            walk(&place, &mut |folder| folders.push(folder.to_owned()));
            for folder in folders.iter().rev() {
                match fs::remove_dir(folder) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(OpenError::file("remove", folder)(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Visits a folder and those below it, upper ones first.
fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    if !folder.is_dir() {
        return;
    }
    visit(folder);
    for child in folder_entries(folder).unwrap_or_default() {
        walk(&child, visit);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    /// How the names of groups of tests begin; the process that made them follows.
    const NAME: &str = "updraft-cgroup-test-";

    /// A process in a group of its own in the tree at `tree`; both go away with it, whatever
    /// becomes of the test.
    pub(crate) struct Inmate {
        pub(crate) cgroups: Cgroups,
        pub(crate) child: Child,
        pub(crate) group: String,
        /// The name without what lies below it.
        top: String,
    }

    impl Inmate {
        pub(crate) fn new(
            cgroups: Cgroups,
            tree: &Path,
            below: &str,
            command: &mut Command,
        ) -> Self {
            for entry in fs::read_dir(tree).unwrap().flatten() {
                let name = entry.file_name().into_string().unwrap_or_default();
                let owner = name.strip_prefix(NAME);
                if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
                    // Left by a test that was killed; the next one tries again when it must.
                    cgroups.kill_all(&name);
                    drop(cgroups.remove(&name));
                }
            }
            let top = format!("{NAME}{}", std::process::id());
            let group = format!("{top}{below}");
            fs::create_dir_all(tree.join(&group)).unwrap();
            let child = command.spawn().unwrap();
            fs::write(tree.join(&group).join("cgroup.procs"), child.id().to_string()).unwrap();
            Self { cgroups, child, group, top }
        }

        pub(crate) fn until(&self, what: &str, check: impl Fn(&Self) -> bool) {
            let begin = Instant::now();
            while !check(self) {
                assert!(begin.elapsed() < Duration::from_mins(1), "waited in vain until {what}");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    impl Drop for Inmate {
        fn drop(&mut self) {
            self.cgroups.kill_all(&self.top);
            self.child.wait().unwrap();
            self.cgroups.remove(&self.top).unwrap();
        }
    }

    /// The machine as one of version 2 alone, for this thread: whatever its controllers are bound
    /// to, the freezer and the rest of version 2 itself are there.
    #[test]
    fn a_machine_of_version_2_alone_is_found_and_used() {
        let alone = std::thread::spawn(|| {
            use nix::mount::{MsFlags, mount};
            use nix::sched::{CloneFlags, unshare};
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            let (none, root) = (None::<&str>, Path::new(ROOT));
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("none"), root, Some("cgroup2"), MsFlags::empty(), none).unwrap();
            let cgroups = Cgroups::detect();
            assert_eq!(cgroups.layout, Layout::V2);
            // Where version 1 has them, version 2 has not, and that is told.
            let there = fs::read_to_string(root.join("cgroup.controllers")).unwrap();
            let has = |name: &str| there.split_whitespace().any(|one| one == name);
            let checked = cgroups.check();
            for name in ["cpu", "memory", "pids"].into_iter().filter(|name| !has(name)) {
                assert!(checked.as_ref().is_err_and(|told| told.contains(name)), "{checked:?}");
            }
            assert!(!cgroups.can_place(), "the runtime moves containers there");
            let work = "ulimit -t 60; while :; do :; done";
            let mut command = Command::new("sh");
            command.args(["-c", work]);
            let inmate = Inmate::new(cgroups.clone(), root, "/tenant-1/replica", &mut command);
            let group = inmate.group.as_str();
            assert_eq!(cgroups.children(&inmate.top), BTreeSet::from(["tenant-1".to_owned()]));
            assert!(cgroups.can_freeze(group) && !cgroups.is_frozen(group).unwrap());
            assert_eq!(cgroups.memory_kills(group), 0);
            cgroups.freeze(group).unwrap();
            inmate.until("it is frozen", |one| one.cgroups.is_frozen(&one.group).unwrap());
            cgroups.thaw(group).unwrap();
            inmate.until("it is thawed", |one| !one.cgroups.is_frozen(&one.group).unwrap());
            // What ends it now must end it although it is frozen, and be heard of from above.
            cgroups.freeze(group).unwrap();
            inmate.until("it is frozen again", |one| one.cgroups.is_frozen(&one.group).unwrap());
            assert!(cgroups.kill_all(&inmate.top));
            inmate.until("nobody is in the group", |one| {
                let events = root.join(&one.top).join("cgroup.events");
                fs::read_to_string(events).unwrap().contains("populated 0")
            });
        });
        alone.join().unwrap();
    }

    pub(crate) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn each_layout_is_told_from_its_files() {
        let v2 = tree(&[("cgroup.controllers", "cpu memory pids")]);
        assert_eq!(Cgroups::detect_at(v2.path()).layout, Layout::V2);
        assert!(Cgroups::detect_at(v2.path()).swap_limit);
        let hybrid = tree(&[("unified/cgroup.controllers", ""), ("memory/tasks", "")]);
        assert_eq!(Cgroups::detect_at(hybrid.path()).layout, Layout::Hybrid);
        assert!(!Cgroups::detect_at(hybrid.path()).swap_limit);
        let v1 = tree(&[("memory/memory.memsw.limit_in_bytes", "1")]);
        assert_eq!(Cgroups::detect_at(v1.path()).layout, Layout::V1);
        assert!(Cgroups::detect_at(v1.path()).swap_limit);
    }

    #[test]
    fn memory_kills_are_read_from_both_versions() {
        let v2 = tree(&[
            ("cgroup.controllers", ""),
            ("updraft-1/x/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
        ]);
        assert_eq!(Cgroups::detect_at(v2.path()).memory_kills("/updraft-1/x"), 2);
        let v1 = tree(&[(
            "memory/updraft-1/x/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
        )]);
        assert_eq!(Cgroups::detect_at(v1.path()).memory_kills("/updraft-1/x"), 1);
        assert_eq!(Cgroups::detect_at(v1.path()).memory_kills("/updraft-1/none"), 0);
    }
}
