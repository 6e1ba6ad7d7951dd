//! The keys of one installation: made, renewed, kept, tried.
//!
//! The newest key seals, every key in use opens. A renewal adds a key and takes none away, so what
//! was sealed before opens after. Keys lie in a folder, each in a file of its own, encrypted with
//! a machine key that lies elsewhere; a file is written whole or not at all. Other processes may
//! write the folder too (`updraft keys` does): a change is seen at the next use.

mod file;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use prometheus_client::registry::Registry;
use rustix::fs::FlockOperation;
use thiserror::Error;

use crate::document::Item;
use crate::metrics::SealMetrics;
use crate::seal::SealError;
use crate::unseal::{Hints, OpeningKey};
use crate::{
    Certificate, Draft, KeyError, Limits, OpenedSecret, PrivateKey, SealedSecret, UnsealError,
    seal, unseal,
};

use file::KeyFile;
pub use file::{KeyFileError, MachineKey};

/// Keys that a ring may hold: what fifty years of monthly renewals make.
const KEYS_MAX: usize = 600;

/// Secrets of which it is remembered which key opened them.
const REMEMBERED_MAX: usize = 10_000;

/// How keys are made and chosen.
#[derive(Debug, Clone)]
pub struct KeyRingOptions {
    /// File of the key that encrypts the others; made if it and they are missing.
    pub machine_key: PathBuf,
    /// Bits of new keys.
    pub key_bits: u32,
    /// How long the certificates of new keys count.
    pub lifetime: Duration,
    /// After how long there shall be a new key; `None` for never.
    pub renew_after: Option<Duration>,
    /// Name in the certificates of new keys; may be empty.
    pub common_name: String,
    /// Keys from before do not count as current, which makes a new one necessary.
    pub cutoff: Option<Timestamp>,
    /// What decides which key is the newest.
    pub order: KeyOrder,
    /// Whether to make a key where none is current.
    pub make: bool,
    /// What a secret may hold.
    pub limits: Limits,
}

impl KeyRingOptions {
    /// As the original: 4096 bits, ten years, renewed after thirty days.
    pub fn usual(machine_key: PathBuf) -> Self {
        Self {
            machine_key,
            key_bits: 4096,
            lifetime: Duration::from_hours(87_600),
            renew_after: Some(Duration::from_hours(720)),
            common_name: String::new(),
            cutoff: None,
            order: KeyOrder::CertificateNotBefore,
            make: true,
            limits: Limits::usual(),
        }
    }
}

/// What decides which key is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyOrder {
    /// When its certificate begins to count.
    #[default]
    CertificateNotBefore,
    /// When it was made.
    Created,
}

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

/// The ring cannot be opened or changed.
#[derive(Debug, Error)]
pub enum KeyRingError {
    /// The machine's fault.
    #[error("cannot use the folder of keys `{path}`, check its permissions", path = path.display())]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file in it cannot be used.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// A key cannot be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There is none, and none may be made.
    #[error("there is no key yet; start the server once, or restore a backup")]
    Empty,
    /// No key has this fingerprint.
    #[error("there is no key `{wanted}`; `updraft keys list` shows them")]
    Unknown {
        /// What was asked for.
        wanted: String,
    },
    /// Several keys begin like this.
    #[error("several keys begin with `{wanted}`; give more of the fingerprint")]
    Ambiguous {
        /// What was asked for.
        wanted: String,
    },
    /// It is the key that seals.
    #[error(
        "the key `{fingerprint}` is the one that seals; make a new one first (`updraft keys renew`)"
    )]
    Current {
        /// Which key.
        fingerprint: String,
    },
    /// There are too many.
    #[error("there are more than {KEYS_MAX} keys")]
    TooMany,
}

/// A secret cannot be sealed again.
#[derive(Debug, Error)]
pub enum ResealError {
    /// It does not open.
    #[error(transparent)]
    Unseal(#[from] UnsealError),
    /// It cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
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
    /// Which key opened a secret last, by label: the first to try next time.
    remembered: Mutex<HashMap<Vec<u8>, String>>,
    metrics: SealMetrics,
}

#[derive(Debug)]
struct Keys {
    /// The newest first.
    pairs: Vec<KeyPair>,
    /// When the folder changed last; `None` where that is too recent to be relied on.
    stamp: Option<SystemTime>,
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
        let keys = read(folder, &machine_key, options.order)?;
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

    /// Opens a secret.
    ///
    /// # Errors
    /// Every item that does not open, with the reason.
    pub fn unseal(&self, secret: &SealedSecret) -> Result<OpenedSecret, UnsealError> {
        self.unseal_with(secret, &Hints::default())
    }

    /// Opens a secret; where that fails, `hints` are other places that it may be for.
    ///
    /// # Errors
    /// Every item that does not open, with the reason.
    pub fn unseal_with(
        &self,
        secret: &SealedSecret,
        hints: &Hints,
    ) -> Result<OpenedSecret, UnsealError> {
        let opened = self.with_keys(secret, |keys| {
            unseal::unseal_with_keys(keys, secret, hints, self.options.limits)
        });
        self.metrics.count(secret.namespace.as_deref().unwrap_or_default(), opened.is_ok());
        opened
    }

    /// Seals a secret again with the newest key, in the same scope and place, and hands out no
    /// value: what the template says about the scope is made to agree with the object.
    ///
    /// # Errors
    /// It does not open, or cannot be sealed.
    pub fn reseal(&self, secret: &SealedSecret) -> Result<SealedSecret, ResealError> {
        let opened = self.with_keys(secret, |keys| {
            unseal::open_items(keys, secret, &Hints::default(), self.options.limits)
        })?;
        let certificate = self.certificate().map_err(|_| SealError::NoCertificate)?;
        let template = match secret.legacy {
            Some(_) => opened.template(),
            None => secret.template.clone(),
        };
        let draft = Draft {
            name: secret.name.clone(),
            namespace: secret.namespace.clone(),
            scope: secret.scope,
            template,
            items: opened.items,
        };
        let sealed = seal(&certificate, &draft, Timestamp::now())?;
        Ok(SealedSecret {
            place: secret.place,
            annotations: secret.annotations.clone(),
            labels: secret.labels.clone(),
            ..sealed
        })
    }

    /// Which keys open the items of a secret, by fingerprint; items that do not open are left out.
    pub fn opened_by(&self, secret: &SealedSecret) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for (key, item) in &secret.items {
            let one = SealedSecret {
                items: [(key.clone(), item.clone())].into(),
                template: crate::Template::default(),
                ..secret.clone()
            };
            let opened = self.with_keys(&one, |keys| {
                unseal::open_items(keys, &one, &Hints::default(), self.options.limits)
            });
            if let Ok(opened) = opened
                && matches!(item, Item::Sealed(_))
            {
                found.extend(opened.opened_by);
            }
        }
        found.sort();
        found.dedup();
        found
    }

    fn with_keys(
        &self,
        secret: &SealedSecret,
        open: impl FnOnce(&[OpeningKey<'_>]) -> Result<OpenedSecret, UnsealError>,
    ) -> Result<OpenedSecret, UnsealError> {
        self.refresh();
        let keys = self.keys.load_full();
        let mut opening = keys.opening();
        // A secret that opened before most likely opens with the same key.
        let place = [
            secret.name.as_bytes(),
            &[0],
            secret.namespace.as_deref().unwrap_or_default().as_bytes(),
        ]
        .concat();
        if let Some(known) = guard(&self.remembered).get(&place) {
            opening.sort_by_key(|opening| opening.key.fingerprint() != known);
        }
        let opened = open(&opening);
        if let Ok(opened) = &opened
            && let Some(fingerprint) = opened.opened_by.first()
        {
            let mut remembered = guard(&self.remembered);
            if remembered.len() >= REMEMBERED_MAX {
                remembered.clear();
            }
            remembered.insert(place, fingerprint.clone());
        }
        opened
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
        self.refresh();
        let found = self.list().into_iter().filter(|info| {
            let short = info.fingerprint.strip_prefix("SHA256:").unwrap_or_default();
            info.fingerprint == wanted
                || wanted.len() >= 4
                    && (short.starts_with(wanted)
                        || info.fingerprint.starts_with(wanted)
                            && wanted.len() > "SHA256:".len() + 3)
        });
        let mut found: Vec<KeyInfo> = found.collect();
        let info = match (found.pop(), found.is_empty()) {
            (Some(info), true) => info,
            (None, _) => return Err(KeyRingError::Unknown { wanted: wanted.to_owned() }),
            (Some(_), false) => return Err(KeyRingError::Ambiguous { wanted: wanted.to_owned() }),
        };
        if info.current && state != KeyState::Active {
            return Err(KeyRingError::Current { fingerprint: info.fingerprint });
        }
        let keys = self.keys.load_full();
        let pair = keys.pairs.iter().find(|pair| pair.private.fingerprint() == info.fingerprint);
        let pair = pair.ok_or_else(|| KeyRingError::Unknown { wanted: wanted.to_owned() })?;
        self.write(&[KeyPair { state, ..pair.clone() }])?;
        Ok(KeyInfo { state, ..info })
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
        self.keys.store(Arc::new(read(&self.folder, &self.machine_key, self.options.order)?));
        Ok(())
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
        match read(&self.folder, &self.machine_key, self.options.order) {
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

impl KeyOrder {
    fn age(self, pair: &KeyPair) -> Timestamp {
        match self {
            Self::CertificateNotBefore => pair.certificate.not_before(),
            Self::Created => pair.created,
        }
    }
}

fn read(folder: &Path, key: &MachineKey, order: KeyOrder) -> Result<Keys, KeyRingError> {
    let failed = |source| KeyRingError::Folder { path: folder.to_owned(), source };
    // Taken before the files: a change while they are read is seen the next time.
    let stamp = file::stamp(folder);
    let names = file::names(folder).map_err(failed)?;
    if names.len() > KEYS_MAX {
        return Err(KeyRingError::TooMany);
    }
    let mut pairs = Vec::with_capacity(names.len());
    for name in names {
        pairs.push(KeyFile::read(&folder.join(name), key)?);
    }
    pairs.sort_by_key(|pair| {
        (std::cmp::Reverse(order.age(pair)), pair.private.fingerprint().to_owned())
    });
    Ok(Keys { pairs, stamp })
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
