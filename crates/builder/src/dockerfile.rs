//! Reads what a Dockerfile starts from, and refuses what a contained build cannot grant.
//!
//! This is no full parser: `buildah` is. It finds the images that are needed before the build
//! (`FROM`, `COPY --from`), so that they can be fetched, named in the build's key and pinned,
//! and the `RUN --mount` flags, whose sources have led out of builds more than once.

use std::collections::BTreeMap;
use std::ops::Range;

use updraft_model::ImageRef;

use crate::BuildError;

mod expand;

/// Largest Dockerfile read.
pub(crate) const BYTES_MAX: usize = 1 << 20;
/// Most images one Dockerfile may name.
const IMAGES_MAX: usize = 32;

/// A Dockerfile, read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dockerfile {
    text: String,
    /// Images that have to be here, in the order of their places.
    pub(crate) images: Vec<Needed>,
    /// Places behind each `FROM`, and whether programs run in that stage.
    stages: Vec<(usize, bool)>,
    /// Flags left out, because the build goes as well without them.
    dropped: Vec<Range<usize>>,
    /// Sources of bind mounts out of the context, with their lines.
    pub(crate) binds: Vec<(usize, String)>,
    /// What the author should know.
    pub(crate) warnings: Vec<String>,
}

/// An image that a Dockerfile names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Needed {
    pub(crate) image: ImageRef,
    pub(crate) line: usize,
    place: Range<usize>,
}

/// One instruction with its continuation lines; the ranges are of the text.
struct Instruction {
    line: usize,
    range: Range<usize>,
}

struct Reader<'a> {
    text: &'a str,
    arguments: &'a BTreeMap<String, String>,
    globals: BTreeMap<String, String>,
    stage_names: Vec<String>,
    file: Dockerfile,
}

impl Dockerfile {
    /// Reads `text`; `arguments` are the values given for its `ARG`s.
    pub(crate) fn parse(
        text: &str,
        arguments: &BTreeMap<String, String>,
    ) -> Result<Self, BuildError> {
        let mut reader = Reader {
            text,
            arguments,
            globals: BTreeMap::new(),
            stage_names: Vec::new(),
            file: Self {
                text: text.to_owned(),
                images: Vec::new(),
                stages: Vec::new(),
                dropped: Vec::new(),
                binds: Vec::new(),
                warnings: Vec::new(),
            },
        };
        for instruction in instructions(text) {
            reader.instruction(&instruction)?;
        }
        if reader.file.stages.is_empty() {
            return Err(wrong(1, "it has no `FROM`"));
        }
        if reader.file.images.len() > IMAGES_MAX {
            return Err(wrong(1, &format!("it names more than {IMAGES_MAX} images")));
        }
        Ok(reader.file)
    }

    /// The text for the build: each image replaced by what `pin` gives for it, and `variables`
    /// declared in each stage that runs something.
    pub(crate) fn pinned(
        &self,
        pin: impl Fn(&ImageRef) -> String,
        variables: &[(String, String)],
    ) -> String {
        let declared: String = variables.iter().fold(String::new(), |mut line, (name, value)| {
            line.push_str(if line.is_empty() { "\nARG " } else { " " });
            line.push_str(name);
            line.push('=');
            line.push_str(value);
            line
        });
        let images = self.images.iter().map(|needed| (needed.place.clone(), pin(&needed.image)));
        let stages = self.stages.iter().filter(|(_, runs)| *runs);
        let stages = stages.map(|(end, _)| (*end..*end, declared.clone()));
        let dropped = self.dropped.iter().map(|range| (range.clone(), String::new()));
        let mut changes: Vec<(Range<usize>, String)> =
            images.chain(stages).chain(dropped).collect();
        changes.sort_by_key(|(range, _)| (range.start, range.end));
        let mut result = String::with_capacity(self.text.len() + 256);
        let mut done = 0;
        for (range, new) in changes {
            result.push_str(&self.text[done..range.start]);
            result.push_str(&new);
            done = range.end;
        }
        result.push_str(&self.text[done..]);
        result
    }
}

impl Reader<'_> {
    fn instruction(&mut self, instruction: &Instruction) -> Result<(), BuildError> {
        let words = words(self.text, instruction.range.clone());
        let Some(first) = words.first() else { return Ok(()) };
        let rest = &words[1..];
        match self.text[first.clone()].to_ascii_uppercase().as_str() {
            "FROM" => self.from(instruction, rest),
            "ARG" if self.file.stages.is_empty() => {
                self.global_arguments(rest);
                Ok(())
            }
            "COPY" | "ADD" => {
                self.heredoc(instruction, rest)?;
                for word in flags(self.text, rest) {
                    if let Some(source) = self.text[word.clone()].strip_prefix("--from=") {
                        let place = word.end - source.len()..word.end;
                        self.source(instruction.line, place)?;
                    }
                }
                Ok(())
            }
            "RUN" => {
                if let Some((_, runs)) = self.file.stages.last_mut() {
                    *runs = true;
                }
                self.heredoc(instruction, rest)?;
                for word in flags(self.text, rest) {
                    self.run_flag(instruction.line, word)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn from(
        &mut self,
        instruction: &Instruction,
        words: &[Range<usize>],
    ) -> Result<(), BuildError> {
        let words: Vec<_> =
            words.iter().skip_while(|word| self.text[(*word).clone()].starts_with("--")).collect();
        let Some(&image) = words.first() else {
            return Err(wrong(instruction.line, "`FROM` names no image"));
        };
        let name = self.expand(&self.text[image.clone()]);
        self.file.stages.push((instruction.range.end, false));
        if name != "scratch" && !self.is_stage(&name) {
            self.needed(instruction.line, image.clone(), &name)?;
        }
        let named =
            words.get(1).is_some_and(|word| self.text[(*word).clone()].eq_ignore_ascii_case("as"));
        let stage = words.get(2).filter(|_| named);
        self.stage_names
            .push(stage.map(|word| self.text[(*word).clone()].to_lowercase()).unwrap_or_default());
        Ok(())
    }

    fn global_arguments(&mut self, words: &[Range<usize>]) {
        for word in words {
            let text = &self.text[word.clone()];
            let (name, default) = match text.split_once('=') {
                Some((name, default)) => (name, Some(expand::unquoted(default))),
                None => (text, None),
            };
            let given = self.arguments.get(name).cloned();
            if let Some(value) = given.or_else(|| default.map(|text| self.expand(&text))) {
                self.globals.insert(name.to_owned(), value);
            }
        }
    }

    /// The place of a `--from=`: a stage's name or number, or an image.
    fn source(&mut self, line: usize, place: Range<usize>) -> Result<(), BuildError> {
        let name = self.expand(&self.text[place.clone()]);
        if name.parse::<usize>().is_ok() || self.is_stage(&name) {
            return Ok(());
        }
        self.needed(line, place, &name)
    }

    fn needed(&mut self, line: usize, place: Range<usize>, name: &str) -> Result<(), BuildError> {
        let image = name.parse().map_err(|error| wrong(line, &format!("{error}")))?;
        self.file.images.push(Needed { image, line, place });
        Ok(())
    }

    fn is_stage(&self, name: &str) -> bool {
        !name.is_empty() && self.stage_names.contains(&name.to_lowercase())
    }

    fn expand(&self, text: &str) -> String {
        let platform = expand::platform();
        expand::expand(&expand::unquoted(text), |name| {
            self.globals.get(name).or_else(|| platform.get(name)).cloned()
        })
    }

    fn run_flag(&mut self, line: usize, word: &Range<usize>) -> Result<(), BuildError> {
        let text = &self.text[word.clone()];
        if let Some(value) = text.strip_prefix("--network=") {
            let known = matches!(value, "default" | "none" | "host");
            return if known {
                Ok(())
            } else {
                Err(wrong(line, "this `--network` is not allowed"))
            };
        }
        if text == "--security=insecure" {
            return Err(wrong(line, "`--security=insecure` is not allowed here"));
        }
        let Some(mount) = text.strip_prefix("--mount=") else { return Ok(()) };
        let field = |wanted: &[&str]| {
            let pairs = mount.split(',').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(name, _)| wanted.contains(name)).map(|(_, value)| value).next_back()
        };
        match field(&["type"]).unwrap_or("bind") {
            "tmpfs" => Ok(()),
            kind @ ("cache" | "secret" | "ssh") => {
                if field(&["required"]).is_some_and(|value| value != "false") {
                    return Err(wrong(line, "builds are given no secrets and no ssh agent"));
                }
                self.file.dropped.push(word.clone());
                self.file.warnings.push(format!(
                    "Dockerfile line {line}: `--mount=type={kind}` is left out, builds share \
                     nothing but layers"
                ));
                Ok(())
            }
            "bind" if field(&["from"]).is_some() => Err(wrong(
                line,
                "`--mount=type=bind` with `from` is not allowed, use `COPY --from` instead",
            )),
            "bind" => {
                let source = field(&["source", "src"]).unwrap_or(".");
                if source.contains('$') {
                    return Err(wrong(line, "the `source` of a mount may not hold variables"));
                }
                self.file.binds.push((line, source.to_owned()));
                Ok(())
            }
            _ => Err(wrong(line, "this type of `--mount` is not supported")),
        }
    }

    /// Documents in the Dockerfile itself would be read as instructions by this `buildah`.
    fn heredoc(&self, instruction: &Instruction, words: &[Range<usize>]) -> Result<(), BuildError> {
        let begins = |word: &Range<usize>| {
            let Some(rest) = self.text[word.clone()].strip_prefix("<<") else { return false };
            let rest = rest.strip_prefix('-').unwrap_or(rest).trim_start_matches(['"', '\'']);
            rest.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        };
        if words.iter().any(begins) {
            let reason = "here-documents (`<<`) are not supported, put the text into a file of \
                          the context and `COPY` it";
            return Err(wrong(instruction.line, reason));
        }
        Ok(())
    }
}

fn wrong(line: usize, reason: &str) -> BuildError {
    BuildError::Dockerfile { line, reason: reason.to_owned() }
}

/// The flags directly behind an instruction's name.
fn flags<'a>(text: &str, words: &'a [Range<usize>]) -> Vec<&'a Range<usize>> {
    words.iter().take_while(|word| text[(*word).clone()].starts_with("--")).collect()
}

/// Cuts the text into instructions. Comments and empty lines inside of one belong to it.
fn instructions(text: &str) -> Vec<Instruction> {
    let escape = escape(text);
    let mut found = Vec::new();
    let mut current: Option<Instruction> = None;
    let mut offset = 0;
    for (index, raw) in text.split_inclusive('\n').enumerate() {
        let start = offset;
        offset += raw.len();
        let line = raw.trim_end();
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let end = start + line.len();
        let instruction = current.get_or_insert(Instruction { line: index + 1, range: start..end });
        instruction.range.end = end;
        if !line.ends_with(escape) {
            found.extend(current.take());
        }
    }
    found.extend(current);
    found
}

/// The character that continues a line: `\`, or what the directive at the top says.
fn escape(text: &str) -> char {
    for line in text.lines() {
        let Some(comment) = line.trim_start().strip_prefix('#') else { break };
        let Some((name, value)) = comment.split_once('=') else { break };
        if name.trim().eq_ignore_ascii_case("escape") {
            return value.trim().chars().next().unwrap_or('\\');
        }
    }
    '\\'
}

/// The words of an instruction, without continuation characters and comment lines.
fn words(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    let escape = escape(text);
    let mut words = Vec::new();
    let mut offset = range.start;
    for raw in text[range].split_inclusive('\n') {
        let start = offset;
        offset += raw.len();
        if raw.trim_start().starts_with('#') {
            continue;
        }
        let line = raw.trim_end();
        let line = line.strip_suffix(escape).unwrap_or(line);
        let mut at = 0;
        while let Some(skip) = line[at..].find(|c: char| !c.is_whitespace()) {
            let begin = at + skip;
            let length = word_length(&line[begin..]);
            words.push(start + begin..start + begin + length);
            at = begin + length;
        }
    }
    words
}

/// Bytes up to the first white space that is not between quotes.
fn word_length(text: &str) -> usize {
    let mut quote = None;
    for (at, character) in text.char_indices() {
        match quote {
            Some(open) => quote = quote.filter(|_| open != character),
            None if matches!(character, '"' | '\'') => quote = Some(character),
            None if character.is_whitespace() => return at,
            None => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests;
