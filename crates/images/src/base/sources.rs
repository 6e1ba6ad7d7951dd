//! Where this machine gets its Debian packages from.
//!
//! A base image takes the same release from the same mirror, but nothing from third parties: an
//! entry counts when its suite is the machine's own release.

use std::fs;
use std::path::{Path, PathBuf};

/// Used on a machine that is no Debian: the release this was written on.
const FALLBACK_SUITE: &str = "bookworm";

/// A release and the one-line entries of `sources.list` that have it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sources {
    pub(super) suite: String,
    /// Empty means the usual mirror of Debian.
    pub(super) entries: Vec<String>,
}

/// This machine's release and sources, or `mirror` alone when one is given.
pub(super) fn of_this_machine(mirror: Option<&str>) -> Sources {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let suite = suite(&release).unwrap_or_else(|| FALLBACK_SUITE.to_owned());
    if let Some(mirror) = mirror {
        let entry = format!("deb {mirror} {suite} main");
        return Sources { suite, entries: vec![entry] };
    }
    let mut entries = Vec::new();
    for file in files(Path::new("/etc/apt")) {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        if file.extension().is_some_and(|extension| extension == "sources") {
            entries.extend(stanzas(&text, &suite));
        } else {
            entries.extend(lines(&text, &suite));
        }
    }
    Sources { suite, entries }
}

fn suite(release: &str) -> Option<String> {
    let value = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    let value = value.trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.to_owned())
}

fn files(apt: &Path) -> Vec<PathBuf> {
    let folder = fs::read_dir(apt.join("sources.list.d"));
    let mut files: Vec<PathBuf> =
        folder.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "list" || e == "sources"));
    files.push(apt.join("sources.list"));
    files.sort();
    files
}

fn fits(candidate: &str, suite: &str) -> bool {
    candidate
        .strip_prefix(suite)
        .is_some_and(|rest| matches!(rest, "" | "-updates" | "-security" | "/updates"))
}

/// The entries of a one-line file that are of `suite`, as they are.
fn lines(text: &str, suite: &str) -> Vec<String> {
    let of_suite = |line: &&str| {
        let Some(rest) = line.strip_prefix("deb ") else { return false };
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        rest.split_whitespace().nth(1).is_some_and(|candidate| fits(candidate, suite))
    };
    text.lines().map(str::trim).filter(of_suite).map(str::to_owned).collect()
}

/// The entries of a file in stanzas that are of `suite`, one line each.
fn stanzas(text: &str, suite: &str) -> Vec<String> {
    let mut entries = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let field = |wanted: &str| {
            stanza.iter().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(wanted).then(|| value.trim())
            })
        };
        let is_binary = field("Types").is_some_and(|types| types.split(' ').any(|t| t == "deb"));
        if !is_binary || field("Enabled").is_some_and(|value| value == "no") {
            continue;
        }
        let components = field("Components").unwrap_or("main");
        // A key written out in the stanza cannot be carried in one line; the default ring is used.
        let key = field("Signed-By").filter(|key| key.starts_with('/'));
        let options = key.map(|key| format!("[signed-by={key}] ")).unwrap_or_default();
        for uri in field("URIs").unwrap_or_default().split_whitespace() {
            let suites = field("Suites").unwrap_or_default().split_whitespace();
            for candidate in suites.filter(|candidate| fits(candidate, suite)) {
                entries.push(format!("deb {options}{uri} {candidate} {components}"));
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_of_the_release_become_one_line_each() {
        let text = "# a comment\nTypes: deb\nURIs: http://deb.example/debian\n\
            Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\n\
            Types: deb\nURIs: https://third.example\nSuites: nodistro\nComponents: main\n\n\
            Types: deb-src\nURIs: http://deb.example/debian\nSuites: bookworm\n";
        assert_eq!(
            stanzas(text, "bookworm"),
            [
                "deb [signed-by=/k.gpg] http://deb.example/debian bookworm main",
                "deb [signed-by=/k.gpg] http://deb.example/debian bookworm-updates main",
            ]
        );
    }

    #[test]
    fn lines_of_other_releases_and_sources_are_left_out() {
        let text = "deb [arch=amd64] http://m/debian trixie main\ndeb-src http://m trixie main\n\
            deb http://m/debian trixie-security main\ndeb https://x cloud-sdk-trixie main\n";
        assert_eq!(
            lines(text, "trixie"),
            [
                "deb [arch=amd64] http://m/debian trixie main",
                "deb http://m/debian trixie-security main"
            ]
        );
    }

    #[test]
    fn the_release_is_read_from_the_machine() {
        assert_eq!(suite("ID=debian\nVERSION_CODENAME=bookworm\n").unwrap(), "bookworm");
        assert_eq!(suite("ID=arch\n"), None);
    }
}
