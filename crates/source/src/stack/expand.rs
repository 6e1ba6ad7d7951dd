//! `${VARIABLE}` in values of a stack file, from a given map and nothing else.
//!
//! Upstream expands the whole text before it reads YAML, so that a value can add keys; here a value
//! stays one value. The process environment is never looked at: it is the platform's, not the owner's.

use std::collections::BTreeMap;

/// Longest value after expansion, in bytes: the longest that Linux passes to a process.
pub(super) const VALUE_MAX: usize = 128 * 1024;

/// Deepest default in a default: `${A:-${B:-c}}` has 2.
const DEPTH_MAX: usize = 8;

/// A value without variables, and the names that were not known and had no default.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Expanded {
    pub(super) text: String,
    pub(super) unknown: Vec<String>,
}

/// Why a value cannot be expanded; the text is for the owner.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExpandError {
    pub(super) message: String,
    pub(super) hint: &'static str,
}

const FORMS: &str = "`${NAME}`, `${NAME:-default}` and `$$` for a dollar sign are understood";

/// Expands `$NAME`, `${NAME}`, `${NAME:-default}` (also written `:=`) and `$$`.
///
/// # Errors
/// The writer's fault: another shell form, no closing brace, too long.
pub(super) fn expand(
    text: &str,
    variables: &BTreeMap<String, String>,
) -> Result<Expanded, ExpandError> {
    let mut expanded = Expanded::default();
    let mut out = String::new();
    expand_into(text, variables, &mut out, &mut expanded.unknown, 0)?;
    expanded.text = out;
    Ok(expanded)
}

fn expand_into(
    text: &str,
    variables: &BTreeMap<String, String>,
    out: &mut String,
    unknown: &mut Vec<String>,
    depth: usize,
) -> Result<(), ExpandError> {
    let wrong = |message: String| ExpandError { message, hint: FORMS };
    if depth > DEPTH_MAX {
        return Err(wrong(format!("defaults are nested more than {DEPTH_MAX} deep")));
    }
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inside) = rest.strip_prefix('{') {
            let end = closing_brace(inside)
                .ok_or_else(|| wrong(format!("`${{{}` has no closing brace", head(inside))))?;
            let (form, after) = (&inside[..end], &inside[end + 1..]);
            rest = after;
            let name = &form[..name_length(form)];
            let operation = &form[name.len()..];
            let default = match operation {
                "" => None,
                _ => operation.strip_prefix(":-").or_else(|| operation.strip_prefix(":=")),
            };
            if name.is_empty() || (default.is_none() && !operation.is_empty()) {
                return Err(wrong(format!("the form `${{{}}}` is not supported", head(form))));
            }
            match (variables.get(name).filter(|value| !value.is_empty()), default) {
                (Some(value), _) => out.push_str(value),
                (None, Some(default)) => {
                    expand_into(default, variables, out, unknown, depth + 1)?;
                }
                (None, None) if variables.contains_key(name) => {}
                (None, None) => unknown.push(name.to_owned()),
            }
        } else {
            let name = &rest[..name_length(rest)];
            rest = &rest[name.len()..];
            match variables.get(name) {
                _ if name.is_empty() => out.push('$'),
                Some(value) => out.push_str(value),
                None => unknown.push(name.to_owned()),
            }
        }
        if out.len() > VALUE_MAX {
            return Err(wrong(format!("the value is longer than {VALUE_MAX} bytes")));
        }
    }
    out.push_str(rest);
    if out.len() > VALUE_MAX {
        return Err(wrong(format!("the value is longer than {VALUE_MAX} bytes")));
    }
    Ok(())
}

/// Where the brace that `${` opened is closed; defaults may hold further `${…}`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 1_usize;
    let mut previous = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '{' if previous == '$' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(at);
        }
        previous = c;
    }
    None
}

/// Bytes of the variable name that the text begins with.
fn name_length(text: &str) -> usize {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return 0;
    }
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// The start of a text, for a message.
fn head(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn variables() -> BTreeMap<String, String> {
        [("A", "one"), ("B_2", "two"), ("EMPTY", ""), ("DOLLAR", "${A}")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    fn check(text: &str, expected: &str) {
        assert_eq!(expand(text, &variables()).unwrap().text, expected, "{text}");
    }

    #[test]
    fn known_variables_and_defaults_are_put_in() {
        check("x", "x");
        check("${A}", "one");
        check("$A/$B_2.", "one/two.");
        check("${A}${B_2}", "onetwo");
        check("${A:-d}", "one");
        check("${NO:-d}", "d");
        check("${NO:=d}", "d");
        check("${NO:-}", "");
        check("${EMPTY:-d}", "d");
        check("${NO:-${A}-x}", "one-x");
        check("${NO:-{}}", "{}");
        check("http://h:80/${NO:-http://x}", "http://h:80/http://x");
    }

    #[test]
    fn dollars_that_are_no_variables_stay() {
        check("$$A", "$A");
        check("$${A}", "${A}");
        check("a $ b", "a $ b");
        check("5$", "5$");
        check("$1.50", "$1.50");
    }

    #[test]
    fn a_value_is_put_in_once_and_not_expanded_again() {
        check("${DOLLAR}", "${A}");
    }

    #[test]
    fn unknown_variables_become_empty_and_are_told() {
        let expanded = expand("a${NO}b$MORE ${EMPTY}", &variables()).unwrap();
        assert_eq!(expanded.text, "ab ");
        assert_eq!(expanded.unknown, ["NO", "MORE"]);
    }

    #[test]
    fn the_process_environment_is_never_read() {
        assert!(std::env::var("PATH").is_ok());
        assert_eq!(expand("${PATH}", &variables()).unwrap().unknown, ["PATH"]);
    }

    #[test]
    fn other_shell_forms_are_refused_by_name() {
        for form in [
            "${A^^}", "${A,,}", "${A:1:2}", "${A#x}", "${A%x}", "${A/x/y}", "${A-x}", "${#A}",
            "${!A}", "${A:?no}", "${A:+x}", "${}", "${1}", "${A B}",
        ] {
            let error = expand(form, &variables()).unwrap_err();
            assert!(error.message.contains(form), "{form}: {}", error.message);
        }
        assert!(expand("${A", &variables()).unwrap_err().message.contains("closing brace"));
    }

    #[test]
    fn a_value_cannot_grow_without_bound_or_nest_without_end() {
        let big = BTreeMap::from([("B".to_owned(), "x".repeat(10_000))]);
        assert!(expand(&"$B ".repeat(100), &big).is_err());
        let nested = format!("{}x{}", "${N:-".repeat(1_000), "}".repeat(1_000));
        assert!(expand(&nested, &big).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_expansion_panic(text in "[${}A-C:=\\-x]{0,40}|(?s).{0,40}") {
            drop(expand(&text, &variables()));
        }

        #[test]
        fn a_text_without_dollars_stays_as_it_is(text in "[^$]{0,80}") {
            prop_assert_eq!(expand(&text, &variables()).unwrap().text, text);
        }

        #[test]
        fn doubling_dollars_protects_any_text(text in "(?s).{0,60}") {
            let protected = text.replace('$', "$$");
            prop_assert_eq!(expand(&protected, &variables()).unwrap().text, text);
        }
    }
}
