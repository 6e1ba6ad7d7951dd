//! Build contexts: a function's code and its template's files in one folder, ready for a builder.
//!
//! The layout is OpenFaaS': template files in the root, the handler's content in the handler folder,
//! `configuration.copy` below that; for `lang: dockerfile` the handler's content is the root. The
//! digest names the content whole, so that the same input is never built twice.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use updraft_model::{Digest, FunctionName};

use crate::path::{OpenError, PathError, RelativePath, open_file, open_folder, open_root};
use crate::stack::{Stack, StackFunction};
use crate::template::{Template, TemplateError, Templates};
use crate::tree::Copier;
pub use crate::tree::{ContextLimits, CopyError};

/// The file name of the watchdog in every context.
const WATCHDOG: &str = "fwatchdog";

/// The build argument that carries the packages of `build_options`.
const ADDITIONAL_PACKAGE: &str = "ADDITIONAL_PACKAGE";

/// What a context is made of and where it goes.
#[derive(Debug, Clone, Copy)]
pub struct ContextRequest<'a> {
    /// The folder that the commit was checked out to.
    pub checkout: &'a Path,
    /// The stack that was read from it.
    pub stack: &'a Stack,
    /// Which of its functions.
    pub function: &'a FunctionName,
    /// The templates to choose from.
    pub templates: &'a Templates,
    /// The folder to make; one that exists is removed first.
    pub destination: &'a Path,
    /// Bounds on what the owner may put in.
    pub limits: &'a ContextLimits,
}

/// A build context on disk.
#[derive(Debug, Clone)]
pub struct Context {
    /// The folder, with a `Dockerfile` in it.
    pub folder: PathBuf,
    /// Digest of every path, mode, byte and build argument.
    pub digest: Digest,
    /// Arguments of the build, those of `build_options` included.
    pub build_args: BTreeMap<String, String>,
    /// The process that overrides the image's own, from the stack or the template.
    pub process: Option<String>,
}

/// Why a context cannot be made. The owner's fault, but for the causes that are I/O errors.
#[derive(Debug, Error)]
pub enum ContextError {
    /// The caller's fault: the stack has no such function.
    #[error("the stack declares no function `{0}`")]
    Function(FunctionName),
    /// A path that leaves the repository.
    #[error("{field}: {cause}")]
    Path {
        /// The field of the stack.
        field: &'static str,
        /// What is wrong with the path.
        cause: PathError,
    },
    /// The handler, or a path of `configuration.copy`, cannot be opened.
    #[error("{field}: {cause}")]
    Open {
        /// The field of the stack.
        field: &'static str,
        /// Why not.
        cause: OpenError,
    },
    /// The template is unknown or wrong.
    #[error("{0}")]
    Template(#[from] TemplateError),
    /// The files cannot be copied.
    #[error("{0}")]
    Copy(#[from] CopyError),
    /// Nothing tells the builder what to do.
    #[error("{place} has no `Dockerfile`\nhint: {hint}")]
    Dockerfile {
        /// The handler or template.
        place: String,
        /// What to do.
        hint: &'static str,
    },
    /// The platform's fault.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: std::io::Error,
    },
}

impl ContextError {
    /// Whether the platform failed, not the repository: trying again may help.
    pub const fn is_internal(&self) -> bool {
        matches!(
            self,
            Self::Io { .. }
                | Self::Open { cause: OpenError::Io { .. }, .. }
                | Self::Copy(CopyError::Read { .. } | CopyError::Write { .. })
                | Self::Template(
                    TemplateError::Checkout(_)
                        | TemplateError::Open { cause: OpenError::Io { .. }, .. }
                        | TemplateError::Copy(CopyError::Read { .. } | CopyError::Write { .. })
                )
        )
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.folder.display(), self.digest.short())
    }
}

/// Makes the build context of one function. Blocks on disk; call it off the async threads.
///
/// # Errors
/// See [`ContextError`]. What was written so far stays until the next call or the caller's clean-up.
pub fn prepare(request: ContextRequest<'_>) -> Result<Context, ContextError> {
    let ContextRequest { checkout, stack, function: name, templates, destination, limits } =
        request;
    let function = stack.functions.get(name).ok_or_else(|| ContextError::Function(name.clone()))?;
    let template = templates.find(checkout, &function.template)?;
    let build_args = build_args(function, &template)?;
    empty(destination)?;
    let io = |cause| ContextError::Io { action: "open", path: checkout.to_owned(), cause };
    let root = open_root(checkout).map_err(io)?;
    let mut copier = Copier::new(destination, limits)?;

    template.copy_to(&root, &mut copier)?;
    let path = |field, text: &str| {
        RelativePath::new(text).map_err(|cause| ContextError::Path { field, cause })
    };
    let handler = path("handler", &function.handler)?;
    let folder = open_folder(&root, &handler)
        .map_err(|cause| ContextError::Open { field: "handler", cause })?;
    let to = template.handler_folder.as_str();
    copier.tree(&folder, handler.as_str(), to, &|name| {
        name == ".git" || (!template.is_dockerfile() && (name == "build" || name == "template"))
    })?;
    for copy in &stack.copy {
        let copy = path("configuration.copy", copy)?;
        let open = |cause| ContextError::Open { field: "configuration.copy", cause };
        let inside = if to.is_empty() { copy.to_string() } else { format!("{to}/{copy}") };
        match open_folder(&root, &copy) {
            Ok(folder) => copier.tree(&folder, copy.as_str(), &inside, &|name| name == ".git")?,
            Err(OpenError::Kind { .. }) => {
                let (file, _) = open_file(&root, &copy).map_err(open)?;
                copier.file(file, copy.as_str(), &inside)?;
            }
            Err(cause) => return Err(open(cause)),
        }
    }
    if !copier.has("Dockerfile") {
        return Err(no_dockerfile(&template, function, &copier));
    }
    if !copier.has(WATCHDOG) {
        copier.bytes(templates.watchdog(), true, WATCHDOG)?;
    }
    let digest = copier.digest(&build_args);
    let process = function.process.clone().or_else(|| template.process.clone());
    Ok(Context { folder: destination.to_owned(), digest, build_args, process })
}

/// Build arguments of the stack, with the packages that `build_options` stand for.
fn build_args(
    function: &StackFunction,
    template: &Template,
) -> Result<BTreeMap<String, String>, TemplateError> {
    let mut arguments = function.build_args.clone();
    let packages = template.packages(&function.build_options)?;
    if !packages.is_empty() {
        let given = arguments.remove(ADDITIONAL_PACKAGE).unwrap_or_default();
        let mut all: Vec<&str> = packages.iter().map(String::as_str).collect();
        all.extend(given.split_whitespace());
        all.sort_unstable();
        all.dedup();
        arguments.insert(ADDITIONAL_PACKAGE.to_owned(), all.join(" "));
    }
    Ok(arguments)
}

/// Makes the folder anew, so that a run that was cut short leaves nothing behind.
fn empty(destination: &Path) -> Result<(), ContextError> {
    let io = |action| move |cause| ContextError::Io { action, path: destination.to_owned(), cause };
    match std::fs::remove_dir_all(destination) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            return Err(io("remove")(cause));
        }
        _ => {}
    }
    std::fs::create_dir_all(destination).map_err(io("create"))
}

fn no_dockerfile(
    template: &Template,
    function: &StackFunction,
    copier: &Copier<'_>,
) -> ContextError {
    if !template.is_dockerfile() {
        let place = format!("template `{}`", template.name);
        let hint = "a template is a folder with `template.yml` and `Dockerfile`";
        return ContextError::Dockerfile { place, hint };
    }
    let hint = if ["dockerfile", "DockerFile", "DOCKERFILE", "Containerfile"]
        .iter()
        .any(|name| copier.has(name))
    {
        "rename it: the name is `Dockerfile`, with a capital D"
    } else {
        "`lang: dockerfile` builds the handler's own `Dockerfile`; for another language write its name"
    };
    ContextError::Dockerfile { place: format!("handler `{}`", function.handler), hint }
}

#[cfg(test)]
mod tests;
