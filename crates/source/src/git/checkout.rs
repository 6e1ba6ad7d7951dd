//! A checkout: exactly one commit's files, written into an empty folder.
//!
//! Not `git checkout`, which knows hooks, filters, line endings, submodules and attributes, each
//! of them a door that has been broken open before. Git only lists the tree and hands out blobs,
//! two processes for a whole commit; the list is judged before anything is written.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout};

use super::GitError;
use super::contained::{ContentError, ContentLimits, Kind, Manifest, Writer};
use super::program::{GitProgram, RunningGit, read_complaint};
use super::query::check_commit;

/// Longest time for listing and writing one commit.
const LIMIT: Duration = Duration::from_mins(5);

/// Bytes of the start of one line of the list: mode, kind, object and size.
const LINE_HEAD: usize = 200;

/// What a checkout wrote.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckedOut {
    /// Files and links written.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Submodules, which are left out; their owners should be told.
    pub submodules: Vec<String>,
}

/// One file or link to be written.
#[derive(Debug)]
struct Entry {
    path: String,
    object: String,
    size: u64,
    mode: EntryMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryMode {
    Plain,
    Executable,
    Link,
}

/// Writes the files of `commit` (a full id) from the bare repository `bare` into `destination`,
/// which is made, or must be empty.
///
/// Files come as they are stored, without filters or changed line endings, with mode 0644 or
/// 0755. Symbolic links are written as such, whatever they point to, and never followed; who
/// reads the checkout must not follow them either. Submodules are left out.
///
/// On an error the destination may hold a part of the files; it is the caller's to remove.
///
/// # Errors
/// [`GitError::NoCommit`] if the repository has no such commit, [`GitError::Content`] if the
/// files break a rule or a limit (nothing is written then), otherwise the machine's fault.
pub async fn checkout(
    bare: &Path,
    commit: &str,
    destination: &Path,
    limits: &ContentLimits,
) -> Result<CheckedOut, GitError> {
    check_commit(commit)?;
    let storage = |what, cause| GitError::Storage { what, path: destination.to_owned(), cause };
    std::fs::create_dir_all(destination).map_err(|cause| storage("create", cause))?;
    let writer = Writer::open(destination).map_err(|cause| storage("write into", cause))?;
    let program = GitProgram::on_path()?;
    let work = async {
        // Both at once: the second needs its milliseconds to start, too.
        let (blobs, blobs_in, blobs_out) = start_blobs(&program, bare)?;
        let (entries, checked_out) = list(&program, bare, commit, limits).await?;
        write_all(blobs, blobs_in, blobs_out, writer, entries, destination).await?;
        Ok(checked_out)
    };
    tokio::time::timeout(LIMIT, work).await.map_err(|_| GitError::TimedOut { limit: LIMIT })?
}

/// Lists the commit's tree and judges it line by line; git is stopped at the first bad one.
async fn list(
    program: &GitProgram,
    bare: &Path,
    commit: &str,
    limits: &ContentLimits,
) -> Result<(Vec<Entry>, CheckedOut), GitError> {
    let mut command = program.command_in(bare);
    command.args(["ls-tree", "-r", "-z", "-l", "--full-tree"]).arg(format!("{commit}^{{commit}}"));
    let mut git = program.start(&mut command)?;
    let complaint = tokio::spawn(read_complaint(git.take_stderr()));
    let Some(stdout) = git.take_stdout() else {
        return Err(GitError::Talk(io::ErrorKind::BrokenPipe.into()));
    };
    let mut stdout = tokio::io::BufReader::with_capacity(64 * 1024, stdout);
    let longest = limits.max_path_bytes + LINE_HEAD;
    let mut manifest = Manifest::new(limits);
    let mut entries = Vec::new();
    let mut submodules = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut capped = tokio::io::AsyncReadExt::take(&mut stdout, longest as u64);
        if capped.read_until(0, &mut line).await.map_err(GitError::Talk)? == 0 {
            break;
        }
        if line.pop() != Some(0) {
            let path = String::from_utf8_lossy(&line).chars().skip(60).take(200).collect();
            return Err(ContentError::PathTooLong { path, limit: limits.max_path_bytes }.into());
        }
        match parse_line(&line).ok_or_else(|| unreadable("a list of files"))? {
            Line::Submodule(path) => {
                let path = manifest.add(path, Kind::Folder, 0)?;
                if submodules.len() < limits.max_files {
                    submodules.push(path.to_owned());
                }
            }
            Line::Unknown(path, kind) => {
                let path = manifest.add(path, Kind::File, 0)?.to_owned();
                return Err(ContentError::BadKind { path, kind: kind.to_owned() }.into());
            }
            Line::Entry { path, object, size, mode } => {
                let kind = if mode == EntryMode::Link { Kind::Link } else { Kind::File };
                let path = manifest.add(path, kind, size)?.to_owned();
                if mode == EntryMode::Link && size == 0 {
                    return Err(ContentError::BadLink { path }.into());
                }
                entries.push(Entry { path, object: object.to_owned(), size, mode });
            }
        }
    }
    let status = git.wait().await?;
    if !status.success() {
        let complaint = complaint.await.unwrap_or_default();
        tracing::debug!(commit, complaint, "git cannot list a commit");
        return Err(GitError::NoCommit { commit: commit.to_owned() });
    }
    let checked_out = CheckedOut { files: manifest.files(), bytes: manifest.bytes(), submodules };
    // Links last: no file can then be written behind one.
    entries.sort_by_key(|entry| entry.mode == EntryMode::Link);
    Ok((entries, checked_out))
}

enum Line<'line> {
    Entry { path: &'line [u8], object: &'line str, size: u64, mode: EntryMode },
    Submodule(&'line [u8]),
    Unknown(&'line [u8], &'line str),
}

/// Reads `<mode> <kind> <object> <size>\t<path>`.
fn parse_line(line: &[u8]) -> Option<Line<'_>> {
    let tab = line.iter().position(|&byte| byte == b'\t')?;
    let path = &line[tab + 1..];
    let mut words = std::str::from_utf8(&line[..tab]).ok()?.split_ascii_whitespace();
    let (mode, kind, object, size) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let mode = match (mode, kind) {
        ("160000", _) => return Some(Line::Submodule(path)),
        // Very old gits stored 100664.
        ("100644" | "100664", "blob") => EntryMode::Plain,
        ("100755", "blob") => EntryMode::Executable,
        ("120000", "blob") => EntryMode::Link,
        _ => return Some(Line::Unknown(path, kind)),
    };
    Some(Line::Entry { path, object, size: size.parse().ok()?, mode })
}

/// Starts the git that hands out blobs.
fn start_blobs(
    program: &GitProgram,
    bare: &Path,
) -> Result<(RunningGit, ChildStdin, ChildStdout), GitError> {
    let mut command = program.command_in(bare);
    command.args(["cat-file", "--batch", "--buffer"]);
    command.stdin(Stdio::piped()).stderr(Stdio::null());
    let mut git = program.start(&mut command)?;
    match (git.take_stdin(), git.take_stdout()) {
        (Some(stdin), Some(stdout)) => Ok((git, stdin, stdout)),
        _ => Err(GitError::Talk(io::ErrorKind::BrokenPipe.into())),
    }
}

/// Asks for all blobs and writes them in the order they come.
async fn write_all(
    mut git: RunningGit,
    mut stdin: ChildStdin,
    stdout: ChildStdout,
    mut writer: Writer,
    entries: Vec<Entry>,
    destination: &Path,
) -> Result<(), GitError> {
    let mut wanted = String::with_capacity(entries.len() * 65);
    for entry in &entries {
        wanted.push_str(&entry.object);
        wanted.push('\n');
    }
    let asking = async move {
        // An error here shows as an end of the answers.
        let _broken = stdin.write_all(wanted.as_bytes()).await;
    };
    let stdout = File::from(stdout.into_owned_fd().map_err(GitError::Talk)?);
    let destination = destination.to_owned();
    let writing = tokio::task::spawn_blocking(move || {
        let mut blobs = BufReader::with_capacity(64 * 1024, stdout);
        entries
            .iter()
            .try_for_each(|entry| write_entry(&mut blobs, &mut writer, entry, &destination))
    });
    let ((), written) = tokio::join!(asking, writing);
    written.map_err(|error| GitError::Talk(io::Error::other(error)))??;
    git.wait().await?;
    Ok(())
}

fn write_entry(
    blobs: &mut BufReader<File>,
    writer: &mut Writer,
    entry: &Entry,
    destination: &Path,
) -> Result<(), GitError> {
    let mut header = Vec::new();
    blobs.take(LINE_HEAD as u64).read_until(b'\n', &mut header).map_err(GitError::Talk)?;
    let expected = format!("{} blob {}\n", entry.object, entry.size);
    if header != expected.as_bytes() {
        return Err(unreadable("a file"));
    }
    let storage = |cause| GitError::Storage {
        what: "write",
        path: PathBuf::from(destination).join(&entry.path),
        cause,
    };
    if entry.mode == EntryMode::Link {
        let mut target = Vec::new();
        blobs.take(entry.size).read_to_end(&mut target).map_err(GitError::Talk)?;
        if target.contains(&0) {
            return Err(ContentError::BadLink { path: entry.path.clone() }.into());
        }
        writer.link(&entry.path, &target).map_err(storage)?;
    } else {
        let mut file =
            writer.file(&entry.path, entry.mode == EntryMode::Executable).map_err(storage)?;
        let mut left = entry.size;
        while left > 0 {
            let piece = blobs.fill_buf().map_err(GitError::Talk)?;
            if piece.is_empty() {
                return Err(unreadable("a file"));
            }
            let taken = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
            file.write_all(&piece[..taken]).map_err(storage)?;
            blobs.consume(taken);
            left -= taken as u64;
        }
    }
    let mut end = [0];
    blobs.read_exact(&mut end).map_err(GitError::Talk)
}

fn unreadable(what: &'static str) -> GitError {
    GitError::Failed { what: "read the repository", complaint: format!("{what} is damaged") }
}
