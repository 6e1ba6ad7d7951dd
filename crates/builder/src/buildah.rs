//! The embedded back end: `buildah` on the machine's own image store.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;
use updraft_idmap::IdMap;
use updraft_images::{Driver, Image, ImageStore};
use updraft_model::{Digest, ImageRef};

use crate::cgroup::Cgroups;
use crate::dockerfile::{Dockerfile, Needed};
use crate::network::{self, Network};
use crate::output::Output;
use crate::sandbox::{self, End, View};
use crate::seccomp;
use crate::{BuildError, BuildPolicy, BuildRequest, Builder, BuiltImage, LineSink};

mod examine;
mod input;
mod watch;

pub use examine::examine;
use input::{check_arguments, check_binds, read_dockerfile};
use watch::{Ended, Untidy};

/// Part of every key: to be raised when the way of building changes what comes out.
const KEY_VERSION: &str = "updraft build 1";
/// File in a build's folder that lists the system calls of its steps.
const CALLS: &str = "seccomp.json";
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
        let without_users = examine::try_users(&builds, &run_root).err().map(|reason| {
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
        let users = self.without_users.as_deref();
        examine::shortcomings(users, &self.cgroups, self.calls.is_some())
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
        let before =
            self.check_disk(request, None).map_err(|reason| BuildError::DiskFull { reason })?;
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
        let ended = self.watch(request, running, before, output).await;
        untidy.set(!matches!(&ended, Ended::Itself(End { status: Ok(status), .. }) if status.code().is_some()));
        output.finish();
        self.verdict(request, ended, folder, output)
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
