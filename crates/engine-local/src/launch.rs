//! From an image and a spec to a running process: the steps of one start, in order.

use std::fs::{self, DirBuilder, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use updraft_engine::{ReplicaId, Revision};
use updraft_model::{EgressPolicy, EgressTarget, FunctionSpec, Sandbox};

use crate::bundle::{self, Bundle, Limits, SECRETS};
use crate::cgroup::Cgroups;
use crate::exit::{Exit, Process, start_time};
use crate::gvisor;
use crate::image::PreparedImage;
use crate::logs;
use crate::network::{Slot, group};
use crate::options::LocalEngineOptions;
use crate::phases::Phases;
use crate::record::ReplicaRecord;
use crate::runtime::{Root, Run, Runtime};
use crate::secrets::Copies;
use crate::shared::Shared;
use crate::tenants::{self, IdRange, USERS};
use crate::user::{self, User};

/// How long processes that were killed are waited for until their group can go.
const EMPTY_LOOK: Duration = Duration::from_millis(20);
const EMPTY_LOOKS: u32 = 250;

/// A container that runs, and the note that lets a later Updraft adopt it.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) process: Process,
    pub(crate) record: ReplicaRecord,
    /// How long it took so far.
    pub(crate) phases: Phases,
}

/// Starts a container for one replica. What it made by the time it fails is taken back.
///
/// # Errors
/// A sentence for people: what could not be done and why.
pub(crate) async fn launch(
    shared: &Shared,
    replica: &ReplicaId,
    spec: &FunctionSpec,
    revision: Revision,
    image: &PreparedImage,
) -> Result<Launched, String> {
    let begin = Instant::now();
    let runtime = shared.runtime_of(spec).await?;
    let egress = spec.egress().map_err(|error| error.to_string())?;
    let policies = shared.options.egress.policies(&spec.tenant(), egress.clone());
    let tenant = group::tenant_number(shared.tenants.range(&spec.tenant())?);
    let slot = shared.network.take(tenant, &policies).await?;
    let address = slot.address;
    let networked = begin.elapsed();
    let place = Place { slot, policies, egress, runtime };
    let mut launched = start(shared, replica, spec, revision, image, &place).await;
    if let Ok(launched) = &mut launched {
        launched.phases.network = networked;
    } else {
        clear(shared, replica).await;
        shared.network.give_back(address);
    }
    launched
}

/// Where a replica lives, and why there.
struct Place {
    slot: Slot,
    policies: Vec<EgressPolicy>,
    /// What the function itself says of it.
    egress: Option<EgressPolicy>,
    runtime: Runtime,
}

async fn start(
    shared: &Shared,
    replica: &ReplicaId,
    spec: &FunctionSpec,
    revision: Revision,
    image: &PreparedImage,
    place: &Place,
) -> Result<Launched, String> {
    let begin = Instant::now();
    let Place { slot, policies, egress, runtime } = place;
    let options = &shared.options;
    let failed =
        |doing: &'static str| move |error: std::io::Error| format!("cannot {doing}: {error}");
    let user = user::resolve(&image.root, &image.process.user)?;
    let tenant = spec.tenant();
    let users = shared.tenants.range(&tenant)?;
    let owner = owner_outside(&user, users)?;
    let folder = options.replica_folder().join(replica.as_str());
    DirBuilder::new().mode(0o700).create(&folder).map_err(failed("make the replica's folder"))?;
    let mut record =
        ReplicaRecord::new(&shared.boot, spec.id.clone(), revision, slot.address, owner);
    record.tenant = Some(tenant);
    record.device = Some(slot.device.clone());
    record.egress = egress.clone();
    // Noted before it exists: a crash in between leaves something that can be found.
    record.save(&folder).map_err(failed("note the replica"))?;

    let hostname = spec.id.name.as_str();
    let all = |target| policies.iter().all(|policy| policy.allows(&target));
    let gateway = options.gateway_port.filter(|_| all(EgressTarget::Gateway));
    let gateway = gateway.map(|_| shared.network.subnet().gateway());
    let hosts = folder.join("hosts");
    let names = shared.network.hosts(&hosts, policies);
    let text = bundle::hosts(hostname, slot.address, gateway) + &names;
    bundle::write_shown(&hosts, &text).map_err(failed("write its hosts file"))?;
    // Who may not ask name servers is not told of any: looking a name up then fails at once.
    let resolver = if all(EgressTarget::Public) { &shared.resolver } else { &shared.no_resolver };
    let mut binds = vec![(hosts, "/etc/hosts"), (resolver.clone(), "/etc/resolv.conf")];
    if !spec.secrets.is_empty() {
        let copies = Copies {
            tenant: record.tenant.clone(),
            namespace: spec.id.namespace.clone(),
            names: spec.secrets.clone(),
            owner,
        };
        let secrets = shared.secrets.hand_out(replica.as_str(), copies);
        let secrets = secrets.map_err(failed("hand out its secrets"))?;
        binds.extend(SECRETS.map(|destination| (secrets.clone(), destination)));
    }
    let limits = limits_of(options, spec, &shared.runtime.cgroups);
    let sandbox = runtime.sandbox();
    let limits = if sandbox == Sandbox::Gvisor { gvisor::widened(limits) } else { limits };
    let map = if shared.can_shift {
        Some(shared.tenants.map(users).map_err(failed("make its user namespace"))?)
    } else {
        None
    };
    let root = Root {
        layers: image.layers.clone(),
        map,
        users,
        binds: binds.iter().map(|(source, _)| source.clone()).collect(),
        bytes: options.root_bytes,
        is_read_only: spec.read_only_root,
    };
    let contents = Bundle {
        args: bundle::args(&image.process)?,
        env: bundle::environment(&image.process, spec, &user),
        working_dir: &image.process.working_dir,
        user: &user,
        users,
        hostname,
        root: Root::merged(),
        read_only_root: spec.read_only_root,
        network: Some(format!("/proc/{}/fd/{}", std::process::id(), slot.namespace.as_raw_fd())),
        sandbox,
        compiled_filter: runtime.compiled_filter(),
        cgroup: shared.groups.place(replica.as_str(), users),
        limits,
        binds: binds
            .iter()
            .enumerate()
            .map(|(number, (_, place))| (Root::bind(number), *place))
            .collect(),
    };
    bundle::write(&folder, &contents).map_err(failed("write its bundle"))?;
    let output = logs::create(options, &spec.id, replica).map_err(failed("make its log file"))?;
    shared.looked.begin(&logs::file(options, &spec.id, replica), options.log_limits());
    let id = replica.as_str().to_owned();
    let Bundle { cgroup, limits, .. } = contents;
    let run = Run { id, bundle: folder.clone(), root, cgroup, limits, output };
    let mut phases = Phases { bundle: begin.elapsed(), ..Phases::default() };
    let pid = runtime.run(run, &mut phases).await.map_err(|error| error.to_string())?;
    let process = Process::open(pid).map_err(failed("follow its process"))?;
    record.process = start_time(pid).map(|started| (pid, started));
    record.save(&folder).map_err(failed("note the replica's process"))?;
    Ok(Launched { process, record, phases })
}

/// What the machine calls the user and the group of a replica's first process.
fn owner_outside(user: &User, users: IdRange) -> Result<(u32, u32), String> {
    let outside = |kind: &str, number: u32| {
        users.outside(number).ok_or_else(|| {
            format!("the image's {kind} {number} is too high, containers have those below {USERS}")
        })
    };
    for group in &user.groups {
        outside("group", *group)?;
    }
    Ok((outside("user", user.uid)?, outside("group", user.gid)?))
}

/// Removes what a replica had on the host. Its processes are killed when there are any.
pub(crate) async fn clear(shared: &Shared, replica: &ReplicaId) {
    // Whichever of them it ran in; one that does not know it does nothing.
    for runtime in shared.runtimes() {
        if let Err(error) = runtime.delete(replica.as_str()).await {
            tracing::warn!(%replica, %error, "the runtime keeps traces of a replica");
        }
    }
    clear_ended(shared, replica);
}

/// Removes what a replica had on the host, its first process having ended and all others with
/// it: then there is nothing that would take a call of the runtime.
pub(crate) fn clear_ended(shared: &Shared, replica: &ReplicaId) {
    // The other processes of a sandbox end after the one that was followed.
    let had_helpers = shared.gvisor.untried().knows(replica.as_str());
    shared.runtimes().for_each(|runtime| runtime.forget(replica.as_str()));
    // Whatever the runtime forgot, for instance because an earlier run used another one.
    let cgroups = &shared.runtime.cgroups;
    let group = shared.groups.of(replica.as_str());
    if cgroups.kill_all(&group) && !had_helpers {
        tracing::warn!(%replica, "processes of a replica were still there and were ended");
    }
    if let Err(error) = cgroups.remove(&group) {
        tracing::debug!(%replica, %error, "a cgroup stays until its last process has ended");
        shared.tasks.spawn(remove_later(cgroups.clone(), group));
    }
    shared.groups.leave(replica.as_str());
    shared.secrets.take_back(replica.as_str());
    let folder = shared.options.replica_folder().join(replica.as_str());
    if let Err(error) = fs::remove_dir_all(&folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%replica, %error, "the folder of a replica stays behind");
    }
}

/// Removes a group whose processes were told to end and have not yet. What stays is removed with
/// the instance.
async fn remove_later(cgroups: Cgroups, group: String) {
    for _ in 0..EMPTY_LOOKS {
        tokio::time::sleep(EMPTY_LOOK).await;
        if cgroups.remove(&group).is_ok() {
            return;
        }
    }
    tracing::debug!(group, "a cgroup stays until the instance is destroyed");
}

fn limits_of(options: &LocalEngineOptions, spec: &FunctionSpec, cgroups: &Cgroups) -> Limits {
    let limits = spec.limits.as_ref();
    let memory = limits.and_then(|limits| limits.memory.as_ref());
    let cpu = limits.and_then(|limits| limits.cpu.as_ref());
    Limits {
        memory_bytes: memory.map_or(0, updraft_model::MemoryQuantity::bytes),
        swap_limit: cgroups.swap_limit,
        sockets_apart: cgroups.sockets_apart,
        cpu_millis: cpu
            .map(updraft_model::CpuQuantity::millicores)
            .filter(|millis| *millis > 0)
            .or(options.default_cpu_millis),
        processes: options.process_limit,
        tmp_bytes: options.tmp_bytes,
        file_bytes: options.file_bytes(),
    }
    .or_default_memory(options.default_memory_bytes)
}

impl Limits {
    fn or_default_memory(mut self, default: u64) -> Self {
        if self.memory_bytes == 0 {
            self.memory_bytes = default;
        }
        self
    }
}

/// Runs a program of this machine in a container with every restriction that replicas get.
/// Returns the filter of system calls as the runtime has compiled it, where it keeps that.
///
/// # Errors
/// Why the runtime does not work here, in its own words.
pub(crate) async fn try_out(
    runtime: &Runtime,
    options: &LocalEngineOptions,
) -> Result<Option<String>, String> {
    let id = format!("try-{}-{}", runtime.name(), std::process::id());
    let folder = options.run.join(&id);
    let made = try_in(runtime, options, &id, &folder).await;
    let filter = runtime.compiled_filter_of(&id);
    let cleared = runtime.delete(&id).await.map_err(|error| error.to_string());
    let group = trial_group(options, &id);
    runtime.cgroups.kill_all(&group);
    runtime.forget(&id);
    // Its processes may take a moment to end; then it goes with the instance.
    drop(runtime.cgroups.remove(&group));
    // Nothing of value is in it, and the next start uses another.
    drop(fs::remove_dir_all(&folder));
    made.and(cleared).map(|()| filter)
}

/// What is run in a test container, and a line that it prints when all is well.
fn trial(sandbox: Sandbox) -> ([&'static str; 2], &'static str) {
    match sandbox {
        // Filtered, whoever has compiled the filter (proc_pid_status(5)).
        Sandbox::Kernel => (["/bin/cat", "/proc/self/status"], "Seccomp:\t2"),
        // What filters it is outside.
        Sandbox::Gvisor => (["/bin/echo", "works"], "works"),
    }
}

/// A container that shows that a runtime works is nobody's, so its group is beside the tenants'.
fn trial_group(options: &LocalEngineOptions, id: &str) -> String {
    format!("/{}/{id}", options.cgroup())
}

async fn try_in(
    runtime: &Runtime,
    options: &LocalEngineOptions,
    id: &str,
    folder: &Path,
) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let users = tenants::trial(options);
    let sandbox = runtime.sandbox();
    let (program, expected) = trial(sandbox);
    let user = User { uid: 65_534, gid: 65_534, groups: Vec::new(), home: "/".to_owned() };
    let root = Root {
        layers: vec![PathBuf::from("/")],
        map: None,
        users,
        binds: Vec::new(),
        bytes: options.root_bytes,
        is_read_only: true,
    };
    let bundle = Bundle {
        args: program.map(str::to_owned).to_vec(),
        env: Vec::new(),
        working_dir: "/",
        user: &user,
        users,
        hostname: "try",
        root: Root::merged(),
        read_only_root: true,
        // The program does nothing, so the host's network is as good as any, and made already. A
        // sandbox would take the addresses off it.
        network: (sandbox == Sandbox::Kernel).then(|| "/proc/self/ns/net".to_owned()),
        sandbox,
        compiled_filter: runtime.compiled_filter(),
        cgroup: trial_group(options, id),
        limits: Limits {
            memory_bytes: options.default_memory_bytes,
            swap_limit: runtime.cgroups.swap_limit,
            sockets_apart: runtime.cgroups.sockets_apart,
            cpu_millis: Some(1000),
            processes: options.process_limit,
            tmp_bytes: options.tmp_bytes,
            file_bytes: options.file_bytes(),
        },
        binds: Vec::new(),
    };
    bundle::write(folder, &bundle).map_err(failed)?;
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(folder.join("output"))
        .map_err(failed)?;
    let Bundle { cgroup, limits, .. } = bundle;
    let run = Run { id: id.to_owned(), bundle: folder.to_owned(), root, cgroup, limits, output };
    let pid = runtime.run(run, &mut Phases::default()).await.map_err(|error| error.to_string())?;
    let exit = match Process::open(pid) {
        Ok(process) => process.wait().await,
        // It has ended, and the runtime has waited for it.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            Exit::Unknown
        }
        Err(error) => return Err(failed(error)),
    };
    // A program so short may be waited for by the runtime, and what it did is what counts.
    let said = fs::read_to_string(folder.join("output")).unwrap_or_default();
    let ended_well = matches!(exit, Exit::Code(0) | Exit::Unknown);
    if ended_well && said.lines().any(|line| line == expected) {
        return Ok(());
    }
    Err(format!("a test container {exit}: {}", said.trim()))
}
