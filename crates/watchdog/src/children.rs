//! Starting processes and learning of their end, as PID 1 must: every dead child is reaped,
//! also those that were never ours but were left to us.
//!
//! One task waits for all children (`waitpid(-1)`) and hands each result to whoever started the
//! process. Nothing else in this program waits for a process, so results cannot be stolen.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::signal::unix::SignalKind;
use tokio::sync::oneshot;

use crate::config::CommandLine;

/// How a process ended; prints as `exit status 1` or `signal: killed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(Signal),
}

impl Exit {
    pub(crate) fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal: {}", signal_name(*signal)),
        }
    }
}

fn signal_name(signal: Signal) -> String {
    match signal {
        Signal::SIGHUP => "hangup",
        Signal::SIGINT => "interrupt",
        Signal::SIGQUIT => "quit",
        Signal::SIGILL => "illegal instruction",
        Signal::SIGTRAP => "trace/breakpoint trap",
        Signal::SIGABRT => "aborted",
        Signal::SIGBUS => "bus error",
        Signal::SIGFPE => "floating point exception",
        Signal::SIGKILL => "killed",
        Signal::SIGUSR1 => "user defined signal 1",
        Signal::SIGSEGV => "segmentation fault",
        Signal::SIGUSR2 => "user defined signal 2",
        Signal::SIGPIPE => "broken pipe",
        Signal::SIGALRM => "alarm clock",
        Signal::SIGTERM => "terminated",
        other => return other.as_str().to_owned(),
    }
    .to_owned()
}

/// A process group that is killed when this is dropped, unless it was released first.
#[derive(Debug)]
pub(crate) struct Group {
    leader: Pid,
    /// Off once the leader has ended by itself: its number may belong to somebody else soon.
    armed: AtomicBool,
}

impl Group {
    /// Sends a signal to every process of the group; a group that is gone is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.armed.load(Ordering::Relaxed) {
            let _gone = killpg(self.leader, signal);
        }
    }

    /// The leader has ended by itself: what it left running on purpose goes on.
    pub(crate) fn release(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// Where the two outputs of a process go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    /// Each into a pipe of its own.
    Apart,
    /// Both into one pipe, in the order in which they are written.
    Together,
}

/// A started process with its pipes.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) group: Arc<Group>,
    pub(crate) stdin: pipe::Sender,
    pub(crate) stdout: pipe::Receiver,
    /// `None` where standard output takes the errors, too.
    pub(crate) stderr: Option<pipe::Receiver>,
    pub(crate) exit: oneshot::Receiver<Exit>,
}

/// All processes this watchdog has started and not yet seen end.
#[derive(Debug)]
pub(crate) struct Children {
    waiters: Mutex<HashMap<Pid, oneshot::Sender<Exit>>>,
}

impl Children {
    /// Starts the task that reaps; must run before the first process is started.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let mut signals = tokio::signal::unix::signal(SignalKind::child())?;
        // Without it, orphans of the function go past us when somebody else is PID 1.
        let _old_kernel = nix::sys::prctl::set_child_subreaper(true);
        let children = Arc::new(Self { waiters: Mutex::new(HashMap::new()) });
        let reaper = Arc::clone(&children);
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                reaper.reap();
            }
        });
        Ok(children)
    }

    /// Starts a process in a group of its own, with pipes on all its streams.
    pub(crate) fn spawn(
        &self,
        line: &CommandLine,
        environment: impl IntoIterator<Item = (String, String)>,
        streams: Streams,
    ) -> io::Result<Child> {
        let (stdout, stdout_end) = io::pipe()?;
        let (stderr, stderr_end) = match streams {
            Streams::Together => (None, stdout_end.try_clone()?),
            Streams::Apart => {
                let (stderr, stderr_end) = io::pipe()?;
                (Some(stderr), stderr_end)
            }
        };
        let mut command = Command::new(&line.program);
        command
            .args(&line.arguments)
            .envs(environment)
            .stdin(Stdio::piped())
            .stdout(stdout_end)
            .stderr(stderr_end)
            .process_group(0);
        let (sender, exit) = oneshot::channel();
        // The lock is held over the start: a process that ends at once is reaped only after it
        // is known.
        let mut waiters = self.lock();
        let mut child = command.spawn()?;
        let leader = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        waiters.insert(leader, sender);
        drop(waiters);
        let group = Arc::new(Group { leader, armed: AtomicBool::new(true) });
        let missing = || io::Error::other("a pipe of the process is missing");
        let stdin = child.stdin.take().ok_or_else(missing)?;
        Ok(Child {
            group,
            stdin: pipe::Sender::from_owned_fd(OwnedFd::from(stdin))?,
            stdout: pipe::Receiver::from_owned_fd(OwnedFd::from(stdout))?,
            stderr: stderr
                .map(|stderr| pipe::Receiver::from_owned_fd(OwnedFd::from(stderr)))
                .transpose()?,
            exit,
        })
    }

    fn reap(&self) {
        loop {
            // A start in progress holds the lock, so a process that could not be executed is
            // reaped by the starter and not here.
            let mut waiters = self.lock();
            let (pid, exit) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal)),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if let Some(waiter) = waiters.remove(&pid) {
                // The starter may have lost interest; then nobody needs the result.
                let _uninterested = waiter.send(exit);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pid, oneshot::Sender<Exit>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_print_as_the_original_prints_them() {
        assert_eq!(Exit::Code(1).to_string(), "exit status 1");
        assert_eq!(Exit::Signal(Signal::SIGKILL).to_string(), "signal: killed");
        assert_eq!(Exit::Signal(Signal::SIGTERM).to_string(), "signal: terminated");
    }
}
