//! YAML as a tree of texts with their places, read under a tight budget.
//!
//! OpenFaaS files put numbers, booleans and nothing where a text is meant (`port: 8080`,
//! `debug: yes`, `empty: ~`), and only the field decides what a scalar means. So every scalar is
//! kept as it was spelt, and the caller interprets it. Nothing here knows a schema.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use crate::diagnostic::{Diagnostic, Position};

/// Longest YAML text accepted, in bytes.
pub(crate) const TEXT_MAX: usize = 1 << 20;

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) position: Position,
    pub(crate) value: Value,
}

/// What a value is; scalars are as spelt, whatever YAML would resolve them to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value, in the order written. Keys are unique.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_position: Position,
    pub(crate) node: Node,
}

impl Value {
    /// The kind of value in words, for messages.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// Reads one YAML document. An empty text is `Null`.
///
/// # Errors
/// The writer's fault: not YAML, a key twice, too large, too deep, aliases that multiply.
pub(crate) fn parse(file: &str, text: &str) -> Result<Node, Diagnostic> {
    if text.len() > TEXT_MAX {
        let message = format!("the file has {} bytes, {TEXT_MAX} are allowed", text.len());
        return Err(Diagnostic::new(file, text, Position::default(), message));
    }
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Node { position: Position::default(), value: Value::Null });
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 100_000,
            max_nodes: 50_000,
            max_depth: 24,
            flow_nesting_limit: 24,
            max_aliases: 1_000,
            max_anchors: 200,
            max_documents: 1,
            max_merge_keys: 200,
            max_recorded_anchor_events: 50_000,
            max_recorded_anchor_bytes: 4 << 20,
            max_total_scalar_bytes: 4 << 20,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 20_000,
            max_replay_stack_depth: 8,
        },
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::AsString,
        strict_booleans: true,
        with_snippet: false,
    };
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| complaint(file, text, &error))?;
    to_node(raw, file, text)
}

/// The parser's error as ours: its words without its own idea of the place.
fn complaint(file: &str, text: &str, error: &serde_saphyr::Error) -> Diagnostic {
    let error = error.without_snippet();
    let position = error.location().map_or_else(Position::default, position_of);
    let words = error.to_string();
    let words = words.lines().next().unwrap_or_default();
    let words = match words.rfind(" at line ") {
        Some(at) if position.line > 0 => &words[..at],
        _ => words,
    };
    let diagnostic = Diagnostic::new(file, text, position, format!("not valid YAML: {words}"));
    let line = text.lines().nth(position.line.saturating_sub(1)).unwrap_or_default();
    if line.starts_with('\t') || line.trim_start_matches(' ').starts_with('\t') {
        return diagnostic.hint("YAML is indented with spaces, this line begins with a tab");
    }
    if words.contains("duplicate") {
        return diagnostic.hint("remove one of the two; a later one would silently win elsewhere");
    }
    diagnostic
}

fn position_of(location: Location) -> Position {
    let number = |value: u64| usize::try_from(value).unwrap_or(0);
    Position {
        line: number(location.line()),
        column: number(location.column()),
        length: number(location.span().len()),
    }
}

/// A value as the parser gives it: scalars that it resolved are known by their place only.
enum Raw {
    Null,
    Text(String),
    Resolved(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Resolved(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Resolved(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Resolved(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Resolved(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Resolved(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Resolved(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

fn to_node(raw: Spanned<Raw>, file: &str, text: &str) -> Result<Node, Diagnostic> {
    let position = position_of(raw.defined);
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(spelt) => Value::Scalar(spelt),
        Raw::Resolved(resolved) => Value::Scalar(spelling(raw.defined, text).unwrap_or(resolved)),
        Raw::List(items) => Value::List(
            items.into_iter().map(|item| to_node(item, file, text)).collect::<Result<_, _>>()?,
        ),
        Raw::Map(entries) => {
            let mut map: Vec<Entry> = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                let key = to_node(key, file, text)?;
                let key_position = key.position;
                let Value::Scalar(key) = key.value else {
                    let message = format!("a key must be a text, this is {}", key.value.kind());
                    return Err(Diagnostic::new(file, text, key_position, message));
                };
                map.push(Entry { key, key_position, node: to_node(value, file, text)? });
            }
            Value::Map(map)
        }
    };
    Ok(Node { position, value })
}

/// The characters of the text that a plain scalar was read from: `1.10` stays `1.10`.
fn spelling(location: Location, text: &str) -> Option<String> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let length = usize::try_from(location.span().byte_len()?).ok()?;
    let spelt = text.get(start..start.checked_add(length)?)?.trim();
    let plain = !spelt.is_empty() && !spelt.starts_with(['"', '\'', '!', '&', '*', '|', '>']);
    plain.then(|| spelt.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scalars(text: &str) -> Vec<(String, String)> {
        let Value::Map(entries) = parse("f.yml", text).unwrap().value else { panic!("no map") };
        entries
            .into_iter()
            .map(|entry| match entry.node.value {
                Value::Scalar(value) => (entry.key, value),
                other => (entry.key, format!("<{}>", other.kind())),
            })
            .collect()
    }

    fn check(text: &str, expected: &str) {
        assert_eq!(scalars(text)[0].1, expected, "{text}");
    }

    #[test]
    fn scalars_keep_their_spelling() {
        check("a: 1.10", "1.10");
        check("a: 0x10 # comment", "0x10");
        check("a: 007", "007");
        check("a: 1_000", "1_000");
        check("a: 1e3", "1e3");
        check("a: true", "true");
        check("a: Yes", "Yes");
        check("a: .inf", ".inf");
        check("a: \"12\"", "12");
        check("a: '~'", "~");
        check("a: ~", "<nothing>");
        check("a:", "<nothing>");
        check("a: null", "<nothing>");
        check("a: 12:30", "12:30");
        check("a: ${X:-y}", "${X:-y}");
        check(
            "a: 123456789012345678901234567890123456789012345678901234567890",
            "123456789012345678901234567890123456789012345678901234567890",
        );
        check("ä: 1.10", "1.10");
        check("a: |\n  x\n  y\n", "x\ny\n");
        assert_eq!(scalars("8080: x")[0].0, "8080");
        assert_eq!(scalars("on: x\ntrue: y")[1].0, "true");
    }

    #[test]
    fn aliases_and_merge_keys_are_followed() {
        let text = "base: &b {x: 1.0}\nuse:\n  <<: *b\n  y: 2\nsame: *b\n";
        let Value::Map(entries) = parse("f", text).unwrap().value else { panic!("no map") };
        let Value::Map(used) = &entries[1].node.value else { panic!("no map") };
        assert_eq!(used.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["y", "x"]);
        let Value::Map(same) = &entries[2].node.value else { panic!("no map") };
        assert_eq!(same[0].node.value, Value::Scalar("1.0".into()));
    }

    #[test]
    fn errors_name_the_place() {
        let complaint = |text: &str| parse("stack.yml", text).unwrap_err();
        let twice = complaint("a: 1\nb: 2\na: 3\n");
        assert_eq!((twice.position.line, twice.position.column), (3, 1), "{twice}");
        let open = complaint("a: [1, 2\nb: 3\n");
        assert!(open.position.line > 0, "{open}");
        let tab = complaint("a:\n\tb: 1\n");
        assert!(tab.to_string().contains("tab"), "{tab}");
        let second = complaint("a: 1\n---\nb: 2\n");
        assert!(second.message.contains("YAML"), "{second}");
    }

    #[test]
    fn bombs_are_refused_quickly() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..9 {
            let below = format!("*a{},", level - 1).repeat(10);
            let line = [format!("a{level}: &a{level} ["), below, "x]\n".to_owned()].concat();
            bomb.push_str(&line);
        }
        let started = std::time::Instant::now();
        assert!(parse("f", &bomb).is_err());
        assert!(parse("f", &"[".repeat(100_000)).is_err());
        assert!(parse("f", &"- ".repeat(100_000)).is_err());
        assert!(parse("f", &format!("a: {}", "x".repeat(TEXT_MAX))).is_err());
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
    }

    #[test]
    fn an_empty_file_is_nothing() {
        assert_eq!(parse("f", "").unwrap().value, Value::Null);
        assert_eq!(parse("f", "# only a comment\n").unwrap().value, Value::Null);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(?s).{0,200}") {
            drop(parse("f", &text));
        }

        #[test]
        fn no_yaml_like_text_makes_the_parser_panic(text in "([ \\n\\t:\\-\\[\\]{}&*!|>'\"#,%@`a-z0-9~<?]{0,80})") {
            drop(parse("f", &text));
        }
    }
}
