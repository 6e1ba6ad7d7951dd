//! YAML in block style, texts quoted whenever a reader could take them for something else.

use serde_json::Value as Json;

/// A map as a YAML document, without a mark before it.
pub(crate) fn yaml(value: &Json) -> String {
    let mut text = String::new();
    match value {
        Json::Object(map) if !map.is_empty() => block(&mut text, value, 0),
        other => {
            inline(&mut text, other);
            text.push('\n');
        }
    }
    text
}

fn block(text: &mut String, value: &Json, indent: usize) {
    match value {
        Json::Object(map) => {
            for (key, value) in map {
                text.push_str(&" ".repeat(indent));
                text.push_str(&scalar(key));
                text.push(':');
                nested(text, value, indent);
            }
        }
        Json::Array(list) => {
            for value in list {
                text.push_str(&" ".repeat(indent));
                text.push('-');
                match value {
                    Json::Object(map) if !map.is_empty() => {
                        let mut inner = String::new();
                        block(&mut inner, value, indent + 2);
                        text.push(' ');
                        text.push_str(inner.trim_start_matches(' '));
                    }
                    Json::Array(list) if !list.is_empty() => {
                        text.push('\n');
                        block(text, value, indent + 2);
                    }
                    value => nested(text, value, indent),
                }
            }
        }
        other => inline(text, other),
    }
}

fn nested(text: &mut String, value: &Json, indent: usize) {
    let is_full = match value {
        Json::Object(map) => !map.is_empty(),
        Json::Array(list) => !list.is_empty(),
        _ => false,
    };
    match value {
        Json::Array(_) if is_full => {
            text.push('\n');
            block(text, value, indent);
        }
        _ if is_full => {
            text.push('\n');
            block(text, value, indent + 2);
        }
        Json::String(lines) if is_literal(lines) => {
            text.push_str(if lines.ends_with('\n') { " |\n" } else { " |-\n" });
            for line in lines.lines() {
                if !line.is_empty() {
                    text.push_str(&" ".repeat(indent + 2));
                    text.push_str(line);
                }
                text.push('\n');
            }
        }
        other => {
            text.push(' ');
            inline(text, other);
            text.push('\n');
        }
    }
}

fn inline(text: &mut String, value: &Json) {
    match value {
        Json::String(content) => text.push_str(&scalar(content)),
        other => text.push_str(&other.to_string()),
    }
}

/// Whether a text of several lines comes back the same from a literal block.
fn is_literal(text: &str) -> bool {
    let fits = |line: &str| {
        !line.ends_with([' ', '\t', '\r'])
            && line.chars().all(|char| char == '\t' || matches!(char, ' '..='~'))
    };
    let lines = text.strip_suffix('\n').unwrap_or(text);
    lines.contains('\n')
        && !lines.ends_with('\n')
        && !lines.starts_with([' ', '\t', '\n'])
        && lines.split('\n').all(fits)
}

/// One text, plain where every reader takes it for a text, else as JSON writes it.
pub(crate) fn scalar(text: &str) -> String {
    const TAKEN: [&str; 11] =
        ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf"];
    let plain = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'+' | b'=' | b'.' | b'_' | b'-')
    };
    let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    let taken = TAKEN.contains(&text.to_ascii_lowercase().as_str());
    if begins && !taken && text.bytes().all(plain) {
        return text.to_owned();
    }
    // JSON leaves characters as they are that YAML takes for line breaks or refuses.
    let escape = |char: char| match char {
        '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
            format!("\\u{:04x}", u32::from(char))
        }
        char => char.to_string(),
    };
    Json::from(text).to_string().chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limits;
    use crate::tree;
    use proptest::prelude::*;

    fn json() -> impl Strategy<Value = Json> {
        let text = prop_oneof![
            "(?s).{0,20}",
            "[a-z0-9:#\\- \n\t'\"|>{}\\[\\],&*!%@`]{0,20}",
            "(line\n){0,4}end\n?"
        ];
        let leaf = prop_oneof![
            text.clone().prop_map(Json::from),
            any::<bool>().prop_map(Json::from),
            (0_u32..9).prop_map(Json::from)
        ];
        leaf.prop_recursive(4, 32, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
                prop::collection::btree_map(text.clone(), inner, 0..4)
                    .prop_map(|map| Json::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(value in json()) {
            let value = serde_json::json!({"a": value});
            let text = format!("---\n{}", yaml(&value));
            let read = tree::parse(text.as_bytes(), &Limits::usual());
            let (_, chunks) = read.map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
            prop_assert_eq!(chunks[0].root.to_json(), value, "{}", text);
        }
    }
}
