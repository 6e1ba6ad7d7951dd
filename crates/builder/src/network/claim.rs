//! Which firewall tables of builds belong to a process that lives.
//!
//! A killed server leaves its table, and whoever comes next cannot tell from its name whose it
//! was. So each table has a file of its name that its owner keeps locked: the kernel opens the
//! lock when the owner goes, however it goes, and then anybody may clear up.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Where the files lie, gone after a reboot as tables are.
pub(super) const FOLDER: &str = "/run/updraft-builds";
/// What names of tables begin with.
pub(super) const PREFIX: &str = "updraft_build_";
/// How often a file is opened anew that somebody removed in the same moment.
const TRIES: usize = 100;

/// A table that is in use as long as this lives.
#[derive(Debug)]
pub(super) struct Claim {
    file: File,
    path: PathBuf,
}

impl Claim {
    /// Says that `table` is in use. Others on the same store may say so too.
    pub(super) fn new(folder: &Path, table: &str) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join(table);
        for _ in 0..TRIES {
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            // Whoever clears up holds it for a moment only.
            flock(&file, FlockOperation::LockShared)?;
            if is_at(&file, &path) {
                return Ok(Self { file, path });
            }
        }
        Err(io::Error::other(format!("`{}` is removed all the time", path.display())))
    }

    /// Ends the claim, and says whether nobody else has one: then the table may go, before what is
    /// given is dropped.
    pub(super) fn last(self) -> Option<Cleared> {
        flock(&self.file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Cleared { _file: self.file, path: self.path })
    }
}

/// A table that nobody uses and nobody can begin to use as long as this lives.
#[derive(Debug)]
pub(super) struct Cleared {
    _file: File,
    path: PathBuf,
}

impl Cleared {
    /// The table's name.
    pub(super) fn table(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Forgets the table, which is gone.
    pub(super) fn forget(self) {
        if let Err(cause) = fs::remove_file(&self.path) {
            tracing::debug!(%cause, "the file of a firewall table stays");
        }
    }
}

/// The tables whose owners are gone.
pub(super) fn abandoned(folder: &Path) -> Vec<Cleared> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let rest = name.and_then(|name| name.strip_prefix(PREFIX));
        rest.is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let locked = |path: PathBuf| {
        let file = OpenOptions::new().append(true).open(&path).ok()?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        is_at(&file, &path).then_some(Cleared { _file: file, path })
    };
    entries.map(|entry| entry.path()).filter(ours).filter_map(locked).collect()
}

/// Whether this path still means the file that is open.
fn is_at(file: &File, path: &Path) -> bool {
    let name = |found: fs::Metadata| (found.dev(), found.ino());
    let (open, there) = (file.metadata().map(name), fs::metadata(path).map(name));
    matches!((open, there), (Ok(open), Ok(there)) if open == there)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(folder: &Path) -> Vec<String> {
        abandoned(folder).iter().map(|cleared| cleared.table().to_owned()).collect()
    }

    #[test]
    fn a_table_is_abandoned_when_the_last_who_claims_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let table = format!("{PREFIX}0a1b2c3d");
        let one = Claim::new(folder.path(), &table).unwrap();
        let two = Claim::new(folder.path(), &table).unwrap();
        assert_eq!(tables(folder.path()), Vec::<String>::new());
        assert!(one.last().is_none(), "another one is there");
        assert_eq!(tables(folder.path()), Vec::<String>::new());
        // As when its process is killed.
        drop(two);
        assert_eq!(tables(folder.path()), std::slice::from_ref(&table));
        let again = Claim::new(folder.path(), &table).unwrap();
        again.last().unwrap().forget();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_the_file_of_a_table_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["updraft_0a1b2c3d", "updraft_build_", "updraft_build_0a1b2c3d.new", "other"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(tables(folder.path()), Vec::<String>::new());
    }
}
