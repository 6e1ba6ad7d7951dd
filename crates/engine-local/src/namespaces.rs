//! Namespaces: which ones hold functions, on disk in one file.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use updraft_engine::{EngineError, NamespaceInfo};
use updraft_model::Namespace;

use crate::options::OpenError;
use crate::record::write_atomically;

const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    namespaces: Vec<NamespaceInfo>,
}

/// The namespaces of one instance. The default one is always there.
#[derive(Debug)]
pub(crate) struct Namespaces {
    path: PathBuf,
    known: Mutex<BTreeMap<Namespace, NamespaceInfo>>,
}

impl Namespaces {
    pub(crate) fn open(path: PathBuf) -> Result<Self, OpenError> {
        let mut known = BTreeMap::new();
        match fs::read(&path) {
            Ok(bytes) => {
                let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| {
                    OpenError::Record { path: path.clone(), reason: error.to_string() }
                })?;
                known.extend(stored.namespaces.into_iter().map(|info| (info.name.clone(), info)));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(OpenError::file("read", &path)(error)),
        }
        known.entry(Namespace::default()).or_insert_with(|| NamespaceInfo {
            name: Namespace::default(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        });
        Ok(Self { path, known: Mutex::new(known) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Namespace, NamespaceInfo>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// [`EngineError::UnknownNamespace`] when it is none of them.
    pub(crate) fn check(&self, namespace: &Namespace) -> Result<(), EngineError> {
        if self.lock().contains_key(namespace) {
            Ok(())
        } else {
            Err(EngineError::UnknownNamespace(namespace.clone()))
        }
    }

    /// All of them, the default one first.
    pub(crate) fn list(&self) -> Vec<NamespaceInfo> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_by_key(|info| info.name != Namespace::default());
        all
    }

    pub(crate) fn create(&self, info: NamespaceInfo) -> Result<(), EngineError> {
        let mut known = self.lock();
        if known.contains_key(&info.name) {
            return Err(EngineError::NamespaceExists(info.name));
        }
        let name = info.name.clone();
        known.insert(name.clone(), info);
        let saved = self.save(&known);
        if saved.is_err() {
            known.remove(&name);
        }
        saved
    }

    pub(crate) fn update(&self, info: NamespaceInfo) -> Result<(), EngineError> {
        let mut known = self.lock();
        let Some(place) = known.get_mut(&info.name) else {
            return Err(EngineError::UnknownNamespace(info.name));
        };
        *place = info;
        self.save(&known)
    }

    pub(crate) fn remove(&self, namespace: &Namespace) -> Result<(), EngineError> {
        let mut known = self.lock();
        if known.remove(namespace).is_none() {
            return Err(EngineError::UnknownNamespace(namespace.clone()));
        }
        self.save(&known)
    }

    fn save(&self, known: &BTreeMap<Namespace, NamespaceInfo>) -> Result<(), EngineError> {
        let stored = Stored { version: VERSION, namespaces: known.values().cloned().collect() };
        serde_json::to_vec_pretty(&stored)
            .map_err(io::Error::from)
            .and_then(|bytes| write_atomically(&self.path, &bytes, true))
            .map_err(|error| EngineError::engine("keep the list of namespaces", error))
    }
}
