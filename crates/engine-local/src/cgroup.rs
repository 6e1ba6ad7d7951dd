//! Control groups: which layout this machine has, and what they tell about a replica.
//!
//! The OCI runtime makes a replica's groups and sets the limits; this reads them, freezes and
//! thaws (`freezer`), weighs Updraft itself (`shares`), and clears away what is left of an instance.

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
