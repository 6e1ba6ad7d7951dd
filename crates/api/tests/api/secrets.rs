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

#[tokio::test]
async fn items_digests_and_origin_are_told_and_values_are_not() {
    let host = Host::start().await;
    let (alice, client) = (owner("alice"), host.alice());
    let name = "db".parse().unwrap();
    let items = |pairs: &[(&str, &str)]| updraft_api::wire::SecretItems {
        items: pairs.iter().map(|(k, v)| (k.parse().unwrap(), (*v).to_owned())).collect(),
    };
    let set = |pairs: &[(&str, &str)]| {
        let (client, items) = (client.clone(), items(pairs));
        let (alice, name) = (owner("alice"), "db".parse().unwrap());
        async move { client.set_secret_items(&alice, &name, &items).await }
    };
    set(&[("user", "c2hvcA=="), ("password", "aHVudGVyMg==")]).await.unwrap();
    let first = client.secret(&alice, &name).await.unwrap();
    let keys: Vec<_> = first.items.iter().map(|item| (item.key.as_str(), item.bytes)).collect();
    assert_eq!(keys, [("password", 7), ("user", 4)]);
    let told = format!("{first:?}") + &serde_json::to_string(&first).unwrap();
    assert!(!told.contains("hunter2") && !told.contains("aHVudGVy"), "{told}");
    set(&[("user", "c2hvcA==")]).await.unwrap();
    let second = client.secret(&alice, &name).await.unwrap();
    assert_eq!(second.items, [first.items[1].clone()], "what was not given is gone");
    assert_ne!(second.digest, first.digest);
    refused(set(&[("user", "no base64: hunter2")]).await, 400, "item `user`");
    refused(client.secret(&alice, &"none".parse().unwrap()).await, 404, "no secret `none`");
    // Every route of an owner is shut for another.
    let bob = host.client(&host.bob_token);
    refused(bob.secret(&alice, &name).await, 403, "alice");
    refused(bob.set_secret_items(&alice, &name, &items(&[])).await, 403, "alice");
    let shop = "shop".parse().unwrap();
    refused(bob.compare_secrets(&alice, &shop, Vec::new()).await, 403, "alice");
}

#[tokio::test]
async fn a_file_is_compared_by_names_and_keys_and_nothing_changes() {
    let host = Host::start().await;
    let (alice, shop) = (owner("alice"), "shop".parse().unwrap());
    let file = "apiVersion: bitnami.com/v1alpha1\nkind: SealedSecret\nmetadata: {name: bob-db}\n\
                spec: {encryptedData: {k: AAAA}}\n";
    let told = host.alice().compare_secrets(&alice, &shop, file.into()).await.unwrap();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].action, updraft_api::wire::SecretAction::Refuse);
    let reason = told[0].reason.as_deref().unwrap();
    assert!(reason.contains("document 1") && reason.contains("`alice-`"), "{reason}");
    assert!(host.alice().secrets(&alice).await.unwrap().is_empty());
}
