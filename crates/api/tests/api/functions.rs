//! Functions, releases and logs.

use futures_util::StreamExt;
use updraft_api::client::LogOptions;
use updraft_api::wire::Function;
use updraft_engine::{Engine, Wake};
use updraft_model::{FunctionId, FunctionSpec};
use updraft_store::PinnedTo;

use crate::harness::{Host, name, owner, refused, within};

#[tokio::test]
async fn a_live_function_shows_what_runs_and_what_is_live() {
    let host = Host::start().await;
    let alice = owner("alice");
    host.release(&alice, "f", PinnedTo::Newest).await;
    host.release(&alice, "f", PinnedTo::ThisRelease).await;
    let function = host.alice().function(&alice, &name("f")).await.unwrap();
    assert_eq!(function.owner.as_ref(), Some(&alice));
    assert_eq!(function.name, name("f"));
    assert_eq!(function.url, "http://alice.localhost:8080/f");
    assert_eq!(function.repository.as_deref(), Some("site"));
    assert_eq!(function.image.as_ref().unwrap().as_str(), "localhost/x:1");
    assert_eq!((function.replicas, function.available_replicas), (1, 1));
    assert_eq!((function.release, function.pinned), (Some(2), true));
    assert_eq!(function.commit.as_deref(), Some("c".repeat(40).as_str()));
    let listed = host.alice().functions(Some(&alice)).await.unwrap();
    assert_eq!(without_scaling(listed), without_scaling(vec![function]));
}

/// What the scaler tells comes once it has looked, which it does on its own.
fn without_scaling(functions: Vec<Function>) -> Vec<Function> {
    functions.into_iter().map(|function| Function { scaling: None, ..function }).collect()
}

#[tokio::test]
async fn how_a_function_is_scaled_and_what_its_labels_get_wrong_is_told() {
    let host = Host::start().await;
    let mut spec = FunctionSpec::new(FunctionId::in_default(name("f")), "f".parse().unwrap());
    for (key, value) in [
        ("com.openfaas.scale.min", "2"),
        ("com.openfaas.scale.max", "many"),
        ("com.openfaas.scale.type", "cpu"),
        ("com.openfaas.scale.target", "500"),
        ("com.openfaas.scale.zero", "true"),
    ] {
        spec.labels.insert(key.to_owned(), value.to_owned());
    }
    for (key, value) in [("topic", "cron-function"), ("schedule", "99 * * * *")] {
        spec.annotations.insert(key.to_owned(), value.to_owned());
    }
    host.engine.apply(spec, Wake::Keep).await.unwrap();
    let function = within("the scaler looks at it", async {
        loop {
            let function = host.admin().functions(None).await.unwrap().remove(0);
            if function.scaling.is_some() {
                return function;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let scaling = function.scaling.unwrap();
    assert_eq!((scaling.min, scaling.max), (2, 20));
    assert_eq!((scaling.targets[0].mode.as_str(), scaling.targets[0].load), ("cpu", 450.0));
    assert_eq!(scaling.zero_after.as_deref(), Some("15m0s"));
    let [max, schedule] = &function.warnings[..] else { panic!("{:?}", function.warnings) };
    assert!(max.contains("`com.openfaas.scale.max` cannot be `many`"), "{max}");
    assert!(schedule.contains("schedule `99 * * * *`"), "{schedule}");
}

#[tokio::test]
async fn a_function_that_never_came_up_is_listed_with_a_word() {
    let host = Host::start().await;
    let alice = owner("alice");
    host.record_push(&alice, &["broken"]).await;
    let function = host.alice().function(&alice, &name("broken")).await.unwrap();
    assert_eq!((function.image.as_ref(), function.replicas), (None, 0));
    assert!(function.message.is_some());
    assert_eq!(host.alice().functions(None).await.unwrap(), [function]);
}

#[tokio::test]
async fn functions_of_nobody_are_the_administrators_to_see() {
    let host = Host::start().await;
    let id = FunctionId::in_default(name("alice-figlet"));
    let spec = FunctionSpec::new(id, "figlet".parse().unwrap());
    host.engine.apply(spec, Wake::Keep).await.unwrap();
    let all = host.admin().functions(None).await.unwrap();
    assert_eq!((all.len(), &all[0].owner, &all[0].name), (1, &None, &name("alice-figlet")));
    assert_eq!(all[0].url, "http://127.0.0.1:8080/function/alice-figlet");
    // The visible name alone makes nobody its owner.
    let alice = owner("alice");
    assert!(host.alice().functions(None).await.unwrap().is_empty());
    refused(host.alice().function(&alice, &name("figlet")).await, 404, "no function `figlet`");
    let logs = host.alice().logs(&alice, &name("figlet"), &LogOptions::default()).await;
    refused(logs, 404, "no function `figlet`");
}

#[tokio::test]
async fn releases_come_newest_first_with_the_live_one_marked() {
    let host = Host::start().await;
    let alice = owner("alice");
    host.release(&alice, "f", PinnedTo::Newest).await;
    host.release(&alice, "f", PinnedTo::Newest).await;
    host.store.set_live(&alice, &name("f"), 1, PinnedTo::ThisRelease).await.unwrap();
    let releases = host.alice().releases(&alice, &name("f")).await.unwrap();
    let shown: Vec<_> = releases.iter().map(|r| (r.number, r.live, r.pinned)).collect();
    assert_eq!(shown, [(2, false, false), (1, true, true)]);
    refused(host.alice().releases(&alice, &name("g")).await, 404, "`g`");
    refused(host.alice().function(&alice, &name("g")).await, 404, "hint: `updraft list`");
}

#[tokio::test]
async fn a_log_is_read_and_followed() {
    let host = Host::start().await;
    let alice = owner("alice");
    host.release(&alice, "f", PinnedTo::Newest).await;
    let id = FunctionId::in_default(name("alice-f"));
    let write = |second: u32, text: &str| {
        host.engine.write_line(&id, "f-1", &format!("2026-01-01T00:00:{second:02}Z"), text);
    };
    write(1, "one");
    write(2, "two");
    let read = async |options: LogOptions| -> Vec<String> {
        let lines = host.alice().logs(&alice, &name("f"), &options).await.unwrap();
        within("the end of the log", lines.map(|line| line.unwrap().text).collect()).await
    };
    assert_eq!(read(LogOptions::default()).await, ["one", "two"]);
    assert_eq!(read(LogOptions { tail: Some(1), ..LogOptions::default() }).await, ["two"]);
    let since = Some("2026-01-01T02:00:02+02:00".parse().unwrap());
    assert_eq!(read(LogOptions { since, ..LogOptions::default() }).await, ["two"]);
    let instance = Some("f 2&x".to_owned());
    assert!(read(LogOptions { instance, ..LogOptions::default() }).await.is_empty());

    let options = LogOptions { follow: true, tail: Some(1), ..LogOptions::default() };
    let mut followed = host.alice().logs(&alice, &name("f"), &options).await.unwrap();
    let mut next = async || within("a line", followed.next()).await.unwrap().unwrap().text;
    assert_eq!(next().await, "two");
    write(3, "three");
    assert_eq!(next().await, "three");
}

#[tokio::test]
async fn a_log_that_breaks_off_is_no_whole_log() {
    let host = Host::start().await;
    let alice = owner("alice");
    host.release(&alice, "f", PinnedTo::Newest).await;
    host.engine.break_down();
    let logs = host.admin().logs(&alice, &name("f"), &LogOptions::default()).await;
    let error = logs.err().unwrap();
    assert_eq!(error.status().unwrap(), 500);
    assert!(!error.to_string().contains("/dev/secret"), "{error}");
}
