//! `updraft doctor`: what this machine has, what is missing, and how to get it.
//!
//! `updraft up` asks the same questions before it touches anything.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use updraft_queue_nats::NatsFinding;

use crate::cli::Doctor;
use crate::output::{Output, Tone};

/// What is told of builds when all is well.
pub(crate) const BUILDS_APART: &str = "users, network and limits of their own, few system calls";

/// Space below which a build is likely to fail.
const FREE_SPACE_WANTED: u64 = 4 << 30;

/// One question and its answer.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    /// What was looked at.
    subject: &'static str,
    /// What was found.
    found: String,
    /// How grave it is.
    severity: Severity,
    /// What to do about it, where there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Good,
    Warning,
    Missing,
}

/// A program that Updraft calls, and the Debian package it comes in.
struct Program {
    names: &'static [&'static str],
    package: &'static str,
    purpose: &'static str,
    required: bool,
}

const PROGRAMS: &[Program] = &[
    Program { names: &["git"], package: "git", purpose: "receives pushes", required: true },
    Program {
        names: &["buildah"],
        package: "buildah",
        purpose: "builds and keeps images",
        required: true,
    },
    Program {
        names: &["crun", "runc"],
        package: "crun runc",
        purpose: "runs containers",
        required: true,
    },
    Program {
        names: &["nft"],
        package: "nftables",
        purpose: "keeps tenants apart",
        required: true,
    },
    Program {
        names: &["mmdebstrap"],
        package: "mmdebstrap",
        purpose: "makes base images from Debian packages",
        required: false,
    },
];

/// Asks every question.
pub(crate) fn examine(data_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![user(), kernel(), cgroups(), controllers(), freezer(), overlay()];
    findings.extend(PROGRAMS.iter().map(program));
    findings.push(gvisor());
    findings.extend(builds(data_dir));
    findings.push(free_space(data_dir));
    findings
}

/// Looks at the broker that keeps asynchronous calls, where the configuration names one.
async fn broker(config: &Path, data_dir: &Path) -> Result<Option<Finding>> {
    /// What holds a call in the look, which takes none up.
    const LEASE: Duration = Duration::from_secs(30);
    const SUBJECT: &str = "nats";
    let Some(nats) = crate::config::broker(config)? else { return Ok(None) };
    let options = nats.options("doctor", &data_dir.join("doctor.db"), LEASE)?;
    let (found, severity, advice) = match updraft_queue_nats::examine(&options).await {
        NatsFinding::Good(found) => return Ok(Some(good(SUBJECT, found))),
        NatsFinding::Warning(found, advice) => (found, Severity::Warning, advice),
        NatsFinding::Missing(found, advice) => (found, Severity::Missing, advice),
    };
    Ok(Some(Finding { subject: SUBJECT, found, severity, advice: Some(advice) }))
}

/// Prints the findings; fails when something that Updraft cannot do without is missing.
pub(crate) async fn run(command: Doctor, data_dir: &Path, output: Output) -> Result<()> {
    let mut findings = examine(data_dir);
    if let Some(config) = &command.config {
        findings.extend(broker(config, data_dir).await?);
    }
    if output.is_json() {
        output.json(&findings)?;
    } else {
        for finding in &findings {
            let mark = match finding.severity {
                Severity::Good => output.tone(Tone::Good, "ok      "),
                Severity::Warning => output.tone(Tone::Strong, "warning "),
                Severity::Missing => output.tone(Tone::Bad, "missing "),
            };
            output.line(&format!("{mark} {}: {}", finding.subject, finding.found))?;
            if let Some(advice) = &finding.advice {
                output.line(&format!("         {advice}"))?;
            }
        }
    }
    require(&findings)
}

/// Fails with all that is missing at once.
pub(crate) fn require(findings: &[Finding]) -> Result<()> {
    let missing: Vec<String> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Missing)
        .map(|finding| {
            let advice = finding.advice.as_deref().unwrap_or_default();
            format!("{}: {}; {advice}", finding.subject, finding.found)
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this machine lacks what Updraft needs:\n  {}", missing.join("\n  "))
}

fn good(subject: &'static str, found: impl Into<String>) -> Finding {
    Finding { subject, found: found.into(), severity: Severity::Good, advice: None }
}

fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        return good("user", "root");
    }
    Finding {
        subject: "user",
        found: "not root, so no containers, mounts or bridges can be made".to_owned(),
        severity: Severity::Missing,
        advice: Some("run it as root, for instance with sudo".to_owned()),
    }
}

fn cgroups() -> Finding {
    let exists = |path: &str| fs::metadata(path).is_ok();
    let layout = if exists("/sys/fs/cgroup/cgroup.controllers") {
        "v2"
    } else if exists("/sys/fs/cgroup/unified") {
        "hybrid (v1 with v2 beside it)"
    } else if exists("/sys/fs/cgroup/memory") {
        "v1"
    } else {
        return Finding {
            subject: "cgroups",
            found: "none at /sys/fs/cgroup".to_owned(),
            severity: Severity::Missing,
            advice: Some("mount a cgroup2 file system there".to_owned()),
        };
    };
    good("cgroups", layout)
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 12) {
        return good("kernel", release);
    }
    Finding {
        subject: "kernel",
        found: format!("{release}, older than 5.12"),
        severity: Severity::Warning,
        advice: Some("replicas and mounts are only tried with newer ones".to_owned()),
    }
}

/// Where version 1 or 2 of control groups would have something.
fn in_cgroups(version_1: &str, version_2: &str) -> bool {
    let exists = |path: &str| fs::metadata(path).is_ok();
    exists(version_1)
        || fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|text| text.split_whitespace().any(|controller| controller == version_2))
}

fn controllers() -> Finding {
    let wanted = [("memory", "memory"), ("cpu", "cpu"), ("pids", "pids")];
    let missing: Vec<_> = wanted
        .into_iter()
        .filter(|(one, two)| !in_cgroups(&format!("/sys/fs/cgroup/{one}"), two))
        .map(|(name, _)| name)
        .collect();
    if missing.is_empty() {
        return good("limits", "memory, processor and processes can be limited");
    }
    Finding {
        subject: "limits",
        found: format!("no cgroup controller for {}", missing.join(", ")),
        severity: Severity::Warning,
        advice: Some(
            "boot with `cgroup_enable=memory`, or delegate the controllers to this container"
                .to_owned(),
        ),
    }
}

fn freezer() -> Finding {
    // Version 2 has it in every group but the root's.
    if in_cgroups("/sys/fs/cgroup/freezer", "memory") {
        return good("freezer", "idle functions can be frozen");
    }
    Finding {
        subject: "freezer",
        found: "none".to_owned(),
        severity: Severity::Warning,
        advice: Some("idle functions use processor time until they stop".to_owned()),
    }
}

fn overlay() -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.ends_with("\toverlay")) {
        return good("overlayfs", "in the kernel");
    }
    Finding {
        subject: "overlayfs",
        found: "not loaded".to_owned(),
        severity: Severity::Warning,
        advice: Some("run `modprobe overlay`; without it images are slow to build".to_owned()),
    }
}

fn program(program: &Program) -> Finding {
    let subject = program.names[0];
    let found: Vec<PathBuf> = program.names.iter().filter_map(in_path).collect();
    if !found.is_empty() {
        let paths: Vec<_> = found.iter().map(|path| path.display().to_string()).collect();
        return good(subject, paths.join(", "));
    }
    let severity = if program.required { Severity::Missing } else { Severity::Warning };
    Finding {
        subject,
        found: format!("{} is not installed ({})", program.names.join(" or "), program.purpose),
        severity,
        advice: Some(format!("run `apt-get install {}`", program.package)),
    }
}

/// Most machines need none, so that there is none is no warning.
fn gvisor() -> Finding {
    let subject = "gVisor";
    match in_path("runsc") {
        Some(path) => good(subject, path.display().to_string()),
        None => good(
            subject,
            "not installed; for functions with a kernel of their own, `apt-get install runsc`",
        ),
    }
}

/// How builds would be kept apart, with their images below this folder.
fn builds(data_dir: &Path) -> Vec<Finding> {
    let subject = "builds";
    let existing = data_dir.ancestors().find(|folder| fs::metadata(folder).is_ok());
    let lacking = existing.map(updraft_builder::examine).unwrap_or_default();
    if lacking.is_empty() {
        return vec![good(subject, BUILDS_APART)];
    }
    let finding = |found| Finding {
        subject,
        found,
        severity: Severity::Warning,
        advice: Some("let only people push whom you would give a login, or mend it".to_owned()),
    };
    lacking.into_iter().map(finding).collect()
}

fn in_path(name: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name.as_ref()))
        .find(|file| fs::metadata(file).is_ok_and(|metadata| metadata.is_file()))
}

fn free_space(data_dir: &Path) -> Finding {
    let subject = "disk";
    let existing = data_dir.ancestors().find(|folder| fs::metadata(folder).is_ok());
    let Some(space) = existing.and_then(|folder| rustix::fs::statvfs(folder).ok()) else {
        return Finding {
            subject,
            found: format!("cannot tell the free space of {}", data_dir.display()),
            severity: Severity::Warning,
            advice: None,
        };
    };
    let free = space.f_bavail * space.f_frsize;
    let found =
        format!("{:.1} GiB free at {}", free as f64 / f64::from(1 << 30), data_dir.display());
    if free >= FREE_SPACE_WANTED {
        return good(subject, found);
    }
    Finding {
        subject,
        found,
        severity: Severity::Warning,
        advice: Some(
            "images and builds want 4 GiB; choose another folder with --data-dir".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let findings = [
            good("git", "/usr/bin/git"),
            program(&Program {
                names: &["no-such-program"],
                package: "no-such-package",
                purpose: "does nothing",
                required: true,
            }),
        ];
        let refusal = require(&findings).unwrap_err().to_string();
        assert!(refusal.contains("apt-get install no-such-package"), "{refusal}");
        assert!(!refusal.contains("/usr/bin/git"), "{refusal}");
    }

    #[test]
    fn the_free_space_of_a_folder_to_be_made_is_that_of_its_parent() {
        let finding = free_space(Path::new("/tmp/not/there/yet"));
        assert!(finding.found.contains("GiB free"), "{}", finding.found);
    }
}
