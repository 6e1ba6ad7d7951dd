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

/// The name of the group that is there to be frozen.
const KEPT: &str = "frozen";

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

    /// Keeps an empty group in `parent` frozen. With version 1 the kernel rewrites its own code
    /// whenever the machine's last frozen group is thawed, which takes longer than the thaw: with
    /// this one there is always another. Version 2 does no such thing.
    pub(crate) fn keep_one_frozen(&self, parent: &str) -> io::Result<()> {
        if self.layout == Layout::V2 {
            return Ok(());
        }
        let files = self.freezer(&format!("{parent}/{KEPT}"));
        match files.control.parent().map_or(Ok(()), fs::create_dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => files.write(files.frozen),
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
    use super::super::tests::Inmate;
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    /// A busy process in the machine's own hierarchy of one version, or nothing where it has none.
    fn busy(version: Layout) -> Option<Inmate> {
        let root = Path::new(crate::cgroup::ROOT);
        let root = match version {
            Layout::V2 if root.join("cgroup.controllers").is_file() => root.to_owned(),
            Layout::V2 => root.join("unified"),
            Layout::V1 | Layout::Hybrid => root.to_owned(),
        };
        let cgroups = Cgroups::detect_at(&root);
        let is_v2 = cgroups.layout == Layout::V2;
        let tree = if is_v2 { root } else { root.join("freezer") };
        if is_v2 != (version == Layout::V2) || !tree.join("cgroup.procs").is_file() {
            return None;
        }
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -t 20; while :; do :; done"]);
        Some(Inmate::new(cgroups, &tree, "", &mut command))
    }

    /// Ticks of processor time it has used.
    fn used(inmate: &Inmate) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", inmate.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    fn freezes_thaws_and_ends(version: Layout) {
        let Some(busy) = busy(version) else {
            eprintln!("this machine has no control groups of {version} with a freezer");
            return;
        };
        let (cgroups, group) = (&busy.cgroups, busy.group.as_str());
        assert!(cgroups.can_freeze(group) && !cgroups.is_frozen(group).unwrap());
        busy.until("it works", |busy| used(busy) > 0);
        cgroups.freeze(group).unwrap();
        busy.until("it is frozen", |busy| busy.cgroups.is_frozen(&busy.group).unwrap());
        let before = used(&busy);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(used(&busy), before);
        cgroups.thaw(group).unwrap();
        assert!(!cgroups.is_frozen(group).unwrap());
        busy.until("it works again", |busy| used(busy) > before);
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
    fn one_group_is_kept_frozen_where_that_makes_thaws_quicker() {
        let none =
            super::super::tests::tree(&[("cgroup.controllers", ""), ("g/cgroup.freeze", "")]);
        Cgroups::detect_at(none.path()).keep_one_frozen("/g").unwrap();
        assert!(!none.path().join("g/frozen").exists());
        let Some(busy) = busy(Layout::V1) else {
            eprintln!("this machine has no control groups of version 1 with a freezer");
            return;
        };
        // An earlier run of Updraft may have left it.
        for _ in 0..2 {
            busy.cgroups.keep_one_frozen(&busy.group).unwrap();
            assert!(busy.cgroups.is_frozen(&format!("{}/{KEPT}", busy.group)).unwrap());
            assert!(!busy.cgroups.is_frozen(&busy.group).unwrap(), "only that one");
        }
    }

    #[test]
    fn a_group_that_is_gone_needs_no_thaw_and_cannot_be_frozen() {
        let cgroups = Cgroups::detect();
        assert!(!cgroups.can_freeze("/updraft-none/none"));
        assert!(cgroups.freeze("/updraft-none/none").is_err());
        cgroups.thaw("/updraft-none/none").unwrap();
    }
}
