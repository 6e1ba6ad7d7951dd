//! Rest without an end: freezing all replicas of a function, and thawing them for a request.
//!
//! The order is what no request can slip through. Doors are shut one by one and only where nobody
//! is inside; then the table says `Frozen`, so that whoever finds a door shut knows what to ask
//! for; then the kernel is asked to freeze. Waking goes the other way: thaw, open, tell. Whatever
//! goes wrong on the way in ends with everything thawed and told.
//!
//! A rest is one [`Sleep`], which the data plane shares: the request that ends it thaws the
//! replicas itself, and the function's task hears of it afterwards. Freezing and thawing exclude
//! each other by the lock in it, and a rest that has ended once never freezes anything again.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use updraft_engine::{Endpoint, EngineError, ReplicaId, ReplicaLoad, Resting, Thaw};

use super::plan::Standing;
use super::{Command, Controller};
use crate::cgroup::Cgroups;
use crate::metrics::EngineMetrics;
use crate::replica::Adopted;

/// How long the kernel may take to freeze: a process in an uninterruptible wait holds it up.
const FREEZE_LIMIT: Duration = Duration::from_millis(200);
/// Pause between two looks at whether it is done; usually the first one finds it so.
const FREEZE_LOOK: Duration = Duration::from_millis(1);

/// A wake-up is for somebody who is on his way: so long it is not undone.
const AWAKE_MIN: Duration = Duration::from_millis(50);

/// Whether the replicas of a function run.
#[derive(Debug)]
pub(super) enum Rest {
    /// They do, since the last thaw, if there was one.
    Awake { since: Option<Instant> },
    /// All are frozen and their doors shut, unless somebody has just ended it.
    Frozen(Arc<Sleep>),
}

/// One rest of one function.
pub(super) struct Sleep {
    cgroups: Cgroups,
    replicas: Vec<Sleeper>,
    phase: Mutex<Phase>,
    /// Tells the function's task that the rest is over.
    over: Arc<Notify>,
    began: Instant,
}

/// A replica that rests.
struct Sleeper {
    id: ReplicaId,
    group: String,
    load: Arc<ReplicaLoad>,
}

/// Where a rest is.
#[derive(Debug, Clone)]
enum Phase {
    /// Doors are shut; the kernel freezes or has frozen. `reclaimed` once memory was put out.
    Asleep { reclaimed: bool },
    /// It is over since then; these could not be thawed.
    Over { since: Instant, stuck: Vec<ReplicaId> },
}

impl Sleep {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        matches!(*self.phase(), Phase::Over { .. })
    }

    /// Asks the kernel to freeze, unless the rest is over already.
    fn freeze(&self) -> io::Result<()> {
        let phase = self.phase();
        if let Phase::Asleep { .. } = *phase {
            for sleeper in &self.replicas {
                self.cgroups.freeze(&sleeper.group)?;
            }
        }
        drop(phase);
        Ok(())
    }

    /// Ends the rest, once. Nothing waits for anybody here: it is on the way of a request.
    fn end(&self) {
        let mut phase = self.phase();
        let Phase::Asleep { .. } = *phase else { return };
        let mut stuck = Vec::new();
        for sleeper in &self.replicas {
            match self.cgroups.thaw(&sleeper.group) {
                Ok(()) => sleeper.load.resume(),
                Err(error) => {
                    tracing::error!(replica = %sleeper.id, %error, "a replica cannot be thawed");
                    stuck.push(sleeper.id.clone());
                }
            }
        }
        *phase = Phase::Over { since: Instant::now(), stuck };
        drop(phase);
        self.over.notify_one();
    }

    /// Puts the memory of the replicas out to swap. Takes as long as the disk takes.
    fn reclaim(&self, metrics: &EngineMetrics) {
        for sleeper in &self.replicas {
            if self.is_over() {
                return;
            }
            match self.cgroups.reclaim(&sleeper.group) {
                Ok(bytes) => {
                    metrics.reclaimed(bytes);
                    tracing::debug!(replica = %sleeper.id, bytes, "memory of a frozen replica reclaimed");
                }
                Err(error) => {
                    tracing::debug!(replica = %sleeper.id, %error, "memory cannot be reclaimed");
                }
            }
        }
    }
}

impl Thaw for Sleep {
    fn thaw(&self) -> bool {
        self.end();
        true
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("phase", &*self.phase()).finish_non_exhaustive()
    }
}

impl Controller {
    /// Thaws what is frozen, or runs the minimum of what sleeps.
    pub(super) fn wake(&mut self) -> Result<(), EngineError> {
        let Some(desired) = &self.desired else {
            return Err(EngineError::UnknownFunction(self.id.clone()));
        };
        match (&self.rest, desired.replicas) {
            (Rest::Frozen(_), _) => {
                self.thaw();
                self.tell();
                Ok(())
            }
            (Rest::Awake { .. }, 0) => {
                let minimum = desired.serving.spec.scale_min();
                self.scale(minimum)
            }
            (Rest::Awake { .. }, _) => Ok(()),
        }
    }

    /// Freezes all replicas, unless there is something to do for one of them. Gives up when a
    /// command comes in meanwhile: it is for somebody who waits.
    pub(super) async fn freeze(
        &mut self,
        inbox: &mpsc::Receiver<Box<Command>>,
    ) -> Result<bool, EngineError> {
        if self.desired.is_none() {
            return Err(EngineError::UnknownFunction(self.id.clone()));
        }
        if self.is_frozen() {
            return Ok(true);
        }
        if !self.may_freeze() {
            return Ok(false);
        }
        let doors: Vec<_> =
            self.members.values().map(|member| Arc::clone(&member.replica.load)).collect();
        if let Some(busy) = doors.iter().position(|door| !door.pause_if_idle()) {
            doors[..busy].iter().for_each(|door| door.resume());
            if busy > 0 {
                // Somebody may have found one of them shut: a new entry makes him look again.
                self.published = None;
                self.tell();
            }
            return Ok(false);
        }
        let sleep = self.new_sleep();
        self.rest = Rest::Frozen(Arc::clone(&sleep));
        self.tell();
        if self.freeze_groups(&sleep, inbox).await {
            tracing::debug!(function = %self.id, "frozen");
            self.shared.metrics.frozen();
            return Ok(true);
        }
        self.thaw();
        self.tell();
        Ok(false)
    }

    /// Every replica that is wanted is there and ready, and nothing else is.
    fn may_freeze(&self) -> bool {
        let Some(desired) = &self.desired else { return false };
        let rested = match self.rest {
            Rest::Awake { since } => since.is_none_or(|since| since.elapsed() >= AWAKE_MIN),
            Rest::Frozen(_) => true,
        };
        self.shared.can_freeze
            && rested
            && desired.candidate.is_none()
            && desired.replicas > 0
            && self.members.len() == desired.replicas as usize
            && self.members.values().all(|member| {
                member.standing == Standing::Ready
                    && member.replica.revision == desired.serving.revision
            })
    }

    pub(super) fn is_frozen(&self) -> bool {
        matches!(self.rest, Rest::Frozen(_))
    }

    /// What the table shows of a rest.
    pub(super) fn resting(&self, replicas: Vec<Arc<Endpoint>>) -> Option<Resting> {
        match &self.rest {
            Rest::Frozen(sleep) => {
                Some(Resting { replicas, thaw: Arc::<Sleep>::clone(sleep) as Arc<dyn Thaw> })
            }
            Rest::Awake { .. } => None,
        }
    }

    fn new_sleep(&self) -> Arc<Sleep> {
        let groups = &self.shared.groups;
        let replicas = self.members.iter().map(|(id, member)| Sleeper {
            id: id.clone(),
            group: groups.of(id.as_str()),
            load: Arc::clone(&member.replica.load),
        });
        self.sleep_of(replicas.collect())
    }

    fn sleep_of(&self, replicas: Vec<Sleeper>) -> Arc<Sleep> {
        Arc::new(Sleep {
            cgroups: self.shared.runtime.cgroups.clone(),
            replicas,
            phase: Mutex::new(Phase::Asleep { reclaimed: false }),
            over: Arc::clone(&self.rest_over),
            began: Instant::now(),
        })
    }

    /// Returns whether all of them are frozen.
    async fn freeze_groups(&self, sleep: &Sleep, inbox: &mpsc::Receiver<Box<Command>>) -> bool {
        let cgroups = &self.shared.runtime.cgroups;
        let failed = |error: io::Error| {
            tracing::warn!(function = %self.id, %error, "cannot freeze");
        };
        if let Err(error) = sleep.freeze() {
            failed(error);
            return false;
        }
        let limit = Instant::now() + FREEZE_LIMIT;
        for sleeper in &sleep.replicas {
            loop {
                match cgroups.is_frozen(&sleeper.group) {
                    Ok(true) => break,
                    Ok(false) if inbox.is_empty() && !sleep.is_over() && Instant::now() < limit => {
                    }
                    Ok(false) => return false,
                    Err(error) => {
                        failed(error);
                        return false;
                    }
                }
                tokio::time::sleep(FREEZE_LOOK).await;
            }
        }
        !sleep.is_over()
    }

    /// Lets all replicas go on, when they are frozen. The table is not told yet.
    pub(super) fn thaw(&mut self) {
        if let Rest::Frozen(sleep) = &self.rest {
            sleep.end();
            self.note_end_of_rest();
            self.shared.metrics.thawed(false);
        }
    }

    /// Takes note of a rest that a request has ended, and tells it.
    pub(super) fn settle(&mut self) {
        if self.note_end_of_rest() {
            self.shared.metrics.thawed(true);
            self.tell();
        }
    }

    /// Returns whether there was one.
    fn note_end_of_rest(&mut self) -> bool {
        let Rest::Frozen(sleep) = &self.rest else { return false };
        let Phase::Over { since, stuck } = sleep.phase().clone() else { return false };
        self.serving_trouble.rested(since.saturating_duration_since(sleep.began));
        for id in stuck {
            // Nothing can be done with it any more: another one takes its place.
            if let Some(member) = self.members.get_mut(&id) {
                member.standing = Standing::Leaving;
                member.replica.retire();
            }
        }
        self.rest = Rest::Awake { since: Some(since) };
        tracing::debug!(function = %self.id, "thawed");
        true
    }

    /// When the memory of a function that rests may be put out.
    pub(super) fn reclaim_at(&self) -> Option<Instant> {
        let Rest::Frozen(sleep) = &self.rest else { return None };
        let waits = matches!(*sleep.phase(), Phase::Asleep { reclaimed: false });
        (waits && self.shared.can_reclaim).then(|| sleep.began + self.shared.options.reclaim_after)
    }

    /// Puts the memory of a function out that has rested long enough.
    pub(super) fn reclaim_if_due(&self) {
        if self.reclaim_at().is_none_or(|at| at > Instant::now()) {
            return;
        }
        let Rest::Frozen(sleep) = &self.rest else { return };
        if let Phase::Asleep { reclaimed } = &mut *sleep.phase() {
            *reclaimed = true;
        }
        let (sleep, metrics) = (Arc::clone(sleep), self.shared.metrics.clone());
        self.shared.tasks.spawn_blocking(move || sleep.reclaim(&metrics));
    }

    /// What an earlier run left frozen rests on when that is all there is to the function;
    /// otherwise, also where a crash cut a freeze or a thaw off, all of it is thawed.
    pub(super) fn adopt_rest(&mut self, adopted: &[Adopted]) {
        let Some(desired) = &self.desired else { return };
        if !self.shared.can_freeze || adopted.is_empty() {
            return;
        }
        let cgroups = &self.shared.runtime.cgroups;
        let group = |one: &Adopted| self.shared.groups.of(one.id.as_str());
        let rests = desired.candidate.is_none()
            && adopted.len() == desired.replicas as usize
            && adopted.iter().all(|one| {
                one.record.ready
                    && one.record.revision == desired.serving.revision
                    && cgroups.is_frozen(&group(one)).unwrap_or(false)
            });
        if rests {
            let sleepers = adopted.iter().map(|one| Sleeper {
                id: one.id.clone(),
                group: group(one),
                load: Arc::clone(&one.load),
            });
            let sleep = self.sleep_of(sleepers.collect());
            self.rest = Rest::Frozen(sleep);
            return;
        }
        for one in adopted {
            if let Err(error) = cgroups.thaw(&group(one)) {
                tracing::warn!(replica = %one.id, %error, "an adopted replica may be frozen");
            }
        }
    }
}
