//! Pushes that git is taking in at this moment, written down beside the repository.
//!
//! Between git moving a ref and the sink having recorded it lies an instant in which a crash would
//! lose the push: the pusher could not even repeat it, since git would find the ref moved already.
//! So what is about to move is written down first, and looked at again after a start.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use updraft_model::{OwnerName, RepositoryName};

use super::commands::{PushHead, is_object_id};
use super::program::GitProgram;
use super::push::{Push, PushSink, RefUpdate};
use super::repository::{PushTurns, Repositories};
use super::{GitError, query};

/// The first line of a note; another format would have another number.
const FORMAT: &str = "updraft push 1";

/// Notes are files of a bare repository that begin so.
const PREFIX: &str = "updraft-push-";

/// How long after a start a git of the process before may still be about to move a ref.
const LATE_GIT: Duration = Duration::from_secs(1);

/// Stands for "no object".
const NOTHING: &str = "-";

/// A note about a push under way. It stays until it is crossed out, also when it is dropped.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
}

impl Note {
    /// Writes down what is about to move in `bare`; it is on the disk when this returns.
    pub(super) fn write(bare: &Path, head: &PushHead) -> io::Result<Self> {
        let mut text = format!("{FORMAT}\n").into_bytes();
        for command in &head.commands {
            let old = command.old.as_deref().unwrap_or(NOTHING);
            let new = command.new.as_deref().unwrap_or(NOTHING);
            writeln!(text, "ref {old} {new} {}", command.reference)?;
        }
        for option in &head.options {
            writeln!(text, "option {option}")?;
        }
        text.extend_from_slice(b"end\n");
        let mut file = tempfile::Builder::new().prefix(PREFIX).tempfile_in(bare)?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        let (_, path) = file.keep().map_err(|error| error.error)?;
        File::open(bare)?.sync_all()?;
        Ok(Self { path })
    }

    /// Takes the note away: the sink knows, or nothing moved.
    pub(super) fn cross_out(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            // The sink will hear of the push again after the next start.
            tracing::warn!(%error, path = %self.path.display(), "could not cross out a push");
        }
    }
}

/// Tells the sink of the pushes that the process before this one had under way when it died, if
/// git took them in. Returns how many there were.
pub(super) async fn recover(
    program: &GitProgram,
    repositories: &Repositories,
    turns: &PushTurns,
    sink: &dyn PushSink,
) -> Result<usize, GitError> {
    let mut told = 0;
    for (owner, repository) in repositories.list()? {
        let bare = repositories.path(&owner, &repository);
        let notes = notes(&bare).map_err(|cause| GitError::Storage {
            what: "read",
            path: bare.clone(),
            cause,
        })?;
        for note in notes {
            let _turn = turns.take(&bare).await;
            if let Some(push) = read(&note.path, &owner, &repository) {
                let updates = moved(program, &bare, push.updates).await?;
                if !updates.is_empty() {
                    tracing::info!(%owner, %repository, "taking up a push from before the start");
                    // Nobody is at the terminal any more.
                    drop(sink.pushed(Push { updates, ..push }).await);
                    told += 1;
                }
            }
            note.cross_out();
        }
    }
    Ok(told)
}

/// The notes of a repository, oldest first.
fn notes(bare: &Path) -> io::Result<Vec<Note>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(bare)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| Note { path }).collect())
}

/// Reads a note; `None` if it was not written to its end, which is before anything moved.
fn read(path: &Path, owner: &OwnerName, repository: &RepositoryName) -> Option<Push> {
    let text = std::fs::read_to_string(path).ok()?;
    let lines = text.strip_suffix("end\n")?.strip_prefix(FORMAT)?.strip_prefix('\n')?;
    let mut push = Push {
        owner: owner.clone(),
        repository: repository.clone(),
        updates: Vec::new(),
        options: Vec::new(),
    };
    for line in lines.lines() {
        match line.split_once(' ')? {
            ("ref", rest) => {
                let mut parts = rest.splitn(3, ' ');
                let mut object = || match parts.next()? {
                    NOTHING => Some(None),
                    id => is_object_id(id).then(|| Some(id.to_owned())),
                };
                let (old, new) = (object()?, object()?);
                let reference = parts.next()?.to_owned();
                push.updates.push(RefUpdate { reference, old, new });
            }
            ("option", text) => push.options.push(text.to_owned()),
            _ => return None,
        }
    }
    Some(push)
}

/// The updates that git has carried out.
async fn moved(
    program: &GitProgram,
    bare: &Path,
    updates: Vec<RefUpdate>,
) -> Result<Vec<RefUpdate>, GitError> {
    let mut done = Vec::new();
    for update in updates {
        let mut value = query::ref_value(program, bare, &update.reference).await?;
        if value == update.old && value != update.new {
            tokio::time::sleep(LATE_GIT).await;
            value = query::ref_value(program, bare, &update.reference).await?;
        }
        if value == update.new {
            done.push(update);
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::commands::RefCommand;

    fn head() -> PushHead {
        let id = |digit: &str| Some(digit.repeat(40));
        let command =
            |reference: &str, old, new| RefCommand { reference: reference.to_owned(), old, new };
        PushHead {
            commands: vec![
                command("refs/heads/main", id("1"), id("2")),
                command("refs/heads/gone", id("3"), None),
                command("refs/tags/ä", None, id("4")),
            ],
            options: vec!["a=b c".to_owned(), String::new()],
            ..PushHead::default()
        }
    }

    #[test]
    fn a_note_tells_what_was_written_down_and_half_a_note_tells_nothing() {
        let bare = tempfile::tempdir().unwrap();
        let (owner, repository) = ("alice".parse().unwrap(), "shop".parse().unwrap());
        let note = Note::write(bare.path(), &head()).unwrap();
        let push = read(&note.path, &owner, &repository).unwrap();
        let updates: Vec<RefCommand> = push
            .updates
            .into_iter()
            .map(|RefUpdate { reference, old, new }| RefCommand { reference, old, new })
            .collect();
        assert_eq!((updates, push.options), (head().commands, head().options));

        let text = std::fs::read_to_string(&note.path).unwrap();
        for length in (0..text.len()).filter(|length| text.is_char_boundary(*length)) {
            std::fs::write(&note.path, &text[..length]).unwrap();
            assert_eq!(read(&note.path, &owner, &repository), None, "{length}");
        }
        assert_eq!(notes(bare.path()).unwrap().len(), 1);
        note.cross_out();
        assert!(notes(bare.path()).unwrap().is_empty());
    }
}
