//! The files of a repository that hold sealed secrets. They are read here and opened elsewhere.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;

use super::{Stack, StackError};
use crate::path::{OpenError, RelativePath, open_root, read_bytes};

/// Most bytes that are read of one file with sealed secrets: more than may be taken of it, so that
/// whoever takes it can say what in it is too large.
pub const SECRET_FILE_BYTES_MAX: u64 = 32 << 20;

/// The files that need not be named.
const FILE_NAMES: [&str; 2] = ["secrets.yml", "secrets.yaml"];

/// A file with sealed secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// Its path in the repository.
    pub path: String,
    /// What it holds, or why it cannot be read; the owner's fault.
    pub content: Result<Vec<u8>, String>,
}

/// Whether the root holds a file with sealed secrets.
pub(super) fn are_there(root: impl AsFd) -> bool {
    FILE_NAMES.iter().any(|name| is_there(&root, name))
}

fn is_there(root: impl AsFd, name: &str) -> bool {
    rustix::fs::statat(root, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

impl Stack {
    /// A repository of secrets alone.
    pub(super) fn of_secrets_only() -> Self {
        Self {
            functions: BTreeMap::new(),
            copy: Vec::new(),
            sealed_secrets: Vec::new(),
            secrets_only: true,
            warnings: Vec::new(),
            file: String::new(),
            text: String::new(),
        }
    }

    /// What to tell the owner of a repository that should have a stack file.
    pub fn missing(checkout: &Path) -> StackError {
        StackError::Missing { hint: super::missing_hint(checkout) }
    }

    /// Reads `secrets.yml` in the root of a checkout, if it is there, and every file that the
    /// stack names. No link is followed.
    ///
    /// # Errors
    /// The platform's fault: the checkout itself cannot be read. A file that cannot be read is no
    /// error here, see [`SecretFile::content`].
    pub fn read_secret_files(&self, checkout: &Path) -> Result<Vec<SecretFile>, StackError> {
        let root = open_root(checkout).map_err(StackError::Checkout)?;
        let mut paths: Vec<&str> = Vec::new();
        paths.extend(FILE_NAMES.iter().filter(|name| is_there(&root, name)));
        for named in &self.sealed_secrets {
            if !paths.contains(&named.as_str()) {
                paths.push(named);
            }
        }
        let read_one = |path: &str| {
            let path = RelativePath::new(path).map_err(|_| OpenError::Missing(path.to_owned()))?;
            read_bytes(&root, &path, SECRET_FILE_BYTES_MAX)
        };
        let read = |path: &str| SecretFile {
            path: path.to_owned(),
            content: read_one(path).map_err(|error: OpenError| error.to_string()),
        };
        Ok(paths.into_iter().map(read).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn stack(checkout: &Path) -> Stack {
        Stack::read(checkout, &BTreeMap::new()).unwrap()
    }

    #[test]
    fn secret_files_are_those_of_the_root_and_those_that_the_stack_names() {
        let checkout = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = checkout.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("secrets.yml", "one");
        write("deploy/more.yml", "two");
        write("not-named.yml", "three");
        symlink("/etc/passwd", checkout.path().join("link.yml")).unwrap();
        let named = "[deploy/more.yml, ./secrets.yml, gone.yml, link.yml]";
        write("stack.yml", &format!("functions: {{}}\nsealed_secrets: {named}\n"));
        let files = stack(checkout.path()).read_secret_files(checkout.path()).unwrap();
        let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["secrets.yml", "deploy/more.yml", "gone.yml", "link.yml"]);
        assert_eq!(files[1].content, Ok(b"two".to_vec()));
        assert!(files[2].content.as_ref().unwrap_err().contains("gone.yml"));
        assert!(files[3].content.is_err(), "a link leads out of the repository");
    }

    #[test]
    fn a_repository_may_hold_secrets_alone() {
        let checkout = tempfile::tempdir().unwrap();
        std::fs::write(checkout.path().join("secrets.yaml"), "x").unwrap();
        let stack = stack(checkout.path());
        assert!(stack.secrets_only && stack.functions.is_empty());
        assert_eq!(stack.read_secret_files(checkout.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_named_file_cannot_be_outside_the_repository() {
        let text = "functions: {}\nsealed_secrets: [../x.yml]\n";
        let error = Stack::parse(text, "stack.yml", &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("sealed_secrets"), "{error}");
    }
}
