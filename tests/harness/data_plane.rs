//! Engine and data plane in this process, for what no client of a whole cloud can ask for: that
//! a function rests just now.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Request;
use updraft_engine::{Engine, Wake};
use updraft_engine_local::{LocalEngine, LocalEngineOptions, RuntimeChoice};
use updraft_images::testing::{TEST_HTTP, TestStore};
use updraft_invoke::{Caller, InvokeOptions, Invoker, RequestBody, Scheme};
use updraft_model::{FunctionId, FunctionSpec};

use crate::{Answer, eventually, sweep};

/// How long anything may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// The local engine with the data plane over it, and nothing else of the cloud.
#[derive(Debug)]
pub struct DataPlane {
    /// What runs the replicas.
    pub engine: Arc<LocalEngine>,
    invoker: Arc<Invoker>,
    options: LocalEngineOptions,
    folder: PathBuf,
    images: TestStore,
}

impl DataPlane {
    /// Starts both on a machine without functions.
    ///
    /// # Panics
    /// When the machine does not let it.
    pub async fn start() -> Self {
        Self::start_with(RuntimeChoice::Detect).await
    }

    /// The same with a connection of its own for each request.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_without_kept_connections() -> Self {
        let options = InvokeOptions { idle_connections: 0, ..InvokeOptions::new("test") };
        Self::assemble(RuntimeChoice::Detect, options).await
    }

    /// The same with a runtime of one's choice.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_with(runtime: RuntimeChoice) -> Self {
        Self::assemble(runtime, InvokeOptions::new("test")).await
    }

    async fn assemble(runtime: RuntimeChoice, invoke: InvokeOptions) -> Self {
        crate::sweep_leftovers();
        let (images, _) = TestStore::with_test_image().await;
        let folder = sweep::new_folder();
        // Laid out as a cloud's, so that what a crash leaves is cleared away like one.
        let data = folder.join("data");
        fs::create_dir_all(&data).expect("the data folder can be made");
        let random =
            std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        let instance = format!("{:08x}", random & 0xffff_ffff);
        fs::write(data.join("instance"), &instance).expect("the instance can be noted");
        let run = Path::new("/run").join(format!("updraft-{instance}"));
        let options = LocalEngineOptions {
            runtime,
            stop_grace: Duration::from_millis(100),
            ..LocalEngineOptions::new(instance, &data, &run)
        };
        let engine = LocalEngine::open(options.clone(), Arc::new(images.store()));
        let engine = Arc::new(engine.await.expect("the engine opens"));
        let invoker = Invoker::new(Arc::clone(&engine) as _, invoke);
        Self { engine, invoker, options, folder, images }
    }

    /// Deploys the test image under this name and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub async fn deploy(&self, name: &str, replicas: u32) -> FunctionId {
        self.deploy_with(name, replicas, &[]).await
    }

    /// The same with annotations.
    ///
    /// # Panics
    /// As [`Self::deploy`].
    pub async fn deploy_with(
        &self,
        name: &str,
        replicas: u32,
        annotations: &[(&str, &str)],
    ) -> FunctionId {
        let id = FunctionId::in_default(name.parse().expect("a name"));
        let image = TEST_HTTP.parse().expect("an image reference");
        let mut spec = FunctionSpec::new(id.clone(), image);
        let annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        spec.annotations.extend(annotations);
        let revision = self.engine.apply(spec, Wake::Keep).await.expect("it applies");
        self.engine.wait_ready(&id, revision, PATIENCE).await.expect("it becomes ready");
        self.engine.scale(&id, replicas).await.expect("it scales");
        eventually("all replicas are ready", PATIENCE, async || {
            let status = self.engine.get(&id).await.ok()??;
            (status.available_replicas == replicas).then_some(())
        })
        .await;
        id
    }

    /// One request, as a client's reaches the data plane.
    ///
    /// # Panics
    /// When the data plane does not know the function.
    pub async fn call(&self, id: &FunctionId) -> Answer {
        let function = eventually("the function is in the table", PATIENCE, async || {
            self.invoker.find(&id.to_string())
        })
        .await;
        let caller = Caller::new(SocketAddr::from(([127, 0, 0, 1], 1)), Scheme::Http);
        let request = Request::get("/").body(RequestBody::from(Bytes::new()));
        let request = request.expect("a request");
        let response = self.invoker.call(&function, "/", request, &caller).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("the answer is whole").to_bytes();
        Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        }
    }

    /// Takes everything off the machine.
    ///
    /// # Panics
    /// When something of it stays.
    pub async fn stop(self) {
        self.engine.shutdown().await;
        drop(self.invoker);
        drop(self.engine);
        LocalEngine::destroy(&self.options).await.expect("the instance can be destroyed");
        drop(self.images);
        fs::remove_dir_all(&self.folder).expect("the folder can be removed");
    }
}
