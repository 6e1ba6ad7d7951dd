//! Claims about secrets and namespaces.

use std::collections::BTreeMap;
use std::sync::Arc;

use updraft_model::{Namespace, SecretName};

use super::{Harness, Judge};
use crate::{EngineError, NamespaceInfo, SecretValue, Wake};

fn secret(name: &str) -> SecretName {
    SecretName::new(name).unwrap()
}

fn namespace(name: &str, labels: &[(&str, &str)]) -> NamespaceInfo {
    let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into()));
    NamespaceInfo {
        name: Namespace::new(name).unwrap(),
        labels: labels.collect(),
        annotations: BTreeMap::new(),
    }
}

/// Secrets go through their whole life; what is wrong is told.
pub async fn secrets_are_created_listed_updated_and_removed<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let place = Namespace::default();
    assert!(engine.list_secrets(&place).await.unwrap().is_empty());
    engine.create_secret(&place, &secret("b"), SecretValue::new("1")).await.unwrap();
    engine.create_secret(&place, &secret("a.key"), SecretValue::new(vec![0, 255])).await.unwrap();
    assert_eq!(engine.list_secrets(&place).await.unwrap(), [secret("a.key"), secret("b")]);
    let again = engine.create_secret(&place, &secret("b"), SecretValue::new("2")).await;
    assert!(matches!(again, Err(EngineError::SecretExists { .. })));
    engine.update_secret(&place, &secret("b"), SecretValue::new("2")).await.unwrap();
    let value = engine.read_secret(&place, &secret("b")).await.unwrap();
    assert_eq!(value.expose(), b"2");
    engine.remove_secret(&place, &secret("b")).await.unwrap();
    assert_eq!(engine.list_secrets(&place).await.unwrap(), [secret("a.key")]);
    let gone = engine.remove_secret(&place, &secret("b")).await;
    assert!(matches!(gone, Err(EngineError::UnknownSecret { .. })));
    let gone = engine.update_secret(&place, &secret("b"), SecretValue::new("3")).await;
    assert!(matches!(gone, Err(EngineError::UnknownSecret { .. })));
    let gone = engine.read_secret(&place, &secret("b")).await;
    assert!(matches!(gone, Err(EngineError::UnknownSecret { .. })));
    let nowhere = Namespace::new("nowhere").unwrap();
    let wrong = engine.create_secret(&nowhere, &secret("b"), SecretValue::new("1")).await;
    assert!(matches!(wrong, Err(EngineError::UnknownNamespace(_))));
}

/// A secret is mounted byte for byte, and cannot be changed from inside.
pub async fn a_secret_is_a_file_that_only_the_function_reads<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let mut spec = judge.spec("keeper");
    let value = SecretValue::new("no line feed");
    engine.create_secret(&spec.id.namespace, &secret("token"), value).await.unwrap();
    let value = SecretValue::new("not asked for");
    engine.create_secret(&spec.id.namespace, &secret("other"), value).await.unwrap();
    let value = SecretValue::new("first of the alphabet");
    engine.create_secret(&spec.id.namespace, &secret("a.key"), value).await.unwrap();
    spec.secrets = vec![secret("token"), secret("a.key")];
    judge.deploy(&spec).await;
    assert_eq!(judge.body(&spec.id, "/read/var/openfaas/secrets/token").await, "no line feed");
    let other = judge.call(&spec.id, "/read/var/openfaas/secrets/other").await;
    assert_eq!(other.status, 500);
    let write = judge.call(&spec.id, "/write/var/openfaas/secrets/token").await;
    assert_eq!(write.status, 500);
    // In the order they were given.
    assert_eq!(judge.status(&spec.id).await.spec.secrets, spec.secrets);
}

/// A new value reaches replicas that run, and those that start later.
pub async fn an_updated_secret_is_seen_by_running_replicas<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let mut spec = judge.spec("renewed");
    let place = spec.id.namespace.clone();
    engine.create_secret(&place, &secret("token"), SecretValue::new("old")).await.unwrap();
    spec.secrets = vec![secret("token")];
    let first = judge.deploy(&spec).await;
    engine.update_secret(&place, &secret("token"), SecretValue::new("new")).await.unwrap();
    let path = "/read/var/openfaas/secrets/token";
    judge
        .until("the new value is seen", || async { judge.body(&spec.id, path).await == "new" })
        .await;
    // The same spec with another secret is a change: its process may have read it at its start.
    let second = judge.deploy(&spec).await;
    assert!(second > first);
    assert_eq!(judge.body(&spec.id, path).await, "new");
    engine.remove_secret(&place, &secret("token")).await.unwrap();
    assert_eq!(judge.body(&spec.id, path).await, "new");
}

/// Nothing is deployed with a secret that is not there.
pub async fn a_function_with_a_missing_secret_is_refused<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let mut spec = judge.spec("lacking");
    let value = SecretValue::new("x");
    engine.create_secret(&spec.id.namespace, &secret("here"), value).await.unwrap();
    spec.secrets = vec![secret("here"), secret("missing")];
    match engine.apply(spec.clone(), Wake::Keep).await.unwrap_err() {
        EngineError::MissingSecrets { names, .. } => assert_eq!(names, [secret("missing")]),
        other => panic!("expected `MissingSecrets`, got: {other}"),
    }
    assert!(engine.get(&spec.id).await.unwrap().is_none());
}

/// Namespaces go through their whole life; the default one stays.
pub async fn namespaces_are_created_listed_updated_and_removed<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let staging = namespace("staging", &[("openfaas", "1")]);
    engine.create_namespace(staging.clone()).await.unwrap();
    let again = engine.create_namespace(staging.clone()).await;
    assert!(matches!(again, Err(EngineError::NamespaceExists(_))));
    let listed = engine.list_namespaces().await.unwrap();
    assert_eq!(listed[0].name, Namespace::default());
    assert_eq!(listed[1..], [staging]);
    let renamed = namespace("staging", &[("openfaas", "1"), ("team", "blue")]);
    engine.update_namespace(renamed.clone()).await.unwrap();
    assert_eq!(engine.list_namespaces().await.unwrap()[1..], [renamed]);
    let unknown = engine.update_namespace(namespace("nowhere", &[])).await;
    assert!(matches!(unknown, Err(EngineError::UnknownNamespace(_))));
    engine.remove_namespace(&Namespace::new("staging").unwrap()).await.unwrap();
    assert_eq!(engine.list_namespaces().await.unwrap().len(), 1);
    let default = engine.remove_namespace(&Namespace::default()).await;
    assert!(matches!(default, Err(EngineError::Invalid(_))));
}

/// The same names in two namespaces are two functions and two secrets.
pub async fn namespaces_hold_functions_of_the_same_name_apart<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    engine.create_namespace(namespace("staging", &[])).await.unwrap();
    for (place, value) in [("openfaas-fn", "live"), ("staging", "staged")] {
        let mut spec = judge.spec_in(place, "twin");
        let value = SecretValue::new(value);
        engine.create_secret(&spec.id.namespace, &secret("token"), value).await.unwrap();
        spec.secrets = vec![secret("token")];
        judge.deploy(&spec).await;
        assert_eq!(engine.list(&spec.id.namespace).await.unwrap().len(), 1);
    }
    let path = "/read/var/openfaas/secrets/token";
    let (live, staged) = (judge.spec("twin").id, judge.spec_in("staging", "twin").id);
    assert_eq!(judge.body(&live, path).await, "live");
    assert_eq!(judge.body(&staged, path).await, "staged");
    engine.remove(&staged).await.unwrap();
    assert_eq!(judge.body(&live, path).await, "live");
}

/// Removing a namespace removes what is in it.
pub async fn a_removed_namespace_takes_its_functions_along<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    engine.create_namespace(namespace("staging", &[])).await.unwrap();
    let spec = judge.spec_in("staging", "passenger");
    let place = spec.id.namespace.clone();
    engine.create_secret(&place, &secret("token"), SecretValue::new("x")).await.unwrap();
    judge.deploy(&spec).await;
    engine.remove_namespace(&place).await.unwrap();
    assert!(!engine.endpoints().borrow().contains_key(&spec.id));
    engine.create_namespace(namespace("staging", &[])).await.unwrap();
    assert!(engine.list(&place).await.unwrap().is_empty());
    assert!(engine.list_secrets(&place).await.unwrap().is_empty());
}
