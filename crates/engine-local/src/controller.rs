//! One task per function: it alone changes what is desired of it and what runs for it.
//!
//! After whatever happened (a command, a report of a replica, a timer) it compares desired and
//! actual (`plan`) and acts on the difference. The order is what keeps requests whole: a new
//! revision is published before an old replica is told to go, and a replica is out of the table
//! before it is drained. A function that rests (`rest`) is frozen as a whole, and only as long as
//! there is nothing to do for it.

mod desire;
mod plan;
mod rest;
mod trouble;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use updraft_engine::{Endpoint, EngineError, Expect, FunctionEndpoints, ReplicaId, Revision};
use updraft_model::FunctionId;

use crate::exit::Exit;
use crate::logs;
use crate::record::{Durability, ExitRecord, FunctionRecord, GivenUp, RevisionRecord};
use crate::replica::{self, Adopted, Failure, Missed, Replica, Report, Reports};
use crate::shared::Shared;
pub(crate) use desire::Wish;
use plan::{Group, Plan, Standing};
use rest::Rest;
use trouble::Trouble;
pub(crate) use view::{FunctionState, MemberView, verdict};

/// A roll-out is given up after so many replicas that ended by themselves.
const CANDIDATE_FAILURES: u32 = 3;

/// How much later than a request the table hears of the thaw; until then others find the doors
/// open by themselves.
const AFTER_THAW: Duration = Duration::from_millis(2);

/// What a function is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Apply { wish: Box<Wish>, expect: Expect, reply: oneshot::Sender<Result<Revision, EngineError>> },
    Scale { replicas: u32, reply: oneshot::Sender<Result<(), EngineError>> },
    Wake { reply: oneshot::Sender<Result<(), EngineError>> },
    Freeze { reply: oneshot::Sender<Result<bool, EngineError>> },
    Remove { reply: oneshot::Sender<Result<(), EngineError>> },
}

/// The engine's handle on a function.
#[derive(Debug, Clone)]
pub(crate) struct FunctionHandle {
    /// Boxed, as reports are: a channel keeps room for dozens, and there is one for each function.
    pub(crate) commands: mpsc::Sender<Box<Command>>,
    /// Nothing before the first apply and after the removal.
    pub(crate) state: watch::Receiver<Option<FunctionState>>,
}

/// Where the endpoint table is changed.
pub(crate) type Publish = Arc<dyn Fn(&FunctionId, Option<Arc<FunctionEndpoints>>) + Send + Sync>;

/// Starts the task of a function.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    id: FunctionId,
    record: Option<FunctionRecord>,
    adopted: Vec<Adopted>,
    missed: &[Missed],
    publish: Publish,
) -> FunctionHandle {
    let (commands, inbox) = mpsc::channel(32);
    let (state, watched) = watch::channel(None);
    // Unbounded: replicas report a handful of times each, and must never wait for their function.
    let (reports, reported) = mpsc::unbounded_channel();
    // Boxed: its task would hold room for it four times over.
    let mut controller = Box::new(Controller {
        shared: Arc::clone(shared),
        id,
        desired: record,
        members: BTreeMap::new(),
        serving_trouble: Trouble::default(),
        candidate_trouble: Trouble::default(),
        rest: Rest::Awake { since: None },
        rest_over: Arc::default(),
        published: None,
        state,
        reports,
        publish,
    });
    controller.adopt(adopted);
    controller.count_missed(missed);
    controller.reconcile();
    shared.tasks.spawn(controller.run(inbox, reported));
    FunctionHandle { commands, state: watched }
}

/// A replica and what is known of it.
struct Member {
    replica: Replica,
    standing: Standing,
    endpoint: Option<Arc<Endpoint>>,
    /// Why it takes no requests for now, though it did.
    unready: Option<String>,
}

struct Controller {
    shared: Arc<Shared>,
    id: FunctionId,
    desired: Option<FunctionRecord>,
    members: BTreeMap<ReplicaId, Member>,
    serving_trouble: Trouble,
    candidate_trouble: Trouble,
    rest: Rest,
    /// Told when a request has ended the rest.
    rest_over: Arc<Notify>,
    published: Option<Arc<FunctionEndpoints>>,
    state: watch::Sender<Option<FunctionState>>,
    reports: Reports,
    publish: Publish,
}

impl Controller {
    async fn run(
        mut self: Box<Self>,
        mut inbox: mpsc::Receiver<Box<Command>>,
        mut reported: mpsc::UnboundedReceiver<Box<(ReplicaId, Report)>>,
    ) {
        let rest_over = Arc::clone(&self.rest_over);
        loop {
            let wake_up = self.next_timer();
            let command = tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => command,
                    None => return,
                },
                Some(report) = reported.recv() => {
                    let (replica, report) = *report;
                    self.settle();
                    self.take_report(&replica, report);
                    self.reconcile();
                    continue;
                }
                () = sleep_until(wake_up.unwrap_or_else(Instant::now)), if wake_up.is_some() => {
                    self.settle();
                    self.reclaim_if_due();
                    self.reconcile();
                    continue;
                }
                () = rest_over.notified() => {
                    // The request that ended it needs the processors now, and nothing of this.
                    tokio::time::sleep(AFTER_THAW).await;
                    self.settle();
                    continue;
                }
                () = self.shared.closing.cancelled() => return,
            };
            self.settle();
            // A caller that left does not need the answer.
            match *command {
                Command::Apply { wish, expect, reply } => {
                    let answer = self.apply(*wish, expect);
                    self.reconcile();
                    drop(reply.send(answer));
                }
                Command::Scale { replicas, reply } => drop(reply.send(self.scale(replicas))),
                Command::Wake { reply } => drop(reply.send(self.wake())),
                Command::Freeze { reply } => {
                    let answer = self.freeze(&inbox).await;
                    drop(reply.send(answer));
                }
                Command::Remove { reply } => {
                    let answer = self.remove();
                    let removed = answer.is_ok();
                    drop(reply.send(answer));
                    if removed {
                        drop(inbox);
                        return self.wind_up(reported).await;
                    }
                }
            }
        }
    }

    /// Waits for the replicas of a removed function, then removes their logs.
    async fn wind_up(
        mut self: Box<Self>,
        mut reported: mpsc::UnboundedReceiver<Box<(ReplicaId, Report)>>,
    ) {
        while !self.members.is_empty() {
            tokio::select! {
                Some(report) = reported.recv() => {
                    let (replica, report) = *report;
                    if matches!(report, Report::Gone(_)) {
                        self.members.remove(&replica);
                    }
                }
                () = self.shared.closing.cancelled() => return,
            }
        }
        let shared = &self.shared;
        let place = logs::folder(&shared.options, &self.id);
        logs::remove_all(&place, |replica| shared.is_running(replica));
    }

    fn next_timer(&self) -> Option<Instant> {
        let now = Instant::now();
        let pending = [&self.serving_trouble, &self.candidate_trouble];
        pending
            .into_iter()
            .flat_map(|trouble| [trouble.next_start, trouble.steady])
            .flatten()
            .chain(self.reclaim_at())
            .filter(|at| *at > now)
            .min()
    }

    fn adopt(&mut self, adopted: Vec<Adopted>) {
        self.adopt_rest(&adopted);
        for adopted in adopted {
            let Some(record) = self.revision(adopted.record.revision) else { continue };
            let spec = Arc::clone(&record.spec);
            let id = adopted.id.clone();
            if self.is_frozen() {
                // Nobody knows the replica yet, so nobody is on it.
                let _ = adopted.load.pause_if_idle();
            }
            let (ready, leaving) = (adopted.record.ready, adopted.record.leaving);
            // One that was ready is so from the first moment: no request waits for its task.
            let endpoint = (ready && !leaving).then(|| Arc::new(adopted.endpoint()));
            let standing = match endpoint {
                _ if leaving => Standing::Leaving,
                Some(_) => Standing::Ready,
                None => Standing::Starting,
            };
            let reports = self.reports.clone();
            let replica = replica::adopt(&self.shared, adopted, spec, reports);
            if leaving {
                replica.retire();
            }
            self.members.insert(id, Member { replica, standing, endpoint, unready: None });
        }
    }

    /// What is desired of a revision that is not on its way out.
    fn revision(&self, revision: Revision) -> Option<&RevisionRecord> {
        let desired = self.desired.as_ref()?;
        let mut revisions = std::iter::once(&desired.serving).chain(&desired.candidate);
        revisions.find(|record| record.revision == revision)
    }

    fn save(&self, durability: Durability) -> Result<(), EngineError> {
        let Some(desired) = &self.desired else { return Ok(()) };
        let saved = self.shared.records.save(&self.id, desired, durability);
        saved.map_err(|error| EngineError::engine(format!("record function `{}`", self.id), error))
    }

    fn apply(&mut self, wish: Wish, expect: Expect) -> Result<Revision, EngineError> {
        let before = self.desired.clone();
        let there = before.as_ref().map(|there| (there.created_at, there.shown().revision));
        if !expect.is_met(there) {
            return Err(EngineError::Superseded(self.id.clone()));
        }
        let serves = self.serves();
        let applied = desire::applied(before.as_ref(), wish, serves, Timestamp::now());
        let revision = applied.shown().revision;
        let is_new = before.as_ref().is_none_or(|before| before.newest != applied.newest);
        if before.as_ref() != Some(&applied) {
            self.desired = Some(applied);
            if let Err(error) = self.save(Durability::Synced) {
                self.desired = before;
                return Err(error);
            }
        }
        if is_new {
            self.candidate_trouble = Trouble::default();
        }
        // What does not serve is tried anew at once, also when the same is applied again.
        if serves {
            self.serving_trouble.next_start = None;
        } else {
            self.serving_trouble = Trouble::default();
        }
        Ok(revision)
    }

    /// The serving revision answers, or did so once.
    fn serves(&self) -> bool {
        self.desired.as_ref().is_some_and(|desired| desired.serving.proven)
    }

    fn scale(&mut self, replicas: u32) -> Result<(), EngineError> {
        let Some(desired) = &mut self.desired else {
            return Err(EngineError::UnknownFunction(self.id.clone()));
        };
        let before = desired.clone();
        desired.replicas = replicas;
        desired.woken = false;
        if replicas == 0
            && let Some(candidate) = desired.candidate.take()
        {
            // Asleep, a revision takes over without a proof, as it does when it is applied then.
            desired.serving = candidate;
        }
        if before.replicas == 0 {
            self.serving_trouble = Trouble::default();
        }
        let changed = *desired != before;
        // Replicas first, the disk after: a wake-up is waited for.
        self.thaw();
        self.reconcile();
        if changed { self.save(Durability::Written) } else { Ok(()) }
    }

    fn remove(&mut self) -> Result<(), EngineError> {
        if self.desired.is_none() {
            return Err(EngineError::UnknownFunction(self.id.clone()));
        }
        self.shared.records.remove(&self.id).map_err(|error| {
            EngineError::engine(format!("remove the record of `{}`", self.id), error)
        })?;
        self.desired = None;
        (self.publish)(&self.id, None);
        for member in self.members.values() {
            // Closed here and now: who still holds an older table gets no lease either.
            member.replica.load.close();
            member.replica.retire();
        }
        self.state.send_replace(None);
        Ok(())
    }

    fn take_report(&mut self, id: &ReplicaId, report: Report) {
        match report {
            Report::Image(revision, image) => {
                self.note(revision, |record| record.image.replace(image) != Some(image));
            }
            Report::Ready(endpoint) => {
                if let Some(member) = self.members.get_mut(id) {
                    if member.standing == Standing::Starting {
                        member.standing = Standing::Ready;
                    }
                    // One that was adopted ready has been told with the endpoint it has.
                    member.endpoint.get_or_insert(endpoint);
                    let revision = member.replica.revision;
                    self.note(revision, |record| !std::mem::replace(&mut record.proven, true));
                }
            }
            Report::Readiness(unready) => {
                let Some(member) = self.members.get_mut(id) else { return };
                member.standing = match (member.standing, &unready) {
                    (Standing::Ready, Some(_)) => Standing::Unready,
                    (Standing::Unready, None) => Standing::Ready,
                    // It is on its way out.
                    _ => return,
                };
                tracing::info!(replica = %id, ?unready, "readiness of a replica has changed");
                member.unready = unready;
            }
            Report::TooLate(failure) => {
                let Some(member) = self.members.get_mut(id) else { return };
                let was_counted = std::mem::replace(&mut member.standing, Standing::Leaving);
                let revision = member.replica.revision;
                if was_counted != Standing::Leaving {
                    self.count(id, revision, failure);
                    self.give_up(revision);
                }
            }
            Report::Unhealthy(failure) => {
                let Some(member) = self.members.get_mut(id) else { return };
                let was_counted = std::mem::replace(&mut member.standing, Standing::Leaving);
                let revision = member.replica.revision;
                if was_counted != Standing::Leaving {
                    self.count(id, revision, failure);
                }
            }
            Report::Gone(failure) => {
                let Some(member) = self.members.remove(id) else { return };
                let Some(failure) = failure else { return };
                if member.standing != Standing::Leaving {
                    self.count(id, member.replica.revision, failure);
                }
            }
        }
    }

    /// Counts what ended while Updraft was away. That holds no start back: how fast they followed
    /// each other is not known.
    fn count_missed(&mut self, missed: &[Missed]) {
        let Some(desired) = &mut self.desired else { return };
        for Missed { id, revision, failure, .. } in missed {
            tracing::info!(replica = %id, reason = failure.reason, "replica failed");
            desired.exits += 1;
            desired.last_exit = Some(exit_record(id, *revision, failure));
        }
        if !missed.is_empty() {
            self.save_behind();
        }
    }

    /// Counts a failure against the revision it belongs to.
    fn count(&mut self, id: &ReplicaId, revision: Revision, failure: Failure) {
        tracing::info!(replica = %id, reason = failure.reason, "replica failed");
        let Some(desired) = &mut self.desired else { return };
        desired.exits += 1;
        desired.last_exit = Some(exit_record(id, revision, &failure));
        let steady_after = self.shared.options.steady_after;
        if revision == desired.serving.revision {
            self.serving_trouble.add(failure, steady_after);
        } else if desired.candidate.as_ref().is_some_and(|record| record.revision == revision) {
            self.candidate_trouble.add(failure, steady_after);
            if self.candidate_trouble.failures >= CANDIDATE_FAILURES {
                self.give_up(revision);
            }
        }
        self.save_behind();
    }

    /// Lets `revision` go if it is the one being rolled out; the serving one stays.
    fn give_up(&mut self, revision: Revision) {
        let Some(desired) = &mut self.desired else { return };
        if desired.candidate.as_ref().is_none_or(|record| record.revision != revision) {
            return;
        }
        let Some(failure) = self.candidate_trouble.last.take() else { return };
        let Some(candidate) = desired.candidate.take() else { return };
        if std::mem::take(&mut desired.woken) {
            desired.replicas = 0;
        }
        desired.given_up = Some(GivenUp {
            revision: candidate.revision,
            reason: failure.reason,
            log_tail: failure.log_tail,
        });
        self.candidate_trouble = Trouble::default();
        self.save_behind();
    }

    /// Notes something about a revision; `change` says whether that was news.
    fn note(&mut self, revision: Revision, change: impl Fn(&mut RevisionRecord) -> bool) {
        let Some(desired) = &mut self.desired else { return };
        let record = match &mut desired.candidate {
            Some(candidate) if candidate.revision == revision => candidate,
            _ if desired.serving.revision == revision => &mut desired.serving,
            _ => return,
        };
        if change(record) {
            self.save_behind();
        }
    }

    /// Saves what nobody waits for. When the disk refuses, the next start knows a little less.
    fn save_behind(&self) {
        if let Err(error) = self.save(Durability::Written) {
            tracing::warn!(function = %self.id, %error, "a record is out of date");
        }
    }

    fn ready(&self, revision: Revision) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.members
            .values()
            .filter(move |member| {
                member.standing == Standing::Ready && member.replica.revision == revision
            })
            .filter_map(|member| member.endpoint.as_ref())
    }

    /// Makes actual what is desired, as far as it goes now.
    fn reconcile(&mut self) {
        let Some(desired) = &self.desired else { return };
        let ready = self.ready(desired.serving.revision).count();
        let does_well = ready as u64 >= u64::from(desired.replicas) && !self.is_frozen();
        if does_well && self.serving_trouble.may_be_forgotten() {
            self.serving_trouble = Trouble::default();
        }
        let group = |revision: Revision, wanted, may_start| Group { revision, wanted, may_start };
        // A function that slept and is being rolled out with a wake-up tries the new revision
        // only, unless somebody asks for it meanwhile.
        let old = if desired.woken { 0 } else { desired.replicas };
        let serving = group(desired.serving.revision, old, self.serving_trouble.is_over());
        let candidate = desired.candidate.as_ref().map(|candidate| {
            group(candidate.revision, desired.replicas, self.candidate_trouble.is_over())
        });
        let members: Vec<_> = self
            .members
            .iter()
            .map(|(id, member)| plan::Member {
                id: id.clone(),
                revision: member.replica.revision,
                standing: member.standing,
                load: member.replica.load.in_flight(),
            })
            .collect();
        let plan = plan::plan(serving, candidate, &members);
        if plan != Plan::default() {
            self.thaw();
        }
        let Plan { start, retire, promote } = plan;
        if promote {
            self.promote();
            return self.reconcile();
        }
        for revision in start {
            self.start(revision);
        }
        for id in &retire {
            if let Some(member) = self.members.get_mut(id) {
                member.standing = Standing::Leaving;
            }
        }
        // Out of the table before it is told to go.
        self.tell();
        for id in &retire {
            if let Some(member) = self.members.get(id) {
                member.replica.retire();
            }
        }
    }

    /// The new revision is ready: it serves from now on.
    fn promote(&mut self) {
        let Some(desired) = &mut self.desired else { return };
        let Some(candidate) = desired.candidate.take() else { return };
        desired.serving = candidate;
        desired.woken = false;
        desired.given_up = None;
        self.serving_trouble = Trouble::default();
        self.candidate_trouble = Trouble::default();
        self.save_behind();
    }

    fn start(&mut self, revision: Revision) {
        let Some(record) = self.revision(revision) else { return };
        let (spec, image) = (Arc::clone(&record.spec), record.image);
        let options = &self.shared.options;
        let place = logs::folder(options, &self.id);
        let shared = &self.shared;
        let (kept, bytes) = (options.kept_logs, options.function_log_bytes);
        logs::prune(&place, kept, bytes, |replica| shared.is_running(replica));
        let id = new_id(&self.id);
        let reports = self.reports.clone();
        let replica = replica::start(shared, id.clone(), spec, revision, image, reports);

        let standing = Standing::Starting;
        self.members.insert(id, Member { replica, standing, endpoint: None, unready: None });
    }
}

/// What is kept of a failure.
fn exit_record(id: &ReplicaId, revision: Revision, failure: &Failure) -> ExitRecord {
    let (code, signal) = match failure.exit {
        Exit::Code(code) => (Some(code), None),
        Exit::Signal(signal) => (None, Some(signal)),
        Exit::Unknown => (None, None),
    };
    ExitRecord {
        replica: id.as_str().to_owned(),
        revision,
        at: Timestamp::now(),
        reason: failure.reason.clone(),
        code,
        signal,
        out_of_memory: failure.out_of_memory,
        log_tail: failure.log_tail.clone(),
    }
}

/// A name that no replica had before.
fn new_id(id: &FunctionId) -> ReplicaId {
    let mut random = [0; 5];
    if getrandom::fill(&mut random).is_err() {
        // Without random numbers the time is as good: starts of one function are not that many.
        let now = Timestamp::now().as_microsecond().to_be_bytes();
        random.copy_from_slice(&now[3..]);
    }
    ReplicaId::new(format!("{}-{}", id.name, hex::encode(random)))
}
