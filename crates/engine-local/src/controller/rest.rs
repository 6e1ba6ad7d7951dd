//! Rest without an end: freezing all replicas of a function, and thawing them for a request.
//!
//! The order is what no request can slip through. Doors are shut one by one and only where nobody
//! is inside; then the table says `Frozen`, so that whoever finds a door shut knows what to ask
//! for; then the kernel is asked to freeze. Waking goes the other way: thaw, open, tell. Whatever
//! goes wrong on the way in ends with everything thawed and told.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use updraft_engine::EngineError;

use super::plan::Standing;
use super::{Command, Controller};
use crate::launch;
use crate::replica::Adopted;

/// How long the kernel may take to freeze: a process in an uninterruptible wait holds it up.
const FREEZE_LIMIT: Duration = Duration::from_millis(200);
/// Pause between two looks at whether it is done; usually the first one finds it so.
const FREEZE_LOOK: Duration = Duration::from_millis(1);

/// A wake-up is for somebody who is on his way: so long it is not undone.
const AWAKE_MIN: Duration = Duration::from_millis(50);

/// Whether the replicas of a function run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// They do, since the last thaw, if there was one.
    Awake { since: Option<Instant> },
    /// All are frozen and their doors shut.
    Frozen,
}

impl Controller {
    /// Thaws what is frozen, or runs the minimum of what sleeps.
    pub(super) fn wake(&mut self) -> Result<(), EngineError> {
        let Some(desired) = &self.desired else {
            return Err(EngineError::UnknownFunction(self.id.clone()));
        };
        match (self.rest, desired.replicas) {
            (Rest::Frozen, _) => {
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
        inbox: &mpsc::Receiver<Command>,
    ) -> Result<bool, EngineError> {
        if self.desired.is_none() {
            return Err(EngineError::UnknownFunction(self.id.clone()));
        }
        if self.rest == Rest::Frozen {
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
        self.rest = Rest::Frozen;
        self.tell();
        if self.freeze_groups(inbox).await {
            tracing::debug!(function = %self.id, "frozen");
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
            Rest::Frozen => true,
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

    fn groups(&self) -> Vec<String> {
        let options = &self.shared.options;
        self.members.keys().map(|id| launch::cgroup_of(options, id.as_str())).collect()
    }

    /// Returns whether all of them are frozen.
    async fn freeze_groups(&self, inbox: &mpsc::Receiver<Command>) -> bool {
        let cgroups = &self.shared.runtime.cgroups;
        let groups = self.groups();
        let failed = |error: std::io::Error| {
            tracing::warn!(function = %self.id, %error, "cannot freeze");
        };
        for group in &groups {
            if let Err(error) = cgroups.freeze(group) {
                failed(error);
                return false;
            }
        }
        let limit = Instant::now() + FREEZE_LIMIT;
        for group in &groups {
            loop {
                match cgroups.is_frozen(group) {
                    Ok(true) => break,
                    Ok(false) if inbox.is_empty() && Instant::now() < limit => {}
                    Ok(false) => return false,
                    Err(error) => {
                        failed(error);
                        return false;
                    }
                }
                tokio::time::sleep(FREEZE_LOOK).await;
            }
        }
        true
    }

    /// Lets all replicas go on, when they are frozen. The table is not told yet.
    pub(super) fn thaw(&mut self) {
        if self.rest != Rest::Frozen {
            return;
        }
        let cgroups = &self.shared.runtime.cgroups;
        for (id, member) in &mut self.members {
            match cgroups.thaw(&launch::cgroup_of(&self.shared.options, id.as_str())) {
                Ok(()) => member.replica.load.resume(),
                Err(error) => {
                    // Nothing can be done with it any more: another one takes its place.
                    tracing::error!(replica = %id, %error, "a replica cannot be thawed");
                    member.standing = Standing::Leaving;
                    member.replica.retire();
                }
            }
        }
        self.rest = Rest::Awake { since: Some(Instant::now()) };
        tracing::debug!(function = %self.id, "thawed");
    }

    /// What an earlier run left frozen rests on when that is all there is to the function;
    /// otherwise, also where a crash cut a freeze or a thaw off, all of it is thawed.
    pub(super) fn adopt_rest(&mut self, adopted: &[Adopted]) {
        let Some(desired) = &self.desired else { return };
        if !self.shared.can_freeze || adopted.is_empty() {
            return;
        }
        let cgroups = &self.shared.runtime.cgroups;
        let group = |one: &Adopted| launch::cgroup_of(&self.shared.options, one.id.as_str());
        let rests = desired.candidate.is_none()
            && adopted.len() == desired.replicas as usize
            && adopted.iter().all(|one| {
                one.record.ready
                    && one.record.revision == desired.serving.revision
                    && cgroups.is_frozen(&group(one)).unwrap_or(false)
            });
        if rests {
            self.rest = Rest::Frozen;
            return;
        }
        for one in adopted {
            if let Err(error) = cgroups.thaw(&group(one)) {
                tracing::warn!(replica = %one.id, %error, "an adopted replica may be frozen");
            }
        }
    }
}
