//! Which control group a replica is in: one below its tenant's.
//!
//! The kernel shares processor and disk out among groups that lie beside each other, so what
//! lies below a tenant's group shares what the tenant gets: whoever runs more replicas gets no more
//! than another. Replicas of Updrafts that knew no such groups lie beside the tenants' until
//! they end.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cgroup::Cgroups;
use crate::options::LocalEngineOptions;
use crate::tenants::IdRange;

/// How the names of tenants' groups begin; the first of the tenant's users follows.
const TENANT: &str = "tenant-";

/// The groups of an instance's replicas.
#[derive(Debug)]
pub(crate) struct Groups {
    instance: String,
    /// Replicas by the group of their tenant. Held while an empty group is removed, so that none
    /// goes that a start counts on.
    placed: Mutex<BTreeMap<String, String>>,
}

impl Groups {
    /// Finds the replicas that are in groups of tenants.
    pub(crate) fn open(options: &LocalEngineOptions, cgroups: &Cgroups) -> Self {
        let instance = options.cgroup();
        let mut placed = BTreeMap::new();
        for tenant in tenants(cgroups, &instance) {
            for replica in cgroups.children(&format!("{instance}/{tenant}")) {
                placed.insert(replica, tenant.clone());
            }
        }
        Self { instance, placed: Mutex::new(placed) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group of a replica, as the runtime wants it named.
    pub(crate) fn of(&self, replica: &str) -> String {
        match self.lock().get(replica) {
            Some(tenant) => format!("/{}/{tenant}/{replica}", self.instance),
            None => format!("/{}/{replica}", self.instance),
        }
    }

    /// Says where a replica is to be started, and that its tenant's group is needed.
    pub(crate) fn place(&self, replica: &str, users: IdRange) -> String {
        let tenant = format!("{TENANT}{}", users.first);
        self.lock().insert(replica.to_owned(), tenant);
        self.of(replica)
    }

    /// Says that a replica is gone.
    pub(crate) fn leave(&self, replica: &str) {
        self.lock().remove(replica);
    }

    /// Removes the groups of tenants that have no replica. Not at once when the last one goes: the
    /// next start would have to make them again.
    pub(crate) fn sweep(&self, cgroups: &Cgroups) {
        let placed = self.lock();
        for tenant in tenants(cgroups, &self.instance) {
            if placed.values().any(|needed| *needed == tenant) {
                continue;
            }
            if let Err(error) = cgroups.remove(&format!("{}/{tenant}", self.instance)) {
                tracing::debug!(tenant, %error, "an empty group of a tenant stays for now");
            }
        }
    }
}

fn tenants(cgroups: &Cgroups, instance: &str) -> impl Iterator<Item = String> {
    cgroups.children(instance).into_iter().filter(|name| name.starts_with(TENANT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::tree;
    use std::path::Path;

    fn options() -> LocalEngineOptions {
        LocalEngineOptions::new("0000aaaa", Path::new("/nowhere"), Path::new("/nowhere"))
    }

    #[test]
    fn replicas_of_an_earlier_run_are_found_where_they_are_in_both_versions() {
        for (first, second) in [("", ""), ("cpu/", "memory/")] {
            let mark = if first.is_empty() { "cgroup.controllers" } else { "cpu/tasks" };
            let root = tree(&[
                (mark, ""),
                (&format!("{first}updraft-0000aaaa/old/cgroup.procs"), ""),
                (&format!("{first}updraft-0000aaaa/tenant-70000/a/cgroup.procs"), ""),
                // A start that was cut off may have got this far in one tree only.
                (&format!("{second}updraft-0000aaaa/tenant-80000/b/cgroup.procs"), ""),
            ]);
            let groups = Groups::open(&options(), &Cgroups::detect_at(root.path()));
            assert_eq!(groups.of("old"), "/updraft-0000aaaa/old");
            assert_eq!(groups.of("a"), "/updraft-0000aaaa/tenant-70000/a");
            assert_eq!(groups.of("b"), "/updraft-0000aaaa/tenant-80000/b");
            assert_eq!(
                groups.place("c", IdRange { first: 90_000 }),
                "/updraft-0000aaaa/tenant-90000/c"
            );
        }
    }

    #[test]
    fn the_group_of_a_tenant_goes_after_its_last_replica() {
        let root = tree(&[("cgroup.controllers", "")]);
        let folder = |name: &str| root.path().join("updraft-0000aaaa").join(name);
        for name in ["tenant-70000", "tenant-80000", "other"] {
            std::fs::create_dir_all(folder(name)).unwrap();
        }
        let cgroups = Cgroups::detect_at(root.path());
        let groups = Groups::open(&options(), &cgroups);
        groups.place("a", IdRange { first: 70_000 });
        groups.sweep(&cgroups);
        assert!(folder("tenant-70000").is_dir() && !folder("tenant-80000").exists());
        groups.leave("a");
        groups.sweep(&cgroups);
        assert!(!folder("tenant-70000").exists() && folder("other").is_dir());
    }
}
