//! Which secrets in force were opened with which keys, so that no key is retired that one needs.
//!
//! A file beside the keys, written when secrets are taken in. It holds names and fingerprints and
//! is no secret. It knows what was pushed here; what waits in a branch or elsewhere it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file::write_whole;

/// Name of the file.
const NAME: &str = "uses.json";

/// Version of its form.
const VERSION: u32 = 1;

/// Largest file read, in bytes.
const FILE_MAX: u64 = 64 << 20;

/// Fingerprints of the keys that opened each secret, by the secret's whole name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Uses {
    version: u32,
    secrets: BTreeMap<String, BTreeSet<String>>,
}

impl Default for Uses {
    fn default() -> Self {
        Self { version: VERSION, secrets: BTreeMap::new() }
    }
}

impl Uses {
    /// Reads the file; an absent one is empty.
    pub(super) fn read(folder: &Path) -> io::Result<Self> {
        let mut text = Vec::new();
        match File::open(folder.join(NAME)) {
            Ok(file) => file.take(FILE_MAX).read_to_end(&mut text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let uses: Self = serde_json::from_slice(&text).map_err(io::Error::other)?;
        if uses.version != VERSION {
            return Err(io::Error::other("it was written by another version"));
        }
        Ok(uses)
    }

    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        write_whole(&folder.join(NAME), text.as_bytes())
    }

    /// Takes down what opened a secret; nothing when it is gone. Tells whether that is new.
    pub(super) fn set(&mut self, secret: &str, keys: Option<&BTreeSet<String>>) -> bool {
        match keys {
            Some(keys) if self.secrets.get(secret) == Some(keys) => false,
            Some(keys) => {
                self.secrets.insert(secret.to_owned(), keys.clone());
                true
            }
            None => self.secrets.remove(secret).is_some(),
        }
    }

    /// The secrets that a key opened.
    pub(super) fn of(&self, fingerprint: &str) -> Vec<String> {
        let uses = self.secrets.iter().filter(|(_, keys)| keys.contains(fingerprint));
        uses.map(|(secret, _)| secret.clone()).collect()
    }
}
