//! Header values written for one call, cut from a buffer that many calls share.
//!
//! A value of its own would cost two allocations, and a third when it is cloned; every call has
//! three of them.

use std::cell::RefCell;
use std::fmt::{Arguments, Write};

use bytes::BytesMut;
use http::HeaderValue;

/// Size of one buffer. It lives as long as the last value cut from it.
const BUFFER: usize = 4096;

/// Longest value written.
const LONGEST: usize = 64;

thread_local! {
    static INK: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// The text as a header value; nothing if it is none or longer than 64 bytes.
pub(crate) fn write(text: Arguments<'_>) -> Option<HeaderValue> {
    INK.with_borrow_mut(|ink| {
        if ink.capacity() < LONGEST {
            *ink = BytesMut::with_capacity(BUFFER);
        }
        ink.clear();
        let written = ink.write_fmt(text);
        let value = ink.split().freeze();
        written.ok().filter(|()| value.len() <= LONGEST)?;
        HeaderValue::from_maybe_shared(value).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_what_they_were_while_others_are_written() {
        let values: Vec<_> = (0..1000).map(|n| write(format_args!("value {n}")).unwrap()).collect();
        for (n, value) in values.iter().enumerate() {
            assert_eq!(value, &format!("value {n}"));
        }
    }

    #[test]
    fn what_is_no_value_is_none_and_the_next_is_whole() {
        assert_eq!(write(format_args!("a\nb")), None);
        assert_eq!(write(format_args!("{}", "x".repeat(65))), None);
        assert_eq!(write(format_args!("next")).unwrap(), "next");
    }
}
