//! Claims about what a function gets and what is kept from it.

use std::sync::Arc;

use updraft_model::ResourceSet;

use super::{Harness, Judge, with_environment};
use crate::Wake;

/// Variables, the process override and the function's own name.
pub async fn environment_and_process_reach_the_function<H: Harness>(judge: Arc<Judge<H>>) {
    let mut spec = with_environment(judge.spec("told"), &[("greeting", "with spaces = and more")]);
    spec.process = Some("cat -".into());
    judge.deploy(&spec).await;
    for (name, value) in [
        ("greeting", "with spaces = and more"),
        ("fprocess", "cat -"),
        ("OPENFAAS_NAME", "told"),
        ("OPENFAAS_NAMESPACE", "openfaas-fn"),
    ] {
        assert_eq!(judge.body(&spec.id, &format!("/env/{name}")).await, value);
    }
    let status = judge.status(&spec.id).await;
    assert_eq!(status.spec.environment, spec.environment);
    assert_eq!(status.spec.process, spec.process);
}

/// No capability, no way to get one, and a filter on system calls.
pub async fn a_function_has_no_privileges<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = judge.spec("humble");
    judge.deploy(&spec).await;
    let status = judge.body(&spec.id, "/read/proc/self/status").await;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
}

/// Its process is the first one of its own world.
pub async fn a_function_sees_no_other_process<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = judge.spec("alone");
    judge.deploy(&spec).await;
    let first = judge.body(&spec.id, "/read/proc/1/comm").await;
    let own = judge.body(&spec.id, "/read/proc/self/comm").await;
    assert_eq!(first, own);
    let kernel = judge.call(&spec.id, "/write/proc/sys/kernel/hostname").await;
    assert_eq!(kernel.status, 500);
}

/// `readOnlyRootFilesystem` holds, and leaves `/tmp`.
pub async fn a_read_only_root_cannot_be_written_but_tmp_can<H: Harness>(judge: Arc<Judge<H>>) {
    let mut spec = judge.spec("sealed");
    spec.read_only_root = true;
    judge.deploy(&spec).await;
    let refused = judge.call(&spec.id, "/write/home/file").await;
    assert_eq!(refused.status, 500, "{}", refused.body);
    judge.body(&spec.id, "/write/tmp/file").await;
    assert_eq!(judge.body(&spec.id, "/read/tmp/file").await, "written");
    assert!(judge.status(&spec.id).await.spec.read_only_root);
}

/// Without it a replica may write to its own root, which ends with it.
pub async fn a_writable_root_is_fresh_for_each_replica<H: Harness>(judge: Arc<Judge<H>>) {
    let spec = judge.spec("messy");
    judge.deploy(&spec).await;
    judge.body(&spec.id, "/write/home/file").await;
    assert_eq!(judge.body(&spec.id, "/read/home/file").await, "written");
    judge.deploy(&with_environment(spec.clone(), &[("answer", "new")])).await;
    let fresh = judge.call(&spec.id, "/read/home/file").await;
    assert_eq!(fresh.status, 500, "{}", fresh.body);
}

/// A memory limit is kept, and the status says that it was hit.
pub async fn a_function_that_takes_too_much_memory_is_ended_and_told<H: Harness>(
    judge: Arc<Judge<H>>,
) {
    let engine = judge.engine();
    let mut spec = judge.spec("greedy");
    let memory = Some("32Mi".parse().unwrap());
    spec.limits = Some(ResourceSet { memory, ..ResourceSet::default() });
    let revision = engine.apply(spec.clone(), Wake::Keep).await.unwrap();
    engine.wait_ready(&spec.id, revision, super::PATIENCE).await.unwrap();
    assert_eq!(judge.body(&spec.id, "/memory/8").await, "2048");
    assert_eq!(judge.status(&spec.id).await.spec.limits, spec.limits);
    assert!(judge.try_call(&spec.id, "/memory/256").await.is_err());
    judge
        .until("the status tells why", || async {
            judge.status(&spec.id).await.message.is_some_and(|message| message.contains("memory"))
        })
        .await;
    judge.until_ready(&spec.id, 1).await;
}
