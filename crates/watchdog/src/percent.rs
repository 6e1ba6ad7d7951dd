//! Percent-encoding of paths, as far as the watchdog needs it.
//!
//! Works on bytes; what they mean is the caller's matter.

use std::fmt::Write as _;

/// Decodes `%41`; what is no such sequence stays as it is.
pub(crate) fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let pair = bytes
            .get(at + 1..at + 3)
            .filter(|_| bytes[at] == b'%')
            .and_then(|pair| Some(hex(pair[0])? * 16 + hex(pair[1])?));
        decoded.push(pair.unwrap_or(bytes[at]));
        at += if pair.is_some() { 3 } else { 1 };
    }
    decoded
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Encodes one segment of a path so that it can stand in a link.
pub(crate) fn encode_segment(segment: &[u8]) -> String {
    let mut encoded = String::with_capacity(segment.len());
    for &byte in segment {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _infallible = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_whole_sequences_are_decoded() {
        assert_eq!(decode("/a%20b%2Fc%"), b"/a b/c%");
        assert_eq!(decode("%zz%4"), b"%zz%4");
        assert_eq!(decode("%00%ff"), [0, 255]);
    }

    proptest! {
        #[test]
        fn what_is_encoded_reads_back(segment in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(decode(&encode_segment(&segment)), segment);
        }

        #[test]
        fn no_text_makes_the_decoder_panic(text in ".{0,40}") {
            let _any = decode(&text);
        }
    }
}
