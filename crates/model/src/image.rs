//! References to container images: `[host[:port]/]path[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Digest;

/// Longest reference accepted, above what any registry allows.
const REFERENCE_MAX: usize = 512;
const TAG_MAX: usize = 128;

/// A reference to an image, kept exactly as written: what a client sent is what it reads back.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    text: String,
    name_end: usize,
    digest: Option<Digest>,
}

/// The text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("image reference `{text}` is invalid: {reason}")]
pub struct ParseImageRefError {
    text: String,
    reason: &'static str,
}

impl ImageRef {
    /// The reference as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Host and path, without tag and digest, as written.
    pub fn name(&self) -> &str {
        &self.text[..self.name_end]
    }

    /// The tag, when one is written.
    pub fn tag(&self) -> Option<&str> {
        let rest = self.text[self.name_end..].strip_prefix(':')?;
        Some(rest.split_once('@').map_or(rest, |(tag, _)| tag))
    }

    /// The digest, when the reference pins one.
    pub const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The registry host, when one is written: a first part with a `.` or `:`, or `localhost`.
    pub fn host(&self) -> Option<&str> {
        let (first, _) = self.name().split_once('/')?;
        (first == "localhost" || first.contains(['.', ':'])).then_some(first)
    }

    /// The same name pinned to `digest`, without a tag.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        let name = self.name();
        Self { text: format!("{name}@{digest}"), name_end: name.len(), digest: Some(digest) }
    }
}

impl FromStr for ImageRef {
    type Err = ParseImageRefError;

    fn from_str(text: &str) -> Result<Self, ParseImageRefError> {
        let wrong = |reason| ParseImageRefError { text: text.to_owned(), reason };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.len() > REFERENCE_MAX {
            return Err(wrong("it is longer than 512 characters"));
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => {
                let digest = digest.parse().map_err(|_| wrong("the digest after `@` is wrong"))?;
                (named, Some(digest))
            }
            None => (text, None),
        };
        let path_start = named.rfind('/').map_or(0, |slash| slash + 1);
        let name_end = named[path_start..].find(':').map_or(named.len(), |at| path_start + at);
        if let Some(tag) = named.get(name_end + 1..) {
            let fits =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
            let starts_well = !tag.starts_with(['.', '-']);
            if tag.is_empty() || tag.len() > TAG_MAX || !starts_well || !tag.bytes().all(fits) {
                return Err(wrong("the tag may hold letters, digits, `_`, `.` and `-`"));
            }
        }
        let reference = Self { text: text.to_owned(), name_end, digest };
        check_name(&reference).map_err(wrong)?;
        Ok(reference)
    }
}

fn check_name(reference: &ImageRef) -> Result<(), &'static str> {
    let host = reference.host();
    if let Some(host) = host {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
        let (name, port) = host.split_once(':').unwrap_or((host, "0"));
        if name.is_empty() || !name.bytes().all(fits) || port.parse::<u16>().is_err() {
            return Err("the registry host is wrong");
        }
    }
    let path = host.map_or(reference.name(), |host| &reference.name()[host.len() + 1..]);
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let component_fits = |component: &str| {
        let bytes = component.as_bytes();
        let inner = |&byte: &u8| alphanumeric(byte) || matches!(byte, b'_' | b'.' | b'-');
        !bytes.is_empty()
            && alphanumeric(bytes[0])
            && alphanumeric(bytes[bytes.len() - 1])
            && bytes.iter().all(inner)
            && !component.contains("..")
    };
    if path.split('/').all(component_fits) {
        Ok(())
    } else {
        Err("the name may hold lower-case letters, digits, `_`, `.`, `-` and `/`")
    }
}

impl TryFrom<String> for ImageRef {
    type Error = ParseImageRefError;

    fn try_from(text: String) -> Result<Self, ParseImageRefError> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(reference: ImageRef) -> String {
        reference.text
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(text: &str) -> ImageRef {
        text.parse().unwrap()
    }

    #[test]
    fn a_reference_comes_apart_into_host_name_tag_and_digest() {
        let full = format!("localhost:5000/a/b:1.2@sha256:{}", "ab".repeat(32));
        let reference = image(&full);
        assert_eq!(reference.host(), Some("localhost:5000"));
        assert_eq!(reference.name(), "localhost:5000/a/b");
        assert_eq!(reference.tag(), Some("1.2"));
        assert!(reference.digest().is_some());
        assert_eq!(reference.as_str(), full);
        assert_eq!(image("functions/alpine:latest").host(), None);
        assert_eq!(image("functions/alpine").tag(), None);
        assert_eq!(image("registry:5000/x").host(), Some("registry:5000"));
    }

    #[test]
    fn pinning_replaces_the_tag_by_the_digest() {
        let pinned = image("localhost/x:1").pinned(Digest::from_bytes([1; 32]));
        assert_eq!(pinned.name(), "localhost/x");
        assert_eq!(pinned.as_str().parse::<ImageRef>().unwrap(), pinned);
    }

    #[test]
    fn options_spaces_and_upper_case_paths_are_refused() {
        for bad in [
            "",
            "-rf",
            "a b",
            "A/b",
            "a//b",
            "/a",
            "a:",
            "a:-x",
            "a@sha256:1",
            "a/../b",
            "h:x/a",
            "a:b:c",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}") {
            if let Ok(reference) = text.parse::<ImageRef>() {
                prop_assert_eq!(reference.as_str(), text);
            }
        }
    }
}
