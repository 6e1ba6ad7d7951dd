//! The report at the end of a push: what became of the pack and of each ref.
//!
//! Pure. The real git writes a report; we read it, and write another in which a ref whose
//! deployment failed counts as refused.

use bytes::BytesMut;

use super::pktline::{self, Packet};

/// Longest reason given to the client for one ref; it stands on one line of a terminal.
const MAX_REASON_CHARACTERS: usize = 300;

/// What became of one ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RefReport {
    pub(super) reference: String,
    pub(super) outcome: Result<(), String>,
    /// `option` lines of the second version of the report, as git wrote them.
    pub(super) options: Vec<Vec<u8>>,
}

/// What became of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    /// What became of the pack; the error in git's words.
    pub(super) unpack: Result<(), String>,
    pub(super) refs: Vec<RefReport>,
}

impl Report {
    /// A report in which everything failed for the same reason.
    pub(super) fn failure<'a>(reason: &str, references: impl IntoIterator<Item = &'a str>) -> Self {
        let refs = references
            .into_iter()
            .map(|reference| RefReport {
                reference: reference.to_owned(),
                outcome: Err(reason.to_owned()),
                options: Vec::new(),
            })
            .collect();
        Self { unpack: Err(reason.to_owned()), refs }
    }

    /// Gives everything that failed this reason.
    pub(super) fn fail(&mut self, reason: &str) {
        let outcomes = self.refs.iter_mut().map(|report| &mut report.outcome);
        for outcome in outcomes.chain([&mut self.unpack]).filter(|outcome| outcome.is_err()) {
            *outcome = Err(reason.to_owned());
        }
    }

    /// Reads git's report; `None` if these bytes are no complete one.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut unpack = None;
        let mut refs: Vec<RefReport> = Vec::new();
        loop {
            let (packet, length) = pktline::first(rest).ok()??;
            rest = &rest[length..];
            let line = match packet {
                Packet::Flush => break,
                Packet::Separator => return None,
                Packet::Data(line) => pktline::chomp(line),
            };
            if unpack.is_none() {
                let text = String::from_utf8_lossy(line.strip_prefix(b"unpack ")?).into_owned();
                unpack = Some(if text == "ok" { Ok(()) } else { Err(text) });
            } else if line.starts_with(b"option ") {
                refs.last_mut()?.options.push(line.to_vec());
            } else {
                refs.push(parse_ref(line)?);
            }
        }
        Some(Self { unpack: unpack?, refs })
    }

    /// The report in git's format, flush included.
    pub(super) fn to_bytes(&self) -> BytesMut {
        let mut out = BytesMut::new();
        match &self.unpack {
            Ok(()) => pktline::put(&mut out, b"unpack ok\n"),
            Err(reason) => {
                pktline::put(&mut out, format!("unpack {}\n", one_line(reason)).as_bytes());
            }
        }
        for report in &self.refs {
            match &report.outcome {
                Ok(()) => {
                    pktline::put(&mut out, format!("ok {}\n", report.reference).as_bytes());
                    for option in &report.options {
                        pktline::put(&mut out, &[option, &b"\n"[..]].concat());
                    }
                }
                // Options describe a ref that moved; after `ng` the client would not take them.
                Err(reason) => {
                    let line = format!("ng {} {}\n", report.reference, one_line(reason));
                    pktline::put(&mut out, line.as_bytes());
                }
            }
        }
        out.extend_from_slice(pktline::FLUSH);
        out
    }
}

fn parse_ref(line: &[u8]) -> Option<RefReport> {
    let text = String::from_utf8_lossy(line);
    let (verb, rest) = text.split_once(' ')?;
    let (reference, outcome) = match verb {
        "ok" => (rest, Ok(())),
        "ng" => {
            let (reference, reason) = rest.split_once(' ').unwrap_or((rest, "failed"));
            (reference, Err(reason.to_owned()))
        }
        _ => return None,
    };
    Some(RefReport { reference: reference.to_owned(), outcome, options: Vec::new() })
}

/// A reason made fit for one line of a terminal.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text
        .split(|character: char| character.is_control() || character.is_whitespace())
        .filter(|word| !word.is_empty())
        .collect();
    let line = words.join(" ");
    match line.char_indices().nth(MAX_REASON_CHARACTERS) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None if line.is_empty() => "failed".to_owned(),
        None => line,
    }
}

/// A line for the pusher's terminal: what could steer a terminal is taken out (CVE-2024-52005),
/// tabs stay, everything else is as it was.
pub(super) fn terminal_line(text: &str) -> String {
    text.chars().filter(|&character| character == '\t' || !steers_terminal(character)).collect()
}

/// Bytes of git's own progress for the pusher's terminal: the same, but lines and the carriage
/// returns of progress meters stay.
pub(super) fn terminal_bytes(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_control() || matches!(byte, b'\n' | b'\r' | b'\t'))
        .collect()
}

/// Control characters, and the marks that turn the direction of text around.
fn steers_terminal(character: char) -> bool {
    character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Report {
        Report {
            unpack: Ok(()),
            refs: vec![
                RefReport {
                    reference: "refs/heads/main".into(),
                    outcome: Ok(()),
                    options: vec![b"option forced-update".to_vec()],
                },
                RefReport {
                    reference: "refs/heads/old".into(),
                    outcome: Err("non-fast-forward".into()),
                    options: vec![],
                },
            ],
        }
    }

    #[test]
    fn a_report_survives_being_written_and_read() {
        assert_eq!(Report::parse(&sample().to_bytes()), Some(sample()));
    }

    #[test]
    fn a_ref_that_turns_bad_loses_its_options() {
        let mut report = sample();
        report.refs[0].outcome = Err("deployment failed:\n  exit 1 \x1b[31m".into());
        let bytes = report.to_bytes();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("ng refs/heads/main deployment failed: exit 1 [31m\n"), "{text}");
        assert!(!text.contains("option"), "{text}");
    }

    #[test]
    fn an_unfinished_report_is_none() {
        let bytes = sample().to_bytes();
        for length in 0..bytes.len() {
            assert_eq!(Report::parse(&bytes[..length]), None, "{length}");
        }
    }

    #[test]
    fn what_steers_terminals_is_taken_out() {
        assert_eq!(terminal_line("a\x1b[2Jb\u{9b}1m\r\tc\u{202e}"), "a[2Jb1m\tc");
        assert_eq!(terminal_bytes(b"50%\r\x1b[K100%\n"), b"50%\r[K100%\n");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            drop(Report::parse(&bytes));
            let mut framed = BytesMut::new();
            pktline::put(&mut framed, b"unpack ok\n");
            pktline::put(&mut framed, &bytes);
            framed.extend_from_slice(pktline::FLUSH);
            drop(Report::parse(&framed));
        }
    }
}
