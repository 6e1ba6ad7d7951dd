//! What is desired once a spec is applied: a pure function of what was desired before.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use updraft_engine::{Revision, Wake};
use updraft_model::{Digest, FunctionSpec, SecretName};

use crate::record::{FunctionRecord, RevisionRecord, with_platform_labels};

/// What a caller wants of a function.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) spec: FunctionSpec,
    pub(crate) wake: Wake,
    /// The content that the image reference stands for, when it is here already.
    pub(crate) image: Option<Digest>,
    /// What the secrets hold now.
    pub(crate) secrets: BTreeMap<SecretName, Digest>,
}

/// Applies a wish. `serves` tells whether the serving revision answers or did so once.
///
/// A release that is there already is no new revision; an update always is one. It becomes a candidate beside the serving
/// revision, unless there is nothing that serves: then it takes its place at once.
pub(super) fn applied(
    before: Option<&FunctionRecord>,
    wish: Wish,
    serves: bool,
    now: Timestamp,
) -> FunctionRecord {
    let Wish { spec, wake, image, secrets } = wish;
    let minimum = spec.scale_min();
    let spec = Arc::new(with_platform_labels(spec));
    let record = |revision| RevisionRecord { revision, spec, image, secrets, proven: false };
    let Some(before) = before else {
        return FunctionRecord::new(record(Revision(1)), minimum, now);
    };
    let mut desired = before.clone();
    let slept = desired.replicas == 0;
    if !slept || wake == Wake::AtLeastMinimum {
        desired.replicas = desired.replicas.max(minimum);
    }
    desired.given_up = None;
    let newest = record(Revision(desired.newest.0 + 1));
    if wake == Wake::AtLeastMinimum && is_same(desired.shown(), &newest) {
        return desired;
    }
    desired.newest = newest.revision;
    if desired.replicas == 0 || !serves {
        desired.serving = newest;
        desired.candidate = None;
        desired.woken = false;
    } else {
        desired.woken = slept || (desired.woken && desired.candidate.is_some());
        desired.candidate = Some(newest);
    }
    desired
}

fn is_same(one: &RevisionRecord, other: &RevisionRecord) -> bool {
    // An image that was not looked up yet is taken for the same: its reference is.
    let same_image = one.image.is_none() || other.image.is_none() || one.image == other.image;
    same_image && one.spec == other.spec && one.secrets == other.secrets
}

#[cfg(test)]
mod tests {
    use super::*;
    use updraft_model::{FunctionId, labels};

    fn wish(minimum: Option<u32>, answer: &str) -> Wish {
        let id = FunctionId::in_default("f".parse().unwrap());
        let mut spec = FunctionSpec::new(id, "i".parse().unwrap());
        spec.environment.insert("answer".into(), answer.into());
        if let Some(minimum) = minimum {
            spec.labels.insert(labels::SCALE_MIN.into(), minimum.to_string());
        }
        Wish { spec, wake: Wake::Keep, image: None, secrets: BTreeMap::new() }
    }

    fn record(replicas: u32) -> FunctionRecord {
        let first = applied(None, wish(None, "old"), false, Timestamp::UNIX_EPOCH);
        FunctionRecord { replicas, ..first }
    }

    fn replicas(before: Option<u32>, minimum: Option<u32>) -> u32 {
        let before = before.map(record);
        applied(before.as_ref(), wish(minimum, "new"), true, Timestamp::UNIX_EPOCH).replicas
    }

    #[test]
    fn a_change_is_a_candidate_only_beside_something_that_serves() {
        let now = Timestamp::UNIX_EPOCH;
        let beside = applied(Some(&record(1)), wish(None, "new"), true, now);
        assert_eq!(beside.serving.revision, Revision(1));
        assert_eq!(beside.candidate.map(|candidate| candidate.revision), Some(Revision(2)));
        for (replicas, serves) in [(0, true), (1, false)] {
            let alone = applied(Some(&record(replicas)), wish(None, "new"), serves, now);
            assert_eq!(alone.serving.revision, Revision(2));
            assert_eq!(alone.candidate, None);
        }
        let proof = Wish { wake: Wake::AtLeastMinimum, ..wish(None, "new") };
        let woken = applied(Some(&record(0)), proof, true, now);
        assert!(woken.woken && woken.candidate.is_some());
        assert_eq!(woken.replicas, 1);
    }

    fn release(answer: &str) -> Wish {
        Wish { wake: Wake::AtLeastMinimum, ..wish(None, answer) }
    }

    #[test]
    fn the_same_release_again_is_no_change_unless_image_or_secrets_changed() {
        let now = Timestamp::UNIX_EPOCH;
        let before = record(1);
        assert_eq!(applied(Some(&before), release("old"), true, now), before);
        let digest = |byte| Digest::from_bytes([byte; 32]);
        let mut known = before.clone();
        known.serving.image = Some(digest(1));
        let same = Wish { image: Some(digest(1)), ..release("old") };
        assert_eq!(applied(Some(&known), same, true, now), known);
        let moved = Wish { image: Some(digest(2)), ..release("old") };
        assert_eq!(applied(Some(&known), moved, true, now).newest, Revision(2));
        let secrets = BTreeMap::from([("s".parse().unwrap(), digest(3))]);
        let renewed = Wish { secrets, ..release("old") };
        assert_eq!(applied(Some(&before), renewed, true, now).newest, Revision(2));
    }

    #[test]
    fn an_update_is_a_new_revision_even_when_it_is_the_same() {
        let now = Timestamp::UNIX_EPOCH;
        let rolled = applied(Some(&record(1)), wish(None, "old"), true, now);
        assert_eq!(rolled.candidate.map(|candidate| candidate.revision), Some(Revision(2)));
        let asleep = applied(Some(&record(0)), wish(None, "old"), true, now);
        assert_eq!((asleep.serving.revision, asleep.replicas), (Revision(2), 0));
    }

    /// The table that OpenFaaS's provider is held to: label, replicas before, replicas after.
    #[test]
    fn the_number_of_replicas_is_decided_as_openfaas_decides_it() {
        for (label, before, after) in [
            (None, None, 1),
            (Some(2), None, 2),
            (Some(2), Some(1), 2),
            (Some(2), Some(3), 3),
            (None, Some(3), 3),
            (Some(2), Some(0), 0),
        ] {
            assert_eq!(replicas(before, label), after, "label {label:?}, before {before:?}");
        }
    }
}
