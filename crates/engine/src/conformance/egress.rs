//! Claims about what a function reaches, and who reaches it.

use std::fmt::Display;
use std::sync::Arc;

use updraft_model::FunctionSpec;

use super::{Harness, Judge, narrowed};
use crate::{EngineError, Wake};

impl<H: Harness> Judge<H> {
    /// Whether a function gets a connection to an address or a name with a port.
    pub(super) async fn reaches(&self, spec: &FunctionSpec, target: impl Display) -> bool {
        match self.call(&spec.id, &format!("/connect/{target}")).await.status {
            200 => true,
            500 => false,
            other => panic!("the function answers {other}"),
        }
    }
}

/// Without a word about it, a function reaches the public.
pub async fn an_open_function_reaches_the_outside<H: Harness>(judge: Arc<Judge<H>>) {
    let [one, other] = judge.harness.outside().await;
    for spec in [judge.spec("silent"), narrowed(judge.spec("open"), "open")] {
        judge.deploy(&spec).await;
        assert!(judge.reaches(&spec, one).await && judge.reaches(&spec, other).await);
    }
}

/// `closed` is nothing at all, and others still call the function.
pub async fn a_closed_function_reaches_nothing<H: Harness>(judge: Arc<Judge<H>>) {
    let [one, other] = judge.harness.outside().await;
    let spec = narrowed(judge.spec("closed"), "closed");
    judge.deploy(&spec).await;
    assert!(!judge.reaches(&spec, one).await && !judge.reaches(&spec, other).await);
    assert_eq!(judge.body(&spec.id, "/").await, "hello");
}

/// Addresses, blocks, ports and protocols.
pub async fn a_list_opens_what_it_names_and_nothing_else<H: Harness>(judge: Arc<Judge<H>>) {
    let [one, other] = judge.harness.outside().await;
    for (name, list, reached) in [
        ("address", format!("{}:{}", one.ip(), one.port()), [true, false]),
        ("block", format!("{}/31:{}/tcp", one.ip(), other.port()), [false, true]),
        ("protocol", format!("{}:{}/udp", one.ip(), one.port()), [false, false]),
        ("elsewhere", "198.51.100.0/24".to_owned(), [false, false]),
        ("gateway", "gateway".to_owned(), [false, false]),
        ("public", "public".to_owned(), [true, true]),
    ] {
        let spec = narrowed(judge.spec(name), &list);
        judge.deploy(&spec).await;
        let found = [judge.reaches(&spec, one).await, judge.reaches(&spec, other).await];
        assert_eq!(found, reached, "{list}");
    }
}

/// Neither another tenant's replica nor one of the same tenant.
pub async fn no_function_reaches_another_by_its_address<H: Harness>(judge: Arc<Judge<H>>) {
    let caller = judge.owned("alice", "alice-caller");
    judge.deploy(&caller).await;
    for spec in [judge.owned("alice", "alice-other"), judge.owned("bob", "bob-function")] {
        judge.deploy(&spec).await;
        let address = judge.address(&spec.id);
        assert!(!judge.reaches(&caller, address).await, "{} is reached", spec.id.name);
        assert_eq!(judge.body(&spec.id, "/").await, "hello");
    }
}

/// What holds is what was said last.
pub async fn a_policy_changes_with_the_function<H: Harness>(judge: Arc<Judge<H>>) {
    let [one, other] = judge.harness.outside().await;
    let list = format!("{}:{}", other.ip(), other.port());
    for (egress, reached) in
        [("open", [true, true]), (&list, [false, true]), ("closed", [false, false])]
    {
        let spec = narrowed(judge.spec("changing"), egress);
        judge.deploy(&spec).await;
        let found = [judge.reaches(&spec, one).await, judge.reaches(&spec, other).await];
        assert_eq!(found, reached, "{egress}");
    }
}

/// Nothing runs that would reach more than was meant.
pub async fn a_policy_that_means_nothing_is_refused<H: Harness>(judge: Arc<Judge<H>>) {
    for egress in ["opne", "10.0.0.0/33", "198.51.100.1:99999"] {
        let spec = narrowed(judge.spec("mistaken"), egress);
        let refused = judge.engine().apply(spec, Wake::Keep).await;
        assert!(
            matches!(refused, Err(EngineError::InvalidSpec(_) | EngineError::Invalid(_))),
            "{egress}: {refused:?}"
        );
    }
}
