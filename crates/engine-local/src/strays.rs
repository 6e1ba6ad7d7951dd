//! Dead children that nobody waits for: whoever reaps containers inherits other orphans as well.
//!
//! A runtime program leaves a helper process behind at each start, and programs that Updraft runs
//! may leave others. They are waited for by their exact ids, and only when nobody else can want
//! their status: a helper of the runtime at once, any other after it was seen dead twice.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};

use crate::shared::Shared;

/// How often dead children are looked for.
const INTERVAL: Duration = Duration::from_secs(15);

/// Runtime programs under way in this process, whichever engine called them: their callers wait
/// for them.
static CALLS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Held while a runtime program is started and noted, and while dead ones are looked for.
pub(crate) fn calls() -> MutexGuard<'static, BTreeSet<i32>> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until Updraft stops.
pub(crate) async fn sweep(shared: Arc<Shared>) {
    let mut seen = BTreeSet::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shared.closing.cancelled() => return,
        }
        let program = shared.runtime.name();
        let looked = tokio::task::spawn_blocking(move || look(program, &seen));
        seen = looked.await.unwrap_or_default();
        shared.groups.sweep(&shared.runtime.cgroups);
    }
}

/// Reaps what may be reaped. Returns the others that are dead.
fn look(program: &str, seen: &BTreeSet<i32>) -> BTreeSet<i32> {
    let calls = calls();
    let mut dead = BTreeSet::new();
    for (pid, name) in dead_children() {
        if calls.contains(&pid) {
            continue;
        }
        if name == program || seen.contains(&pid) {
            // Gone already is as good as reaped.
            waitpid(Pid::from_raw(pid), WaitOptions::NOHANG).ok();
        } else {
            dead.insert(pid);
        }
    }
    dead
}

/// Ids and names of children that have ended and were not waited for.
fn dead_children() -> Vec<(i32, String)> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children: Vec<i32> = threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect();
    children
        .into_iter()
        .filter_map(|pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (name, rest) = text.rsplit_once(')')?;
            let (_, name) = name.split_once('(')?;
            rest.trim_start().starts_with('Z').then(|| (pid, name.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_dead_child_is_reaped_when_it_was_seen_before_and_no_call_waits_for_it() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let begin = std::time::Instant::now();
        while !dead_children().iter().any(|(dead, name)| *dead == pid && name == "true") {
            assert!(begin.elapsed() < Duration::from_secs(10), "the child does not end");
            std::thread::yield_now();
        }
        calls().insert(pid);
        assert!(!look("true", &BTreeSet::from([pid])).contains(&pid));
        calls().remove(&pid);
        assert!(look("crun", &BTreeSet::new()).contains(&pid), "seen once only");
        assert!(!look("crun", &BTreeSet::from([pid])).contains(&pid));
        assert!(child.wait().is_err(), "it was reaped");
    }
}
