//! Secrets of owners.

use crate::harness::{Host, owner, refused};

#[tokio::test]
async fn a_secret_of_an_owner_is_kept_under_the_owners_name() {
    let host = Host::start().await;
    let (alice, client) = (owner("alice"), host.alice());
    let name = "api-key".parse().unwrap();
    assert!(client.secrets(&alice).await.unwrap().is_empty());
    client.set_secret(&alice, &name, b"one\0\xff".to_vec()).await.unwrap();
    assert_eq!(host.engine.secret("openfaas-fn", "alice-api-key").unwrap(), b"one\0\xff");
    client.set_secret(&alice, &name, b"two".to_vec()).await.unwrap();
    assert_eq!(host.engine.secret("openfaas-fn", "alice-api-key").unwrap(), b"two");
    let names: Vec<_> = client.secrets(&alice).await.unwrap();
    assert_eq!(names.iter().map(|secret| secret.name.as_str()).collect::<Vec<_>>(), ["api-key"]);
    client.unset_secret(&alice, &name).await.unwrap();
    assert!(client.secrets(&alice).await.unwrap().is_empty());
    refused(client.unset_secret(&alice, &name).await, 404, "no secret `api-key`");
}

#[tokio::test]
async fn secrets_of_others_and_of_nobody_stay_unseen() {
    let host = Host::start().await;
    let name = "api-key".parse().unwrap();
    let bob = host.client(&host.bob_token);
    bob.set_secret(&owner("bob"), &name, b"x".to_vec()).await.unwrap();
    assert!(host.alice().secrets(&owner("alice")).await.unwrap().is_empty());
    refused(host.alice().secrets(&owner("bob")).await, 403, "alice");
}

#[tokio::test]
async fn an_owner_who_cannot_be_told_apart_gets_no_secrets() {
    let host = Host::start().await;
    let name = "key".parse().unwrap();
    let confusable = owner("alice-b");
    let result = host.admin().set_secret(&confusable, &name, b"x".to_vec()).await;
    refused(result, 409, "alice");
    assert!(host.engine.secret("openfaas-fn", "alice-b-key").is_none());
}

#[tokio::test]
async fn a_secret_beyond_the_limit_is_refused() {
    let host = Host::start().await;
    let name = "key".parse().unwrap();
    let value = vec![b'x'; (1 << 20) + 1];
    let result = host.alice().set_secret(&owner("alice"), &name, value).await;
    refused(result, 413, "1048576");
}
