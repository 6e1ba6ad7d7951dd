//! One replica: a task that starts or adopts a container and walks it through its life.

mod life;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use updraft_engine::{Endpoint, ReplicaId, ReplicaLoad, Revision};
use updraft_model::{Digest, FunctionId, FunctionSpec};

use crate::exit::{Exit, Process};
use crate::launch::{self, Launched};
use crate::logs;
use crate::metrics::Cause;
use crate::phases::Phases;
use crate::probe::{Asked, NotReady, PORT, Probes, Readiness};
use crate::record::ReplicaRecord;
use crate::secrets::Copies;
use crate::shared::{Running, Shared};
use life::{Effect, Event, Life};

/// How many last lines explain a failure.
const TAIL_LINES: usize = 30;

/// Why a replica failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// The last lines it wrote, oldest first.
    pub(crate) log_tail: Vec<String>,
    /// How its first process ended, if it had one that ended by itself.
    pub(crate) exit: Exit,
    /// The kernel ended it for want of memory.
    pub(crate) out_of_memory: bool,
}

impl Failure {
    /// One that is no end of a process.
    pub(crate) fn new(reason: impl Into<String>, log_tail: Vec<String>) -> Self {
        Self { reason: reason.into(), log_tail, exit: Exit::Unknown, out_of_memory: false }
    }
}

/// What a replica tells its function.
#[derive(Debug)]
pub(crate) enum Report {
    /// The content its image reference stands for.
    Image(Revision, Digest),
    /// It takes requests.
    Ready(Arc<Endpoint>),
    /// It was ready and is not for now, or is again: then there is no reason.
    Readiness(Option<String>),
    /// It did not become ready in time and is about to end.
    TooLate(Failure),
    /// It was ready, answers no more and is about to end.
    Unhealthy(Failure),
    /// It is gone. A failure when nobody had asked it to go.
    Gone(Option<Failure>),
}

/// A replica of an earlier run that goes on.
#[derive(Debug)]
pub(crate) struct Adopted {
    pub(crate) id: ReplicaId,
    pub(crate) record: ReplicaRecord,
    pub(crate) process: Process,
    /// Its requests and its door, from now on.
    pub(crate) load: Arc<ReplicaLoad>,
}

impl Adopted {
    /// Where its requests go.
    pub(crate) fn endpoint(&self) -> Endpoint {
        let address = SocketAddr::from((self.record.address, PORT));
        Endpoint { replica: self.id.clone(), address, load: Arc::clone(&self.load) }
    }
}

/// A replica as its function sees it.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) revision: Revision,
    /// When its start began.
    pub(crate) started_at: Timestamp,
    /// The requests on it, and its door.
    pub(crate) load: Arc<ReplicaLoad>,
    retire: watch::Sender<bool>,
}

impl Replica {
    /// Says that it is to end, after its open requests.
    pub(crate) fn retire(&self) {
        self.retire.send_replace(true);
    }
}

/// Where a replica sends its reports.
pub(crate) type Reports = mpsc::UnboundedSender<Box<(ReplicaId, Report)>>;

/// What every replica task carries.
struct Task {
    shared: Arc<Shared>,
    id: ReplicaId,
    spec: Arc<FunctionSpec>,
    revision: Revision,
    load: Arc<ReplicaLoad>,
    reports: Reports,
    retire: watch::Receiver<bool>,
}

/// Starts a new replica.
pub(crate) fn start(
    shared: &Arc<Shared>,
    id: ReplicaId,
    spec: Arc<FunctionSpec>,
    revision: Revision,
    pinned: Option<Digest>,
    reports: Reports,
) -> Replica {
    let (retire, retired) = watch::channel(false);
    let load = Arc::new(ReplicaLoad::default());
    let started_at = Timestamp::now();
    let replica = Replica { revision, started_at, load: Arc::clone(&load), retire };
    let shared = Arc::clone(shared);
    let task = Task { shared, id, spec, revision, load, reports, retire: retired };
    let tasks = task.shared.tasks.clone();
    tasks.spawn(async move { task.run_new(pinned).await });
    replica
}

/// Goes on with a replica of an earlier run of Updraft, with the door as it is.
pub(crate) fn adopt(
    shared: &Arc<Shared>,
    adopted: Adopted,
    spec: Arc<FunctionSpec>,
    reports: Reports,
) -> Replica {
    let Adopted { id, record, process, load } = adopted;
    let (retire, retired) = watch::channel(false);
    let revision = record.revision;
    let started_at = record.started_at.unwrap_or_else(Timestamp::now);
    let replica = Replica { revision, started_at, load: Arc::clone(&load), retire };
    let shared = Arc::clone(shared);
    let task = Task { shared, id, spec, revision, load, reports, retire: retired };
    let tasks = task.shared.tasks.clone();
    tasks.spawn(
        async move { task.live(Launched { process, record, phases: Phases::default() }).await },
    );
    replica
}

impl Task {
    fn report(&self, report: Report) {
        // A function that is gone needs no report.
        drop(self.reports.send(Box::new((self.id.clone(), report))));
    }

    fn is_retired(&self) -> bool {
        *self.retire.borrow()
    }

    async fn run_new(self, pinned: Option<Digest>) {
        match self.launch(pinned).await {
            Ok(Some(launched)) => self.live(launched).await,
            Ok(None) => self.report(Report::Gone(None)),
            Err(reason) => {
                self.leave();
                self.shared.metrics.ended(Cause::NotStarted);
                let log_tail = self.log_tail().await;
                self.report(Report::Gone(Some(Failure::new(reason, log_tail))));
            }
        }
    }

    /// Nothing when it was retired before it ran, or when Updraft is about to stop.
    async fn launch(&self, pinned: Option<Digest>) -> Result<Option<Launched>, String> {
        let begin = Instant::now();
        let credentials = self.shared.secrets.pull_credentials(&self.spec);
        let credentials = credentials.map_err(|error| error.to_string())?;
        let images = &self.shared.images;
        let known = pinned.and_then(|id| self.shared.prepared(&id));
        let image = if let Some(known) = known {
            known
        } else {
            let image = tokio::select! {
                image = images.prepare(&self.spec.image, pinned.as_ref(), credentials.as_ref()) => {
                    image?
                }
                () = self.shared.closing.cancelled() => return Ok(None),
            };
            self.shared.keep_prepared(&image);
            image
        };
        let prepared = begin.elapsed();
        self.report(Report::Image(self.revision, image.id));
        let permit = tokio::select! {
            permit = self.shared.launches.acquire() => permit,
            () = self.shared.closing.cancelled() => return Ok(None),
        };
        let Ok(_permit) = permit else { return Ok(None) };
        if self.is_retired() {
            return Ok(None);
        }
        self.enter();
        let launched =
            launch::launch(&self.shared, &self.id, &self.spec, self.revision, &image).await;
        let mut launched = launched?;
        launched.phases.image = prepared;
        Ok(Some(launched))
    }

    /// Walks a running container to its end, or leaves it alone when Updraft stops.
    async fn live(mut self, launched: Launched) {
        let Launched { process, mut record, mut phases } = launched;
        let is_new = !record.ready;
        self.enter();
        if !self.spec.secrets.is_empty() {
            // One of an earlier run has its copies, and nobody who knows of them.
            let copies = Copies {
                tenant: record.tenant.clone(),
                namespace: self.spec.id.namespace.clone(),
                names: self.spec.secrets.clone(),
                owner: record.owner,
            };
            self.shared.secrets.adopt(self.id.as_str(), copies);
        }
        let begin = Instant::now();
        let options = &self.shared.options;
        let log = logs::file(options, &self.spec.id, &self.id);
        self.shared.looked.begin(&log, options.log_limits());
        let address = SocketAddr::from((record.address, PORT));
        let load = Arc::clone(&self.load);
        let probes = Probes::of(&self.spec);
        let asked = Asked { address, process: record.process.map(|(pid, _)| pid) };
        let (seen, last_seen) = watch::channel(NotReady::Untried);
        let mut ready: Pin<Box<dyn Future<Output = ()> + Send>> = if record.ready {
            Box::pin(std::future::ready(()))
        } else {
            let probe = probes.ready.clone();
            Box::pin(async move { probe.until_ready(asked, &seen).await })
        };
        let mut unhealthy: Pin<Box<dyn Future<Output = String> + Send>> =
            Box::pin(std::future::pending());
        // It says itself what changes, and never ends.
        let mut watched: Pin<Box<dyn Future<Output = Infallible> + Send>> =
            Box::pin(std::future::pending());
        let mut drained: Pin<Box<dyn Future<Output = usize> + Send>> =
            Box::pin(std::future::pending());
        let mut deadline = begin + options.ready_limit;
        let mut failure = None;
        let mut life = Life::Probing;
        loop {
            let mut exit = None;
            let mut sickness = None;
            let timed = matches!(life, Life::Probing | Life::Stopping);
            let event = tokio::select! {
                ended = process.wait() => { exit = Some(ended); Event::Exited }
                () = &mut ready, if life == Life::Probing => Event::Answered,
                reason = &mut unhealthy, if life == Life::Ready => {
                    sickness = Some(reason);
                    Event::Unhealthy
                }
                never = &mut watched, if life == Life::Ready => match never {},
                _ = &mut drained, if life == Life::Draining => Event::Drained,
                // An error is no order: the function's task has let go because Updraft stops.
                Ok(_) = self.retire.wait_for(|retired| *retired),
                    if matches!(life, Life::Probing | Life::Ready) => Event::Retire,
                () = sleep_until(deadline), if timed => {
                    if life == Life::Probing { Event::TooLate } else { Event::GraceOver }
                }
                () = self.shared.closing.cancelled() => return,
            };
            let (next, effect) = life.step(event);
            tracing::trace!(replica = %self.id, ?life, ?event, ?next, "replica moves on");
            if event == Event::TooLate {
                let limit = updraft_model::format_duration(options.ready_limit);
                let reason = format!(
                    "replica was not ready within {limit}: {}",
                    probes.ready.explain(&last_seen.borrow())
                );
                self.shared.metrics.ended(Cause::NotReady);
                let told = Failure::new(reason, self.log_tail().await);
                self.report(Report::TooLate(told.clone()));
                failure = Some(told);
            }
            if let Some(reason) = sickness {
                let reason = format!("replica hangs and is replaced: {reason}");
                self.shared.metrics.ended(Cause::Unhealthy);
                let told = Failure::new(reason, self.log_tail().await);
                self.report(Report::Unhealthy(told.clone()));
                failure = Some(told);
            }
            life = next;
            match effect {
                Some(Effect::Publish) => {
                    phases.ready = begin.elapsed();
                    tracing::debug!(replica = %self.id, ?phases, "replica is ready");
                    if is_new {
                        self.shared.metrics.started(&phases);
                    }
                    let endpoint =
                        Endpoint { replica: self.id.clone(), address, load: Arc::clone(&load) };
                    self.report(Report::Ready(Arc::new(endpoint)));
                    record.ready = true;
                    self.note(&record);
                    let (health, door) = (probes.health.clone(), Arc::clone(&load));
                    unhealthy = Box::pin(async move { health.until_unhealthy(asked, &door).await });
                    watched = Box::pin(self.watch(probes.ready.clone(), asked));
                }
                Some(Effect::Drain) => {
                    self.note_leaving(&mut record);
                    // A call that may take longer than others is let end.
                    let limit = options.drain_limit.max(self.spec.timeout().unwrap_or_default());
                    let load = Arc::clone(&load);
                    drained = Box::pin(async move { load.drain(limit).await });
                }
                Some(Effect::Terminate) => {
                    load.close();
                    self.note_leaving(&mut record);
                    process.terminate();
                    self.thaw();
                    deadline = Instant::now() + options.stop_grace;
                }
                Some(Effect::Kill) => {
                    process.kill();
                    self.thaw();
                    // It cannot refuse; only a stuck kernel would bring us here again.
                    deadline = Instant::now() + Duration::from_mins(1);
                }
                Some(Effect::CleanUp) => {
                    load.close();
                    let asked = self.is_retired();
                    if !asked && failure.is_none() {
                        failure = Some(self.post_mortem(exit.unwrap_or(Exit::Unknown)).await);
                    }
                    launch::clear_ended(&self.shared, &self.id);
                    self.shared.network.give_back(record.address);
                    self.leave();
                    self.report(Report::Gone(failure.filter(|_| !asked)));
                    return;
                }
                None => {}
            }
        }
    }

    /// A frozen process hears no signal.
    fn thaw(&self) {
        let group = self.shared.groups.of(self.id.as_str());
        if self.shared.can_freeze
            && let Err(error) = self.shared.runtime.cgroups.thaw(&group)
        {
            tracing::warn!(replica = %self.id, %error, "a replica that is to end may be frozen");
        }
    }

    /// Lets others find the replica while its container exists.
    fn enter(&self) {
        let function = self.spec.id.clone();
        let running = Running { function };
        self.shared.running().insert(self.id.clone(), running);
    }

    fn leave(&self) {
        let options = &self.shared.options;
        let log = logs::file(options, &self.spec.id, &self.id);
        self.shared.looked.end(&log, options.log_limits());
        self.shared.running().remove(&self.id);
    }

    /// Tells when a ready replica is not ready any more, and when it is again.
    fn watch(
        &self,
        probe: Readiness,
        asked: Asked,
    ) -> impl Future<Output = Infallible> + Send + use<> {
        let (id, load, reports) = (self.id.clone(), Arc::clone(&self.load), self.reports.clone());
        async move {
            let tell = |why| drop(reports.send(Box::new((id.clone(), Report::Readiness(why)))));
            probe.watch(asked, &load, tell).await
        }
    }

    /// Notes that its end is wanted: should Updraft be away by then, it is no failure.
    fn note_leaving(&self, record: &mut ReplicaRecord) {
        if !std::mem::replace(&mut record.leaving, true) {
            self.note(record);
        }
    }

    fn note(&self, record: &ReplicaRecord) {
        let folder: PathBuf = self.shared.options.replica_folder().join(self.id.as_str());
        if let Err(error) = record.save(&folder) {
            tracing::warn!(replica = %self.id, %error, "a replica's note could not be renewed");
        }
    }

    /// Why it ended, asked while its cgroup is still there.
    async fn post_mortem(&self, exit: Exit) -> Failure {
        post_mortem(&self.shared, &self.id, &self.spec.id, exit, "").await
    }

    async fn log_tail(&self) -> Vec<String> {
        logs::tail(&self.shared.options, &self.spec.id, &self.id, TAIL_LINES).await
    }
}

/// Why a replica ended; `when` goes behind the reason.
async fn post_mortem(
    shared: &Shared,
    id: &ReplicaId,
    function: &FunctionId,
    exit: Exit,
    when: &str,
) -> Failure {
    let group = shared.groups.of(id.as_str());
    let out_of_memory = shared.runtime.cgroups.memory_kills(&group) > 0;
    let reason = if out_of_memory {
        format!("replica ran out of memory and was killed{when}, raise `limits.memory` or use less")
    } else {
        format!("replica {exit}{when}")
    };
    shared.metrics.ended(match exit {
        _ if out_of_memory => Cause::Memory,
        Exit::Code(_) => Cause::Code,
        Exit::Signal(_) => Cause::Signal,
        Exit::Unknown => Cause::Unknown,
    });
    let log_tail = logs::tail(&shared.options, function, id, TAIL_LINES).await;
    Failure { reason, log_tail, exit, out_of_memory }
}

/// A replica that ended by itself while Updraft was away.
#[derive(Debug)]
pub(crate) struct Missed {
    pub(crate) id: ReplicaId,
    pub(crate) function: FunctionId,
    pub(crate) revision: Revision,
    pub(crate) failure: Failure,
}

/// Says how a replica ended that nobody watched, asked while its cgroup is still there.
pub(crate) async fn missed(shared: &Shared, id: &ReplicaId, record: &ReplicaRecord) -> Missed {
    let function = record.function.clone();
    let when = " while Updraft was away";
    let failure = post_mortem(shared, id, &function, Exit::Unknown, when).await;
    Missed { id: id.clone(), function, revision: record.revision, failure }
}
