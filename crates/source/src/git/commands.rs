//! The head of a push: which refs shall move from where to where, and what the client can do.
//!
//! Pure and incremental: bytes are fed as they come in, under caps. The bytes themselves still go
//! to the real git, which judges them again; what is read here serves our own report.

use thiserror::Error;

use super::pktline::{self, Packet, PacketError};

/// Most refs that one push may move.
const MAX_COMMANDS: usize = 10_000;

/// Most bytes of the head of a push.
const MAX_HEAD_BYTES: usize = 4 * 1024 * 1024;

/// Longest name of a ref.
const MAX_REFERENCE_BYTES: usize = 1024;

/// Most options of one push (`git push -o`), and the longest one.
const MAX_OPTIONS: usize = 64;
const MAX_OPTION_BYTES: usize = 1024;

/// Why the head of a push was refused. The pusher's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum CommandsError {
    #[error(transparent)]
    Packet(#[from] PacketError),
    #[error("the push begins with something that is no ref update, use a git client")]
    Grammar,
    #[error("the push moves more than {MAX_COMMANDS} refs, push fewer at once")]
    TooMany,
    #[error(
        "the list of refs of the push is larger than {MAX_HEAD_BYTES} bytes, push fewer at once"
    )]
    TooLong,
    #[error("a ref has a name longer than {MAX_REFERENCE_BYTES} bytes or not in UTF-8, rename it")]
    Reference,
    #[error(
        "at most {MAX_OPTIONS} push options of one line and {MAX_OPTION_BYTES} bytes are taken"
    )]
    Options,
    #[error("signed pushes are not supported, push without `--signed`")]
    Certificate,
}

/// One ref that shall move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RefCommand {
    /// Full name, such as `refs/heads/main`.
    pub(super) reference: String,
    /// What it pointed to; `None` if it is new.
    pub(super) old: Option<String>,
    /// What it shall point to; `None` if it shall go.
    pub(super) new: Option<String>,
}

/// What the client says it understands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ClientCapabilities {
    /// Progress and report may share the answer, in packets with a band.
    pub(super) side_band: bool,
    /// The client wants to know what became of each ref.
    pub(super) report_status: bool,
    /// A section of options follows.
    pub(super) push_options: bool,
}

/// The head of a push, read whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PushHead {
    pub(super) commands: Vec<RefCommand>,
    pub(super) capabilities: ClientCapabilities,
    pub(super) options: Vec<String>,
    /// The pusher's clone lacks history.
    pub(super) shallow: bool,
}

impl PushHead {
    /// Whether a pack must follow: only deletions come without.
    pub(super) fn expects_pack(&self) -> bool {
        self.commands.iter().any(|command| command.new.is_some())
    }
}

/// Reads the head of a push from bytes that arrive in pieces.
#[derive(Debug, Default)]
pub(super) struct HeadReader {
    section: Section,
    head: PushHead,
    consumed: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Section {
    #[default]
    Commands,
    Options,
    Done,
}

impl HeadReader {
    /// Reads on in `buffer`, which holds everything received so far from the first byte of the
    /// body. Returns the head and its length in bytes once it is complete.
    pub(super) fn advance(
        &mut self,
        buffer: &[u8],
    ) -> Result<Option<(PushHead, usize)>, CommandsError> {
        while self.section != Section::Done {
            let Some((packet, length)) = pktline::first(&buffer[self.consumed..])? else {
                return if buffer.len() > MAX_HEAD_BYTES {
                    Err(CommandsError::TooLong)
                } else {
                    Ok(None)
                };
            };
            self.consumed += length;
            if self.consumed > MAX_HEAD_BYTES {
                return Err(CommandsError::TooLong);
            }
            self.step(packet)?;
        }
        Ok(Some((std::mem::take(&mut self.head), self.consumed)))
    }

    fn step(&mut self, packet: Packet<'_>) -> Result<(), CommandsError> {
        match (self.section, packet) {
            (Section::Commands, Packet::Flush) => {
                self.section = if self.head.capabilities.push_options {
                    Section::Options
                } else {
                    Section::Done
                };
                Ok(())
            }
            (Section::Options, Packet::Flush) => {
                self.section = Section::Done;
                Ok(())
            }
            (Section::Commands, Packet::Data(line)) => self.command(line),
            (Section::Options, Packet::Data(line)) => self.option(line),
            (_, Packet::Separator) | (Section::Done, _) => Err(CommandsError::Grammar),
        }
    }

    fn command(&mut self, line: &[u8]) -> Result<(), CommandsError> {
        if line.starts_with(b"shallow ") {
            self.head.shallow = true;
            return Ok(());
        }
        if line.starts_with(b"push-cert") {
            return Err(CommandsError::Certificate);
        }
        let first = self.head.commands.is_empty();
        let (command, capabilities) = match line.iter().position(|&byte| byte == 0) {
            Some(at) if first => (&line[..at], Some(&line[at + 1..])),
            Some(_) => return Err(CommandsError::Grammar),
            None => (line, None),
        };
        if let Some(capabilities) = capabilities {
            self.head.capabilities = parse_capabilities(capabilities);
        }
        if self.head.commands.len() == MAX_COMMANDS {
            return Err(CommandsError::TooMany);
        }
        self.head.commands.push(parse_command(pktline::chomp(command))?);
        Ok(())
    }

    fn option(&mut self, line: &[u8]) -> Result<(), CommandsError> {
        let line = pktline::chomp(line);
        if self.head.options.len() == MAX_OPTIONS || line.len() > MAX_OPTION_BYTES {
            return Err(CommandsError::Options);
        }
        let option = std::str::from_utf8(line).map_err(|_| CommandsError::Options)?;
        if option.chars().any(char::is_control) {
            return Err(CommandsError::Options);
        }
        self.head.options.push(option.to_owned());
        Ok(())
    }
}

/// Reads `<old> <new> <ref>`.
fn parse_command(line: &[u8]) -> Result<RefCommand, CommandsError> {
    let mut parts = line.splitn(3, |&byte| byte == b' ');
    let (Some(old), Some(new), Some(reference)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(CommandsError::Grammar);
    };
    if reference.is_empty() || old.len() != new.len() {
        return Err(CommandsError::Grammar);
    }
    if reference.len() > MAX_REFERENCE_BYTES {
        return Err(CommandsError::Reference);
    }
    let reference = std::str::from_utf8(reference).map_err(|_| CommandsError::Reference)?;
    if reference.chars().any(char::is_control) {
        return Err(CommandsError::Reference);
    }
    Ok(RefCommand {
        reference: reference.to_owned(),
        old: parse_object_id(old)?,
        new: parse_object_id(new)?,
    })
}

/// Reads an object's id; `None` for the one of zeros that stands for "nothing".
fn parse_object_id(text: &[u8]) -> Result<Option<String>, CommandsError> {
    let text = std::str::from_utf8(text).map_err(|_| CommandsError::Grammar)?;
    if !is_object_id(text) {
        return Err(CommandsError::Grammar);
    }
    Ok(text.bytes().any(|byte| byte != b'0').then(|| text.to_owned()))
}

/// Whether `text` is a full object id, of SHA-1 or SHA-256, as git writes it.
pub(super) fn is_object_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64)
        && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn parse_capabilities(text: &[u8]) -> ClientCapabilities {
    let mut capabilities = ClientCapabilities::default();
    for word in pktline::chomp(text).split(|&byte| byte == b' ') {
        match word {
            b"side-band-64k" => capabilities.side_band = true,
            b"report-status" | b"report-status-v2" => capabilities.report_status = true,
            b"push-options" => capabilities.push_options = true,
            _ => {}
        }
    }
    capabilities
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;

    const ZERO: &str = "0000000000000000000000000000000000000000";
    const ONE: &str = "1111111111111111111111111111111111111111";

    fn lines(lines: &[&[u8]]) -> Vec<u8> {
        let mut out = BytesMut::new();
        for line in lines {
            pktline::put(&mut out, line);
        }
        out.extend_from_slice(pktline::FLUSH);
        out.to_vec()
    }

    fn read(bytes: &[u8]) -> Result<Option<(PushHead, usize)>, CommandsError> {
        HeadReader::default().advance(bytes)
    }

    #[test]
    fn a_push_of_two_refs_is_read_up_to_its_pack() {
        let mut bytes = lines(&[
            format!("{ZERO} {ONE} refs/heads/main\0 report-status side-band-64k agent=git/2")
                .as_bytes(),
            format!("{ONE} {ZERO} refs/heads/gone\n").as_bytes(),
        ]);
        let length = bytes.len();
        bytes.extend_from_slice(b"PACK...");
        let (head, consumed) = read(&bytes).unwrap().unwrap();
        assert_eq!(consumed, length);
        assert_eq!(head.commands[0].old, None);
        assert_eq!(head.commands[0].new.as_deref(), Some(ONE));
        assert_eq!(head.commands[1].reference, "refs/heads/gone");
        assert_eq!(head.commands[1].new, None);
        assert!(head.capabilities.side_band && head.capabilities.report_status);
        assert!(head.expects_pack());
    }

    #[test]
    fn push_options_follow_in_a_section_of_their_own() {
        let mut bytes = lines(&[
            b"shallow 1111111111111111111111111111111111111111",
            format!("{ZERO} {ONE} refs/heads/main\0push-options report-status-v2").as_bytes(),
        ]);
        assert_eq!(read(&bytes), Ok(None));
        bytes.extend_from_slice(&lines(&[b"ci.skip\n"]));
        let (head, consumed) = read(&bytes).unwrap().unwrap();
        assert_eq!((head.options, consumed), (vec!["ci.skip".to_owned()], bytes.len()));
        assert!(head.shallow);
    }

    #[test]
    fn heads_that_git_never_sends_are_refused() {
        for (bytes, error) in [
            (lines(&[b"hello"]), CommandsError::Grammar),
            (lines(&[format!("{ZERO} {ONE}").as_bytes()]), CommandsError::Grammar),
            (lines(&[format!("{ZERO} 11 refs/heads/x").as_bytes()]), CommandsError::Grammar),
            (lines(&[format!("{ZERO} {ONE} a\x1bb").as_bytes()]), CommandsError::Reference),
            (lines(&[b"push-cert\0x"]), CommandsError::Certificate),
            (b"0001".to_vec(), CommandsError::Grammar),
            (b"GET ".to_vec(), CommandsError::Packet(PacketError)),
        ] {
            assert_eq!(read(&bytes), Err(error));
        }
    }

    #[test]
    fn a_flood_of_refs_is_stopped() {
        let mut out = BytesMut::new();
        for number in 0..=MAX_COMMANDS {
            pktline::put(&mut out, format!("{ZERO} {ONE} refs/heads/{number}").as_bytes());
        }
        assert_eq!(read(&out), Err(CommandsError::TooMany));
        let mut out = BytesMut::new();
        while out.len() <= MAX_HEAD_BYTES {
            pktline::put(&mut out, format!("shallow {}", "1".repeat(60_000)).as_bytes());
        }
        assert_eq!(read(&out), Err(CommandsError::TooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            drop(read(&bytes));
            drop(read(&lines(&[&bytes])));
        }

        #[test]
        fn pieces_give_the_same_head_as_the_whole(
            names in proptest::collection::vec("[a-z]{1,20}", 1..8),
            cut in 1_usize..50,
        ) {
            let texts: Vec<String> =
                names.iter().map(|name| format!("{ZERO} {ONE} refs/heads/{name}")).collect();
            let bytes = lines(&texts.iter().map(String::as_bytes).collect::<Vec<_>>());
            let mut reader = HeadReader::default();
            let mut found = None;
            for end in (cut..bytes.len()).step_by(cut).chain([bytes.len()]) {
                found = reader.advance(&bytes[..end]).unwrap();
            }
            prop_assert_eq!(found, read(&bytes).unwrap());
        }
    }
}
