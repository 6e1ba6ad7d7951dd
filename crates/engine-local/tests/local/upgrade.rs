//! Replicas of an Updraft that knew no tenants: they hang on the bridge, lie beside the groups of
//! tenants, and nobody noted whose they are.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use updraft_engine::Engine;
use updraft_engine_local::RuntimeChoice;

use crate::harness::{Instance, answer, status, until};
use crate::hostile::{deploy, owned};
use crate::network::{Outside, host_address, ip, ip_says};

/// Where the groups of the only replica are, in whichever trees there are.
fn group_folders(instance: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let trees = fs::read_dir(root).unwrap().flatten().map(|entry| entry.path());
    let tenants = trees.chain([root.to_owned()]).map(|tree| tree.join(instance));
    let replicas = tenants.flat_map(fs::read_dir).flatten().flatten();
    let replicas = replicas.filter(|entry| entry.file_name().to_string_lossy().contains("tenant-"));
    let groups = replicas.flat_map(|tenant| fs::read_dir(tenant.path())).flatten().flatten();
    groups.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_from_before_tenants_goes_on_behind_the_same_walls_until_it_is_replaced() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let engine = instance.open().await;
    let mut spec = owned("alice");
    let address = deploy(&engine, &spec).await;
    engine.shutdown().await;
    drop(engine);

    // The note, the device and the groups as they were then.
    let folder = fs::read_dir(instance.options.run.join("replicas")).unwrap().next().unwrap();
    let folder = folder.unwrap().path();
    let path = folder.join("replica.json");
    let mut note: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let device = note["device"].as_str().unwrap().to_owned();
    for field in ["tenant", "device", "egress"] {
        note.as_object_mut().unwrap().remove(field);
    }
    fs::write(&path, note.to_string()).unwrap();
    let bridge = format!("updraft{}", instance.options.instance);
    let own = address.ip().to_string();
    let known = ip_says(&["neigh", "show", "dev", &device, &own]);
    let mac = known.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap();
    ip(&["link", "set", &device, "master", &bridge]);
    ip(&["neigh", "replace", &own, "lladdr", mac, "dev", &bridge]);
    ip(&["route", "del", &own, "dev", &device]);
    ip(&["route", "add", &own, "dev", &bridge]);
    let group = format!("updraft-{}", instance.options.instance);
    for old in group_folders(&group) {
        let new = old.ancestors().nth(2).unwrap().join(old.file_name().unwrap());
        fs::create_dir(&new).unwrap();
        for process in fs::read_to_string(old.join("cgroup.procs")).unwrap().lines() {
            fs::write(new.join("cgroup.procs"), process).unwrap();
        }
        fs::remove_dir(&old).unwrap();
    }

    let outside = Outside::new(&instance.options.instance);
    let service = outside.service(9);
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let engine = instance.open().await;
    assert_eq!(engine.report().adopted, 1);
    assert_eq!(engine.endpoints().borrow()[&spec.id].ready[0].address, address);
    assert_eq!(answer(address, "/").await, "hello");
    let other = deploy(&engine, &owned("bob")).await;
    let public = format!("/connect/{}:9", outside.address);
    assert_eq!(answer(address, &public).await, "connected");
    for target in [
        other,
        SocketAddr::from((engine.gateway_address(), port)),
        SocketAddr::from((host_address(), port)),
        "169.254.169.254:80".parse().unwrap(),
    ] {
        assert_eq!(status(address, &format!("/connect/{target}")).await, 500, "{target}");
    }
    assert_eq!(status(other, &format!("/connect/{address}")).await, 500);
    assert!(engine.usage(&spec.id).await.unwrap().unwrap().memory_bytes > 0);

    // The next start is one of today.
    spec.environment.insert("again".into(), "yes".into());
    let fresh = deploy(&engine, &spec).await;
    assert_ne!(fresh, address);
    assert_eq!(answer(fresh, &public).await, "connected");
    until("the old replica is gone", async || !folder.exists()).await;
    // The kernel takes the old network namespace apart in its own time, and the device with it.
    let ports = format!("/sys/class/net/{bridge}/brif");
    until("nothing hangs on the bridge", async || fs::read_dir(&ports).unwrap().count() == 0).await;
    assert!(!group_folders(&group).is_empty());
    drop((service, outside));
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}
