//! The `git` program under a harness: which one, how old, with which environment and settings.
//!
//! Every git process of this crate is made here. It gets an argument list, never a shell; an
//! environment of its own, never ours; settings on the command line that outrank whatever a
//! repository says; and a process group that is killed as one when nobody waits any more.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, prlimit};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::GitError;

/// Where git looks for the few programs it calls.
const CHILD_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// How long a git that is no longer wanted may clean up.
pub(super) const GRACE: Duration = Duration::from_secs(3);

/// How much of a failing git's complaint is kept.
const COMPLAINT_BYTES: u64 = 8 * 1024;

/// Longest answer of a short question to git, such as a commit's summary.
const ANSWER_BYTES: u64 = 1024 * 1024;

/// The first release of each line of git that carries the fixes of July 2025, which closed ways
/// for a hostile repository to write files of its choice (CVE-2025-48384, CVE-2025-48385).
/// Every later line has them.
const PATCHED_LINES: &[(u32, u32, u32)] = &[
    (2, 43, 7),
    (2, 44, 4),
    (2, 45, 4),
    (2, 46, 4),
    (2, 47, 3),
    (2, 48, 2),
    (2, 49, 1),
    (2, 50, 1),
];

/// Packages of distributions that carry those fixes under an older number: what comes before the
/// last number of the package's version, and the lowest last number that is good.
const PATCHED_PACKAGES: &[(&str, u32)] =
    &[("1:2.39.5-0+deb12u", 3), ("1:2.43.0-1ubuntu7.", 3), ("1:2.34.1-1ubuntu1.", 15)];

/// Settings for every git process; they outrank those of the repository.
const SETTINGS: &[&str] = &[
    // Nothing that a repository or a push contains is ever executed.
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.allow=never",
    // The data directory is ours, whoever owns its files.
    "safe.directory=*",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    // Memory: blobs above this are streamed, packs are mapped in small windows.
    "core.bigFileThreshold=16m",
    "core.packedGitWindowSize=16m",
    "core.packedGitLimit=256m",
    "core.deltaBaseCacheLimit=32m",
    "pack.windowMemory=64m",
    "pack.threads=1",
    // What has been acknowledged survives a power cut.
    "core.fsync=committed",
    // No house-keeping while somebody waits.
    "gc.auto=0",
    "maintenance.auto=false",
    "receive.autogc=false",
    "advice.defaultBranchName=false",
    "init.defaultBranch=main",
];

/// Whether a git without the fixes of [`PATCHED_LINES`] is good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitVersionPolicy {
    /// Only a git known to carry the fixes.
    Patched,
    /// Any git; for distributions that carry the fixes under a number this crate does not know.
    Any,
}

/// A `git` that has been found and judged new enough.
#[derive(Debug, Clone)]
pub(super) struct GitProgram {
    path: PathBuf,
}

/// A running git; dropped, it and all that it started are killed.
#[derive(Debug)]
pub(super) struct RunningGit {
    /// There until the drop.
    child: Option<Child>,
}

/// What a short question to git brought back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: ExitStatus,
    pub(super) output: Vec<u8>,
    pub(super) complaint: String,
}

/// Upper bounds that the kernel keeps for a git that works on what a stranger sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct KernelLimits {
    pub(super) memory_bytes: u64,
    pub(super) file_bytes: u64,
}

impl GitProgram {
    /// The first `git` on `PATH`, as it is.
    pub(super) fn on_path() -> Result<Self, GitError> {
        Ok(Self { path: on_path("git").ok_or(GitError::Missing)? })
    }

    /// The first `git` on `PATH`, if it is new enough.
    pub(super) fn judged(policy: GitVersionPolicy) -> Result<Self, GitError> {
        let Self { path } = Self::on_path()?;
        let output = std::process::Command::new(&path)
            .arg("version")
            .env_clear()
            .env("PATH", CHILD_PATH)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|cause| GitError::Start { program: path.clone(), cause })?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let patched = parse_version(&text).is_some_and(is_patched);
        if !patched && policy == GitVersionPolicy::Patched && !package_is_patched(&path) {
            return Err(GitError::TooOld { program: path, version: text });
        }
        tracing::debug!(program = %path.display(), version = text, "git found");
        Ok(Self { path })
    }

    /// A git command with the harness on; arguments follow.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        for setting in SETTINGS {
            command.arg("-c").arg(setting);
        }
        command
            .env_clear()
            .env("PATH", CHILD_PATH)
            .env("HOME", "/nonexistent")
            .env("XDG_CONFIG_HOME", "/nonexistent")
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_ADVICE", "0")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        command
    }

    /// A git command on the bare repository `bare`.
    pub(super) fn command_in(&self, bare: &Path) -> Command {
        let mut command = self.command();
        command.arg(git_dir_argument(bare));
        command
    }

    /// Starts `command`.
    pub(super) fn start(&self, command: &mut Command) -> Result<RunningGit, GitError> {
        let child = command
            .spawn()
            .map_err(|cause| GitError::Start { program: self.path.clone(), cause })?;
        Ok(RunningGit { child: Some(child) })
    }

    /// Runs a short question to its end; of the answer, the first MiB is read.
    pub(super) async fn ask(
        &self,
        command: &mut Command,
        limit: Duration,
    ) -> Result<Answer, GitError> {
        self.ask_for(command, limit, ANSWER_BYTES).await
    }

    /// Runs a short question to its end, within bounds that the kernel keeps.
    pub(super) async fn ask_within(
        &self,
        command: &mut Command,
        limit: Duration,
        bounds: KernelLimits,
    ) -> Result<Answer, GitError> {
        let git = self.start(command)?;
        git.limit(bounds);
        finish(git, limit, ANSWER_BYTES).await
    }

    /// Runs a question to its end; of the answer, the first `cap` bytes are read.
    pub(super) async fn ask_for(
        &self,
        command: &mut Command,
        limit: Duration,
        cap: u64,
    ) -> Result<Answer, GitError> {
        finish(self.start(command)?, limit, cap).await
    }
}

impl RunningGit {
    pub(super) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.as_mut()?.stdin.take()
    }

    pub(super) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.as_mut()?.stdout.take()
    }

    pub(super) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.as_mut()?.stderr.take()
    }

    /// Bounds what this git and the programs it starts from now on may take.
    pub(super) fn limit(&self, limits: KernelLimits) {
        let Some(pid) = self.child.as_ref().and_then(process_id) else { return };
        let bounds = [
            (Resource::As, limits.memory_bytes),
            (Resource::Fsize, limits.file_bytes),
            (Resource::Core, 0),
        ];
        for (resource, bound) in bounds {
            let rlimit = Rlimit { current: Some(bound), maximum: Some(bound) };
            if let Err(error) = prlimit(Some(pid), resource, rlimit) {
                tracing::debug!(%error, ?resource, "could not bound git");
            }
        }
    }

    /// Waits for the end.
    pub(super) async fn wait(&mut self) -> Result<ExitStatus, GitError> {
        match &mut self.child {
            Some(child) => child.wait().await.map_err(GitError::Talk),
            None => Err(GitError::Talk(std::io::ErrorKind::BrokenPipe.into())),
        }
    }
}

impl Drop for RunningGit {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // `id` is `None` once the child has been waited for, so a recycled id is never hit.
        let Some(group) = process_id(&child) else { return };
        signal(group, Signal::TERM);
        // Asked politely, a git takes away its lock files. It has a moment to do so.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
                    signal(group, Signal::KILL);
                }
            })),
            Err(_) => signal(group, Signal::KILL),
        }
    }
}

fn process_id(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
}

fn signal(group: Pid, signal: Signal) {
    if let Err(error) = kill_process_group(group, signal) {
        tracing::debug!(%error, ?signal, "could not stop git");
    }
}

/// Reads all that git says until it ends.
async fn finish(mut git: RunningGit, limit: Duration, cap: u64) -> Result<Answer, GitError> {
    let (stdout, stderr) = (git.take_stdout(), git.take_stderr());
    let talk = async {
        let (output, complaint) = tokio::join!(read_capped(stdout, cap), read_complaint(stderr));
        let status = git.wait().await?;
        Ok(Answer { status, output: output.map_err(GitError::Talk)?, complaint })
    };
    tokio::time::timeout(limit, talk).await.map_err(|_| GitError::TimedOut { limit })?
}

impl Answer {
    /// The output if git succeeded, else its complaint as an error.
    pub(super) fn into_output(self, what: &'static str) -> Result<Vec<u8>, GitError> {
        if self.status.success() {
            Ok(self.output)
        } else {
            Err(GitError::Failed { what, complaint: self.complaint })
        }
    }
}

/// `--git-dir=<bare>`, whatever bytes the path has.
fn git_dir_argument(bare: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from("--git-dir=");
    argument.push(bare);
    argument
}

/// Reads what git complains about, keeps the first part, and lets the rest pass so that git never
/// blocks on it.
pub(super) async fn read_complaint(stderr: Option<ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let mut kept = Vec::new();
    let first = (&mut stderr).take(COMPLAINT_BYTES).read_to_end(&mut kept).await;
    let rest = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    if let Err(error) = first.and(rest.map(|_| 0)) {
        tracing::debug!(%error, "could not read what git complained about");
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

async fn read_capped(reader: Option<impl AsyncRead + Unpin>, cap: u64) -> std::io::Result<Vec<u8>> {
    let Some(reader) = reader else { return Ok(Vec::new()) };
    let mut bytes = Vec::new();
    reader.take(cap).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| CHILD_PATH.into());
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|candidate| rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok())
}

/// Reads `git version 2.47.3` and its variants (`2.39.5 (Apple Git-154)`, `2.50.0.rc1`).
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let number = text.strip_prefix("git version ")?.split(' ').next()?;
    let mut parts = number.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    // A release candidate or a build without a third number counts as the first of its line.
    let patch = parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    Some((major, minor, patch))
}

fn is_patched((major, minor, patch): (u32, u32, u32)) -> bool {
    match PATCHED_LINES.iter().find(|line| (line.0, line.1) == (major, minor)) {
        Some(line) => patch >= line.2,
        None => (major, minor) > (2, 50),
    }
}

/// Asks Debian's package database whether the distribution has carried the fixes back.
fn package_is_patched(program: &Path) -> bool {
    if program != Path::new("/usr/bin/git") && program != Path::new("/bin/git") {
        return false;
    }
    let output = std::process::Command::new("/usr/bin/dpkg-query")
        .args([OsStr::new("-W"), OsStr::new("-f=${Version}"), OsStr::new("git")])
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    output.is_ok_and(|output| package_version_is_patched(&String::from_utf8_lossy(&output.stdout)))
}

fn package_version_is_patched(version: &str) -> bool {
    PATCHED_PACKAGES.iter().any(|(start, lowest)| {
        version
            .trim()
            .strip_prefix(start)
            .and_then(|last| last.parse::<u32>().ok())
            .is_some_and(|last| last >= *lowest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_without_the_fixes_of_july_2025_counts_as_too_old() {
        for (text, good) in [
            ("git version 2.47.3", true),
            ("git version 2.47.2", false),
            ("git version 2.50.0", false),
            ("git version 2.50.1", true),
            ("git version 2.51.0.rc1", true),
            ("git version 2.39.5 (Apple Git-154)", false),
            ("git version 3.0.0", true),
            ("git version 1.9.1", false),
            ("something else", false),
        ] {
            assert_eq!(parse_version(text).is_some_and(is_patched), good, "{text}");
        }
    }

    #[test]
    fn packages_with_fixes_carried_back_are_known() {
        for (version, good) in [
            ("1:2.39.5-0+deb12u3", true),
            ("1:2.39.5-0+deb12u2", false),
            ("1:2.43.0-1ubuntu7.3", true),
            ("1:2.43.0-1ubuntu7", false),
            ("1:2.30.2-1", false),
            ("", false),
        ] {
            assert_eq!(package_version_is_patched(version), good, "{version}");
        }
    }
}
