//! Asynchronous calls: who sees which, and what can be done with them.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use updraft_api::client::CallOptions;
use updraft_model::{FunctionId, OwnerName};
use updraft_queue::{CallId, CallState};
use updraft_store::queue::{CallToAdd, Client, Outcome, RequestHead, StoredBody};

use crate::harness::{Host, name, owner, refused};

/// A call on record that nobody makes: no function of the name runs.
async fn queued(host: &Host, id: &str, function: &str, owner: Option<OwnerName>) -> CallId {
    let client = Client { address: "127.0.0.1".parse().unwrap(), tls: false, authorized: false };
    let call = CallToAdd {
        ids: [id.parse().unwrap(), format!("{id}-other").parse().unwrap()],
        function: FunctionId::in_default(name(function)),
        owner,
        queue: "faas-request".to_owned(),
        head: RequestHead {
            method: Method::PUT,
            target: "/a%2Fb?c=d".to_owned(),
            headers: HeaderMap::new(),
            client,
        },
        body: StoredBody::Inline(Bytes::from_static(b"body")),
        callback: Some("https://example.org/hook".to_owned()),
    };
    host.calls.add(call).await.unwrap().0
}

/// The same, ended.
async fn ended(host: &Host, id: &str, function: &str, owner: Option<OwnerName>, state: CallState) {
    let id = queued(host, id, function, owner).await;
    let function = FunctionId::in_default(name(function));
    let until = Timestamp::now() + Duration::from_mins(1);
    let leases = host.calls.lease(&function, 1, until).await.unwrap();
    let call = &leases.calls[0];
    assert_eq!(call.record.id, id);
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("text/html"));
    let outcome = Outcome {
        status: Some(StatusCode::INTERNAL_SERVER_ERROR.as_u16()),
        reason: Some("the function answered 500".to_owned()),
        took: Duration::from_millis(1500),
        answer: Some((headers, Bytes::from_static(b"<b>answer</b>"), 13)),
    };
    let lost = host.calls.finish(call.attempt, state, outcome).await.unwrap().unwrap();
    assert!(lost.0.is_empty());
}

fn of(function: &str) -> CallOptions {
    CallOptions { function: Some(function.to_owned()), ..CallOptions::default() }
}

#[tokio::test]
async fn owners_see_and_touch_their_own_calls_alone() {
    let host = Host::start().await;
    let alices = queued(&host, "of-alice", "alice-f", Some(owner("alice"))).await;
    let bobs = queued(&host, "of-bob", "bob-f", Some(owner("bob"))).await;
    let nobodys = queued(&host, "of-nobody", "figlet", None).await;

    let seen = host.alice().calls(&CallOptions::default()).await.unwrap();
    assert_eq!(seen.iter().map(|call| call.id.as_str()).collect::<Vec<_>>(), ["of-alice"]);
    assert_eq!(host.admin().calls(&CallOptions::default()).await.unwrap().len(), 3);
    let call = host.alice().async_call(&alices).await.unwrap();
    assert_eq!((call.method.as_str(), call.path.as_str()), ("PUT", "/a%2Fb?c=d"));
    assert_eq!(call.callback.unwrap().url, "https://example.org/hook");

    for other in [&bobs, &nobodys] {
        refused(host.alice().async_call(other).await, 404, "no call");
        refused(host.alice().call_result(other).await, 404, "no call");
        refused(host.alice().cancel_call(other).await, 404, "no call");
        refused(host.alice().redrive_call(other).await, 404, "no call");
        refused(host.alice().discard_call(other).await, 404, "no call");
        assert_eq!(host.admin().async_call(other).await.unwrap().state, CallState::Queued);
    }
    let bobs_list = CallOptions { owner: Some(owner("bob")), ..CallOptions::default() };
    refused(host.alice().calls(&bobs_list).await, 403, "may not act");
    refused(host.alice().redrive_calls(&bobs_list).await, 403, "may not act");
    assert!(host.alice().calls(&of("bob-f")).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_call_is_cancelled_once_and_then_discarded() {
    let host = Host::start().await;
    let id = queued(&host, "one", "alice-f", Some(owner("alice"))).await;
    refused(host.alice().call_result(&id).await, 404, "not been answered");
    refused(host.alice().discard_call(&id).await, 409, "queued");
    refused(host.alice().redrive_call(&id).await, 409, "queued");
    host.alice().cancel_call(&id).await.unwrap();
    assert_eq!(host.alice().async_call(&id).await.unwrap().state, CallState::Cancelled);
    refused(host.alice().cancel_call(&id).await, 409, "cancelled");
    host.alice().discard_call(&id).await.unwrap();
    refused(host.alice().async_call(&id).await, 404, "no call");
}

#[tokio::test]
async fn an_answer_comes_as_json_and_never_as_a_page() {
    let host = Host::start().await;
    ended(&host, "done", "alice-f", Some(owner("alice")), CallState::Done).await;
    let result = host.alice().call_result(&"done".parse().unwrap()).await.unwrap();
    assert_eq!(result.bytes().unwrap(), b"<b>answer</b>");
    assert_eq!((result.status, result.length, result.cut), (Some(500), 13, false));
    assert_eq!(result.headers, [("content-type".to_owned(), "text/html".to_owned())]);
}

#[tokio::test]
async fn dead_letters_are_chosen_made_again_and_discarded() {
    let host = Host::start().await;
    for (id, function, whose) in
        [("a", "alice-f", "alice"), ("b", "alice-g", "alice"), ("c", "bob-f", "bob")]
    {
        ended(&host, id, function, Some(owner(whose)), CallState::Dead).await;
    }
    let dead = CallOptions { state: Some(CallState::Dead), ..CallOptions::default() };
    let seen = host.alice().calls(&dead).await.unwrap();
    assert_eq!(seen.iter().map(|call| call.id.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(seen[0].reason.as_deref(), Some("the function answered 500"));
    let older = CallOptions { before: Some(seen[0].number), ..dead.clone() };
    assert_eq!(host.alice().calls(&older).await.unwrap().len(), 1);

    assert_eq!(host.alice().redrive_calls(&of("alice-f.openfaas-fn")).await.unwrap(), 1);
    assert_eq!(host.alice().redrive_calls(&of("alice-g")).await.unwrap(), 1);
    assert_eq!(host.alice().redrive_calls(&of("bob-f")).await.unwrap(), 0);
    let bobs = host.admin().async_call(&"c".parse().unwrap()).await.unwrap();
    assert_eq!(bobs.state, CallState::Dead);
    host.admin().discard_call(&"c".parse().unwrap()).await.unwrap();
    assert!(host.admin().calls(&of("bob-f")).await.unwrap().is_empty());
}

#[tokio::test]
async fn each_owner_has_a_key_of_their_own_for_callbacks() {
    let host = Host::start().await;
    let (alice, bob) = (owner("alice"), owner("bob"));
    let key = host.alice().callback_key(Some(&alice)).await.unwrap();
    assert_eq!(key.key.expose().len(), 64);
    assert_ne!(key, host.admin().callback_key(Some(&bob)).await.unwrap());
    assert_ne!(key, host.admin().callback_key(None).await.unwrap());
    refused(host.alice().callback_key(Some(&bob)).await, 403, "may not act");
    refused(host.alice().callback_key(None).await, 403, "only `admin`");
}

#[tokio::test]
async fn wrong_choices_are_told_by_their_name() {
    let host = Host::start().await;
    refused(host.alice().calls(&of("Not A Name")).await, 400, "Not A Name");
    let many = CallOptions { limit: Some(5000), ..CallOptions::default() };
    refused(host.alice().calls(&many).await, 400, "limit");
}
