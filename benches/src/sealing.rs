//! Sealed secrets: how many a second are sealed with a certificate, and opened with the keys.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use updraft_seal::{Draft, KeyRing, KeyRingOptions, Scope, SecretBytes, Template, seal};

use crate::report::Report;

/// Keys that a year of renewals leaves.
const KEYS: usize = 12;

/// Secrets of one item under keys of 4096 bits. With a year's keys the oldest opens it, which the
/// ring remembers after the first time.
pub(crate) fn sealing(report: &mut Report, time: Duration) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot make a folder for keys")?;
    let options = KeyRingOptions::usual(folder.path().join("machine-key"));
    let ring = KeyRing::open(&folder.path().join("keys"), options)?;
    let certificate = ring.certificate()?;
    let value = SecretBytes::new(b"s3cr3t-v4lue".to_vec());
    let draft = Draft {
        name: "alice-api".to_owned(),
        namespace: Some("openfaas-fn".to_owned()),
        scope: Scope::Strict,
        template: Template::default(),
        items: BTreeMap::from([("api".to_owned(), value)]),
    };
    let now = Timestamp::now();
    let seals = per_second(time, || {
        seal(&certificate, &draft, now)?;
        Ok(())
    })?;
    report.row("sealing a value of 12 bytes", format!("{seals:.0}/s"), "", None);
    let sealed = seal(&certificate, &draft, now)?;
    let mut open = |what: &str, ring: &KeyRing| {
        let opens = per_second(time, || {
            ring.unseal(&sealed)?;
            Ok(())
        })?;
        report.row(what, format!("{opens:.0}/s"), "", None);
        Ok::<_, anyhow::Error>(())
    };
    open("opening it with the one key there is", &ring)?;
    for _ in 1..KEYS {
        ring.renew(Timestamp::now())?;
    }
    open("opening it again with the oldest of 12 keys", &ring)
}

fn per_second(time: Duration, mut once: impl FnMut() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    let mut count = 0_u32;
    while begin.elapsed() < time {
        once()?;
        count += 1;
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}
