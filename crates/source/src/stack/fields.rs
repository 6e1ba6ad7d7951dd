//! Reading single fields of a stack file: texts, lists, maps, switches, quantities.
//!
//! Collects warnings on the way; knows nothing of the schema's meaning.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use updraft_model::ResourceSet;

use super::WARNINGS_MAX;
use super::expand::expand;
use crate::diagnostic::{Diagnostic, Position, nearest, printable, quoted};
use crate::yaml::{Entry, Node, Value};

/// Reads fields of one file.
pub(super) struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    variables: Option<&'a BTreeMap<String, String>>,
    known_variables: &'a BTreeMap<String, String>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        file: &'a str,
        text: &'a str,
        variables: &'a BTreeMap<String, String>,
    ) -> Self {
        Self {
            file,
            text,
            variables: Some(variables),
            known_variables: variables,
            warnings: Vec::new(),
        }
    }

    /// From here on `$` means nothing.
    pub(super) fn literal(&mut self) -> &mut Self {
        self.variables = None;
        self
    }

    pub(super) fn complain(&self, position: Position, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(self.file, self.text, position, message)
    }

    pub(super) fn warn(&mut self, position: Position, message: impl Display) {
        let line = position.line;
        match self.warnings.len() {
            WARNINGS_MAX => self.warnings.push("more warnings are not shown".to_owned()),
            count if count < WARNINGS_MAX => {
                self.warnings.push(printable(&format!("{}:{line}: {message}", self.file)));
            }
            _ => {}
        }
    }

    pub(super) fn warn_unknown(&mut self, entry: &Entry, whose: &str, known: &[&str]) {
        let guess = nearest(&entry.key, known.iter().copied())
            .map(|name| format!(", did you mean `{name}`?"))
            .unwrap_or_default();
        let key = quoted(&entry.key);
        self.warn(entry.key_position, format!("unknown field {key} {whose} is ignored{guess}"));
    }

    /// The entries of a map; nothing counts as an empty one.
    pub(super) fn map(&self, node: Node, field: &str) -> Result<Vec<Entry>, Diagnostic> {
        match node.value {
            Value::Map(entries) => Ok(entries),
            Value::Null => Ok(Vec::new()),
            other => Err(self.wrong_kind(node.position, field, "a map", &other)),
        }
    }

    /// One text; nothing counts as an empty one.
    pub(super) fn text(&mut self, node: Node, field: &str) -> Result<String, Diagnostic> {
        let spelt = match node.value {
            Value::Scalar(spelt) => spelt,
            Value::Null => return Ok(String::new()),
            other => return Err(self.wrong_kind(node.position, field, "a text", &other)),
        };
        let Some(variables) = self.variables else { return Ok(spelt) };
        let expanded = expand(&spelt, variables)
            .map_err(|error| self.complain(node.position, error.message).hint(error.hint))?;
        let mut unknown = expanded.unknown;
        unknown.sort();
        unknown.dedup();
        for name in unknown {
            let guess = nearest(&name, self.known_variables.keys().map(String::as_str))
                .map(|known| format!(", did you mean `${{{known}}}`?"))
                .unwrap_or_default();
            let name = quoted(&format!("${{{name}}}"));
            self.warn(
                node.position,
                format!("{name} in `{field}` is not known here and becomes empty{guess}"),
            );
        }
        Ok(expanded.text)
    }

    /// One text that may be absent or empty.
    pub(super) fn optional(
        &mut self,
        node: Node,
        field: &str,
    ) -> Result<Option<String>, Diagnostic> {
        let text = self.text(node, field)?;
        Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
    }

    /// A list of texts with their places; one text counts as a list of one.
    pub(super) fn list(
        &mut self,
        node: Node,
        field: &str,
    ) -> Result<Vec<(Position, String)>, Diagnostic> {
        match node.value {
            Value::Null => Ok(Vec::new()),
            Value::Scalar(_) => Ok(vec![(node.position, self.text(node, field)?)]),
            Value::List(items) => {
                items.into_iter().map(|item| Ok((item.position, self.text(item, field)?))).collect()
            }
            other @ Value::Map(_) => Err(self.wrong_kind(node.position, field, "a list", &other)),
        }
    }

    /// A map of texts.
    pub(super) fn texts(
        &mut self,
        node: Node,
        field: &str,
    ) -> Result<Vec<(String, Position, String)>, Diagnostic> {
        self.map(node, field)?
            .into_iter()
            .map(|entry| Ok((entry.key, entry.key_position, self.text(entry.node, field)?)))
            .collect()
    }

    /// A map whose keys can name environment variables.
    pub(super) fn environment(
        &mut self,
        node: Node,
        field: &str,
    ) -> Result<BTreeMap<String, String>, Diagnostic> {
        let mut environment = BTreeMap::new();
        for (name, position, value) in self.texts(node, field)? {
            if name.is_empty() || name.contains(['=', '\0']) {
                let message = format!("{} cannot name an environment variable", quoted(&name));
                return Err(self.complain(position, message));
            }
            if value.contains('\0') {
                let message = format!("the value of {} holds a NUL character", quoted(&name));
                return Err(self.complain(position, message));
            }
            environment.insert(name, value);
        }
        Ok(environment)
    }

    /// A switch, in every spelling that YAML ever had.
    pub(super) fn switch(&mut self, node: Node, field: &str) -> Result<bool, Diagnostic> {
        let position = node.position;
        let text = self.text(node, field)?;
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" | "1" => Ok(true),
            "false" | "no" | "off" | "n" | "0" | "" => Ok(false),
            _ => Err(self
                .complain(position, format!("`{field}` is {}, not true or false", quoted(&text)))),
        }
    }

    /// A text that one of the model's types reads.
    pub(super) fn parsed<T>(&mut self, position: Position, text: &str) -> Result<T, Diagnostic>
    where
        T: FromStr,
        T::Err: Display,
    {
        text.trim().parse().map_err(|error: T::Err| self.complain(position, error.to_string()))
    }

    /// `{memory: 128Mi, cpu: 100m}`; `None` when nothing is in it.
    pub(super) fn resources(
        &mut self,
        node: Node,
        field: &str,
        function: &str,
    ) -> Result<Option<ResourceSet>, Diagnostic> {
        let mut set = ResourceSet::default();
        for entry in self.map(node, field)? {
            let position = entry.node.position;
            match entry.key.as_str() {
                "memory" | "cpu" => {
                    let Some(text) = self.optional(entry.node, field)? else { continue };
                    if entry.key == "memory" {
                        set.memory = Some(self.parsed(position, &text)?);
                    } else {
                        set.cpu = Some(self.parsed(position, &text)?);
                    }
                }
                device if device.contains('/') => {
                    let amount = self.text(entry.node, field)?;
                    set.devices.insert(entry.key, amount);
                }
                _ => {
                    let whose = format!("in `{field}` of function `{function}`");
                    self.warn_unknown(&entry, &whose, &["memory", "cpu"]);
                }
            }
        }
        Ok(Some(set).filter(|set| *set != ResourceSet::default()))
    }

    fn wrong_kind(
        &self,
        position: Position,
        field: &str,
        expected: &str,
        found: &Value,
    ) -> Diagnostic {
        let message = format!("`{field}` must be {expected}, this is {}", found.kind());
        self.complain(position, message)
    }
}
