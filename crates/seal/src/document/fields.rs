//! The fields of one document, checked one by one, so that a message names the one at fault.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::{
    Item, ItemFault, LegacyData, ParseError, ParseErrorKind, Place, PlainSecret, SealedSecret,
    Template,
};
use crate::scope::is_plain_name;
use crate::tree::{Node, Value};
use crate::{Limits, Scope, SecretBytes};

/// Reads a `SealedSecret`, nothing opened.
pub(crate) fn sealed_secret(
    place: Place,
    node: &Node,
    limits: &Limits,
) -> Result<SealedSecret, ParseError> {
    let fields = Fields { place };
    let metadata = fields.required(node, "metadata", "metadata")?;
    let name = fields.name(metadata, "name", "metadata.name")?;
    let name = name.ok_or_else(|| fields.missing("metadata.name"))?;
    let annotations = fields.texts(metadata, "annotations", "metadata.annotations")?;
    let spec = fields.required(node, "spec", "spec")?;
    let items = match spec.get("encryptedData") {
        None => BTreeMap::new(),
        Some(data) => fields.items(data, limits)?,
    };
    let legacy = fields.text(spec, "data", "spec.data")?.filter(|data| !data.is_empty());
    if legacy.is_some() && !items.is_empty() {
        return Err(ParseError::at(place, ParseErrorKind::BothForms));
    }
    if legacy.as_ref().is_some_and(|data| data.len() > limits.secret_bytes / 3 * 4) {
        let limit = limits.secret_bytes;
        let key = Some("data".to_owned());
        let kind = ParseErrorKind::SecretTooLarge { limit };
        return Err(ParseError { place: Some(place), key, kind });
    }
    let template = match spec.get("template") {
        Some(template) if !template.is_null() => fields.template(template, limits)?,
        _ => Template::default(),
    };
    Ok(SealedSecret {
        place,
        name,
        namespace: fields.name(metadata, "namespace", "metadata.namespace")?,
        scope: Scope::of_annotations(|key| annotations.get(key).map(String::as_str)),
        labels: fields.texts(metadata, "labels", "metadata.labels")?,
        annotations,
        items,
        legacy: legacy.map(LegacyData),
        template,
    })
}

/// Reads a plain `Secret`.
pub(super) fn plain_secret(
    place: Place,
    node: &Node,
    limits: &Limits,
) -> Result<PlainSecret, ParseError> {
    let fields = Fields { place };
    let nothing = Node { line: 0, span: None, value: Value::Null };
    let metadata = node.get("metadata").unwrap_or(&nothing);
    let mut items = BTreeMap::new();
    let mut total = 0;
    for (field, encoded) in [("data", true), ("stringData", false)] {
        for (key, text) in fields.texts(node, field, field)? {
            let text = Zeroizing::new(text);
            if !is_plain_name(&key) {
                let found = key.clone();
                let kind = ParseErrorKind::Name { field, found };
                return Err(ParseError { place: Some(place), key: Some(key), kind });
            }
            let value = if encoded {
                let decoded = STANDARD.decode(text.replace(['\n', '\r'], ""));
                decoded.map_err(|_| {
                    let kind = ParseErrorKind::PlainBase64 { key: key.clone() };
                    ParseError { place: Some(place), key: Some(key.clone()), kind }
                })?
            } else {
                text.as_bytes().to_vec()
            };
            total += value.len();
            items.insert(key, SecretBytes::new(value));
        }
    }
    if items.len() > limits.items {
        let (found, limit) = (items.len(), limits.items);
        return Err(ParseError::at(place, ParseErrorKind::TooManyItems { found, limit }));
    }
    if total > limits.secret_bytes {
        let limit = limits.secret_bytes;
        let key = items.iter().max_by_key(|(_, value)| value.len()).map(|(key, _)| key.clone());
        let kind = ParseErrorKind::SecretTooLarge { limit };
        return Err(ParseError { place: Some(place), key, kind });
    }
    let annotations = fields.texts(metadata, "annotations", "metadata.annotations")?;
    Ok(PlainSecret {
        place,
        name: fields.name(metadata, "name", "metadata.name")?,
        namespace: fields.name(metadata, "namespace", "metadata.namespace")?,
        template: Template {
            kind: fields.text(node, "type", "type")?,
            immutable: fields.truth(node, "immutable", "immutable")?,
            labels: fields.texts(metadata, "labels", "metadata.labels")?,
            annotations,
            finalizers: fields.list(metadata, "finalizers", "metadata.finalizers")?,
            data: BTreeMap::new(),
        },
        created: fields.text(metadata, "creationTimestamp", "metadata.creationTimestamp")?,
        items,
    })
}

/// Reads the fields of one document, and says where it stands when one is wrong.
struct Fields {
    place: Place,
}

impl Fields {
    fn missing(&self, field: &'static str) -> ParseError {
        ParseError::at(self.place, ParseErrorKind::Missing { field })
    }

    fn wrong(&self, field: &str, expected: &'static str, node: &Node) -> ParseError {
        let place =
            if node.line > 0 { Place { line: node.line, ..self.place } } else { self.place };
        let (field, found) = (field.to_owned(), node.value.kind());
        ParseError::at(place, ParseErrorKind::WrongType { field, expected, found })
    }

    fn required<'a>(
        &self,
        node: &'a Node,
        key: &str,
        field: &'static str,
    ) -> Result<&'a Node, ParseError> {
        match node.get(key) {
            None => Err(self.missing(field)),
            Some(found) if found.is_null() => Err(self.missing(field)),
            Some(found) => match found.value {
                Value::Map(_) => Ok(found),
                _ => Err(self.wrong(field, "a map", found)),
            },
        }
    }

    fn text(&self, node: &Node, key: &str, field: &str) -> Result<Option<String>, ParseError> {
        match node.get(key) {
            None => Ok(None),
            Some(found) if found.is_null() => Ok(None),
            Some(found) => match found.text() {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(self.wrong(field, "a text", found)),
            },
        }
    }

    fn truth(&self, node: &Node, key: &str, field: &str) -> Result<Option<bool>, ParseError> {
        match node.get(key).map(|found| (found, &found.value)) {
            None | Some((_, Value::Null)) => Ok(None),
            Some((_, Value::Other(serde_json::Value::Bool(truth)))) => Ok(Some(*truth)),
            Some((found, _)) => Err(self.wrong(field, "`true` or `false`", found)),
        }
    }

    fn name(
        &self,
        node: &Node,
        key: &str,
        field: &'static str,
    ) -> Result<Option<String>, ParseError> {
        match self.text(node, key, field)?.filter(|text| !text.is_empty()) {
            Some(text) if !is_plain_name(&text) => {
                let found = text.chars().take(80).collect();
                Err(ParseError::at(self.place, ParseErrorKind::Name { field, found }))
            }
            text => Ok(text),
        }
    }

    fn list(&self, node: &Node, key: &str, field: &str) -> Result<Vec<String>, ParseError> {
        let Some(found) = node.get(key).filter(|found| !found.is_null()) else {
            return Ok(Vec::new());
        };
        let Value::List(items) = &found.value else {
            return Err(self.wrong(field, "a list of texts", found));
        };
        let text = |item: &Node| {
            item.text().map(str::to_owned).ok_or_else(|| self.wrong(field, "a list of texts", item))
        };
        items.iter().map(text).collect()
    }

    /// A map of texts. A truth value or number is refused: `"true"` and `true` are not the same,
    /// and an annotation that widens a scope must not come about by accident.
    fn texts(
        &self,
        node: &Node,
        key: &str,
        field: &str,
    ) -> Result<BTreeMap<String, String>, ParseError> {
        let Some(found) = node.get(key).filter(|found| !found.is_null()) else {
            return Ok(BTreeMap::new());
        };
        let Value::Map(entries) = &found.value else {
            return Err(self.wrong(field, "a map of texts", found));
        };
        let mut texts = BTreeMap::new();
        for entry in entries {
            let text = match &entry.node.value {
                Value::Text(text) => text.to_string(),
                Value::Null => String::new(),
                _ => {
                    let field = format!("{field}.{}", entry.key);
                    return Err(self.wrong(&field, "a text (put it in quotes)", &entry.node));
                }
            };
            texts.insert(entry.key.clone(), text);
        }
        Ok(texts)
    }

    fn items(&self, data: &Node, limits: &Limits) -> Result<BTreeMap<String, Item>, ParseError> {
        let entries = match &data.value {
            Value::Map(entries) => entries,
            Value::Null => return Ok(BTreeMap::new()),
            _ => return Err(self.wrong("spec.encryptedData", "a map", data)),
        };
        if entries.len() > limits.items {
            let (found, limit) = (entries.len(), limits.items);
            let kind = ParseErrorKind::TooManyItems { found, limit };
            return Err(ParseError::at(self.place, kind));
        }
        let mut total = 0;
        let mut items = BTreeMap::new();
        for entry in entries {
            let item = match &entry.node.value {
                _ if !is_plain_name(&entry.key) => Item::Faulty(ItemFault::Key),
                Value::Text(text) if text.len() / 4 * 3 > limits.value_bytes + 3 => {
                    Item::Faulty(ItemFault::TooLarge { limit: limits.value_bytes })
                }
                Value::Text(text) => {
                    total += text.len() / 4 * 3;
                    Item::Sealed(text.to_string())
                }
                other => Item::Faulty(ItemFault::NotText { found: other.kind() }),
            };
            items.insert(entry.key.clone(), item);
        }
        if total > limits.secret_bytes {
            let limit = limits.secret_bytes;
            let size = |(_, item): &(&String, &Item)| match item {
                Item::Sealed(text) => text.len(),
                Item::Faulty(_) => 0,
            };
            let key = items.iter().max_by_key(size).map(|(key, _)| key.clone());
            let kind = ParseErrorKind::SecretTooLarge { limit };
            return Err(ParseError { place: Some(self.place), key, kind });
        }
        Ok(items)
    }

    fn template(&self, template: &Node, limits: &Limits) -> Result<Template, ParseError> {
        let nothing = Node { line: 0, span: None, value: Value::Null };
        let metadata = template.get("metadata").unwrap_or(&nothing);
        let prefix = "spec.template.metadata";
        let data = self.texts(template, "data", "spec.template.data")?;
        if data.len() > limits.items {
            let (found, limit) = (data.len(), limits.items);
            let kind = ParseErrorKind::TooManyItems { found, limit };
            return Err(ParseError::at(self.place, kind));
        }
        if let Some(key) = data.keys().find(|key| !is_plain_name(key)) {
            let kind = ParseErrorKind::Name { field: "spec.template.data", found: key.clone() };
            return Err(ParseError { place: Some(self.place), key: Some(key.clone()), kind });
        }
        Ok(Template {
            kind: self.text(template, "type", "spec.template.type")?,
            immutable: self.truth(template, "immutable", "spec.template.immutable")?,
            labels: self.texts(metadata, "labels", &format!("{prefix}.labels"))?,
            annotations: self.texts(metadata, "annotations", &format!("{prefix}.annotations"))?,
            finalizers: self.list(metadata, "finalizers", &format!("{prefix}.finalizers"))?,
            data,
        })
    }
}
