//! Image stores for tests: made in a moment, cleaned up even after a crash.
//!
//! Behind the feature `testing`; never part of the shipped program. A [`TestStore`] is a real
//! store in a folder of its own. It can hold the test image [`TEST_HTTP`], a static program of a
//! few hundred kilobytes that serves HTTP, and base images, which are made once for the
//! whole workspace and then loaded from `target/updraft-test-images`.

#![allow(clippy::unwrap_used, reason = "only tests call this")]

mod registry;

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::BaseImage;
use crate::store::{ImageStore, ImageStoreOptions};
use crate::{Driver, Image, mount};
pub use registry::TestRegistry;

/// The test image: `/test-http`, a server on port 8080.
pub const TEST_HTTP: &str = "localhost/updraft/test-http";

const PROGRAM: &str = include_str!("testing/program.rs");
const PREFIX: &str = "updraft-test-images-";

/// Whether a store asks registries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Registries {
    Asked,
    Forgotten,
}

/// A store that goes away, with its mounts and folders, when it is dropped.
#[derive(Debug)]
pub struct TestStore {
    store: ImageStore,
    root: PathBuf,
    run_root: PathBuf,
}

impl TestStore {
    /// An empty store. Removes what earlier test runs that were killed left behind.
    pub async fn new() -> Self {
        Self::begin(None).await
    }

    /// An empty store that stacks layers in this way, as on a machine that has no better one.
    pub async fn with_driver(driver: Driver) -> Self {
        Self::begin(Some(driver)).await
    }

    /// The same store as a process would find it that starts anew, with another lease.
    pub async fn reopened(&self, lease: std::time::Duration) -> ImageStore {
        let mut options = self.store.inner().options.clone();
        options.lease = lease;
        ImageStore::open(options).await.unwrap()
    }

    /// An empty store that asks registries for what it does not have.
    pub async fn online() -> Self {
        Self::begin_as(None, Registries::Asked).await
    }

    async fn begin(driver: Option<Driver>) -> Self {
        Self::begin_as(driver, Registries::Forgotten).await
    }

    async fn begin_as(driver: Option<Driver>, registries: Registries) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        sweep(&std::env::temp_dir());
        sweep(Path::new("/run"));
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let root = std::env::temp_dir().join(&name);
        let run_root = Path::new("/run").join(&name);
        let mut options = ImageStoreOptions::new(root.join("containers"), run_root.clone());
        if let Some(driver) = driver {
            driver.keep(&options.root);
        }
        options.offline = registries == Registries::Forgotten;
        let store = ImageStore::open(options).await.unwrap();
        Self { store, root, run_root }
    }

    /// A store that holds [`TEST_HTTP`].
    pub async fn with_test_image() -> (Self, Image) {
        let store = Self::new().await;
        let image = store.add_test_image().await;
        (store, image)
    }

    /// The store itself.
    pub fn store(&self) -> ImageStore {
        self.store.clone()
    }

    /// A folder for the test's own files, gone with the store.
    pub fn folder(&self) -> &Path {
        &self.root
    }

    /// Builds [`TEST_HTTP`] in this store.
    pub async fn add_test_image(&self) -> Image {
        let context = self.root.join("test-http");
        fs::create_dir_all(&context).unwrap();
        fs::copy(program(), context.join("test-http")).unwrap();
        let file = "FROM scratch\nCOPY test-http /test-http\nEXPOSE 8080\nCMD [\"/test-http\"]\n";
        fs::write(context.join("Dockerfile"), file).unwrap();
        let mut command = self.store.policed("build");
        command.args(["--quiet", "--isolation", "chroot", "--layers=false", "--tag", TEST_HTTP]);
        let output = command.arg(&context).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.store.resolve(&TEST_HTTP.parse().unwrap()).await.unwrap().unwrap()
    }

    /// Puts a base image into this store: loaded when an earlier test run made it, else made.
    pub async fn add_base_image(&self, base: &BaseImage) -> Image {
        let archive = cache().join(format!("{}.tar", base.short_name()));
        let lock = lock(&archive);
        if archive.is_file() {
            self.store.load(&archive).await.unwrap();
        } else {
            self.store.ensure(&base.image(), &|line: &str| tracing::info!("{line}")).await.unwrap();
            let part = archive.with_extension("part");
            self.store.save(&base.image(), &part).await.unwrap();
            fs::rename(part, &archive).unwrap();
        }
        drop(lock);
        self.store.resolve(&base.image()).await.unwrap().unwrap()
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        remove(&self.run_root);
        remove(&self.root);
    }
}

/// The static test program, compiled once for the whole workspace.
pub fn program() -> PathBuf {
    let mut hash = DefaultHasher::new();
    PROGRAM.hash(&mut hash);
    let path = cache().join(format!("test-http-{:016x}", hash.finish()));
    let _lock = lock(&path);
    if !path.is_file() {
        let source = path.with_extension("rs");
        let part = path.with_extension("part");
        fs::write(&source, PROGRAM).unwrap();
        let mut command = Command::new("rustc");
        command.args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static"]);
        command.args(["-C", "strip=symbols", "-C", "panic=abort", "-o"]).arg(&part).arg(&source);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::rename(part, &path).unwrap();
    }
    path
}

fn cache() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    let cache = target.join("updraft-test-images");
    fs::create_dir_all(&cache).unwrap();
    cache
}

/// Held while a file of the cache is made; tests run in processes of their own.
fn lock(path: &Path) -> fs::File {
    let file = fs::File::create(path.with_extension("lock")).unwrap();
    file.lock().unwrap();
    file
}

/// Removes the folders of test processes that are no more.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let owner = owner.and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).is_dir()) {
            remove(&entry.path());
        }
    }
}

fn remove(folder: &Path) {
    // Another test process may be sweeping the same folder.
    drop(mount::unmount_below(folder));
    drop(fs::remove_dir_all(folder));
}
