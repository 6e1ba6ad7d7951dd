//! What every task of one engine shares.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use updraft_engine::{ReplicaId, Usage};
use updraft_model::{Digest, FunctionId, FunctionSpec, Sandbox, annotations};

use crate::groups::Groups;
use crate::gvisor::Gvisor;
use crate::image::{ImageSource, PreparedImage};
use crate::logs::Looked;
use crate::metrics::EngineMetrics;
use crate::network::Network;
use crate::options::LocalEngineOptions;
use crate::probe::Probes;
use crate::record::RecordStore;
use crate::runtime::Runtime;
use crate::secrets::SecretStore;
use crate::tenants::Tenants;

/// Most images remembered; one that is forgotten is looked for again.
const IMAGES_KNOWN: usize = 1_000;

/// The parts of an open engine.
pub(crate) struct Shared {
    pub(crate) options: LocalEngineOptions,
    pub(crate) images: Arc<dyn ImageSource>,
    pub(crate) runtime: Runtime,
    /// The runtime of functions that are to have a kernel of their own.
    pub(crate) gvisor: Gvisor,
    /// Whether the groups of replicas can be frozen here.
    pub(crate) can_freeze: bool,
    /// Whether memory of frozen replicas can be put out to swap.
    pub(crate) can_reclaim: bool,
    /// Whether the groups of replicas tell what is used in them.
    pub(crate) can_measure: bool,
    pub(crate) network: Network,
    pub(crate) tenants: Tenants,
    /// Which control group each replica is in.
    pub(crate) groups: Groups,
    /// Why Updraft itself has no more weight than others, if it was to have.
    pub(crate) unfavoured: Option<String>,
    /// Whether the kernel shows an image's files as those of a tenant's users.
    pub(crate) can_shift: bool,
    pub(crate) secrets: SecretStore,
    pub(crate) records: RecordStore,
    /// The `resolv.conf` that replicas see.
    pub(crate) resolver: PathBuf,
    /// The empty one of those who may not ask name servers.
    pub(crate) no_resolver: PathBuf,
    /// Bounds how many containers are started at the same time.
    pub(crate) launches: Semaphore,
    /// Names the machine's boot.
    pub(crate) boot: String,
    /// Set when Updraft stops; tasks then let go of their replicas.
    pub(crate) closing: CancellationToken,
    /// Every task of this engine, waited for at the end.
    pub(crate) tasks: TaskTracker,
    /// Images that a replica was started from, so that the next start need not look for it.
    pub(crate) images_ready: Mutex<BTreeMap<Digest, PreparedImage>>,
    pub(crate) metrics: EngineMetrics,
    /// Replicas whose containers exist or are being made.
    pub(crate) running: Mutex<BTreeMap<ReplicaId, Running>>,
    /// How far the log files of running replicas have come.
    pub(crate) looked: Looked,
}

/// What others than its task need to know of a replica that runs.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) function: FunctionId,
}

impl Shared {
    /// Every runtime that may have started a replica.
    pub(crate) fn runtimes(&self) -> impl Iterator<Item = &Runtime> {
        [&self.runtime, self.gvisor.untried()].into_iter()
    }

    /// The runtime that a function is to run in.
    ///
    /// # Errors
    /// A sentence for people: it is not here, or cannot do what the function wants.
    pub(crate) async fn runtime_of(&self, spec: &FunctionSpec) -> Result<Runtime, String> {
        if self.options.sandboxes.of(spec) == Sandbox::Kernel {
            return Ok(self.runtime.clone());
        }
        let name = &spec.id.name;
        if Probes::of(spec).look_into_the_container() {
            return Err(format!(
                "function `{name}` is to run in gVisor, where its lock file cannot be seen; have \
                 it asked by HTTP: leave out annotation `{}`, or name a path with `{}`",
                annotations::PROBE,
                annotations::HEALTH_PATH
            ));
        }
        self.gvisor.proven(&self.options).await.map_err(|reason| {
            format!(
                "function `{name}` is to run in gVisor, and `runsc` does not work on this machine \
                 ({reason}); install it (Debian: `apt-get install runsc`, others: \
                 https://gvisor.dev/docs/user_guide/install/), or change what asks for it: \
                 annotation `{}` or `isolation.runtime`",
                annotations::RUNTIME
            )
        })
    }

    pub(crate) fn running(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the replicas of a function use together; nothing when this machine cannot tell.
    pub(crate) fn usage(&self, id: &FunctionId) -> Option<Usage> {
        if !self.can_measure {
            return None;
        }
        let own: Vec<ReplicaId> = self
            .running()
            .iter()
            .filter(|(_, running)| running.function == *id)
            .map(|(replica, _)| replica.clone())
            .collect();
        // One whose group is not there yet, or not any more, uses nothing.
        let read = own
            .iter()
            .filter_map(|replica| self.runtime.cgroups.usage(&self.groups.of(replica.as_str())));
        Some(read.fold(Usage::default(), |total, one| Usage {
            cpu_seconds: total.cpu_seconds + one.cpu_seconds,
            memory_bytes: total.memory_bytes + one.memory_bytes,
            replicas: total.replicas + 1,
        }))
    }

    /// The image of this id, when its files still are where a start found them. Whoever takes an
    /// image off the machine removes the folder as well.
    pub(crate) fn prepared(&self, id: &Digest) -> Option<PreparedImage> {
        let mut ready = self.images_ready.lock().unwrap_or_else(PoisonError::into_inner);
        let image = ready.get(id)?.clone();
        if crate::secrets::is_mount_point(&image.root) {
            return Some(image);
        }
        ready.remove(id);
        None
    }

    pub(crate) fn keep_prepared(&self, image: &PreparedImage) {
        let mut ready = self.images_ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.len() >= IMAGES_KNOWN {
            ready.pop_first();
        }
        ready.insert(image.id, image.clone());
    }

    pub(crate) fn is_running(&self, replica: &str) -> bool {
        self.running().contains_key(&ReplicaId::new(replica))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}
