//! The OCI runtime program: which one works here, and how it is called.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;
use updraft_idmap::IdMap;
use updraft_model::Sandbox;

use crate::bundle::Limits;
use crate::cgroup::{Cgroups, Inside, Layout};
use crate::gvisor;
use crate::options::{LocalEngineOptions, OpenError, RuntimeChoice};
use crate::phases::Phases;
use crate::private_mounts::{PrivateMounts, STAGE, UnifiedCgroup};
use crate::strays;
use crate::tenants::IdRange;

/// Longest time one call of the runtime may take before it is ended; a start takes milliseconds.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// How often a runtime is tried before another one is, and the first pause in between.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// How many errors of a failed call are told.
const MOST_COMPLAINTS: usize = 3;

/// Why a call of the runtime failed.
#[derive(Debug, Error)]
pub(crate) enum RuntimeError {
    /// The program could not be started, or its files not be made.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The program said no.
    #[error("{program} failed: {reason}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// Its own words.
        reason: String,
    },
    /// The program did not end in time.
    #[error("{0} did not answer within 30 seconds")]
    Hangs(&'static str),
}

/// A runtime that was seen to work on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    name: &'static str,
    /// Where it lies.
    program: PathBuf,
    /// What it says of itself, for instance `crun version 1.8.1`.
    pub(crate) version: String,
    folder: PathBuf,
    /// What it is told at every call.
    flags: Vec<String>,
    mounts: PrivateMounts,
    pub(crate) cgroups: Cgroups,
    /// Whether containers are put into their groups from here; else the runtime does it.
    places: bool,
    /// The filter of system calls, compiled, in base64.
    compiled_filter: Option<Arc<str>>,
    way: Way,
}

/// How a container comes to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By one call, as a process with a root that others can look into.
    Process,
    /// Made, then started, as a process that holds all others and hides what they have.
    Sandbox(gvisor::Quirk),
}

/// What a call of the runtime is made of, in order and in one mount namespace.
enum Step {
    Program(Command),
    Prepare(fn() -> io::Result<()>),
}

/// What is mounted for one container, seen by it alone.
#[derive(Debug)]
pub(crate) struct Root {
    /// The image's files, as folders to stack from top to bottom.
    pub(crate) layers: Vec<PathBuf>,
    /// Shows them as those of the container's users; they look like nobody's without.
    pub(crate) map: Option<Arc<IdMap>>,
    /// Who owns what the container adds at the root: its own first user.
    pub(crate) users: IdRange,
    /// Files and folders of the host that the container is shown, by their number.
    pub(crate) binds: Vec<PathBuf>,
    /// Room for what the replica changes, in bytes.
    pub(crate) bytes: u64,
    /// Nothing can be changed in it. The runtime sees to that, but for a sandbox.
    pub(crate) is_read_only: bool,
}

impl Root {
    /// Where the container's root will be.
    pub(crate) fn merged() -> PathBuf {
        Path::new(STAGE).join("root")
    }

    /// Where one of the binds will be: its container may not enter the folder it lies in.
    pub(crate) fn bind(number: usize) -> PathBuf {
        Path::new(STAGE).join(format!("bind{number}"))
    }

    /// Lays a fresh, bounded layer in memory over the image.
    fn mount(&self) -> io::Result<()> {
        use nix::mount::{MsFlags, mount};
        let data = format!("mode=0755,size={},nr_inodes=65536", self.bytes);
        mount(Some("tmpfs"), STAGE, Some("tmpfs"), MsFlags::empty(), Some(data.as_str()))?;
        // Short names for all that is here: the kernel takes a page of options. The thread's
        // working folder is its own, as its mount namespace is.
        std::env::set_current_dir(STAGE)?;
        let (upper, work) = (Path::new("upper"), Path::new("work"));
        let merged = Self::merged();
        for (number, source) in self.binds.iter().enumerate() {
            let place = Self::bind(number);
            if source.is_dir() {
                fs::create_dir(&place)?;
            } else {
                drop(File::create(&place)?);
            }
            mount(Some(source), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        for folder in [upper, work, &merged] {
            fs::create_dir(folder)?;
            // The layer's own folder becomes `/`, which everybody may enter whatever our umask.
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        }
        chown(upper, Some(self.users.first), Some(self.users.first))?;
        let lower = match &self.map {
            Some(map) => match self.shifted(map) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    tracing::warn!("the image's file system cannot show files as a tenant's");
                    self.plain()?
                }
                shifted => shifted?,
            },
            None => self.plain()?,
        };
        let data = format!("lowerdir={lower},upperdir=upper,workdir=work,index=off,metacopy=off");
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(Some("overlay"), &merged, Some("overlay"), flags, Some(data.as_str()))?;
        std::env::set_current_dir("/")
    }

    /// Makes all of it read-only, in whichever namespace it is mounted too.
    fn shut() -> io::Result<()> {
        use nix::mount::{MsFlags, mount};
        let flags =
            MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        let nothing = None::<&str>;
        Ok(mount(nothing, &Self::merged(), nothing, flags, nothing)?)
    }

    /// The layers as they are: what the image keeps from others, its container cannot read.
    fn plain(&self) -> io::Result<String> {
        let names: io::Result<Vec<_>> =
            self.layers.iter().map(|layer| overlay_path(layer)).collect();
        Ok(names?.join(":"))
    }

    /// Mounts the layers as the container's users see them, and names them for the overlay.
    fn shifted(&self, map: &IdMap) -> io::Result<String> {
        let mut names = Vec::with_capacity(self.layers.len());
        for (number, layer) in self.layers.iter().enumerate() {
            let name = number.to_string();
            fs::create_dir(&name)?;
            updraft_idmap::attach(&map.shifted(layer)?, Path::new(&name))?;
            names.push(name);
        }
        Ok(names.join(":"))
    }
}

/// The option syntax of overlay mounts gives three characters a meaning; no path of ours holds
/// one, so one that does is refused instead of escaped.
fn overlay_path(path: &Path) -> io::Result<&str> {
    path.to_str()
        .filter(|path| !path.contains([',', ':', '\\']))
        .ok_or_else(|| io::Error::other(format!("`{}` cannot be mounted", path.display())))
}

/// One start of a container.
#[derive(Debug)]
pub(crate) struct Run {
    /// The container's id.
    pub(crate) id: String,
    /// The folder with `config.json`; the runtime's own log goes there too.
    pub(crate) bundle: PathBuf,
    /// What it runs from.
    pub(crate) root: Root,
    /// Its group, and what that may use at most.
    pub(crate) cgroup: String,
    pub(crate) limits: Limits,
    /// Where its output goes.
    pub(crate) output: File,
}

impl Runtime {
    /// Finds a runtime that can start a container here, and says why others cannot.
    pub(crate) async fn detect(
        options: &LocalEngineOptions,
    ) -> Result<(Self, Vec<String>), OpenError> {
        let cgroups = Cgroups::detect();
        // With the quick way into the groups where there is one, else as the runtime does it.
        let (quick, usual) = (("crun", true), ("crun", false));
        let candidates: &[(&'static str, bool)] = match options.runtime {
            RuntimeChoice::Detect => &[quick, usual, ("runc", false)],
            RuntimeChoice::Crun => &[quick, usual],
            RuntimeChoice::Runc => &[("runc", false)],
        };
        let possible = |(_, places): &&(_, bool)| !places || cgroups.can_place();
        let mut refused = Vec::new();
        for &(name, places) in candidates.iter().filter(possible) {
            let hidden = name == "crun" && cgroups.layout == Layout::Hybrid;
            let unified = if hidden { UnifiedCgroup::Hidden } else { UnifiedCgroup::Shown };
            let folder = options.runtime_folder().join(name);
            fs::create_dir_all(&folder).map_err(OpenError::file("create", &folder))?;
            let (program, version) = match find(name).await {
                Ok(found) => found,
                Err(reason) => {
                    refused.push(format!("{name}: {reason}"));
                    continue;
                }
            };
            let mounts = PrivateMounts::new(unified).with_read_only(program.clone());
            let cgroups = cgroups.clone();
            let manager = if places { "disabled" } else { "cgroupfs" };
            let flags = match name {
                "crun" => vec![format!("--cgroup-manager={manager}")],
                _ => Vec::new(),
            };
            let runtime = Self {
                name,
                program,
                version,
                folder,
                flags,
                mounts,
                cgroups,
                places,
                compiled_filter: None,
                way: Way::Process,
            };
            match works(&runtime, options).await {
                Ok(Some(filter)) => {
                    return Ok((runtime.with_filter(filter, options).await, refused));
                }
                Ok(None) => return Ok((runtime, refused)),
                Err(reason) => refused.push(format!("{name}: {reason}")),
            }
        }
        Err(OpenError::Runtime(refused.join("; ")))
    }

    /// The same with a filter of system calls that need not be compiled again, where that works.
    async fn with_filter(self, filter: String, options: &LocalEngineOptions) -> Self {
        let quick = Self { compiled_filter: Some(filter.into()), ..self.clone() };
        match works(&quick, options).await {
            Ok(_) => quick,
            Err(reason) => {
                tracing::warn!(reason, "starts take longer, the filter is compiled at each");
                self
            }
        }
    }

    /// The filter of system calls for a bundle, if it is compiled already.
    pub(crate) fn compiled_filter(&self) -> Option<&str> {
        self.compiled_filter.as_deref()
    }

    /// The filter as it was compiled for a container that is there, in base64; `crun` keeps it
    /// beside the container's state.
    pub(crate) fn compiled_filter_of(&self, id: &str) -> Option<String> {
        let filter = fs::read(self.folder.join(id).join("seccomp.bpf")).ok()?;
        (!filter.is_empty()).then(|| STANDARD.encode(filter))
    }

    /// Prepares what the next starts need; for a runtime that will make some.
    pub(crate) fn make_ahead(&self) {
        self.mounts.make_ahead();
    }

    /// gVisor's `runsc`, which nobody has tried yet: it knows the containers of an earlier run.
    pub(crate) fn gvisor(
        options: &LocalEngineOptions,
        cgroups: &Cgroups,
    ) -> Result<Self, OpenError> {
        let folder = options.runtime_folder().join("runsc");
        fs::create_dir_all(&folder).map_err(OpenError::file("create", &folder))?;
        Ok(Self {
            name: options.gvisor_program,
            program: PathBuf::from(options.gvisor_program),
            version: String::new(),
            folder,
            flags: gvisor::flags(options.gvisor_platform),
            mounts: PrivateMounts::new(UnifiedCgroup::Shown),
            cgroups: cgroups.clone(),
            places: false,
            compiled_filter: None,
            way: Way::Sandbox(gvisor::Quirk::None),
        })
    }

    /// The same with what the program is that is installed now, seen to work.
    ///
    /// # Errors
    /// Why it cannot be used here: most often that nobody installed it.
    pub(crate) async fn proven(&self, options: &LocalEngineOptions) -> Result<Self, String> {
        let (program, version) = find(self.name).await?;
        let way = Way::Sandbox(gvisor::Quirk::of(&version));
        let runtime = Self { program, version, way, ..self.clone() };
        // Once: who asks again has it tried again.
        crate::launch::try_out(&runtime, options).await.map(|_| runtime)
    }

    /// Whose kernel it runs containers on.
    pub(crate) fn sandbox(&self) -> Sandbox {
        match self.way {
            Way::Process => Sandbox::Kernel,
            Way::Sandbox(_) => Sandbox::Gvisor,
        }
    }

    /// The program's name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.folder);
        command.args(&self.flags);
        // Nothing of Updraft's own environment is the runtime's or the container's business.
        command.env_clear().env("PATH", search_path()).stdin(Stdio::null());
        command
    }

    /// Starts a container and returns its first process, which is then nobody's child but ours.
    /// Notes how long that took.
    pub(crate) async fn run(&self, run: Run, phases: &mut Phases) -> Result<i32, RuntimeError> {
        let begin = Instant::now();
        let pid_file = run.bundle.join("pid");
        let log = run.bundle.join("runtime.log");
        let io = |doing| move |source| RuntimeError::Io { doing, source };
        let errors = run.output.try_clone().map_err(io("share the log file"))?;
        let logged = || {
            let mut command = self.command();
            command.arg("--log").arg(&log).arg("--log-format=json");
            command
        };
        let mut made = logged();
        match self.way {
            Way::Process => made.args(["run", "--detach"]),
            Way::Sandbox(_) => made.arg("create"),
        };
        made.arg("--bundle").arg(&run.bundle).arg("--pid-file").arg(&pid_file).arg(&run.id);
        made.stdout(run.output).stderr(errors);
        let mut steps = vec![Step::Program(made)];
        if let Way::Sandbox(quirk) = self.way {
            // Only now that `runsc` has made in it what it mounts on. Told to do this itself, it
            // tries to take `nodev` and `nosuid` away with it, and may not.
            steps.extend(run.root.is_read_only.then_some(Step::Prepare(Root::shut)));
            steps.extend(quirk.remedy().map(Step::Prepare));
            let mut started = logged();
            started.arg("start").arg(&run.id).stdout(Stdio::null()).stderr(Stdio::null());
            steps.push(Step::Program(started));
        }
        let Run { root, cgroup, limits, .. } = run;
        let cgroups = self.places.then(|| self.cgroups.clone());
        let own_group = (!self.places).then(|| cgroup.clone());
        let mounted = Arc::new(OnceLock::new());
        let told = Arc::clone(&mounted);
        let status = self.call(steps, move || {
            root.mount().map_err(|error| {
                io::Error::new(error.kind(), format!("the root could not be mounted: {error}"))
            })?;
            let _ = told.set(begin.elapsed());
            let Some(cgroups) = cgroups else { return Ok(None) };
            cgroups.make(&cgroup, &limits)?;
            cgroups.enter(&cgroup).map(Some)
        });
        let status = status.await?;
        phases.mount = mounted.get().copied().unwrap_or_default();
        phases.runtime = begin.elapsed().saturating_sub(phases.mount);
        if !status {
            let reason = complaint(&log).unwrap_or_else(|| "it gave no reason".to_owned());
            return Err(RuntimeError::Failed { program: self.name, reason });
        }
        if let Some(group) = own_group {
            let limited = self.cgroups.limit_sockets(&group, &limits);
            limited.map_err(io("limit what its connections hold"))?;
        }
        let pid = fs::read_to_string(&pid_file).map_err(io("read the process id"))?;
        let pid = pid.trim().parse().map_err(|_| RuntimeError::Failed {
            program: self.name,
            reason: format!("it wrote `{}` for a process id", pid.trim()),
        })?;
        if self.sandbox() == Sandbox::Gvisor {
            gvisor::bound(pid, &limits).map_err(io("bound what it may take"))?;
        }
        Ok(pid)
    }

    /// Removes what the runtime keeps of a container, killing it when it runs. One that is not
    /// known is removed already. Of a sandbox nothing is anywhere but in its group and in files:
    /// `runsc` itself would wait for processes to be gone that are ours to wait for.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        if self.sandbox() == Sandbox::Gvisor || !self.knows(id) {
            return Ok(());
        }
        let mut command = self.command();
        command.args(["delete", "--force"]).arg(id).stdout(Stdio::null()).stderr(Stdio::null());
        if self.call(vec![Step::Program(command)], || Ok(None)).await? || !self.knows(id) {
            Ok(())
        } else {
            let reason = format!("container `{id}` could not be deleted");
            Err(RuntimeError::Failed { program: self.name, reason })
        }
    }

    /// Whether it keeps anything of a container.
    pub(crate) fn knows(&self, id: &str) -> bool {
        match self.way {
            Way::Process => self.folder.join(id).exists(),
            Way::Sandbox(_) => gvisor::files(&self.folder, id).next().is_some(),
        }
    }

    /// Removes the files that the runtime keeps of a container that has ended.
    pub(crate) fn forget(&self, id: &str) {
        if self.sandbox() == Sandbox::Gvisor {
            return gvisor::forget(&self.folder, id);
        }
        let folder = self.folder.join(id);
        if let Err(error) = fs::remove_dir_all(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, folder = %folder.display(), "files of a container stay behind");
        }
    }

    /// Calls the program in a mount namespace that `prepare` has furnished, and in the groups that
    /// it has entered. Returns whether it ended well, each time.
    async fn call(
        &self,
        steps: Vec<Step>,
        prepare: impl FnOnce() -> io::Result<Option<Inside>> + Send + 'static,
    ) -> Result<bool, RuntimeError> {
        let pid = Arc::new(AtomicI32::new(0));
        let started = Arc::clone(&pid);
        let work = self.mounts.run(move || {
            let mut inside = prepare()?;
            for step in steps {
                let mut command = match step {
                    Step::Program(command) => command,
                    Step::Prepare(prepare) => {
                        prepare()?;
                        continue;
                    }
                };
                // A group of its own: a Ctrl-C in Updraft's terminal is not meant for containers.
                command.process_group(0);
                let (mut child, id) = {
                    // Noted before anybody can take it for a stray.
                    let mut calls = strays::calls();
                    let child = command.spawn()?;
                    let id = i32::try_from(child.id()).unwrap_or(0);
                    calls.insert(id);
                    (child, id)
                };
                // What was started is in the groups; this thread is no part of the container.
                drop(inside.take());
                started.store(id, Ordering::SeqCst);
                let status = child.wait();
                started.store(0, Ordering::SeqCst);
                strays::calls().remove(&id);
                if !status?.success() {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        if let Ok(result) = tokio::time::timeout(CALL_LIMIT, work).await {
            let doing = "run the container runtime";
            return result.map_err(|source| RuntimeError::Io { doing, source });
        }
        let pid = pid.load(Ordering::SeqCst);
        if pid > 0 {
            // It may have ended this moment; then there is nothing to end.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        Err(RuntimeError::Hangs(self.name))
    }
}

/// Tries the runtime out, again when that fails: a machine that is busy for a moment must not
/// decide which runtime runs everything from now on.
///
/// # Errors
/// The last failure, in the runtime's own words.
async fn works(runtime: &Runtime, options: &LocalEngineOptions) -> Result<Option<String>, String> {
    let mut attempt = 1;
    loop {
        match crate::launch::try_out(runtime, options).await {
            Err(reason) if attempt < ATTEMPTS => {
                tracing::warn!(runtime = runtime.name, reason, "trying the runtime once more");
            }
            tried => return tried,
        }
        tokio::time::sleep(PAUSE * attempt).await;
        attempt += 1;
    }
}

/// Where a program lies, and the first line that its `--version` prints.
async fn find(name: &str) -> Result<(PathBuf, String), String> {
    let path = search_path();
    let mut folders = std::env::split_paths(&path).map(|folder| folder.join(name));
    let program = folders.find(|path| path.is_file());
    let program = program.ok_or("not installed")?;
    let output = tokio::process::Command::new(&program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(CALL_LIMIT, output).await.map_err(|_| "it hangs")?;
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            let version = text.lines().next().unwrap_or(name).to_owned();
            Ok((program, version))
        }
        Ok(output) => Err(format!("`{name} --version` ended with {}", output.status)),
        Err(error) => Err(format!("`{}` cannot be started: {error}", program.display())),
    }
}

/// Where programs are looked for.
fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into())
}

/// The errors in the runtime's own log, which one of them writes without ends of lines.
fn complaint(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    let entries = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
    let errors = entries.map_while(Result::ok).filter(|entry| entry["level"] == "error");
    let mut errors: Vec<_> =
        errors.filter_map(|entry| Some(entry["msg"].as_str()?.to_owned())).collect();
    // The last sums up, the first says why.
    errors.truncate(MOST_COMPLAINTS);
    (!errors.is_empty()).then(|| errors.join("; "))
}
