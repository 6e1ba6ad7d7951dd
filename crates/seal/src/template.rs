//! Texts that are filled in with opened items, in the part of Go's template language that secrets
//! use: fields, `index`, `if`, `range`, `with`, variables, pipes and the functions of
//! [`functions`]. Whatever else a template asks for is named in the error, never left out.
//!
//! What a template may cost is bounded, because strangers write it.

mod eval;
mod functions;
mod lex;
mod parse;
mod value;

use std::collections::BTreeMap;

use crate::SecretBytes;
use crate::unseal::{ItemFailure, Why};

/// Fills in every text and puts it over the items. A text sees the opened items only, not other
/// filled-in texts.
pub(crate) fn fill(
    texts: &BTreeMap<String, String>,
    items: &mut BTreeMap<String, SecretBytes>,
) -> Vec<ItemFailure> {
    let mut failures = Vec::new();
    let mut filled = Vec::new();
    for (key, text) in texts {
        let nodes = parse::parse(text);
        match nodes.and_then(|nodes| eval::render(&nodes, items)) {
            Ok(value) => filled.push((key.clone(), value)),
            Err(reason) => {
                failures.push(ItemFailure { key: key.clone(), why: Why::Template(reason) });
            }
        }
    }
    items.extend(filled);
    failures
}

#[cfg(test)]
mod tests;
