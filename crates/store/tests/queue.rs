//! Asynchronous calls on record, as the queue uses them.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;
use updraft_model::FunctionId;
use updraft_store::queue::{
    CallFilter, CallId, CallState, CallToAdd, Client, Outcome, RequestHead, SqliteCallStore,
    StoredBody,
};

fn open(folder: &Path) -> SqliteCallStore {
    SqliteCallStore::open(&folder.join("queue.db"), &folder.join("queue")).unwrap()
}

fn id(text: &str) -> CallId {
    text.parse().unwrap()
}

fn function(name: &str) -> FunctionId {
    FunctionId::in_default(name.parse().unwrap())
}

fn call(name: &str, body: StoredBody) -> CallToAdd {
    CallToAdd {
        ids: [id(name), id(&format!("{name}-other"))],
        function: function("f"),
        owner: None,
        queue: "faas-request".to_owned(),
        head: RequestHead {
            method: http::Method::POST,
            target: "/".to_owned(),
            headers: HeaderMap::new(),
            client: Client { address: "127.0.0.1".parse().unwrap(), tls: false, authorized: false },
        },
        body,
        callback: None,
    }
}

fn later() -> Timestamp {
    Timestamp::now() + Duration::from_mins(1)
}

fn outcome() -> Outcome {
    Outcome { status: Some(200), reason: None, took: Duration::from_secs(1), answer: None }
}

#[tokio::test]
async fn a_database_of_version_1_opens_with_all_that_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(folder.path().join("queue.db")).unwrap();
    connection.execute_batch(include_str!("samples/queue_v1.sql")).unwrap();
    drop(connection);
    let store = open(folder.path());
    assert_eq!(store.recover().await.unwrap(), 1);
    let waiting = store.waiting().await.unwrap();
    assert_eq!(waiting.iter().map(|waiting| waiting.calls).collect::<Vec<_>>(), [1, 1]);
    let leases = store.lease(&function("alice-f"), 5, later()).await.unwrap();
    let leased = &leases.calls[0];
    assert_eq!((leased.record.id.as_str(), leased.record.attempts), ("waits", 2));
    assert_eq!(leased.record.owner.as_ref().unwrap().as_str(), "alice");
    assert_eq!(leased.record.took, Some(Duration::from_micros(1500)));
    assert_eq!(leased.record.callback.as_ref().unwrap().url, "https://example.org/");
    assert_eq!((leased.head.method.as_str(), leased.head.target.as_str()), ("PUT", "/a?b"));
    let headers: Vec<_> = leased.head.headers.iter().map(|(_, value)| value.as_bytes()).collect();
    assert_eq!(headers, [&b"a"[..], &b"\xe4"[..]]);
    assert!(leased.head.client.tls && leased.head.client.authorized);
    assert!(matches!(&leased.body, StoredBody::Inline(body) if &body[..] == b"body"));
    let leases = store.lease(&function("figlet"), 5, later()).await.unwrap();
    let body = &leases.calls[0].body;
    assert!(matches!(body, StoredBody::Blob(name, 5000) if name.as_str() == "bodies/0123"));
    let result = store.result(&id("ended")).await.unwrap().unwrap();
    assert_eq!((&result.body[..], result.length, result.is_cut()), (&b"answer"[..], 7000, true));
}

#[tokio::test]
async fn a_worker_who_lost_its_lease_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.add(call("one", StoredBody::Inline("x".into()))).await.unwrap();
    let lapsed = Timestamp::now() - Duration::from_secs(1);
    let first = store.lease(&function("f"), 1, lapsed).await.unwrap().calls.remove(0);
    let second = store.lease(&function("f"), 1, later()).await.unwrap().calls.remove(0);
    assert_eq!((first.record.attempts, second.record.attempts), (1, 2));
    assert!(!store.release(first.attempt, later()).await.unwrap());
    assert!(!store.retry(first.attempt, later(), outcome()).await.unwrap());
    let finished = store.finish(first.attempt, CallState::Done, outcome()).await.unwrap();
    assert_eq!(finished, None);
    assert_eq!(store.call(&id("one")).await.unwrap().unwrap().state, CallState::Running);
    let finished = store.finish(second.attempt, CallState::Done, outcome()).await.unwrap();
    assert!(finished.is_some());
    assert!(store.lease(&function("f"), 1, later()).await.unwrap().calls.is_empty());
}

#[tokio::test]
async fn calls_are_leased_in_the_order_they_came_and_no_call_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for number in 0..10 {
        store.add(call(&format!("c{number}"), StoredBody::Inline("".into()))).await.unwrap();
    }
    let mut seen = Vec::new();
    loop {
        let leases = store.lease(&function("f"), 3, later()).await.unwrap();
        if leases.calls.is_empty() {
            break;
        }
        seen.extend(leases.calls.into_iter().map(|call| call.record.id.to_string()));
    }
    let wanted: Vec<_> = (0..10).map(|number| format!("c{number}")).collect();
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn a_body_is_lost_with_its_call_and_kept_with_a_dead_letter() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for (name, state, is_lost) in
        [("done", CallState::Done, true), ("dead", CallState::Dead, false)]
    {
        let blob: updraft_store::BlobName = format!("bodies/{name}").parse().unwrap();
        store.add(call(name, StoredBody::Blob(blob.clone(), 5))).await.unwrap();
        let leased = store.lease(&function("f"), 1, later()).await.unwrap().calls.remove(0);
        let lost = store.finish(leased.attempt, state, outcome()).await.unwrap().unwrap();
        assert_eq!(lost.0.contains(&blob), is_lost, "{name}");
        assert_eq!(store.blobs_on_record().await.unwrap().contains(&blob), !is_lost);
    }
    let (_, lost) = store.discard(&id("dead")).await.unwrap().unwrap();
    assert_eq!(lost.0.len(), 1);
    assert_eq!(store.calls(&CallFilter::default()).await.unwrap().len(), 1);
}
