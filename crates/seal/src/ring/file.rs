//! One key a file, encrypted with the machine key.
//!
//! Whoever has the folder alone (a backup of it, a stolen disk of which the machine key is not a
//! part) has nothing. Whoever has both, or is root on the running machine, has the keys: there is
//! no secret on this machine to hide them behind.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{KeyPair, KeyState};
use crate::{Certificate, PrivateKey};

/// How a key file's name ends.
const EXTENSION: &str = "key";

/// Version of the form of a key file.
const VERSION: u32 = 1;

/// Largest file read, in bytes.
const FILE_MAX: u64 = 64 << 10;

/// How long ago a folder must have changed for its time of change to tell of every change.
const SETTLED: Duration = Duration::from_secs(2);

/// A key file or the machine key cannot be used.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// The machine's fault.
    #[error("cannot use the key file `{path}`", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody changed it, or the machine key is another one.
    #[error("the key file `{path}` is damaged, or was written with another machine key; put the right file back, or move it away and restore a backup of the keys", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// The keys are here, what opens them is not.
    #[error("the machine key `{path}` is missing, and without it the keys cannot be read; put it back, or move the keys away and restore a backup of them", path = path.display())]
    NoMachineKey {
        /// Where it should be.
        path: PathBuf,
    },
    /// Somebody changed it.
    #[error("the machine key `{path}` does not hold 32 bytes in hex; put the right file back", path = path.display())]
    MachineKey {
        /// Which file.
        path: PathBuf,
    },
}

/// Encrypts what this machine keeps: key files, and what others hand it. Never printed.
pub struct MachineKey(LessSafeKey);

impl MachineKey {
    /// Reads the file, or makes one that this user alone can read, where that is allowed.
    ///
    /// # Errors
    /// The machine's fault, or the file is missing and may not be made.
    pub fn open(path: &Path, may_make: bool) -> Result<Self, KeyFileError> {
        let failed = |source| KeyFileError::Io { path: path.to_owned(), source };
        let mut bytes = Zeroizing::new([0; 32]);
        match File::open(path) {
            Ok(file) => {
                let mut text = Zeroizing::new(String::with_capacity(1024));
                file.take(1000).read_to_string(&mut text).map_err(failed)?;
                hex::decode_to_slice(text.trim(), bytes.as_mut_slice())
                    .map_err(|_| KeyFileError::MachineKey { path: path.to_owned() })?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_make => {
                getrandom::fill(bytes.as_mut_slice())
                    .map_err(|error| failed(io::Error::other(error)))?;
                let text = Zeroizing::new(hex::encode(bytes.as_slice()) + "\n");
                if let Some(folder) = path.parent() {
                    create_folder(folder).map_err(failed)?;
                }
                write_whole(path, text.as_bytes()).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(KeyFileError::NoMachineKey { path: path.to_owned() });
            }
            Err(error) => return Err(failed(error)),
        }
        let key = UnboundKey::new(&AES_256_GCM, bytes.as_slice())
            .map_err(|_| KeyFileError::MachineKey { path: path.to_owned() })?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// The nonce, then the encrypted bytes with their tag. They are bound to `about`, and do not
    /// decrypt with another.
    ///
    /// # Errors
    /// The machine gives no random bytes.
    pub fn encrypt(&self, about: &[u8], plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        let mut sealed = Vec::with_capacity(nonce.len() + plain.len() + 16);
        sealed.extend(nonce);
        sealed.extend(plain);
        let tag = self
            .0
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(about),
                &mut sealed[nonce.len()..],
            )
            .map_err(io::Error::other)?;
        sealed.extend(tag.as_ref());
        Ok(sealed)
    }

    /// What was encrypted; nothing when it was with another key or `about`, or is damaged.
    pub fn decrypt(&self, about: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = sealed.split_first_chunk::<12>()?;
        let mut plain = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.0.open_in_place(nonce, Aad::from(about), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl fmt::Debug for MachineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MachineKey(…)")
    }
}

/// A key file as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyFile {
    version: u32,
    fingerprint: String,
    created: Timestamp,
    state: String,
    certificate: String,
    /// PKCS#8, encrypted with the machine key and bound to everything above.
    private_key: String,
}

impl KeyFile {
    pub(super) fn write(
        folder: &Path,
        key: &MachineKey,
        pair: &KeyPair,
    ) -> Result<(), KeyFileError> {
        let fingerprint = pair.private.fingerprint().to_owned();
        let digest = hex::encode(Sha256::digest(fingerprint.as_bytes()));
        let path = folder.join(format!("{}.{EXTENSION}", &digest[..16]));
        let failed = |source| KeyFileError::Io { path: path.clone(), source };
        let mut file = Self {
            version: VERSION,
            fingerprint,
            created: pair.created,
            state: pair.state.as_str().to_owned(),
            certificate: pair.certificate.to_pem().to_owned(),
            private_key: String::new(),
        };
        let sealed = key.encrypt(&file.about(), pair.private.pkcs8()).map_err(failed)?;
        file.private_key = STANDARD.encode(sealed);
        let text = serde_json::to_string_pretty(&file).map_err(|error| failed(error.into()))?;
        write_whole(&path, text.as_bytes()).map_err(failed)
    }

    /// Reads a file and leaves it encrypted.
    pub(super) fn load(path: &Path) -> Result<Loaded, KeyFileError> {
        let failed = |source| KeyFileError::Io { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path).map_err(failed)?.take(FILE_MAX).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Loaded { path: path.to_owned(), bytes })
    }

    /// What the private key is bound to, so that nobody brings a retired key back by editing.
    fn about(&self) -> Vec<u8> {
        let certificate = hex::encode(Sha256::digest(self.certificate.as_bytes()));
        let Self { version, fingerprint, created, state, .. } = self;
        format!("updraft key {version}\n{fingerprint}\n{created}\n{state}\n{certificate}")
            .into_bytes()
    }
}

/// The bytes of a key file.
pub(super) struct Loaded {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Loaded {
    /// Tells one content from another.
    pub(super) fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.bytes).into()
    }

    /// The key in it.
    pub(super) fn open(self, key: &MachineKey) -> Result<KeyPair, KeyFileError> {
        let damaged = || KeyFileError::Damaged { path: self.path.clone() };
        let file: KeyFile = serde_json::from_slice(&self.bytes).map_err(|_| damaged())?;
        let sealed = STANDARD.decode(&file.private_key).map_err(|_| damaged())?;
        let plain = key.decrypt(&file.about(), &sealed).ok_or_else(damaged)?;
        let private = PrivateKey::from_pkcs8(&plain).map_err(|_| damaged())?;
        let certificate =
            Certificate::from_pem(file.certificate.as_bytes()).map_err(|_| damaged())?;
        let one_key = private.fingerprint() == certificate.fingerprint();
        if file.version != VERSION || !one_key || private.fingerprint() != file.fingerprint {
            return Err(damaged());
        }
        Ok(KeyPair {
            private: Arc::new(private),
            certificate,
            created: file.created,
            state: KeyState::of_label(&file.state),
        })
    }
}

/// Names of the key files in a folder, sorted.
pub(super) fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if Path::new(name).extension().is_some_and(|extension| extension == EXTENSION) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// When the folder changed last, if that was long enough ago to tell of every change: two changes
/// within one tick of the file system's clock look like one.
pub(super) fn stamp(folder: &Path) -> Option<SystemTime> {
    let changed = fs::metadata(folder).and_then(|metadata| metadata.modified()).ok()?;
    let settled = changed.elapsed().is_ok_and(|age| age > SETTLED);
    settled.then_some(changed)
}

/// Makes a folder that this user alone can look into.
pub(super) fn create_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Writes a file so that a reader, or a crash, sees the old content or the new, never a part.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
