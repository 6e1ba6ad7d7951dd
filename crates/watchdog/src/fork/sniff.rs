//! The content type of an answer that names none, from its first bytes.
//!
//! Follows the tables of <https://mimesniff.spec.whatwg.org>, as far as function outputs need them;
//! what is neither known nor text is a stream of octets.

/// How much of the content is looked at.
const WINDOW: usize = 512;

const HTML: [&[u8]; 17] = [
    b"<!DOCTYPE HTML",
    b"<HTML",
    b"<HEAD",
    b"<SCRIPT",
    b"<IFRAME",
    b"<H1",
    b"<DIV",
    b"<FONT",
    b"<TABLE",
    b"<A",
    b"<STYLE",
    b"<TITLE",
    b"<B",
    b"<BODY",
    b"<BR",
    b"<P",
    b"<!--",
];

const SIGNATURES: [(&[u8], &str); 17] = [
    (b"%PDF-", "application/pdf"),
    (b"%!PS-Adobe-", "application/postscript"),
    (b"\xfe\xff", "text/plain; charset=utf-16be"),
    (b"\xff\xfe", "text/plain; charset=utf-16le"),
    (b"\xef\xbb\xbf", "text/plain; charset=utf-8"),
    (b"\x00\x00\x01\x00", "image/x-icon"),
    (b"BM", "image/bmp"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"ID3", "audio/mpeg"),
    (b"OggS\x00", "application/ogg"),
    (b"\x1a\x45\xdf\xa3", "video/webm"),
    (b"\x1f\x8b\x08", "application/x-gzip"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x00asm", "application/wasm"),
];

/// The content type of these bytes.
pub(super) fn content_type(content: &[u8]) -> &'static str {
    let head = &content[..content.len().min(WINDOW)];
    let begun = head.iter().position(|byte| !b"\t\n\x0c\r ".contains(byte)).unwrap_or(head.len());
    let text = &head[begun..];
    if HTML.iter().any(|tag| begins_with_tag(text, tag)) {
        return "text/html; charset=utf-8";
    }
    if text.starts_with(b"<?xml") {
        return "text/xml; charset=utf-8";
    }
    if let Some((_, name)) = SIGNATURES.iter().find(|(bytes, _)| head.starts_with(bytes)) {
        return name;
    }
    if let (Some(b"RIFF"), Some(kind)) = (head.get(..4), head.get(8..12)) {
        match kind {
            b"WEBP" => return "image/webp",
            b"WAVE" => return "audio/wave",
            b"AVI " => return "video/avi",
            _ => {}
        }
    }
    let binary = |byte: &u8| matches!(byte, 0..=8 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
    if head.iter().any(binary) { "application/octet-stream" } else { "text/plain; charset=utf-8" }
}

/// Whether the text begins with this tag in any case, and the tag ends there.
fn begins_with_tag(text: &[u8], tag: &[u8]) -> bool {
    let Some((begin, rest)) = text.split_at_checked(tag.len()) else { return false };
    let ended = tag == b"<!--" || matches!(rest.first(), Some(b' ' | b'>'));
    ended && begin.eq_ignore_ascii_case(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_known_by_their_first_bytes() {
        let check = |content: &[u8], expected| assert_eq!(content_type(content), expected);
        check(b"hello\n", "text/plain; charset=utf-8");
        check(b"{\"a\":1}", "text/plain; charset=utf-8");
        check(b" \n<!doctype html><p>", "text/html; charset=utf-8");
        check(b"<b>bold</b>", "text/html; charset=utf-8");
        check(b"<bold>", "text/plain; charset=utf-8");
        check(b"<?xml version=\"1.0\"?>", "text/xml; charset=utf-8");
        check(b"\x89PNG\r\n\x1a\n....", "image/png");
        check(b"RIFF....WEBPVP8 ", "image/webp");
        check(b"RIFF", "text/plain; charset=utf-8");
        check(b"\x00\x01\x02", "application/octet-stream");
        check(b"\xff\xd8\xff\xe0", "image/jpeg");
    }

    #[test]
    fn only_the_beginning_is_looked_at() {
        let mut long = vec![b'a'; WINDOW];
        long.push(0);
        assert_eq!(content_type(&long), "text/plain; charset=utf-8");
    }
}
