//! Pushing a working tree, following pushes, going back and removing.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody};
use updraft_api::client::{Client, ClientError, ListOptions, SendBody};
use updraft_api::wire::Rollback;
use updraft_pipeline::{PushEvent, PushEventKind, PushId, PushState};
use updraft_source::git::ContentLimits;
use updraft_source::git::upload::packed_body;

use crate::git::STACK;
use crate::harness::{Host, name, owner, refused, within};

/// Sends the folder as the command line does.
async fn upload(client: &Client, of: &str, folder: &Path) -> Result<PushId, ClientError> {
    let (body, packing) = packed_body(folder.to_owned(), ContentLimits::default());
    let pushed = client.upload(&owner(of), &"site".parse().unwrap(), body).await;
    packing.await.unwrap().ok();
    pushed
}

fn working_tree(stack: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("stack.yml"), stack).unwrap();
    folder
}

async fn story(client: &Client, push: PushId, from: u64) -> Vec<PushEvent> {
    let events = client.push_events(push, from).await.unwrap();
    within("the end of the push", events.map(|event| event.unwrap()).collect()).await
}

/// What is left in the work folder.
fn leftovers(host: &Host) -> Vec<String> {
    let entries = fs::read_dir(host.folder.path().join("work")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn body(bytes: impl Into<Bytes>) -> SendBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

#[tokio::test]
async fn a_working_tree_goes_live_and_its_story_can_be_read_from_any_event() {
    let host = Host::start().await;
    let alice = host.alice();
    let push = upload(&alice, "alice", working_tree(STACK).path()).await.unwrap();
    let whole = story(&alice, push, 1).await;
    assert!(whole.iter().enumerate().all(|(index, event)| event.seq == index as u64 + 1));
    let PushEventKind::Finished { verdict } = &whole.last().unwrap().kind else {
        panic!("{whole:?}");
    };
    assert_eq!(verdict.state, PushState::Ready);
    let url = "http://alice.localhost:8080/page";
    let deployed = |event: &PushEvent| matches!(&event.kind, PushEventKind::Deployed { url: told, .. } if told == url);
    assert!(whole.iter().any(deployed), "{whole:?}");
    assert_eq!(story(&alice, push, 3).await, whole[2..]);
    let shown = alice.push(push).await.unwrap();
    assert!(shown.uploaded && shown.finished_at.is_some());
    assert_eq!(shown.state, PushState::Ready);
    assert_eq!(alice.function(&owner("alice"), &name("page")).await.unwrap().release, Some(1));
}

#[tokio::test]
async fn a_tree_that_cannot_go_live_tells_why() {
    let host = Host::start().await;
    let tree = working_tree("functions: 1\n");
    let push = upload(&host.alice(), "alice", tree.path()).await.unwrap();
    let story = story(&host.alice(), push, 1).await;
    let told = |event: &PushEvent| matches!(&event.kind, PushEventKind::PushFailed { reason, .. } if reason.contains("stack.yml"));
    assert!(story.iter().any(told), "{story:?}");
}

#[tokio::test]
async fn an_upload_for_another_owner_is_forbidden_and_leaves_nothing() {
    let host = Host::start().await;
    let tree = working_tree(STACK);
    for other in ["bob", "nobody"] {
        refused(upload(&host.alice(), other, tree.path()).await, 403, "alice");
    }
    assert!(host.admin().pushes(&ListOptions::default()).await.unwrap().is_empty());
    assert!(leftovers(&host).is_empty());
}

#[tokio::test]
async fn uploads_that_break_the_rules_are_refused_and_leave_nothing() {
    let host = Host::start().await;
    let send = async |archive: SendBody| {
        host.alice().upload(&owner("alice"), &"site".parse().unwrap(), archive).await
    };
    refused(send(body("no archive")).await, 400, "tar archive");
    let tree = working_tree(STACK);
    for number in 0..30 {
        fs::write(tree.path().join(number.to_string()), "x").unwrap();
    }
    refused(upload(&host.alice(), "alice", tree.path()).await, 422, "more than 20 files");
    refused(send(body(vec![0; 3 << 20])).await, 413, "1 MiB");
    let admin = host.admin();
    let confusable = owner("bob-b");
    let (archive, _) = packed_body(working_tree(STACK).keep(), ContentLimits::default());
    let pushed = admin.upload(&confusable, &"site".parse().unwrap(), archive).await;
    refused(pushed, 409, "bob");
    assert!(leftovers(&host).is_empty(), "{:?}", leftovers(&host));
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_no_push_and_leaves_nothing() {
    let host = Host::start().await;
    let frames = futures_util::stream::iter([
        Ok(http_body::Frame::data(Bytes::from(vec![0; 100]))),
        Err(Box::<dyn std::error::Error + Send + Sync>::from("the client died")),
    ]);
    let broken = StreamBody::new(frames).boxed_unsync();
    let result = host.alice().upload(&owner("alice"), &"site".parse().unwrap(), broken).await;
    assert!(matches!(result, Err(ClientError::Broken { .. })), "{result:?}");
    within("the half upload to be removed", async {
        while !leftovers(&host).is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(host.admin().pushes(&ListOptions::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_function_goes_back_stays_there_and_follows_again() {
    let host = Host::start().await;
    let (alice, client, page) = (owner("alice"), host.alice(), name("page"));
    for image in ["one", "two", "three"] {
        let stack = STACK.replace("localhost/page:1", &format!("localhost/page:{image}"));
        let push = upload(&client, "alice", working_tree(&stack).path()).await.unwrap();
        story(&client, push, 1).await;
    }
    let now = async || {
        let function = client.function(&alice, &page).await.unwrap();
        (function.release.unwrap(), function.pinned, function.image.unwrap().to_string())
    };
    assert_eq!(now().await, (3, false, "localhost/page:three".to_owned()));
    let back = client.rollback(&alice, &page, Rollback::Previous).await.unwrap();
    assert_eq!((back.number, back.live, back.pinned), (2, true, true));
    assert_eq!(now().await, (2, true, "localhost/page:two".to_owned()));
    client.rollback(&alice, &page, Rollback::To(1)).await.unwrap();
    assert_eq!(now().await.0, 1);
    refused(client.rollback(&alice, &page, Rollback::Previous).await, 409, "no release before v1");
    refused(client.rollback(&alice, &page, Rollback::To(9)).await, 404, "v9");
    refused(client.rollback(&alice, &name("x"), Rollback::Previous).await, 404, "`x`");
    let newest = client.rollback(&alice, &page, Rollback::Unpin).await.unwrap();
    assert_eq!((newest.number, newest.pinned), (3, false));
    assert_eq!(now().await, (3, false, "localhost/page:three".to_owned()));
}

#[tokio::test]
async fn a_function_is_removed_once() {
    let host = Host::start().await;
    let (alice, client, page) = (owner("alice"), host.alice(), name("page"));
    let push = upload(&client, "alice", working_tree(STACK).path()).await.unwrap();
    story(&client, push, 1).await;
    client.remove_function(&alice, &page).await.unwrap();
    refused(client.function(&alice, &page).await, 404, "`page`");
    assert!(client.functions(None).await.unwrap().is_empty());
    refused(client.remove_function(&alice, &page).await, 404, "`page`");
    refused(client.remove_function(&owner("bob"), &page).await, 403, "alice");
}
