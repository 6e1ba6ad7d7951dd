//! Who may call what, route by route.

use axum::body::Body;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;
use updraft_api::{Access, Route, routes};

use crate::harness::{Host, PASSWORD, name, owner, refused};

struct Answer {
    status: StatusCode,
    head: Response<()>,
    text: String,
}

async fn call(host: &Host, route: &Route, in_path: &str, secret: Option<&str>) -> Answer {
    let path = route
        .path
        .replace("{owner}", in_path)
        .replace("{repository}", "site.git")
        .replace("{*path}", "info/refs?service=git-upload-pack")
        .replace("{function}", "f")
        .replace("{name}", "s")
        .replace("{push}", "999")
        .replace("{build}", "999")
        .replace("{call}", "no-such-call")
        .replace("{token}", "999");
    assert!(!path.contains('{'), "{path}");
    let mut request = Request::builder().method(route.method.clone()).uri(path);
    if let Some(secret) = secret {
        request = request.header(header::AUTHORIZATION, format!("Bearer {secret}"));
    }
    let response = host.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        status: head.status,
        text: String::from_utf8_lossy(&body).into_owned(),
        head: Response::from_parts(head, ()),
    }
}

fn names_owner(route: &Route) -> bool {
    matches!(route.access, Access::OwnerInPath | Access::Git)
}

#[tokio::test]
async fn without_credentials_only_the_front_page_and_the_certificate_answer() {
    let host = Host::start().await;
    for route in routes() {
        for secret in [None, Some("wrong"), Some("updraft_wrong")] {
            let answer = call(&host, &route, "alice", secret).await;
            if route.access == Access::Anyone {
                assert_eq!(answer.status, 200);
                assert!(matches!(route.path, "/" | "/v1/cert.pem"), "{}", route.path);
                continue;
            }
            assert_eq!(answer.status, 401, "{} {}", route.method, route.path);
            let challenge = answer.head.headers()[header::WWW_AUTHENTICATE].to_str().unwrap();
            assert!(challenge.starts_with("Basic realm="), "{challenge}");
        }
    }
}

#[tokio::test]
async fn an_owner_reaches_their_own_and_the_administrator_everything() {
    let host = Host::start().await;
    for route in routes() {
        let own = call(&host, &route, "alice", Some(&host.alice_token)).await;
        let expected = route.access == Access::Admin;
        assert_eq!(own.status == 403, expected, "{} {}: {}", route.method, route.path, own.text);
        assert_ne!(own.status, 401);
        let admin = call(&host, &route, "alice", Some(PASSWORD)).await;
        let let_in = admin.status != 401 && admin.status != 403;
        assert!(let_in, "{} {}: {}", route.method, route.path, admin.text);
        assert_ne!(admin.status, 500, "{} {}: {}", route.method, route.path, admin.text);
    }
}

#[tokio::test]
async fn another_owner_is_forbidden_whether_there_or_not() {
    let host = Host::start().await;
    for route in routes().iter().filter(|route| names_owner(route)) {
        let mut texts = Vec::new();
        for other in ["bob", "nobody", "Not_A_Name", "admin"] {
            let answer = call(&host, route, other, Some(&host.alice_token)).await;
            assert_eq!(answer.status, 403, "{} {} {other}", route.method, route.path);
            texts.push(answer.text.replace(other, "OTHER"));
        }
        texts.dedup();
        assert_eq!(texts.len(), 1, "{texts:?}");
    }
}

#[tokio::test]
async fn a_web_page_cannot_use_the_password_that_a_browser_knows() {
    let host = Host::start().await;
    for path in ["/api/v1/functions", "/git/alice/site.git/info/refs?service=git-upload-pack"] {
        for (name, value) in
            [("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", "same-origin")]
        {
            let request = Request::get(path)
                .header(header::AUTHORIZATION, format!("Bearer {PASSWORD}"))
                .header(name, value)
                .body(Body::empty())
                .unwrap();
            let response = host.router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), 403, "{path} {name}");
        }
    }
}

#[test]
fn every_route_is_in_the_document() {
    let document = include_str!("../../../../docs/api.md");
    for route in routes() {
        let path =
            route.path.replace("{*path}", "…").replace("/{repository}/…", "/{repository}.git/…");
        assert!(document.contains(&path), "{path} is not in docs/api.md");
    }
}

#[tokio::test]
async fn records_of_another_owner_look_like_none() {
    let host = Host::start().await;
    let build = host.build(&owner("bob"), "f").await;
    let (push, alice) = (build.push, host.alice());
    refused(alice.push(push).await, 404, &format!("there is no push `{push}`"));
    refused(alice.build(build.id).await, 404, &format!("there is no build `{}`", build.id));
    let log = alice.build_log(build.id, false).await;
    refused(log, 404, &format!("there is no build `{}`", build.id));
    assert_eq!(host.client(&host.bob_token).push(push).await.unwrap().id, push);
    assert_eq!(host.admin().build(build.id).await.unwrap().function, name("f"));
}

#[tokio::test]
async fn lists_hold_what_is_the_callers_and_no_more() {
    use updraft_api::client::ListOptions;

    let host = Host::start().await;
    for name in ["alice", "bob"] {
        host.build(&owner(name), "f").await;
        host.release(&owner(name), "g", updraft_store::PinnedTo::Newest).await;
    }
    let owners_of = |functions: Vec<updraft_api::wire::Function>| -> Vec<String> {
        functions.into_iter().filter_map(|f| f.owner).map(String::from).collect()
    };
    let alice = host.alice();
    assert_eq!(owners_of(alice.functions(None).await.unwrap()), ["alice", "alice"]);
    let all = owners_of(host.admin().functions(None).await.unwrap());
    assert_eq!(all, ["alice", "alice", "bob", "bob"]);
    refused(alice.functions(Some(&owner("bob"))).await, 403, "alice");
    assert_eq!(alice.builds(&ListOptions::default()).await.unwrap().len(), 1);
    assert_eq!(host.admin().builds(&ListOptions::default()).await.unwrap().len(), 2);
    assert_eq!(alice.pushes(&ListOptions::default()).await.unwrap().len(), 2);
    let of_bob = ListOptions { owner: Some(owner("bob")), ..ListOptions::default() };
    refused(alice.pushes(&of_bob).await, 403, "bob");
    refused(alice.builds(&of_bob).await, 403, "bob");
    assert_eq!(host.admin().pushes(&of_bob).await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_is_not_served_is_told_as_json() {
    let host = Host::start().await;
    for (method, path, status) in [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/elsewhere", 404),
        ("PATCH", "/api/v1/tokens", 405),
    ] {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let response = host.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert!(body["error"]["reason"].is_string(), "{body}");
    }
}

#[tokio::test]
async fn the_server_tells_who_it_is() {
    let host = Host::start().await;
    let server = host.alice().server().await.unwrap();
    assert_eq!((server.release.as_str(), server.root.as_str()), ("0.1.0", "localhost"));
}
