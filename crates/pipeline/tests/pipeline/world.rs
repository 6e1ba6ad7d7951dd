//! A platform of one test: folders, a store, bare repositories, a pipeline that can be stopped
//! the hard way and started anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use updraft_model::{FunctionName, OwnerName, RepositoryName};
use updraft_pipeline::{
    Origin, Pipeline, PipelineOptions, PipelineParts, PushEvent, PushEventKind, PushId,
    PushRequest, PushState, Unsealer, Verdict, render,
};
use updraft_seal::{Hints, Limits, OpenedSecret, SealedSecret, UnsealError, unseal_with_keys};
use updraft_source::template::Templates;
use updraft_store::Store;

use crate::builder::RecordingBuilder;
use crate::engine::RecordingEngine;

/// Longest wait for anything.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) store: Store,
    pub(crate) builder: Arc<RecordingBuilder>,
    pub(crate) engine: Arc<RecordingEngine>,
    /// Opens what was sealed for this platform.
    pub(crate) unsealer: Arc<dyn Unsealer>,
    change: fn(&mut PipelineOptions),
    // Its threads are the process that a test kills.
    process: Option<(Runtime, Arc<Pipeline>)>,
}

/// A platform that can open nothing.
#[derive(Debug)]
struct NoKeys;

impl Unsealer for NoKeys {
    fn unseal(&self, secret: &SealedSecret, hints: &Hints) -> Result<OpenedSecret, UnsealError> {
        unseal_with_keys(&[], secret, hints, Limits::usual())
    }
}

/// A story and how it ended.
#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) events: Vec<PushEvent>,
    pub(crate) verdict: Option<Verdict>,
}

impl Story {
    pub(crate) fn state(&self) -> PushState {
        self.verdict.as_ref().unwrap().state
    }

    /// What a terminal shows of it.
    pub(crate) fn text(&self) -> String {
        self.events.iter().flat_map(render::terminal).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn states(&self) -> Vec<PushState> {
        let states = self.events.iter().filter_map(|event| match event.kind {
            PushEventKind::State { state } => Some(state),
            _ => None,
        });
        states.collect()
    }
}

pub(crate) fn owner(name: &str) -> OwnerName {
    OwnerName::new(name).unwrap()
}

pub(crate) fn repository(name: &str) -> RepositoryName {
    RepositoryName::new(name).unwrap()
}

pub(crate) fn function(name: &str) -> FunctionName {
    FunctionName::new(name).unwrap()
}

pub(crate) fn request(owner_name: &str, repository_name: &str, commit: &str) -> PushRequest {
    PushRequest {
        owner: owner(owner_name),
        repository: repository(repository_name),
        reference: "refs/heads/main".to_owned(),
        commit: commit.to_owned(),
        origin: Origin::Git,
    }
}

/// A stack of functions that bring their own Dockerfile.
pub(crate) fn stack(functions: &[&str]) -> String {
    let head = "version: 1.0\nprovider:\n  name: openfaas\nfunctions:\n".to_owned();
    functions.iter().fold(head, |text, name| {
        text + &format!("  {name}:\n    lang: dockerfile\n    handler: ./{name}\n")
    })
}

fn open(folder: &Path) -> Store {
    Store::open(&folder.join("updraft.db"), &folder.join("blobs")).unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: fn(&mut PipelineOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let mut world = Self {
            folder,
            store,
            builder: Arc::default(),
            engine: Arc::default(),
            unsealer: Arc::new(NoKeys),
            change,
            process: None,
        };
        world.start();
        world
    }

    /// Starts the process: a runtime and a pipeline in it.
    pub(crate) fn start(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let mut options = PipelineOptions::new(Arc::new(|owner, function| {
            format!("http://{owner}.localhost:8080/{function}")
        }));
        (self.change)(&mut options);
        let parts = PipelineParts {
            store: self.store.clone(),
            engine: self.engine.clone(),
            builder: self.builder.clone(),
            templates: Templates::new(Bytes::from_static(b"watchdog"), false),
            unsealer: self.unsealer.clone(),
            repositories: self.folder.path().join("git"),
            work: self.folder.path().join("work"),
            options,
        };
        let pipeline = runtime.block_on(Pipeline::start(parts)).unwrap();
        self.process = Some((runtime, pipeline));
    }

    /// Ends the process where it stands: no task runs on, nothing is tidied up.
    pub(crate) fn kill(&mut self) {
        let (runtime, pipeline) = self.process.take().unwrap();
        runtime.shutdown_timeout(Duration::from_secs(5));
        drop(pipeline);
        // A write that was on its way is done or not once its process is dead; here its thread
        // lives on, so that what is queued before this write has to end first.
        let runtime = Runtime::new().unwrap();
        runtime.block_on(self.store.ensure_owner(&owner("last"))).unwrap();
        self.store = open(self.folder.path());
    }

    pub(crate) fn pipeline(&self) -> Arc<Pipeline> {
        Arc::clone(&self.process.as_ref().unwrap().1)
    }

    /// Runs a future in the process.
    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let bounded = async {
            tokio::time::timeout(BOUND, future).await.expect("it did not end within the bound")
        };
        self.process.as_ref().unwrap().0.block_on(bounded)
    }

    pub(crate) fn bare(&self, owner: &str, repository: &str) -> PathBuf {
        self.folder.path().join("git").join(owner).join(format!("{repository}.git"))
    }

    pub(crate) fn checkout(&self, owner: &str, repository: &str) -> PathBuf {
        self.folder.path().join("clones").join(owner).join(repository)
    }

    /// Writes files into the owner's clone; content `-` removes one.
    pub(crate) fn write(&self, owner: &str, repository: &str, files: &[(&str, &str)]) {
        let clone = self.checkout(owner, repository);
        if !clone.exists() {
            let bare = self.bare(owner, repository);
            std::fs::create_dir_all(&bare).unwrap();
            std::fs::create_dir_all(&clone).unwrap();
            git(&bare, &["init", "--quiet", "--bare", "--initial-branch=main"]);
            git(&clone, &["init", "--quiet", "--initial-branch=main"]);
            git(&clone, &["remote", "add", "origin", bare.to_str().unwrap()]);
        }
        for (path, content) in files {
            let path = clone.join(path);
            if *content == "-" {
                std::fs::remove_file(path).unwrap();
            } else {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, content).unwrap();
            }
        }
    }

    /// Writes and commits; gives the clone.
    pub(crate) fn commit_only(
        &self,
        owner: &str,
        repository: &str,
        files: &[(&str, &str)],
    ) -> PathBuf {
        self.write(owner, repository, files);
        let clone = self.checkout(owner, repository);
        git(&clone, &["add", "--all"]);
        git(&clone, &["commit", "--quiet", "--allow-empty", "--message", "change"]);
        clone
    }

    /// Writes, commits and brings the commit to the bare repository; gives its id.
    pub(crate) fn commit(&self, owner: &str, repository: &str, files: &[(&str, &str)]) -> String {
        let clone = self.commit_only(owner, repository, files);
        git(&clone, &["push", "--quiet", "--force", "origin", "HEAD"]);
        git(&clone, &["rev-parse", "HEAD"])
    }

    /// Commits to `alice/shop` and submits, without waiting for the end.
    pub(crate) fn submit(&self, files: &[(&str, &str)]) -> PushId {
        let commit = self.commit("alice", "shop", files);
        self.run(self.pipeline().submit(request("alice", "shop", &commit))).unwrap()
    }

    /// Commits to `alice/shop`, submits and waits for the end.
    pub(crate) fn push(&self, files: &[(&str, &str)]) -> Story {
        self.story(self.submit(files))
    }

    pub(crate) fn push_to(&self, owner: &str, repository: &str, files: &[(&str, &str)]) -> Story {
        let commit = self.commit(owner, repository, files);
        let new = request(owner, repository, &commit);
        let id = self.run(self.pipeline().submit(new)).unwrap();
        self.story(id)
    }

    /// The whole story of a push, once it is over.
    pub(crate) fn story(&self, push: PushId) -> Story {
        let events: Vec<_> = self.run(self.pipeline().follow(push, 1).collect());
        let seqs: Vec<_> = events.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (1..=events.len() as u64).collect::<Vec<_>>(), "a gap or a repetition");
        let verdict = events.last().and_then(|event| match &event.kind {
            PushEventKind::Finished { verdict } => Some(verdict.clone()),
            _ => None,
        });
        Story { events, verdict }
    }

    /// The live release of a function of alice's.
    pub(crate) fn live(&self, name: &str) -> Option<u64> {
        let live = self.run(self.store.live(&owner("alice"), &function(name))).unwrap();
        live.map(|live| live.release)
    }

    /// The numbers of a function's releases, newest first.
    pub(crate) fn releases(&self, name: &str) -> Vec<u64> {
        let (alice, name) = (owner("alice"), function(name));
        let releases = self.run(self.store.releases(&alice, &name, 100)).unwrap();
        releases.iter().map(|release| release.number).collect()
    }

    /// What lies in the work folder.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("work")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Waits until the work folder is empty; it is emptied after the verdict is told.
    pub(crate) fn wait_for_no_leftovers(&self) {
        let end = std::time::Instant::now() + BOUND;
        while !self.leftovers().is_empty() {
            assert!(std::time::Instant::now() < end, "left over: {:?}", self.leftovers());
            std::thread::yield_now();
        }
    }
}

pub(crate) fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .envs([("GIT_AUTHOR_NAME", "A"), ("GIT_AUTHOR_EMAIL", "a@example.com")])
        .envs([("GIT_COMMITTER_NAME", "A"), ("GIT_COMMITTER_EMAIL", "a@example.com")])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
