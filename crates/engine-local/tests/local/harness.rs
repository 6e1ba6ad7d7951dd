//! One instance of the local engine for one test, which leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up ends")]

use std::fmt;
use std::fs::{self, File};
use std::marker::PhantomData;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use updraft_engine::Engine;
use updraft_engine::conformance::{ATTACKS, Bounds, Harness};
use updraft_engine_local::{
    ImageProcess, ImageSource, LocalEngine, LocalEngineOptions, OpenError, PreparedImage,
    RuntimeChoice,
};
use updraft_images::RegistryCredentials;
use updraft_model::{Digest, ImageRef, Sandbox};

use crate::names::NameServer;
use crate::network::{Outside, Service, host_address};

/// The user that the test image runs as.
const USER: u32 = 1000;

/// Where tests keep their data; each has a folder named after its instance.
const DATA: &str = "/var/tmp/updraft-engine-tests";

/// How old a folder without an owner must be before it is cleared away: long enough for a test
/// to take hold of what it just made.
const STALE: Duration = Duration::from_secs(10);

/// A folder of files as the only image, by two names: who runs its program differs.
#[derive(Debug)]
pub(crate) struct FolderImage(PathBuf);

impl FolderImage {
    /// The user and the content that an image stands for.
    fn find(image: &ImageRef) -> Option<(&'static str, Digest)> {
        let images = [(app(), "app", 1), (root_app(), "0", 2)];
        let found = images.into_iter().find(|(known, ..)| known == image);
        found.map(|(_, user, byte)| (user, Digest::from_bytes([byte; 32])))
    }
}

#[async_trait]
impl ImageSource for FolderImage {
    async fn resolve(&self, image: &ImageRef) -> Result<Option<Digest>, String> {
        Ok(Self::find(image).map(|(_, content)| content))
    }

    async fn prepare(
        &self,
        image: &ImageRef,
        _pinned: Option<&Digest>,
        _credentials: Option<&RegistryCredentials>,
    ) -> Result<PreparedImage, String> {
        let Some((user, id)) = Self::find(image) else {
            return Err(format!("image `{image}` is not here"));
        };
        let process = ImageProcess {
            cmd: vec!["/app".to_owned()],
            user: user.to_owned(),
            ..ImageProcess::default()
        };
        let root = self.0.clone();
        Ok(PreparedImage { id, layers: vec![root.clone()], root, process })
    }
}

pub(crate) fn app() -> ImageRef {
    "localhost/conformance-app:1".parse().unwrap()
}

/// The same as [`app`], run as root as far as it can tell.
pub(crate) fn root_app() -> ImageRef {
    "localhost/conformance-app:root".parse().unwrap()
}

/// An instance and its place on the machine.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) options: LocalEngineOptions,
    pub(crate) data: PathBuf,
    /// Held for the life of the test: folders without an owner are leftovers.
    _owner: File,
}

impl Instance {
    pub(crate) async fn new(runtime: RuntimeChoice) -> Self {
        clear_leftovers().await;
        let mut random = [0; 4];
        getrandom::fill(&mut random).unwrap();
        let name = hex::encode(random);
        let data = Path::new(DATA).join(&name);
        fs::create_dir_all(&data).unwrap();
        let owner = File::create(data.join("owner")).unwrap();
        owner.lock().unwrap();
        make_image(&data.join("image"));
        Self { options: options(&name, &data, runtime), data, _owner: owner }
    }

    /// Makes what the suite fills so small that it is full soon.
    pub(crate) fn bound(&mut self) {
        self.options.tmp_bytes = 16 << 20;
        self.options.root_bytes = 32 << 20;
        self.options.log_bytes = 1 << 20;
        self.options.process_limit = 64;
    }

    pub(crate) async fn open(&self) -> Arc<LocalEngine> {
        Arc::new(self.try_open().await.unwrap())
    }

    pub(crate) async fn try_open(&self) -> Result<LocalEngine, OpenError> {
        let image = FolderImage(self.data.join("image"));
        LocalEngine::open(self.options.clone(), Arc::new(image)).await
    }

    /// Takes everything off the machine.
    pub(crate) async fn destroy(self) {
        LocalEngine::destroy(&self.options).await.unwrap();
        fs::remove_dir_all(&self.data).unwrap();
    }
}

fn options(name: &str, data: &Path, runtime: RuntimeChoice) -> LocalEngineOptions {
    let run = PathBuf::from(format!("/run/updraft-{name}"));
    LocalEngineOptions {
        runtime,
        ready_limit: Duration::from_secs(10),
        // The app is the first process of its world and ignores SIGTERM.
        stop_grace: Duration::from_millis(100),
        ..LocalEngineOptions::new(name, data, &run)
    }
}

/// Takes away what test runs that were killed left on the machine.
async fn clear_leftovers() {
    for folder in fs::read_dir(DATA).into_iter().flatten().flatten() {
        let age = folder.metadata().and_then(|metadata| metadata.modified());
        let age = age.ok().and_then(|made| SystemTime::now().duration_since(made).ok());
        if age.is_none_or(|age| age < STALE) {
            continue;
        }
        let Ok(owner) = File::create(folder.path().join("owner")) else { continue };
        if owner.try_lock().is_err() {
            continue;
        }
        let name = folder.file_name().into_string().unwrap();
        let options = options(&name, &folder.path(), RuntimeChoice::Detect);
        LocalEngine::destroy(&options).await.unwrap();
        fs::remove_dir_all(folder.path()).unwrap();
    }
}

/// The app with the libraries it needs, a user, and what attacks are made of.
fn make_image(root: &Path) {
    let app = Path::new(env!("CARGO_BIN_EXE_updraft-conformance-app"));
    for folder in ["etc", "home"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("etc/passwd"), format!("app:x:{USER}:{USER}::/home:/none\n")).unwrap();
    chown(root.join("home"), Some(USER), Some(USER)).unwrap();
    fs::copy(app, root.join("app")).unwrap();
    copy_libraries(app, root);
    let perl = Path::new("/usr/bin/perl");
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    copy_libraries(perl, root);
    fs::copy(perl, root.join("usr/bin/perl")).unwrap();
    fs::copy(perl, root.join("setuid-perl")).unwrap();
    fs::set_permissions(root.join("setuid-perl"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(root.join("attacks.pl"), ATTACKS).unwrap();
}

/// The shared libraries of a program.
fn copy_libraries(program: &Path, root: &Path) {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = root.join(&library[1..]);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(library, &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Looks again until `check` is true.
pub(crate) async fn until<Check, Outcome>(what: &str, check: Check)
where
    Check: Fn() -> Outcome,
    Outcome: Future<Output = bool>,
{
    let begin = Instant::now();
    while !check().await {
        assert!(begin.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Calls a replica: status and body.
pub(crate) async fn call(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: function\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

pub(crate) async fn status(address: SocketAddr, path: &str) -> u16 {
    call(address, path).await.0
}

/// The body of an answer with status 200.
pub(crate) async fn answer(address: SocketAddr, path: &str) -> String {
    let (status, body) = call(address, path).await;
    assert_eq!(status, 200, "{path} answered {body}");
    body
}

/// What runs the replicas of an engine that the suite judges.
pub(crate) trait Runs: fmt::Debug + Send + Sync + 'static {
    const RUNTIME: RuntimeChoice;
    const SANDBOX: Sandbox = Sandbox::Kernel;
}

#[derive(Debug)]
pub(crate) struct Crun;

#[derive(Debug)]
pub(crate) struct Runc;

#[derive(Debug)]
pub(crate) struct Gvisor;

impl Runs for Crun {
    const RUNTIME: RuntimeChoice = RuntimeChoice::Crun;
}

impl Runs for Runc {
    const RUNTIME: RuntimeChoice = RuntimeChoice::Runc;
}

impl Runs for Gvisor {
    const RUNTIME: RuntimeChoice = RuntimeChoice::Detect;
    const SANDBOX: Sandbox = Sandbox::Gvisor;
}

/// The conformance suite's view of an instance.
#[derive(Debug)]
pub(crate) struct Local<R: Runs> {
    instance: Instance,
    /// Nothing only in the middle of a restart.
    engine: Mutex<Option<Arc<LocalEngine>>>,
    /// What functions must not reach, and the door that is open to them.
    inside: TcpListener,
    gateway: TcpListener,
    names: NameServer,
    /// Made when it is first asked for.
    outside: OnceCell<(Outside, [Service; 2])>,
    runs: PhantomData<R>,
}

impl<R: Runs> Local<R> {
    fn local(&self) -> Arc<LocalEngine> {
        Arc::clone(self.engine.lock().unwrap().as_ref().unwrap())
    }

    async fn close(&self) {
        let engine = self.engine.lock().unwrap().take().unwrap();
        engine.shutdown().await;
    }
}

#[async_trait]
impl<R: Runs> Harness for Local<R> {
    type Ground = NameServer;

    fn prepare() -> NameServer {
        NameServer::start()
    }

    async fn start(names: NameServer) -> Self {
        let mut instance = Instance::new(R::RUNTIME).await;
        instance.options.sandboxes.of_all = R::SANDBOX;
        instance.bound();
        let [inside, gateway] = [(); 2].map(|()| TcpListener::bind("0.0.0.0:0").unwrap());
        instance.options.gateway_port = Some(gateway.local_addr().unwrap().port());
        instance.options.names_again = Duration::from_millis(50);
        let engine = Mutex::new(Some(instance.open().await));
        Self {
            instance,
            engine,
            inside,
            gateway,
            names,
            outside: OnceCell::new(),
            runs: PhantomData,
        }
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.local() as Arc<dyn Engine>
    }

    async fn restart(&self) {
        self.close().await;
        let engine = self.instance.open().await;
        *self.engine.lock().unwrap() = Some(engine);
    }

    fn image(&self) -> ImageRef {
        app()
    }

    fn root_image(&self) -> ImageRef {
        root_app()
    }

    fn missing_image(&self) -> ImageRef {
        "localhost/nothing:1".parse().unwrap()
    }

    fn bounds(&self) -> Bounds {
        let options = &self.instance.options;
        Bounds {
            processes: options.process_limit,
            memory_bytes: options.default_memory_bytes,
            tmp_bytes: options.tmp_bytes,
            root_bytes: options.root_bytes,
            files: 65_536,
            log_bytes: options.log_bytes,
        }
    }

    fn inside(&self) -> Vec<SocketAddr> {
        let service = self.inside.local_addr().unwrap().port();
        let door = self.gateway.local_addr().unwrap().port();
        let bridge = self.local().gateway_address();
        vec![
            SocketAddr::from((bridge, service)),
            SocketAddr::from((host_address(), service)),
            SocketAddr::from((Ipv4Addr::LOCALHOST, service)),
            // By the gateway's port, and not by its address.
            SocketAddr::from((host_address(), door)),
        ]
    }

    fn gateway(&self) -> String {
        format!("gateway.openfaas:{}", self.gateway.local_addr().unwrap().port())
    }

    fn set_name(&self, name: &str, addresses: &[Ipv4Addr]) {
        self.names.set(name, addresses);
    }

    async fn outside(&self) -> [SocketAddr; 2] {
        let make = async || {
            let outside = Outside::new(&self.instance.options.instance);
            let services = [9, 10].map(|port| outside.service(port));
            (outside, services)
        };
        let (outside, _) = self.outside.get_or_init(make).await;
        [9, 10].map(|port| SocketAddr::from((outside.address, port)))
    }

    async fn stop(self) {
        self.close().await;
        drop(self.outside);
        self.instance.destroy().await;
    }
}
