//! Who needs an image right now, and when each was needed last.
//!
//! A collection decides from records what nothing needs any more, and others may come to need an
//! image in the same moment. So whoever asks for an image is given a lease on it with the answer:
//! for [`LEASE`] nothing collects it, long enough to be deployed and so to show in the records. An
//! image that a collection has begun to remove is not handed out: whoever asks waits until it is
//! gone and is told that it is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use updraft_model::Digest;

/// How long an image stays after somebody asked for it, or after the last record of it went: more
/// than a replica that is on its way out may take.
pub(crate) const LEASE: Duration = Duration::from_mins(10);
/// Moments kept at most; the oldest are forgotten, which only makes their images look new.
const KNOWN_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub(crate) struct Uses {
    state: Mutex<State>,
    left: Notify,
}

#[derive(Debug, Default)]
struct State {
    last: BTreeMap<Digest, Timestamp>,
    leaving: BTreeSet<Digest>,
}

impl Uses {
    /// What an earlier process knew; a file that cannot be read makes every image look new.
    pub(crate) fn open(path: &Path) -> Self {
        let last = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let state = State { last: last.unwrap_or_default(), leaving: BTreeSet::new() };
        Self { state: Mutex::new(state), left: Notify::new() }
    }

    pub(crate) fn save(&self, path: &Path) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(&self.lock().last)?;
        let new = path.with_extension("new");
        std::fs::write(&new, bytes)?;
        std::fs::rename(&new, path)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leases the image. Nothing when a collection is removing it.
    pub(crate) fn lease(&self, id: Digest) -> Option<()> {
        let mut state = self.lock();
        if state.leaving.contains(&id) {
            return None;
        }
        state.last.insert(id, Timestamp::now());
        Some(())
    }

    /// Returns when no collection is removing the image.
    pub(crate) async fn settled(&self, id: &Digest) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if !self.lock().leaving.contains(id) {
                return;
            }
            left.await;
        }
    }

    /// When the image was needed last; one that was never seen is seen now.
    pub(crate) fn last(&self, id: Digest) -> Timestamp {
        *self.lock().last.entry(id).or_insert_with(Timestamp::now)
    }

    /// Notes that records need these, and forgets what is no longer here.
    pub(crate) fn note(&self, kept: &BTreeSet<Digest>, here: &BTreeSet<Digest>) {
        let mut state = self.lock();
        let now = Timestamp::now();
        state.last.retain(|id, _| here.contains(id));
        for id in kept.intersection(here) {
            state.last.insert(*id, now);
        }
        while state.last.len() > KNOWN_MAX {
            let oldest = state.last.iter().min_by_key(|(_, at)| **at).map(|(id, _)| *id);
            oldest.map(|id| state.last.remove(&id));
        }
    }

    /// Takes the image out of circulation, unless it was leased after `before`.
    pub(crate) fn begin_removal(&self, id: Digest, before: Timestamp) -> Option<Leaving<'_>> {
        let mut state = self.lock();
        if state.last.get(&id).is_none_or(|last| *last >= before) {
            return None;
        }
        state.leaving.insert(id);
        Some(Leaving { uses: self, id })
    }
}

/// An image that is being removed; dropped when it is gone, or when it stays after all.
#[derive(Debug)]
pub(crate) struct Leaving<'a> {
    uses: &'a Uses,
    pub(crate) id: Digest,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.uses.lock().leaving.remove(&self.id);
        self.uses.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    #[test]
    fn an_image_that_somebody_asked_for_since_is_not_removed() {
        let uses = Uses::default();
        uses.lease(id(1)).unwrap();
        let before = Timestamp::now();
        assert!(uses.begin_removal(id(1), before).is_some());
        uses.lease(id(1)).unwrap();
        assert!(uses.begin_removal(id(1), before).is_none());
        // One that nobody ever saw may be on its way in.
        assert!(uses.begin_removal(id(2), Timestamp::now()).is_none());
    }

    #[tokio::test]
    async fn who_asks_for_an_image_that_is_being_removed_waits_until_it_is_gone() {
        let uses = Uses::default();
        uses.lease(id(1)).unwrap();
        let leaving = uses.begin_removal(id(1), Timestamp::MAX).unwrap();
        assert!(uses.lease(id(1)).is_none());
        let one = id(1);
        let waiting = uses.settled(&one);
        tokio::pin!(waiting);
        let soon = tokio::time::timeout(Duration::from_millis(20), &mut waiting).await;
        assert!(soon.is_err());
        drop(leaving);
        waiting.await;
        uses.lease(id(1)).unwrap();
    }

    #[test]
    fn what_was_used_when_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uses.json");
        let uses = Uses::open(&path);
        uses.lease(id(1)).unwrap();
        uses.save(&path).unwrap();
        let again = Uses::open(&path);
        assert_eq!(again.last(id(1)), uses.last(id(1)));
    }
}
