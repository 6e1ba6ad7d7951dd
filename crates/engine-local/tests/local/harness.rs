//! One instance of the local engine for one test, which leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up ends")]

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use updraft_engine::Engine;
use updraft_engine::conformance::Harness;
use updraft_engine_local::{
    ImageProcess, ImageSource, LocalEngine, LocalEngineOptions, OpenError, PreparedImage,
    RuntimeChoice,
};
use updraft_images::RegistryCredentials;
use updraft_model::{Digest, ImageRef};

use crate::network::{Outside, Service};

/// The user that the test image runs as.
const USER: u32 = 1000;

/// Where tests keep their data; each has a folder named after its instance.
const DATA: &str = "/var/tmp/updraft-engine-tests";

/// How old a folder without an owner must be before it is cleared away: long enough for a test
/// to take hold of what it just made.
const STALE: Duration = Duration::from_secs(10);

/// A folder of files as the only image.
#[derive(Debug)]
pub(crate) struct FolderImage(PathBuf, &'static str);

#[async_trait]
impl ImageSource for FolderImage {
    async fn resolve(&self, image: &ImageRef) -> Result<Option<Digest>, String> {
        Ok((*image == app()).then(|| Digest::from_bytes([1; 32])))
    }

    async fn prepare(
        &self,
        image: &ImageRef,
        _pinned: Option<&Digest>,
        _credentials: Option<&RegistryCredentials>,
    ) -> Result<PreparedImage, String> {
        if *image != app() {
            return Err(format!("image `{image}` is not here"));
        }
        let process = ImageProcess {
            cmd: vec!["/app".to_owned()],
            user: self.1.to_owned(),
            ..ImageProcess::default()
        };
        let (id, root) = (Digest::from_bytes([1; 32]), self.0.clone());
        Ok(PreparedImage { id, layers: vec![root.clone()], root, process })
    }
}

pub(crate) fn app() -> ImageRef {
    "localhost/conformance-app:1".parse().unwrap()
}

/// An instance and its place on the machine.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) options: LocalEngineOptions,
    pub(crate) data: PathBuf,
    /// Whom the image's program runs as.
    pub(crate) user: &'static str,
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
        Self { options: options(&name, &data, runtime), data, user: "app", _owner: owner }
    }

    /// Adds to the image what attacks are made of: an interpreter, a copy of it that says it runs
    /// as root, a script, and a link where secrets are to be.
    pub(crate) fn arm(&self) {
        let root = self.data.join("image");
        let perl = Path::new("/usr/bin/perl");
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        copy_libraries(perl, &root);
        fs::copy(perl, root.join("usr/bin/perl")).unwrap();
        fs::copy(perl, root.join("setuid-perl")).unwrap();
        fs::set_permissions(root.join("setuid-perl"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::write(root.join("attacks.pl"), include_str!("attacks.pl")).unwrap();
        fs::create_dir_all(root.join("var/openfaas")).unwrap();
        let target = self.data.join("not-for-functions");
        fs::create_dir_all(&target).unwrap();
        std::os::unix::fs::symlink(&target, root.join("var/openfaas/secrets")).unwrap();
    }

    pub(crate) async fn open(&self) -> Arc<LocalEngine> {
        Arc::new(self.try_open().await.unwrap())
    }

    pub(crate) async fn try_open(&self) -> Result<LocalEngine, OpenError> {
        let image = FolderImage(self.data.join("image"), self.user);
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

/// The app with the libraries it needs, and a user.
fn make_image(root: &Path) {
    let app = Path::new(env!("CARGO_BIN_EXE_updraft-conformance-app"));
    for folder in ["etc", "home"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("etc/passwd"), format!("app:x:{USER}:{USER}::/home:/none\n")).unwrap();
    chown(root.join("home"), Some(USER), Some(USER)).unwrap();
    fs::copy(app, root.join("app")).unwrap();
    copy_libraries(app, root);
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

/// The conformance suite's view of an instance.
#[derive(Debug)]
pub(crate) struct Local<const RUNC: bool> {
    instance: Instance,
    engine: Arc<LocalEngine>,
    /// Made when it is first asked for.
    outside: OnceCell<(Outside, [Service; 2])>,
}

#[async_trait]
impl<const RUNC: bool> Harness for Local<RUNC> {
    async fn start() -> Self {
        let runtime = if RUNC { RuntimeChoice::Runc } else { RuntimeChoice::Crun };
        let instance = Instance::new(runtime).await;
        let engine = instance.open().await;
        Self { instance, engine, outside: OnceCell::new() }
    }

    fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine) as Arc<dyn Engine>
    }

    fn image(&self) -> ImageRef {
        app()
    }

    fn missing_image(&self) -> ImageRef {
        "localhost/nothing:1".parse().unwrap()
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
        drop(self.outside);
        self.engine.shutdown().await;
        drop(self.engine);
        self.instance.destroy().await;
    }
}
