//! The documents of a file: sealed secrets, plain ones, others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::scope::is_plain_name;
use crate::tree::{self, Node, Value};
use crate::unseal::Why;
use crate::{Limits, Scope, SecretBytes, value};

/// Group of the resource.
pub(crate) const GROUP: &str = "bitnami.com";

/// Group and version, the only one there ever was.
pub(crate) const API_VERSION: &str = "bitnami.com/v1alpha1";

/// Where a document stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which document, counted from 1; empty ones do not count.
    pub document: usize,
    /// Which item, counted from 1, where the document is a list.
    pub item: Option<usize>,
    /// Line of the file, counted from 1; 0 where it is not known.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {}", self.document)?;
        if let Some(item) = self.item {
            write!(f, ", item {item}")?;
        }
        if self.line > 0 {
            write!(f, " (line {})", self.line)?;
        }
        Ok(())
    }
}

/// A file of secrets cannot be read. The writer's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{where_}{kind}", where_ = self.prefix())]
pub struct ParseError {
    /// Where; `None` where the file as a whole is at fault.
    pub place: Option<Place>,
    /// The item's key, where one is at fault.
    pub key: Option<String>,
    /// What is wrong.
    pub kind: ParseErrorKind,
}

/// What is wrong with a file of secrets.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ParseErrorKind {
    #[error("the file has {size} bytes, {limit} are allowed")]
    FileTooLarge { size: usize, limit: usize },
    #[error(
        "the file is no UTF-8 text; editors and shells of Windows may write UTF-16, save it as UTF-8"
    )]
    NotText,
    #[error("there are more than {limit} documents")]
    TooManyDocuments { limit: usize },
    #[error("not valid {format}: {words}")]
    Syntax { format: &'static str, words: String },
    #[error("the key `{key}` is there twice; remove one of the two")]
    Twice { key: String },
    #[error("a key must be a text, this is {found}")]
    KeyIsNoText { found: &'static str },
    #[error("`{field}` must be {expected}, this is {found}")]
    WrongType { field: String, expected: &'static str, found: &'static str },
    #[error("`{field}` is missing")]
    Missing { field: &'static str },
    #[error("apiVersion `{found}` of a SealedSecret is unknown, expected `bitnami.com/v1alpha1`")]
    ApiVersion { found: String },
    #[error("`{field}` may hold letters, digits, `-`, `_` and `.`, at most 253, this is `{found}`")]
    Name { field: &'static str, found: String },
    #[error("there are {found} items, {limit} are allowed")]
    TooManyItems { found: usize, limit: usize },
    #[error("the items have more than {limit} bytes together")]
    SecretTooLarge { limit: usize },
    #[error("`spec.data` and `spec.encryptedData` cannot be used at the same time")]
    BothForms,
    #[error("the value of `data.{key}` is not valid base64; plain text belongs in `stringData`")]
    PlainBase64 { key: String },
}

impl ParseError {
    pub(crate) const fn of_file(kind: ParseErrorKind) -> Self {
        Self { place: None, key: None, kind }
    }

    pub(crate) const fn at(place: Place, kind: ParseErrorKind) -> Self {
        Self { place: Some(place), key: None, kind }
    }

    /// Without words of the parser, which may quote what it read.
    pub(crate) fn without_words(mut self) -> Self {
        if let ParseErrorKind::Syntax { words, .. } = &mut self.kind {
            "it cannot be read".clone_into(words);
        }
        self
    }

    fn prefix(&self) -> String {
        match (&self.place, &self.key) {
            (Some(place), Some(key)) => format!("{place}, item `{key}`: "),
            (Some(place), None) => format!("{place}: "),
            _ => String::new(),
        }
    }
}

/// One document of a file.
#[derive(Debug, Clone)]
pub enum Document {
    /// A sealed secret.
    Sealed(Box<SealedSecret>),
    /// Anything else, a plain `Secret` included.
    Other(OtherDocument),
}

/// A document that is no sealed secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherDocument {
    /// Where it stands.
    pub place: Place,
    /// Its `apiVersion`, empty where it has none.
    pub api_version: String,
    /// Its `kind`, empty where it has none.
    pub kind: String,
    /// Its name, where it has one.
    pub name: Option<String>,
}

/// A sealed secret as it is written, nothing opened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SealedSecret {
    /// Where it stands in its file.
    pub place: Place,
    /// Its name.
    pub name: String,
    /// Its namespace, where it says one.
    pub namespace: Option<String>,
    /// How tightly its annotations say its items are bound.
    pub scope: Scope,
    /// Its own annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its own labels.
    pub labels: BTreeMap<String, String>,
    /// Its items by key.
    pub items: BTreeMap<String, Item>,
    /// The form before items: a whole secret sealed at once.
    pub legacy: Option<LegacyData>,
    /// What the opened secret shall look like.
    pub template: Template,
}

/// One item of a sealed secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The sealed value: base64, if it is in order.
    Sealed(String),
    /// It cannot be a sealed value; the others can be opened all the same.
    Faulty(ItemFault),
}

/// Why an item cannot be a sealed value. The writer's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ItemFault {
    /// It is no text.
    #[error("the value must be a text, this is {found}")]
    NotText {
        /// What it is instead.
        found: &'static str,
    },
    /// Its key cannot be the name of a file.
    #[error("the key may hold letters, digits, `-`, `_` and `.`, at most 253")]
    Key,
    /// Larger than any value may be.
    #[error("the value is larger than {limit} bytes")]
    TooLarge {
        /// How large it may be.
        limit: usize,
    },
}

/// A whole secret sealed at once, as controllers before version 0.7 did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyData(pub String);

/// What the opened secret shall look like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    /// Its type, such as `Opaque`.
    pub kind: Option<String>,
    /// Whether it may never change.
    pub immutable: Option<bool>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// What must be done before it may go.
    pub finalizers: Vec<String>,
    /// Texts that are filled in with the opened items; each becomes an item.
    pub data: BTreeMap<String, String>,
}

/// A plain `Secret`. Its values are wiped when dropped.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PlainSecret {
    /// Where it stands in its file.
    pub place: Place,
    /// Its name, where it says one.
    pub name: Option<String>,
    /// Its namespace, where it says one.
    pub namespace: Option<String>,
    /// Type, labels, annotations, without what the cluster added.
    pub template: Template,
    /// When a cluster made it, as written.
    pub created: Option<String>,
    /// Its items, `stringData` over `data`.
    pub items: BTreeMap<String, SecretBytes>,
}

/// Reads every document of a YAML or JSON file, those inside lists one by one.
///
/// # Errors
/// The writer's fault; the error names document, line and key. Items that cannot be sealed values
/// are no error yet: they fail when they are opened, and the others do not.
pub fn parse_documents(bytes: &[u8], limits: Limits) -> Result<Vec<Document>, ParseError> {
    let (_, chunks) = tree::parse(bytes, &limits)?;
    let mut documents = Vec::new();
    for chunk in &chunks {
        each(chunk.number, &chunk.root, &mut |place, node| {
            documents.push(document(place, node, &limits)?);
            if documents.len() > limits.documents {
                let limit = limits.documents;
                return Err(ParseError::of_file(ParseErrorKind::TooManyDocuments { limit }));
            }
            Ok(())
        })?;
    }
    Ok(documents)
}

/// Reads every plain `Secret` of a YAML or JSON file and leaves the rest out.
///
/// # Errors
/// The writer's fault.
pub fn parse_secrets(bytes: &[u8], limits: Limits) -> Result<Vec<PlainSecret>, ParseError> {
    let (_, chunks) = tree::parse(bytes, &limits)?;
    let mut secrets = Vec::new();
    for chunk in &chunks {
        each(chunk.number, &chunk.root, &mut |place, node| {
            if text_of(node, "kind") == "Secret" && text_of(node, "apiVersion") == "v1" {
                secrets.push(plain_secret(place, node, &limits)?);
            }
            Ok(())
        })?;
    }
    Ok(secrets)
}

/// Goes through a document, or through the items of one that is a list.
pub(crate) fn each(
    number: usize,
    root: &Node,
    visit: &mut impl FnMut(Place, &Node) -> Result<(), ParseError>,
) -> Result<(), ParseError> {
    let place = Place { document: number, item: None, line: root.line };
    let is_list = matches!(text_of(root, "kind"), "List" | "SealedSecretList" | "SecretList");
    match root.get("items").map(|items| &items.value) {
        Some(Value::List(items)) if is_list => {
            for (index, item) in items.iter().enumerate() {
                visit(Place { item: Some(index + 1), line: item.line, ..place }, item)?;
            }
            Ok(())
        }
        Some(Value::Null) | None if is_list => Ok(()),
        _ => visit(place, root),
    }
}

fn text_of<'a>(node: &'a Node, key: &str) -> &'a str {
    node.get(key).and_then(Node::text).unwrap_or_default()
}

fn document(place: Place, node: &Node, limits: &Limits) -> Result<Document, ParseError> {
    let (api_version, kind) = (text_of(node, "apiVersion"), text_of(node, "kind"));
    if kind == "SealedSecret" {
        if api_version != API_VERSION {
            let found = api_version.to_owned();
            return Err(ParseError::at(place, ParseErrorKind::ApiVersion { found }));
        }
        return Ok(Document::Sealed(Box::new(sealed_secret(place, node, limits)?)));
    }
    if api_version.split('/').next() == Some(GROUP) && kind.is_empty() {
        return Err(ParseError::at(place, ParseErrorKind::Missing { field: "kind" }));
    }
    Ok(Document::Other(OtherDocument {
        place,
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: node
            .get("metadata")
            .and_then(|metadata| metadata.get("name"))
            .and_then(Node::text)
            .map(str::to_owned),
    }))
}

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
        return Err(ParseError::at(place, ParseErrorKind::SecretTooLarge { limit }));
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

fn plain_secret(place: Place, node: &Node, limits: &Limits) -> Result<PlainSecret, ParseError> {
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
        return Err(ParseError::at(place, ParseErrorKind::SecretTooLarge { limit }));
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
            return Err(ParseError::at(self.place, ParseErrorKind::SecretTooLarge { limit }));
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

impl SealedSecret {
    /// The same in `namespace`, where the file says none.
    #[must_use]
    pub fn or_in_namespace(mut self, namespace: &str) -> Self {
        self.namespace.get_or_insert_with(|| namespace.to_owned());
        self
    }

    /// What the items are bound to: the label of their encryption. `None` where that needs a
    /// namespace and there is none.
    pub fn label(&self) -> Option<Vec<u8>> {
        match (&self.namespace, self.scope) {
            (Some(namespace), scope) => Some(scope.label(namespace, &self.name)),
            (None, Scope::ClusterWide) => Some(Vec::new()),
            (None, _) => None,
        }
    }

    /// Every key that the opened secret will have, templates included.
    pub fn keys(&self) -> BTreeSet<&str> {
        self.items.keys().chain(self.template.data.keys()).map(String::as_str).collect()
    }
}

impl Item {
    /// The sealed bytes.
    pub(crate) fn decode(&self, limits: &Limits) -> Result<Vec<u8>, Why> {
        match self {
            Self::Sealed(text) => Ok(value::decode(text, limits.value_bytes)?),
            Self::Faulty(fault) => Err(Why::Item(*fault)),
        }
    }
}
