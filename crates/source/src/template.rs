//! Templates: what turns a handler into an image, one for each language.
//!
//! Ours are part of the program. A repository's own `template/` folder counts only when the
//! platform allows it, and is read under the same containment as everything of a repository.
//! Nothing is ever fetched.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use include_dir::{Dir, include_dir};
use thiserror::Error;

use crate::diagnostic::{nearest, quoted};
use crate::path::{OpenError, RelativePath, open_folder, open_root, read_text};
use crate::tree::{Copier, CopyError};

mod metadata;

/// Every language that comes with the program.
static EMBEDDED: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/../../templates");

/// The language that has no template: the handler brings its own `Dockerfile`.
const DOCKERFILE: &str = "dockerfile";

/// The file that makes a folder a template.
const METADATA: &str = "template.yml";

/// Most bytes of a template's metadata.
const METADATA_MAX: u64 = 64 * 1024;

/// The templates to choose from, and the watchdog that goes into every image. Cheap to clone.
#[derive(Clone)]
pub struct Templates(Arc<Inner>);

struct Inner {
    watchdog: Bytes,
    allow_repository_templates: bool,
    embedded: Vec<Template>,
}

/// One language.
#[derive(Debug, Clone)]
pub struct Template {
    /// What `lang` says.
    pub name: String,
    /// Other names for the same, mostly those of OpenFaaS' templates.
    pub aliases: Vec<String>,
    /// One line for lists.
    pub description: String,
    /// Base images that the build starts from, without the registry prefix: `python`, `node`, …
    pub bases: Vec<String>,
    /// Where the handler's content goes in the context; empty for the root.
    pub handler_folder: String,
    /// The process to run, when the template leaves that to the deployment.
    pub process: Option<String>,
    /// What to tell somebody who just made a function of this language.
    pub welcome: String,
    sample_folders: Vec<String>,
    build_options: Vec<(String, Vec<String>)>,
    origin: Origin,
}

#[derive(Debug, Clone)]
enum Origin {
    Embedded(&'static Dir<'static>),
    Repository(RelativePath),
}

/// A file of a new function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleFile {
    /// Path in the handler folder.
    pub path: String,
    /// Content.
    pub content: &'static [u8],
    /// Whether it is to be executable.
    pub executable: bool,
}

/// Why a template cannot be used. The owner's fault, but for I/O errors.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// No template has that name.
    #[error("unknown template {}\nhint: {hint}", quoted(.name))]
    Unknown {
        /// As written in the stack.
        name: String,
        /// The nearest name, and all there are.
        hint: String,
    },
    /// The template has no such package set.
    #[error("template `{template}` has no build option {}\nhint: {hint}", quoted(.option))]
    BuildOption {
        /// The template.
        template: String,
        /// As written in the stack.
        option: String,
        /// The options there are.
        hint: String,
    },
    /// The repository's own template cannot be read.
    #[error("template `{template}` of the repository: {cause}")]
    Open {
        /// The template.
        template: String,
        /// Why not.
        cause: OpenError,
    },
    /// The repository's own template has wrong metadata.
    #[error("{0}")]
    Metadata(Box<crate::Diagnostic>),
    /// The template's files cannot be copied.
    #[error("{0}")]
    Copy(#[from] CopyError),
    /// The platform's fault: the checkout cannot be read.
    #[error("cannot read the checkout")]
    Checkout(#[source] std::io::Error),
}

impl Templates {
    /// The program's own templates; `watchdog` is the static binary that the images start with.
    pub fn new(watchdog: Bytes, allow_repository_templates: bool) -> Self {
        let mut embedded: Vec<Template> = EMBEDDED.dirs().map(Template::embedded).collect();
        embedded.sort_by(|one, other| one.name.cmp(&other.name));
        Self(Arc::new(Inner { watchdog, allow_repository_templates, embedded }))
    }

    /// Every template that comes with the program, by name.
    pub fn all(&self) -> &[Template] {
        &self.0.embedded
    }

    /// The template that `lang` names, in upper or lower case, by name or alias; a version after
    /// `@` is accepted and has no meaning. Looks into the repository first where that is allowed.
    ///
    /// # Errors
    /// The owner's fault: no such template, or the repository's own is wrong.
    pub fn find(&self, checkout: &Path, lang: &str) -> Result<Template, TemplateError> {
        let wanted = lang.trim().to_lowercase();
        let wanted = wanted.split_once('@').map_or(wanted.as_str(), |(name, _)| name);
        if self.0.allow_repository_templates
            && wanted != DOCKERFILE
            && let Some(template) = Template::of_repository(checkout, wanted)?
        {
            return Ok(template);
        }
        self.embedded(wanted).cloned().ok_or_else(|| self.unknown(checkout, lang, wanted))
    }

    /// A template that comes with the program, by name or alias.
    pub fn embedded(&self, name: &str) -> Option<&Template> {
        let is = |template: &&Template| {
            template.name == name || template.aliases.iter().any(|alias| alias == name)
        };
        self.0.embedded.iter().find(is)
    }

    pub(crate) fn watchdog(&self) -> &Bytes {
        &self.0.watchdog
    }

    fn unknown(&self, checkout: &Path, lang: &str, wanted: &str) -> TemplateError {
        let names = self.0.embedded.iter().map(|template| template.name.as_str());
        let aliases =
            self.0.embedded.iter().flat_map(|template| template.aliases.iter().map(String::as_str));
        let all: Vec<&str> = names.clone().collect();
        let mut hint = match nearest(wanted, names.chain(aliases)) {
            Some(name) => format!("did you mean `{name}`? There are {}", all.join(", ")),
            None => format!("there are {}", all.join(", ")),
        };
        if !self.0.allow_repository_templates && has_folder(checkout, wanted) {
            hint.push_str("; the repository's own `template/` folder is not used on this platform");
        }
        TemplateError::Unknown { name: lang.to_owned(), hint }
    }
}

impl fmt::Debug for Templates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Templates")
            .field("allow_repository_templates", &self.0.allow_repository_templates)
            .field("embedded", &self.0.embedded.len())
            .finish_non_exhaustive()
    }
}

impl Template {
    /// The files of a new function, for `updraft new`; a repository's own template has none.
    pub fn sample(&self) -> Vec<SampleFile> {
        let Origin::Embedded(folder) = self.origin else { return Vec::new() };
        let mut files = Vec::new();
        each_file(folder, "", &mut |path, content, executable| {
            let shared = |folder: &String| {
                path.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
            };
            if let Some(path) = path.strip_prefix("function/") {
                files.push(SampleFile { path: path.to_owned(), content, executable });
            } else if self.sample_folders.iter().any(shared) {
                files.push(SampleFile { path: path.to_owned(), content, executable });
            }
        });
        files
    }

    pub(crate) fn is_dockerfile(&self) -> bool {
        self.name == DOCKERFILE
    }

    /// The packages that the named build options stand for.
    pub(crate) fn packages(&self, options: &[String]) -> Result<Vec<String>, TemplateError> {
        let mut packages = Vec::new();
        for option in options {
            let known = self.build_options.iter().find(|(name, _)| name == option);
            let (_, named) = known.ok_or_else(|| TemplateError::BuildOption {
                template: self.name.clone(),
                option: option.clone(),
                hint: if self.build_options.is_empty() {
                    "this template has none, remove the line".to_owned()
                } else {
                    let names: Vec<_> =
                        self.build_options.iter().map(|(name, _)| name.as_str()).collect();
                    format!("there are {}", names.join(", "))
                },
            })?;
            packages.extend_from_slice(named);
        }
        Ok(packages)
    }

    /// Puts the template's own files into a context.
    pub(crate) fn copy_to(
        &self,
        checkout: &OwnedFd,
        copier: &mut Copier<'_>,
    ) -> Result<(), TemplateError> {
        match &self.origin {
            Origin::Embedded(_) if self.is_dockerfile() => Ok(()),
            Origin::Embedded(folder) => {
                let mut result = Ok(());
                each_file(folder, "", &mut |path, content, executable| {
                    let ours = path != METADATA && !path.starts_with("function/");
                    if ours && result.is_ok() {
                        result = copier.bytes(content, executable, path);
                    }
                });
                Ok(result?)
            }
            Origin::Repository(path) => {
                let folder = open_folder(checkout, path)
                    .map_err(|cause| TemplateError::Open { template: self.name.clone(), cause })?;
                // With its sample function, as upstream does: templates rely on its defaults.
                Ok(copier.tree(&folder, path.as_str(), "", &|name| name == METADATA)?)
            }
        }
    }

    fn embedded(folder: &'static Dir<'static>) -> Self {
        let name = folder.path().to_string_lossy().into_owned();
        let metadata = folder
            .get_file(folder.path().join(METADATA))
            .and_then(include_dir::File::contents_utf8)
            .unwrap_or_default();
        let mut template = metadata::read(&name, METADATA, metadata)
            .expect("a test reads the metadata of every embedded template");
        template.origin = Origin::Embedded(folder);
        template
    }

    /// `template/<name>` of the repository, if there is one.
    fn of_repository(checkout: &Path, name: &str) -> Result<Option<Self>, TemplateError> {
        if !is_name(name) {
            return Ok(None);
        }
        let open = |cause| TemplateError::Open { template: name.to_owned(), cause };
        let path =
            |text: String| RelativePath::new(&text).map_err(|_| open(OpenError::Missing(text)));
        let root = open_root(checkout).map_err(TemplateError::Checkout)?;
        let folder = path(format!("template/{name}"))?;
        match open_folder(&root, &folder) {
            Ok(_) => {}
            Err(OpenError::Missing(_)) => return Ok(None),
            Err(cause) => return Err(open(cause)),
        }
        let file = path(format!("{folder}/{METADATA}"))?;
        let text = match read_text(&root, &file, METADATA_MAX) {
            Ok(text) => text,
            // Older templates had none.
            Err(OpenError::Missing(_)) => String::new(),
            Err(cause) => return Err(open(cause)),
        };
        let mut template = metadata::read(name, file.as_str(), &text)
            .map_err(|diagnostic| TemplateError::Metadata(Box::new(diagnostic)))?;
        template.aliases.clear();
        template.origin = Origin::Repository(folder);
        Ok(Some(template))
    }
}

/// Whether the repository brings a template of that name.
fn has_folder(checkout: &Path, name: &str) -> bool {
    let path = RelativePath::new(&format!("template/{name}"));
    match (open_root(checkout), path) {
        (Ok(root), Ok(path)) if is_name(name) => open_folder(root, &path).is_ok(),
        _ => false,
    }
}

/// Whether a text can be the name of a template's folder.
fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= 64 && !text.starts_with('.') && text.chars().all(fits)
}

/// Calls `each` with path, content and executable bit of every file. Modes are not embedded, so
/// scripts are told by their first two bytes.
fn each_file(
    folder: &'static Dir<'static>,
    prefix: &str,
    each: &mut dyn FnMut(&str, &'static [u8], bool),
) {
    let last = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for file in folder.files() {
        let path = format!("{prefix}{}", last(file.path()));
        each(&path, file.contents(), file.contents().starts_with(b"#!"));
    }
    for inner in folder.dirs() {
        let prefix = format!("{prefix}{}/", last(inner.path()));
        each_file(inner, &prefix, each);
    }
}

#[cfg(test)]
mod tests;
