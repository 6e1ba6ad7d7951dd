//! The schema of a stack file: which field means what, which are ignored with a warning.

use std::collections::BTreeMap;

use updraft_model::{FunctionName, ImageRef, annotations, labels, parse_duration};

use super::fields::Reader;
use super::{FUNCTIONS_MAX, StackFunction};
use crate::diagnostic::{Diagnostic, Position, quoted};
use crate::path::RelativePath;
use crate::yaml::{Entry, Node, Value};

const TOP_FIELDS: [&str; 5] =
    ["version", "provider", "functions", "configuration", "sealed_secrets"];

/// Most files with sealed secrets that a stack names.
const SECRET_FILES_MAX: usize = 50;

const FUNCTION_FIELDS: [&str; 23] = [
    "lang",
    "handler",
    "image",
    "fprocess",
    "environment",
    "environment_file",
    "secrets",
    "skip_build",
    "constraints",
    "labels",
    "annotations",
    "limits",
    "requests",
    "readonly_root_filesystem",
    "build_options",
    "build_args",
    "build_secrets",
    "platforms",
    "namespace",
    "registry_auth",
    "network",
    "name",
    "timeout",
];

/// Labels and annotations with this prefix say where a function came from; only a push sets them.
const PLATFORM_PREFIX: &str = "com.openfaas.cloud.";

/// What a stack file says.
pub(super) struct Parts {
    pub(super) functions: BTreeMap<FunctionName, StackFunction>,
    /// `configuration.copy`.
    pub(super) copy: Vec<String>,
    pub(super) sealed_secrets: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Reads the whole file.
pub(super) fn read(mut reader: Reader<'_>, root: Node) -> Result<Parts, Diagnostic> {
    let mut functions = None;
    let mut copy = Vec::new();
    let mut sealed_secrets = Vec::new();
    if root.value == Value::Null {
        return Err(reader
            .complain(root.position, "the stack file is empty")
            .hint("`updraft new hello --lang python` writes one"));
    }
    let root_position = root.position;
    for entry in reader.map(root, "the stack file")? {
        match entry.key.as_str() {
            "version" => version(&mut reader, entry.node)?,
            "provider" => provider(&mut reader, entry.node)?,
            "functions" => functions = Some(self::functions(&mut reader, entry.node)?),
            "configuration" => copy = configuration(&mut reader, entry.node)?,
            "sealed_secrets" => sealed_secrets = self::sealed_secrets(&mut reader, entry.node)?,
            // Compose's convention for a place to keep anchors.
            key if key.starts_with("x-") => {}
            _ => reader.warn_unknown(&entry, "of the stack file", &TOP_FIELDS),
        }
    }
    let functions = functions.ok_or_else(|| {
        let complaint = reader.complain(root_position, "the stack file declares no `functions`");
        match reader.warnings.first() {
            Some(warning) => complaint.hint(warning.as_str()),
            None => complaint.hint("`functions: {}` is how a repository says that it has none"),
        }
    })?;
    Ok(Parts { functions, copy, sealed_secrets, warnings: reader.warnings })
}

fn sealed_secrets(reader: &mut Reader<'_>, node: Node) -> Result<Vec<String>, Diagnostic> {
    let mut files = Vec::new();
    for (position, text) in reader.list(node, "sealed_secrets")? {
        if files.len() == SECRET_FILES_MAX {
            let message = format!("`sealed_secrets` names more than {SECRET_FILES_MAX} files");
            return Err(reader.complain(position, message).hint("a file may hold many secrets"));
        }
        files.push(relative(reader, position, &text, "sealed_secrets")?);
    }
    Ok(files)
}

fn version(reader: &mut Reader<'_>, node: Node) -> Result<(), Diagnostic> {
    let position = node.position;
    let version = reader.text(node, "version")?;
    match version.trim() {
        "" | "1" | "1.0" => Ok(()),
        other => Err(reader
            .complain(position, format!("stack file version {} is not known", quoted(other)))
            .hint("write `version: 1.0`, or leave it out")),
    }
}

fn provider(reader: &mut Reader<'_>, node: Node) -> Result<(), Diagnostic> {
    for entry in reader.map(node, "provider")? {
        let position = entry.node.position;
        match entry.key.as_str() {
            "name" => {
                let name = reader.text(entry.node, "provider.name")?;
                if !matches!(name.trim(), "openfaas" | "faas" | "") {
                    let message = format!("provider {} is not known", quoted(&name));
                    return Err(reader.complain(position, message).hint("write `name: openfaas`"));
                }
            }
            // Where the owner's own faas-cli talks to; a push already arrived.
            "gateway" | "network" => {}
            _ => reader.warn_unknown(&entry, "of `provider`", &["name", "gateway"]),
        }
    }
    Ok(())
}

fn configuration(reader: &mut Reader<'_>, node: Node) -> Result<Vec<String>, Diagnostic> {
    let mut copy = Vec::new();
    for entry in reader.map(node, "configuration")? {
        match entry.key.as_str() {
            "copy" => {
                for (position, text) in reader.list(entry.node, "configuration.copy")? {
                    let path = relative(reader, position, &text, "configuration.copy")?;
                    if path == "." {
                        let message = "`configuration.copy` cannot name the whole repository";
                        return Err(reader.complain(position, message));
                    }
                    copy.push(path);
                }
            }
            "templates" => {
                if entry.node.value != Value::Null {
                    reader.warn(
                        entry.key_position,
                        "`configuration.templates` is ignored: templates come with Updraft and are never fetched",
                    );
                }
            }
            _ => reader.warn_unknown(&entry, "of `configuration`", &["copy", "templates"]),
        }
    }
    Ok(copy)
}

fn functions(
    reader: &mut Reader<'_>,
    node: Node,
) -> Result<BTreeMap<FunctionName, StackFunction>, Diagnostic> {
    let entries = reader.map(node, "functions")?;
    if let Some(entry) = entries.get(FUNCTIONS_MAX) {
        let message =
            format!("the stack declares {} functions, {FUNCTIONS_MAX} are allowed", entries.len());
        return Err(reader.complain(entry.key_position, message));
    }
    let mut functions = BTreeMap::new();
    for entry in entries {
        let name: FunctionName = entry.key.parse().map_err(|error: updraft_model::NameError| {
            let complaint = reader.complain(entry.key_position, error.to_string());
            let suggestion: String = entry
                .key
                .to_lowercase()
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
                .collect();
            match FunctionName::new(suggestion.trim_matches('-')) {
                Ok(suggestion) => complaint.hint(format!("`{suggestion}` would do")),
                Err(_) => complaint,
            }
        })?;
        let function = function(reader, &name, entry.key_position, entry.node)?;
        functions.insert(name, function);
    }
    Ok(functions)
}

fn function(
    reader: &mut Reader<'_>,
    name: &FunctionName,
    name_position: Position,
    node: Node,
) -> Result<StackFunction, Diagnostic> {
    let mut function = StackFunction { line: name_position.line, ..StackFunction::default() };
    let mut image_position = name_position;
    let mut build_options_line = None;
    let mut timeout = None;
    for entry in reader.map(node, name.as_str())? {
        let position = entry.node.position;
        let field = entry.key.clone();
        match field.as_str() {
            "lang" => {
                function.template_position = position;
                function.template = reader.optional(entry.node, &field)?.unwrap_or_default();
            }
            "handler" => {
                let text = reader.text(entry.node, &field)?;
                function.handler = relative(reader, position, text.trim(), &field)?;
            }
            "image" => {
                image_position = position;
                function.image = reader.optional(entry.node, &field)?;
            }
            "fprocess" => function.process = reader.optional(entry.node, &field)?,
            "environment" => function.environment = reader.environment(entry.node, &field)?,
            "environment_file" => {
                for (position, text) in reader.list(entry.node, &field)? {
                    let path = relative(reader, position, text.trim(), &field)?;
                    function.environment_files.push(path);
                }
            }
            "secrets" => {
                for (position, text) in reader.list(entry.node, &field)? {
                    let secret = reader.parsed(position, &text)?;
                    if !function.secrets.contains(&secret) {
                        function.secrets.push(secret);
                    }
                }
            }
            "skip_build" => function.skip_build = reader.switch(entry.node, &field)?,
            "constraints" => {
                function.constraints =
                    reader.list(entry.node, &field)?.into_iter().map(|(_, text)| text).collect();
                if !function.constraints.is_empty() {
                    let message = format!(
                        "`constraints` of function `{name}` have no effect: one machine runs everything"
                    );
                    reader.warn(entry.key_position, message);
                }
            }
            "labels" => function.labels = marks(reader, name, entry)?,
            "annotations" => function.annotations = marks(reader, name, entry)?,
            "limits" => function.limits = reader.resources(entry.node, &field, name.as_str())?,
            "requests" => {
                function.requests = reader.resources(entry.node, &field, name.as_str())?;
            }
            "readonly_root_filesystem" => {
                if entry.node.value != Value::Null {
                    function.read_only_root = Some(reader.switch(entry.node, &field)?);
                }
            }
            "build_options" => {
                build_options_line = Some(position);
                function.build_options =
                    reader.list(entry.node, &field)?.into_iter().map(|(_, text)| text).collect();
            }
            "build_args" => function.build_args = build_args(reader, entry.node)?,
            "timeout" => {
                let position = entry.node.position;
                timeout = reader.optional(entry.node, &field)?;
                let fits = |text: &String| parse_duration(text).is_ok_and(|limit| !limit.is_zero());
                if timeout.as_ref().is_some_and(|text| !fits(text)) {
                    let message = format!(
                        "`timeout` of function `{name}` is no duration above zero, such as `30` or `1m30s`"
                    );
                    return Err(reader.complain(position, message));
                }
            }
            "namespace" => {
                let position = entry.node.position;
                if let Some(text) = reader.optional(entry.node, &field)? {
                    let namespace = reader.parsed(position, &text)?;
                    if namespace != updraft_model::Namespace::default() {
                        let message = format!(
                            "`namespace` of function `{name}` is ignored: a push deploys to its owner's place"
                        );
                        reader.warn(entry.key_position, message);
                    }
                    function.namespace = Some(namespace);
                }
            }
            "name" => {
                let other = reader.text(entry.node, &field)?;
                if other.trim() != name.as_str() {
                    let message = format!(
                        "`name` of function `{name}` is ignored: its key in `functions` is its name"
                    );
                    reader.warn(entry.key_position, message);
                }
            }
            "build_secrets" | "platforms" | "registry_auth" | "network" => {
                ignored(reader, name, &entry);
            }
            _ => {
                let whose = format!("of function `{name}`");
                reader.warn_unknown(&entry, &whose, &FUNCTION_FIELDS);
            }
        }
    }
    if let Some(timeout) = timeout {
        function.annotations.entry(annotations::TIMEOUT.to_owned()).or_insert(timeout);
    }
    take_process(&mut function);
    required(reader, name, name_position, &function, image_position)?;
    if let (Some(position), "dockerfile") = (build_options_line, function.template.as_str())
        && !function.build_options.is_empty()
    {
        let message = format!(
            "`build_options` of function `{name}` are ignored: `lang: dockerfile` has no template"
        );
        reader.warn(position, message);
        function.build_options.clear();
    }
    Ok(function)
}

/// The fields that a function cannot be without.
fn required(
    reader: &mut Reader<'_>,
    name: &FunctionName,
    name_position: Position,
    function: &StackFunction,
    image_position: Position,
) -> Result<(), Diagnostic> {
    let lacks =
        |field: &str| reader.complain(name_position, format!("function `{name}` has no `{field}`"));
    if function.skip_build {
        let Some(image) = &function.image else {
            return Err(lacks("image")
                .hint("with `skip_build: true` the image is deployed as it is, so name one"));
        };
        if let Err(error) = image.parse::<ImageRef>() {
            return Err(reader.complain(image_position, error.to_string()));
        }
        return Ok(());
    }
    if function.template.is_empty() {
        return Err(lacks("lang").hint("for instance `lang: python`, or `lang: dockerfile`"));
    }
    if function.handler.is_empty() {
        return Err(lacks("handler").hint(format!("for instance `handler: ./{name}`")));
    }
    Ok(())
}

/// Moves `fprocess` out of the environment, where older files set it, unless the field is set.
pub(super) fn take_process(function: &mut StackFunction) {
    if let Some(process) = function.environment.remove("fprocess") {
        function.process.get_or_insert(process);
    }
}

/// Fields that OpenFaaS knows and a push has no use for.
fn ignored(reader: &mut Reader<'_>, name: &FunctionName, entry: &Entry) {
    if entry.node.value == Value::Null {
        return;
    }
    let why = match entry.key.as_str() {
        "build_secrets" => "builds see no secrets",
        "platforms" => "images are built for this machine",
        "registry_auth" => {
            "credentials do not belong into a repository, remove them from its history"
        }
        _ => "functions have one network",
    };
    let field = &entry.key;
    reader.warn(entry.key_position, format!("`{field}` of function `{name}` is ignored: {why}"));
}

/// Labels or annotations, without those that only the platform may set.
fn marks(
    reader: &mut Reader<'_>,
    name: &FunctionName,
    entry: Entry,
) -> Result<BTreeMap<String, String>, Diagnostic> {
    let field = entry.key;
    let mut marks = BTreeMap::new();
    for (key, position, value) in reader.texts(entry.node, &field)? {
        if key.is_empty() || key.contains('\0') || value.contains('\0') {
            let message = format!("{} cannot be a key in `{field}`", quoted(&key));
            return Err(reader.complain(position, message));
        }
        let platform = key.starts_with(PLATFORM_PREFIX)
            || key == labels::FUNCTION
            || (field == "annotations" && key == annotations::RELEASE);
        if platform {
            let key = quoted(&key);
            let message =
                format!("{key} in `{field}` of function `{name}` is ignored: the platform sets it");
            reader.warn(position, message);
        } else {
            marks.insert(key, value);
        }
    }
    Ok(marks)
}

fn build_args(reader: &mut Reader<'_>, node: Node) -> Result<BTreeMap<String, String>, Diagnostic> {
    let mut arguments = BTreeMap::new();
    for (name, position, value) in reader.texts(node, "build_args")? {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            || !name.chars().all(fits)
        {
            let message = format!("{} cannot name a build argument", quoted(&name));
            return Err(reader
                .complain(position, message)
                .hint("letters, digits and `_`, not beginning with a digit"));
        }
        if value.contains('\0') {
            return Err(reader.complain(position, "a build argument holds a NUL character"));
        }
        arguments.insert(name, value);
    }
    Ok(arguments)
}

/// A path of the repository, checked and without detours.
fn relative(
    reader: &mut Reader<'_>,
    position: Position,
    text: &str,
    field: &str,
) -> Result<String, Diagnostic> {
    RelativePath::new(text)
        .map(|path| path.as_str().to_owned())
        .map_err(|error| reader.complain(position, format!("`{field}`: {error}")))
}
