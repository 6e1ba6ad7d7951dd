//! The way to real servers: who may come in, and what an operator's check finds.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "nats/cluster.rs"]
mod cluster;
#[path = "nats/credentials.rs"]
mod credentials;
#[path = "nats/encrypted.rs"]
mod encrypted;
#[path = "nats/server.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use server::NatsServer;
use updraft_queue_nats::{
    NatsCallStore, NatsFinding, NatsLogin, NatsOptions, NatsTls, OpenNatsError, StreamName, examine,
};
use updraft_store::queue::CallStore;

fn options(url: String, folder: &Path, login: NatsLogin) -> NatsOptions {
    NatsOptions {
        servers: vec![url],
        login,
        tls: NatsTls::default(),
        stream: StreamName::default(),
        replicas: 1,
        lease: Duration::from_secs(30),
        instance: "one".to_owned(),
        index: folder.join("index.db"),
    }
}

/// Waits until the store works: the connection is there, and so are the streams.
async fn works(store: &NatsCallStore) {
    let begun = Instant::now();
    while let Err(error) = store.recover().await {
        assert!(begun.elapsed() < Duration::from_mins(1), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn each_way_to_log_in_opens_the_door_and_a_wrong_secret_does_not() {
    /// A seed and its public key, made for this test.
    const SEED: &str = "SUAACAQDAQCQMBYIBEFAWDANBYHRAEISCMKBKFQXDAMRUGY4DUPB6IC5CQ";
    const KEY: &str = "UB43KVROR7TFJ6KAPCYRF2FJROTZAH4FHLTJLPWX4DRZCC5NASLGJBFE";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let secret = write(path, "secret", "hunter2\n");
    let wrong = write(path, "wrong", "hunter3\n");
    let seed = write(path, "seed", SEED);
    let keys = format!("authorization {{ users = [ {{ nkey: {KEY} }} ] }}");
    let keys = write(path, "nkeys.conf", &keys);
    let keys = keys.to_str().unwrap();
    for (arguments, right, other) in [
        (
            vec!["--auth", "hunter2"],
            NatsLogin::Token(secret.clone()),
            NatsLogin::Token(wrong.clone()),
        ),
        (
            vec!["--user", "updraft", "--pass", "hunter2"],
            NatsLogin::Password("updraft".to_owned(), secret.clone()),
            NatsLogin::Password("updraft".to_owned(), wrong.clone()),
        ),
        (vec!["--config", keys], NatsLogin::NKey(seed.clone()), NatsLogin::Token(secret.clone())),
    ] {
        let server = NatsServer::start_with(&arguments);
        let found = examine(&options(server.url(), path, right)).await;
        assert!(matches!(found, NatsFinding::Good(_)), "{arguments:?}: {found:?}");
        let found = examine(&options(server.url(), path, other)).await;
        assert!(matches!(found, NatsFinding::Missing(..)), "{arguments:?}: {found:?}");
        assert!(!format!("{found:?}").contains("hunter"), "{found:?}");
    }
}

#[tokio::test]
async fn a_check_tells_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let server = NatsServer::start();
    let good = examine(&options(server.url(), folder.path(), NatsLogin::Nobody)).await;
    assert!(matches!(&good, NatsFinding::Good(found) if found.contains("version 2.")), "{good:?}");
    drop(server);

    let away = NatsServer::absent();
    let found = examine(&options(away.url(), folder.path(), NatsLogin::Nobody)).await;
    assert!(matches!(&found, NatsFinding::Missing(_, advice) if advice.contains("nats-server")));

    let config = write(folder.path(), "small.conf", "max_payload: 65536");
    let small = NatsServer::start_with(&["--config", config.to_str().unwrap()]);
    let found = examine(&options(small.url(), folder.path(), NatsLogin::Nobody)).await;
    assert!(matches!(&found, NatsFinding::Warning(_, advice) if advice.contains("max_payload")));
}

#[tokio::test]
async fn files_that_are_not_there_and_servers_that_make_no_sense_are_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let missing = NatsLogin::Token(folder.path().join("no-such-file"));
    let url = "nats://127.0.0.1:4222".to_owned();
    let refusal = NatsCallStore::open(options(url, folder.path(), missing)).await.unwrap_err();
    assert!(matches!(refusal, OpenNatsError::File { .. }), "{refusal:?}");
    let options = options("http://".to_owned(), folder.path(), NatsLogin::Nobody);
    let refusal = NatsCallStore::open(options).await.unwrap_err();
    assert!(matches!(refusal, OpenNatsError::Address { .. }), "{refusal:?}");
}

#[tokio::test]
async fn a_stream_of_somebody_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let server = NatsServer::start();
    let client = async_nats::connect(server.url()).await.unwrap();
    let theirs = async_nats::jetstream::stream::Config {
        name: "UPDRAFT_CALLS".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        ..Default::default()
    };
    async_nats::jetstream::new(client).create_stream(theirs).await.unwrap();
    let options = options(server.url(), folder.path(), NatsLogin::Nobody);
    let store = NatsCallStore::open(options).await.unwrap();
    let refusal = store.recover().await.unwrap_err();
    assert!(!refusal.is_unavailable(), "{refusal}");
    assert!(refusal.to_string().contains("UPDRAFT_CALLS"), "{refusal}");
}
