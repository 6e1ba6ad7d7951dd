//! Reading log files: which there are, their lines, and when the lines were written.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;

use super::{LINE_MAX, index, older};

/// Most bytes read from the end of a file for a tail.
const TAIL_BYTES: u64 = 256 * 1024;

/// The log files in a function's folder: the replica's name and the path.
pub(super) fn log_files(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let path = entry.path();
            let replica = path.file_name()?.to_str()?.strip_suffix(".log")?.to_owned();
            Some((replica, path))
        })
        .collect()
}

/// The last lines of a file, oldest first, as text.
pub(super) fn tail(path: &Path, lines: usize) -> Vec<String> {
    let bytes = end_of(path).unwrap_or_default();
    let mut all: Vec<_> = split(&bytes).map(|(_, line)| text(line)).collect();
    all.split_off(all.len().saturating_sub(lines))
}

fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let length = fs::metadata(path)?.len();
    Ok(from(path, At::Anywhere(length.saturating_sub(TAIL_BYTES)), TAIL_BYTES)?.1)
}

/// Where what is left of a file begins: its oldest part may have been taken out.
pub(super) fn start(file: impl AsFd, length: u64) -> u64 {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(0)) {
        Ok(start) => start,
        // There is nothing in it but what was taken out.
        Err(rustix::io::Errno::NXIO) => length,
        // A file system that does not tell takes nothing out either.
        Err(_) => 0,
    }
}

/// A place in a file from which to read.
#[derive(Debug, Clone, Copy)]
pub(super) enum At {
    /// The beginning of a line, or of a piece of a long one.
    Line(u64),
    /// Somewhere; what is left of the line there is left out.
    Anywhere(u64),
}

/// What a file holds from a place on, at most `limit` bytes, and where that begins: later when
/// what was there is gone. A line of which the beginning is gone is left out.
pub(super) fn from(path: &Path, at: At, limit: u64) -> io::Result<(u64, Vec<u8>)> {
    let (position, is_line) = match at {
        At::Line(position) => (position, true),
        At::Anywhere(position) => (position, position == 0),
    };
    let mut file = File::open(path)?;
    let left = start(&file, file.metadata()?.len());
    let mut begin = position.max(left);
    let is_line = is_line && begin == position;
    // The byte before tells whether a line begins there.
    let before = u64::from(!is_line);
    file.seek(SeekFrom::Start(begin - before))?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(before)).read_to_end(&mut bytes)?;
    if !is_line {
        let cut = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        bytes.drain(..cut);
        begin = begin - before + cut as u64;
    }
    Ok((begin, bytes))
}

/// Drops the notes about what lies before `offset`.
pub(super) fn forget_times(path: &Path, offset: u64) -> io::Result<()> {
    let path = index(path);
    let notes = fs::read_to_string(&path)?;
    let is_left = |line: &&str| {
        let until = line.split_once(' ').and_then(|(until, _)| until.parse::<u64>().ok());
        until.is_some_and(|until| until >= offset)
    };
    let left: String = notes.lines().filter(is_left).flat_map(|line| [line, "\n"]).collect();
    crate::record::write_atomically(&path, left.as_bytes(), false)
}

/// Lines with the offset after each; the last one may lack its line feed.
pub(super) fn split(bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    lines.flat_map(|line| line.chunks(LINE_MAX)).scan(0, |offset, piece| {
        *offset += piece.len() as u64;
        Some((*offset, piece))
    })
}

/// A line as text: without its line end, wrong UTF-8 replaced.
pub(super) fn text(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(line).into_owned()
}

/// When a file had come how far: pairs of offset and time, rising.
#[derive(Debug, Default)]
pub(super) struct Times {
    notes: Vec<(u64, Timestamp)>,
    otherwise: Timestamp,
}

impl Times {
    /// The notes beside a file. What lies after the last note counts as written when the file
    /// was last written to.
    pub(super) fn of(path: &Path) -> Self {
        let written = fs::metadata(path).and_then(|metadata| metadata.modified());
        let otherwise = Timestamp::try_from(written.unwrap_or_else(|_| SystemTime::now()));
        let notes = fs::read_to_string(index(path)).unwrap_or_default();
        let notes = notes.lines().filter_map(|line| {
            let (offset, time) = line.split_once(' ')?;
            let time = Timestamp::from_microsecond(time.parse().ok()?).ok()?;
            Some((offset.parse().ok()?, time))
        });
        Self { notes: notes.collect(), otherwise: otherwise.unwrap_or_else(|_| Timestamp::now()) }
    }

    /// When the line that ends at `offset` was written.
    pub(super) fn at(&self, offset: u64) -> Timestamp {
        let next = self.notes.partition_point(|(until, _)| *until < offset);
        self.notes.get(next).map_or(self.otherwise, |(_, time)| *time)
    }
}

/// Both parts of a log, older first; a part that is not there is left out.
pub(super) fn parts(path: &Path) -> Vec<PathBuf> {
    [older(path), path.to_owned()].into_iter().filter(|part| part.is_file()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_gives_the_last_lines_and_survives_wrong_utf8() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        fs::write(&path, b"one\ntwo\r\n\xff\nlast").unwrap();
        assert_eq!(tail(&path, 3), ["two", "\u{fffd}", "last"]);
        assert_eq!(tail(&path, 9).len(), 4);
        assert!(tail(&folder.path().join("none"), 3).is_empty());
    }

    #[test]
    fn an_endless_line_comes_in_pieces() {
        let bytes = vec![b'x'; LINE_MAX * 2 + 1];
        let ends: Vec<_> = split(&bytes).map(|(end, _)| end).collect();
        assert_eq!(ends, [LINE_MAX as u64, LINE_MAX as u64 * 2, bytes.len() as u64]);
    }

    #[test]
    fn a_line_has_the_time_of_the_first_look_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        fs::write(&path, "12345\n").unwrap();
        fs::write(index(&path), "3 1000000\n6 2000000\nbroken\n").unwrap();
        let times = Times::of(&path);
        assert_eq!(times.at(2).as_second(), 1);
        assert_eq!(times.at(3).as_second(), 1);
        assert_eq!(times.at(6).as_second(), 2);
        assert!(times.at(7).as_second() > 1000);
    }
}
