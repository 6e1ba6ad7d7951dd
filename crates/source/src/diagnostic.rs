//! A complaint about a place in a text that somebody else wrote: file, line, column, excerpt, hint.
//!
//! What it quotes comes from strangers and ends in terminals and pages, so control characters
//! are replaced and long lines are cut.

use std::fmt;

/// Most characters of a line that an excerpt shows.
const EXCERPT_MAX: usize = 120;

/// Most characters that an error quotes of a value.
const QUOTE_MAX: usize = 200;

/// A place in a text; lines and columns start at 1, the length counts characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1; 0 when the place is not known.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Characters that the marked thing has on its first line.
    pub length: usize,
}

/// What is wrong at one place of a text, with all that a person needs to find and mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file as its owner knows it, relative to the repository.
    pub file: Box<str>,
    /// The place.
    pub position: Position,
    /// What is wrong, one line.
    pub message: Box<str>,
    /// The line at fault, cut and made printable; empty when the place is not known.
    pub excerpt: Box<str>,
    /// Characters that were cut off at the start of the excerpt.
    cut: usize,
    /// What to do about it, when we know.
    pub hint: Option<Box<str>>,
}

impl Diagnostic {
    /// A complaint about `position` in `text`, the content of `file`.
    pub(crate) fn new(
        file: &str,
        text: &str,
        position: Position,
        message: impl Into<String>,
    ) -> Self {
        let line = position.line.checked_sub(1).and_then(|index| text.lines().nth(index));
        let (excerpt, cut) = line.map_or((String::new(), 0), |line| cut_around(line, position));
        Self {
            file: file.into(),
            position,
            message: printable(&message.into()).into(),
            excerpt: excerpt.into(),
            cut,
            hint: None,
        }
    }

    /// The same with advice.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(printable(&hint.into()).into());
        self
    }
}

/// `file:line:column: message`, the line with a caret below it, the hint.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { line, column, length } = self.position;
        if line == 0 {
            write!(f, "{}: {}", self.file, self.message)?;
        } else {
            write!(f, "{}:{line}:{column}: {}", self.file, self.message)?;
        }
        if !self.excerpt.is_empty() {
            let gutter = line.to_string().len();
            let dots = if self.cut > 0 { 2 } else { 0 };
            let before = column.saturating_sub(1).saturating_sub(self.cut) + dots;
            let room = self.excerpt.chars().count().saturating_sub(before).max(1);
            let carets = "^".repeat(length.clamp(1, room));
            write!(f, "\n {line} | {}", self.excerpt)?;
            write!(f, "\n {:gutter$} | {:before$}{carets}", "", "")?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// The part of a line around a position, with the number of characters left out before it.
fn cut_around(line: &str, position: Position) -> (String, usize) {
    let count = line.chars().count();
    if count <= EXCERPT_MAX {
        return (printable(line), 0);
    }
    let cut = position.column.saturating_sub(EXCERPT_MAX / 2).min(count - EXCERPT_MAX / 2);
    let shown: String = line.chars().skip(cut).take(EXCERPT_MAX).collect();
    let start = if cut > 0 { "… " } else { "" };
    let end = if cut + EXCERPT_MAX < count { " …" } else { "" };
    (format!("{start}{}{end}", printable(&shown)), cut)
}

/// The text with every control and direction character replaced, for terminals; one each, so
/// that columns stay right.
pub(crate) fn printable(text: &str) -> String {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if harmful(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// A value for a message: printable, and cut when it is long.
pub(crate) fn quoted(text: &str) -> String {
    let mut shown: String = printable(text).chars().take(QUOTE_MAX).collect();
    if text.chars().nth(QUOTE_MAX).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// The known word that a misspelt one most likely means.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: String = word.chars().take(64).flat_map(char::to_lowercase).collect();
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_shows_file_line_column_caret_and_hint() {
        let text = "functions:\n  a:\n    lang: pyton\n";
        let position = Position { line: 3, column: 11, length: 5 };
        let complaint = Diagnostic::new("stack.yml", text, position, "no template `pyton`")
            .hint("did you mean `python`?");
        assert_eq!(
            complaint.to_string(),
            "stack.yml:3:11: no template `pyton`\n 3 |     lang: pyton\n   |           ^^^^^\nhint: did you mean `python`?"
        );
    }

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let line = format!("{}HERE{}", "a".repeat(500), "b".repeat(500));
        let position = Position { line: 1, column: 501, length: 4 };
        let complaint = Diagnostic::new("f", &line, position, "m").to_string();
        let lines: Vec<&str> = complaint.lines().collect();
        let caret = lines[2].find('^').unwrap();
        let shown: String = lines[1].chars().skip(caret).take(4).collect();
        assert_eq!(shown, "HERE", "{complaint}");
        assert!(lines[1].chars().count() < 140);
    }

    #[test]
    fn escape_sequences_never_reach_the_terminal() {
        let complaint = Diagnostic::new(
            "f",
            "\u{1b}[31mred\u{202e}",
            Position { line: 1, column: 1, length: 3 },
            "\u{1b}]0;title\u{7}",
        );
        assert!(!complaint.to_string().contains(['\u{1b}', '\u{7}', '\u{202e}']));
    }

    #[test]
    fn a_misspelt_word_finds_its_neighbour_and_nonsense_finds_none() {
        let known = ["environment", "environment_file", "handler", "image"];
        assert_eq!(nearest("enviroment", known), Some("environment"));
        assert_eq!(nearest("Handlr", known), Some("handler"));
        assert_eq!(nearest("zzzz", known), None);
    }
}
