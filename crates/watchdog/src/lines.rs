//! Copies a stream of a child to the log, line by line.
//!
//! A line longer than the limit is split, never dropped, and never stops the copying: a function
//! cannot block itself by what it prints.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::log::{Correlation, Log, Stream};

/// How lines of the child are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineStyle {
    pub(crate) prefix: bool,
    /// Longest piece in bytes; `None` is no limit.
    pub(crate) limit: Option<usize>,
}

/// Copies until the stream ends.
pub(crate) async fn copy(
    mut from: impl AsyncRead + Unpin,
    log: Log,
    to: Stream,
    style: LineStyle,
    correlation: Option<Arc<Correlation>>,
) {
    let correlation = correlation.as_deref();
    let mut pending = Vec::new();
    loop {
        pending.reserve(4096);
        match from.read_buf(&mut pending).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let mut start = 0;
        while let Some((piece, next)) = next_piece(&pending, start, style.limit) {
            log.child_line(to, style.prefix, &pending[start..piece], correlation).await;
            start = next;
        }
        pending.drain(..start);
        pending.shrink_to(64 * 1024);
    }
    if !pending.is_empty() {
        log.child_line(to, style.prefix, &pending, correlation).await;
    }
}

/// The end of the next piece from `start`, and where the one after it begins; `None` when more
/// must be read first.
fn next_piece(buffer: &[u8], start: usize, limit: Option<usize>) -> Option<(usize, usize)> {
    let rest = &buffer[start..];
    let window = limit.map_or(rest, |limit| &rest[..rest.len().min(limit.saturating_add(1))]);
    if let Some(newline) = window.iter().position(|&byte| byte == b'\n') {
        let end = match rest[..newline].last() {
            Some(b'\r') => newline - 1,
            _ => newline,
        };
        return Some((start + end, start + newline + 1));
    }
    let limit = limit?;
    (rest.len() > limit).then_some((start + limit, start + limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str, limit: Option<usize>) -> (Vec<&str>, &str) {
        let mut found = Vec::new();
        let mut start = 0;
        while let Some((end, next)) = next_piece(text.as_bytes(), start, limit) {
            found.push(&text[start..end]);
            start = next;
        }
        (found, &text[start..])
    }

    #[test]
    fn lines_end_at_newlines_and_lose_carriage_returns() {
        assert_eq!(pieces("a\nb\r\n\nc", Some(10)), (vec!["a", "b", ""], "c"));
    }

    #[test]
    fn a_line_over_the_limit_is_split_without_losing_a_byte() {
        assert_eq!(pieces("abcdefg\nh\n", Some(3)), (vec!["abc", "def", "g", "h"], ""));
        assert_eq!(pieces("abc\n", Some(3)), (vec!["abc"], ""));
        assert_eq!(pieces("abcd", Some(3)), (vec!["abc"], "d"));
    }

    #[test]
    fn without_a_limit_a_line_is_kept_whole() {
        assert_eq!(pieces("abcdefg\nh", None), (vec!["abcdefg"], "h"));
    }
}
