//! PEM armour, read and written without leaving a private key behind in freed memory.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// The contents of every block with one of `labels`, in order. Blocks that are cut off or hold no
/// base64 are left out.
pub(crate) fn blocks<'a>(text: &'a str, labels: &[&str]) -> Vec<(&'a str, Zeroizing<Vec<u8>>)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("-----BEGIN ") {
        rest = &rest[start + "-----BEGIN ".len()..];
        let Some((label, body)) = rest.split_once("-----") else { break };
        let end = format!("-----END {label}-----");
        let Some(length) = body.find(&end) else { continue };
        rest = &body[length + end.len()..];
        if !labels.contains(&label) {
            continue;
        }
        let mut packed = Zeroizing::new(Vec::with_capacity(length));
        packed.extend(body.bytes().take(length).filter(|byte| !byte.is_ascii_whitespace()));
        if let Some(content) = decode(&packed) {
            found.push((label, content));
        }
    }
    found
}

fn decode(packed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut content = Zeroizing::new(vec![0; packed.len() / 4 * 3 + 3]);
    let length = STANDARD.decode_slice(packed, &mut content).ok()?;
    content.truncate(length);
    Some(content)
}

/// One block.
pub(crate) fn encode(label: &str, content: &[u8]) -> Zeroizing<String> {
    let mut packed = Zeroizing::new(vec![0; content.len().div_ceil(3) * 4]);
    let length = STANDARD.encode_slice(content, &mut packed).unwrap_or_default();
    let mut text =
        Zeroizing::new(String::with_capacity(length + length / 64 + 2 * label.len() + 64));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for line in packed[..length].chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_armoured_is_read_back(content: Vec<u8>) {
            let text = encode("THING", &content);
            let read = blocks(&text, &["THING"]);
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!(&*read[0].1, &content);
            prop_assert!(blocks(&text, &["OTHER"]).is_empty());
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "(?s)(-----BEGIN |A|-----|END |\\PC|\n){0,40}") {
            drop(blocks(&text, &["A"]));
        }
    }
}
