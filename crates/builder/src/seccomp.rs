//! Which system calls build steps have: those of the machine's own list for containers, without
//! the ones that lead to other processes and to the kernel's keys.
//!
//! The session's keyring is inherited from whoever started the server, so a step that may ask for
//! it could read what an administrator's login left there.

use std::fs;

use serde_json::Value;

/// Where `buildah` looks for the list, the first that is there counts.
const LISTS: [&str; 2] = ["/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json"];

/// Calls that no build needs.
const TAKEN: [&str; 10] = [
    "add_key",
    "bpf",
    "kcmp",
    "keyctl",
    "perf_event_open",
    "pidfd_getfd",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "request_key",
];

/// The list for builds; nothing where the machine has none, and `buildah` uses its own.
pub(crate) fn profile() -> Option<String> {
    let text = LISTS.iter().find_map(|path| fs::read_to_string(path).ok())?;
    narrowed(&text)
}

/// Takes the calls out of everything that is allowed. Nothing for what is no list of allowed calls.
fn narrowed(text: &str) -> Option<String> {
    let mut list: Value = serde_json::from_str(text).ok()?;
    if list.get("defaultAction")?.as_str()? == "SCMP_ACT_ALLOW" {
        return None;
    }
    for rule in list.get_mut("syscalls")?.as_array_mut()? {
        if rule.get("action").and_then(Value::as_str) != Some("SCMP_ACT_ALLOW") {
            continue;
        }
        let names = rule.get_mut("names")?.as_array_mut()?;
        names.retain(|name| !name.as_str().is_some_and(|name| TAKEN.contains(&name)));
    }
    let rules = list.get_mut("syscalls")?.as_array_mut()?;
    rules.retain(|rule| {
        rule.get("names").and_then(Value::as_array).is_some_and(|names| !names.is_empty())
    });
    Some(list.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_lead_to_others_are_taken_out_and_the_rest_stays() {
        let list = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[1],"syscalls":[
            {"names":["read","ptrace","keyctl"],"action":"SCMP_ACT_ALLOW"},
            {"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["bpf"],"action":"SCMP_ACT_ERRNO"}]}"#;
        let narrowed: Value = serde_json::from_str(&narrowed(list).unwrap()).unwrap();
        let expected = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[1],"syscalls":[
            {"names":["read"],"action":"SCMP_ACT_ALLOW"},
            {"names":["bpf"],"action":"SCMP_ACT_ERRNO"}]}"#;
        assert_eq!(narrowed, serde_json::from_str::<Value>(expected).unwrap());
    }

    #[test]
    fn a_list_that_allows_what_it_does_not_name_is_not_used() {
        for text in ["", "{}", r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[]}"#] {
            assert_eq!(narrowed(text), None);
        }
    }
}
