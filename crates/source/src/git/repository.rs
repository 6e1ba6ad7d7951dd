//! The bare repositories: where they are, how they come to be, how large they are.
//!
//! A repository appears whole, by a rename, or not at all. Names come in as checked types, so a
//! path can never leave the folder.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::{RenameFlags, renameat_with};
use updraft_model::{OwnerName, RepositoryName};

use super::GitError;
use super::program::GitProgram;

/// An empty repository, for clients that ask about one which does not exist yet. No owner is
/// called so: names of owners begin with a letter or digit.
const EMPTY: &str = ".empty.git";

/// Folders of repositories that are being made.
const NEW_PREFIX: &str = ".new-";

/// Where git keeps what it has received until it has judged it.
const RECEIVED_PREFIX: &str = "tmp_objdir-";

/// Longest time for `git init`.
const INIT_LIMIT: Duration = Duration::from_secs(30);

/// The folder with the bare repositories.
#[derive(Debug)]
pub(super) struct Repositories {
    folder: PathBuf,
}

/// The right to end a push, one at a time for each repository.
///
/// Git itself lets two pushes run side by side. But the sink must hear of them in the order in
/// which refs moved, or an older commit could win over a newer one.
#[derive(Debug, Default)]
pub(super) struct PushTurns {
    turns: Mutex<HashMap<PathBuf, Weak<tokio::sync::Mutex<()>>>>,
}

impl Repositories {
    /// Makes the folder ready, and clears away what a crash left half made.
    pub(super) async fn open(folder: &Path, program: &GitProgram) -> Result<Self, GitError> {
        let storage = |what, cause| GitError::Storage { what, path: folder.to_owned(), cause };
        std::fs::create_dir_all(folder).map_err(|cause| storage("create", cause))?;
        let folder = folder.canonicalize().map_err(|cause| storage("find", cause))?;
        let repositories = Self { folder };
        repositories.clear_half_made().map_err(|cause| storage("clear", cause))?;
        if !is_repository(&repositories.empty()) {
            repositories.make(&repositories.empty(), program).await?;
        }
        Ok(repositories)
    }

    /// Where a repository is, or would be.
    pub(super) fn path(&self, owner: &OwnerName, repository: &RepositoryName) -> PathBuf {
        self.folder.join(owner.as_str()).join(format!("{repository}.git"))
    }

    /// The repository that is always empty.
    pub(super) fn empty(&self) -> PathBuf {
        self.folder.join(EMPTY)
    }

    /// Makes the bare repository `path` unless it is there.
    pub(super) async fn ensure(&self, path: &Path, program: &GitProgram) -> Result<(), GitError> {
        if is_repository(path) { Ok(()) } else { self.make(path, program).await }
    }

    /// All repositories, in the order of their names.
    pub(super) fn list(&self) -> Result<Vec<(OwnerName, RepositoryName)>, GitError> {
        let storage = |cause| GitError::Storage { what: "read", path: self.folder.clone(), cause };
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let mut found = Vec::new();
        for folder in folders_in(&self.folder).map_err(storage)? {
            let Some(Ok(owner)) = name(&folder).map(OwnerName::new) else { continue };
            for bare in folders_in(&folder).map_err(storage)? {
                let repository = name(&bare)
                    .and_then(|name| name.strip_suffix(".git").map(str::to_owned))
                    .and_then(|name| RepositoryName::new(name).ok());
                if let Some(repository) = repository
                    && is_repository(&bare)
                {
                    found.push((owner.clone(), repository));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    async fn make(&self, path: &Path, program: &GitProgram) -> Result<(), GitError> {
        let storage = |what, cause| GitError::Storage { what, path: path.to_owned(), cause };
        let parent = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(parent).map_err(|cause| storage("create", cause))?;
        let new = tempfile::Builder::new()
            .prefix(NEW_PREFIX)
            .tempdir_in(&self.folder)
            .map_err(|cause| storage("create", cause))?;
        let bare = new.path().join("bare");
        let mut command = program.command();
        command.args(["init", "--bare", "--quiet", "--template=", "--initial-branch=main", "--"]);
        command.arg(&bare);
        program.ask(&mut command, INIT_LIMIT).await?.into_output("create a repository")?;
        match renameat_with(rustix::fs::CWD, &bare, rustix::fs::CWD, path, RenameFlags::NOREPLACE)
            .map_err(io::Error::from)
        {
            // Two first pushes at once: the other one was faster, and its repository is as good.
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(cause) => Err(storage("create", cause)),
            Ok(()) => {
                let folder = std::fs::File::open(parent).and_then(|folder| folder.sync_all());
                folder.map_err(|cause| storage("save", cause))
            }
        }
    }

    fn clear_half_made(&self) -> io::Result<()> {
        for folder in folders_in(&self.folder)? {
            if starts_with(&folder, NEW_PREFIX) {
                std::fs::remove_dir_all(folder)?;
                continue;
            }
            for repository in folders_in(&folder)? {
                let objects = repository.join("objects");
                for received in folders_in(&objects).or_else(ignore_missing)? {
                    if starts_with(&received, RECEIVED_PREFIX) {
                        std::fs::remove_dir_all(received)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl PushTurns {
    /// Waits for the turn of a push to `repository`; it lasts until the guard is dropped.
    pub(super) async fn take(&self, repository: &Path) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            turns.get(repository).and_then(Weak::upgrade).unwrap_or_else(|| {
                let turn = Arc::new(tokio::sync::Mutex::new(()));
                turns.insert(repository.to_owned(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

/// Whether there is a repository at `path`. It was renamed into place whole, so one look does.
pub(super) fn is_repository(path: &Path) -> bool {
    path.join("HEAD").is_file()
}

fn folders_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn starts_with(path: &Path, prefix: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
}

fn ignore_missing(error: io::Error) -> io::Result<Vec<PathBuf>> {
    if error.kind() == io::ErrorKind::NotFound { Ok(Vec::new()) } else { Err(error) }
}

/// Bytes that a repository takes on disk. Files that vanish meanwhile count as nothing.
pub(super) fn size(path: &Path) -> io::Result<u64> {
    let mut total = 0;
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => total += metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(total)
}
