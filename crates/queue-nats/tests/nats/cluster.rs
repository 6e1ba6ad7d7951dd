//! A cluster of three servers, of which one may be gone.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method};
use updraft_model::FunctionId;
use updraft_queue_nats::{NatsCallStore, NatsLogin, NatsOptions};
use updraft_store::queue::{CallId, CallStore, CallToAdd, Client, RequestHead, StoredBody};

use crate::server::NatsServer;
use crate::{options, works};

/// An address of the loopback network that no other process uses, so that the ports that the
/// servers of a cluster know each other by are free.
fn own_address() -> String {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    format!("127.{}.{middle}.{low}", 64 + (high & 63))
}

fn start_cluster() -> Vec<NatsServer> {
    let address = own_address();
    let route = |number: usize| format!("nats://{address}:{}", 6222 + number);
    let routes = (0..3).map(route).collect::<Vec<_>>().join(",");
    let start = |number: usize| {
        let (name, listen) = (format!("server-{number}"), route(number));
        let known = ["--server_name", &name, "--cluster_name", "test"];
        let linked = ["--cluster", &listen, "--routes", &routes];
        NatsServer::start_with(&[known, linked].concat())
    };
    (0..3).map(start).collect()
}

fn call(id: &str) -> CallToAdd {
    let id: CallId = id.parse().unwrap();
    CallToAdd {
        ids: [id.clone(), id],
        function: FunctionId::in_default("f".parse().unwrap()),
        owner: None,
        queue: "q".to_owned(),
        head: RequestHead {
            method: Method::POST,
            target: "/".to_owned(),
            headers: HeaderMap::new(),
            client: Client { address: "192.0.2.1".parse().unwrap(), tls: false, authorized: false },
        },
        body: StoredBody::Inline(Bytes::from_static(b"body")),
        callback: None,
    }
}

/// Keeps a call as soon as the cluster has agreed on who leads it.
async fn add(store: &NatsCallStore, id: &str) {
    let begun = Instant::now();
    while let Err(error) = store.add(call(id)).await {
        // An answer that got lost does not mean that the call did.
        if store.call(&id.parse().unwrap()).await.is_ok_and(|found| found.is_some()) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_mins(2), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn with_three_replicas_no_single_server_matters() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = start_cluster();
    let with = |instance: &str, servers: &[NatsServer]| NatsOptions {
        servers: servers.iter().map(NatsServer::url).collect(),
        replicas: 3,
        instance: instance.to_owned(),
        index: folder.path().join(format!("{instance}.db")),
        ..options(String::new(), folder.path(), NatsLogin::Nobody)
    };
    let store = NatsCallStore::open(with("one", &servers)).await.unwrap();
    works(&store).await;
    add(&store, "before").await;
    let client = async_nats::connect(servers[1].url()).await.unwrap();
    let context = async_nats::jetstream::new(client);
    for stream in ["UPDRAFT_CALLS", "UPDRAFT_RECORDS", "UPDRAFT_BODIES"] {
        let stream = context.get_stream(stream).await.unwrap();
        assert_eq!(stream.cached_info().config.num_replicas, 3);
    }

    servers.remove(0).kill();
    add(&store, "after").await;
    // An instance that has seen nothing yet finds both.
    let other = NatsCallStore::open(with("two", &servers)).await.unwrap();
    works(&other).await;
    for id in ["before", "after"] {
        let begun = Instant::now();
        while other.call(&id.parse().unwrap()).await.unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_mins(1), "{id} is gone");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
