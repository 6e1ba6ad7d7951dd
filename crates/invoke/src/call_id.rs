//! Call ids: the name of one invocation in logs, headers and answers.

use std::cell::RefCell;

use http::HeaderValue;

use crate::ink;

/// Longest call id that is taken over from a caller.
const LONGEST: usize = 128;

/// Whether a caller's id may be kept: it is logged, stored and used as a key further on.
pub(crate) fn is_safe(id: &[u8]) -> bool {
    let safe =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    !id.is_empty() && id.len() <= LONGEST && id.iter().all(safe)
}

/// Random bytes fetched in one go for many ids, because each fetch is a system call.
struct Stock {
    bytes: [u8; 1024],
    used: usize,
}

thread_local! {
    static STOCK: RefCell<Stock> = const { RefCell::new(Stock { bytes: [0; 1024], used: 1024 }) };
}

/// Sixteen bytes that nobody can guess.
pub(crate) fn random() -> [u8; 16] {
    STOCK.with_borrow_mut(|stock| {
        if stock.used == stock.bytes.len() {
            getrandom::fill(&mut stock.bytes).expect("the kernel has random bytes once it is up");
            stock.used = 0;
        }
        let mut id = [0; 16];
        id.copy_from_slice(&stock.bytes[stock.used..stock.used + 16]);
        stock.used += 16;
        id
    })
}

/// A new id: a UUID of version 4.
pub(crate) fn new() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut random = random();
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in random.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    let text = std::str::from_utf8(&text).expect("hex digits and dashes are text");
    ink::write(format_args!("{text}")).expect("hex digits and dashes are a header value")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_new_id_is_a_uuid_of_version_4_and_never_twice_the_same() {
        let mut seen = HashSet::new();
        for _ in 0..1000 {
            let id = new();
            let text = id.to_str().unwrap().to_owned();
            let dashes: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
            assert_eq!((text.len(), dashes), (36, vec![8, 13, 18, 23]), "{text}");
            assert_eq!(&text[14..15], "4");
            assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"), "{text}");
            assert!(is_safe(text.as_bytes()));
            assert!(seen.insert(text));
        }
    }

    #[test]
    fn ids_with_unsafe_bytes_or_too_many_are_not_kept() {
        assert!(is_safe(b"abc-1_2.3:4"));
        for bad in ["", "a b", "a\"b", "a/../b", "\u{e4}", &"a".repeat(129)] {
            assert!(!is_safe(bad.as_bytes()), "{bad}");
        }
    }
}
