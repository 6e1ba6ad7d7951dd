//! The keys of one installation: made, renewed, kept, tried.
//!
//! The newest key seals, every key in use opens. A renewal adds a key and takes none away, so what
//! was sealed before opens after. Keys lie in a folder, each in a file of its own, encrypted with
//! a machine key that lies elsewhere; a file is written whole or not at all. Other processes may
//! write the folder too (`updraft keys` does): a change is seen at the next use.

mod error;
mod file;
mod opening;
mod options;
mod uses;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use prometheus_client::registry::Registry;
use rustix::fs::FlockOperation;

use crate::metrics::SealMetrics;
use crate::unseal::OpeningKey;
use crate::{Certificate, PrivateKey};

pub use error::{KeyRingError, ResealError};
use file::KeyFile;
pub use file::{KeyFileError, MachineKey};
use opening::Remembered;
pub use options::{KeyOrder, KeyRingOptions};
use uses::Uses;

/// Keys that a ring may hold: what fifty years of monthly renewals make.
const KEYS_MAX: usize = 600;

/// Whether a key is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// It opens; the newest seals.
    Active,
    /// It does nothing any more.
    Retired,
    /// It does nothing any more, because strangers may have it.
    Compromised,
}

impl KeyState {
    /// The value of the label that says so.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Compromised => "compromised",
        }
    }

    /// What the value of a label says; what is not `active` is out of use.
    pub fn of_label(label: &str) -> Self {
        match label {
            "active" => Self::Active,
            "compromised" => Self::Compromised,
            _ => Self::Retired,
        }
    }
}

/// One key with what is known of it.
#[derive(Debug, Clone)]
pub struct KeyPair {
    /// The private half.
    pub private: Arc<PrivateKey>,
    /// The public half.
    pub certificate: Certificate,
    /// When it was made.
    pub created: Timestamp,
    /// Whether it is used.
    pub state: KeyState,
}

/// What may be told of a key.
#[derive(Debug, Clone)]
pub struct KeyInfo {
    /// Its short name.
    pub fingerprint: String,
    /// When it was made.
    pub created: Timestamp,
    /// Its certificate.
    pub certificate: Certificate,
    /// Whether it is used.
    pub state: KeyState,
    /// Whether it is the one that seals.
    pub current: bool,
}

/// The keys of one installation. Shared by threads: readers never wait for writers.
#[derive(Debug)]
pub struct KeyRing {
    folder: PathBuf,
    machine_key: MachineKey,
    options: KeyRingOptions,
    keys: ArcSwap<Keys>,
    /// Held by whoever writes the folder, beside the lock between processes.
    writing: Mutex<()>,
    remembered: Mutex<Remembered>,
    metrics: SealMetrics,
}

#[derive(Debug)]
struct Keys {
    /// The newest first.
    pairs: Vec<KeyPair>,
    /// The files they are from: reading one again costs little while it is the same.
    files: BTreeMap<String, Held>,
    /// When the folder changed last; `None` where that is too recent to be relied on.
    stamp: Option<SystemTime>,
}

/// A key file as it was read.
#[derive(Debug, Clone)]
struct Held {
    digest: [u8; 32],
    pair: KeyPair,
}

impl KeyRing {
    /// Opens the folder, making it and the first key where they are missing.
    ///
    /// # Errors
    /// The machine's fault, or a file was damaged; a key that cannot be read stops everything,
    /// because going on without it would make a new one and hide the loss.
    pub fn open(folder: &Path, options: KeyRingOptions) -> Result<Self, KeyRingError> {
        let failed = |source| KeyRingError::Folder { path: folder.to_owned(), source };
        file::create_folder(folder).map_err(failed)?;
        let locked = lock(folder).map_err(failed)?;
        let holds_keys = !file::names(folder).map_err(failed)?.is_empty();
        let machine_key = MachineKey::open(&options.machine_key, !holds_keys)?;
        let keys = read(folder, &machine_key, options.order, &BTreeMap::new())?;
        let ring = Self {
            folder: folder.to_owned(),
            machine_key,
            keys: ArcSwap::from_pointee(keys),
            options,
            writing: Mutex::new(()),
            remembered: Mutex::default(),
            metrics: SealMetrics::default(),
        };
        drop(locked);
        if ring.options.make {
            ring.renew_if_due(Timestamp::now())?;
        }
        Ok(ring)
    }

    /// Registers what is counted.
    pub fn register_metrics(&self, registry: &mut Registry, revision: &str) {
        self.metrics.register(registry, revision);
    }

    /// What is counted, for whoever keeps the state of secrets.
    pub const fn metrics(&self) -> &SealMetrics {
        &self.metrics
    }

    /// The certificate to seal with.
    ///
    /// # Errors
    /// There is no key in use.
    pub fn certificate(&self) -> Result<Certificate, KeyRingError> {
        self.refresh();
        let keys = self.keys.load();
        let current = keys.current().ok_or(KeyRingError::Empty)?;
        Ok(current.certificate.clone())
    }

    /// All keys, the newest first.
    pub fn list(&self) -> Vec<KeyInfo> {
        self.refresh();
        let keys = self.keys.load();
        let current = keys.current().map(|pair| pair.private.fingerprint());
        let info = |pair: &KeyPair| KeyInfo {
            fingerprint: pair.private.fingerprint().to_owned(),
            created: pair.created,
            certificate: pair.certificate.clone(),
            state: pair.state,
            current: current == Some(pair.private.fingerprint()),
        };
        keys.pairs.iter().map(info).collect()
    }

    /// All keys with their private halves, to export or back up.
    pub fn pairs(&self) -> Vec<KeyPair> {
        self.refresh();
        self.keys.load().pairs.clone()
    }

    /// Makes a new key, which seals from now on.
    ///
    /// # Errors
    /// The machine's fault.
    pub fn renew(&self, now: Timestamp) -> Result<Certificate, KeyRingError> {
        let private = PrivateKey::generate(self.options.key_bits)?;
        let lifetime =
            SignedDuration::try_from(self.options.lifetime).unwrap_or(SignedDuration::MAX);
        // A clock that was set back must not make the new key older than the last one.
        let newest = self.keys.load().current().map(|pair| self.options.order.age(pair));
        let begin = newest.map_or(now, |newest| now.max(newest + Duration::from_secs(1)));
        let certificate = private.certify(&self.options.common_name, begin, lifetime)?;
        let pair = KeyPair {
            private: Arc::new(private),
            certificate: certificate.clone(),
            created: begin,
            state: KeyState::Active,
        };
        self.write(&[pair])?;
        tracing::info!(
            fingerprint = certificate.fingerprint(),
            "made a new key for sealed secrets"
        );
        Ok(certificate)
    }

    /// Makes a new key if the newest is older than it may be.
    ///
    /// # Errors
    /// The machine's fault.
    pub fn renew_if_due(&self, now: Timestamp) -> Result<Option<Certificate>, KeyRingError> {
        self.refresh();
        match self.renewal_due_in(now) {
            Some(due) if due.is_zero() => self.renew(now).map(Some),
            _ => Ok(None),
        }
    }

    /// How long until a new key is due; `None` for never.
    pub fn renewal_due_in(&self, now: Timestamp) -> Option<Duration> {
        let keys = self.keys.load();
        let current = keys.current().filter(|pair| {
            self.options.cutoff.is_none_or(|cutoff| pair.created >= cutoff)
                && pair.certificate.not_after() > now
        });
        let Some(current) = current else { return Some(Duration::ZERO) };
        let age = now.duration_since(self.options.order.age(current));
        let age = Duration::try_from(age).unwrap_or_default();
        Some(self.options.renew_after?.saturating_sub(age))
    }

    /// Takes a key out of use, or back into it. The start of a fingerprint is enough.
    ///
    /// # Errors
    /// There is no such key, or it is the one that seals.
    pub fn set_state(&self, wanted: &str, state: KeyState) -> Result<KeyInfo, KeyRingError> {
        let info = self.find(wanted)?;
        if info.current && state != KeyState::Active {
            return Err(KeyRingError::Current { fingerprint: info.fingerprint });
        }
        let keys = self.keys.load_full();
        let pair = keys.pairs.iter().find(|pair| pair.private.fingerprint() == info.fingerprint);
        let pair = pair.ok_or_else(|| KeyRingError::Unknown { wanted: wanted.to_owned() })?;
        self.write(&[KeyPair { state, ..pair.clone() }])?;
        Ok(KeyInfo { state, ..info })
    }

    /// Takes down which keys opened the secrets that came into force, by whole name; nothing for
    /// those that are gone.
    ///
    /// # Errors
    /// The machine's fault.
    pub fn note_uses(
        &self,
        changes: &BTreeMap<String, Option<BTreeSet<String>>>,
    ) -> Result<(), KeyRingError> {
        let failed = |source| KeyRingError::Folder { path: self.folder.clone(), source };
        let _writing = guard(&self.writing);
        let _lock = lock(&self.folder).map_err(failed)?;
        let mut uses = Uses::read(&self.folder).map_err(failed)?;
        let mut changed = false;
        for (secret, keys) in changes {
            changed |= uses.set(secret, keys.as_ref());
        }
        if changed { uses.write(&self.folder).map_err(failed) } else { Ok(()) }
    }

    /// The secrets in force that a key opened, by whole name.
    ///
    /// # Errors
    /// The machine's fault.
    pub fn uses(&self, fingerprint: &str) -> Result<Vec<String>, KeyRingError> {
        let failed = |source| KeyRingError::Folder { path: self.folder.clone(), source };
        Ok(Uses::read(&self.folder).map_err(failed)?.of(fingerprint))
    }

    /// The key that a fingerprint or its beginning means.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn find(&self, wanted: &str) -> Result<KeyInfo, KeyRingError> {
        let found = self.list().into_iter().filter(|info| {
            let short = info.fingerprint.strip_prefix("SHA256:").unwrap_or_default();
            info.fingerprint == wanted
                || wanted.len() >= 4
                    && (short.starts_with(wanted)
                        || info.fingerprint.starts_with(wanted)
                            && wanted.len() > "SHA256:".len() + 3)
        });
        let mut found: Vec<KeyInfo> = found.collect();
        match (found.pop(), found.is_empty()) {
            (Some(info), true) => Ok(info),
            (None, _) => Err(KeyRingError::Unknown { wanted: wanted.to_owned() }),
            (Some(_), false) => Err(KeyRingError::Ambiguous { wanted: wanted.to_owned() }),
        }
    }

    /// Takes in keys made elsewhere; those that are here already stay as they are. Tells how many
    /// were new.
    ///
    /// # Errors
    /// The machine's fault, or too many.
    pub fn add(&self, pairs: &[KeyPair]) -> Result<usize, KeyRingError> {
        self.refresh();
        let keys = self.keys.load_full();
        let known = |pair: &&KeyPair| {
            !keys
                .pairs
                .iter()
                .any(|known| known.private.fingerprint() == pair.private.fingerprint())
        };
        let mut new: Vec<KeyPair> = pairs.iter().filter(known).cloned().collect();
        new.sort_by(|left, right| left.private.fingerprint().cmp(right.private.fingerprint()));
        new.dedup_by(|left, right| left.private.fingerprint() == right.private.fingerprint());
        if keys.pairs.len() + new.len() > KEYS_MAX {
            return Err(KeyRingError::TooMany);
        }
        self.write(&new)?;
        Ok(new.len())
    }

    fn write(&self, pairs: &[KeyPair]) -> Result<(), KeyRingError> {
        let failed = |source| KeyRingError::Folder { path: self.folder.clone(), source };
        let _writing = guard(&self.writing);
        {
            let _lock = lock(&self.folder).map_err(failed)?;
            for pair in pairs {
                KeyFile::write(&self.folder, &self.machine_key, pair)?;
            }
        }
        self.keys.store(Arc::new(self.read()?));
        Ok(())
    }

    fn read(&self) -> Result<Keys, KeyRingError> {
        read(&self.folder, &self.machine_key, self.options.order, &self.keys.load().files)
    }

    /// Reads the folder again if somebody changed it. What cannot be read changes nothing.
    fn refresh(&self) {
        let stamp = file::stamp(&self.folder);
        if stamp.is_some() && stamp == self.keys.load().stamp {
            return;
        }
        let _writing = guard(&self.writing);
        if stamp.is_some() && stamp == self.keys.load().stamp {
            return;
        }
        match self.read() {
            Ok(keys) => self.keys.store(Arc::new(keys)),
            Err(error) => {
                tracing::error!(%error, "the keys of sealed secrets cannot be read again; those read before stay");
            }
        }
    }
}

impl Keys {
    fn current(&self) -> Option<&KeyPair> {
        self.pairs.iter().find(|pair| pair.state == KeyState::Active)
    }

    fn opening(&self) -> Vec<OpeningKey<'_>> {
        let key = |pair: &'_ KeyPair| pair.state == KeyState::Active;
        self.pairs.iter().map(|pair| OpeningKey { key: &pair.private, in_use: key(pair) }).collect()
    }
}

fn read(
    folder: &Path,
    key: &MachineKey,
    order: KeyOrder,
    known: &BTreeMap<String, Held>,
) -> Result<Keys, KeyRingError> {
    let failed = |source| KeyRingError::Folder { path: folder.to_owned(), source };
    // Taken before the files: a change while they are read is seen the next time.
    let stamp = file::stamp(folder);
    let names = file::names(folder).map_err(failed)?;
    if names.len() > KEYS_MAX {
        return Err(KeyRingError::TooMany);
    }
    let mut files = BTreeMap::new();
    for name in names {
        let file = KeyFile::load(&folder.join(&name))?;
        let held = match known.get(&name).filter(|held| held.digest == file.digest()) {
            Some(held) => held.clone(),
            None => Held { digest: file.digest(), pair: file.open(key)? },
        };
        files.insert(name, held);
    }
    let mut pairs: Vec<KeyPair> = files.values().map(|held| held.pair.clone()).collect();
    pairs.sort_by_key(|pair| {
        (std::cmp::Reverse(order.age(pair)), pair.private.fingerprint().to_owned())
    });
    Ok(Keys { pairs, files, stamp })
}

/// Keeps other processes from writing the folder until it is dropped.
fn lock(folder: &Path) -> io::Result<File> {
    let file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(folder.join("lock"))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
