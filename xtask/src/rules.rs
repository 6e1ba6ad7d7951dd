//! Rules of the repository that no compiler checks: which crate may use which, which crates from
//! outside are banned, which licences they may have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::cargo;

/// The floor of each crate; one may use those on lower floors only.
const FLOORS: &[(&str, u32)] = &[
    ("updraft-model", 0),
    ("updraft-idmap", 0),
    ("updraft-store", 1),
    ("updraft-engine", 1),
    ("updraft-metrics", 1),
    ("updraft-source", 1),
    ("updraft-seal", 1),
    ("updraft-images", 1),
    ("updraft-builder", 2),
    ("updraft-engine-local", 2),
    ("updraft-invoke", 2),
    ("updraft-scaler", 3),
    ("updraft-pipeline", 3),
    ("updraft-queue-nats", 2),
    ("updraft-queue", 3),
    ("updraft-gateway", 4),
    ("updraft-api", 4),
    ("updraft-edge", 4),
    ("updraft", 5),
];

/// Packages that stand beside the house: nobody uses them.
const BESIDE: &[&str] = &["updraft-watchdog", "updraft-tests", "updraft-bench", "xtask"];

/// Crates that must not appear, and why.
const BANNED: &[(&str, &str)] = &[
    ("ring", "one crypto provider: aws-lc-rs"),
    ("rsa", "unpatched timing leak; aws-lc-rs does RSA"),
    ("openssl-sys", "one crypto provider: aws-lc-rs"),
    ("native-tls", "one crypto provider: aws-lc-rs"),
    ("serde_yaml", "archived; use serde-saphyr"),
    ("serde_yml", "unsound; use serde-saphyr"),
    ("tokio-tar", "abandoned with an extraction hole; use tar, entry by entry"),
];

/// Licences that a crate from outside may have; one of a choice is enough.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Checks every rule and tells all that is broken at once.
pub(crate) fn check(root: &Path) -> Result<()> {
    let metadata = cargo(root, &["metadata", "--format-version=1", "--locked"]).output()?;
    if !metadata.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&metadata.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&metadata.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;

    let mut broken = Vec::new();
    check_floors(packages, &mut broken);
    let built = built(root)?;
    check_outsiders(packages, &built, &mut broken);
    if broken.is_empty() {
        eprintln!("xtask: rules hold ({} packages)", packages.len());
        return Ok(());
    }
    bail!("rules broken:\n  {}", broken.join("\n  "))
}

fn check_floors(packages: &[Value], broken: &mut Vec<String>) {
    let floors: BTreeMap<&str, u32> = FLOORS.iter().copied().collect();
    let beside: BTreeSet<&str> = BESIDE.iter().copied().collect();
    for package in packages.iter().filter(|package| package["source"].is_null()) {
        let name = package["name"].as_str().unwrap_or_default();
        if beside.contains(name) {
            continue;
        }
        let Some(floor) = floors.get(name) else {
            broken.push(format!("{name} has no floor: add it to xtask/src/rules.rs"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for dependency in dependencies.filter(|dependency| dependency["path"].is_string()) {
            let used = dependency["name"].as_str().unwrap_or_default();
            if beside.contains(used) {
                broken.push(format!("{name} uses {used}, which stands beside the house"));
            } else if dependency["kind"] != "dev"
                && floors.get(used).is_none_or(|used_floor| used_floor >= floor)
            {
                broken.push(format!("{name} uses {used}, which is not on a lower floor"));
            }
        }
    }
}

/// Name and version of every package that some build of ours compiles, on whatever machine. The
/// lock file names more: what features would need that nobody turns on.
fn built(root: &Path) -> Result<BTreeSet<String>> {
    let tree = ["tree", "--workspace", "--locked", "--target=all", "--edges=normal,build,dev"];
    let form = ["--prefix=none", "--format={p}"];
    let output = cargo(root, &[&tree[..], &form].concat()).output()?;
    if !output.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8(output.stdout).context("cargo tree printed no text")?;
    let package = |line: &str| {
        let mut words = line.split_whitespace();
        Some(format!("{} {}", words.next()?, words.next()?.trim_start_matches('v')))
    };
    Ok(text.lines().filter_map(package).collect())
}

fn check_outsiders(packages: &[Value], built: &BTreeSet<String>, broken: &mut Vec<String>) {
    for package in packages.iter().filter(|package| !package["source"].is_null()) {
        let name = package["name"].as_str().unwrap_or_default();
        if !built.contains(&format!("{name} {}", package["version"].as_str().unwrap_or_default())) {
            continue;
        }
        if let Some((_, reason)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            broken.push(format!("{name} is banned: {reason}"));
        }
        let licence = package["license"].as_str().unwrap_or_default();
        if !licence_is_allowed(licence) {
            broken.push(format!("{name} has the licence `{licence}`, which is not allowed"));
        }
    }
}

/// Whether an SPDX expression of `OR`, `AND` and parentheses can be met by allowed licences.
fn licence_is_allowed(expression: &str) -> bool {
    // Old manifests separate a choice by a slash.
    let expression = expression.replace('/', " OR ").replace(['(', ')'], " ");
    let words = expression.split_whitespace().collect::<Vec<_>>().join(" ");
    words
        .split(" AND ")
        .all(|part| part.split(" OR ").any(|licence| LICENCES.contains(&licence.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_needs_one_allowed_licence_and_a_conjunction_all() {
        assert!(licence_is_allowed("MIT OR GPL-3.0"));
        assert!(licence_is_allowed("MIT/Apache-2.0"));
        assert!(licence_is_allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(licence_is_allowed("Apache-2.0 WITH LLVM-exception OR MIT"));
        assert!(!licence_is_allowed("GPL-3.0"));
        assert!(!licence_is_allowed("MIT AND GPL-3.0"));
        assert!(!licence_is_allowed(""));
    }
}
