//! `updraft keys`: the keys of sealed secrets, in the data directory itself.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::json;
use updraft_seal::{
    BackupFrom, BackupTo, Certificate, Hints, KeyInfo, KeyRing, KeyRingOptions, KeyState, Limits,
    SealedFile, back_up, export_keys, import_keys, read_backup,
};
use zeroize::Zeroizing;

use super::seal::{passphrase, read_capped, sealed_files};
use crate::cli::{Keys, KeysArguments};
use crate::config;
use crate::data_dir::DataDir;
use crate::output::{Output, Tone};

/// The ring of a data directory; a key is made by the server or on demand, not by looking.
pub(crate) fn ring(data_dir: &DataDir, configuration: Option<&Path>) -> Result<KeyRing> {
    let options = config::keys(configuration)?.options(data_dir.machine_key())?;
    let options = KeyRingOptions { make: false, ..options };
    Ok(KeyRing::open(&data_dir.sealing_keys(), options)?)
}

pub(crate) fn run(data_dir: &DataDir, keys: KeysArguments, output: Output) -> Result<()> {
    let ring = ring(data_dir, keys.config.as_deref())?;
    match keys.command {
        Keys::List => list(&ring, output),
        Keys::Certificate => output.line(ring.certificate()?.to_pem().trim_end()),
        Keys::Renew => {
            let certificate = ring.renew(Timestamp::now())?;
            output.line(&format!("{} seals from now on", certificate.fingerprint()))?;
            output.line("older keys go on opening; back up the keys (updraft keys backup)")
        }
        Keys::Retire { key, compromised, check, force } => {
            let state = if compromised { KeyState::Compromised } else { KeyState::Retired };
            retire(&ring, &key, state, &check, force, output)
        }
        Keys::Activate { key } => {
            let info = ring.set_state(&key, KeyState::Active)?;
            output.line(&format!("{} is in use again", info.fingerprint))
        }
        Keys::Export => output.line(export_keys(&ring.pairs(), "kube-system").trim_end()),
        Keys::Import { file } => {
            let mut pairs = Vec::new();
            for path in file {
                let read = import_keys(&read_capped(&path)?);
                pairs.extend(read.with_context(|| format!("{}", path.display()))?);
            }
            taken_in(&ring, ring.add(&pairs)?, pairs.len(), output)
        }
        Keys::Backup { file, recipient, passphrase_file } => {
            let to = match (recipient, passphrase_file) {
                (Some(recipient), _) => BackupTo::Recipient(recipient),
                (None, Some(path)) => BackupTo::Passphrase(passphrase(&path)?),
                (None, None) => bail!("say who may open it: --recipient or --passphrase-file"),
            };
            let pairs = ring.pairs();
            write_new(&file, back_up(&pairs, &to)?.as_bytes())?;
            let count = pairs.len();
            output.line(&format!(
                "{count} keys in {}; keep it away from this machine",
                file.display()
            ))
        }
        Keys::Restore { file, identity, passphrase_file } => {
            let from = match (identity, passphrase_file) {
                (Some(path), _) => {
                    let bytes = read_capped(&path)?;
                    let text = std::str::from_utf8(&bytes).context("the identity is no UTF-8")?;
                    BackupFrom::Identity(Zeroizing::new(text.to_owned()))
                }
                (None, Some(path)) => BackupFrom::Passphrase(passphrase(&path)?),
                (None, None) => bail!("say what opens it: --identity or --passphrase-file"),
            };
            let pairs = read_backup(&read_capped(&file)?, &from)?;
            taken_in(&ring, ring.add(&pairs)?, pairs.len(), output)
        }
        Keys::Doctor { path } => doctor(&ring, &path, output),
    }
}

fn taken_in(ring: &KeyRing, new: usize, found: usize, output: Output) -> Result<()> {
    output.line(&format!("{found} keys found, {new} of them new"))?;
    match ring.list().into_iter().find(|info| info.current) {
        Some(info) => output.line(&format!("{} seals", info.fingerprint)),
        None => Ok(()),
    }
}

fn list(ring: &KeyRing, output: Output) -> Result<()> {
    let used = |key: KeyInfo| Ok((ring.uses(&key.fingerprint)?, key));
    let keys = ring.list().into_iter().map(used).collect::<Result<Vec<_>>>()?;
    if output.is_json() {
        let keys: Vec<_> = keys
            .iter()
            .map(|(uses, key)| {
                json!({
                    "fingerprint": key.fingerprint,
                    "created": key.created,
                    "not_before": key.certificate.not_before(),
                    "not_after": key.certificate.not_after(),
                    "bits": key.certificate.key_bits(),
                    "state": key.state.as_str(),
                    "seals": key.current,
                    "needed_by": uses,
                })
            })
            .collect();
        return output.json(&keys);
    }
    let day = |moment: Timestamp| moment.strftime("%Y-%m-%d").to_string();
    let rows: Vec<_> = keys
        .iter()
        .map(|(uses, key)| {
            vec![
                key.fingerprint.clone(),
                if key.current { "seals".to_owned() } else { key.state.as_str().to_owned() },
                day(key.created),
                day(key.certificate.not_after()),
                key.certificate.key_bits().to_string(),
                uses.len().to_string(),
            ]
        })
        .collect();
    output.table(&["KEY", "STATE", "MADE", "ENDS", "BITS", "SECRETS"], &rows)
}

/// Takes a key out of use if nothing that is known needs it: neither a secret that was pushed to
/// this data directory, nor a file of the folders to check.
fn retire(
    ring: &KeyRing,
    key: &str,
    state: KeyState,
    check: &[PathBuf],
    force: bool,
    output: Output,
) -> Result<()> {
    let wanted = ring.find(key)?.fingerprint;
    let mut needed = ring.uses(&wanted)?;
    for folder in check {
        for path in sealed_files(folder)? {
            let file = SealedFile::parse(&read_capped(&path)?, Limits::usual())
                .with_context(|| format!("{}", path.display()))?;
            for secret in file.sealed()? {
                let opened_by = ring.opened_by(&secret.clone().or_in_namespace("openfaas-fn"));
                if opened_by.contains(&wanted) {
                    needed.push(format!("{}: {}", path.display(), secret.name));
                }
            }
        }
    }
    if !needed.is_empty() && !force {
        bail!(
            "these still need the key; seal them again (updraft seal --re-encrypt FOLDER) and push, \
             or --force:\n  {}",
            needed.join("\n  ")
        );
    }
    let info = ring.set_state(&wanted, state)?;
    output.line(&format!("{} is {}", info.fingerprint, state.as_str()))?;
    output.line(
        "looked at: the secrets in force here, as they were pushed last, and the folders of \
         --check; not at other branches, at older commits, or at what other platforms open with \
         this key (updraft keys activate brings it back)",
    )
}

/// Which key opens what, or why nothing does.
fn doctor(ring: &KeyRing, path: &Path, output: Output) -> Result<()> {
    let newest = ring.certificate().ok();
    let newest = newest.as_ref().map(Certificate::fingerprint);
    let mut rows = Vec::new();
    let mut failed = 0;
    for path in sealed_files(path)? {
        let file = SealedFile::parse(&read_capped(&path)?, Limits::usual());
        let secrets = file.and_then(|file| file.sealed());
        let secrets = match secrets {
            Ok(secrets) => secrets,
            Err(error) => {
                failed += 1;
                rows.push((
                    path.display().to_string(),
                    String::new(),
                    String::new(),
                    Vec::new(),
                    Some(error.to_string()),
                ));
                continue;
            }
        };
        let names: Vec<String> = secrets.iter().map(|secret| secret.name.clone()).collect();
        for secret in secrets {
            let secret = secret.or_in_namespace("openfaas-fn");
            let hints = Hints { names: names.clone(), ..Hints::default() };
            let (keys, error) = match ring.unseal_with(&secret, &hints) {
                Ok(_) => (ring.opened_by(&secret), None),
                Err(error) => (Vec::new(), Some(error.to_string())),
            };
            failed += usize::from(error.is_some());
            rows.push((
                path.display().to_string(),
                secret.name,
                secret.scope.to_string(),
                keys,
                error,
            ));
        }
    }
    if output.is_json() {
        let rows: Vec<_> = rows
            .iter()
            .map(|(file, name, scope, keys, error)| {
                let is_newest = keys.iter().all(|key| Some(key.as_str()) == newest);
                json!({"file": file, "name": name, "scope": scope, "keys": keys, "newest": error.is_none() && is_newest, "error": error})
            })
            .collect();
        output.json(&rows)?;
    } else {
        for (file, name, scope, keys, error) in &rows {
            let what = match error {
                Some(error) => output.tone(Tone::Bad, error),
                None if keys.iter().all(|key| Some(key.as_str()) == newest) => {
                    "opens with the newest key".to_owned()
                }
                None => format!("opens with {}; seal it again for the newest key", keys.join(", ")),
            };
            output.line(&format!("{file}: {name} ({scope}): {what}"))?;
        }
    }
    if failed > 0 {
        bail!("{failed} of {} do not open", rows.len());
    }
    Ok(())
}

/// Writes a file that only this user can read, and leaves an existing one alone.
fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    let mut options = OpenOptions::new();
    let file = options.create_new(true).write(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    written.with_context(|| format!("cannot write {}", path.display()))
}
