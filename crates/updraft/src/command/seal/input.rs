//! What is sealed, read from wherever it is, and the files that are written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use updraft_seal::{Limits, SealedFile, SecretBytes};
use zeroize::Zeroizing;

use crate::cli::Seal;

/// Largest input read, in bytes.
const INPUT_MAX: u64 = 16 << 20;

/// Folders that hold no files of their own.
const SKIPPED: [&str; 4] = [".git", "node_modules", "target", "vendor"];

/// Files looked at below a folder.
const FILES_MAX: usize = 100_000;

/// The items that flags name.
pub(super) fn items(command: &Seal) -> Result<BTreeMap<String, SecretBytes>> {
    let mut items = BTreeMap::new();
    let mut put = |key: String, value: SecretBytes| {
        if items.insert(key.clone(), value).is_some() {
            bail!("the item `{key}` is given twice");
        }
        Ok(())
    };
    for path in &command.env_file {
        for (key, value) in env_file(path)? {
            put(key, value)?;
        }
    }
    for argument in &command.from_file {
        let (key, value) = file(argument)?;
        put(key, value)?;
    }
    for literal in &command.literal {
        let (key, value) = pair(literal).with_context(|| {
            // The value may be in it, so it is not repeated.
            let key = literal.split('=').next().unwrap_or_default();
            format!("--literal {key}: expected KEY=VALUE with a key and a value")
        })?;
        put(key, value)?;
    }
    if let Some(key) = &command.from_stdin {
        put(key.clone(), standard_input()?)?;
    }
    Ok(items)
}

fn pair(text: &str) -> Option<(String, SecretBytes)> {
    let (key, value) = text.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    let full = !key.is_empty() && !value.is_empty();
    full.then(|| (key.to_owned(), SecretBytes::new(value.as_bytes().to_vec())))
}

/// `PATH` or `KEY=PATH`.
pub(super) fn file(argument: &str) -> Result<(String, SecretBytes)> {
    let (key, path) = match argument.split_once('=') {
        Some((key, path)) if !Path::new(argument).is_file() => (Some(key.to_owned()), path),
        _ => (None, argument),
    };
    let path = Path::new(path);
    let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let key =
        key.or(name).with_context(|| format!("{} has no name to be a key", path.display()))?;
    Ok((key, read_capped(path)?.into()))
}

/// Lines of `KEY=VALUE`: comments, `export` and quotes as shells and Docker have them.
fn env_file(path: &Path) -> Result<Vec<(String, SecretBytes)>> {
    let bytes = read_capped(path)?;
    let text =
        std::str::from_utf8(&bytes).with_context(|| format!("{} is no UTF-8", path.display()))?;
    let mut items = Vec::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (key, value) = line.split_once('=').with_context(|| {
            format!("{}, line {}: expected KEY=VALUE", path.display(), index + 1)
        })?;
        let value = value.trim();
        let quoted =
            |quote: char| value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote));
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        items.push((key.trim().to_owned(), SecretBytes::new(value.as_bytes().to_vec())));
    }
    Ok(items)
}

/// Standard input, byte for byte.
pub(super) fn standard_input() -> Result<SecretBytes> {
    capped(std::io::stdin().lock(), "standard input").map(SecretBytes::from)
}

/// A file of at most so many bytes. It may hold plain values or keys, so it is wiped.
pub(crate) fn read_capped(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    capped(file, &path.display().to_string())
}

fn capped(input: impl Read, name: &str) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    let read = input.take(INPUT_MAX + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("cannot read {name}"))?;
    if bytes.len() as u64 > INPUT_MAX {
        bail!("{name} is larger than {INPUT_MAX} bytes");
    }
    Ok(bytes)
}

/// A file of sealed secrets, or standard input.
pub(super) fn sealed_input(path: Option<&Path>) -> Result<SealedFile> {
    let (bytes, name) = match path {
        Some(path) => (read_capped(path)?.into(), path.display().to_string()),
        None => (standard_input()?, "standard input".to_owned()),
    };
    let file = SealedFile::parse(&bytes, Limits::usual()).with_context(|| name.clone())?;
    if file.sealed()?.is_empty() {
        bail!("{name} has no sealed secret");
    }
    Ok(file)
}

/// The first line of a file, to be a passphrase; `-` is standard input.
pub(crate) fn passphrase(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = if path == Path::new("-") {
        capped(std::io::stdin().lock(), "standard input")?
    } else {
        read_capped(path)?
    };
    let text = std::str::from_utf8(&bytes).context("the passphrase is no UTF-8")?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

/// Writes a file so that a reader, or a crash, sees the old content or the new, never a part.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    let mode = fs::metadata(path).map_or(0o644, |metadata| metadata.permissions().mode() & 0o777);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let writing = || {
        let mut new = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
        new.write_all(text.as_bytes())?;
        new.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        new.as_file().sync_all()?;
        new.persist(path).map_err(|error| error.error)
    };
    writing().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// A file, or every YAML and JSON file below a folder that speaks of sealed secrets, sorted.
/// Links are not followed.
pub(crate) fn sealed_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder);
        for entry in entries.with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = entry.file_name();
            if kind.is_dir() && !SKIPPED.iter().any(|skipped| name == *skipped) {
                folders.push(path);
            } else if kind.is_file() && is_document(&path) {
                if found.len() >= FILES_MAX {
                    bail!("there are more than {FILES_MAX} files below {}", path.display());
                }
                found.push(path);
            }
        }
    }
    found.retain(|path| {
        let small = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= INPUT_MAX);
        let speaks = |bytes: Vec<u8>| bytes.windows(12).any(|window| window == b"SealedSecret");
        small && fs::read(path).is_ok_and(speaks)
    });
    found.sort();
    Ok(found)
}

fn is_document(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| matches!(extension, "yml" | "yaml" | "json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_split_at_the_first_equals_sign_and_trimmed() {
        let (key, value) = pair(" a = b=c ").unwrap();
        assert_eq!((key.as_str(), value.expose()), ("a", &b"b=c"[..]));
        for bad in ["a", "a=", "=b", "a= "] {
            assert!(pair(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn env_files_are_read_as_shells_and_docker_write_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".env");
        fs::write(&path, "# comment\n\nA=1\nexport B=\"two words\"\nC='x=y'\nD=\n").unwrap();
        let items = env_file(&path).unwrap();
        let text: Vec<_> =
            items.iter().map(|(key, value)| (key.as_str(), value.expose())).collect();
        assert_eq!(text, [("A", &b"1"[..]), ("B", b"two words"), ("C", b"x=y"), ("D", b"")]);
        fs::write(&path, "A=1\nsecret-without-key\n").unwrap();
        let error = env_file(&path).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("secret-without-key"), "{error}");
    }
}
