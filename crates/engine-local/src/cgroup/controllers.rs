//! Whether the kernel has, and lets go of, what holds functions to their limits: without that one
//! function takes the machine, so an engine does not open.
//!
//! Version 1 has a hierarchy for each controller. Version 2 hands controllers down: a group can
//! limit only by those that the one above it lists in `cgroup.subtree_control`, and only a group
//! without processes of its own, or the machine's topmost one, can list any.

use std::fs;

use super::{Cgroups, Layout};

/// Processor, memory and number of processes. Others make functions better neighbours, and are
/// told of when they are missing.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

impl Cgroups {
    /// Makes sure that groups can be given limits, turning on what is not.
    ///
    /// # Errors
    /// A sentence for people: what is missing, and what to do.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.layout {
            Layout::V2 => self.check_version_2(),
            Layout::V1 | Layout::Hybrid => self.check_version_1(),
        }
    }

    fn check_version_1(&self) -> Result<(), String> {
        let is_there = |controller: &str| self.root.join(controller).join("tasks").exists();
        let missing: Vec<_> = NEEDED.into_iter().filter(|one| !is_there(one)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{} not mounted below `{}`; mount them there, and boot with `cgroup_enable=memory` where the kernel leaves memory out",
            listed(&missing),
            self.root.display()
        ))
    }

    fn check_version_2(&self) -> Result<(), String> {
        let words = |file: &str| {
            let text = fs::read_to_string(self.root.join(file)).unwrap_or_default();
            text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let lacks = |file: &str| -> Vec<&str> {
            let there = words(file);
            NEEDED.into_iter().filter(|one| !there.iter().any(|word| word == one)).collect()
        };
        let root = self.root.display();
        let missing = lacks("cgroup.controllers");
        if !missing.is_empty() {
            return Err(format!(
                "{} not available in `{root}`; boot with `cgroup_enable=memory` where the kernel leaves memory out, do not mount version 1 beside version 2, and let whoever started this container or service delegate them (systemd: `Delegate=yes`)",
                listed(&missing)
            ));
        }
        const ON: &str = "cgroup.subtree_control";
        for controller in lacks(ON) {
            // One at a time: which one was refused is worth knowing.
            fs::write(self.root.join(ON), format!("+{controller}")).map_err(|error| {
                format!(
                    "`{controller}` cannot be turned on for the groups in `{root}`: {error}; start Updraft outside of other containers, or in one whose control groups are its own and whose processes lie in a group below the topmost"
                )
            })?;
        }
        Ok(())
    }
}

/// Names for the beginning of a sentence that goes on with a participle.
fn listed(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    format!("{} {}", quoted.join(", "), if names.len() == 1 { "is" } else { "are" })
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    fn check(files: &[(&str, &str)]) -> Result<(), String> {
        Cgroups::detect_at(tree(files).path()).check()
    }

    #[test]
    fn version_2_without_what_limits_functions_is_refused_with_what_to_do() {
        let told =
            check(&[("cgroup.controllers", "cpuset io cpu\n"), ("cgroup.subtree_control", "")]);
        let told = told.unwrap_err();
        assert!(told.starts_with("`memory`, `pids` are not available in `"), "{told}");
        assert!(told.contains("cgroup_enable=memory") && told.contains("Delegate=yes"), "{told}");
    }

    #[test]
    fn version_2_that_does_not_hand_controllers_down_is_told_to() {
        let all = "cpuset cpu io memory pids\n";
        let on = tree(&[("cgroup.controllers", all), ("cgroup.subtree_control", "cpu memory\n")]);
        Cgroups::detect_at(on.path()).check().unwrap();
        let written = fs::read_to_string(on.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(written, "+pids", "and nothing that is on already");
        check(&[("cgroup.controllers", all), ("cgroup.subtree_control", "cpu memory pids")])
            .unwrap();
        // A folder of that name takes no words, as the kernel's file takes none where processes
        // are in the group.
        let told = check(&[("cgroup.controllers", all), ("cgroup.subtree_control/x", "")]);
        let told = told.unwrap_err();
        assert!(told.contains("`cpu` cannot be turned on"), "{told}");
    }

    #[test]
    fn version_1_without_a_hierarchy_is_refused() {
        check(&[("cpu/tasks", ""), ("memory/tasks", ""), ("pids/tasks", "")]).unwrap();
        let told = check(&[("cpu/tasks", ""), ("pids/tasks", "")]).unwrap_err();
        assert!(told.starts_with("`memory` is not mounted below `"), "{told}");
        assert!(check(&[]).unwrap_err().starts_with("`cpu`, `memory`, `pids` are not mounted"));
    }
}
