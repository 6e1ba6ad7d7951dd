//! What an engine looks at and prepares before it opens: its folders, and what earlier runs left.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use updraft_engine::ReplicaId;
use updraft_model::FunctionId;

use crate::bundle;
use crate::exit::Process;
use crate::options::{LocalEngineOptions, OpenError};
use crate::record::{FunctionRecord, ReplicaRecord, folder_entries, write_atomically};
use crate::replica::Adopted;

/// Where a host may have its real name servers when `/etc/resolv.conf` names a local one.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Makes a folder that only root may enter.
pub(crate) fn private_folder(folder: &Path) -> Result<(), OpenError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(folder).map_err(OpenError::file("create", folder))
}

pub(crate) fn lock(state: &Path) -> Result<File, OpenError> {
    let path = state.join("lock");
    let file = File::create(&path).map_err(OpenError::file("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse(state.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(OpenError::file("lock", &path)(error)),
    }
}

/// Notes in the volatile folder which state it belongs to: other instances on the machine read
/// there which users are taken.
pub(crate) fn note_state_folder(options: &LocalEngineOptions) -> Result<(), OpenError> {
    let path = options.run.join("state");
    write_atomically(&path, options.state.as_os_str().as_encoded_bytes(), false)
        .map_err(OpenError::file("write", &path))
}

/// The name servers that replicas can use.
pub(crate) fn resolver_file() -> String {
    RESOLVERS
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| bundle::resolver(&text))
        .find(|text| text.contains("nameserver"))
        .unwrap_or_default()
}

/// What is left of a replica of an earlier run.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) id: ReplicaId,
    /// It ran and was wanted when Updraft went away: its end is news.
    pub(crate) ended: Option<ReplicaRecord>,
}

/// Sorts the replicas of earlier runs: those that run and are wanted, and the others.
pub(crate) fn take_stock(
    options: &LocalEngineOptions,
    boot: &str,
    stored: &[(FunctionId, FunctionRecord)],
) -> Result<(Vec<Adopted>, Vec<Left>), OpenError> {
    let mut adopted = Vec::new();
    let mut left = Vec::new();
    for folder in folder_entries(&options.replica_folder())? {
        let Some(id) = folder.file_name().and_then(|name| name.to_str()) else { continue };
        let id = ReplicaId::new(id);
        let wanted = ReplicaRecord::load(&folder)
            .filter(|record| record.boot == boot && is_wanted(record, stored))
            .and_then(|record| Some((record.process?, record)));
        let Some(((pid, started), record)) = wanted else {
            left.push(Left { id, ended: None });
            continue;
        };
        match Process::adopt(pid, started) {
            Some(process) => {
                adopted.push(Adopted { id, record, process, load: Arc::default() });
            }
            None => left.push(Left { id, ended: Some(record).filter(|record| !record.leaving) }),
        }
    }
    Ok((adopted, left))
}

fn is_wanted(replica: &ReplicaRecord, stored: &[(FunctionId, FunctionRecord)]) -> bool {
    let function = stored.iter().find(|(id, _)| *id == replica.function);
    function.is_some_and(|(_, record)| {
        record.serving.revision == replica.revision
            || record.candidate.as_ref().is_some_and(|c| c.revision == replica.revision)
    })
}
