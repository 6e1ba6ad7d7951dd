//! `/system/secrets`.

use serde_json::json;

use crate::harness::Gateway;

const SECRETS: &str = "/system/secrets";

#[tokio::test]
async fn a_secret_lives_from_post_to_delete_and_is_never_shown() {
    let gateway = Gateway::new().await;
    assert_eq!(gateway.get(SECRETS).await.json(), json!([]));
    gateway.call("POST", SECRETS, r#"{"name":"s","value":"one"}"#).await.succeeds(202);
    assert_eq!(
        gateway.get(SECRETS).await.json(),
        json!([{"name": "s", "namespace": "openfaas-fn"}])
    );
    assert_eq!(gateway.engine.secret("openfaas-fn", "s").unwrap(), b"one");
    gateway.call("PUT", SECRETS, r#"{"name":"s","value":"two"}"#).await.succeeds(202);
    assert_eq!(gateway.engine.secret("openfaas-fn", "s").unwrap(), b"two");
    gateway.call("DELETE", SECRETS, r#"{"name":"s"}"#).await.succeeds(202);
    assert_eq!(gateway.get(SECRETS).await.json(), json!([]));
}

/// What `faas-cli secret apply` does: create, and update after a `409`, with both values.
#[tokio::test]
async fn applying_twice_goes_through_a_conflict_and_the_raw_value_wins() {
    let gateway = Gateway::new().await;
    let body = r#"{"name":"s","value":"text","rawValue":"AAH/"}"#;
    gateway.call("POST", SECRETS, body).await.succeeds(202);
    assert_eq!(gateway.engine.secret("openfaas-fn", "s").unwrap(), [0, 1, 255]);
    gateway.call("POST", SECRETS, body).await.fails_with(409, "exists already");
    gateway.call("PUT", SECRETS, body).await.succeeds(202);
}

#[tokio::test]
async fn failures_have_their_own_statuses() {
    let gateway = Gateway::new().await;
    gateway.call("PUT", SECRETS, r#"{"name":"s","value":"x"}"#).await.fails_with(404, "`s`");
    gateway.call("DELETE", SECRETS, r#"{"name":"s"}"#).await.fails_with(404, "`s`");
    for method in ["POST", "PUT", "DELETE"] {
        let call = |body: &'static str| gateway.call(method, SECRETS, body);
        call("{").await.fails_with(400, "failed to unmarshal");
        call(r#"{"name":"s","rawValue":"%%"}"#).await.fails_with(400, "rawValue");
        call(r#"{"value":"x"}"#).await.fails_with(422, "name");
        call(r#"{"name":"../x","value":"x"}"#).await.fails_with(422, "name");
        call(r#"{"name":"s","namespace":"kube-system"}"#).await.fails_with(401, "kube-system");
        call(r#"{"name":"s","namespace":"nowhere"}"#).await.fails_with(400, "valid namespaces are");
    }
    gateway.get("/system/secrets?namespace=kube-system").await.fails_with(401, "kube-system");
    let large = format!(r#"{{"name":"s","value":"{}"}}"#, "x".repeat((1 << 20) + 1));
    gateway.call("POST", SECRETS, &large).await.fails_with(422, "1048576");
}

#[tokio::test]
async fn secrets_of_namespaces_are_apart() {
    let gateway = Gateway::new().await;
    gateway.call("POST", "/system/namespace/", r#"{"name":"dev"}"#).await.succeeds(201);
    gateway
        .call("POST", SECRETS, r#"{"name":"s","namespace":"dev","value":"a"}"#)
        .await
        .succeeds(202);
    gateway
        .call("POST", "/system/secrets?namespace=dev", r#"{"name":"t","value":"b"}"#)
        .await
        .succeeds(202);
    assert_eq!(gateway.get(SECRETS).await.json(), json!([]));
    let here = json!([{"name": "s", "namespace": "dev"}, {"name": "t", "namespace": "dev"}]);
    assert_eq!(gateway.get("/system/secrets?namespace=dev").await.json(), here);
    gateway.call("DELETE", SECRETS, r#"{"name":"s"}"#).await.fails_with(404, "openfaas-fn");
    gateway.call("DELETE", "/system/secrets?namespace=dev", r#"{"name":"s"}"#).await.succeeds(202);
}
