//! Opening a sealed secret: every key is tried on every item, and where none fits, why.
//!
//! The original answers every failure with one sentence, and its users are left to guess. Here the
//! owner of a secret is told the reason; strangers who may only ask whether a secret opens get
//! [`UnsealError::opaque`], which tells no more than the original.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use thiserror::Error;

use crate::document::{LegacyData, SealedSecret};
use crate::template;
use crate::value::{self, OpenError};
use crate::{
    ItemFault, Limits, ParseError, PrivateKey, Scope, SecretBytes, Template, ValueError,
    parse_secrets,
};

/// What people search for when a sealed secret does not open.
pub const OPAQUE_REASON: &str = "no key could decrypt secret";

/// Items that may fail on every key before the rest is not tried any more. Each costs as many RSA
/// operations as there are keys, and a stranger's file could hold a thousand.
const FAILURES_MAX: usize = 20;

/// RSA operations spent on finding out why, for one secret.
const SEARCH_MAX: usize = 256;

/// A private key to try.
#[derive(Debug, Clone, Copy)]
pub struct OpeningKey<'a> {
    /// The key.
    pub key: &'a PrivateKey,
    /// Whether it may open; one that may not is only looked at to tell why a value does not open.
    pub in_use: bool,
}

/// Other places that a value may have been sealed for by mistake.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// Names of secrets, such as the others of the file or of the owner.
    pub names: Vec<String>,
    /// Namespaces.
    pub namespaces: Vec<String>,
}

/// An opened secret. Its values are wiped when dropped.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OpenedSecret {
    /// The sealed secret's name, whatever its template says.
    pub name: String,
    /// The sealed secret's namespace, where it says one.
    pub namespace: Option<String>,
    /// Its type, such as `Opaque`.
    pub kind: Option<String>,
    /// Labels of the template.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the template.
    pub annotations: BTreeMap<String, String>,
    /// Whether it may never change.
    pub immutable: bool,
    /// The opened items, then the filled-in texts of the template over them.
    pub items: BTreeMap<String, SecretBytes>,
    /// Fingerprints of the keys that opened it.
    pub opened_by: BTreeSet<String>,
}

/// A sealed secret does not open.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text}", text = fold(self.failures.iter().map(|failure| (failure.key.as_str(), failure.why.parts()))))]
pub struct UnsealError {
    /// Every item that does not open, by key; never empty.
    pub failures: Vec<ItemFailure>,
}

/// One item that does not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemFailure {
    /// The item's key; `data` for the form before items.
    pub key: String,
    /// Why.
    pub why: Why,
}

/// Why an item does not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It cannot be a sealed value.
    Item(ItemFault),
    /// It is no base64, or too large.
    Value(ValueError),
    /// No key in use opens it.
    Sealed(Unopened),
    /// What opened is no secret, in the form before items.
    Legacy(ParseError),
    /// The text of the template cannot be filled in.
    Template(String),
}

/// Why no key opens a value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unopened {
    /// It opens for another name.
    #[error(
        "it was sealed for the name `{sealed}`, and the name of this one is `{name}`; seal it again for this name"
    )]
    Name {
        /// The name it was sealed for.
        sealed: String,
        /// The name it stands under.
        name: String,
    },
    /// It opens in another namespace.
    #[error(
        "it was sealed for the namespace `{sealed}`, and this one is in `{namespace}`; seal it again for this namespace"
    )]
    Namespace {
        /// The namespace it was sealed for.
        sealed: String,
        /// The namespace it stands in.
        namespace: String,
    },
    /// It opens in another scope.
    #[error("it was sealed {sealed}, and the annotations in `metadata` (those of the template do not count) say {says}; {remedy}", remedy = remedy(*.sealed, *.says))]
    Scope {
        /// The scope it was sealed in.
        sealed: Scope,
        /// What the annotations say.
        says: Scope,
    },
    /// A key opens it that is out of use.
    #[error(
        "it was sealed with the key {fingerprint}, which has been taken out of use; seal it again with the newest certificate"
    )]
    Retired {
        /// Which key.
        fingerprint: String,
    },
    /// Its key fits, the rest is damaged.
    #[error("it is damaged; seal it again")]
    Damaged,
    /// It says no namespace, and its scope needs one.
    #[error("`metadata.namespace` is missing")]
    NoNamespace,
    /// Nothing that was tried fits.
    #[error(
        "none of {keys} keys fits; it was sealed with another installation's certificate, or for a name or namespace that was not tried, or it is damaged"
    )]
    NoKey {
        /// How many were tried.
        keys: usize,
    },
    /// So many others do not open that it was not tried.
    #[error("it was not tried, because so many others do not open")]
    NotTried,
}

fn remedy(sealed: Scope, says: Scope) -> String {
    match (sealed.annotation(), says.annotation()) {
        (Some(annotation), _) => {
            format!("add the annotation `{annotation}: \"true\"`, or seal it again")
        }
        (None, Some(annotation)) => {
            format!("remove the annotation `{annotation}`, or seal it again")
        }
        (None, None) => "seal it again".to_owned(),
    }
}

impl Why {
    /// What people search for, and the reason after it.
    fn parts(&self) -> (String, String) {
        match self {
            Self::Item(fault) => (fault.to_string(), String::new()),
            Self::Value(error) => (error.to_string(), String::new()),
            Self::Sealed(reason) => (OPAQUE_REASON.to_owned(), reason.to_string()),
            Self::Legacy(error) => ("`spec.data` holds no secret".to_owned(), error.to_string()),
            Self::Template(reason) => {
                ("the template cannot be filled in".to_owned(), reason.clone())
            }
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, reason) = self.parts();
        if reason.is_empty() { f.write_str(&text) } else { write!(f, "{text}: {reason}") }
    }
}

impl From<ValueError> for Why {
    fn from(error: ValueError) -> Self {
        Self::Value(error)
    }
}

impl UnsealError {
    /// All that a stranger may learn: that keys do not fit, not why.
    pub fn opaque(&self) -> String {
        fold(self.failures.iter().map(|failure| {
            let (text, reason) = failure.why.parts();
            let told = !matches!(failure.why, Why::Sealed(_));
            (failure.key.as_str(), (text, if told { reason } else { String::new() }))
        }))
    }
}

impl OpenedSecret {
    /// Type, labels and annotations, to seal the secret again.
    pub(crate) fn template(&self) -> Template {
        Template {
            kind: self.kind.clone(),
            immutable: self.immutable.then_some(true),
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            ..Template::default()
        }
    }
}

/// Folds equal texts: `no key could decrypt secret (password, username): reason; …`.
fn fold<'a>(failures: impl Iterator<Item = (&'a str, (String, String))>) -> String {
    let mut groups: Vec<((String, String), Vec<&str>)> = Vec::new();
    for (key, text) in failures {
        match groups.iter_mut().find(|(known, _)| *known == text) {
            Some((_, keys)) => keys.push(key),
            None => groups.push((text, vec![key])),
        }
    }
    let group = |((text, reason), keys): &((String, String), Vec<&str>)| {
        let keys = keys.join(", ");
        if reason.is_empty() {
            format!("{text} ({keys})")
        } else {
            format!("{text} ({keys}): {reason}")
        }
    };
    groups.iter().map(group).collect::<Vec<_>>().join("; ")
}

/// Opens a secret with keys, the likeliest first.
///
/// # Errors
/// Every item that does not open, with the reason. The writer's fault, unless a key is missing.
pub fn unseal_with_keys(
    keys: &[OpeningKey<'_>],
    secret: &SealedSecret,
    hints: &Hints,
    limits: Limits,
) -> Result<OpenedSecret, UnsealError> {
    let mut opened = open_items(keys, secret, hints, limits)?;
    let failures = template::fill(&secret.template.data, &mut opened.items);
    if failures.is_empty() { Ok(opened) } else { Err(UnsealError { failures }) }
}

/// Opens the items of a secret and leaves the texts of its template as they are.
pub(crate) fn open_items(
    keys: &[OpeningKey<'_>],
    secret: &SealedSecret,
    hints: &Hints,
    limits: Limits,
) -> Result<OpenedSecret, UnsealError> {
    let mut opener =
        Opener { keys, secret, hints, limits, likely: 0, failed: 0, search: SEARCH_MAX };
    let opened = match &secret.legacy {
        Some(data) => opener.open_legacy(data),
        None => opener.open_items(),
    };
    opened.map_err(|failures| UnsealError { failures })
}

struct Opener<'a> {
    keys: &'a [OpeningKey<'a>],
    secret: &'a SealedSecret,
    hints: &'a Hints,
    limits: Limits,
    /// The key that opened the item before: likely the one for the next.
    likely: usize,
    /// Items that no key opened.
    failed: usize,
    /// RSA operations that may still be spent on finding out why.
    search: usize,
}

impl Opener<'_> {
    fn open_items(&mut self) -> Result<OpenedSecret, Vec<ItemFailure>> {
        let mut opened = self.shell(&self.secret.template);
        let mut failures = Vec::new();
        for (key, item) in &self.secret.items {
            let value = item.decode(&self.limits).and_then(|sealed| self.open(&sealed));
            match value {
                Ok((value, fingerprint)) => {
                    opened.opened_by.insert(fingerprint);
                    opened.items.insert(key.clone(), value);
                }
                Err(why) => failures.push(ItemFailure { key: key.clone(), why }),
            }
        }
        if failures.is_empty() { Ok(opened) } else { Err(failures) }
    }

    fn open_legacy(&mut self, data: &LegacyData) -> Result<OpenedSecret, Vec<ItemFailure>> {
        let failed = |why| vec![ItemFailure { key: "data".to_owned(), why }];
        let sealed = value::decode(&data.0, self.limits.secret_bytes);
        let sealed = sealed.map_err(|error| failed(error.into()))?;
        let (value, fingerprint) = self.open(&sealed).map_err(failed)?;
        let inside = parse_secrets(&value, self.limits)
            .map_err(|error| failed(Why::Legacy(error.without_words())))?;
        let Some(inside) = inside.into_iter().next() else {
            let missing =
                ParseError::of_file(crate::ParseErrorKind::Missing { field: "kind: Secret" });
            return Err(failed(Why::Legacy(missing)));
        };
        let mut opened = self.shell(&inside.template);
        opened.items = inside.items;
        opened.opened_by.insert(fingerprint);
        Ok(opened)
    }

    fn shell(&self, template: &Template) -> OpenedSecret {
        OpenedSecret {
            name: self.secret.name.clone(),
            namespace: self.secret.namespace.clone(),
            kind: template.kind.clone(),
            labels: template.labels.clone(),
            annotations: template.annotations.clone(),
            immutable: template.immutable.unwrap_or(false),
            items: BTreeMap::new(),
            opened_by: BTreeSet::new(),
        }
    }

    /// Opens one value; tells which key did.
    fn open(&mut self, sealed: &[u8]) -> Result<(SecretBytes, String), Why> {
        let label = self.secret.label().ok_or(Why::Sealed(Unopened::NoNamespace))?;
        if self.failed >= FAILURES_MAX {
            return Err(Why::Sealed(Unopened::NotTried));
        }
        let mut damaged = false;
        let in_use = |index: &usize| self.keys.get(*index).is_some_and(|key| key.in_use);
        let order = std::iter::once(self.likely)
            .chain((0..self.keys.len()).filter(|index| *index != self.likely));
        for index in order.filter(in_use) {
            let key = self.keys[index].key;
            match value::open(key, &label, sealed) {
                Ok(value) => {
                    self.likely = index;
                    return Ok((value, key.fingerprint().to_owned()));
                }
                Err(OpenError::Payload) => damaged = true,
                Err(OpenError::Shape | OpenError::Session) => {}
            }
        }
        self.failed += 1;
        Err(Why::Sealed(if damaged { Unopened::Damaged } else { self.explain(&label, sealed) }))
    }

    /// Finds out why no key in use opens a value under its own label.
    fn explain(&mut self, label: &[u8], sealed: &[u8]) -> Unopened {
        if !has_shape(sealed) {
            return Unopened::Damaged;
        }
        if let Some(index) = self.opens(label, sealed) {
            return Unopened::Retired {
                fingerprint: self.keys[index].key.fingerprint().to_owned(),
            };
        }
        let secret = self.secret;
        let (namespace, name) = (secret.namespace.as_deref().unwrap_or_default(), &*secret.name);
        for scope in Scope::ALL.into_iter().filter(|scope| *scope != secret.scope) {
            let needs_namespace = scope != Scope::ClusterWide && namespace.is_empty();
            if !needs_namespace && self.opens(&scope.label(namespace, name), sealed).is_some() {
                return Unopened::Scope { sealed: scope, says: secret.scope };
            }
        }
        let names = self.hints.names.iter().filter(|other| *other != name);
        for other in names {
            if self.opens(&Scope::Strict.label(namespace, other), sealed).is_some() {
                return Unopened::Name { sealed: other.clone(), name: name.to_owned() };
            }
        }
        let usual = ["openfaas-fn", "default", "openfaas"].map(str::to_owned);
        let namespaces = self.hints.namespaces.iter().chain(&usual);
        for other in namespaces.filter(|other| *other != namespace) {
            for scope in [Scope::Strict, Scope::NamespaceWide] {
                if self.opens(&scope.label(other, name), sealed).is_some() {
                    let (sealed, namespace) = (other.clone(), namespace.to_owned());
                    return Unopened::Namespace { sealed, namespace };
                }
            }
        }
        Unopened::NoKey { keys: self.keys.iter().filter(|key| key.in_use).count() }
    }

    /// The key, in use or not, that opens a value under a label.
    fn opens(&mut self, label: &[u8], sealed: &[u8]) -> Option<usize> {
        for (index, key) in self.keys.iter().enumerate() {
            self.search = self.search.checked_sub(1)?;
            match value::open(key.key, label, sealed) {
                Ok(_) | Err(OpenError::Payload) => return Some(index),
                Err(OpenError::Shape | OpenError::Session) => {}
            }
        }
        None
    }
}

/// Whether bytes are long enough for what their first two say, and those say a usual key length.
fn has_shape(sealed: &[u8]) -> bool {
    let Some((prefix, rest)) = sealed.split_first_chunk::<2>() else { return false };
    let length = usize::from(u16::from_be_bytes(*prefix));
    (256..=1024).contains(&length) && rest.len() >= length + value::TAG
}
