//! What one replica sees of its secrets: a folder with a link for each item.
//!
//! A link leads through one more link per secret, `..sets/<secret>`, to the folder that holds the
//! items as they are now. A change makes a new folder and turns that one link over, so that a
//! reader sees the old items or the new ones, all of them. No item and no secret can have a name
//! with `..` in front.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use updraft_engine::SecretItems;
use updraft_model::SecretName;

/// The folder of the sets, in a replica's folder.
const SETS: &str = "..sets";

/// A link before it takes its place.
const NEW_LINK: &str = "..new";

/// Makes a replica's folder.
pub(super) fn prepare(folder: &Path, owner: (u32, u32)) -> io::Result<()> {
    make_folder(folder, owner)
}

/// Makes a replica see these items of a secret and no others. One call for a folder at a time.
/// Returns the folder of what it saw before, to be removed once no reader is on its way there.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when the replica has no folder.
pub(super) fn place(
    folder: &Path,
    secret: &SecretName,
    items: &SecretItems,
    owner: (u32, u32),
) -> io::Result<Option<PathBuf>> {
    fs::metadata(folder)?;
    let sets = folder.join(SETS);
    make_folder(&sets, owner)?;
    let set = make_set(&sets, owner)?;
    for (key, value) in items.iter() {
        let path = sets.join(&set).join(key.as_str());
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path)?;
        file.write_all(value.expose())?;
        chown(&path, Some(owner.0), Some(owner.1))?;
    }
    // The links of new items lead nowhere until the set is turned over.
    for (key, _) in items.iter() {
        let target = Path::new(SETS).join(secret.as_str()).join(key.as_str());
        let link = folder.join(key.as_str());
        if fs::read_link(&link).ok().as_deref() != Some(&*target) {
            put_link(&target, &folder.join(NEW_LINK), &link)?;
        }
    }
    let current = sets.join(secret.as_str());
    let before = fs::read_link(&current).ok();
    put_link(Path::new(&set), &sets.join(NEW_LINK), &current)?;
    let before = before.map(|before| sets.join(before));
    if let Some(before) = &before {
        for entry in fs::read_dir(before)? {
            let key = entry?.file_name();
            let target = Path::new(SETS).join(secret.as_str()).join(&key);
            let link = folder.join(&key);
            let is_gone = key.to_str().is_none_or(|key| items.get(key).is_none());
            if is_gone && fs::read_link(&link).ok() == Some(target) {
                fs::remove_file(&link)?;
            }
        }
    }
    Ok(before)
}

fn make_folder(folder: &Path, owner: (u32, u32)) -> io::Result<()> {
    match DirBuilder::new().mode(0o500).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => chown(folder, Some(owner.0), Some(owner.1)),
    }
}

/// A new folder for a set, by a name that no secret has.
fn make_set(sets: &Path, owner: (u32, u32)) -> io::Result<String> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let name = format!(".{}", NEXT.fetch_add(1, Ordering::Relaxed));
        match DirBuilder::new().mode(0o500).create(sets.join(&name)) {
            // Of an earlier run.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => {
                chown(sets.join(&name), Some(owner.0), Some(owner.1))?;
                return Ok(name);
            }
        }
    }
}

/// Makes a link, or turns it over, in one step.
fn put_link(target: &Path, new: &Path, link: &Path) -> io::Result<()> {
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, new)?;
    fs::rename(new, link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use updraft_engine::SecretValue;
    use updraft_model::ItemKey;

    fn items(value: &str) -> SecretItems {
        let item = |key| (ItemKey::new(key).unwrap(), SecretValue::new(value));
        ["one", "two"].map(item).into_iter().collect()
    }

    #[test]
    fn a_reader_never_sees_half_of_a_change() {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("replica");
        let name = SecretName::new("pair").unwrap();
        prepare(&folder, (0, 0)).unwrap();
        place(&folder, &name, &items("0"), (0, 0)).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // One look at the set, as somebody has who wants both items of one moment.
                    let set = fs::canonicalize(folder.join("..sets/pair")).unwrap();
                    let read = |key| fs::read_to_string(set.join(key)).unwrap();
                    assert_eq!(read("one"), read("two"));
                    // By its name an item is there at any time, and whole.
                    assert!(!fs::read_to_string(folder.join("one")).unwrap().is_empty());
                }
            });
            for number in 1..300 {
                let before = place(&folder, &name, &items(&number.to_string()), (0, 0)).unwrap();
                assert!(before.unwrap().is_dir());
            }
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        assert_eq!(fs::read_to_string(folder.join("two")).unwrap(), "299");
    }

    #[test]
    fn a_folder_as_an_earlier_version_made_it_is_brought_up_to_date() {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("replica");
        prepare(&folder, (0, 0)).unwrap();
        fs::write(folder.join("token"), "old").unwrap();
        let name = SecretName::new("token").unwrap();
        let new = SecretItems::single(&name, SecretValue::new("new"));
        place(&folder, &name, &new, (0, 0)).unwrap();
        assert_eq!(fs::read_to_string(folder.join("token")).unwrap(), "new");
        let error = place(&outside.path().join("none"), &name, &new, (0, 0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
