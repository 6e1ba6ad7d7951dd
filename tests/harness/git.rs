//! Repositories made and pushed with the real git.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A git repository in a folder of its own.
#[derive(Debug)]
pub struct Repository {
    folder: tempfile::TempDir,
}

/// What `git push` said.
#[derive(Debug)]
pub struct PushOutcome {
    /// Whether git was content.
    pub succeeded: bool,
    /// Everything it printed, the `remote:` lines included.
    pub output: String,
}

impl Repository {
    /// An empty repository whose branch is `main`.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let repository = Self { folder };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file, with its folders.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let file = self.path().join(path);
        fs::create_dir_all(file.parent().expect("a file lies in a folder"))
            .expect("folders can be made");
        fs::write(&file, content).expect("the file can be written");
        self
    }

    /// Copies a program into the repository, executable.
    pub fn copy_program(&self, from: &str, to: &str) -> &Self {
        self.write(to, fs::read(from).unwrap_or_else(|error| panic!("{from}: {error}")));
        fs::set_permissions(self.path().join(to), fs::Permissions::from_mode(0o755))
            .expect("the mode can be set");
        self
    }

    /// Copies an example of the project into the repository.
    pub fn copy_example(&self, name: &str) -> &Self {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
        let copied =
            Command::new("cp").arg("--recursive").arg(example.join(".")).arg(self.path()).status();
        assert!(copied.is_ok_and(|status| status.success()), "{} can be copied", example.display());
        self
    }

    /// Removes a file or a folder.
    pub fn remove(&self, path: &str) -> &Self {
        self.git(&["rm", "-r", "--quiet", "--force", path]);
        self
    }

    /// Commits everything; returns the commit id.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message]);
        self.git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// Pushes `main` to a URL.
    pub fn push(&self, url: &str) -> PushOutcome {
        self.push_ref(url, "main")
    }

    /// Pushes a refspec to a URL.
    pub fn push_ref(&self, url: &str, refspec: &str) -> PushOutcome {
        let output = self.command(&["push", url, refspec]).output().expect("git can be started");
        let text = [output.stdout, output.stderr].concat();
        PushOutcome {
            succeeded: output.status.success(),
            output: String::from_utf8_lossy(&text).into_owned(),
        }
    }

    /// Starts a push without waiting for it.
    pub fn start_push(&self, url: &str) -> std::process::Child {
        self.command(&["push", "--quiet", url, "main"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("git can be started")
    }

    /// Runs git in the repository; it must succeed. Returns what it printed.
    pub fn git(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("git can be started");
        assert!(
            output.status.success(),
            "git {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .current_dir(self.path())
            .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.com"])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .stdin(Stdio::null());
        command
    }
}

impl Default for Repository {
    fn default() -> Self {
        Self::new()
    }
}

impl PushOutcome {
    /// Panics with git's output unless the push succeeded.
    pub fn expect_success(self) -> Self {
        assert!(self.succeeded, "{}", self.output);
        self
    }

    /// Panics with git's output unless the push failed.
    pub fn expect_failure(self) -> Self {
        assert!(!self.succeeded, "{}", self.output);
        self
    }
}
