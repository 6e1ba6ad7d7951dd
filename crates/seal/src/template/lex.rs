//! A template's text as words.

use std::iter::Peekable;
use std::str::CharIndices;

/// A piece of a template.
#[derive(Debug, PartialEq)]
pub(super) enum Piece<'a> {
    /// Text to be copied.
    Text(&'a str),
    /// What stands between braces, with the line it begins on.
    Action(Vec<Word>, usize),
}

/// A word of an action.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Word {
    /// A name: a function or a keyword.
    Name(String),
    /// `.` alone, or `.a.b`.
    Field(Vec<String>),
    /// `$` or `$name`, and fields of it.
    Variable(String, Vec<String>),
    Text(String),
    Int(i64),
    Float(f64),
    Open,
    /// The end of a bracket, and fields of what it gives.
    Close(Vec<String>),
    Pipe,
    Declare,
    Assign,
    Comma,
}

/// Divides a template into copied text and actions.
pub(super) fn pieces(template: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = template;
    let mut trim_next = false;
    loop {
        let Some(start) = rest.find("{{") else {
            push_text(&mut pieces, rest, trim_next, false);
            return Ok(pieces);
        };
        let (text, action) = (&rest[..start], &rest[start + 2..]);
        let line = template[..template.len() - action.len()].matches('\n').count() + 1;
        let trims = action.starts_with('-') && action[1..].starts_with([' ', '\t', '\n', '\r']);
        push_text(&mut pieces, text, trim_next, trims);
        let action = if trims { &action[1..] } else { action };
        let unclosed = || format!("line {line}: `{{{{` is not closed");
        if let Some(comment) = action.trim_start().strip_prefix("/*") {
            let after = comment.split_once("*/").ok_or_else(unclosed)?.1;
            let end = after.find("}}").ok_or_else(unclosed)?;
            trim_next = match after[..end].trim() {
                "" => false,
                "-" => true,
                _ => return Err(format!("line {line}: a comment must fill its braces")),
            };
            rest = &after[end + 2..];
            continue;
        }
        let (words, used, trims) =
            words(action).map_err(|error| format!("line {line}: {error}"))?;
        trim_next = trims;
        pieces.push(Piece::Action(words, line));
        rest = &action[used..];
    }
}

fn push_text<'a>(pieces: &mut Vec<Piece<'a>>, text: &'a str, trim_start: bool, trim_end: bool) {
    let space = [' ', '\t', '\n', '\r'];
    let text = if trim_start { text.trim_start_matches(space) } else { text };
    let text = if trim_end { text.trim_end_matches(space) } else { text };
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
}

/// The words up to the closing braces, how many bytes that took, and whether space after them goes.
fn words(action: &str) -> Result<(Vec<Word>, usize, bool), String> {
    let mut words = Vec::new();
    let mut chars = action.char_indices().peekable();
    while let Some(&(at, char)) = chars.peek() {
        let rest = &action[at..];
        if rest.starts_with("}}") {
            return Ok((words, at + 2, false));
        }
        if char.is_ascii_whitespace() {
            chars.next();
            if action[at + 1..].starts_with("-}}") {
                return Ok((words, at + 4, true));
            }
            continue;
        }
        let word = match char {
            '(' => one(&mut chars, Word::Open),
            ')' => {
                chars.next();
                Word::Close(fields(&mut chars)?)
            }
            '|' => one(&mut chars, Word::Pipe),
            ',' => one(&mut chars, Word::Comma),
            '=' => one(&mut chars, Word::Assign),
            ':' if rest.starts_with(":=") => {
                chars.next();
                one(&mut chars, Word::Declare)
            }
            '"' => Word::Text(quoted(&mut chars)?),
            '`' => {
                chars.next();
                let text = action[at + 1..].split_once('`').ok_or("a text is not closed")?.0;
                for _ in text.chars().chain(['`']) {
                    chars.next();
                }
                Word::Text(text.to_owned())
            }
            '.' => Word::Field(fields(&mut chars)?),
            '$' => {
                chars.next();
                let name = name(&mut chars);
                Word::Variable(name, fields(&mut chars)?)
            }
            char if char.is_ascii_digit() || matches!(char, '-' | '+') => number(&mut chars)?,
            char if char.is_alphabetic() || char == '_' => {
                let name = name(&mut chars);
                Word::Name(name)
            }
            char => return Err(format!("`{char}` is not understood")),
        };
        words.push(word);
    }
    Err("`{{` is not closed".to_owned())
}

type Chars<'a> = Peekable<CharIndices<'a>>;

fn one(chars: &mut Chars<'_>, word: Word) -> Word {
    chars.next();
    word
}

fn take(chars: &mut Chars<'_>, fits: impl Fn(char) -> bool) -> String {
    let mut text = String::new();
    while let Some((_, char)) = chars.next_if(|(_, char)| fits(*char)) {
        text.push(char);
    }
    text
}

fn name(chars: &mut Chars<'_>) -> String {
    take(chars, |char| char.is_alphanumeric() || char == '_')
}

fn fields(chars: &mut Chars<'_>) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    while chars.next_if(|(_, char)| *char == '.').is_some() {
        let field = name(chars);
        if field.is_empty() {
            if fields.is_empty() {
                return Ok(fields);
            }
            return Err("a field has no name".to_owned());
        }
        fields.push(field);
    }
    Ok(fields)
}

fn number(chars: &mut Chars<'_>) -> Result<Word, String> {
    let text =
        take(chars, |char| char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '+' | '_'));
    let float = || text.parse().ok().filter(|float: &f64| float.is_finite()).map(Word::Float);
    let word = text.parse().map(Word::Int).ok().or_else(float);
    word.ok_or_else(|| format!("the number `{text}` is not understood"))
}

fn quoted(chars: &mut Chars<'_>) -> Result<String, String> {
    chars.next();
    let mut text = String::new();
    loop {
        match chars.next().map(|(_, char)| char) {
            None | Some('\n') => return Err("a text is not closed".to_owned()),
            Some('"') => return Ok(text),
            Some('\\') => {
                let escaped = chars.next().map(|(_, char)| char);
                text.push(match escaped {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some('r') => '\r',
                    Some(same @ ('\\' | '"' | '\'')) => same,
                    Some('u') => {
                        let digits: String =
                            (0..4).filter_map(|_| chars.next()).map(|(_, char)| char).collect();
                        let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                        code.ok_or("an escape in a text is not understood")?
                    }
                    _ => return Err("an escape in a text is not understood".to_owned()),
                });
            }
            Some(char) => text.push(char),
        }
    }
}
