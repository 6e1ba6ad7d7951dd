//! Builds and their logs, and pushes.

use futures_util::{StreamExt, TryStreamExt};
use updraft_api::client::ListOptions;
use updraft_store::{BuildResult, BuildState, PushState};

use crate::harness::{Host, name, owner, refused, within};

#[tokio::test]
async fn a_running_builds_log_is_followed_to_its_end() {
    let host = Host::start().await;
    let build = host.build(&owner("alice"), "f").await;
    let mut log = host.store.blobs().create(build.log.as_ref().unwrap(), 1 << 20).await.unwrap();
    log.line("STEP 1").unwrap();
    let mut followed = host.alice().build_log(build.id, true).await.unwrap();
    let mut next = async || within("more of the log", followed.next()).await;
    assert_eq!(next().await.unwrap().unwrap(), "STEP 1\n");
    log.line("STEP 2").unwrap();
    assert_eq!(next().await.unwrap().unwrap(), "STEP 2\n");
    let failed = BuildResult::Failed { reason: "exit status 1".to_owned() };
    log.line("last words").unwrap();
    host.store.finish_build(build.id, failed).await.unwrap();
    assert_eq!(next().await.unwrap().unwrap(), "last words\n");
    assert!(next().await.is_none());

    let shown = host.alice().build(build.id).await.unwrap();
    assert_eq!(shown.state, BuildState::Failed);
    assert_eq!(shown.reason.as_deref(), Some("exit status 1"));
    let whole: Vec<_> =
        host.alice().build_log(build.id, false).await.unwrap().try_collect().await.unwrap();
    assert_eq!(whole.concat(), b"STEP 1\nSTEP 2\nlast words\n");
}

#[tokio::test]
async fn the_log_of_a_build_that_wrote_nothing_is_empty() {
    let host = Host::start().await;
    let build = host.build(&owner("alice"), "f").await;
    host.store.finish_build(build.id, BuildResult::Cancelled).await.unwrap();
    let whole: Vec<_> =
        host.alice().build_log(build.id, true).await.unwrap().try_collect().await.unwrap();
    assert!(whole.is_empty());
}

#[tokio::test]
async fn lists_are_chosen_by_function_repository_and_number() {
    let host = Host::start().await;
    let alice = owner("alice");
    for function in ["f", "g", "g"] {
        host.build(&alice, function).await;
    }
    let count = async |options: ListOptions| host.alice().builds(&options).await.unwrap().len();
    let function = Some(name("g"));
    assert_eq!(count(ListOptions { function, ..ListOptions::default() }).await, 2);
    assert_eq!(count(ListOptions { limit: Some(1), ..ListOptions::default() }).await, 1);
    let too_many = ListOptions { limit: Some(1001), ..ListOptions::default() };
    refused(host.alice().builds(&too_many).await, 400, "limit");
    let repository = Some("other".parse().unwrap());
    let pushes = ListOptions { repository, ..ListOptions::default() };
    assert!(host.alice().pushes(&pushes).await.unwrap().is_empty());
    let pushes = host.alice().pushes(&ListOptions::default()).await.unwrap();
    assert_eq!((pushes.len(), pushes[0].state), (3, PushState::Received));
    assert!(pushes[0].id > pushes[1].id, "newest first");
}
