//! gVisor's `runsc`: a kernel of its own for a replica, in a process of this machine.
//!
//! The process that Updraft follows is the sandbox: it ends with the exit code of the function's
//! first process (128 and the signal, where one ended it) and hands it the signals that it gets
//! itself. Beside it runs one that holds the files, and with some platforms one for each process
//! of the function; all are in the replica's control group, which is how they are frozen, counted
//! and ended. The sandbox takes address and route from the network namespace and answers on the
//! wire itself.
//!
//! Whether the program works here is tried when the first function asks for it, not before: it
//! takes a fraction of a second that machines without such functions need not spend.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::sync::Mutex;
use updraft_engine::Fact;

use crate::bundle::Limits;
use crate::cgroup::Cgroups;
use crate::options::{GvisorPlatform, LocalEngineOptions, OpenError};
use crate::runtime::Runtime;

/// How long a failed trial speaks for the program; until then nobody waits for another.
const FAILED_FOR: Duration = Duration::from_secs(30);

/// Processes and threads of the sandbox itself, and how many one of the function can take: with
/// the platform `ptrace` each is a process of this machine of three threads, and followed by two.
const OWN_PROCESSES: u32 = 256;
const PROCESSES_EACH: u32 = 8;

/// Memory of the sandbox itself; with less it does not even start.
const OWN_MEMORY: u64 = 64 << 20;

/// What the file that is the function's memory grows by, which is seen as its length whatever is
/// in it.
const MEMORY_STEP: u64 = 1 << 30;

/// Flags for every call: a network stack of its own on the device, and writes to the bounded layer
/// that every root has. Not `--oci-seccomp`, which would apply our filter inside: it refuses what
/// is not on the list with "not permitted", where C libraries need to be told that there is no
/// such call (`clone3`) to make threads in another way.
pub(crate) fn flags(platform: GvisorPlatform) -> Vec<String> {
    let mut flags = vec!["--network=sandbox", "--overlay2=none"];
    flags.extend(match platform {
        GvisorPlatform::Usual => None,
        GvisorPlatform::Systrap => Some("--platform=systrap"),
        GvisorPlatform::Ptrace => Some("--platform=ptrace"),
        GvisorPlatform::Kvm => Some("--platform=kvm"),
    });
    flags.into_iter().map(str::to_owned).collect()
}

/// What a release needs done for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quirk {
    None,
    /// It takes a network namespace for the machine's own where it finds
    /// `/proc/sys/net/core/rmem_default`, which Linux 6.11 and later show in every one.
    /// (<https://github.com/google/gvisor/issues/10704>)
    SeesTheHostEverywhere,
}

impl Quirk {
    /// Releases carry their date: `release-20240807.0`, in Debian `0.0~20221219.0`.
    pub(crate) fn of(version: &str) -> Self {
        const MENDED: u32 = 20_240_801;
        let numbers = version.split(|character: char| !character.is_ascii_digit());
        let date = numbers.filter(|number| number.len() == 8).find_map(|date| date.parse().ok());
        if date.is_some_and(|date: u32| date < MENDED) {
            Self::SeesTheHostEverywhere
        } else {
            Self::None
        }
    }

    /// What is to be done between making a container and starting it, in the mount namespace of
    /// the call. The container has a copy made before: there a covered `/proc` would be refused.
    pub(crate) fn remedy(self) -> Option<fn() -> io::Result<()>> {
        match self {
            Self::None => None,
            Self::SeesTheHostEverywhere => Some(|| {
                let data = Some("size=4k,mode=0555");
                let flags = MsFlags::MS_RDONLY;
                Ok(mount(Some("tmpfs"), "/proc/sys/net", Some("tmpfs"), flags, data)?)
            }),
        }
    }
}

/// The limits of a control group that holds a sandbox, which takes something itself.
pub(crate) fn widened(limits: Limits) -> Limits {
    let processes = limits.processes.saturating_mul(PROCESSES_EACH).saturating_add(OWN_PROCESSES);
    let memory_bytes = limits.memory_bytes.saturating_add(OWN_MEMORY);
    Limits { memory_bytes, processes, ..limits }
}

/// Has the kernel end the sandbox itself when memory runs out, whichever of its processes touched
/// the most: without one of the others it would hang. And bounds the longest file that it writes,
/// which is the log while no Updraft is there to rotate it. Not as short as others' logs: the
/// function's memory is a file as well.
///
/// # Errors
/// The kernel refuses it. A sandbox that has ended already is none.
pub(crate) fn bound(pid: i32, limits: &Limits) -> io::Result<()> {
    match fs::write(format!("/proc/{pid}/oom_score_adj"), "1000") {
        Err(error) if !has_ended(&error) => return Err(error),
        _ => {}
    }
    let bytes = MEMORY_STEP.saturating_add(limits.memory_bytes).saturating_mul(4);
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    match prlimit(Pid::from_raw(pid), Resource::Fsize, limit) {
        Err(error) if !has_ended(&error.into()) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Whether a process could not be changed because it is gone.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// What `runsc` keeps of a container, in the folder where it keeps all of them.
pub(crate) fn files(folder: &Path, id: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let (begin, socket) = (format!("{id}_sandbox:"), format!("runsc-{id}.sock"));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let name = entry.file_name().into_string().ok()?;
        (name.starts_with(&begin) || name == socket).then(|| entry.path())
    })
}

/// Removes what `runsc` keeps of a container that has ended.
pub(crate) fn forget(folder: &Path, id: &str) {
    for path in files(folder, id) {
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file = %path.display(), "a file of a sandbox stays behind");
        }
    }
}

/// What is known of the program on this machine.
#[derive(Debug)]
enum Known {
    Untried,
    Works { version: String },
    Fails { reason: String, since: Instant },
}

/// gVisor on this machine, tried when it is asked for.
#[derive(Debug)]
pub(crate) struct Gvisor {
    /// What an earlier run may have started replicas with.
    untried: Runtime,
    platform: GvisorPlatform,
    /// Whether the operator's own settings ask for it.
    is_asked_for: bool,
    /// What starts replicas. Held while it is tried: nobody else tries it then.
    proven: Mutex<Option<Runtime>>,
    known: StdMutex<Known>,
}

impl Gvisor {
    pub(crate) fn new(options: &LocalEngineOptions, cgroups: &Cgroups) -> Result<Self, OpenError> {
        Ok(Self {
            untried: Runtime::gvisor(options, cgroups)?,
            platform: options.gvisor_platform,
            is_asked_for: options.sandboxes.ask_for_gvisor(),
            proven: Mutex::new(None),
            known: StdMutex::new(Known::Untried),
        })
    }

    /// The runtime, for what runs already.
    pub(crate) fn untried(&self) -> &Runtime {
        &self.untried
    }

    pub(crate) fn is_asked_for(&self) -> bool {
        self.is_asked_for
    }

    /// The runtime, for starts; tried first, unless it was seen to work before. Once it was not
    /// installed, it can be installed and is found.
    ///
    /// # Errors
    /// Why it does not work.
    pub(crate) async fn proven(&self, options: &LocalEngineOptions) -> Result<Runtime, String> {
        let mut proven = self.proven.lock().await;
        if let Some(runtime) = &*proven {
            return Ok(runtime.clone());
        }
        if let Known::Fails { reason, since } = &*self.known()
            && since.elapsed() < FAILED_FOR
            && self.is_installed()
        {
            return Err(reason.clone());
        }
        match self.untried.proven(options).await {
            Ok(runtime) => {
                *self.known() = Known::Works { version: runtime.version.clone() };
                *proven = Some(runtime.clone());
                Ok(runtime)
            }
            Err(reason) => {
                *self.known() = Known::Fails { reason: reason.clone(), since: Instant::now() };
                Err(reason)
            }
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What people are told of it.
    pub(crate) fn fact(&self) -> Fact {
        const NAME: &str = "gVisor";
        let none = |reason: &str| {
            let found = format!("none, `{}`: {reason}", self.untried.name());
            if self.is_asked_for {
                let advice = "functions that are to run in it are refused; see docs/security.md";
                Fact::degraded(NAME, found, advice)
            } else {
                Fact::good(NAME, found)
            }
        };
        match &*self.known() {
            Known::Works { version } => match self.platform {
                GvisorPlatform::Usual => Fact::good(NAME, version.clone()),
                platform => Fact::good(NAME, format!("{version}, platform {platform}")),
            },
            Known::Fails { reason, .. } => none(reason),
            Known::Untried if self.is_installed() => {
                Fact::good(NAME, "installed, tried when a function first asks for it")
            }
            Known::Untried => none("not installed"),
        }
    }

    /// Whether the program is where programs are.
    fn is_installed(&self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(self.untried.name()).is_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_that_see_the_host_everywhere_are_known_by_their_date() {
        for (version, quirk) in [
            ("runsc version 0.0~20221219.0", Quirk::SeesTheHostEverywhere),
            ("runsc version release-20240729.0", Quirk::SeesTheHostEverywhere),
            ("runsc version release-20240807.0", Quirk::None),
            ("runsc version release-20260101.0-12-g123456789", Quirk::None),
            ("runsc version VERSION_MISSING", Quirk::None),
        ] {
            assert_eq!(Quirk::of(version), quirk, "{version}");
        }
    }

    #[test]
    fn of_a_sandbox_only_its_own_files_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        for name in ["a_sandbox:a.state", "a_sandbox:a.lock", "runsc-a.sock", "ab_sandbox:ab.state"]
        {
            fs::write(file(name), "").unwrap();
        }
        assert_eq!(files(folder.path(), "a").count(), 3);
        forget(folder.path(), "a");
        assert_eq!(files(folder.path(), "a").count(), 0);
        assert!(file("ab_sandbox:ab.state").exists());
        forget(&file("nowhere"), "a");
    }

    #[test]
    fn a_platform_is_named_only_where_one_was_chosen() {
        let usual = flags(GvisorPlatform::Usual);
        assert!(!usual.iter().any(|flag| flag.contains("platform")), "{usual:?}");
        assert!(flags(GvisorPlatform::Kvm).contains(&"--platform=kvm".to_owned()));
    }
}
