//! Runs `buildah` and `mmdebstrap` to their end, with a time limit and bounded memory.

use std::collections::VecDeque;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;

use crate::ImageError;

/// Lines of a program's output kept for its error message.
const TAIL_LINES: usize = 12;
/// Longest line kept; the rest of it is dropped.
const LINE_MAX: usize = 2_000;
/// Standard output kept by [`output`].
const OUTPUT_MAX: usize = 1 << 20;

/// Runs `command` to its end and gives back what it wrote to standard output, trimmed.
pub(crate) async fn output(
    command: Command,
    program: &'static str,
    action: &str,
    limit: Duration,
) -> Result<String, ImageError> {
    let mut out = String::new();
    run(command, program, action, limit, |stream, line| {
        if stream == Stream::Out && out.len() + line.len() < OUTPUT_MAX {
            out.push_str(line);
            out.push('\n');
        }
    })
    .await?;
    Ok(out.trim().to_owned())
}

/// Which of its outputs a program wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// Runs `command` to its end, handing each line of its outputs to `seen`. The program is killed
/// when the time is over or the caller goes away.
pub(crate) async fn run(
    mut command: Command,
    program: &'static str,
    action: &str,
    limit: Duration,
    mut seen: impl FnMut(Stream, &str),
) -> Result<(), ImageError> {
    let start = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => ImageError::ProgramMissing { program },
        _ => ImageError::Io { action: "start", path: program.into(), cause },
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own: a Ctrl-C in the terminal is for the platform, which then says what
    // becomes of its work, and what the program has started ends with it.
    let mut child = command.process_group(0).kill_on_drop(true).spawn().map_err(start)?;
    let group = KilledGroup(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let mut out = child.stdout.take().map(Lines::new);
    let mut err = child.stderr.take().map(Lines::new);
    let mut tail = VecDeque::new();
    let work = async {
        while out.is_some() || err.is_some() {
            let (stream, line) = tokio::select! {
                line = next_of(&mut out), if out.is_some() => (Stream::Out, line?),
                line = next_of(&mut err), if err.is_some() => (Stream::Err, line?),
            };
            let Some(line) = line else {
                match stream {
                    Stream::Out => out = None,
                    Stream::Err => err = None,
                }
                continue;
            };
            seen(stream, &line);
            if !line.trim().is_empty() {
                if tail.len() == TAIL_LINES {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
        }
        child.wait().await
    };
    let status = match tokio::time::timeout(limit, work).await {
        Ok(status) => {
            status.map_err(|cause| ImageError::Io { action: "run", path: program.into(), cause })?
        }
        Err(_) => return Err(ImageError::TimedOut { action: action.to_owned(), limit }),
    };
    group.has_ended();
    if status.success() {
        return Ok(());
    }
    let detail = if tail.is_empty() {
        format!("`{program}` ended with {status}")
    } else {
        tail.make_contiguous().join("\n")
    };
    Err(ImageError::Program { action: action.to_owned(), detail })
}

/// Kills a program and all that it started, unless it has ended by itself.
struct KilledGroup(Option<Pid>);

impl KilledGroup {
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for KilledGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(%error, "a program had ended before it was killed");
        }
    }
}

/// The lines of a stream, of each of which at most [`LINE_MAX`] bytes are kept.
struct Lines<R> {
    reader: BufReader<R>,
    /// The line that has begun, if one has. Kept here and not by the call that reads it: that one
    /// is given up whenever the other stream has something.
    begun: Option<Vec<u8>>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(stream: R) -> Self {
        Self { reader: BufReader::new(stream), begun: None }
    }

    /// The next line, `None` at the end. Given up and called again, it loses nothing.
    async fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            let buffer = self.reader.fill_buf().await?;
            if buffer.is_empty() {
                return Ok(self.begun.take().map(|line| text(&line)));
            }
            let end = buffer.iter().position(|&byte| byte == b'\n' || byte == b'\r');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            let line = self.begun.get_or_insert_default();
            let room = LINE_MAX.saturating_sub(line.len()).min(part.len());
            line.extend_from_slice(&part[..room]);
            let used = end.map_or(buffer.len(), |end| end + 1);
            self.reader.consume(used);
            if end.is_some() {
                return Ok(self.begun.take().map(|line| text(&line)));
            }
        }
    }
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).into_owned()
}

/// The next line of a stream, or that it has ended.
async fn next_of(lines: &mut Option<Lines<impl AsyncRead + Unpin>>) -> io::Result<Option<String>> {
    match lines {
        Some(lines) => lines.next().await,
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_never_ends_is_killed_when_its_time_is_over() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let limit = Duration::from_millis(50);
        let ended = output(command, "sleep", "wait", limit).await;
        assert!(matches!(ended, Err(ImageError::TimedOut { .. })), "{ended:?}");
    }

    #[tokio::test]
    async fn the_error_of_a_failed_program_carries_its_last_lines() {
        let mut command = Command::new("ls");
        command.arg("/does/not/exist");
        let ended = output(command, "ls", "list it", Duration::from_secs(10)).await;
        let Err(ImageError::Program { detail, .. }) = ended else { panic!("{ended:?}") };
        assert!(detail.contains("/does/not/exist"), "{detail}");
    }

    /// As many programs write their errors: piece by piece, while the other stream ends.
    #[tokio::test]
    async fn a_line_that_comes_in_pieces_is_kept_whole_whatever_the_other_stream_does() {
        let mut command = Command::new("sh");
        let script = "printf 'one ' >&2; sleep 0.1; exec >&-; sleep 0.1; echo line >&2; exit 1";
        command.args(["-c", script]);
        let ended = output(command, "sh", "say it", Duration::from_mins(1)).await;
        let Err(ImageError::Program { detail, .. }) = ended else { panic!("{ended:?}") };
        assert_eq!(detail, "one line");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let ended = output(
            Command::new("updraft-no-such-program"),
            "updraft-no-such-program",
            "x",
            Duration::from_secs(1),
        );
        let error = ended.await.unwrap_err();
        assert!(error.to_string().contains("apt-get install"), "{error}");
    }
}
