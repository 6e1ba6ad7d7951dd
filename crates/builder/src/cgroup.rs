//! A control group for each build: memory and processes of everything the build starts.
//!
//! Both layouts of the kernel are known: one tree for all controllers (v2), and a tree for each
//! (v1, also where an empty v2 tree is mounted beside). Where neither can be written, as in some
//! containers, builds run without these two limits, and a warning says so once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::BuildLimits;

/// Time for the kernel to see that a group's last process is gone.
const EMPTY_LIMIT: Duration = Duration::from_secs(5);
/// Passes over a build's first processes; each pass that finds a new one is followed by another.
const PASSES_MAX: usize = 20;

/// Where groups for builds can be made.
#[derive(Debug, Clone)]
pub(crate) enum Cgroups {
    /// The one tree. `prefix` begins the names of this store's groups.
    Unified { tree: PathBuf, prefix: String },
    /// The trees of `memory` and `pids`, and those of what else can be weighed here.
    Split { memory: PathBuf, pids: PathBuf, weights: Vec<(Weight, PathBuf)>, prefix: String },
    /// None.
    Missing,
}

/// What builds get little of when functions want it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    Processor,
    Disk,
}

impl Weight {
    /// A twentieth of what everybody else gets, in the files that a kernel may have for it.
    const fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Processor => &[("cpu.shares", "51"), ("cpu.weight", "5")],
            Self::Disk => &[
                ("blkio.bfq.weight", "5"),
                ("blkio.weight", "10"),
                ("io.bfq.weight", "5"),
                ("io.weight", "5"),
            ],
        }
    }

    /// Sets the weight where the kernel has it; one without has nothing to share out.
    fn set(self, folder: &Path) {
        for (file, value) in self.files() {
            let path = folder.join(file);
            if path.is_file()
                && let Err(cause) = fs::write(&path, value)
            {
                tracing::debug!(%cause, file, "a weight stays as it is");
            }
        }
    }
}

impl Cgroups {
    /// Finds the layout of this machine. `prefix` tells this store's groups from others'.
    pub(crate) fn detect(prefix: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let found = Self::from_mounts(&mounts, prefix);
        match found.prepare() {
            Ok(()) => found,
            Err(cause) => {
                tracing::warn!(%cause, "builds run without limits on memory and processes");
                Self::Missing
            }
        }
    }

    fn from_mounts(mounts: &str, prefix: &str) -> Self {
        let (mut memory, mut pids, mut unified) = (None, None, None);
        let mut weights: Vec<(Weight, PathBuf)> = Vec::new();
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(place) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or_default(), right.nth(1));
            let has = |controller| options.is_some_and(|o| o.split(',').any(|o| o == controller));
            let place = || Some(PathBuf::from(place));
            match kind {
                "cgroup2" => unified = unified.or_else(place),
                "cgroup" if has("memory") => memory = memory.or_else(place),
                "cgroup" if has("pids") => pids = pids.or_else(place),
                _ => {}
            }
            for (weight, controller) in [(Weight::Processor, "cpu"), (Weight::Disk, "blkio")] {
                let is_known = weights.iter().any(|(known, _)| *known == weight);
                if kind == "cgroup" && has(controller) && !is_known {
                    weights.extend(place().map(|place| (weight, place)));
                }
            }
        }
        // One that shares its tree with a limit is in that group already.
        let limits = [memory.clone(), pids.clone()];
        weights.retain(|(_, place)| !limits.iter().flatten().any(|limit| limit == place));
        let prefix = prefix.to_owned();
        match (memory, pids, unified) {
            (Some(memory), Some(pids), _) => Self::Split { memory, pids, weights, prefix },
            (_, _, Some(tree)) => Self::Unified { tree, prefix },
            _ => Self::Missing,
        }
    }

    /// Turns the controllers on and clears what a killed process left.
    fn prepare(&self) -> io::Result<()> {
        for tree in self.trees() {
            for old in fs::read_dir(tree)?.flatten() {
                let name = old.file_name();
                let name = name.to_string_lossy();
                let ours = name.starts_with(self.prefix());
                if (ours || abandoned(&name))
                    && let Err(cause) = fs::remove_dir(old.path())
                {
                    // Something still runs in it; then it stays.
                    tracing::debug!(%cause, group = %old.path().display(), "group stays");
                }
            }
        }
        match self {
            Self::Missing => Err(io::Error::other("no control groups are mounted")),
            Self::Split { .. } => Ok(()),
            Self::Unified { tree, .. } => {
                let control = tree.join("cgroup.subtree_control");
                let enabled = fs::read_to_string(&control)?;
                let has = |name| enabled.split_whitespace().any(|word| word == name);
                for weighed in ["cpu", "io"] {
                    // Not every machine lets go of these.
                    if !has(weighed)
                        && let Err(cause) = fs::write(&control, format!("+{weighed}"))
                    {
                        tracing::debug!(%cause, weighed, "builds are not weighed");
                    }
                }
                if has("memory") && has("pids") {
                    return Ok(());
                }
                fs::write(control, "+memory +pids")
            }
        }
    }

    fn trees(&self) -> Vec<&Path> {
        match self {
            Self::Unified { tree, .. } => vec![tree],
            Self::Split { memory, pids, weights, .. } => {
                let weights = weights.iter().map(|(_, tree)| tree.as_path());
                [memory.as_path(), pids].into_iter().chain(weights).collect()
            }
            Self::Missing => Vec::new(),
        }
    }

    fn prefix(&self) -> &str {
        match self {
            Self::Unified { prefix, .. } | Self::Split { prefix, .. } => prefix,
            Self::Missing => "",
        }
    }

    /// Makes the group for one build; it goes when the value is dropped.
    pub(crate) fn group(&self, limits: &BuildLimits) -> io::Result<Group> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{number}", self.prefix(), std::process::id());
        let folders: Vec<_> = self.trees().iter().map(|tree| tree.join(&name)).collect();
        let group = Group { unified: matches!(self, Self::Unified { .. }), folders };
        for folder in &group.folders {
            fs::create_dir(folder)?;
        }
        let memory = limits.memory_bytes.to_string();
        let processes = limits.processes.to_string();
        match group.folders.as_slice() {
            [all] => {
                fs::write(all.join("memory.max"), memory)?;
                // Not every kernel has swap accounting; without swap there is nothing to limit.
                drop(fs::write(all.join("memory.swap.max"), "0"));
                drop(fs::write(all.join("memory.oom.group"), "1"));
                fs::write(all.join("pids.max"), processes)?;
            }
            [memory_folder, pids_folder, ..] => {
                fs::write(memory_folder.join("memory.limit_in_bytes"), &memory)?;
                drop(fs::write(memory_folder.join("memory.memsw.limit_in_bytes"), &memory));
                fs::write(pids_folder.join("pids.max"), processes)?;
            }
            _ => {}
        }
        for folder in &group.folders {
            for weight in [Weight::Processor, Weight::Disk] {
                weight.set(folder);
            }
        }
        Ok(group)
    }
}

/// The group of one build.
#[derive(Debug)]
pub(crate) struct Group {
    unified: bool,
    folders: Vec<PathBuf>,
}

impl Group {
    /// Puts the calling thread, and so every process it starts, into the group. Only v1 can;
    /// elsewhere this does nothing and [`adopt`](Self::adopt) does it all.
    pub(crate) fn enter(&self) -> io::Result<()> {
        if self.unified {
            return Ok(());
        }
        // Zero means the writing thread itself.
        self.folders.iter().try_for_each(|folder| fs::write(folder.join("tasks"), "0"))
    }

    /// Takes the calling thread out again.
    pub(crate) fn leave(&self) -> io::Result<()> {
        if self.unified {
            return Ok(());
        }
        let mut outside = self.folders.iter().filter_map(|folder| folder.parent());
        outside.try_for_each(|tree| fs::write(tree.join("tasks"), "0"))
    }

    /// Puts a process that was just started, and what it started meanwhile, into the group.
    pub(crate) fn adopt(&self, pid: u32) -> io::Result<()> {
        if !self.unified {
            return Ok(());
        }
        let mut inside = Vec::new();
        for _ in 0..PASSES_MAX {
            let family = family(pid);
            let new: Vec<u32> = family.into_iter().filter(|pid| !inside.contains(pid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for pid in new {
                for folder in &self.folders {
                    match fs::write(folder.join("cgroup.procs"), pid.to_string()) {
                        // It ended meanwhile.
                        Err(cause) if cause.raw_os_error() == Some(nix::libc::ESRCH) => {}
                        other => other?,
                    }
                }
                inside.push(pid);
            }
        }
        Ok(())
    }

    /// Whether the kernel killed a process of the group for want of memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let Some(folder) = self.folders.first() else { return false };
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        let killed = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        killed.is_some_and(|count| count.trim() != "0")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let start = Instant::now();
        for folder in &self.folders {
            while let Err(cause) = fs::remove_dir(folder) {
                let busy = cause.raw_os_error() == Some(nix::libc::EBUSY);
                if !busy || start.elapsed() > EMPTY_LIMIT {
                    tracing::warn!(%cause, folder = %folder.display(), "a build's group stays");
                    break;
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// Whether this is a group of some store's build whose process is no more.
fn abandoned(name: &str) -> bool {
    let mut parts = name.strip_prefix("updraft-build-").unwrap_or_default().split('-');
    let owner = parts.nth(1).and_then(|pid| pid.parse::<u32>().ok());
    owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).is_dir())
}

/// A process and all processes below it.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    all
}

#[cfg(test)]
mod tests;
