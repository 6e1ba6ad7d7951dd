//! `stack.yml`: which functions a repository declares.
//!
//! Every field of OpenFaaS' schema is known. What is understood is checked here; what has no effect
//! is told as a warning that names field, function and line; what is wrong is an error with the line
//! and a caret. Nothing here knows owners, images on this machine or the platform's environment.

use std::collections::BTreeMap;
use std::path::Path;

use thiserror::Error;
use updraft_model::{FunctionName, Namespace, ResourceSet, SecretName};

use crate::diagnostic::{Diagnostic, Position, quoted};
use crate::path::{OpenError, RelativePath, open_root, read_text};
use crate::template::Templates;
use crate::yaml::{self, Value};

mod expand;
mod fields;
mod schema;
mod secrets;

pub use secrets::{SECRET_FILE_BYTES_MAX, SecretFile};

/// Most functions in one stack.
pub const FUNCTIONS_MAX: usize = 100;

/// Most bytes of all environment names and values of one function.
const ENVIRONMENT_MAX: usize = 256 * 1024;

/// Most warnings kept; who ignores fifty ignores fifty-one.
const WARNINGS_MAX: usize = 50;

/// The names a stack file may have, the one that wins first.
const FILE_NAMES: [&str; 2] = ["stack.yaml", "stack.yml"];

/// What a stack file declares.
#[derive(Debug, Clone)]
pub struct Stack {
    /// The functions by their name in the stack.
    pub functions: BTreeMap<FunctionName, StackFunction>,
    /// Folders and files of the repository that go into every function (`configuration.copy`).
    pub copy: Vec<String>,
    /// Further files with sealed secrets (`sealed_secrets`), as paths without `..`.
    pub sealed_secrets: Vec<String>,
    /// There is no stack file: the repository holds sealed secrets and declares no function.
    pub secrets_only: bool,
    /// What was ignored and why, one line each, naming file, line and field.
    pub warnings: Vec<String>,
    file: String,
    text: String,
}

/// One function as the stack declares it, checked and with its variables filled in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StackFunction {
    /// The language, as written (`lang`); empty only when `skip_build` is set.
    pub template: String,
    /// The folder with the code, relative to the repository, without `..`; `.` is the root.
    pub handler: String,
    /// The image that the stack names. A push names images itself; with `skip_build` it is deployed.
    pub image: Option<String>,
    /// The process that the watchdog runs, when the stack overrides the template's (`fprocess`).
    pub process: Option<String>,
    /// Environment variables; after [`Stack::read`] those of the environment files as well.
    pub environment: BTreeMap<String, String>,
    /// Files of the repository with further environment variables, as paths without `..`.
    pub environment_files: Vec<String>,
    /// Secrets as the owner names them.
    pub secrets: Vec<SecretName>,
    /// Deploy `image` as it is, build nothing.
    pub skip_build: bool,
    /// Placement constraints.
    pub constraints: Vec<String>,
    /// Labels, without those that the platform sets.
    pub labels: BTreeMap<String, String>,
    /// Annotations, without those that the platform sets.
    pub annotations: BTreeMap<String, String>,
    /// Hard limits.
    pub limits: Option<ResourceSet>,
    /// Reserved amounts.
    pub requests: Option<ResourceSet>,
    /// Whether the root file system is read-only, when the stack says so.
    pub read_only_root: Option<bool>,
    /// Arguments of the image build.
    pub build_args: BTreeMap<String, String>,
    /// Named package sets of the template.
    pub build_options: Vec<String>,
    /// The namespace that the stack asks for.
    pub namespace: Option<Namespace>,
    /// The line of the stack file where the function begins.
    pub line: usize,
    template_position: Position,
}

/// Why a stack cannot be used. Unless it is `Read` with a cause, the owner's fault.
#[derive(Debug, Error)]
pub enum StackError {
    /// The repository has no stack file.
    #[error("the repository has no `stack.yml` in its root\nhint: {hint}")]
    Missing {
        /// What to do.
        hint: String,
    },
    /// The stack file or an environment file cannot be read.
    #[error("{0}")]
    Read(#[from] OpenError),
    /// The content is wrong; the text shows where.
    #[error("{0}")]
    Invalid(Box<Diagnostic>),
    /// The platform's fault: the checkout itself cannot be read.
    #[error("cannot read the checkout")]
    Checkout(#[source] std::io::Error),
}

impl From<Diagnostic> for StackError {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::Invalid(Box::new(diagnostic))
    }
}

impl Stack {
    /// Reads the text of a stack file; `file` is its name in messages. Environment files are not
    /// read, see [`Stack::read`]. Only `variables` are put in for `${…}`.
    ///
    /// # Errors
    /// The owner's fault: not YAML, a value of the wrong kind, a path that leaves the repository.
    pub fn parse(
        text: &str,
        file: &str,
        variables: &BTreeMap<String, String>,
    ) -> Result<Self, StackError> {
        let root = yaml::parse(file, text)?;
        let reader = fields::Reader::new(file, text, variables);
        let schema::Parts { functions, copy, sealed_secrets, warnings } =
            schema::read(reader, root)?;
        let (file, text) = (file.to_owned(), text.to_owned());
        let secrets_only = false;
        Ok(Self { functions, copy, sealed_secrets, secrets_only, warnings, file, text })
    }

    /// Finds and reads the stack file in the root of a checkout, with the environment files that it
    /// names: later files win over earlier ones, and all of them over `environment`.
    ///
    /// # Errors
    /// As [`Stack::parse`]; or there is no stack file, or an environment file is missing, wrong or
    /// outside the repository.
    pub fn read(checkout: &Path, variables: &BTreeMap<String, String>) -> Result<Self, StackError> {
        let root = open_root(checkout).map_err(StackError::Checkout)?;
        let mut found = Vec::new();
        for name in FILE_NAMES {
            match rustix::fs::statat(&root, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => found.push(name),
                Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(StackError::Checkout(errno.into())),
            }
        }
        let Some(file) = found.first() else {
            if secrets::are_there(&root) {
                return Ok(Self::of_secrets_only());
            }
            return Err(StackError::Missing { hint: missing_hint(checkout) });
        };
        let text = read_repository_text(&root, file)?;
        let mut stack = Self::parse(&text, file, variables)?;
        if let Some(other) = found.get(1) {
            stack.warnings.insert(
                0,
                format!("`{other}` is ignored because `{file}` exists; remove one of them"),
            );
        }
        for (name, function) in &mut stack.functions {
            for path in &function.environment_files {
                let text = read_repository_text(&root, path)?;
                let from_file = environment_file(path, &text)?;
                function.environment.extend(from_file);
            }
            schema::take_process(function);
            let size: usize =
                function.environment.iter().map(|(name, value)| name.len() + value.len()).sum();
            if size > ENVIRONMENT_MAX {
                let at = Position { line: function.line, column: 1, length: 1 };
                let message = format!(
                    "the environment of function `{name}` has {size} bytes, {ENVIRONMENT_MAX} are allowed"
                );
                return Err(Diagnostic::new(file, &text, at, message)
                    .hint("put large values into a file of the handler, or into a secret")
                    .into());
            }
        }
        Ok(stack)
    }

    /// Checks that a function's language is known, so that the stack file's own line can be shown
    /// instead of a later failure. A function that the stack does not have is fine.
    ///
    /// # Errors
    /// The owner's fault; names the nearest template and all there are.
    pub fn check_template(
        &self,
        name: &FunctionName,
        checkout: &Path,
        templates: &Templates,
    ) -> Result<(), StackError> {
        let function = self.functions.get(name).filter(|function| !function.skip_build);
        let Some(function) = function else { return Ok(()) };
        let Err(error) = templates.find(checkout, &function.template) else { return Ok(()) };
        let text = error.to_string();
        let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
        let diagnostic = self.complain(function.template_position, message);
        Err(match hint {
            "" => diagnostic.into(),
            hint => diagnostic.hint(hint).into(),
        })
    }

    fn complain(&self, position: Position, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(&self.file, &self.text, position, message)
    }
}

/// Reads a text of the repository with the cap that YAML has.
fn read_repository_text(root: impl std::os::fd::AsFd, path: &str) -> Result<String, OpenError> {
    read_limited(root, path, yaml::TEXT_MAX as u64)
}

fn read_limited(root: impl std::os::fd::AsFd, path: &str, limit: u64) -> Result<String, OpenError> {
    let path = RelativePath::new(path).map_err(|_| OpenError::Missing(path.to_owned()))?;
    read_text(root, &path, limit)
}

/// What to say to somebody whose repository has no stack file: other YAML files may be it.
fn missing_hint(checkout: &Path) -> String {
    let is_yaml = |name: &str| {
        Path::new(name)
            .extension()
            .is_some_and(|extension| extension == "yml" || extension == "yaml")
    };
    let mut others: Vec<String> = std::fs::read_dir(checkout)
        .into_iter()
        .flatten()
        .take(1000)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_yaml(name) && !name.starts_with('.'))
        .collect();
    others.sort();
    match others.first() {
        Some(other) => {
            format!("if {} is the stack file, rename it to `stack.yml`", quoted(other))
        }
        None => "`updraft new hello --lang python` writes one".to_owned(),
    }
}

/// The variables of an environment file: a YAML map under `environment`.
fn environment_file(file: &str, text: &str) -> Result<BTreeMap<String, String>, Diagnostic> {
    let root = yaml::parse(file, text)?;
    let none = BTreeMap::new();
    // Values of such files are taken literally, as upstream does.
    let mut reader = fields::Reader::new(file, text, &none);
    let Value::Map(entries) = root.value else {
        return Err(Diagnostic::new(file, text, root.position, "an environment file is a map")
            .hint("write `environment:` and the variables below it, indented"));
    };
    let mut environment = BTreeMap::new();
    for entry in entries {
        if entry.key == "environment" {
            environment = reader.literal().environment(entry.node, "environment")?;
        } else {
            return Err(Diagnostic::new(
                file,
                text,
                entry.key_position,
                format!(
                    "unknown field {}, an environment file has only `environment`",
                    quoted(&entry.key)
                ),
            )
            .hint("write `environment:` and the variables below it, indented"));
        }
    }
    Ok(environment)
}

#[cfg(test)]
mod tests;
