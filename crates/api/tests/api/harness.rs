//! A system host with two owners over an engine that only remembers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use tempfile::TempDir;
use tokio::net::TcpListener;
use updraft_api::client::{Client, ClientError, Credentials, ServerAddress};
use updraft_api::{ApiParts, router};
use updraft_builder::{BuildError, BuildRequest, Builder, BuiltImage, LineSink};
use updraft_engine::{Engine, Fact, Version, Wake};
use updraft_invoke::{InvokeOptions, Invoker};
use updraft_model::{Digest, FunctionId, FunctionName, FunctionSpec, OwnerName, labels};
use updraft_pipeline::{Pipeline, PipelineOptions, PipelineParts, Unsealer, UrlOf};
use updraft_queue::{
    CallbackOptions, Queue, QueueOptions, QueueParts, ScheduleParts, Schedules, SigningKey,
    SqliteCallStore,
};
use updraft_scaler::{Scaler, ScalerOptions, ScalerParts};
use updraft_seal::{
    Hints, KeyRing, KeyRingOptions, Limits, OpenedSecret, SealedSecret, UnsealError,
    unseal_with_keys,
};
use updraft_source::git::{ContentLimits, GitServer, GitServerOptions};
use updraft_source::template::Templates;

use updraft_store::access::Access;
use updraft_store::{Build, NewBuild, NewPush, NewRelease, PinnedTo, PushId, Release, Store};

use crate::memory_engine::MemoryEngine;

/// A platform that can open nothing.
#[derive(Debug)]
struct NoKeys;

impl Unsealer for NoKeys {
    fn unseal(&self, secret: &SealedSecret, hints: &Hints) -> Result<OpenedSecret, UnsealError> {
        unseal_with_keys(&[], secret, hints, Limits::usual())
    }
}

pub(crate) const PASSWORD: &str = "the-password";

/// Builds nothing: the stacks here name ready images.
#[derive(Debug)]
struct NoBuilder;

#[async_trait::async_trait]
impl Builder for NoBuilder {
    async fn key(&self, _: &BuildRequest, _: &LineSink) -> Result<Digest, BuildError> {
        Err(BuildError::Cancelled)
    }

    async fn build(&self, _: &BuildRequest, _: &LineSink) -> Result<BuiltImage, BuildError> {
        Err(BuildError::Cancelled)
    }

    async fn exists(&self, _: &BuiltImage) -> Result<bool, BuildError> {
        Ok(false)
    }
}

pub(crate) struct Host {
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) folder: TempDir,
    pub(crate) store: Store,
    pub(crate) engine: Arc<MemoryEngine>,
    pub(crate) calls: SqliteCallStore,
    pub(crate) router: Router,
    pub(crate) address: SocketAddr,
    pub(crate) alice_token: String,
    pub(crate) bob_token: String,
}

impl Host {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("password"), PASSWORD).unwrap();
        let store = Store::open(&path("updraft.db"), &path("blobs")).unwrap();
        let token = async |owner: &str| {
            let made = store.create_token(&self::owner(owner), "test").await.unwrap();
            made.secret.expose().to_owned()
        };
        let (alice_token, bob_token) = (token("alice").await, token("bob").await);
        let engine = MemoryEngine::new();
        let url: UrlOf = Arc::new(|owner, name| format!("http://{owner}.localhost:8080/{name}"));
        let pipeline = Pipeline::start(PipelineParts {
            store: store.clone(),
            engine: engine.clone(),
            builder: Arc::new(NoBuilder),
            templates: Templates::new(Bytes::new(), false),
            unsealer: Arc::new(NoKeys),
            repositories: path("git"),
            work: path("work"),
            options: PipelineOptions::new(url.clone()),
        })
        .await
        .unwrap();
        let key = SigningKey::new([7; 32]);
        let callback = CallbackOptions::usual("localhost", 8080, key, "0.1.0");
        let calls = SqliteCallStore::open(&path("queue.db"), &path("queue")).unwrap();
        let invoker = Invoker::new(engine.clone(), InvokeOptions::new("0.1.0"));
        let queue = Queue::start(QueueParts {
            store: Arc::new(calls.clone()),
            invoker: Arc::clone(&invoker),
            options: QueueOptions::usual(callback),
        })
        .await
        .unwrap();
        let schedules = Schedules::start(ScheduleParts {
            queue: Arc::clone(&queue),
            invoker: Arc::clone(&invoker),
            record: path("schedules.json"),
        })
        .unwrap();
        let scaler = Scaler::start(ScalerParts {
            engine: engine.clone(),
            invoker,
            backlog: Arc::new(|_| 0),
            options: ScalerOptions::default(),
        });
        let keys = KeyRingOptions { key_bits: 2048, ..KeyRingOptions::usual(path("machine-key")) };
        let keys = Arc::new(KeyRing::open(&path("keys"), keys).unwrap());
        let router = router(ApiParts {
            housekeeper: None,
            keys: Arc::clone(&keys),
            queue,
            schedules,
            scaler,
            store: store.clone(),
            engine: engine.clone(),
            access: Access::open(store.clone(), &path("password")).unwrap(),
            git: GitServer::new(GitServerOptions::new(path("git"))).await.unwrap(),
            pipeline,
            work: path("work"),
            max_upload_bytes: 1 << 20,
            upload_limits: ContentLimits { max_files: 20, ..ContentLimits::default() },
            url,
            gateway_url: "http://127.0.0.1:8080".to_owned(),
            facts: vec![Fact::degraded("builds", "few limits", "as the test wants")],
            root: "localhost".to_owned(),
            version: Version { release: "0.1.0".to_owned(), sha: "0123abc".to_owned() },
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, router.clone()).into_future());
        Self { keys, folder, store, engine, calls, router, address, alice_token, bob_token }
    }

    pub(crate) fn client(&self, secret: &str) -> Client {
        let credentials = Credentials::Bearer(secret.to_owned());
        Client::new(ServerAddress::from(self.address), credentials)
    }

    pub(crate) fn admin(&self) -> Client {
        self.client(PASSWORD)
    }

    pub(crate) fn alice(&self) -> Client {
        self.client(&self.alice_token)
    }

    /// A push of the owner that is recorded, with its functions declared.
    pub(crate) async fn record_push(&self, owner: &OwnerName, functions: &[&str]) -> PushId {
        let push = NewPush {
            owner: owner.clone(),
            repository: "site".parse().unwrap(),
            reference: "refs/heads/main".to_owned(),
            commit: "c".repeat(40),
            upload: None,
        };
        let id = self.store.record_push(push).await.unwrap().id;
        let functions = functions.iter().map(|name| self::name(name)).collect();
        self.store.claim_functions(owner, &"site".parse().unwrap(), functions).await.unwrap();
        id
    }

    /// A release of the function that runs and is live.
    pub(crate) async fn release(
        &self,
        owner: &OwnerName,
        function: &str,
        pinned: PinnedTo,
    ) -> Release {
        let push = self.record_push(owner, &[function]).await;
        let function = name(function);
        let id = FunctionId::in_default(owner.visible_name(&function).unwrap());
        let mut spec = FunctionSpec::new(id, "localhost/x:1".parse().unwrap());
        spec.labels.insert(labels::GIT_OWNER.to_owned(), owner.to_string());
        spec.labels.insert(labels::GIT_REPO.to_owned(), "site".to_owned());
        spec.labels.insert(labels::GIT_SHA.to_owned(), "c".repeat(40));
        let release = NewRelease {
            push,
            owner: owner.clone(),
            function: function.clone(),
            commit: "c".repeat(40),
            image_id: Some(Digest::from_bytes([7; 32])),
            spec: spec.clone(),
        };
        let release = self.store.create_releases(vec![release]).await.unwrap().remove(0);
        self.store.set_live(owner, &function, release.number, pinned).await.unwrap();
        self.engine.apply(spec, Wake::Keep).await.unwrap();
        release
    }

    /// A build of the function that runs.
    pub(crate) async fn build(&self, owner: &OwnerName, function: &str) -> Build {
        let push = self.record_push(owner, &[function]).await;
        let key = Digest::from_bytes([1; 32]);
        let build = NewBuild { push, owner: owner.clone(), function: name(function), key };
        self.store.start_build(build).await.unwrap()
    }
}

pub(crate) fn owner(name: &str) -> OwnerName {
    name.parse().unwrap()
}

pub(crate) fn name(name: &str) -> FunctionName {
    name.parse().unwrap()
}

/// Asserts a refusal with this status whose text holds `part`.
pub(crate) fn refused<T>(result: Result<T, ClientError>, status: u16, part: &str) {
    let error = result.err().unwrap();
    assert_eq!(error.status().map(|status| status.as_u16()), Some(status), "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

/// The future's output, unless it takes longer than anything here may.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
