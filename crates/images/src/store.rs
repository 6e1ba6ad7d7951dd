//! The store: opening it, asking it, and the one mount of each image.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{env, fmt, fs};

use jiff::Timestamp;
use tokio::process::Command;
use tokio::sync::OwnedRwLockReadGuard;
use updraft_model::{Digest, ImageRef};

use crate::credentials::{self, RegistryCredentials};
use crate::driver::Driver;
use crate::layout::{Layout, Record};
use crate::uses::{LEASE, Uses};
use crate::{ImageConfig, ImageError, base, mount, process};

/// What `buildah` may see of the environment: how to find programs, credentials and proxies.
const PASSED: [&str; 18] = [
    "PATH",
    "HOME",
    "XDG_RUNTIME_DIR",
    "REGISTRY_AUTH_FILE",
    "CONTAINERS_REGISTRIES_CONF",
    "DOCKER_CONFIG",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];
const POLICY: &str = "/etc/containers/policy.json";
/// The same for one user, below his home folder.
const USER_POLICY: &str = ".config/containers/policy.json";
/// Used only on machines that have no policy of their own.
pub(crate) const OPEN_POLICY: &str = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
/// Time for a `buildah` command that neither builds nor copies much.
pub(crate) const SHORT: Duration = Duration::from_mins(1);
/// Bytes that stay free on the store's disk.
const FREE_BYTES_MIN: u64 = 512 << 20;
/// The part of all files a disk can hold that stays free: a fiftieth.
const FILES_MIN_PART: u64 = 50;

/// Age of temporary files that are given up: far more than any program here runs.
const TEMPORARY_MAX: Duration = Duration::from_hours(24);

/// Takes the lines that tell a person what takes so long.
pub trait Progress: Send + Sync {
    /// One line, without its end.
    fn line(&self, text: &str);
}

impl<F: Fn(&str) + Send + Sync> Progress for F {
    fn line(&self, text: &str) {
        self(text);
    }
}

/// Where the store lies and how far it may go.
#[derive(Debug, Clone)]
pub struct ImageStoreOptions {
    /// Folder that keeps the images.
    pub root: PathBuf,
    /// Folder for mounts and locks, gone after a reboot.
    pub run_root: PathBuf,
    /// Never ask a registry.
    pub offline: bool,
    /// Time for fetching one image from a registry or an archive.
    pub pull_limit: Duration,
    /// Time for making one base image from Debian packages.
    pub base_limit: Duration,
    /// Debian mirror for base images in place of the machine's own package sources.
    pub mirror: Option<String>,
    /// Bytes that stay free on the disk below `root`; nothing is fetched or built below that.
    pub free_bytes_min: u64,
    /// How long an image stays after somebody asked for it, whatever records say.
    pub lease: Duration,
}

impl ImageStoreOptions {
    /// The usual limits for a store in these two folders.
    pub const fn new(root: PathBuf, run_root: PathBuf) -> Self {
        Self {
            root,
            run_root,
            offline: false,
            pull_limit: Duration::from_mins(10),
            base_limit: Duration::from_mins(30),
            mirror: None,
            free_bytes_min: FREE_BYTES_MIN,
            lease: LEASE,
        }
    }
}

/// One image of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its configuration: two images with one id are the same in every byte.
    pub id: Digest,
    /// Its full names, such as `docker.io/functions/alpine:latest`; none for an image that a
    /// later one of the same name replaced.
    pub names: Vec<ImageRef>,
    /// How a container of it starts.
    pub config: ImageConfig,
    /// Bytes of all its layers; layers shared with other images count for each.
    pub size_bytes: u64,
    /// When it was made, as far as known.
    pub created: Option<Timestamp>,
}

/// The images kept on this machine. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) options: ImageStoreOptions,
    pub(crate) driver: Driver,
    pub(crate) layout: Layout,
    program: OsString,
    policy: Option<PathBuf>,
    environment: BTreeMap<&'static str, OsString>,
    pub(crate) uses: Uses,
    /// Held for reading by whatever adds to the store or builds from it; who gets it for writing
    /// knows that nothing does.
    pub(crate) work: Arc<tokio::sync::RwLock<()>>,
    /// Makes concurrent calls for one image wait for the first.
    pub(crate) making: tokio::sync::Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment holds proxy addresses, which may hold passwords.
        f.debug_struct("ImageStore")
            .field("options", &self.inner.options)
            .field("driver", &self.inner.driver)
            .finish_non_exhaustive()
    }
}

impl ImageStore {
    /// Opens the store, or begins one: checks that `buildah` works, picks the storage driver and
    /// removes what a killed process left half done.
    pub async fn open(mut options: ImageStoreOptions) -> Result<Self, ImageError> {
        // `buildah` is also run where neither the working folder nor symbolic links are the same.
        for folder in [&mut options.root, &mut options.run_root] {
            fs::create_dir_all(&*folder).map_err(ImageError::io("create", &*folder))?;
            *folder = folder.canonicalize().map_err(ImageError::io("find", &*folder))?;
        }
        let images = mount::folder(&options.run_root);
        let temporary = options.root.join("updraft-tmp");
        for folder in [&images, &temporary] {
            fs::create_dir_all(folder).map_err(ImageError::io("create", folder))?;
        }
        clear_temporary(&temporary);
        credentials::clear(&options.run_root);
        let cache = options.root.join("updraft-cache").into_os_string();
        let driver = Driver::choose(&options.root)?;
        let policy = own_policy(&options.root)?;
        let environment = PASSED
            .into_iter()
            .filter_map(|name| env::var_os(name).map(|value| (name, value)))
            .chain([("TMPDIR", temporary.into_os_string()), ("LANG", "C.UTF-8".into())])
            // The one file that is written outside of the store for root, a cache of what is known
            // of layers, is written below this folder for everybody else.
            .chain([("_CONTAINERS_ROOTLESS_UID", "65534".into()), ("XDG_DATA_HOME", cache)])
            .collect();
        let store = Self {
            inner: Arc::new(Inner {
                layout: Layout::new(options.root.clone(), driver),
                uses: Uses::open(&uses_file(&options.root)),
                work: Arc::default(),
                options,
                driver,
                program: "buildah".into(),
                policy,
                environment,
                making: tokio::sync::Mutex::default(),
            }),
        };
        let mut check = store.bare_command();
        check.arg("--version");
        let version = process::output(check, "buildah", "start `buildah`", SHORT).await?;
        tracing::debug!(%version, driver = driver.name(), "image store opened");
        Ok(store)
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The folder that keeps the images.
    pub fn root(&self) -> &Path {
        &self.inner.options.root
    }

    /// The folder for what does not outlive a reboot.
    pub fn run_root(&self) -> &Path {
        &self.inner.options.run_root
    }

    /// How layers are stacked here.
    pub fn driver(&self) -> Driver {
        self.inner.driver
    }

    /// Bytes that have to stay free on the store's disk.
    pub fn free_bytes_min(&self) -> u64 {
        self.inner.options.free_bytes_min
    }

    /// The signature policy to name to `buildah` commands that see no home folder; `None` where
    /// the machine has its own.
    pub fn signature_policy(&self) -> Option<&Path> {
        self.inner.policy.as_deref()
    }

    /// `buildah` on this store, with an environment of our choosing; a subcommand and its
    /// arguments have to follow.
    pub fn command(&self) -> Command {
        let options = &self.inner.options;
        let mut command = self.bare_command();
        command.arg("--root").arg(&options.root);
        command.arg("--runroot").arg(options.run_root.join("buildah"));
        command.args(["--storage-driver", self.inner.driver.storage_name()]);
        if let Some(option) = self.inner.driver.options() {
            command.arg("--storage-opt").arg(option);
        }
        command
    }

    /// `buildah SUBCOMMAND` with the signature policy, for subcommands that take one.
    pub(crate) fn policed(&self, subcommand: &str) -> Command {
        let mut command = self.command();
        command.arg(subcommand);
        let home = self.inner.environment.get("HOME").map(Path::new);
        let users = home.is_some_and(|home| home.join(USER_POLICY).is_file());
        if let Some(policy) = &self.inner.policy
            && !users
        {
            command.arg("--signature-policy").arg(policy);
        }
        command
    }

    fn bare_command(&self) -> Command {
        let mut command = Command::new(&self.inner.program);
        command.env_clear().envs(&self.inner.environment);
        command
    }

    /// The image that `image` means now, if it is here. Starts no program. What it gives is not
    /// collected for a while, so that whoever asked can make use of it.
    pub async fn resolve(&self, image: &ImageRef) -> Result<Option<Image>, ImageError> {
        loop {
            let Some(record) = self.inner.layout.find(image)? else { return Ok(None) };
            let described = self.describe(&record)?;
            if self.inner.uses.lease(described.id).is_some() {
                return Ok(Some(described));
            }
            self.inner.uses.settled(&described.id).await;
        }
    }

    /// Whether `image` is here; asking does not make it stay.
    pub fn is_here(&self, image: &ImageRef) -> Result<bool, ImageError> {
        Ok(self.inner.layout.find(image)?.is_some())
    }

    /// Whether nothing adds to the store or builds from it.
    pub fn is_idle(&self) -> bool {
        self.inner.work.try_write().is_ok()
    }

    /// Says that something adds to the store or builds from it, until the guard is dropped:
    /// nothing is collected meanwhile. Waits for the step of a collection that is under way.
    pub async fn working(&self) -> Working {
        Working(Arc::clone(&self.inner.work).read_owned().await)
    }

    pub(crate) fn describe(&self, record: &Record) -> Result<Image, ImageError> {
        let damaged = || ImageError::Damaged {
            path: self.inner.options.root.clone(),
            reason: format!("`{}` is no image id", record.id),
        };
        Ok(Image {
            id: record.digest().ok_or_else(damaged)?,
            names: record.names.iter().filter_map(|name| name.parse().ok()).collect(),
            config: self.inner.layout.config(record)?,
            size_bytes: self.inner.layout.layers(record)?.iter().map(|(_, size)| size).sum(),
            created: record.created,
        })
    }

    /// The image, which comes here first if it is not: a base image is made from Debian
    /// packages, any other is asked of its registry. Concurrent calls for one image do it once.
    pub async fn ensure(
        &self,
        image: &ImageRef,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        self.ensure_as(image, None, progress).await
    }

    /// As [`ensure`](Self::ensure), with credentials for the registry in place of the machine's
    /// own. An image that is here is given to everybody: whoever may name images in a deployment
    /// may run every image of this machine.
    pub async fn ensure_as(
        &self,
        image: &ImageRef,
        credentials: Option<&RegistryCredentials>,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        if let Some(found) = self.resolve(image).await? {
            return Ok(found);
        }
        let turn = {
            let mut making = self.inner.making.lock().await;
            making.retain(|_, turn| Arc::strong_count(turn) > 1);
            making.entry(image.to_string()).or_default().clone()
        };
        let _turn = turn.lock().await;
        if let Some(found) = self.resolve(image).await? {
            return Ok(found);
        }
        let _working = self.working().await;
        self.check_free()?;
        match base::find(image) {
            Some(wanted) => base::make(self, wanted, progress).await?,
            None => self.pull(image, credentials, progress).await?,
        }
        let missing = || ImageError::Missing {
            image: image.clone(),
            why: ", although fetching it went well".to_owned(),
        };
        self.resolve(image).await?.ok_or_else(missing)
    }

    /// Folder with the image's file tree, to be used read-only and to be left mounted. Asking
    /// again gives the same folder. [`unmount_unused`](Self::unmount_unused) takes it away.
    pub async fn mount(&self, image: &Image) -> Result<PathBuf, ImageError> {
        let target = mount::place(&self.inner.options.run_root, &image.id);
        if mount::is_mounted(&target) {
            return Ok(target);
        }
        let by_id = format!("x@{}", image.id).parse::<ImageRef>().ok();
        let record = by_id.map(|id| self.inner.layout.find(&id)).transpose()?.flatten();
        let Some(record) = record else {
            let image = image.names.first().cloned();
            return Err(ImageError::Missing {
                image: image.unwrap_or_else(|| base::DEBIAN.image()),
                why: " any more".to_owned(),
            });
        };
        if self.inner.driver == Driver::FuseOverlay {
            return self.mount_by_buildah(&record, &target).await;
        }
        let layers = self.inner.layout.folders(&record)?;
        let place = target.clone();
        let mounted = tokio::task::spawn_blocking(move || mount::mount_layers(&layers, &place));
        mounted.await.unwrap_or_else(|panic| {
            let cause = std::io::Error::other(panic);
            Err(ImageError::Io { action: "mount an image at", path: target.clone(), cause })
        })?;
        Ok(target)
    }

    /// The folders of a mounted image's files, from top to bottom, for who stacks them himself:
    /// its layers, or the mounted folder where layers are not the kernel's to stack.
    ///
    /// # Errors
    /// The image is not here any more, or the store is damaged.
    pub fn layers(&self, image: &Image, mounted: &Path) -> Result<Vec<PathBuf>, ImageError> {
        if self.inner.driver != Driver::Overlay {
            return Ok(vec![mounted.to_owned()]);
        }
        let by_id = format!("x@{}", image.id).parse::<ImageRef>().ok();
        let record = by_id.map(|id| self.inner.layout.find(&id)).transpose()?.flatten();
        let folders = record.map(|record| self.inner.layout.folders(&record)).transpose()?;
        // One without layers is an empty folder.
        Ok(folders
            .filter(|folders| !folders.is_empty())
            .unwrap_or_else(|| vec![mounted.to_owned()]))
    }

    /// Where only a user-space program can stack the layers, `buildah` starts it, for a working
    /// container that nobody works in.
    async fn mount_by_buildah(
        &self,
        record: &Record,
        target: &Path,
    ) -> Result<PathBuf, ImageError> {
        let name = format!("updraft-mount-{}", record.id);
        let action = format!("mount image `{}`", record.id);
        let mut from = self.policed("from");
        from.args(["--pull-never", "--name", &name, &record.id]);
        // It fails when an earlier life of this process made the container already.
        let made = process::output(from, "buildah", &action, SHORT).await;
        let mut command = self.command();
        command.args(["mount", &name]);
        let tree = match process::output(command, "buildah", &action, SHORT).await {
            Ok(tree) => PathBuf::from(tree),
            Err(error) => return Err(made.err().unwrap_or(error)),
        };
        mount::mount_layers(&[tree], target)?;
        Ok(target.to_owned())
    }

    /// Says no when the store's disk is nearly full.
    pub fn check_free(&self) -> Result<(), ImageError> {
        let free = self.free_bytes()?;
        let needed = self.inner.options.free_bytes_min;
        if free < needed {
            return Err(ImageError::DiskFull { path: self.root().to_owned(), free, needed });
        }
        let stat = self.statistics()?;
        let needed = stat.f_files / FILES_MIN_PART;
        if stat.f_files > 0 && stat.f_favail < needed {
            let (path, free) = (self.root().to_owned(), stat.f_favail);
            return Err(ImageError::FilesFull { path, free, needed });
        }
        Ok(())
    }

    /// How many more files the store's disk can hold; nothing where the file system makes them as
    /// long as it has bytes.
    pub fn free_files(&self) -> Result<Option<u64>, ImageError> {
        let stat = self.statistics()?;
        Ok((stat.f_files > 0).then_some(stat.f_favail))
    }

    /// Bytes free on the store's disk.
    pub fn free_bytes(&self) -> Result<u64, ImageError> {
        let stat = self.statistics()?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn statistics(&self) -> Result<rustix::fs::StatVfs, ImageError> {
        let root = self.root();
        rustix::fs::statvfs(root)
            .map_err(|error| ImageError::io("ask for the free space of", root)(error.into()))
    }
}

/// Keeps images from being collected while it lives.
#[derive(Debug)]
pub struct Working(#[expect(dead_code, reason = "holds the lock")] OwnedRwLockReadGuard<()>);

/// Where it is kept when each image was needed last.
pub(crate) fn uses_file(root: &Path) -> PathBuf {
    root.join("updraft-uses.json")
}

/// Removes temporary files that no process can be using any more.
fn clear_temporary(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|found| found.modified()).map(|time| time.elapsed());
        if !matches!(age, Ok(Ok(age)) if age > TEMPORARY_MAX) {
            continue;
        }
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
            _ => fs::remove_file(entry.path()),
        };
        if let Err(cause) = removed {
            tracing::warn!(%cause, path = %entry.path().display(), "a temporary file stays");
        }
    }
}

/// `buildah` refuses to copy images without a policy; on a machine that has none for everybody,
/// one lies in the store's own folder.
fn own_policy(root: &Path) -> Result<Option<PathBuf>, ImageError> {
    if Path::new(POLICY).is_file() {
        return Ok(None);
    }
    let path = root.join("updraft-policy.json");
    fs::write(&path, OPEN_POLICY).map_err(ImageError::io("write", &path))?;
    Ok(Some(path))
}
