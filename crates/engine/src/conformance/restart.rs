//! Claims about the end of the control plane: what was asked for is still asked for afterwards, and
//! replicas go on where the engine says so ([`Capabilities::survives_restart`]).
//!
//! [`Capabilities::survives_restart`]: crate::Capabilities::survives_restart

use std::collections::BTreeMap;
use std::sync::Arc;

use updraft_model::Namespace;

use super::{Harness, Judge, PATIENCE, with_environment};
use crate::{Availability, NamespaceInfo, SecretValue, Wake};

impl<H: Harness> Judge<H> {
    fn survives_restart(&self) -> bool {
        self.engine().capabilities().survives_restart
    }
}

/// The same replicas serve afterwards, and are looked after like any other.
pub async fn replicas_outlive_the_control_plane<H: Harness>(judge: Arc<Judge<H>>) {
    if !judge.survives_restart() {
        return;
    }
    let spec = judge.spec("survivor");
    judge.deploy(&spec).await;
    judge.engine().scale(&spec.id, 2).await.unwrap();
    judge.until_ready(&spec.id, 2).await;
    let before = judge.replicas(&spec.id);
    judge.harness.restart().await;
    // Who was ready is in the table from the first moment: no request waits for anybody.
    assert_eq!(judge.replicas(&spec.id), before);
    assert_eq!(judge.body(&spec.id, "/").await, "hello");
    assert_eq!(judge.status(&spec.id).await.restarts, 0);
    judge.engine().scale(&spec.id, 1).await.unwrap();
    judge.until_ready(&spec.id, 1).await;
    let left = judge.first_replica(&spec.id);
    assert!(judge.try_call(&spec.id, "/exit/6").await.is_err());
    judge.until_replaced(&spec.id, &left).await;
    assert_eq!(judge.body(&spec.id, "/").await, "hello");
}

/// Specs, numbers, secrets and namespaces; what sleeps sleeps on.
pub async fn what_is_desired_outlives_the_control_plane<H: Harness>(judge: Arc<Judge<H>>) {
    let staging = NamespaceInfo {
        name: Namespace::new("staging").unwrap(),
        labels: [("team".to_owned(), "blue".to_owned())].into(),
        annotations: BTreeMap::new(),
    };
    let mut awake = with_environment(judge.spec("awake"), &[("answer", "awake")]);
    let asleep = with_environment(judge.spec("asleep"), &[("answer", "asleep")]);
    let (place, name) = (awake.id.namespace.clone(), "token".parse().unwrap());
    let engine = judge.engine();
    engine.create_namespace(staging.clone()).await.unwrap();
    engine.create_secret(&place, &name, SecretValue::new("kept")).await.unwrap();
    awake.secrets = vec![name.clone()];
    judge.deploy(&judge.spec("awake")).await;
    let revision = judge.deploy(&awake).await;
    engine.scale(&awake.id, 2).await.unwrap();
    judge.until_ready(&awake.id, 2).await;
    judge.deploy(&asleep).await;
    engine.scale(&asleep.id, 0).await.unwrap();
    judge.until_ready(&asleep.id, 0).await;
    let before = [judge.status(&awake.id).await, judge.status(&asleep.id).await];
    let secrets = engine.list_secrets(&place).await.unwrap();
    drop(engine);

    judge.harness.restart().await;
    let engine = judge.engine();
    for before in before {
        let now = judge.status(&before.spec.id).await;
        assert_eq!(now.spec, before.spec);
        assert_eq!((now.revision, now.replicas), (before.revision, before.replicas));
        assert_eq!((now.created_at, now.message), (before.created_at, None));
    }
    judge.until_ready(&awake.id, 2).await;
    assert_eq!(judge.body(&awake.id, "/").await, "awake");
    assert_eq!(judge.body(&awake.id, "/read/var/openfaas/secrets/token").await, "kept");
    assert_eq!(engine.endpoints().borrow()[&asleep.id].availability, Availability::Asleep);
    assert_eq!(judge.body(&asleep.id, "/").await, "asleep");
    assert_eq!(engine.list_secrets(&place).await.unwrap(), secrets);
    let value = engine.read_secret(&place, &name).await.unwrap();
    assert_eq!(value.get("token").unwrap().expose(), b"kept");
    assert_eq!(engine.list_namespaces().await.unwrap()[1..], [staging]);
    // What is there already is no change, whoever asks for it now.
    assert_eq!(engine.apply(awake.clone(), Wake::AtLeastMinimum).await.unwrap(), revision);
    engine.wait_ready(&awake.id, revision, PATIENCE).await.unwrap();
}

/// So that nobody has to have looked at the right moment.
pub async fn how_a_replica_ended_is_known_after_a_restart<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = judge.spec("remembered");
    judge.deploy(&spec).await;
    let before = judge.first_replica(&spec.id);
    assert!(judge.try_call(&spec.id, "/exit/9").await.is_err());
    judge.until_replaced(&spec.id, &before).await;
    let exit = judge.last_exit(&spec.id).await;
    judge.harness.restart().await;
    let again = judge.last_exit(&spec.id).await;
    assert_eq!((again.code, &again.replica), (Some(9), &before));
    assert_eq!((again.reason, again.log_tail), (exit.reason, exit.log_tail));
    assert_eq!(judge.status(&spec.id).await.restarts, 1);
}

/// A request finds it as it finds one that was frozen a moment ago.
pub async fn what_was_frozen_answers_after_a_restart<H: Harness>(judge: Arc<Judge<H>>) {
    if !judge.can_freeze() {
        return;
    }
    let spec = judge.spec("dozing");
    judge.deploy(&spec).await;
    let before = judge.first_replica(&spec.id);
    judge.frozen(&spec.id).await;
    judge.harness.restart().await;
    assert_eq!(judge.status(&spec.id).await.replicas, 1);
    assert_eq!(judge.body(&spec.id, "/").await, "hello");
    if judge.survives_restart() {
        assert_eq!(judge.first_replica(&spec.id), before);
        assert_eq!(judge.status(&spec.id).await.restarts, 0);
    }
}

/// What was to end ends, and is no failure.
pub async fn what_a_restart_finds_leaving_is_not_counted_as_a_failure<H: Harness>(
    judge: Arc<Judge<H>>,
) {
    let engine = judge.engine();
    let spec = judge.spec("outgoing");
    judge.deploy(&spec).await;
    engine.scale(&spec.id, 2).await.unwrap();
    judge.until_ready(&spec.id, 2).await;
    // Leases hold them on their way out until the control plane is gone.
    let ready = engine.endpoints().borrow()[&spec.id].ready.clone();
    let leases: Vec<_> = ready.iter().map(|one| one.load.lease().unwrap()).collect();
    engine.scale(&spec.id, 1).await.unwrap();
    judge.until_ready(&spec.id, 1).await;
    drop(engine);
    judge.harness.restart().await;
    drop(leases);
    judge
        .until("one replica is left", || async {
            judge.engine().replicas(&spec.id).await.unwrap().len() == 1
        })
        .await;
    judge.until_ready(&spec.id, 1).await;
    assert_eq!(judge.status(&spec.id).await.restarts, 0);
}
