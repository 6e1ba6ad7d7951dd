//! The caller's place in a trace, as `traceparent` tells it.
//!
//! Takes what a later version of the header may add, and nothing that is not of its form.

use http::HeaderValue;
use http::header::HeaderName;

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Whose child a span is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace: u128,
    pub(super) span: u64,
    /// Whether the trace is recorded.
    pub(super) sampled: bool,
}

impl Parent {
    pub(super) fn parse(value: &HeaderValue) -> Option<Self> {
        let mut parts = value.to_str().ok()?.split('-');
        let version = hex(parts.next()?, 2)?;
        let trace = hex(parts.next()?, 32)?;
        let span = u64::try_from(hex(parts.next()?, 16)?).ok()?;
        let flags = hex(parts.next()?, 2)?;
        let ends = parts.next().is_none() || version > 0;
        let valid = version != 0xff && trace != 0 && span != 0 && ends;
        valid.then_some(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

/// A number of exactly so many lower-case digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let right = text.len() == digits && text.bytes().all(lower);
    right.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Option<Parent> {
        Parent::parse(&HeaderValue::from_str(text).ok()?)
    }

    #[test]
    fn a_parent_is_read_with_its_decision() {
        let parent = |sampled| Some(Parent { trace: 0xab, span: 0xcd, sampled });
        let trace = format!("{:032x}", 0xab);
        let span = format!("{:016x}", 0xcd);
        assert_eq!(parse(&format!("00-{trace}-{span}-01")), parent(true));
        assert_eq!(parse(&format!("00-{trace}-{span}-00")), parent(false));
        // What a later version adds is passed over.
        assert_eq!(parse(&format!("01-{trace}-{span}-03-more")), parent(true));
    }

    #[test]
    fn what_is_not_of_the_form_is_no_parent() {
        let (trace, span) = ("a".repeat(32), "b".repeat(16));
        for text in [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", "A".repeat(32)),
            format!("00-{trace}a-{span}-01"),
            format!("0-{trace}-{span}-01"),
        ] {
            assert_eq!(parse(&text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[ -~]{0,80}") {
            let _any = parse(&text);
        }
    }
}
