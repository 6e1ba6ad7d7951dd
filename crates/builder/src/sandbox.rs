//! Starts a build's program apart from the machine.
//!
//! A thread of its own takes a private view of the file system: a new root that has the
//! machine's programs read-only, the image store, the context, and a `/dev` with nothing in it
//! that leads to hardware. From there it starts the program as the first process of a new
//! process namespace. So a build sees no other process and no file of the platform, and ending
//! the first process ends all, whatever they did to hide. The kernel ends it as well when the
//! thread goes, so a build never outlives the platform.
//!
//! It lives in a user namespace besides: root in a build is an ordinary user of the machine that
//! owns nothing, and the folders it may use are mounted so that they look like root's to it. Its
//! network is one that [`crate::network`] made.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use updraft_idmap::IdMap;

use crate::cgroup::Group;

/// Where a build finds the machine's root certificates; below `/dev` because everything there
/// comes from here and nothing of it gets into an image.
pub(crate) const CERTIFICATES: &str = "/dev/updraft/ca-certificates.crt";

/// The users of builds: above those that tenants' functions are given, and nobody else's.
pub(crate) const USERS_FIRST: u32 = 0x7ffe_0000;
/// How many there are.
pub(crate) const USERS: u32 = 65_536;

/// Where machines keep their root certificates.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// Seen read-only as they are, whole: programs and the kernel's own trees.
const SHARED: [&str; 9] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "proc", "sys"];
/// What `buildah` reads of `/etc`. Names, not the whole: it also holds password hashes.
const SETTINGS: [&str; 10] = [
    "alternatives",
    "containers",
    "group",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "localtime",
    "nsswitch.conf",
    "passwd",
    "ssl",
];

/// The first of the machine's files of root certificates, if it has one.
pub(crate) fn bundle() -> Option<&'static Path> {
    BUNDLES.iter().map(Path::new).find(|path| path.is_file())
}

/// What a build may see beside the machine's programs. All paths without symbolic links.
#[derive(Debug)]
pub(crate) struct View {
    /// Empty folder on which the new root is put together; builds may share it, as none sees what
    /// another mounts there.
    pub(crate) root: PathBuf,
    /// Folders to write to, at their own places.
    pub(crate) writable: Vec<PathBuf>,
    /// Folders to read, at their own places.
    pub(crate) readable: Vec<PathBuf>,
    /// Whether `/dev/fuse` is needed.
    pub(crate) fuse: bool,
    /// The users of the build; without, it runs as root of the machine.
    pub(crate) users: Option<IdMap>,
    /// Its network.
    pub(crate) network: OwnedFd,
    /// Its `/etc/resolv.conf`.
    pub(crate) resolver: String,
}

/// A program that runs apart. Dropping it kills the program and everything it started.
#[derive(Debug)]
pub(crate) struct Running {
    pid: OwnedFd,
    /// Both of its outputs.
    pub(crate) output: pipe::Receiver,
    /// How it ended, once it did.
    pub(crate) ended: oneshot::Receiver<End>,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: io::Result<ExitStatus>,
    /// Whether the kernel killed something of it for want of memory.
    pub(crate) out_of_memory: bool,
}

impl Running {
    /// Kills the program and everything it started.
    pub(crate) fn kill(&self) {
        // The only error is that it ended already.
        let _ = rustix::process::pidfd_send_signal(&self.pid, Signal::KILL);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The command line that runs what follows it as first process of new namespaces, killed when
/// the thread that started it goes.
pub(crate) fn launcher(users: Option<&IdMap>) -> Command {
    let mut command = match users {
        Some(users) => {
            // Another user's process forgets when it is to be killed, so this comes first. The
            // file is this process's, as only one with a single thread may change its user.
            let mut command = Command::new("nsenter");
            let (pid, number) = (std::process::id(), users.as_fd().as_raw_fd());
            command.arg(format!("--user=/proc/{pid}/fd/{number}")).arg("setpriv");
            command
        }
        None => Command::new("setpriv"),
    };
    // Without new privileges the marks of set-user-id programs mean nothing.
    command.args([
        "--no-new-privs",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--fork",
        "--kill-child",
        "--pid",
    ]);
    command.args(["--mount", "--propagation", "slave", "--mount-proc", "--ipc", "--uts"]);
    command
}

/// Starts `command`, whose program is to be a [`launcher`].
pub(crate) async fn start(
    mut command: Command,
    view: View,
    group: Option<Group>,
) -> io::Result<Running> {
    let (reader, writer) = io::pipe()?;
    let output = pipe::Receiver::from_owned_fd(reader.into())?;
    let (started_sender, started) = oneshot::channel();
    let (ended_sender, ended) = oneshot::channel();
    let work = move || {
        let group = group;
        let begin = || {
            // Another thread would fix the namespaces of the whole process.
            unshare(CloneFlags::CLONE_NEWNS)?;
            if let Some(group) = &group {
                group.enter()?;
            }
            setns(&view.network, CloneFlags::CLONE_NEWNET)?;
            enter(&view)?;
            command.stdin(Stdio::null()).stderr(writer.try_clone()?).stdout(writer);
            let mut child = command.spawn()?;
            // It holds the writing ends of the pipe, which would then never end.
            drop(command);
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            let pid = pid.ok_or_else(|| io::Error::other("no process id"))?;
            let adopted = match &group {
                Some(group) => group.adopt(child.id()),
                None => Ok(()),
            };
            let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty());
            match (adopted, handle) {
                (Ok(()), Ok(handle)) => Ok((child, handle)),
                (adopted, handle) => {
                    child.kill()?;
                    child.wait()?;
                    adopted?;
                    Err(handle.err().map_or_else(|| io::Error::other("not started"), Into::into))
                }
            }
        };
        let (mut child, handle) = match begin() {
            Ok(begun) => begun,
            Err(cause) => {
                if let Some(Err(cause)) = group.as_ref().map(Group::leave) {
                    tracing::warn!(%cause, "a build's group stays");
                }
                return drop(started_sender.send(Err(cause)));
            }
        };
        if started_sender.send(Ok(handle)).is_err() {
            // The caller went away; the handle that would have killed it is gone with him.
            drop(child.kill());
        }
        let status = child.wait();
        let out_of_memory = group.as_ref().is_some_and(Group::ran_out_of_memory);
        // This thread is the group's last member. The first process went, and the kernel ends the
        // others after it: when the group is gone, all are.
        if let Some(Err(cause)) = group.as_ref().map(Group::leave) {
            tracing::warn!(%cause, "a build's group stays");
        }
        drop(group);
        drop(ended_sender.send(End { status, out_of_memory }));
    };
    thread::Builder::new().name("build".to_owned()).spawn(work)?;
    let pid = started.await.map_err(|_| io::Error::other("the build's thread failed"))??;
    Ok(Running { pid, output, ended })
}

/// Gives the calling thread, which has a mount namespace of its own, the new root.
fn enter(view: &View) -> io::Result<()> {
    let new = &view.root;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    rustix::mount::mount("tmpfs", new, "tmpfs", MountFlags::NOSUID, c"mode=755")?;
    for name in SHARED {
        share(&Path::new("/").join(name), &new.join(name))?;
    }
    fs::create_dir(new.join("etc"))?;
    for name in SETTINGS {
        share(&Path::new("/etc").join(name), &new.join("etc").join(name))?;
    }
    for name in ["tmp", "var", "var/tmp", "run", "root", "old-root"] {
        fs::create_dir_all(new.join(name))?;
    }
    if view.users.is_some() {
        let (user, group) = (Uid::from_raw(USERS_FIRST), Gid::from_raw(USERS_FIRST));
        for name in ["tmp", "var", "var/tmp", "run", "root"] {
            rustix::fs::chown(new.join(name), Some(user), Some(group))?;
        }
    }
    // After the fixed ones, because a store may lie below `/usr` or `/var`.
    fs::write(new.join("etc/resolv.conf"), &view.resolver)?;
    for folder in &view.readable {
        let place = below(new, folder);
        match &view.users {
            Some(users) => shifted(&users.shifted(folder)?, &place)?,
            None => bind(folder, &place, MountFlags::RDONLY)?,
        }
    }
    for folder in &view.writable {
        let place = below(new, folder);
        match &view.users {
            Some(users) => shifted(&users.shifted_writable(folder)?, &place)?,
            None => bind(folder, &place, MountFlags::empty())?,
        }
    }
    devices(&new.join("dev"), view.fuse)?;
    rustix::process::pivot_root(new, new.join("old-root"))?;
    rustix::process::chdir("/")?;
    rustix::mount::unmount("/old-root", UnmountFlags::DETACH)?;
    fs::remove_dir("/old-root")
}

fn shifted(tree: &OwnedFd, place: &Path) -> io::Result<()> {
    fs::create_dir_all(place)?;
    updraft_idmap::attach(tree, place)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Shows a file, folder or symbolic link of the machine, if there is one, read-only.
fn share(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(kind) = fs::symlink_metadata(from) else { return Ok(()) };
    let in_etc = from.starts_with("/etc");
    if kind.is_symlink() && !in_etc {
        // Such as `/bin`, which is `usr/bin` on most machines.
        return symlink(fs::read_link(from)?, to);
    }
    // A symbolic link in `/etc` may lead out of what is visible, for instance below `/run`.
    let Ok(from) = fs::canonicalize(from) else { return Ok(()) };
    bind(&from, to, MountFlags::RDONLY)
}

fn bind(from: &Path, to: &Path, flags: MountFlags) -> io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
    } else {
        fs::write(to, b"")?;
    }
    rustix::mount::mount_bind_recursive(from, to)?;
    // `/proc` and `/sys` are narrowed by `buildah` itself, and refuse it here in containers.
    if flags.contains(MountFlags::RDONLY) && from != Path::new("/proc") {
        rustix::mount::mount_remount(to, MountFlags::BIND | flags | MountFlags::NOSUID, c"")?;
    }
    Ok(())
}

/// Fills a `/dev` with the harmless devices, terminals, shared memory and root certificates.
fn devices(dev: &Path, fuse: bool) -> io::Result<()> {
    fs::create_dir(dev)?;
    rustix::mount::mount("tmpfs", dev, "tmpfs", MountFlags::NOSUID, c"mode=755")?;
    let fuse = fuse.then_some(("fuse", 10, 229));
    for (name, major, minor) in DEVICES.into_iter().chain(fuse) {
        let number = rustix::fs::makedev(major, minor);
        let path = dev.join(name);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::from(0o666), number)?;
        // The mask of new files took rights away.
        rustix::fs::chmod(&path, Mode::from(0o666))?;
    }
    for name in ["pts", "shm", "mqueue", "updraft"] {
        fs::create_dir(dev.join(name))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, dev.join(name))?;
    }
    let options = c"newinstance,ptmxmode=0666,mode=620";
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("devpts", dev.join("pts"), "devpts", flags, options)?;
    let shm = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", dev.join("shm"), "tmpfs", shm, c"mode=1777,size=64m")?;
    if let Some(bundle) = bundle() {
        fs::copy(bundle, dev.join("updraft/ca-certificates.crt"))?;
    }
    Ok(())
}
