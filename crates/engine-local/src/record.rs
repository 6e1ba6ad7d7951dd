//! What is desired, on disk: one JSON file per function below the state folder, and what each
//! running replica is, one file below the volatile folder.
//!
//! Both forms carry a version; earlier ones are read for ever and written anew in the present one.
//! A file is replaced as a whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use updraft_engine::{ReplicaExit, ReplicaId, Revision};
use updraft_model::{Digest, EgressPolicy, FunctionId, FunctionSpec, SecretName, Tenant, labels};

use crate::options::OpenError;

/// The form this code writes, for both kinds of record. The second one added how replicas ended
/// and when they were started.
const VERSION: u32 = 2;

/// One revision of a function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RevisionRecord {
    pub(crate) revision: Revision,
    /// As clients see it: with the label that only the engine sets. Shared with whoever shows it,
    /// because functions that sleep are many.
    pub(crate) spec: Arc<FunctionSpec>,
    /// The image's content, once it was looked up; replicas of one revision share it.
    #[serde(default)]
    pub(crate) image: Option<Digest>,
    /// What the secrets held when the spec was applied, as digests, so that the same spec with
    /// other secrets is a change.
    #[serde(default)]
    pub(crate) secrets: BTreeMap<SecretName, Digest>,
    /// A replica of it was ready once.
    #[serde(default)]
    pub(crate) proven: bool,
}

/// What is desired of a function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FunctionRecord {
    pub(crate) version: u32,
    pub(crate) created_at: Timestamp,
    /// The newest revision number given out.
    pub(crate) newest: Revision,
    /// Replicas desired.
    pub(crate) replicas: u32,
    /// The revision that takes traffic.
    pub(crate) serving: RevisionRecord,
    /// The revision that is being rolled out.
    #[serde(default)]
    pub(crate) candidate: Option<RevisionRecord>,
    /// The function slept when the roll-out began and nobody asked for it since: when the
    /// roll-out is given up it sleeps again.
    #[serde(default)]
    pub(crate) woken: bool,
    /// Why the newest revision was given up, until the next one.
    #[serde(default)]
    pub(crate) given_up: Option<GivenUp>,
    /// How often replicas ended without being asked to.
    #[serde(default)]
    pub(crate) exits: u64,
    /// How the newest of them ended.
    #[serde(default)]
    pub(crate) last_exit: Option<ExitRecord>,
}

/// The spec as clients see it: with the label that only the engine sets.
pub(crate) fn with_platform_labels(mut spec: FunctionSpec) -> FunctionSpec {
    spec.labels.insert(labels::FUNCTION.to_owned(), spec.id.name.as_str().to_owned());
    spec
}

/// How a replica ended, as [`ReplicaExit`] has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    pub(crate) replica: String,
    pub(crate) revision: Revision,
    pub(crate) at: Timestamp,
    pub(crate) reason: String,
    #[serde(default)]
    pub(crate) code: Option<i32>,
    #[serde(default)]
    pub(crate) signal: Option<i32>,
    #[serde(default)]
    pub(crate) out_of_memory: bool,
    #[serde(default)]
    pub(crate) log_tail: Vec<String>,
}

impl From<&ExitRecord> for ReplicaExit {
    fn from(record: &ExitRecord) -> Self {
        let ExitRecord { replica, revision, at, reason, code, signal, out_of_memory, log_tail } =
            record.clone();
        let replica = ReplicaId::new(replica);
        Self { replica, revision, at, reason, code, signal, out_of_memory, log_tail }
    }
}

/// A revision that did not become ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GivenUp {
    pub(crate) revision: Revision,
    pub(crate) reason: String,
    pub(crate) log_tail: Vec<String>,
}

impl FunctionRecord {
    pub(crate) fn new(serving: RevisionRecord, replicas: u32, now: Timestamp) -> Self {
        Self {
            version: VERSION,
            created_at: now,
            newest: serving.revision,
            replicas,
            serving,
            candidate: None,
            woken: false,
            given_up: None,
            exits: 0,
            last_exit: None,
        }
    }

    /// The revision that clients see: the one being rolled out, else the one that serves.
    pub(crate) fn shown(&self) -> &RevisionRecord {
        self.candidate.as_ref().unwrap_or(&self.serving)
    }
}

/// Whether a write must survive a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// A specification: acknowledged only when it is on disk.
    Synced,
    /// A replica count: whole on disk, but an older one may come back after a power failure.
    /// A wake-up does not wait for the disk.
    Written,
}

/// The function records of one instance.
#[derive(Debug)]
pub(crate) struct RecordStore {
    folder: PathBuf,
}

impl RecordStore {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(crate) fn path(&self, id: &FunctionId) -> PathBuf {
        self.folder.join(id.namespace.as_str()).join(format!("{}.json", id.name))
    }

    pub(crate) fn save(
        &self,
        id: &FunctionId,
        record: &FunctionRecord,
        durability: Durability,
    ) -> io::Result<()> {
        let path = self.path(id);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let bytes = serde_json::to_vec_pretty(record)?;
        match durability {
            Durability::Synced => beside_others(|| write_atomically(&path, &bytes, true)),
            Durability::Written => write_atomically(&path, &bytes, false),
        }
    }

    pub(crate) fn remove(&self, id: &FunctionId) -> io::Result<()> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => path.parent().map_or(Ok(()), |folder| beside_others(|| sync_folder(folder))),
        }
    }

    /// Every record, with the function it is of.
    pub(crate) fn load(&self) -> Result<Vec<(FunctionId, FunctionRecord)>, OpenError> {
        let mut all = Vec::new();
        for namespace in folder_entries(&self.folder)? {
            for path in folder_entries(&namespace)? {
                if path.extension().is_none_or(|extension| extension != "json") {
                    continue;
                }
                let bytes = fs::read(&path).map_err(OpenError::file("read", &path))?;
                let wrong = |reason: String| OpenError::Record { path: path.clone(), reason };
                let mut record: FunctionRecord =
                    serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
                if !(1..=VERSION).contains(&record.version) {
                    let found = record.version;
                    return Err(wrong(format!(
                        "its version is {found}, this Updraft knows those up to {VERSION}; is it an older one?"
                    )));
                }
                record.version = VERSION;
                let revisions = std::iter::once(&mut record.serving).chain(&mut record.candidate);
                for revision in revisions {
                    // Earlier Updrafts added it each time they showed a spec.
                    if !revision.spec.labels.contains_key(labels::FUNCTION) {
                        let spec = revision.spec.as_ref().clone();
                        revision.spec = Arc::new(with_platform_labels(spec));
                    }
                }
                all.push((record.serving.spec.id.clone(), record));
            }
        }
        Ok(all)
    }
}

/// What a running replica is, so that the next start of Updraft can adopt it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReplicaRecord {
    pub(crate) version: u32,
    /// The machine's boot in which it was started; after another one it cannot run any more.
    pub(crate) boot: String,
    pub(crate) function: FunctionId,
    pub(crate) revision: Revision,
    pub(crate) address: Ipv4Addr,
    /// User and group that own its secret files.
    pub(crate) owner: (u32, u32),
    /// Whose it is; one of an Updraft that knew no tenants has none, and is in no user namespace.
    #[serde(default)]
    pub(crate) tenant: Option<Tenant>,
    /// The host's end of its pair of devices, unless it hangs on the bridge.
    #[serde(default)]
    pub(crate) device: Option<String>,
    /// How the function narrowed what its tenant may reach when it was started.
    #[serde(default)]
    pub(crate) egress: Option<EgressPolicy>,
    /// The first process, once it runs: its id and when it started, in clock ticks since boot.
    #[serde(default)]
    pub(crate) process: Option<(i32, u64)>,
    /// It answered its readiness probe.
    #[serde(default)]
    pub(crate) ready: bool,
    /// When its start began.
    #[serde(default)]
    pub(crate) started_at: Option<Timestamp>,
    /// It was told to end, or is about to be.
    #[serde(default)]
    pub(crate) leaving: bool,
}

impl ReplicaRecord {
    pub(crate) fn new(
        boot: &str,
        function: FunctionId,
        revision: Revision,
        address: Ipv4Addr,
        owner: (u32, u32),
    ) -> Self {
        let boot = boot.to_owned();
        Self {
            version: VERSION,
            boot,
            function,
            revision,
            address,
            owner,
            tenant: None,
            device: None,
            egress: None,
            process: None,
            ready: false,
            started_at: Some(Timestamp::now()),
            leaving: false,
        }
    }

    /// Writes it into the replica's folder.
    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        write_atomically(&folder.join("replica.json"), &serde_json::to_vec(self)?, false)
    }

    /// Reads it from a replica's folder; nothing when it is missing or of a later version.
    pub(crate) fn load(folder: &Path) -> Option<Self> {
        let bytes = fs::read(folder.join("replica.json")).ok()?;
        let mut record: Self = serde_json::from_slice(&bytes).ok()?;
        if !(1..=VERSION).contains(&record.version) {
            return None;
        }
        record.version = VERSION;
        if record.started_at.is_none() {
            // The first version did not say; its folder was made then.
            let made = fs::metadata(folder).and_then(|metadata| metadata.modified()).ok();
            record.started_at = made.and_then(|made| Timestamp::try_from(made).ok());
        }
        Some(record)
    }
}

/// The paths in a folder; none when there is no folder.
pub(crate) fn folder_entries(folder: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(OpenError::file("read", folder)(error)),
    };
    let paths: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    paths.map_err(OpenError::file("read", folder))
}

/// Replaces a file as a whole: a reader sees the old bytes or the new ones.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // A leading dot and another ending keep a leftover of a crash from being read as a record.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if sync { sync_folder(folder) } else { Ok(()) }
}

/// Does work that waits for the disk without holding up other tasks of this thread, where the
/// async runtime has other threads.
pub(crate) fn beside_others<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As each version wrote them; kept for ever.
    const FUNCTIONS: [&str; 2] = [
        include_str!("record/samples/function-v1.json"),
        include_str!("record/samples/function-v2.json"),
    ];
    const REPLICAS: [&str; 2] = [
        include_str!("record/samples/replica-v1.json"),
        include_str!("record/samples/replica-v2.json"),
    ];

    fn loaded(
        text: &str,
    ) -> Result<(RecordStore, FunctionId, FunctionRecord, tempfile::TempDir), OpenError> {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("openfaas-fn");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("demo-hello.json"), text).unwrap();
        // What a crash in the middle of a write leaves is no record.
        fs::write(folder.join(".demo-hello.json.new"), "{").unwrap();
        let store = RecordStore::new(state.path().to_owned());
        let mut all = store.load()?;
        assert_eq!(all.len(), 1);
        let (id, record) = all.remove(0);
        Ok((store, id, record, state))
    }

    #[test]
    fn function_records_of_every_version_are_read_and_written_anew() {
        for (text, exits) in FUNCTIONS.into_iter().zip([0, 7]) {
            let (store, id, record, _state) = loaded(text).unwrap();
            assert_eq!(id.to_string(), "demo-hello.openfaas-fn");
            assert_eq!((record.newest, record.serving.revision), (Revision(4), Revision(3)));
            assert_eq!((record.version, record.exits), (VERSION, exits));
            let signal = record.last_exit.as_ref().and_then(|exit| exit.signal);
            assert_eq!(signal, (exits > 0).then_some(9));
            store.save(&id, &record, Durability::Synced).unwrap();
            assert_eq!(store.load().unwrap(), [(id.clone(), record)]);
            store.remove(&id).unwrap();
            assert!(store.load().unwrap().is_empty());
        }
    }

    #[test]
    fn replica_records_of_every_version_are_read() {
        for text in REPLICAS {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("replica.json"), text).unwrap();
            let replica = ReplicaRecord::load(folder.path()).unwrap();
            assert_eq!(replica.process, Some((4711, 123_456)));
            assert!(replica.ready && replica.started_at.is_some());
            replica.save(folder.path()).unwrap();
            assert_eq!(ReplicaRecord::load(folder.path()), Some(replica));
        }
    }

    #[test]
    fn a_record_of_a_later_version_is_refused_by_name() {
        let later = FUNCTIONS[1].replace("\"version\": 2", "\"version\": 3");
        let error = loaded(&later).unwrap_err().to_string();
        assert!(error.contains("demo-hello.json") && error.contains("version is 3"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let later = REPLICAS[1].replace("\"version\": 2", "\"version\": 3");
        fs::write(folder.path().join("replica.json"), later).unwrap();
        assert_eq!(ReplicaRecord::load(folder.path()), None);
    }
}
