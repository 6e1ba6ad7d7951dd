//! Where in a file something stands that cannot be read: the best guess, for messages alone.
//!
//! A file that is cut off, too large or no text at all has no tree to look into. Its lines still
//! tell in which document, and under which key of the items, the trouble is.

use crate::document::Place;

/// What holds items.
const HOLDERS: [&str; 3] = ["encryptedData", "stringData", "data"];

/// The key of the item at a line of a YAML document, counted from 1.
pub(crate) fn item_at(document: &str, line: usize) -> Option<String> {
    let (mut holder, mut found) = (None, None);
    for line in document.lines().take(line) {
        let written = line.trim_start();
        if written.is_empty() || written.starts_with('#') {
            continue;
        }
        let indent = line.len() - written.len();
        if holder.is_some_and(|holder| indent <= holder) {
            (holder, found) = (None, None);
        }
        let Some(key) = key(written) else { continue };
        if HOLDERS.contains(&key) {
            (holder, found) = (Some(indent), None);
        } else if holder.is_some() {
            found = Some(key.to_owned());
        }
    }
    found
}

/// What stands before the colon of a line, or the whole line of one that was cut off.
fn key(written: &str) -> Option<&str> {
    let (key, _) = written.split_once(':').unwrap_or((written.trim_end(), ""));
    let key = key.trim_matches(['"', '\'', ' ']);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!key.is_empty() && key.len() <= 253 && key.bytes().all(fits)).then_some(key)
}

/// The key of the item that a JSON text breaks off in.
pub(crate) fn item_at_end(text: &str) -> Option<String> {
    let inside = HOLDERS.iter().filter_map(|holder| text.rfind(&format!("\"{holder}\""))).max()?;
    let rest = &text[inside..];
    let rest = &rest[rest.find('{')?..];
    if rest.contains('}') {
        return None;
    }
    // Every second part is inside quotes: keys and values by turns.
    let parts: Vec<&str> = rest.split('"').collect();
    let last =
        (1..parts.len()).step_by(4).next_back().filter(|index| key(parts[*index]).is_some())?;
    Some(parts[last].to_owned())
}

/// Where the line stands that makes a file too large, and the key of its item; nothing where many
/// lines do it together.
pub(crate) fn longest(text: &str) -> Option<(Place, Option<String>)> {
    let (mut document, mut begin, mut anything) = (0, 0, false);
    let mut longest: Option<(usize, Place, usize, usize)> = None;
    let mut at = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let written = line.trim();
        let marker = line.starts_with("---") || line.starts_with("...");
        if marker {
            (begin, anything) = (at, false);
        }
        if !marker && !anything && !written.is_empty() && !written.starts_with(['#', '%']) {
            document += 1;
            anything = true;
        }
        if longest.is_none_or(|(length, ..)| line.len() > length) {
            let place = Place { document: document.max(1), item: None, line: index + 1 };
            longest = Some((line.len(), place, begin, at));
        }
        at += line.len();
    }
    let (length, place, begin, at) = longest.filter(|(length, ..)| *length > text.len() / 4)?;
    let lines = text[begin..at].matches('\n').count() + 1;
    let key = item_at(&text[begin..at + length], lines);
    Some((place, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# note\n---\nkind: SealedSecret\nspec:\n  encryptedData:\n    user: AA\n    \
                        password: BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB\n  template:\n    type: Opaque\n";

    #[test]
    fn the_item_of_a_line_is_the_one_it_stands_in() {
        let check = |line: usize, expected: Option<&str>| {
            assert_eq!(item_at(FILE, line).as_deref(), expected, "line {line}");
        };
        check(3, None);
        check(5, None);
        check(6, Some("user"));
        check(7, Some("password"));
        check(8, None);
        check(9, None);
        assert_eq!(item_at("data:\n  user: a\n  passw", 3).as_deref(), Some("passw"));
    }

    #[test]
    fn the_longest_line_tells_document_and_item() {
        let two = format!("a: b\n{FILE}");
        for (text, document, line) in [(FILE, 1, 7), (two.as_str(), 2, 8)] {
            let (place, key) = longest(text).unwrap();
            assert_eq!((place.document, place.line), (document, line));
            assert_eq!(key.as_deref(), Some("password"));
        }
        assert!(longest("").is_none());
    }

    #[test]
    fn a_json_text_that_breaks_off_tells_its_last_item() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(item_at_end(text).as_deref(), expected, "{text}");
        };
        check(r#"{"spec":{"encryptedData":{"user":"AA","password":"BB"#, Some("password"));
        check(r#"{"spec":{"encryptedData":{"user":"AA","pass"#, Some("pass"));
        check(r#"{"spec":{"encryptedData":{"user":"AA"},"template":{"#, None);
        check(r#"{"kind":"Seal"#, None);
    }
}
