//! What only this engine promises against a function that runs as root in its container; what
//! every engine must promise is the conformance suite's. A neighbour of another tenant goes on
//! answering.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use updraft_engine::conformance::attack_path;
use updraft_engine::{Engine, SecretValue, Wake};
use updraft_engine_local::{LocalEngine, RuntimeChoice};
use updraft_model::{FunctionId, FunctionSpec, Namespace, SecretName, labels};

use crate::harness::{Instance, answer, app, root_app, status};

/// Two tenants on one machine, one of them hostile.
pub(crate) struct Battlefield {
    pub(crate) instance: Instance,
    pub(crate) engine: Arc<LocalEngine>,
    pub(crate) attacker: SocketAddr,
    pub(crate) neighbour: SocketAddr,
}

/// A function of an owner.
pub(crate) fn owned(owner: &str) -> FunctionSpec {
    let name = format!("{owner}-function").parse().unwrap();
    let mut spec = FunctionSpec::new(FunctionId::in_default(name), app());
    spec.labels.insert(labels::GIT_OWNER.into(), owner.into());
    spec
}

pub(crate) async fn deploy(engine: &LocalEngine, spec: &FunctionSpec) -> SocketAddr {
    let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    engine.wait_ready(&spec.id, revision, Duration::from_mins(1)).await.unwrap();
    engine.endpoints().borrow()[&spec.id].ready[0].address
}

impl Battlefield {
    pub(crate) async fn new() -> Self {
        Self::on(|_| {}).await
    }

    /// On an instance that is different.
    pub(crate) async fn on(differ: impl FnOnce(&mut Instance)) -> Self {
        let mut instance = Instance::new(RuntimeChoice::Detect).await;
        instance.bound();
        instance.options.ready_limit = Duration::from_secs(30);
        differ(&mut instance);
        let engine = instance.open().await;
        let mut hostile = owned("mallory");
        hostile.image = root_app();
        let attacker = deploy(&engine, &hostile).await;
        let neighbour = deploy(&engine, &owned("alice")).await;
        Self { instance, engine, attacker, neighbour }
    }

    /// What came of an attack.
    pub(crate) async fn attack(&self, words: &[&str]) -> String {
        answer(self.attacker, &attack_path(words)).await.trim().to_owned()
    }

    /// The first process of the attacker's container, as the machine counts.
    pub(crate) fn pid(&self) -> u32 {
        let folder = self.instance.options.run.join("replicas");
        let folders = fs::read_dir(folder).unwrap();
        let record = folders
            .map(|entry| fs::read_to_string(entry.unwrap().path().join("replica.json")).unwrap())
            .find(|record| record.contains("mallory"))
            .unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        u32::try_from(record["process"][0].as_u64().unwrap()).unwrap()
    }

    /// The neighbour answers, whatever was done; then all is taken away.
    pub(crate) async fn end(self) {
        assert_eq!(answer(self.neighbour, "/").await, "hello");
        self.engine.shutdown().await;
        drop(self.engine);
        self.instance.destroy().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_inside_is_nobody_outside_and_nobody_to_another_tenant() {
    let field = Battlefield::new().await;
    assert_eq!(field.attack(&["ids"]).await, "0 0");
    let owner = |pid: u32| fs::metadata(format!("/proc/{pid}")).unwrap().uid();
    let own = owner(field.pid());
    assert!(own >= 0x7000_0000, "root inside is user {own} outside");
    let map = fs::read_to_string(format!("/proc/{}/uid_map", field.pid())).unwrap();
    let map: Vec<u32> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(map, [0, own, 65_536]);
    let tenants = fs::read_to_string(field.instance.options.state.join("tenants.json")).unwrap();
    let tenants: serde_json::Value = serde_json::from_str(&tenants).unwrap();
    assert_eq!(tenants["ranges"]["owner/mallory"], own);
    assert_ne!(tenants["ranges"]["owner/alice"], own);
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_are_answered_as_they_expect_and_see_only_what_they_need() {
    const NO_SUCH_FILE: &str = "2";
    const NO_SUCH_CALL: &str = "38";
    let field = Battlefield::new().await;
    for (words, expected) in [
        // C libraries take another call when there is none such, and fail when it is forbidden.
        (&["call", "clone3", "0", "0"][..], NO_SUCH_CALL),
        // Routes are asked for over netlink.
        (&["socket", "16", "3", "0"], "done"),
        // The app and the attack itself.
        (&["processes"], "2"),
        (&["list", "/sys"], "devices kernel"),
        (&["list", "/sys/kernel"], "mm"),
        (&["list", "/sys/devices"], "system"),
        (&["list", "/sys/fs/cgroup"], NO_SUCH_FILE),
    ] {
        assert_eq!(field.attack(words).await, expected, "{words:?}");
    }
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filling_the_log_ends_at_its_bound() {
    let field = Battlefield::new().await;
    // Ended by a signal at the longest file a replica may have, or rotated on the way: one such
    // file and the part before it are the most there can be, even while nobody rotates.
    drop(field.attack(&["flood", "200"]).await);
    let folder = field.instance.options.logs.join("openfaas-fn/mallory-function");
    let files = fs::read_dir(&folder).unwrap().flatten();
    let size: u64 = files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum();
    // One that was rotated just now has lost its older half.
    assert!((1 << 18..=66 << 20).contains(&size), "the log has {size} bytes");
    field.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_where_secrets_belong_leads_them_nowhere_outside() {
    let instance = Instance::new(RuntimeChoice::Detect).await;
    let target = instance.data.join("not-for-functions");
    fs::create_dir_all(&target).unwrap();
    let link = instance.data.join("image/var/openfaas/secrets");
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let engine = instance.open().await;
    let name = SecretName::new("mallory-key").unwrap();
    let value = SecretValue::new(b"precious".to_vec());
    engine.create_secret(&Namespace::default(), &name, value).await.unwrap();
    let mut hostile = owned("mallory");
    hostile.secrets = vec![name];
    // The link is followed inside the container, where its end is missing.
    let revision = engine.apply(hostile.clone(), Wake::Keep).await.unwrap();
    let ready = engine.wait_ready(&hostile.id, revision, Duration::from_mins(1)).await;
    assert!(ready.unwrap_err().to_string().contains("secrets"));
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    // Where it leads to a place inside, they are there and nowhere else.
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/home", &link).unwrap();
    hostile.environment.insert("again".into(), "yes".into());
    let attacker = deploy(&engine, &hostile).await;
    assert_eq!(answer(attacker, "/read/home/mallory-key").await, "precious");
    assert!(!Path::new("/home/mallory-key").exists());
    let neighbour = deploy(&engine, &owned("alice")).await;
    assert_eq!(answer(neighbour, "/").await, "hello");
    assert_eq!(status(neighbour, "/read/home/mallory-key").await, 500);
    engine.shutdown().await;
    drop(engine);
    instance.destroy().await;
}
