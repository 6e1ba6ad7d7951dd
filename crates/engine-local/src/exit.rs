//! When a replica's process ends, and how.
//!
//! A replica that this Updraft started is its child in the end: the runtime program that made it
//! is gone, and Updraft is the next reaper above. A replica that was adopted belongs to the
//! machine's init; its end is seen all the same, only its exit status is not.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// Some other process was told.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}

/// Follows one process by a descriptor that no other process can ever take over.
#[derive(Debug)]
pub(crate) struct Process {
    descriptor: AsyncFd<OwnedFd>,
    origin: Origin,
}

/// Who started a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// This Updraft: its exit status comes here.
    Ours,
    /// An earlier one: its exit status goes to the machine's init, unless that is us.
    Earlier,
}

/// How long the status of a process of ours may take to arrive: the runtime's helper process
/// between it and us may end a moment after it, on a busy machine seconds after it.
const HAND_OVER: Duration = Duration::from_secs(30);
const HAND_OVER_LOOK: Duration = Duration::from_millis(1);

/// Makes this process the one that gets the containers whose runtime program has ended.
pub(crate) fn become_reaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

impl Process {
    /// Follows a process that was just started by us, ended already or not.
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        Self::follow(pid, Origin::Ours)
    }

    fn follow(pid: i32, origin: Origin) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("a process id of 0"))?;
        let descriptor = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types that may change their descriptor; an OwnedFd never does"
        )]
        let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
        Ok(Self { descriptor, origin })
    }

    /// Follows a process of an earlier run, when it is still the same one.
    pub(crate) fn adopt(pid: i32, started: u64) -> Option<Self> {
        let process = Self::follow(pid, Origin::Earlier).ok()?;
        // Asked after the descriptor is held: the number cannot change hands any more.
        (start_time(pid) == Some(started) && !process.has_ended()).then_some(process)
    }

    fn has_ended(&self) -> bool {
        let mut events = [PollFd::new(self.descriptor.get_ref(), PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut events, Some(&at_once)).is_ok_and(|ended| ended > 0)
    }

    /// Waits for the end. May be called again after it.
    pub(crate) async fn wait(&self) -> Exit {
        if self.descriptor.readable().await.is_err() {
            // Only when the async runtime shuts down, and this task with it.
            return std::future::pending().await;
        }
        let begin = Instant::now();
        loop {
            if let Some(exit) = self.status() {
                return exit;
            }
            if self.origin == Origin::Earlier || self.is_reaped() || begin.elapsed() > HAND_OVER {
                return Exit::Unknown;
            }
            tokio::time::sleep(HAND_OVER_LOOK).await;
        }
    }

    /// Whether somebody has taken the exit status: then the kernel shows no id any more.
    fn is_reaped(&self) -> bool {
        let descriptor = self.descriptor.get_ref().as_raw_fd();
        fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"))
            .is_ok_and(|text| text.lines().any(|line| line == "Pid:\t-1"))
    }

    /// Takes the exit status, if it is ours to take already.
    fn status(&self) -> Option<Exit> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(self.descriptor.get_ref().as_fd()), options).ok()??;
        Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        })
    }

    /// Asks the process to end.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends the process, and all others of its container.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // The only failure is that it ended already, which is what is wanted.
        let _ = pidfd_send_signal(self.descriptor.get_ref(), signal);
    }
}

/// When a process started, in clock ticks since boot: with its id it names the process.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Names the machine's boot.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[tokio::test]
    #[expect(clippy::zombie_processes, reason = "waiting for them is what is tested")]
    async fn exit_codes_and_signals_are_told_apart() {
        for (script, expected) in [("exit 3", Exit::Code(3)), ("kill -9 $$", Exit::Signal(9))] {
            let child =
                Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
            let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
            assert_eq!(process.wait().await, expected);
        }
    }

    #[tokio::test]
    async fn the_status_of_a_process_is_waited_for_while_a_slow_helper_holds_it() {
        become_reaper().unwrap();
        // The helper becomes a program that never waits for its child, and lives on after it.
        let script = "sh -c 'sleep 0.5; exit 3' & echo $!; exec sleep 3";
        let mut helper =
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let output = helper.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        let process = Process::open(line.trim().parse().unwrap()).unwrap();
        let reap_helper = tokio::task::spawn_blocking(move || helper.wait());
        assert_eq!(process.wait().await, Exit::Code(3));
        assert!(process.is_reaped(), "that it was taken is seen at once, without waiting for it");
        assert_eq!(process.wait().await, Exit::Unknown);
        reap_helper.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_process_is_adopted_only_when_it_is_the_same_one() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let started = start_time(pid).unwrap();
        assert!(Process::adopt(pid, started + 1).is_none());
        let process = Process::adopt(pid, started).unwrap();
        process.kill();
        child.wait().unwrap();
        assert_eq!(process.wait().await, Exit::Unknown);
        assert!(Process::adopt(pid, started).is_none());
    }
}
