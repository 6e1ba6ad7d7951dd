//! What to start and what to stop: a pure comparison of what is desired with what runs.

use updraft_engine::{ReplicaId, Revision};

/// How a replica stands to its function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// On its way.
    Starting,
    /// Takes requests.
    Ready,
    /// Was ready and is not for now: counted as one that is there, and given no requests.
    Unready,
    /// On its way out; not counted any more.
    Leaving,
}

/// A replica, as far as the plan needs to know it.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) id: ReplicaId,
    pub(crate) revision: Revision,
    pub(crate) standing: Standing,
    /// Requests on it now.
    pub(crate) load: usize,
}

/// How many replicas of one revision are wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    pub(crate) revision: Revision,
    pub(crate) wanted: u32,
    /// No back-off holds a start up.
    pub(crate) may_start: bool,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// One more replica of each of these.
    pub(crate) start: Vec<Revision>,
    /// These are to go.
    pub(crate) retire: Vec<ReplicaId>,
    /// The candidate is ready to serve; nothing else is to be done before that.
    pub(crate) promote: bool,
}

/// Compares. The candidate takes over when as many of its replicas are ready as are wanted, all
/// at once: from then on no request gets an answer of the old revision.
pub(crate) fn plan(serving: Group, candidate: Option<Group>, members: &[Member]) -> Plan {
    let of = |revision: Revision| {
        members.iter().filter(move |member| {
            member.revision == revision && member.standing != Standing::Leaving
        })
    };
    let mut plan = Plan::default();
    if let Some(candidate) = candidate {
        let ready =
            of(candidate.revision).filter(|member| member.standing == Standing::Ready).count();
        if ready as u64 >= u64::from(candidate.wanted) {
            return Plan { promote: true, ..plan };
        }
    }
    for group in [Some(serving), candidate].into_iter().flatten() {
        let wanted = group.wanted as usize;
        let mut live: Vec<_> = of(group.revision).collect();
        if live.len() < wanted && group.may_start {
            plan.start.extend(std::iter::repeat_n(group.revision, wanted - live.len()));
        } else if live.len() > wanted {
            // Those that are not ready yet go first, then the idlest.
            live.sort_by_key(|member| (member.standing == Standing::Ready, member.load));
            plan.retire.extend(live.drain(..live.len() - wanted).map(|member| member.id.clone()));
        }
    }
    let wanted = |revision| {
        revision == serving.revision
            || candidate.is_some_and(|candidate| candidate.revision == revision)
    };
    let outdated = members
        .iter()
        .filter(|member| member.standing != Standing::Leaving && !wanted(member.revision));
    plan.retire.extend(outdated.map(|member| member.id.clone()));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, revision: u64, standing: Standing, load: usize) -> Member {
        Member { id: ReplicaId::new(id), revision: Revision(revision), standing, load }
    }

    fn group(revision: u64, wanted: u32) -> Group {
        Group { revision: Revision(revision), wanted, may_start: true }
    }

    fn ids(ids: &[&str]) -> Vec<ReplicaId> {
        ids.iter().map(|id| ReplicaId::new(*id)).collect()
    }

    #[test]
    fn missing_replicas_are_started_unless_they_are_held_up() {
        let one = [member("a", 1, Standing::Ready, 0), member("b", 1, Standing::Leaving, 0)];
        assert_eq!(plan(group(1, 3), None, &one).start, [Revision(1), Revision(1)]);
        let held = Group { may_start: false, ..group(1, 3) };
        assert_eq!(plan(held, None, &one), Plan::default());
    }

    #[test]
    fn the_idlest_go_first_and_unready_ones_before_them() {
        let three = [
            member("busy", 1, Standing::Ready, 5),
            member("idle", 1, Standing::Ready, 0),
            member("young", 1, Standing::Starting, 0),
        ];
        assert_eq!(plan(group(1, 1), None, &three).retire, ids(&["young", "idle"]));
        assert_eq!(plan(group(1, 0), None, &three).retire.len(), 3);
    }

    #[test]
    fn one_that_is_not_ready_for_now_is_not_replaced_and_goes_before_ready_ones() {
        let mut two =
            [member("idle", 1, Standing::Ready, 0), member("moody", 1, Standing::Unready, 9)];
        assert_eq!(plan(group(1, 2), None, &two), Plan::default());
        assert_eq!(plan(group(1, 1), None, &two).retire, ids(&["moody"]));
        // Nor does it prove a new revision.
        for one in &mut two {
            one.revision = Revision(2);
        }
        assert!(!plan(group(1, 0), Some(group(2, 2)), &two).promote);
    }

    #[test]
    fn the_old_revision_stays_until_all_of_the_new_one_are_ready() {
        let mut members = vec![
            member("old1", 1, Standing::Ready, 0),
            member("old2", 1, Standing::Ready, 0),
            member("new1", 2, Standing::Ready, 0),
            member("new2", 2, Standing::Starting, 0),
        ];
        assert_eq!(plan(group(1, 2), Some(group(2, 2)), &members), Plan::default());
        members[3].standing = Standing::Ready;
        assert!(plan(group(1, 2), Some(group(2, 2)), &members).promote);
        assert_eq!(plan(group(2, 2), None, &members).retire, ids(&["old1", "old2"]));
    }

    #[test]
    fn replicas_of_a_superseded_candidate_go() {
        let members = [member("old", 1, Standing::Ready, 0), member("gone", 2, Standing::Ready, 0)];
        let plan = plan(group(1, 1), Some(group(3, 1)), &members);
        assert_eq!((plan.start, plan.retire), (vec![Revision(3)], ids(&["gone"])));
    }
}
