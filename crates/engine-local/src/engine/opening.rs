//! Opening the engine: what the machine has is found out, what runs is adopted, what should run is
//! started.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use updraft_engine::EndpointTable;
use updraft_model::FunctionId;

use super::{EngineReport, LocalEngine};
use crate::bundle;
use crate::cgroup::Cgroups;
use crate::controller;
use crate::exit;
use crate::groups::Groups;
use crate::gvisor::Gvisor;
use crate::image::ImageSource;
use crate::launch;
use crate::logs;
use crate::metrics::EngineMetrics;
use crate::namespaces::Namespaces;
use crate::network::{Neighbour, Network, group, name_servers};
use crate::options::{LocalEngineOptions, OpenError};
use crate::private_mounts::{STAGE, make_stage};
use crate::record::{Durability, FunctionRecord, RecordStore};
use crate::replica::{self, Adopted, Missed};
use crate::runtime::Runtime;
use crate::secrets::{Migrated, SecretStore};
use crate::shared::Shared;
use crate::stock::{Left, lock, note_state_folder, private_folder, resolver_file, take_stock};
use crate::strays;
use crate::tenants::{self, Tenants};
use crate::volatile;

/// Most containers that are started at the same time; more would only slow each other down.
const LAUNCHES: usize = 8;

/// What the network has to know of a replica that goes on. What its tenant may reach is what the
/// options say now.
fn neighbour(options: &LocalEngineOptions, tenants: &Tenants, adopted: &Adopted) -> Neighbour {
    let record = &adopted.record;
    let policies = match &record.tenant {
        Some(tenant) => options.egress.policies(tenant, record.egress.clone()),
        None => vec![options.egress.of_all.clone()],
    };
    let hosts = options.replica_folder().join(adopted.id.as_str()).join("hosts");
    // It has a range, or it could not run; without a number it shares that of nobody.
    let range = record.tenant.as_ref().and_then(|tenant| tenants.range(tenant).ok());
    let tenant = range.map_or(0, group::tenant_number);
    Neighbour { address: record.address, device: record.device.clone(), tenant, policies, hosts }
}

impl LocalEngine {
    /// Opens the engine: adopts what runs, and starts what is desired and does not run.
    ///
    /// # Errors
    /// The machine's or the operator's fault; each message says what to do. Nothing was started.
    pub async fn open(
        options: LocalEngineOptions,
        images: Arc<dyn ImageSource>,
    ) -> Result<Self, OpenError> {
        let begin = Instant::now();
        options.check()?;
        if !nix::unistd::geteuid().is_root() {
            return Err(OpenError::NotRoot);
        }
        Cgroups::detect().check().map_err(OpenError::Cgroups)?;
        private_folder(&options.state)?;
        let lock = lock(&options.state)?;
        volatile::open(&options.run)?;
        private_folder(&options.replica_folder())?;
        note_state_folder(&options)?;
        make_stage().map_err(OpenError::file("create", Path::new(STAGE)))?;
        let this = Path::new("/proc/self");
        exit::become_reaper().map_err(OpenError::file("become the reaper of", this))?;
        let boot = exit::boot_id().map_err(OpenError::file("read the boot id below", this))?;
        let (runtime, mut degraded) = Runtime::detect(&options).await?;
        let gvisor = Gvisor::new(&options, &runtime.cgroups)?;
        let records = RecordStore::new(options.record_folder());
        let mut stored = records.load()?;
        let (secrets, migrated) = SecretStore::open(&options)?;
        renew_digests(&records, &secrets, &migrated, &mut stored)?;
        let (mut adopted, left) = take_stock(&options, &boot, &stored)?;
        let tenants_of = |record: &FunctionRecord| {
            let revisions = [Some(&record.serving), record.candidate.as_ref()];
            revisions.into_iter().flatten().map(|one| one.spec.tenant()).collect::<Vec<_>>()
        };
        let known = stored.iter().flat_map(|(_, record)| tenants_of(record)).collect();
        let running = adopted.iter().filter_map(|adopted| adopted.record.tenant.clone()).collect();
        let tenants = Tenants::open(&options, &known, &running)?;
        let can_shift = match tenants::try_shifting(&options) {
            Ok(()) => true,
            Err(reason) => {
                degraded.push(format!(
                    "functions cannot read files that their images keep from other users: {reason}"
                ));
                false
            }
        };
        let neighbours = adopted.iter().map(|one| neighbour(&options, &tenants, one)).collect();
        let resolver_text = resolver_file();
        let resolvers = name_servers(&resolver_text).filter_map(|server| match server {
            IpAddr::V4(server) => Some(server),
            IpAddr::V6(_) => None,
        });
        let (network, network_degraded) =
            Network::open(&options, neighbours, resolvers.collect()).await?;
        degraded.extend(network_degraded);
        // The trial container has left the instance's own group, as replicas will.
        let can_freeze = runtime.cgroups.can_freeze(&options.cgroup());
        if can_freeze && let Err(error) = runtime.cgroups.keep_one_frozen(&options.cgroup()) {
            tracing::debug!(%error, "thaws take a little longer than they could");
        }
        let can_measure = runtime.cgroups.usage(&options.cgroup()).is_some();
        let can_reclaim = can_freeze && runtime.cgroups.can_reclaim(&options.cgroup());
        if !can_freeze {
            degraded.push("there is no cgroup freezer, idle functions cannot be frozen".to_owned());
        }
        if !can_measure {
            degraded.push("no cgroup tells of processor and memory, usage is not known".to_owned());
        }
        let report = EngineReport {
            runtime: runtime.version.clone(),
            cgroups: runtime.cgroups.layout.to_string(),
            subnet: network.subnet().to_string(),
            adopted: adopted.len(),
            degraded,
        };
        let resolver = options.run.join("resolv.conf");
        bundle::write_shown(&resolver, &resolver_text)
            .map_err(OpenError::file("write", &resolver))?;
        let no_resolver = options.run.join("no-resolv.conf");
        bundle::write_shown(&no_resolver, "").map_err(OpenError::file("write", &no_resolver))?;
        let namespaces = Namespaces::open(options.state.join("namespaces.json"))?;
        let groups = Groups::open(&options, &runtime.cgroups);
        let own_weight = Some(options.own_weight).filter(|weight| *weight > 0);
        let unfavoured = own_weight.and_then(|weight| {
            runtime.cgroups.favour_this_process(&options.own_group(), weight).err()
        });
        let shared = Arc::new(Shared {
            secrets,
            records,
            options,
            images,
            runtime,
            gvisor,
            can_freeze,
            can_reclaim,
            can_measure,
            network,
            tenants,
            groups,
            unfavoured,
            can_shift,
            resolver,
            no_resolver,
            launches: Semaphore::new(LAUNCHES),
            boot,
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
            images_ready: Mutex::default(),
            metrics: EngineMetrics::default(),
            running: Mutex::default(),
            looked: logs::Looked::default(),
        });
        let mut missed = Vec::new();
        for Left { id: replica, ended } in left {
            tracing::info!(%replica, "clearing away what is left of a replica");
            if let Some(record) = ended {
                missed.push(replica::missed(&shared, &replica, &record).await);
            }
            launch::clear(&shared, &replica).await;
        }
        let table = Arc::new(watch::Sender::new(EndpointTable::default()));
        let engine = Self {
            shared,
            namespaces,
            functions: Arc::default(),
            table,
            report,
            state_lock: Mutex::new(Some(lock)),
        };
        for (id, record) in stored {
            let (own, others) =
                adopted.into_iter().partition(|adopted: &Adopted| adopted.record.function == id);
            adopted = others;
            let (ended, others): (Vec<_>, Vec<_>) =
                missed.into_iter().partition(|one: &Missed| one.function == id);
            missed = others;
            let publish = engine.publish();
            let handle =
                controller::spawn(&engine.shared, id.clone(), Some(record), own, &ended, publish);
            engine.lock().insert(id, handle);
        }
        engine.shared.runtime.make_ahead();
        if engine.shared.gvisor.is_asked_for() {
            let shared = Arc::clone(&engine.shared);
            engine.shared.tasks.spawn(async move {
                // Known before the first function comes, and said by the engine's status.
                if let Err(reason) = shared.gvisor.proven(&shared.options).await {
                    tracing::warn!(reason, "functions that are to run in gVisor cannot");
                }
            });
        }
        engine.shared.tasks.spawn(logs::keep(Arc::clone(&engine.shared)));
        engine.shared.tasks.spawn(strays::sweep(Arc::clone(&engine.shared)));
        tracing::info!(
            runtime = engine.report.runtime,
            cgroups = engine.report.cgroups,
            subnet = engine.report.subnet,
            adopted = engine.report.adopted,
            took = ?begin.elapsed(),
            "local engine is open"
        );
        for reason in &engine.report.degraded {
            tracing::warn!(reason, "the local engine is degraded");
        }
        Ok(engine)
    }
}

/// Notes the digests of today where an earlier version noted plain ones: those told what a secret
/// was to whoever guessed it, and would make each function look as if its secrets had changed.
fn renew_digests(
    records: &RecordStore,
    secrets: &SecretStore,
    migrated: &Migrated,
    stored: &mut [(FunctionId, FunctionRecord)],
) -> Result<(), OpenError> {
    if migrated.is_empty() {
        return Ok(());
    }
    for (id, record) in stored {
        let revisions = std::iter::once(&mut record.serving).chain(&mut record.candidate);
        for (name, digest) in revisions.flat_map(|revision| &mut revision.secrets) {
            if migrated.is_current(&id.namespace, name, digest)
                && let Some(info) = secrets.info(&id.namespace, name)
            {
                *digest = info.digest;
            }
        }
        let path = records.path(id);
        records.save(id, record, Durability::Synced).map_err(OpenError::file("write", &path))?;
    }
    Ok(())
}
