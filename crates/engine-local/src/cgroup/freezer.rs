//! The cgroup freezer, in both of its versions: processes of a group keep their memory and get no
//! processor until the group is thawed.
//!
//! Version 1 is a controller with a hierarchy of its own (`freezer.state`: written `FROZEN` or
//! `THAWED`, read `FREEZING` on the way), version 2 is part of every group (`cgroup.freeze`, and
//! `frozen` in `cgroup.events`). A signal that ends a frozen process of version 1 takes effect
//! when it is thawed, so whoever ends a replica thaws it as well.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Cgroups, Layout};

/// The two files of one group's freezer.
struct Files {
    control: PathBuf,
    frozen: &'static str,
    thawed: &'static str,
}

impl Files {
    fn in_version_1(group: &Path) -> Self {
        Self { control: group.join("freezer.state"), frozen: "FROZEN", thawed: "THAWED" }
    }

    fn in_version_2(group: &Path) -> Self {
        Self { control: group.join("cgroup.freeze"), frozen: "1", thawed: "0" }
    }

    /// Files of these names are the kernel's: they are never made here.
    fn write(&self, word: &str) -> io::Result<()> {
        OpenOptions::new().write(true).open(&self.control)?.write_all(word.as_bytes())
    }
}

impl Cgroups {
    fn freezer(&self, group: &str) -> Files {
        let group = group.trim_start_matches('/');
        match self.layout {
            Layout::V2 => Files::in_version_2(&self.root.join(group)),
            Layout::V1 | Layout::Hybrid => {
                Files::in_version_1(&self.root.join("freezer").join(group))
            }
        }
    }

    /// Whether a group that exists can be frozen.
    pub(crate) fn can_freeze(&self, group: &str) -> bool {
        self.freezer(group).control.is_file()
    }

    /// Asks for the processes of a group to be frozen, which takes the kernel a moment.
    pub(crate) fn freeze(&self, group: &str) -> io::Result<()> {
        let files = self.freezer(group);
        files.write(files.frozen)
    }

    /// Whether every process of a group is frozen.
    pub(crate) fn is_frozen(&self, group: &str) -> io::Result<bool> {
        let files = self.freezer(group);
        match self.layout {
            Layout::V2 => {
                let events = fs::read_to_string(files.control.with_file_name("cgroup.events"))?;
                Ok(events.lines().any(|line| line == "frozen 1"))
            }
            Layout::V1 | Layout::Hybrid => {
                Ok(fs::read_to_string(&files.control)?.trim() == files.frozen)
            }
        }
    }

    /// Lets the processes of a group go on. One that is not frozen, or gone, needs nothing.
    pub(crate) fn thaw(&self, group: &str) -> io::Result<()> {
        let files = self.freezer(group);
        match files.write(files.thawed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// Thaws one folder of whatever hierarchy, so that its processes can end.
pub(super) fn thaw_folder(folder: &Path) {
    for files in [Files::in_version_1(folder), Files::in_version_2(folder)] {
        // Most hierarchies have neither file.
        drop(files.write(files.thawed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    const NAME: &str = "updraft-freezer-test-";

    /// Takes away the groups of test processes that were killed.
    fn clear_leftovers(cgroups: &Cgroups) {
        let folder = if cgroups.layout == Layout::V2 { "." } else { "freezer" };
        for entry in fs::read_dir(cgroups.root.join(folder)).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let owner = name.strip_prefix(NAME);
            if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
                cgroups.kill_all(&name);
                // The next test tries again when its processes are still ending.
                drop(cgroups.remove(&name));
            }
        }
    }

    /// A process in a group of its own; both go away with it, whatever becomes of the test.
    struct Busy {
        cgroups: Cgroups,
        child: Child,
        group: String,
    }

    impl Busy {
        /// In the machine's own hierarchy of one version, or nothing where it has none.
        fn new(version: Layout) -> Option<Self> {
            let root = Path::new(crate::cgroup::ROOT);
            let root = match version {
                Layout::V2 if root.join("cgroup.controllers").is_file() => root.to_owned(),
                Layout::V2 => root.join("unified"),
                Layout::V1 | Layout::Hybrid => root.to_owned(),
            };
            let cgroups = Cgroups::detect_at(&root);
            let is_v2 = cgroups.layout == Layout::V2;
            if is_v2 != (version == Layout::V2) {
                return None;
            }
            clear_leftovers(&cgroups);
            let group = format!("{NAME}{}", std::process::id());
            let folder = if is_v2 { root.join(&group) } else { root.join("freezer").join(&group) };
            fs::create_dir(&folder).ok()?;
            let work = "ulimit -t 20; while :; do :; done";
            let child = Command::new("sh").args(["-c", work]).spawn().unwrap();
            fs::write(folder.join("cgroup.procs"), child.id().to_string()).unwrap();
            Some(Self { cgroups, child, group })
        }

        /// Ticks of processor time it has used.
        fn used(&self) -> u64 {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
            let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        }

        fn until(&self, what: &str, check: impl Fn(&Self) -> bool) {
            let begin = Instant::now();
            while !check(self) {
                assert!(begin.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            self.cgroups.kill_all(&self.group);
            self.child.wait().unwrap();
            self.cgroups.remove(&self.group).unwrap();
        }
    }

    fn freezes_thaws_and_ends(version: Layout) {
        let Some(busy) = Busy::new(version) else {
            eprintln!("this machine has no control groups of {version} with a freezer");
            return;
        };
        let (cgroups, group) = (&busy.cgroups, busy.group.as_str());
        assert!(cgroups.can_freeze(group) && !cgroups.is_frozen(group).unwrap());
        busy.until("it works", |busy| busy.used() > 0);
        cgroups.freeze(group).unwrap();
        busy.until("it is frozen", |busy| busy.cgroups.is_frozen(&busy.group).unwrap());
        let before = busy.used();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(busy.used(), before);
        cgroups.thaw(group).unwrap();
        assert!(!cgroups.is_frozen(group).unwrap());
        busy.until("it works again", |busy| busy.used() > before);
        // Frozen once more: what is dropped now must end all the same.
        cgroups.freeze(group).unwrap();
        busy.until("it is frozen again", |busy| busy.cgroups.is_frozen(&busy.group).unwrap());
    }

    #[test]
    fn the_freezer_of_version_1_stops_and_lets_go() {
        freezes_thaws_and_ends(Layout::V1);
    }

    #[test]
    fn the_freezer_of_version_2_stops_and_lets_go() {
        freezes_thaws_and_ends(Layout::V2);
    }

    #[test]
    fn a_group_that_is_gone_needs_no_thaw_and_cannot_be_frozen() {
        let cgroups = Cgroups::detect();
        assert!(!cgroups.can_freeze("/updraft-none/none"));
        assert!(cgroups.freeze("/updraft-none/none").is_err());
        cgroups.thaw("/updraft-none/none").unwrap();
    }
}
