//! Why a file of secrets, or a document of it, cannot be read.

use thiserror::Error;

use super::Place;

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
    #[error(
        "this is a file of `faas-cli secret seal` (nacl/box, for builds of OpenFaaS Pro), which is no SealedSecret and is not opened here; seal its values with `updraft seal`"
    )]
    NaclBox,
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
    /// Whether the file as a whole is at fault, and not one of its documents.
    pub const fn is_of_file(&self) -> bool {
        self.place.is_none() || matches!(self.kind, ParseErrorKind::FileTooLarge { .. })
    }

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
