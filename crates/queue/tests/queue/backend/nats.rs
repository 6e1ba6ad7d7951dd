//! The record in a NATS server.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::TryStreamExt;
use updraft_queue::CallStore;
use updraft_queue_nats::{NatsCallStore, NatsLogin, NatsOptions, NatsTls, StreamName};

use crate::server::NatsServer;

/// Where a test's calls are kept.
pub(crate) struct Backend {
    pub(crate) server: Mutex<NatsServer>,
}

/// How a store reaches the server, as the instance of that name.
pub(crate) fn options(url: String, folder: &Path, instance: &str, lease: Duration) -> NatsOptions {
    NatsOptions {
        servers: vec![url],
        login: NatsLogin::Nobody,
        tls: NatsTls::default(),
        stream: StreamName::default(),
        replicas: 1,
        lease,
        instance: instance.to_owned(),
        index: folder.join(format!("{instance}.db")),
    }
}

impl Backend {
    pub(crate) fn start() -> Self {
        Self::over(NatsServer::start())
    }

    pub(crate) fn over(server: NatsServer) -> Self {
        Self { server: Mutex::new(server) }
    }

    pub(crate) fn url(&self) -> String {
        self.server.lock().unwrap().url()
    }

    /// Opens the record as the instance of this folder.
    pub(crate) async fn open(&self, folder: &Path, lease: Duration) -> Arc<dyn CallStore> {
        let options = options(self.url(), folder, "one", lease);
        Arc::new(NatsCallStore::open(options).await.unwrap())
    }

    pub(crate) async fn stream(&self, name: &str) -> async_nats::jetstream::stream::Stream {
        let client = async_nats::connect(self.url()).await.unwrap();
        async_nats::jetstream::new(client).get_stream(name).await.unwrap()
    }

    /// How many long bodies there are.
    pub(crate) async fn bodies(&self, _folder: &Path) -> usize {
        let stream = self.stream("UPDRAFT_BODIES").await;
        let pieces = stream.info_with_subjects("updraft.bodies.*.0").await.unwrap();
        pieces.try_collect::<Vec<_>>().await.unwrap().len()
    }
}
