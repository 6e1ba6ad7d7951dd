//! What the tests share: a server on a free port, a sink that is told what to answer, a clone.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{Path as UrlPath, State};
use axum::response::Response;
use http_body_util::BodyExt;
use tokio::process::Command;
use tokio::sync::mpsc;
use updraft_source::git::{
    GitRequest, GitServer, GitServerOptions, Push, PushProgress, PushReporter, PushSink,
    PushVerdict,
};

/// Longest time that anything here may take.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// What the sink does with a push.
#[derive(Debug)]
pub(crate) enum Reaction {
    /// Answers at once.
    Say(&'static [&'static str], PushVerdict),
    /// Hands the working end to the test.
    Hand,
}

#[derive(Debug)]
pub(crate) struct TestSink {
    pub(crate) pushes: Mutex<Vec<Push>>,
    pub(crate) reactions: Mutex<VecDeque<Reaction>>,
    handed: mpsc::UnboundedSender<PushReporter>,
}

#[async_trait]
impl PushSink for TestSink {
    async fn pushed(&self, push: Push) -> PushProgress {
        self.pushes.lock().unwrap().push(push);
        match self.reactions.lock().unwrap().pop_front() {
            None => PushProgress::done(&[], PushVerdict::accepted()),
            Some(Reaction::Say(lines, verdict)) => PushProgress::done(lines, verdict),
            Some(Reaction::Hand) => {
                let (reporter, progress) = PushProgress::channel();
                self.handed.send(reporter).unwrap();
                progress
            }
        }
    }
}

/// The sink that the server tells.
type Serving = Arc<Mutex<Arc<dyn PushSink>>>;

/// A server with its folder, and a working clone beside it.
pub(crate) struct House {
    pub(crate) server: GitServer,
    pub(crate) sink: Arc<TestSink>,
    serving: Serving,
    pub(crate) handed: mpsc::UnboundedReceiver<PushReporter>,
    pub(crate) address: SocketAddr,
    pub(crate) folder: tempfile::TempDir,
}

impl House {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut GitServerOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (handed_tx, handed) = mpsc::unbounded_channel();
        let sink = Arc::new(TestSink {
            pushes: Mutex::default(),
            reactions: Mutex::default(),
            handed: handed_tx,
        });
        let serving = Arc::new(Mutex::new(Arc::clone(&sink) as Arc<dyn PushSink>));
        let (server, address) = serve(folder.path(), change, Arc::clone(&serving)).await;
        let house = Self { server, sink, serving, handed, address, folder };
        house.ok(&["init", "-q", "-b", "main", "."]).await;
        house
    }

    /// Goes on with a new server, with other options, on the same repositories.
    pub(crate) async fn restart(&mut self, change: impl FnOnce(&mut GitServerOptions)) {
        let serving = Arc::clone(&self.serving);
        (self.server, self.address) = serve(self.folder.path(), change, serving).await;
    }

    /// Lets the server tell another sink.
    pub(crate) fn set_sink(&mut self, sink: Arc<dyn PushSink>) {
        *self.serving.lock().unwrap() = sink;
    }

    pub(crate) fn react(&self, reaction: Reaction) {
        self.sink.reactions.lock().unwrap().push_back(reaction);
    }

    pub(crate) fn pushes(&self) -> Vec<Push> {
        self.sink.pushes.lock().unwrap().clone()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/git/alice/shop.git", self.address)
    }

    pub(crate) fn bare(&self) -> PathBuf {
        self.server.repository_path(&"alice".parse().unwrap(), &"shop".parse().unwrap())
    }

    /// The folder of the clone.
    pub(crate) fn clone_path(&self) -> PathBuf {
        let path = self.folder.path().join("clone");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// A git client in the clone.
    pub(crate) fn git(&self, arguments: &[&str]) -> Command {
        git_in(&self.clone_path(), arguments)
    }

    /// Runs git in the clone, which must succeed.
    pub(crate) async fn ok(&self, arguments: &[&str]) -> String {
        let output = run(self.git(arguments)).await;
        assert!(output.status.success(), "git {arguments:?}: {}", stderr(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Pushes these refspecs.
    pub(crate) async fn push(&self, arguments: &[&str]) -> Output {
        let url = self.url();
        run(self.git(&[&["push", &url][..], arguments].concat())).await
    }

    /// Writes a file and commits it.
    pub(crate) async fn commit(&self, path: &str, content: &[u8]) -> String {
        let file = self.clone_path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
        self.ok(&["add", "-A"]).await;
        self.ok(&["commit", "-q", "--allow-empty", "-m", path]).await;
        self.head().await
    }

    /// Waits until git has taken away all that it had half written.
    pub(crate) async fn assert_no_leftovers(&self) {
        let objects = self.bare().join("objects");
        let left = || {
            let entries = std::fs::read_dir(&objects).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name());
            names.filter(|name| name.to_string_lossy().starts_with("tmp_")).collect::<Vec<_>>()
        };
        let clean = async {
            while !left().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let cleaned = tokio::time::timeout(BOUND, clean).await;
        assert!(cleaned.is_ok(), "left behind: {:?}", left());
    }

    pub(crate) async fn head(&self) -> String {
        self.ok(&["rev-parse", "HEAD"]).await
    }
}

async fn serve(
    folder: &Path,
    change: impl FnOnce(&mut GitServerOptions),
    serving: Serving,
) -> (GitServer, SocketAddr) {
    let mut options = GitServerOptions::new(folder.join("git"));
    change(&mut options);
    let server = GitServer::new(options).await.unwrap();
    let app = axum::Router::new()
        .route("/git/{owner}/{repository}/{*path}", axum::routing::any(answer))
        .with_state((server.clone(), serving));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(tokio::spawn(async move { axum::serve(listener, app).await }));
    (server, address)
}

async fn answer(
    State((server, sink)): State<(GitServer, Serving)>,
    UrlPath((owner, repository, path)): UrlPath<(String, String, String)>,
    request: axum::extract::Request,
) -> Response {
    let request = GitRequest {
        owner: owner.parse().unwrap(),
        repository: repository.strip_suffix(".git").unwrap().parse().unwrap(),
        path,
        request: request.map(|body| body.map_err(Into::into).boxed_unsync()),
    };
    let sink = Arc::clone(&sink.lock().unwrap());
    server.handle(request, sink).await.map(axum::body::Body::new)
}

/// A git client that sees nothing of the machine's configuration.
pub(crate) fn git_in(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .args(["-c", "user.name=Alice", "-c", "user.email=alice@example.com"])
        .args(["-c", "protocol.file.allow=always"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

pub(crate) async fn run(mut command: Command) -> Output {
    tokio::time::timeout(BOUND, command.output()).await.expect("git must end").unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
