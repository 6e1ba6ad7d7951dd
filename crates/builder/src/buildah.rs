//! The embedded back end: `buildah` on the machine's own image store.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{Mode, OFlags, XattrFlags};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio::sync::OnceCell;
use updraft_idmap::IdMap;
use updraft_images::{Driver, Image, ImageStore};
use updraft_model::{Digest, ImageRef};

use crate::cgroup::Cgroups;
use crate::dockerfile::{BYTES_MAX, Dockerfile, Needed};
use crate::network::{self, Network};
use crate::output::Output;
use crate::sandbox::{self, End, Running, View};
use crate::seccomp;
use crate::{BuildError, BuildPolicy, BuildRequest, Builder, BuiltImage, LineSink};

/// Part of every key: to be raised when the way of building changes what comes out.
const KEY_VERSION: &str = "updraft build 1";
/// File in a build's folder that lists the system calls of its steps.
const CALLS: &str = "seccomp.json";
/// How often the disk is looked at.
const DISK_WATCH: Duration = Duration::from_millis(250);
/// What the default set of `buildah` grants and no build step needs: making device files and
/// changing the root folder are ways out, and raw packets are for listening to others.
const CAPABILITIES_DROPPED: [&str; 4] =
    ["CAP_MKNOD", "CAP_SYS_CHROOT", "CAP_NET_RAW", "CAP_AUDIT_WRITE"];
/// Variables that lead programs to the machine's root certificates. Seen by build steps only.
const CERTIFICATE_VARIABLES: [&str; 7] = [
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "CARGO_HTTP_CAINFO",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
];
/// Environment of `buildah` that is for fetching images, which builds do not.
const NOT_FOR_BUILDS: [&str; 6] = [
    "HOME",
    "XDG_RUNTIME_DIR",
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    // A build writes its cache into a root of its own, in memory.
    "XDG_DATA_HOME",
    "_CONTAINERS_ROOTLESS_UID",
];

/// Builds with `buildah`. Cheap to clone; any number of builds may run at one time.
#[derive(Debug, Clone)]
pub struct BuildahBuilder {
    store: ImageStore,
    cgroups: Cgroups,
    policy: Arc<BuildPolicy>,
    network: Arc<Network>,
    /// Whether the firewall is in place; builds wait for it.
    is_walled: Arc<OnceCell<()>>,
    /// Why builds run as root of the machine, where they do.
    without_users: Option<Arc<str>>,
    /// The system calls that steps have; without, those that `buildah` gives.
    calls: Option<Arc<str>>,
    /// Whether a killed build, of this process or an earlier one, may have left something.
    untidy: Arc<AtomicBool>,
    /// Paths that builds see, without symbolic links.
    root: PathBuf,
    run_root: PathBuf,
}

/// Why a running build was ended from outside.
enum Ended {
    Itself(End),
    Cancelled,
    TimedOut,
    DiskFull(String),
}

impl BuildahBuilder {
    /// A builder on this store. Removes what builds of a killed process left.
    pub fn new(store: ImageStore) -> Result<Self, BuildError> {
        Self::with_policy(store, BuildPolicy::default())
    }

    /// As [`new`](Self::new), with another policy than the usual one.
    pub fn with_policy(store: ImageStore, policy: BuildPolicy) -> Result<Self, BuildError> {
        let absolute = |path: &Path| {
            fs::create_dir_all(path).map_err(BuildError::io("create", path))?;
            path.canonicalize().map_err(BuildError::io("find", path))
        };
        let root = absolute(store.root())?;
        let run_root = absolute(store.run_root())?;
        let builds = root.join("updraft-builds");
        if let Err(cause) = fs::remove_dir_all(&builds)
            && cause.kind() != io::ErrorKind::NotFound
        {
            return Err(BuildError::io("clear", builds)(cause));
        }
        absolute(&builds)?;
        let name = hash_of(&root);
        let cgroups = Cgroups::detect(&format!("updraft-build-{}", &name[..8]));
        let without_users = try_users(&builds, &run_root).err().map(|reason| {
            tracing::warn!(reason, "builds run as root of this machine, with few capabilities");
            Arc::from(reason)
        });
        let network = Arc::new(Network::new(policy.egress.clone(), &name));
        let (policy, is_walled) = (Arc::new(policy), Arc::default());
        let untidy = Arc::new(AtomicBool::new(true));
        Ok(Self {
            store,
            cgroups,
            policy,
            network,
            is_walled,
            without_users,
            calls: seccomp::profile().map(Arc::from),
            untidy,
            root,
            run_root,
        })
    }

    /// Why builds are less apart from the machine than they could be; empty when they are not.
    pub fn degraded(&self) -> Vec<String> {
        let users = self.without_users.as_ref();
        let users = users.map(|reason| format!("builds run as root of this machine: {reason}"));
        let groups = matches!(self.cgroups, Cgroups::Missing)
            .then(|| "builds have no limits on memory, processes and processors".to_owned());
        let calls = self.calls.is_none().then(|| {
            "steps of builds may trace each other and ask for the kernel's keys: this machine has \
             no list of system calls at /usr/share/containers/seccomp.json"
                .to_owned()
        });
        users.into_iter().chain(groups).chain(calls).collect()
    }

    /// Removes what builds on the store in this folder left in the machine beside their files.
    pub async fn destroy(root: &Path) -> Result<(), BuildError> {
        let root = root.canonicalize().map_err(BuildError::io("find", root))?;
        let removed = network::remove(&hash_of(&root)).await;
        removed.map_err(|reason| BuildError::Network { reason })
    }

    /// Removes what killed builds left in the store, unless a build is running now; then a later
    /// one will.
    async fn tidy(&self) {
        if !self.untidy.load(Ordering::Relaxed) {
            return;
        }
        match self.store.remove_abandoned().await {
            Ok(None) => {}
            Ok(Some(count)) => {
                self.untidy.store(false, Ordering::Relaxed);
                tracing::debug!(count, "removed what killed builds left");
            }
            Err(error) => tracing::warn!(%error, "what killed builds left stays"),
        }
    }

    /// Makes the images present that the Dockerfile starts from.
    async fn images(
        &self,
        request: &BuildRequest,
        file: &Dockerfile,
        output: &LineSink,
    ) -> Result<BTreeMap<ImageRef, Image>, BuildError> {
        let mut images = BTreeMap::new();
        for needed in &file.images {
            if images.contains_key(&needed.image) {
                continue;
            }
            let progress = |line: &str| output(line);
            let image = self.store.ensure(&needed.image, &progress).await.map_err(|cause| {
                let (image, cause) = (needed.image.clone(), Box::new(cause));
                BuildError::BaseImage { image, line: needed.line, cause }
            })?;
            self.check_owner(request, needed, &image)?;
            images.insert(needed.image.clone(), image);
        }
        Ok(images)
    }

    /// What was built here from one owner's code is not for others to build on, by whatever name
    /// or digest they call it.
    fn check_owner(
        &self,
        request: &BuildRequest,
        needed: &Needed,
        image: &Image,
    ) -> Result<(), BuildError> {
        let own = owner_of(&request.tag);
        let shared = |owner: &str| self.policy.shared_owners.iter().any(|shared| shared == owner);
        let may = |name: &ImageRef| {
            owner_of(name).is_none_or(|owner| Some(owner) == own || shared(owner))
        };
        if image.names.iter().any(may) {
            return Ok(());
        }
        let whose = image.names.iter().find_map(owner_of);
        let whose = whose.map_or_else(|| "nobody any more".to_owned(), |who| format!("`{who}`"));
        Err(BuildError::Dockerfile {
            line: needed.line,
            reason: format!(
                "image `{}` belongs to {whose}, build on one of your own, on a base image or on \
                 one of a registry",
                needed.image
            ),
        })
    }

    fn check_disk(&self, request: &BuildRequest, free_before: u64) -> Result<u64, String> {
        let free = self.store.free_bytes().map_err(|error| error.to_string())?;
        let least = self.store.free_bytes_min();
        if free < least {
            return Err(format!(
                "only {} MiB are free in `{}`, {} MiB have to stay free",
                free >> 20,
                self.store.root().display(),
                least >> 20
            ));
        }
        if free_before.saturating_sub(free) > request.limits.disk_bytes {
            return Err(format!(
                "it took more than the {} MiB a build may take",
                request.limits.disk_bytes >> 20
            ));
        }
        Ok(free)
    }

    fn command(&self, request: &BuildRequest, folder: &Path, users: Option<&IdMap>) -> Command {
        let buildah = self.store.command().into_std();
        let mut command = sandbox::launcher(users);
        command.arg(buildah.get_program()).args(buildah.get_args());
        command.env_clear();
        for (name, value) in buildah.get_envs() {
            if let Some(value) = value
                && !NOT_FOR_BUILDS.iter().any(|hidden| name == *hidden)
            {
                command.env(name, value);
            }
        }
        command.env("HOME", folder).env("TMPDIR", folder);
        command.args(["build", "--layers", "--isolation", "chroot", "--network", "host"]);
        command.args(["--format", "docker", "--pull=never", "--force-rm"]);
        command.args(["--identity-label=false", "--retry", "0"]);
        for capability in CAPABILITIES_DROPPED {
            command.args(["--cap-drop", capability]);
        }
        if let Some(policy) = self.store.signature_policy() {
            command.arg("--signature-policy").arg(policy);
        }
        if self.calls.is_some() {
            let calls = folder.join(CALLS);
            command.arg("--security-opt").arg(format!("seccomp={}", calls.display()));
        }
        for (name, value) in &request.build_args {
            command.arg(format!("--build-arg={name}={value}"));
        }
        command.arg("--file").arg(folder.join("Dockerfile"));
        command.arg("--iidfile").arg(folder.join("image-id"));
        command.arg("--tag").arg(request.tag.as_str());
        command
    }

    async fn run(
        &self,
        request: &BuildRequest,
        context: &Path,
        folder: &Path,
        output: &mut Output<'_>,
    ) -> Result<Digest, BuildError> {
        let free_before =
            self.check_disk(request, 0).map_err(|reason| BuildError::DiskFull { reason })?;
        let users = match &self.without_users {
            None => Some(new_users().await.map_err(BuildError::io("make users for", folder))?),
            Some(_) => None,
        };
        let no_network = |reason| BuildError::Network { reason };
        let wall = self.is_walled.get_or_try_init(|| self.network.install());
        wall.await.map_err(no_network)?;
        let network = self.network.namespace().await.map_err(no_network)?;
        let mut command = self.command(request, folder, users.as_ref());
        let view = View {
            users,
            network,
            resolver: Network::resolver(),
            root: self.run_root.join("build-root"),
            writable: vec![self.root.clone(), self.run_root.join("buildah")],
            readable: vec![context.to_owned()],
            fuse: self.store.driver() == Driver::FuseOverlay,
        };
        for place in [&view.root, &view.writable[1]] {
            fs::create_dir_all(place).map_err(BuildError::io("create", place))?;
        }
        let group = match &self.cgroups {
            Cgroups::Missing => None,
            cgroups => {
                let group = cgroups.group(&request.limits);
                Some(group.map_err(BuildError::io("limit a build in", folder))?)
            }
        };
        command.arg(context);
        let running = sandbox::start(command, view, group).await;
        let running = running.map_err(BuildError::io("start a build in", folder))?;
        // Also when this future is dropped from here on.
        let untidy = Untidy(&self.untidy, true);
        let ended = self.watch(request, running, free_before, output).await;
        untidy.set(!matches!(&ended, Ended::Itself(End { status: Ok(status), .. }) if status.code().is_some()));
        output.finish();
        self.verdict(request, ended, folder, output)
    }

    /// Passes the build's output on until it ends or has to be ended.
    async fn watch(
        &self,
        request: &BuildRequest,
        mut running: Running,
        free_before: u64,
        output: &mut Output<'_>,
    ) -> Ended {
        let time = tokio::time::sleep(request.limits.time);
        tokio::pin!(time);
        let mut disk = tokio::time::interval(DISK_WATCH);
        let mut buffer = vec![0; 16 << 10];
        let mut open = true;
        let lost = |_| {
            let status = Err(io::Error::other("the build's thread failed"));
            End { status, out_of_memory: false }
        };
        loop {
            // Fair between its branches: endless output must not put off the limits.
            let ended = tokio::select! {
                read = running.output.read(&mut buffer), if open => {
                    match read {
                        Ok(0) | Err(_) => open = false,
                        Ok(length) => output.bytes(&buffer[..length]),
                    }
                    continue;
                }
                status = &mut running.ended, if !open => {
                    return Ended::Itself(status.unwrap_or_else(lost));
                }
                () = request.cancel.cancelled() => Ended::Cancelled,
                () = &mut time => Ended::TimedOut,
                _ = disk.tick() => match self.check_disk(request, free_before) {
                    Ok(_) => continue,
                    Err(reason) => Ended::DiskFull(reason),
                },
            };
            running.kill();
            if let Err(cause) = (&mut running.ended).await.unwrap_or_else(lost).status {
                tracing::warn!(%cause, "a build that was ended");
            }
            return ended;
        }
    }

    fn verdict(
        &self,
        request: &BuildRequest,
        ended: Ended,
        folder: &Path,
        output: &Output<'_>,
    ) -> Result<Digest, BuildError> {
        let End { status, out_of_memory } = match ended {
            Ended::Cancelled => return Err(BuildError::Cancelled),
            Ended::DiskFull(reason) => return Err(BuildError::DiskFull { reason }),
            Ended::TimedOut => {
                let limit = request.limits.time;
                return Err(BuildError::TimedOut { limit, log_tail: output.tail() });
            }
            Ended::Itself(end) => end,
        };
        let status = status.map_err(BuildError::io("wait for a build in", folder))?;
        if status.success() {
            let path = folder.join("image-id");
            let text = fs::read_to_string(&path).map_err(BuildError::io("read", &path))?;
            return text.trim().parse().map_err(|error| {
                BuildError::io("read", &path)(io::Error::new(io::ErrorKind::InvalidData, error))
            });
        }
        if out_of_memory {
            let limit_bytes = request.limits.memory_bytes;
            return Err(BuildError::OutOfMemory { limit_bytes, log_tail: output.tail() });
        }
        if output.tail().iter().any(|line| line.contains("no space left on device")) {
            let reason = "the disk is full".to_owned();
            if self.store.check_free().is_err() {
                return Err(BuildError::DiskFull { reason });
            }
        }
        Err(BuildError::Failed {
            exit_code: status.code(),
            step: output.step(),
            log_tail: output.tail(),
        })
    }
}

#[async_trait]
impl Builder for BuildahBuilder {
    async fn key(&self, request: &BuildRequest, output: &LineSink) -> Result<Digest, BuildError> {
        let file = read_dockerfile(request)?;
        let images = self.images(request, &file, output).await?;
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            // The length before each part keeps two different lists from looking the same.
            hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(bytes);
        };
        part(KEY_VERSION.as_bytes());
        part(request.context_digest.as_bytes());
        for (name, value) in &request.build_args {
            part(name.as_bytes());
            part(value.as_bytes());
        }
        part(b"images");
        for needed in &file.images {
            if let Some(image) = images.get(&needed.image) {
                part(image.id.as_bytes());
            }
        }
        Ok(Digest::from_bytes(hash.finalize().into()))
    }

    async fn build(
        &self,
        request: &BuildRequest,
        output: &LineSink,
    ) -> Result<BuiltImage, BuildError> {
        check_arguments(&request.build_args)?;
        let file = read_dockerfile(request)?;
        let context =
            request.context.canonicalize().map_err(BuildError::io("find", &request.context))?;
        check_binds(&file, &context)?;
        let images = self.images(request, &file, output).await?;
        self.store.check_free()?;
        self.tidy().await;
        let _working = self.store.working().await;
        if self.without_users.is_none() {
            for image in images.values() {
                self.store.settle(image).await?;
            }
        }

        let folder = Folder::new(&self.root.join("updraft-builds"))?;
        let variables: Vec<_> = CERTIFICATE_VARIABLES
            .iter()
            .filter(|_| sandbox::bundle().is_some())
            .map(|name| ((*name).to_owned(), sandbox::CERTIFICATES.to_owned()))
            .collect();
        let pin = |image: &ImageRef| match images.get(image) {
            Some(found) => found.id.hex(),
            None => image.to_string(),
        };
        let path = folder.0.join("Dockerfile");
        fs::write(&path, file.pinned(pin, &variables)).map_err(BuildError::io("write", &path))?;
        if let Some(calls) = &self.calls {
            let path = folder.0.join(CALLS);
            fs::write(&path, &**calls).map_err(BuildError::io("write", &path))?;
        }
        let names = images.iter().map(|(image, found)| (found.id.hex(), image.to_string()));
        let hidden = variables.first().map(|(name, value)| format!("ARG {name}={value} "));
        let mut lines = Output::new(output, names.collect(), hidden);
        for warning in &file.warnings {
            lines.say(warning);
        }
        let id = self.run(request, &context, &folder.0, &mut lines).await?;
        if self.without_users.is_none()
            && let Some(built) = self.store.resolve(&request.tag.pinned(id)).await?
        {
            self.store.settle(&built).await?;
        }
        Ok(BuiltImage { image: request.tag.clone(), id })
    }

    async fn exists(&self, image: &BuiltImage) -> Result<bool, BuildError> {
        Ok(self.store.resolve(&image.image.pinned(image.id)).await?.is_some())
    }
}

/// Tells this store from others.
fn hash_of(root: &Path) -> String {
    Digest::from_bytes(Sha256::digest(root.as_os_str().as_bytes()).into()).hex()
}

/// The owner of an image that was built here: `localhost/<owner>/…`.
fn owner_of(image: &ImageRef) -> Option<&str> {
    let path = image.name().strip_prefix("localhost/")?;
    path.split_once('/').map(|(owner, _)| owner)
}

async fn new_users() -> io::Result<IdMap> {
    let make = || IdMap::new(sandbox::USERS_FIRST, sandbox::USERS);
    tokio::task::spawn_blocking(make).await.map_err(io::Error::other)?
}

/// Whether a build could run in a user namespace here; if not, why.
fn try_users(builds: &Path, run_root: &Path) -> Result<(), String> {
    let lacks = |what: &str| {
        let what = what.to_owned();
        move |cause: io::Error| {
            format!("{what} ({cause}); Linux 6.3 and later can, on most file systems")
        }
    };
    let users = IdMap::new(sandbox::USERS_FIRST, sandbox::USERS)
        .map_err(|cause| format!("no user namespace can be made ({cause})"))?;
    for folder in [builds, run_root] {
        let shown = format!("`{}` cannot be shown under other users", folder.display());
        users.shifted_writable(folder).map_err(lacks(&shown))?;
    }
    // As a step leaves it on a folder that it removed and made anew.
    rustix::fs::setxattr(builds, "user.overlay.opaque", b"n", XattrFlags::empty())
        .map_err(|cause| lacks("folders in the store cannot be marked")(cause.into()))?;
    Ok(())
}

/// Notes that a build was killed, unless it is told otherwise before it goes.
struct Untidy<'a>(&'a AtomicBool, bool);

impl Untidy<'_> {
    fn set(mut self, killed: bool) {
        self.1 = killed;
    }
}

impl Drop for Untidy<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// A build's own folder, gone with the build.
struct Folder(PathBuf);

impl Folder {
    fn new(parent: &Path) -> Result<Self, BuildError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{}-{number}", std::process::id()));
        fs::create_dir_all(&path).map_err(BuildError::io("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(cause) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%cause, folder = %self.0.display(), "a build's folder stays");
        }
    }
}

fn read_dockerfile(request: &BuildRequest) -> Result<Dockerfile, BuildError> {
    let path = request.context.join("Dockerfile");
    // A link could lead to any file of the machine, a pipe would never end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::empty())
        .map_err(|error| BuildError::NoDockerfile { cause: error.into() })?;
    let mut text = String::new();
    let cap = u64::try_from(BYTES_MAX).unwrap_or(u64::MAX);
    fs::File::from(file)
        .take(cap)
        .read_to_string(&mut text)
        .map_err(|cause| BuildError::NoDockerfile { cause })?;
    if text.len() == BYTES_MAX {
        return Err(BuildError::Dockerfile { line: 1, reason: "it is too large".to_owned() });
    }
    Dockerfile::parse(&text, &request.build_args)
}

fn check_arguments(arguments: &BTreeMap<String, String>) -> Result<(), BuildError> {
    for (name, value) in arguments {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let starts_well = !name.starts_with(|first: char| first.is_ascii_digit());
        if name.is_empty() || !starts_well || !name.bytes().all(fits) || value.contains('\0') {
            let reason = format!("the build argument `{name}` is not a variable's name and value");
            return Err(BuildError::Dockerfile { line: 1, reason });
        }
    }
    Ok(())
}

/// A bind mount's source has to lie in the context, and no link may lead away from there.
fn check_binds(file: &Dockerfile, context: &Path) -> Result<(), BuildError> {
    for (line, source) in &file.binds {
        let wrong = |reason: &str| BuildError::Dockerfile {
            line: *line,
            reason: format!("the mount's source `{source}` {reason}"),
        };
        let mut path = context.to_owned();
        for part in source.split('/').filter(|part| !matches!(*part, "" | ".")) {
            if part == ".." {
                return Err(wrong("leads out of the context"));
            }
            path.push(part);
            match fs::symlink_metadata(&path) {
                Ok(found) if !found.is_symlink() => {}
                Ok(_) => return Err(wrong("is or holds a symbolic link")),
                Err(_) => return Err(wrong("is not in the context")),
            }
        }
    }
    Ok(())
}
