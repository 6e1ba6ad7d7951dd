//! `template.yml`: what a template says about itself.

use super::{Origin, Template};
use crate::diagnostic::{Diagnostic, Position, quoted};
use crate::path::RelativePath;
use crate::yaml::{self, Node, Value};

/// Reads the metadata of template `name`. Fields that we do not know are left alone: upstream adds
/// some now and then.
pub(super) fn read(name: &str, file: &str, text: &str) -> Result<Template, Diagnostic> {
    let mut template = Template {
        name: name.to_owned(),
        aliases: Vec::new(),
        description: String::new(),
        bases: Vec::new(),
        handler_folder: "function".to_owned(),
        process: None,
        welcome: String::new(),
        sample_folders: Vec::new(),
        build_options: Vec::new(),
        origin: Origin::Repository(RelativePath::new(".").map_err(|error| {
            Diagnostic::new(file, text, Position::default(), error.to_string())
        })?),
    };
    let root = yaml::parse(file, text)?;
    let entries = match root.value {
        Value::Map(entries) => entries,
        Value::Null => Vec::new(),
        _ => {
            return Err(Diagnostic::new(file, text, root.position, "template metadata is a map"));
        }
    };
    let file = &Source { file, text };
    for entry in entries {
        let position = entry.node.position;
        match entry.key.as_str() {
            "aliases" => template.aliases = file.texts(entry.node)?,
            "description" => template.description = file.text(entry.node)?,
            "base" => template.bases = file.texts(entry.node)?,
            "fprocess" => {
                template.process = Some(file.text(entry.node)?).filter(|text| !text.is_empty());
            }
            "welcome_message" => template.welcome = file.text(entry.node)?,
            "handler_folder" => {
                let folder = file.text(entry.node)?;
                if !folder.is_empty() {
                    let path = RelativePath::new(&folder)
                        .map_err(|error| file.complain(position, error.to_string()))?;
                    template.handler_folder =
                        if path.is_root() { String::new() } else { path.to_string() };
                }
            }
            "sample_folders" => template.sample_folders = file.texts(entry.node)?,
            "build_options" => template.build_options = file.build_options(entry.node)?,
            _ => {}
        }
    }
    Ok(template)
}

struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn complain(&self, position: Position, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(self.file, self.text, position, message)
    }

    fn text(&self, node: Node) -> Result<String, Diagnostic> {
        match node.value {
            Value::Scalar(text) => Ok(text.trim().to_owned()),
            Value::Null => Ok(String::new()),
            other => {
                let message = format!("expected a text, this is {}", other.kind());
                Err(self.complain(node.position, message))
            }
        }
    }

    fn texts(&self, node: Node) -> Result<Vec<String>, Diagnostic> {
        match node.value {
            Value::List(items) => items.into_iter().map(|item| self.text(item)).collect(),
            Value::Null => Ok(Vec::new()),
            _ => Ok(vec![self.text(node)?]),
        }
    }

    /// `[{name: dev, packages: [gcc, make]}]`
    fn build_options(&self, node: Node) -> Result<Vec<(String, Vec<String>)>, Diagnostic> {
        let Value::List(items) = node.value else { return Ok(Vec::new()) };
        let mut options = Vec::new();
        for item in items {
            let position = item.position;
            let Value::Map(entries) = item.value else {
                return Err(self.complain(position, "a build option is a map"));
            };
            let (mut name, mut packages) = (String::new(), Vec::new());
            for entry in entries {
                match entry.key.as_str() {
                    "name" => name = self.text(entry.node)?,
                    "packages" => packages = self.texts(entry.node)?,
                    _ => {}
                }
            }
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | ':');
            if let Some(wrong) = packages.iter().find(|name| !name.chars().all(fits)) {
                let message = format!("{} is no package name", quoted(wrong));
                return Err(self.complain(position, message));
            }
            options.push((name, packages));
        }
        Ok(options)
    }
}
