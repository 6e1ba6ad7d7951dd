//! The documents of a file: sealed secrets, plain ones, others.

mod error;
mod fields;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use thiserror::Error;

use crate::tree::{self, Node, Value};
use crate::unseal::Why;
use crate::{Limits, Scope, SecretBytes, value};

pub use error::{ParseError, ParseErrorKind};
use fields::plain_secret;
pub(crate) use fields::sealed_secret;

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

/// A document that cannot be read, with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{error}")]
pub struct Unreadable {
    /// Its name, where it has one that can be read.
    pub name: Option<String>,
    /// What is wrong with it; a place is part of it.
    pub error: ParseError,
}

/// Reads every document of a YAML or JSON file, those inside lists one by one.
///
/// # Errors
/// The writer's fault; the error names document, line and key. Items that cannot be sealed values
/// are no error yet: they fail when they are opened, and the others do not.
pub fn parse_documents(bytes: &[u8], limits: Limits) -> Result<Vec<Document>, ParseError> {
    let read = parse_each(bytes, limits)?;
    read.into_iter().map(|document| document.map_err(|unreadable| unreadable.error)).collect()
}

/// Reads every document of a YAML or JSON file, whatever is wrong with the others.
///
/// # Errors
/// The writer's fault: the file as a whole cannot be read.
pub fn parse_each(
    bytes: &[u8],
    limits: Limits,
) -> Result<Vec<Result<Document, Unreadable>>, ParseError> {
    let (_, chunks) = tree::read(bytes, &limits)?;
    let mut documents = Vec::new();
    for chunk in chunks {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                documents.push(Err(Unreadable { name: None, error }));
                continue;
            }
        };
        each(chunk.number, &chunk.root, &mut |place, node| {
            if documents.len() >= limits.documents {
                let limit = limits.documents;
                return Err(ParseError::of_file(ParseErrorKind::TooManyDocuments { limit }));
            }
            let named = |error| Unreadable { name: name_of(node), error };
            documents.push(document(place, node, &limits).map_err(named));
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

fn name_of(node: &Node) -> Option<String> {
    node.get("metadata")?.get("name")?.text().map(|name| name.chars().take(253).collect())
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
    if kind.is_empty() && text_of(node, "algorithm") == "nacl/box" {
        return Err(ParseError::at(place, ParseErrorKind::NaclBox));
    }
    Ok(Document::Other(OtherDocument {
        place,
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: name_of(node),
    }))
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
