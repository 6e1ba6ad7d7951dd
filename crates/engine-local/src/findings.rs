//! What the engine found on this machine, for `updraft engine status`: what runs replicas, what the
//! kernel offers, and what is worse than it could be.

use std::fs;

use updraft_engine::{Availability, EndpointTable, EngineStatus, Fact};

use crate::cgroup::Layout;
use crate::engine::EngineReport;
use crate::shared::Shared;

/// Everything, in the order in which people want to read it.
pub(crate) fn status(
    shared: &Shared,
    report: &EngineReport,
    table: &EndpointTable,
) -> EngineStatus {
    let cgroups = &shared.runtime.cgroups;
    let mut facts = vec![
        Fact::good("runtime", report.runtime.clone()),
        Fact::good("kernel", kernel()),
        Fact::good("cgroups", cgroup_words(cgroups.layout)),
    ];
    facts.push(if shared.can_freeze {
        let found = if cgroups.layout == Layout::V2 { "cgroup v2" } else { "cgroup v1" };
        Fact::good("freezer", found)
    } else {
        Fact::degraded(
            "freezer",
            "none",
            "idle functions cannot be frozen: they use processor time until they stop",
        )
    });
    facts.push(if shared.can_measure {
        Fact::good("accounting", "processor time and memory of each replica")
    } else {
        Fact::degraded(
            "accounting",
            "none",
            "usage of functions is not known, and they cannot scale by processor time",
        )
    });
    facts.push(if cgroups.swap_limit {
        Fact::good("swap of replicas", "counted and not allowed")
    } else {
        Fact::degraded(
            "swap of replicas",
            "not counted by this kernel",
            "a replica over its memory limit may swap instead of being ended; boot with `swapaccount=1`, or without swap",
        )
    });
    facts.push(Fact::good("shares", "each tenant the same, whatever the number of its replicas"));
    let weight = shared.options.own_weight;
    facts.push(match &shared.unfavoured {
        None if weight == 0 => Fact::good("shares of Updraft", "those of its control group"),
        None => Fact::good("shares of Updraft", format!("{weight} where functions have 100")),
        Some(reason) => Fact::degraded(
            "shares of Updraft",
            "those of its control group",
            format!("functions that compute may slow all calls: {reason}"),
        ),
    });
    facts.push(match cgroups.disk_shares(&shared.options.state) {
        Ok(by) => Fact::good("shares of the disk", format!("each tenant the same, by {by}")),
        Err(reason) => Fact::degraded(
            "shares of the disk",
            "none",
            format!("whoever reads most gets most of the disk: {reason}"),
        ),
    });
    facts.push(if shared.can_reclaim {
        Fact::good("memory of frozen replicas", "goes to swap after half a minute")
    } else {
        // Not degraded: most machines are meant to run without swap.
        Fact::good("memory of frozen replicas", "stays in memory, there is no swap for it")
    });
    facts.push(shared.gvisor.fact());
    facts.push(if shared.can_shift {
        Fact::good("users", "each tenant its own; image files shown as theirs by idmapped mounts")
    } else {
        Fact::degraded(
            "users",
            "each tenant its own; image files belong to nobody",
            "functions cannot read files that their images keep from other users; Linux 5.19 and later can show them",
        )
    });
    facts.push(Fact::good("network", format!("replicas have addresses in {}", report.subnet)));
    facts.push(replicas(shared, report, table));
    // What the parts above have said already is not said twice.
    let told = |reason: &&String| {
        !reason.contains("freezer")
            && !reason.contains("usage is not")
            && !reason.contains("keep from other users")
    };
    let others = report.degraded.iter().filter(told);
    facts.extend(others.map(|reason| Fact::degraded("degraded", reason.clone(), reason.clone())));
    EngineStatus { facts }
}

fn replicas(shared: &Shared, report: &EngineReport, table: &EndpointTable) -> Fact {
    let count = |wanted: fn(&Availability) -> bool| {
        table.values().filter(|entry| wanted(&entry.availability)).count()
    };
    Fact::good(
        "functions",
        format!(
            "{} ({} ready, {} frozen, {} asleep, {} failing), {} replicas, {} adopted at the start",
            table.len(),
            count(|state| *state == Availability::Ready),
            count(|state| *state == Availability::Frozen),
            count(|state| *state == Availability::Asleep),
            count(|state| matches!(state, Availability::Failing(_))),
            shared.running().len(),
            report.adopted,
        ),
    )
}

fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "of unknown release".to_owned(), |text| text.trim().to_owned())
}

fn cgroup_words(layout: Layout) -> String {
    match layout {
        Layout::V2 => "v2".to_owned(),
        Layout::V1 => "v1".to_owned(),
        Layout::Hybrid => "hybrid: v1 controllers, v2 beside them".to_owned(),
    }
}
