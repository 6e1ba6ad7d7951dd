//! A running cloud: the real binary on a port and in a folder of its own.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::http::{self, Answer};
use crate::images::{self, Recipe};
use crate::{Traces, base_images, sweep};

/// How long a cloud may take until it accepts; a loaded machine is slow.
const READY_LIMIT: Duration = Duration::from_mins(1);

/// A whole cloud of the test's own; stopped and removed with all it made when dropped.
#[derive(Debug)]
pub struct Cloud {
    folder: PathBuf,
    listen: SocketAddr,
    server: Option<Child>,
    /// Whether there is a configuration file, used at every start.
    configured: bool,
    /// What the server logs.
    log: &'static str,
}

/// What a command of the command line printed.
#[derive(Debug)]
pub struct CommandOutput {
    /// The exit code; nothing when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cloud {
    /// A cloud with nothing in it that does not run yet.
    fn new() -> Self {
        sweep::sweep(&binary());
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let folder = sweep::new_folder();
        Self { folder, listen, server: None, configured: false, log: "updraft=debug,info" }
    }

    /// Starts a cloud without the example, on a free port.
    pub fn start() -> Self {
        let mut cloud = Self::new();
        cloud.resume();
        cloud
    }

    /// Starts a cloud whose server and libraries log whatever they can.
    pub fn start_telling_all() -> Self {
        let mut cloud = Self::new();
        cloud.log = "trace";
        cloud.resume();
        cloud
    }

    /// Starts a cloud with this configuration, every time that it is started.
    pub fn start_configured(configuration: &str) -> Self {
        let mut cloud = Self::new();
        cloud.configured = true;
        fs::write(cloud.config_path(), configuration).expect("the configuration can be written");
        cloud.resume();
        cloud
    }

    /// Starts a cloud that has the base images `names`, for instance `python`.
    pub fn start_with_base_images(names: &[&str]) -> Self {
        let mut cloud = Self::new();
        base_images::provide(names, &cloud.data_dir());
        cloud.resume();
        cloud
    }

    /// Starts a cloud with these flags, and without the example, that has these images.
    pub fn start_with_images(recipes: &[Recipe<'_>], flags: &[&str]) -> Self {
        let mut cloud = Self::new();
        for recipe in recipes {
            cloud.load(recipe);
        }
        let flags = [&["--no-example"], flags].concat();
        cloud.try_resume(&flags).unwrap_or_else(|error| {
            panic!("the cloud does not start: {error:#}\n{}", cloud.server_log());
        });
        cloud
    }

    /// Loads an image, the server running or not.
    pub fn load(&self, recipe: &Recipe<'_>) {
        let archive = images::archive(recipe, &self.folder);
        self.run_ok(&["images", "load", archive.to_str().expect("the path is text")]);
        fs::remove_file(archive).expect("the archive can be removed");
    }

    /// A cloud that does not run yet, whose data lies on a file system of its own with so many
    /// bytes.
    pub fn on_a_disk_of(bytes: u64) -> Self {
        let cloud = Self::new();
        fs::create_dir(cloud.data_dir()).expect("the data directory can be made");
        let options = format!("size={bytes},mode=700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "updraft-test"])
            .arg(cloud.data_dir())
            .status();
        assert!(mounted.is_ok_and(|status| status.success()), "a tmpfs can be mounted");
        cloud
    }

    /// Starts the server, again on the same port after the first time.
    pub fn resume(&mut self) {
        self.try_resume(&["--no-example"]).unwrap_or_else(|error| {
            panic!("the cloud does not start: {error:#}\n{}", self.server_log());
        });
    }

    /// Starts the server with the given flags and waits for its `ready:` line.
    pub fn try_resume(&mut self, flags: &[&str]) -> Result<()> {
        assert!(self.server.is_none(), "the server runs already");
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let standard_output = self.folder.join("server.out");
        let mut command = Command::new(binary());
        command.arg("up");
        if self.configured {
            command.arg("--config").arg(self.config_path());
        }
        let server = command
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--listen", &self.listen.to_string(), "--root", "localhost"])
            .args(flags)
            .env("RUST_LOG", self.log)
            .stdin(Stdio::null())
            .stdout(File::create(&standard_output)?)
            .stderr(log)
            .spawn()
            .context("cannot start updraft")?;
        let server = self.server.insert(server);
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let printed = fs::read_to_string(&standard_output)?;
            if let Some(ready) = printed.lines().find(|line| line.starts_with("ready:")) {
                self.listen = address_in(ready)?;
                return Ok(());
            }
            if let Some(status) = server.try_wait()? {
                self.server = None;
                bail!("updraft ended with {status}");
            }
            if Instant::now() > deadline {
                bail!("no `ready:` line within {READY_LIMIT:?}, printed: {printed}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the server without giving it a chance to say goodbye, as a crash would.
    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("a server runs");
        server.kill().expect("the server can be killed");
        server.wait().expect("the server can be waited for");
    }

    /// Lets the server crash as a mistake in it would; returns how the system says that it ended.
    pub fn crash(&mut self) -> ExitStatus {
        let mut server = self.server.take().expect("a server runs");
        let pid = rustix::process::Pid::from_child(&server);
        rustix::process::kill_process(pid, rustix::process::Signal::ABORT)
            .expect("the server can be signalled");
        server.wait().expect("the server can be waited for")
    }

    /// Asks the server to end with a signal by number and waits for it; returns its exit code.
    pub fn signal(&mut self, signal: rustix::process::Signal) -> Option<i32> {
        let mut server = self.server.take().expect("a server runs");
        let pid = rustix::process::Pid::from_child(&server);
        rustix::process::kill_process(pid, signal).expect("the server can be signalled");
        server.wait().expect("the server can be waited for").code()
    }

    /// Ends the server by a crash and leaves everything lying, as a test run that is killed does.
    /// Returns the folder and what there is on the machine.
    pub fn abandon(mut self) -> (PathBuf, Traces) {
        let traces = self.traces();
        self.server = None;
        sweep::disown(&self.folder);
        (std::mem::take(&mut self.folder), traces)
    }

    /// What the cloud has on the machine outside its folder.
    pub fn traces(&self) -> Traces {
        Traces::of(&self.data_dir())
    }

    /// Lets the store refuse that any push reaches `state`, so that the one that would stays in
    /// the state before, its work done and not on record: the worst moment for a crash.
    pub fn hold_pushes_before(&self, state: &str) {
        self.database()
            .execute_batch(&format!(
                "CREATE TRIGGER held_by_a_test BEFORE UPDATE OF state ON pushes
                 WHEN NEW.state = '{state}' AND OLD.state <> NEW.state
                 BEGIN SELECT RAISE(ABORT, 'held by a test'); END"
            ))
            .expect("a trigger can be made");
    }

    /// Ends [`Self::hold_pushes_before`].
    pub fn let_pushes_go(&self) {
        self.database().execute_batch("DROP TRIGGER held_by_a_test").expect("the trigger goes");
    }

    /// The state on record of the newest push, the server running or not.
    pub fn newest_push_state(&self) -> Option<String> {
        let newest = "SELECT state FROM pushes ORDER BY id DESC LIMIT 1";
        self.database().query_row(newest, [], |row| row.get(0)).ok()
    }

    /// How many pushes are on record.
    pub fn pushes(&self) -> usize {
        let count: i64 = self
            .database()
            .query_row("SELECT count(*) FROM pushes", [], |row| row.get(0))
            .expect("pushes can be counted");
        usize::try_from(count).expect("a count is not negative")
    }

    fn database(&self) -> rusqlite::Connection {
        let database = rusqlite::Connection::open(self.data_dir().join("updraft.db"))
            .expect("the database can be opened");
        database.busy_timeout(READY_LIMIT).expect("a limit can be set");
        database
    }

    /// Whether the server process is still there.
    pub fn runs(&mut self) -> bool {
        self.server
            .as_mut()
            .is_some_and(|server| server.try_wait().is_ok_and(|exit| exit.is_none()))
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("a server runs").id()
    }

    /// Where the server listens.
    pub const fn address(&self) -> SocketAddr {
        self.listen
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What the server has written to standard error so far.
    pub fn server_log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn config_path(&self) -> PathBuf {
        self.folder.join("updraft.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// Runs a command of the command line on this cloud.
    pub fn run(&self, arguments: &[&str]) -> CommandOutput {
        let output = Command::new(binary())
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("updraft can be started");
        CommandOutput::from(output)
    }

    /// Runs a command that must succeed; returns what it printed.
    pub fn run_ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.code, Some(0), "{arguments:?}: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    /// Runs a command with `--json` that must succeed; returns what it printed, parsed.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut with_json = vec!["--json"];
        with_json.extend(arguments);
        let printed = self.run_ok(&with_json);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// Makes a token for an owner.
    pub fn token(&self, owner: &str) -> String {
        self.run_ok(&["token", "create", "--owner", owner]).trim().to_owned()
    }

    /// The URL to push a repository to.
    pub fn git_url(&self, owner: &str, token: &str, repository: &str) -> String {
        format!("http://{owner}:{token}@{}/git/{owner}/{repository}.git", self.listen)
    }

    /// The administrator's password.
    pub fn password(&self) -> String {
        fs::read_to_string(self.data_dir().join("secrets/basic-auth-password"))
            .expect("the password file is there")
            .trim()
            .to_owned()
    }

    /// GETs a path of a host, for instance `demo.localhost` and `/hello`.
    pub async fn get(&self, host: &str, path: &str) -> Answer {
        self.try_get(host, path).await.unwrap_or_else(|error| panic!("GET {host}{path}: {error:#}"))
    }

    /// GETs a path of a host; fails when no whole answer came.
    pub async fn try_get(&self, host: &str, path: &str) -> Result<Answer> {
        http::request(self.listen, "GET", host, path, &[], Vec::new()).await
    }

    /// Sends a request with a body to a host.
    pub async fn send(
        &self,
        method: &str,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Answer {
        http::request(self.listen, method, host, path, headers, body.into())
            .await
            .unwrap_or_else(|error| panic!("{method} {host}{path}: {error:#}"))
    }

    /// Sends a request to the OpenFaaS API with the administrator's password.
    pub async fn openfaas(&self, method: &str, path: &str, body: &str) -> Answer {
        let credentials = http::basic("admin", &self.password());
        let headers =
            [("authorization", credentials.as_str()), ("content-type", "application/json")];
        self.send(method, "127.0.0.1", path, &headers, body).await
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.server_log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the server's last lines ---");
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
        if self.server.is_some() {
            self.kill();
        }
        if self.folder.as_os_str().is_empty() {
            return;
        }
        let left = sweep::remove(&binary(), &self.folder);
        if std::thread::panicking() {
            eprintln!("left behind: {left:#?}");
        } else {
            assert!(left.0.is_empty(), "the cloud left behind: {left:#?}");
        }
    }
}

impl From<Output> for CommandOutput {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The binary under test, in the folder of the profile that this program was built with.
pub fn binary() -> PathBuf {
    let program = std::env::current_exe().expect("a program has a path");
    let folder = program.parent().expect("a program lies in a folder");
    // Tests lie in `<profile>/deps`, other programs in `<profile>`.
    let profile = if folder.ends_with("deps") { folder.join("..") } else { folder.to_owned() };
    let binary = profile.join("updraft");
    assert!(
        binary.is_file(),
        "{} is missing; build it with `cargo build -p updraft`",
        binary.display()
    );
    binary
}

/// The address in `ready: http://127.0.0.1:8080 …`.
fn address_in(ready: &str) -> Result<SocketAddr> {
    ready
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("http://"))
        .find_map(|rest| rest.trim_end_matches('/').parse().ok())
        .with_context(|| format!("no address in `{ready}`"))
}
