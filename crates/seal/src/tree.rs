//! YAML and JSON as one tree of texts with their places, read under a tight budget.
//!
//! Nothing here knows what the documents mean. Texts are wiped when dropped, because a file of
//! plain secrets is read the same way as one of sealed ones.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;
use serde_saphyr::{Location, Spanned};
use zeroize::Zeroizing;

use crate::document::{ParseError, ParseErrorKind, Place};
use crate::{Limits, locate};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// YAML, documents divided by `---`.
    Yaml,
    /// JSON, documents one after the other.
    Json,
}

/// One document of a file.
pub(crate) struct Chunk {
    /// Counted from 1, empty ones left out.
    pub(crate) number: usize,
    /// The bytes of the file that it was read from; `None` for JSON.
    pub(crate) span: Option<Range<usize>>,
    pub(crate) root: Node,
}

/// A document, or why it cannot be read.
pub(crate) type Read = Result<Chunk, ParseError>;

/// A value with its place.
#[derive(Clone)]
pub(crate) struct Node {
    /// Line of the file, counted from 1; 0 where it is not known.
    pub(crate) line: usize,
    /// Bytes of the file that it was read from, where they are known.
    pub(crate) span: Option<Range<usize>>,
    pub(crate) value: Value,
}

#[derive(Clone)]
pub(crate) enum Value {
    Null,
    Text(Zeroizing<String>),
    /// A number or a truth value.
    Other(Json),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value, in the order written. Keys are unique.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Option<Range<usize>>,
    pub(crate) node: Node,
}

impl Node {
    /// The value of a key, if this is a map that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) const fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// The same without places.
    pub(crate) fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Text(text) => Json::String(text.to_string()),
            Value::Other(value) => value.clone(),
            Value::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(entries) => Json::Object(
                entries.iter().map(|entry| (entry.key.clone(), entry.node.to_json())).collect(),
            ),
        }
    }
}

impl Value {
    /// The kind of value in words, for messages.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "a text",
            Self::Other(Json::Bool(_)) => "a truth value",
            Self::Other(_) => "a number",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// Reads every document of a file.
pub(crate) fn parse(bytes: &[u8], limits: &Limits) -> Result<(Format, Vec<Chunk>), ParseError> {
    let (format, chunks) = read(bytes, limits)?;
    Ok((format, chunks.into_iter().collect::<Result<_, _>>()?))
}

/// Reads every document of a file, whatever is wrong with the others.
pub(crate) fn read(bytes: &[u8], limits: &Limits) -> Result<(Format, Vec<Read>), ParseError> {
    if bytes.len() > limits.file_bytes {
        let (size, limit) = (bytes.len(), limits.file_bytes);
        return Err(somewhere(bytes, ParseErrorKind::FileTooLarge { size, limit }));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| no_text(bytes, error.valid_up_to()))?;
    let start = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let (format, chunks) = if text[start..].trim_start().starts_with(['{', '[']) {
        match parse_json(&text[start..]) {
            Ok(chunks) => (Format::Json, chunks.into_iter().map(Ok).collect()),
            // Flow style begins like JSON.
            Err(complaint) => match parse_yaml(text, start, limits) {
                Ok(chunks) if chunks.iter().all(Result::is_ok) => (Format::Yaml, chunks),
                _ => return Err(complaint),
            },
        }
    } else {
        (Format::Yaml, parse_yaml(text, start, limits)?)
    };
    if chunks.len() > limits.documents {
        return Err(ParseError::of_file(ParseErrorKind::TooManyDocuments {
            limit: limits.documents,
        }));
    }
    Ok((format, chunks))
}

/// What is wrong with a file as a whole, with the item that is most likely the cause.
fn somewhere(bytes: &[u8], kind: ParseErrorKind) -> ParseError {
    let found = std::str::from_utf8(bytes).ok().and_then(locate::longest);
    match found {
        Some((place, key)) => ParseError { place: Some(place), key, kind },
        None => ParseError::of_file(kind),
    }
}

/// Tells in which document and item the first byte stands that is no text.
fn no_text(bytes: &[u8], valid: usize) -> ParseError {
    let kind = ParseErrorKind::NotText;
    let Ok(before) = std::str::from_utf8(&bytes[..valid]) else { return ParseError::of_file(kind) };
    // A file of another encoding is no text from its beginning.
    if before.trim().is_empty() {
        return ParseError::of_file(kind);
    }
    let parts = divide(before, 0);
    let document = parts.iter().filter(|part| !is_empty(&before[(*part).clone()])).count().max(1);
    let part = parts.last().map_or(before, |part| &before[part.clone()]);
    let key = locate::item_at(part, usize::MAX);
    let line = before.matches('\n').count() + 1;
    ParseError { place: Some(Place { document, item: None, line }), key, kind }
}

fn parse_json(text: &str) -> Result<Vec<Chunk>, ParseError> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Plain>();
    loop {
        let number = chunks.len() + 1;
        let place = |line| Place { document: number, item: None, line };
        match stream.next() {
            None => return Ok(chunks),
            Some(Ok(Plain(raw))) => {
                let root = plain_node(raw, place(0))?;
                chunks.push(Chunk { number, span: None, root });
            }
            Some(Err(error)) => {
                let words = error.to_string();
                let words = words.rfind(" at line ").map_or(&*words, |at| &words[..at]).to_owned();
                let key = if error.is_eof() { locate::item_at_end(text) } else { None };
                let kind = ParseErrorKind::Syntax { format: "JSON", words };
                return Err(ParseError { place: Some(place(error.line())), key, kind });
            }
        }
    }
}

/// The parts of a YAML text between lines of `---` or `...`.
fn divide(text: &str, start: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let (mut begin, mut at) = (start, start);
    for line in text[start..].split_inclusive('\n') {
        let marker = |marker: &str| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        if marker("---") {
            parts.push(begin..at);
            begin = at;
        } else if marker("...") {
            parts.push(begin..at);
            begin = at + line.len();
        }
        at += line.len();
    }
    parts.push(begin..at);
    parts
}

fn is_empty(part: &str) -> bool {
    part.lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim_start();
        line.is_empty() || line.starts_with(['#', '%'])
    })
}

fn parse_yaml(text: &str, start: usize, limits: &Limits) -> Result<Vec<Read>, ParseError> {
    let mut chunks: Vec<Read> = Vec::new();
    for part in divide(text, start) {
        let written = &text[part.clone()];
        if is_empty(written) {
            continue;
        }
        let number = chunks.len() + 1;
        if number > limits.documents {
            let limit = limits.documents;
            return Err(ParseError::of_file(ParseErrorKind::TooManyDocuments { limit }));
        }
        let lines = text[..part.start].matches('\n').count();
        let origin = Origin { number, offset: part.start, lines, text: written };
        let root = origin.parse(limits);
        chunks.push(root.map(|root| Chunk { number, span: Some(part), root }));
    }
    Ok(chunks)
}

/// Where a document begins in its file.
struct Origin<'a> {
    number: usize,
    offset: usize,
    lines: usize,
    text: &'a str,
}

impl Origin<'_> {
    fn parse(&self, limits: &Limits) -> Result<Node, ParseError> {
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_events: 200_000,
                max_nodes: 100_000,
                max_depth: 24,
                flow_nesting_limit: 24,
                max_aliases: 1_000,
                max_anchors: 200,
                max_documents: 1,
                max_merge_keys: 200,
                max_recorded_anchor_events: 50_000,
                max_recorded_anchor_bytes: 4 << 20,
                max_total_scalar_bytes: limits.file_bytes,
            },
            alias_limits: serde_saphyr::alias_limits! {
                max_total_replayed_events: 20_000,
                max_replay_stack_depth: 8,
            },
            non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::AsString,
            strict_booleans: true,
            with_snippet: false,
        };
        let raw: Spanned<Placed> = serde_saphyr::from_str_with_options(self.text, options)
            .map_err(|error| self.complaint(&error))?;
        self.node(raw)
    }

    fn place(&self, line: usize) -> Place {
        let line = if line == 0 { 0 } else { line + self.lines };
        Place { document: self.number, item: None, line }
    }

    fn complaint(&self, error: &serde_saphyr::Error) -> ParseError {
        let error = error.without_snippet();
        let line = error.location().map_or(0, |location| number(location.line()));
        let key = locate::item_at(self.text, line);
        // The library's words about this are for who calls it.
        let kind = if let serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } = error {
            ParseErrorKind::Twice { key: key.clone() }
        } else {
            let words = error.to_string();
            let words = words.lines().next().unwrap_or_default();
            let words = words.rfind(" at line ").map_or(words, |at| &words[..at]);
            ParseErrorKind::Syntax { format: "YAML", words: words.to_owned() }
        };
        ParseError { place: Some(self.place(line)), key, kind }
    }

    fn node(&self, raw: Spanned<Placed>) -> Result<Node, ParseError> {
        let place = self.place(number(raw.defined.line()));
        // What came by an alias or a merge key stands elsewhere and cannot be edited in place.
        let span = if raw.defined == raw.referenced { self.span(raw.defined) } else { None };
        let value = match raw.value.0 {
            Raw::Null => Value::Null,
            Raw::Text(text) => Value::Text(text),
            Raw::Other(value) => Value::Other(value),
            Raw::List(items) => Value::List(
                items.into_iter().map(|item| self.node(item)).collect::<Result<_, _>>()?,
            ),
            Raw::Map(entries) => {
                let mut map = Vec::with_capacity(entries.len());
                let mut seen = BTreeSet::new();
                for (key, value) in entries {
                    let key = self.node(key)?;
                    let place = self.place(key.line.saturating_sub(self.lines));
                    let text = key_text(&key, place)?;
                    if !seen.insert(text.clone()) {
                        return Err(ParseError::at(place, ParseErrorKind::Twice { key: text }));
                    }
                    map.push(Entry { key: text, key_span: key.span, node: self.node(value)? });
                }
                Value::Map(map)
            }
        };
        Ok(Node { line: place.line, span, value })
    }

    fn span(&self, location: Location) -> Option<Range<usize>> {
        let start = usize::try_from(location.span().byte_offset()?).ok()?;
        let length = usize::try_from(location.span().byte_len()?).ok()?;
        let end = start.checked_add(length)?;
        self.text.get(start..end)?;
        Some(self.offset + start..self.offset + end)
    }
}

fn number(value: u64) -> usize {
    usize::try_from(value).unwrap_or(0)
}

/// A key as text: YAML reads `8080:` and `true:` as something else.
fn key_text(key: &Node, place: Place) -> Result<String, ParseError> {
    match &key.value {
        Value::Text(text) => Ok(text.to_string()),
        Value::Other(value) => Ok(value.to_string()),
        other => Err(ParseError::at(place, ParseErrorKind::KeyIsNoText { found: other.kind() })),
    }
}

fn plain_node(raw: Raw<Plain>, place: Place) -> Result<Node, ParseError> {
    let value = match raw {
        Raw::Null => Value::Null,
        Raw::Text(text) => Value::Text(text),
        Raw::Other(value) => Value::Other(value),
        Raw::List(items) => Value::List(
            items
                .into_iter()
                .map(|Plain(item)| plain_node(item, place))
                .collect::<Result<_, _>>()?,
        ),
        Raw::Map(entries) => {
            let mut map = Vec::with_capacity(entries.len());
            let mut seen = BTreeSet::new();
            for (Plain(key), Plain(value)) in entries {
                let key = key_text(&plain_node(key, place)?, place)?;
                if !seen.insert(key.clone()) {
                    return Err(ParseError::at(place, ParseErrorKind::Twice { key }));
                }
                map.push(Entry { key, key_span: None, node: plain_node(value, place)? });
            }
            Value::Map(map)
        }
    };
    Ok(Node { line: 0, span: None, value })
}

/// A value as a parser gives it; `N` is what is inside.
enum Raw<N> {
    Null,
    Text(Zeroizing<String>),
    Other(Json),
    List(Vec<N>),
    Map(Vec<(N, N)>),
}

/// With the places of everything inside, which only the YAML parser knows.
struct Placed(Raw<Spanned<Placed>>);

/// Without places.
struct Plain(Raw<Plain>);

impl<'de> Deserialize<'de> for Placed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor(PhantomData)).map(Self)
    }
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor(PhantomData)).map(Self)
    }
}

struct RawVisitor<N>(PhantomData<N>);

impl<'de, N: Deserialize<'de>> Visitor<'de> for RawVisitor<N> {
    type Value = Raw<N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw<N>, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw<N>, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw<N>, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw<N>, E> {
        Ok(Raw::Other(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw<N>, E> {
        Ok(Raw::Other(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw<N>, E> {
        Ok(Raw::Other(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw<N>, E> {
        Ok(Raw::Other(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw<N>, E> {
        Ok(Raw::Text(Zeroizing::new(value.to_string())))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw<N>, E> {
        Ok(Raw::Text(Zeroizing::new(value.to_string())))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw<N>, E> {
        Ok(Raw::Text(Zeroizing::new(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw<N>, E> {
        Ok(Raw::Text(Zeroizing::new(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw<N>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw<N>, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}
