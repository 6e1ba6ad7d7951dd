//! `updraft new`: a handler in a language and its entry in the stack file.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;
use updraft_model::FunctionName;
use updraft_source::template::{Template, Templates};

use crate::cli::New;
use crate::output::Output;

const STACK_FILE: &str = "stack.yml";

/// What opens a stack file that has no functions yet.
const STACK_HEAD: &str = "version: 1.0\nprovider:\n  name: openfaas\nfunctions:\n";

pub(crate) fn run(command: &New, output: Output) -> Result<()> {
    let templates = Templates::new(crate::WATCHDOG.into(), false);
    let (Some(name), Some(lang), false) = (&command.name, &command.lang, command.list) else {
        return list(&templates, output);
    };
    let name = FunctionName::new(name.as_str())?;
    let template = templates.find(&command.folder, lang)?;
    let handler = command.folder.join(name.as_str());
    if handler.symlink_metadata().is_ok() {
        bail!("{} is there already; choose another name or folder", handler.display());
    }
    let stack_file = command.folder.join(STACK_FILE);
    let entry = stack_entry(&name, &template);
    let stack = match fs::read_to_string(&stack_file) {
        Ok(text) => with_entry(&text, &entry).with_context(|| {
            format!(
                "cannot add to {}; add this below `functions:` yourself:\n{entry}",
                stack_file.display()
            )
        })?,
        Err(_) => format!("{STACK_HEAD}{entry}"),
    };

    for file in template.sample() {
        write_new(&handler.join(&file.path), file.content, file.executable)?;
    }
    fs::write(&stack_file, stack)
        .with_context(|| format!("cannot write {}", stack_file.display()))?;
    if output.is_json() {
        return output.json(&json!({"function": name, "handler": handler, "stack": stack_file}));
    }
    output.line(&format!("{} and {} are ready", handler.display(), stack_file.display()))?;
    if !template.welcome.trim().is_empty() {
        output.line(template.welcome.trim_end())?;
    }
    let folder = command.folder.display();
    output.line(&format!("Next: updraft push --owner NAME {folder}"))
}

fn list(templates: &Templates, output: Output) -> Result<()> {
    if output.is_json() {
        let templates: Vec<_> = templates
            .all()
            .iter()
            .map(|template| {
                json!({
                    "name": template.name,
                    "aliases": template.aliases,
                    "description": template.description,
                })
            })
            .collect();
        return output.json(&templates);
    }
    let rows: Vec<_> = templates
        .all()
        .iter()
        .map(|template| {
            vec![template.name.clone(), template.description.clone(), template.aliases.join(", ")]
        })
        .collect();
    output.table(&["LANGUAGE", "WHAT", "ALSO CALLED"], &rows)
}

fn stack_entry(name: &FunctionName, template: &Template) -> String {
    let lang = &template.name;
    format!("  {name}:\n    lang: {lang}\n    handler: ./{name}\n    image: {name}:latest\n")
}

/// The stack file with the entry behind the last line of its `functions:` block; nothing when
/// the file has no such block that a line can be added to.
fn with_entry(stack: &str, entry: &str) -> Option<String> {
    let is_top_level = |line: &str| !line.starts_with([' ', '\t', '#']) && !line.trim().is_empty();
    let mut lines: Vec<&str> = stack.lines().collect();
    let start = lines.iter().position(|line| line.trim_end() == "functions:")?;
    let length = lines[start + 1..].iter().position(|line| is_top_level(line));
    let mut end = length.map_or(lines.len(), |length| start + 1 + length);
    while end > start + 1 && lines[end - 1].trim().is_empty() {
        end -= 1;
    }
    lines.insert(end, entry.trim_end());
    Some(lines.join("\n") + "\n")
}

fn write_new(path: &Path, content: &[u8], executable: bool) -> Result<()> {
    let write = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mode = if executable { 0o755 } else { 0o644 };
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(content)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = "  b:\n    lang: static\n";

    #[test]
    fn an_entry_goes_behind_the_last_function() {
        let stack =
            "version: 1.0\nfunctions:\n  a:\n    lang: node\n\nconfiguration:\n  copy: []\n";
        let expected = "version: 1.0\nfunctions:\n  a:\n    lang: node\n  b:\n    lang: static\n\nconfiguration:\n  copy: []\n";
        assert_eq!(with_entry(stack, ENTRY).unwrap(), expected);
        assert_eq!(with_entry("functions:\n", ENTRY).unwrap(), format!("functions:\n{ENTRY}"));
    }

    #[test]
    fn a_stack_file_without_a_block_of_functions_is_left_alone() {
        assert_eq!(with_entry("functions: {}\n", ENTRY), None);
        assert_eq!(with_entry("version: 1.0\n", ENTRY), None);
    }
}
