//! Git in: repositories that owners push to over smart HTTP, and checkouts of what they pushed.
//!
//! A push arrives at [`GitServer::handle`], which the caller has authorised already; the real
//! `git` takes it in, a [`PushSink`] is told, and its progress and verdict go back to the pusher's
//! terminal. Later [`checkout`] writes exactly the pushed commit into a work folder.
//! Packs and objects are only ever parsed by git itself, never here; nothing that a repository
//! contains is executed, and nothing is written outside the folders given.

mod answer;
mod body;
mod checkout;
mod commands;
mod contained;
mod journal;
mod output;
mod pktline;
mod program;
mod push;
mod query;
mod receive;
mod report;
mod repository;
mod serve;
mod upkeep;
pub mod upload;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use updraft_model::{OwnerName, RepositoryName};

pub use checkout::{CheckedOut, checkout};
pub use contained::{ContentError, ContentLimits};
pub use program::GitVersionPolicy;
pub use push::{Push, PushProgress, PushReporter, PushSink, PushVerdict, RefFailure, RefUpdate};
pub use query::{CommitSummary, commit_summary, head_branch, is_ancestor, resolve};

use program::GitProgram;
use repository::{PushTurns, Repositories};

/// A body that streams, in either direction.
pub type GitBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// How the git endpoint works.
#[derive(Debug, Clone)]
pub struct GitServerOptions {
    /// The folder of the bare repositories, `<owner>/<repository>.git`; made if it is missing.
    pub repositories: PathBuf,
    /// Whether a git that is not known to carry the latest security fixes will do.
    pub version_policy: GitVersionPolicy,
    /// Most bytes of one push, as sent.
    pub max_push_bytes: u64,
    /// Most bytes that one repository may take on disk.
    pub max_repository_bytes: u64,
    /// Most memory of one git process.
    pub max_git_memory_bytes: u64,
    /// Most packs, about one a push, before a repository is tidied in the background.
    pub max_packs: usize,
    /// Most requests served at once; more are told to come back.
    pub max_requests: usize,
    /// Longest silence of a client that is sending or should be reading.
    pub idle_limit: Duration,
    /// Longest time that git may take for one request once it has everything.
    pub git_limit: Duration,
    /// Longest time that a push waits for its verdict; afterwards it counts as accepted, and the
    /// pusher is told that the deployment goes on.
    pub progress_limit: Duration,
}

impl GitServerOptions {
    /// The usual limits, for repositories kept in `repositories`.
    pub fn new(repositories: PathBuf) -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            repositories,
            version_policy: GitVersionPolicy::Patched,
            max_push_bytes: 256 * MIB,
            max_repository_bytes: 1024 * MIB,
            max_git_memory_bytes: 2048 * MIB,
            max_packs: 50,
            max_requests: 32,
            idle_limit: Duration::from_mins(1),
            git_limit: Duration::from_mins(5),
            progress_limit: Duration::from_hours(1),
        }
    }
}

/// A request to the git endpoint of one repository, authorised by the caller.
#[derive(Debug)]
pub struct GitRequest {
    /// Whose repository.
    pub owner: OwnerName,
    /// Which one.
    pub repository: RepositoryName,
    /// What follows `<repository>.git/` in the path, for instance `info/refs`.
    pub path: String,
    /// The request; of its URI only the query is looked at.
    pub request: http::Request<GitBody>,
}

/// What a request asks for, so that the caller can authorise it: reading and writing may be
/// open to different people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitAccess {
    /// A clone or fetch.
    Read,
    /// A push.
    Write,
}

impl GitAccess {
    /// What a request for `path` (what follows `<repository>.git/`) with this query asks for.
    /// What is unknown counts as writing.
    pub fn of(path: &str, query: Option<&str>) -> Self {
        let fetches = match path {
            "info/refs" => serve::service_parameter(query) != Some("git-receive-pack"),
            "git-upload-pack" => true,
            _ => false,
        };
        if fetches { Self::Read } else { Self::Write }
    }
}

/// The git endpoint and the repositories behind it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GitServer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: GitServerOptions,
    program: GitProgram,
    repositories: Repositories,
    /// One permit a request that runs git.
    requests: Arc<Semaphore>,
    /// Held while a repository is being tidied.
    upkeep: Arc<Semaphore>,
    /// Serialises the ends of pushes to the same repository.
    turns: PushTurns,
    /// Pushes under way; they go on when their client leaves, and are waited for at shutdown.
    tasks: TaskTracker,
}

/// Why git work failed.
#[derive(Debug, Error)]
pub enum GitError {
    /// The machine's fault: there is no git.
    #[error("`git` was not found on PATH, install it (Debian: `apt-get install git`)")]
    Missing,
    /// The machine's fault: git is too old to be let near repositories of strangers.
    #[error(
        "`{}` says `{version}`, which lacks security fixes of July 2025 (CVE-2025-48384, \
         CVE-2025-48385), install git 2.47.3, 2.50.1 or newer, or the fixed package of your \
         distribution", program.display()
    )]
    TooOld {
        /// The program asked.
        program: PathBuf,
        /// What it answered.
        version: String,
    },
    /// The machine's fault: git could not be started.
    #[error("cannot start `{}`, check that it may be executed and that processes are left", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The machine's fault: the pipes to git broke.
    #[error("lost the connection to a running git, try again")]
    Talk(#[source] io::Error),
    /// Git refused; its own words say why.
    #[error("git could not {what}: {complaint}")]
    Failed {
        /// What was tried, after "could not".
        what: &'static str,
        /// What git wrote.
        complaint: String,
    },
    /// Git took too long and was killed.
    #[error("git did not finish within {limit:?} and was stopped, try again or push less at once")]
    TimedOut {
        /// The time allowed.
        limit: Duration,
    },
    /// The machine's fault: a file of a repository could not be written or read.
    #[error("cannot {what} `{}`, check space and permissions", path.display())]
    Storage {
        /// What was tried, for instance "create".
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The caller's fault: nobody has pushed to that repository yet.
    #[error("there is no repository `{owner}/{repository}`, push to it first")]
    NoRepository {
        /// Its owner.
        owner: OwnerName,
        /// Its name.
        repository: RepositoryName,
    },
    /// The caller's fault: what was asked for is not in the repository.
    #[error("commit `{commit}` is not in the repository, push it again")]
    NoCommit {
        /// The commit as asked for.
        commit: String,
    },
    /// The owner's fault: the commit's files break a rule or a limit.
    #[error(transparent)]
    Content(#[from] ContentError),
}

impl GitServer {
    /// Finds and judges `git`, and makes the folder for the repositories ready.
    ///
    /// # Errors
    /// The machine's fault: no git, a git without its security fixes, or a folder that cannot be
    /// written.
    pub async fn new(options: GitServerOptions) -> Result<Self, GitError> {
        let program = GitProgram::judged(options.version_policy)?;
        let repositories = Repositories::open(&options.repositories, &program).await?;
        let requests = Arc::new(Semaphore::new(options.max_requests));
        Ok(Self {
            inner: Arc::new(Inner {
                program,
                repositories,
                requests,
                upkeep: Arc::new(Semaphore::new(1)),
                turns: PushTurns::default(),
                tasks: TaskTracker::new(),
                options,
            }),
        })
    }

    /// Where the bare repository is, or would be.
    pub fn repository_path(&self, owner: &OwnerName, repository: &RepositoryName) -> PathBuf {
        self.inner.repositories.path(owner, repository)
    }

    /// Answers one request. Failures are answers too: a status with a text that git shows.
    ///
    /// The future may be dropped when the client leaves: a push that git has not taken in yet is
    /// forgotten, one that has been taken in goes on.
    pub async fn handle(
        &self,
        request: GitRequest,
        sink: Arc<dyn PushSink>,
    ) -> http::Response<GitBody> {
        serve::handle(&self.inner, request, sink).await
    }

    /// Tells `sink` of the pushes that git took in while the process before this one died, before
    /// the sink had recorded them. Returns how many. To be called once at start, before the first
    /// request is handled.
    ///
    /// The sink may have recorded such a push after all: told of the same ref and object twice, it
    /// must do the work once.
    ///
    /// # Errors
    /// The machine's fault: a repository cannot be read.
    pub async fn recover(&self, sink: &dyn PushSink) -> Result<usize, GitError> {
        let Inner { program, repositories, turns, .. } = &*self.inner;
        journal::recover(program, repositories, turns, sink).await
    }

    /// The repositories that exist, in the order of their names.
    ///
    /// # Errors
    /// The machine's fault: the folder of the repositories cannot be read.
    pub fn repositories(&self) -> Result<Vec<(OwnerName, RepositoryName)>, GitError> {
        self.inner.repositories.list()
    }

    /// Waits until no push is under way any more, at most `limit`; tells whether that was so.
    /// To be called at shutdown, after the listener has closed.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.inner.tasks.close();
        tokio::time::timeout(limit, self.inner.tasks.wait()).await.is_ok()
    }
}
