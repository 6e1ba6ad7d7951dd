//! The limits of a replica as the kernel has them, whoever put it into its groups.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use updraft_engine::Engine;
use updraft_engine_local::RuntimeChoice;
use updraft_model::ResourceSet;

use crate::harness::Instance;
use crate::hostile::{deploy, owned};

const ROOT: &str = "/sys/fs/cgroup";

/// Where a process is: the folder of its group for each controller, on version 2 for none.
fn groups(pid: &str) -> BTreeMap<String, PathBuf> {
    let list = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mut groups = BTreeMap::new();
    for line in list.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap(), fields.next().unwrap());
        let path = path.trim_start_matches('/');
        for controller in controllers.split(',') {
            // Some are mounted together, with a link for each.
            let tree = controller.strip_prefix("name=").unwrap_or(controller);
            groups.insert(controller.to_owned(), Path::new(ROOT).join(tree).join(path));
        }
    }
    groups
}

fn read(group: &Path, file: &str) -> String {
    let path = group.join(file);
    let text = fs::read_to_string(&path);
    text.unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

async fn every_limit_holds(runtime: RuntimeChoice) {
    let mut instance = Instance::new(runtime).await;
    instance.options.process_limit = 50;
    let engine = instance.open().await;
    let mut spec = owned("alice");
    spec.limits = Some(ResourceSet {
        memory: Some("64Mi".parse().unwrap()),
        cpu: Some("250m".parse().unwrap()),
        ..ResourceSet::default()
    });
    deploy(&engine, &spec).await;
    let replicas = instance.options.run.join("replicas");
    let folder = fs::read_dir(replicas).unwrap().next().unwrap().unwrap().path();
    let record = fs::read_to_string(folder.join("replica.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let groups = groups(&record["process"][0].to_string());
    let is_ours = |group: &Path| {
        let parents: Vec<_> =
            group.iter().rev().take(3).map(|name| name.to_str().unwrap()).collect();
        parents[1].starts_with("tenant-")
            && parents[2] == format!("updraft-{}", instance.options.instance)
    };
    let holds = |controller: &str, file: &str, value: &str| {
        let group = &groups[controller];
        assert!(is_ours(group), "{controller}: {}", group.display());
        assert_eq!(read(group, file), value, "{file}");
    };
    if engine.report().cgroups == "v2" {
        holds("", "memory.max", "67108864");
        holds("", "memory.swap.max", "0");
        holds("", "pids.max", "50");
        holds("", "cpu.max", "5000 20000");
    } else {
        holds("memory", "memory.limit_in_bytes", "67108864");
        for (file, value) in [
            // Where the kernel counts these.
            ("memory.memsw.limit_in_bytes", "67108864"),
            ("memory.kmem.tcp.limit_in_bytes", "16777216"),
        ] {
            if Path::new(ROOT).join("memory").join(file).exists() {
                holds("memory", file, value);
            }
        }
        holds("pids", "pids.max", "50");
        holds("cpu", "cpu.cfs_period_us", "20000");
        holds("cpu", "cpu.cfs_quota_us", "5000");
        assert!(is_ours(&groups["freezer"]));
        let devices = read(&groups["devices"], "devices.list");
        assert!(is_ours(&groups["devices"]));
        let allowed: Vec<_> = devices.lines().collect();
        assert!(allowed.contains(&"c 1:3 rwm"), "{allowed:?}");
        // Nothing that can be read or written but the usual, and no disk whatsoever.
        for device in allowed {
            let number = device.split(' ').nth(1).unwrap();
            let usual = ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:1", "5:2", "136:*"];
            assert!(
                usual.contains(&number) || device.ends_with(" m") || number == "10:200",
                "{device}"
            );
        }
    }
    // Updraft's own threads have come back out.
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        // One may have ended meanwhile.
        let own = fs::read_to_string(task.path().join("cgroup")).unwrap_or_default();
        assert!(!own.contains("tenant-"), "{own}");
    }
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_holds_for_a_replica_that_crun_started() {
    every_limit_holds(RuntimeChoice::Crun).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_holds_for_a_replica_that_runc_started() {
    every_limit_holds(RuntimeChoice::Runc).await;
}
