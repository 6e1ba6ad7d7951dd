//! Variables in the few places of a Dockerfile where images are named.

use std::collections::BTreeMap;

/// Deepest nesting of a default inside of a default.
const DEPTH_MAX: usize = 8;
/// Longest text that an expansion may give: no image name is longer.
const LENGTH_MAX: usize = 4_096;

/// Replaces `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+other}`; what is not set is empty.
pub(super) fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut result = expand_to(text, &value, 0);
    let mut end = result.len().min(LENGTH_MAX);
    while !result.is_char_boundary(end) {
        end -= 1;
    }
    result.truncate(end);
    result
}

fn expand_to(text: &str, value: &dyn Fn(&str) -> Option<String>, depth: usize) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        result.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(inner) = rest.strip_prefix('{') {
            let Some(end) = closing(inner) else {
                result.push_str("${");
                rest = inner;
                continue;
            };
            result.push_str(&braced(&inner[..end], value, depth));
            rest = &inner[end + 1..];
        } else {
            let length = name_length(rest);
            if length == 0 {
                result.push('$');
            }
            result.push_str(&value(&rest[..length]).unwrap_or_default());
            rest = &rest[length..];
        }
        if result.len() > LENGTH_MAX {
            return result;
        }
    }
    result.push_str(rest);
    result
}

fn braced(inner: &str, value: &dyn Fn(&str) -> Option<String>, depth: usize) -> String {
    let length = name_length(inner);
    let found = value(&inner[..length]).filter(|value| !value.is_empty());
    let word = |word| {
        if depth < DEPTH_MAX { expand_to(word, value, depth + 1) } else { String::new() }
    };
    let tail = &inner[length..];
    match (tail.strip_prefix(":-"), tail.strip_prefix(":+")) {
        (Some(default), _) => found.unwrap_or_else(|| word(default)),
        (_, Some(other)) => found.map(|_| word(other)).unwrap_or_default(),
        (None, None) => found.unwrap_or_default(),
    }
}

/// Where the brace that is open before `text` closes.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0_usize;
    for (at, character) in text.char_indices() {
        match character {
            '{' => open += 1,
            '}' if open == 0 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}

fn name_length(text: &str) -> usize {
    let fits = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.find(|character| !fits(character)).unwrap_or(text.len())
}

/// The text without one pair of quotes around it.
pub(super) fn unquoted(text: &str) -> String {
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote)) {
            return inner.to_owned();
        }
    }
    text.to_owned()
}

/// What is set in every build: the machine's platform.
pub(super) fn platform() -> BTreeMap<String, String> {
    let arch = updraft_images::architecture();
    let mut known = BTreeMap::new();
    for side in ["TARGET", "BUILD"] {
        known.insert(format!("{side}PLATFORM"), format!("linux/{arch}"));
        known.insert(format!("{side}OS"), "linux".to_owned());
        known.insert(format!("{side}ARCH"), arch.to_owned());
    }
    known
}
