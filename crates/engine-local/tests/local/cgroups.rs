//! Machines whose control groups are not as they must be, and what depends on them otherwise.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use updraft_engine_local::{OpenError, RuntimeChoice};

use crate::harness::Instance;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// What opening the engine comes to where these are the machine's control groups.
fn refused_with(files: &[(&str, &str)]) -> String {
    let outer = runtime();
    let instance = outer.block_on(Instance::new(RuntimeChoice::Detect));
    let outcome = std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            let (none, root) = (None::<&str>, Path::new("/sys/fs/cgroup"));
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("none"), root, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            for (file, text) in files {
                fs::write(root.join(file), text).unwrap();
            }
            runtime().block_on(instance.try_open())
        });
        opening.join().unwrap()
    });
    outer.block_on(instance.destroy());
    match outcome.unwrap_err() {
        refused @ OpenError::Cgroups(_) => refused.to_string(),
        other => panic!("refused for another reason: {other}"),
    }
}

#[test]
fn an_engine_does_not_open_where_nothing_would_limit_its_functions() {
    let told = refused_with(&[("cgroup.controllers", "cpuset io"), ("cgroup.subtree_control", "")]);
    assert!(told.contains("`cpu`, `memory`, `pids` are not available"), "{told}");
    assert!(told.contains("Delegate=yes"), "{told}");
    let told = refused_with(&[]);
    assert!(told.contains("are not mounted below `/sys/fs/cgroup`"), "{told}");
}
