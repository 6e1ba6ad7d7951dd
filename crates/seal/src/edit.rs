//! Changing a file of sealed secrets and leaving alone what is not meant.
//!
//! An item is replaced or added where it stands in the text, so that comments, order and layout
//! stay and a commit shows what changed. The edited text is read again; where it does not say
//! exactly what was meant, which flow style and aliases can bring about, the one document is
//! written anew instead.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Map, Value as Json};
use thiserror::Error;

use crate::document::{Item, ParseError, ParseErrorKind, SealedSecret};
use crate::tree::{self, Chunk, Entry, Node, Value};
use crate::write::{scalar, yaml};
use crate::{Document, Format, Limits, parse_documents};

/// A file of sealed secrets that is being changed.
#[derive(Debug, Clone)]
pub struct SealedFile {
    text: String,
    format: Format,
    limits: Limits,
}

/// A file cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EditError {
    /// It cannot be read. The writer's fault.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The sealed secret is none of the file's.
    #[error("there is no sealed secret `{name}` in the file")]
    Absent {
        /// Which one.
        name: String,
    },
    /// The item is none of the sealed secret's.
    #[error("the sealed secret `{name}` has no item `{key}`")]
    NoItem {
        /// Which sealed secret.
        name: String,
        /// Which item.
        key: String,
    },
    /// It was sealed as a whole; items cannot be added to it.
    #[error("the sealed secret `{name}` has the deprecated `spec.data`; seal it again first")]
    Legacy {
        /// Which one.
        name: String,
    },
}

impl SealedFile {
    /// An empty file.
    pub const fn new(format: Format) -> Self {
        Self { text: String::new(), format, limits: Limits::usual() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The writer's fault.
    pub fn parse(bytes: &[u8], limits: Limits) -> Result<Self, ParseError> {
        parse_documents(bytes, limits)?;
        let (format, _) = tree::parse(bytes, &limits)?;
        let text = String::from_utf8(bytes.to_vec())
            .map_err(|_| ParseError::of_file(ParseErrorKind::NotText))?;
        Ok(Self { text, format, limits })
    }

    /// How the file is written.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The file as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The sealed secrets of the file.
    ///
    /// # Errors
    /// None, for a file that was read before.
    pub fn sealed(&self) -> Result<Vec<SealedSecret>, ParseError> {
        let documents = parse_documents(self.text.as_bytes(), self.limits)?;
        let sealed = documents.into_iter().filter_map(|document| match document {
            Document::Sealed(secret) => Some(*secret),
            Document::Other(_) => None,
        });
        Ok(sealed.collect())
    }

    /// The first sealed secret of that name, in that namespace if the file says one.
    ///
    /// # Errors
    /// None, for a file that was read before.
    pub fn find(
        &self,
        name: &str,
        namespace: Option<&str>,
    ) -> Result<Option<SealedSecret>, ParseError> {
        let fits = |secret: &SealedSecret| {
            let same = match (&secret.namespace, namespace) {
                (Some(known), Some(wanted)) => known == wanted,
                _ => true,
            };
            secret.name == name && same
        };
        Ok(self.sealed()?.into_iter().find(fits))
    }

    /// Adds a sealed secret at the end.
    ///
    /// # Errors
    /// The file becomes too large.
    pub fn append(&mut self, secret: &SealedSecret) -> Result<(), EditError> {
        let mut text = self.text.clone();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&secret.to_text(self.format));
        self.replace(text)
    }

    /// Puts the items, labels, annotations and texts of `new` into the sealed secret that stands
    /// at the place of `old`; what `new` does not have stays.
    ///
    /// # Errors
    /// There is none at that place, or it is of the form before items.
    pub fn merge(&mut self, old: &SealedSecret, new: &SealedSecret) -> Result<(), EditError> {
        if old.legacy.is_some() {
            return Err(EditError::Legacy { name: old.name.clone() });
        }
        self.set_items(old, &new.items)?;
        self.change(old, |object| {
            let template = child(child(object, "spec"), "template");
            let (new, known) = (&new.template, &old.template);
            for (field, new, known) in [
                ("labels", &new.labels, &known.labels),
                ("annotations", &new.annotations, &known.annotations),
            ] {
                let changed = new.iter().filter(|(key, value)| known.get(*key) != Some(value));
                for (key, value) in changed {
                    let metadata = child(template, "metadata");
                    child(metadata, field).insert(key.clone(), value.as_str().into());
                }
            }
            for (key, value) in &new.data {
                if known.data.get(key) != Some(value) {
                    child(template, "data").insert(key.clone(), value.as_str().into());
                }
            }
            if let Some(kind) = &new.kind
                && known.kind.is_none()
            {
                template.insert("type".to_owned(), kind.as_str().into());
            }
        })
    }

    /// Replaces items of the sealed secret at the place of `old`, and adds those it does not have.
    ///
    /// # Errors
    /// There is none at that place.
    pub fn set_items(
        &mut self,
        old: &SealedSecret,
        items: &BTreeMap<String, Item>,
    ) -> Result<(), EditError> {
        for (key, item) in items {
            if let Item::Sealed(value) = item {
                self.set_item(old, key, Some(value))?;
            }
        }
        Ok(())
    }

    /// Removes an item of the sealed secret at the place of `old`.
    ///
    /// # Errors
    /// There is no such item.
    pub fn remove_item(&mut self, old: &SealedSecret, key: &str) -> Result<(), EditError> {
        if !old.items.contains_key(key) {
            let (name, key) = (old.name.clone(), key.to_owned());
            return Err(EditError::NoItem { name, key });
        }
        self.set_item(old, key, None)
    }

    fn set_item(
        &mut self,
        old: &SealedSecret,
        key: &str,
        value: Option<&str>,
    ) -> Result<(), EditError> {
        let (_, chunks) = tree::parse(self.text.as_bytes(), &self.limits)?;
        let change = |object: &mut Map<String, Json>| {
            let data = child(child(object, "spec"), "encryptedData");
            match value {
                None => drop(data.shift_remove(key)),
                Some(value) if data.contains_key(key) => {
                    data.insert(key.to_owned(), value.into());
                }
                Some(value) => {
                    let sorted = data.keys().is_sorted();
                    data.insert(key.to_owned(), value.into());
                    if sorted {
                        data.sort_keys();
                    }
                }
            }
        };
        if let Some(text) = self.in_place(&chunks, old, key, value)
            && self.says(&chunks, old, &change, &text)
        {
            self.text = text;
            return Ok(());
        }
        self.change(old, change)
    }

    /// The text with one item changed where it stands.
    fn in_place(
        &self,
        chunks: &[Chunk],
        old: &SealedSecret,
        key: &str,
        value: Option<&str>,
    ) -> Option<String> {
        let chunk = chunks.iter().find(|chunk| chunk.number == old.place.document)?;
        chunk.span.as_ref()?;
        let data = object(&chunk.root, old.place.item)?.get("spec")?.get("encryptedData")?;
        let Value::Map(entries) = &data.value else { return None };
        let known = entries.iter().find(|entry| entry.key == key);
        let (range, new) = match (known, value) {
            (Some(entry), Some(value)) => (entry.node.span.clone()?, scalar(value)),
            (Some(entry), None) if entries.len() > 1 => (self.lines(entry)?, String::new()),
            (None, Some(value)) => {
                let sorted = entries.is_sorted_by(|left, right| left.key <= right.key);
                let next = entries.iter().find(|entry| sorted && entry.key.as_str() > key);
                let beside = next.or(entries.last())?;
                let lines = self.lines(beside)?;
                let indent = &self.text[lines.start..beside.key_span.as_ref()?.start];
                let at = if next.is_some() { lines.start } else { lines.end };
                let before = if at > 0 && !self.text[..at].ends_with('\n') { "\n" } else { "" };
                (at..at, format!("{before}{indent}{}: {}\n", scalar(key), scalar(value)))
            }
            _ => return None,
        };
        let (before, after) = (self.text.get(..range.start)?, self.text.get(range.end..)?);
        Some([before, &new, after].concat())
    }

    /// The lines of an entry that has them to itself.
    fn lines(&self, entry: &Entry) -> Option<Range<usize>> {
        let (key, value) = (entry.key_span.as_ref()?, entry.node.span.as_ref()?);
        let start = self.text.get(..key.start)?.rfind('\n').map_or(0, |at| at + 1);
        if !self.text[start..key.start].bytes().all(|byte| byte == b' ') {
            return None;
        }
        let rest = self.text.get(value.end..)?;
        let end = rest.find('\n').map_or(self.text.len(), |at| value.end + at + 1);
        Some(start..end)
    }

    /// Whether a text says what the file said, with one object changed.
    fn says(
        &self,
        chunks: &[Chunk],
        old: &SealedSecret,
        change: &impl Fn(&mut Map<String, Json>),
        text: &str,
    ) -> bool {
        let Ok((_, new)) = tree::parse(text.as_bytes(), &self.limits) else { return false };
        new.len() == chunks.len()
            && chunks.iter().zip(&new).all(|(chunk, new)| {
                let mut expected = chunk.root.to_json();
                if chunk.number == old.place.document
                    && let Some(Json::Object(object)) = object_json(&mut expected, old.place.item)
                {
                    change(object);
                }
                new.root.to_json() == expected
            })
    }

    /// Changes one object and writes its document anew, if it is not as it was.
    fn change(
        &mut self,
        old: &SealedSecret,
        change: impl FnOnce(&mut Map<String, Json>),
    ) -> Result<(), EditError> {
        let absent = || EditError::Absent { name: old.name.clone() };
        let (_, chunks) = tree::parse(self.text.as_bytes(), &self.limits)?;
        let at = chunks.iter().position(|chunk| chunk.number == old.place.document);
        let at = at.ok_or_else(absent)?;
        let before = chunks[at].root.to_json();
        let mut after = before.clone();
        let Some(Json::Object(found)) = object_json(&mut after, old.place.item) else {
            return Err(absent());
        };
        change(found);
        if before == after {
            return Ok(());
        }
        let text = if let Some(span) = &chunks[at].span {
            let marked = self.text[span.clone()].starts_with("---");
            let marked = if marked { "---\n" } else { "" };
            let (start, end) = (&self.text[..span.start], &self.text[span.end..]);
            [start, marked, &yaml(&after), end].concat()
        } else {
            let mut documents: Vec<Json> =
                chunks.iter().map(|chunk| chunk.root.to_json()).collect();
            documents[at] = after;
            documents.iter().map(|document| Format::Json.write(document)).collect()
        };
        self.replace(text)
    }

    fn replace(&mut self, text: String) -> Result<(), EditError> {
        parse_documents(text.as_bytes(), self.limits)?;
        self.text = text;
        Ok(())
    }
}

/// The object at a place of a document.
fn object(root: &Node, item: Option<usize>) -> Option<&Node> {
    let Some(item) = item else { return Some(root) };
    let Value::List(items) = &root.get("items")?.value else { return None };
    items.get(item.checked_sub(1)?)
}

fn object_json(root: &mut Json, item: Option<usize>) -> Option<&mut Json> {
    match item {
        None => Some(root),
        Some(item) => root.get_mut("items")?.get_mut(item.checked_sub(1)?),
    }
}

/// The map under a key, made where it is missing.
fn child<'a>(map: &'a mut Map<String, Json>, key: &str) -> &'a mut Map<String, Json> {
    let value = map.entry(key).or_insert_with(|| Json::Object(Map::new()));
    if !value.is_object() {
        *value = Json::Object(Map::new());
    }
    match value {
        Json::Object(map) => map,
        _ => unreachable!("it was made a map just now"),
    }
}

#[cfg(test)]
mod tests;
