//! Owners and tokens, the administrator's to give.

use updraft_api::client::{Client, Credentials, ServerAddress};
use updraft_store::TokenId;

use crate::harness::{Host, PASSWORD, owner, refused};

#[tokio::test]
async fn a_token_works_from_its_making_to_its_revocation() {
    let host = Host::start().await;
    let (admin, carol) = (host.admin(), owner("carol"));
    let made = admin.create_token(&carol, "laptop").await.unwrap();
    assert!(!format!("{made:?}").contains(made.token.expose()));
    let client = host.client(made.token.expose());
    assert!(client.functions(Some(&carol)).await.unwrap().is_empty());
    let basic =
        Credentials::Basic { user: "carol".to_owned(), password: made.token.expose().to_owned() };
    Client::new(ServerAddress::from(host.address), basic).server().await.unwrap();
    let listed = admin.tokens(Some(&carol)).await.unwrap();
    assert_eq!((listed.len(), listed[0].id, listed[0].name.as_str()), (1, made.id, "laptop"));
    assert_eq!(admin.tokens(None).await.unwrap().len(), 3);
    admin.revoke_token(made.id).await.unwrap();
    refused(client.server().await, 401, "wrong or revoked");
    refused(admin.revoke_token(made.id).await, 404, "no token");
    refused(admin.revoke_token(TokenId::new(999)).await, 404, "no token");
}

#[tokio::test]
async fn owners_come_into_being_unless_they_could_be_confused() {
    let host = Host::start().await;
    let admin = host.admin();
    assert_eq!(admin.create_owner(&owner("dave")).await.unwrap().name, owner("dave"));
    let names: Vec<_> = admin.owners().await.unwrap().into_iter().map(|o| o.name).collect();
    assert_eq!(names, [owner("alice"), owner("bob"), owner("dave")]);
    refused(admin.create_owner(&owner("bob-b")).await, 409, "bob");
    refused(admin.create_token(&owner("bob-b"), "x").await, 409, "bob");
    refused(admin.create_token(&owner("bob"), "").await, 400, "token name");
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_refused_with_the_place() {
    let host = Host::start().await;
    let call = async |body: &'static str| {
        let headers = http::HeaderMap::from_iter([(
            http::header::AUTHORIZATION,
            format!("Bearer {PASSWORD}").parse().unwrap(),
        )]);
        let method = http::Method::POST;
        let answer =
            host.admin().invoke(method, None, "/api/v1/tokens", headers, body.into()).await;
        let (head, body) = answer.unwrap().into_parts();
        let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
        (head.status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    };
    for (body, part) in [
        ("", "cannot be read"),
        (r#"{"owner":"carol"}"#, "`name`"),
        (r#"{"owner":"Not A Name","name":"x"}"#, "Not A Name"),
        (r#"{"owner":"carol","name":"x","admin":true}"#, "admin"),
    ] {
        let (status, text) = call(body).await;
        assert_eq!(status, 400, "{text}");
        assert!(text.contains(part), "{text}");
    }
}
