//! Claims about secrets and namespaces.

use std::collections::BTreeMap;
use std::sync::Arc;

use updraft_model::{ItemKey, Namespace, SecretName};

use super::{Harness, Judge, PATIENCE};
use crate::{
    EngineError, NamespaceInfo, PutSecret, SECRET_BYTES_MAX, SecretChange, SecretContent,
    SecretOrigin, SecretValue, Wake,
};

fn secret(name: &str) -> SecretName {
    SecretName::new(name).unwrap()
}

fn by_hand(items: &[(&str, &str)]) -> SecretContent {
    let item =
        |(key, value): &(&str, &str)| (ItemKey::new(*key).unwrap(), SecretValue::new(*value));
    SecretContent::by_hand(items.iter().map(item).collect())
}

async fn put_db<H: Harness>(
    judge: &Judge<H>,
    items: &[(&str, &str)],
) -> Result<SecretChange, EngineError> {
    let (place, content) = (Namespace::default(), by_hand(items));
    judge.engine().put_secret(&place, &secret("db"), content, PutSecret::Either).await
}

async fn names<H: Harness>(judge: &Judge<H>) -> Vec<SecretName> {
    let secrets = judge.engine().list_secrets(&Namespace::default()).await.unwrap();
    secrets.into_iter().map(|secret| secret.name).collect()
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
    assert_eq!(names(&judge).await, [secret("a.key"), secret("b")]);
    let again = engine.create_secret(&place, &secret("b"), SecretValue::new("2")).await;
    assert!(matches!(again, Err(EngineError::SecretExists { .. })));
    engine.update_secret(&place, &secret("b"), SecretValue::new("2")).await.unwrap();
    let value = engine.read_secret(&place, &secret("b")).await.unwrap();
    assert_eq!(value.get("b").unwrap().expose(), b"2");
    assert_eq!(value.len(), 1);
    engine.remove_secret(&place, &secret("b")).await.unwrap();
    assert_eq!(names(&judge).await, [secret("a.key")]);
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

/// A secret is a set of items: all of it is replaced, and everything but its values is told.
pub async fn a_secret_holds_the_items_it_was_given_last<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let place = Namespace::default();
    assert_eq!(
        put_db(&judge, &[("user", "u"), ("password", "p")]).await.unwrap(),
        SecretChange::Created
    );
    let first = engine.list_secrets(&place).await.unwrap().remove(0);
    assert_eq!(first.items.keys().map(ItemKey::as_str).collect::<Vec<_>>(), ["password", "user"]);
    assert_eq!(first.items["password"].bytes, 1);
    assert_eq!(first.origin, SecretOrigin::Api);
    assert_eq!(
        put_db(&judge, &[("password", "p"), ("user", "u")]).await.unwrap(),
        SecretChange::Unchanged
    );
    assert_eq!(engine.list_secrets(&place).await.unwrap(), std::slice::from_ref(&first));

    let mut sealed = by_hand(&[("user", "u"), ("host", "h")]);
    sealed.origin = SecretOrigin::Sealed {
        owner: "alice".parse().unwrap(),
        repository: "shop".parse().unwrap(),
        commit: "04b8e449881cee29b2e6a9fbb8e53b9e4b4cb0ac".to_owned(),
        file: "secrets.yml".to_owned(),
    };
    sealed.labels.insert("app".to_owned(), "shop".to_owned());
    let change =
        engine.put_secret(&place, &secret("db"), sealed.clone(), PutSecret::Existing).await;
    assert_eq!(change.unwrap(), SecretChange::Replaced);
    let second = engine.list_secrets(&place).await.unwrap().remove(0);
    assert_eq!(second.items.keys().map(ItemKey::as_str).collect::<Vec<_>>(), ["host", "user"]);
    assert_eq!(second.items["user"], first.items["user"], "its value is the same");
    assert_ne!(second.digest, first.digest);
    assert_eq!((&second.origin, &second.labels), (&sealed.origin, &sealed.labels));
    assert_eq!(second.created_at, first.created_at);
    assert!(second.changed_at > first.changed_at);
    assert_eq!(engine.read_secret(&place, &secret("db")).await.unwrap(), sealed.items);

    let large = "x".repeat(SECRET_BYTES_MAX + 1);
    let refused = put_db(&judge, &[("large", &large)]).await.unwrap_err();
    assert!(matches!(refused, EngineError::Invalid(_)), "{refused}");
    assert_eq!(engine.list_secrets(&place).await.unwrap(), [second]);
}

/// Each item is a file, in today's place and in the older one; a change is seen as a whole.
pub async fn each_item_of_a_secret_is_a_file<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let mut spec = judge.spec("items");
    put_db(&judge, &[("DB_USER", "u1"), ("db.password", "p1")]).await.unwrap();
    spec.secrets = vec![secret("db")];
    judge.deploy(&spec).await;
    for folder in ["/var/openfaas/secrets", "/run/secrets"] {
        for (key, value) in [("DB_USER", "u1"), ("db.password", "p1")] {
            assert_eq!(judge.body(&spec.id, &format!("/read{folder}/{key}")).await, value);
        }
    }
    assert!(engine.stale_secrets(&spec.id).await.unwrap().is_empty());
    put_db(&judge, &[("DB_USER", "u2"), ("host", "h2")]).await.unwrap();
    let read = |key| {
        let (id, path) = (spec.id.clone(), format!("/read/var/openfaas/secrets/{key}"));
        let judge = Arc::clone(&judge);
        async move { judge.call(&id, &path).await }
    };
    judge.until("the new item is there", || async { read("host").await.status == 200 }).await;
    assert_eq!(read("db.password").await.status, 500, "an item that is gone is no file");
    assert_eq!(judge.body(&spec.id, "/read/run/secrets/DB_USER").await, "u2");
    // Its process may have read the old value at its start.
    assert_eq!(engine.stale_secrets(&spec.id).await.unwrap(), [secret("db")]);
    judge.deploy(&spec).await;
    assert!(engine.stale_secrets(&spec.id).await.unwrap().is_empty());
}

/// Two secrets of one function cannot both have a file of one name, whichever comes first.
pub async fn an_item_that_two_secrets_have_is_refused<H: Harness>(judge: Arc<Judge<H>>) {
    let engine = judge.engine();
    let mut spec = judge.spec("ambiguous");
    let place = spec.id.namespace.clone();
    for (name, key) in [("one", "key"), ("two", "key")] {
        let content = by_hand(&[(key, name)]);
        engine.put_secret(&place, &secret(name), content, PutSecret::New).await.unwrap();
    }
    spec.secrets = vec![secret("one"), secret("two")];
    let refused = engine.apply(spec.clone(), Wake::Keep).await.unwrap_err();
    assert!(matches!(refused, EngineError::Invalid(_)), "{refused}");
    assert!(refused.to_string().contains("`key`"), "{refused}");
    let other = by_hand(&[("other", "two")]);
    engine.put_secret(&place, &secret("two"), other.clone(), PutSecret::Existing).await.unwrap();
    judge.deploy(&spec).await;
    let again = by_hand(&[("key", "three")]);
    let refused = engine.put_secret(&place, &secret("two"), again, PutSecret::Existing).await;
    let refused = refused.unwrap_err();
    assert!(refused.to_string().contains("ambiguous"), "{refused}");
    assert_eq!(engine.read_secret(&place, &secret("two")).await.unwrap(), other.items);
    assert_eq!(judge.body(&spec.id, "/read/var/openfaas/secrets/key").await, "one");
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
    // Whoever else is in the same world reads nothing.
    let user = judge.body(&spec.id, "/read/proc/self/status").await;
    let own = |field: &str| {
        let line = user.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    for folder in ["/var/openfaas/secrets", "/run/secrets"] {
        let told = judge.body(&spec.id, &format!("/stat{folder}/token")).await;
        let [mode, user, group] = told.split(' ').collect::<Vec<_>>()[..] else {
            panic!("`{told}` is no mode, user and group");
        };
        let mode = u32::from_str_radix(mode, 8).unwrap();
        assert_eq!(mode & 0o337, 0, "{told}: read by user and group at most, written by nobody");
        let by_user = user == own("Uid:") && mode & 0o040 == 0;
        assert!(by_user || group == own("Gid:"), "{told}: others than the function read it");
    }
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

/// Whoever reads while a secret changes gets the old value or the new one, and all of it.
pub async fn a_secret_is_never_seen_half_updated<H: Harness>(judge: Arc<Judge<H>>) {
    const UPDATES: usize = 40;
    let engine = judge.engine();
    let mut spec = judge.spec("watchful");
    let (place, name) = (spec.id.namespace.clone(), secret("token"));
    let value = |number: usize| number.to_string().repeat(20_000);
    engine.create_secret(&place, &name, SecretValue::new(value(0))).await.unwrap();
    spec.secrets = vec![name.clone()];
    judge.deploy(&spec).await;
    let reader = tokio::spawn({
        let (judge, id) = (Arc::clone(&judge), spec.id.clone());
        async move {
            let (mut last, mut seen) = (0, 0);
            while last < UPDATES {
                let body = judge.body(&id, "/read/var/openfaas/secrets/token").await;
                let now = (last..=UPDATES).find(|number| body == value(*number));
                let now = now.unwrap_or_else(|| panic!("{} bytes are no value", body.len()));
                seen += usize::from(now != last);
                last = now;
            }
            seen
        }
    });
    for number in 1..=UPDATES {
        engine.update_secret(&place, &name, SecretValue::new(value(number))).await.unwrap();
    }
    let seen = tokio::time::timeout(PATIENCE, reader).await.expect("the last value is seen");
    assert!(seen.unwrap() > 0);
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
