//! `/system/namespaces` and `/system/namespace/{namespace}`.

use serde_json::json;

use crate::harness::Gateway;

#[tokio::test]
async fn the_list_holds_names_only_the_default_one_first() {
    let gateway = Gateway::new().await;
    assert_eq!(gateway.get("/system/namespaces").await.json(), json!(["openfaas-fn"]));
    gateway.call("POST", "/system/namespace/", r#"{"name":"certifier-test"}"#).await.succeeds(201);
    let names = gateway.get("/system/namespaces").await.json();
    assert_eq!(names, json!(["openfaas-fn", "certifier-test"]));
}

#[tokio::test]
async fn a_namespace_lives_from_post_to_delete() {
    let gateway = Gateway::new().await;
    let body = r#"{"name":"dev","labels":{"team":"a"},"annotations":{"openfaas":"1"}}"#;
    gateway.call("POST", "/system/namespace/", body).await.succeeds(201);
    gateway.call("POST", "/system/namespace/", body).await.fails_with(409, "dev");
    gateway.call("POST", "/system/namespace/dev", body).await.fails_with(409, "dev");
    assert_eq!(
        gateway.get("/system/namespace/dev").await.json(),
        json!({
            "name": "dev",
            "annotations": {"openfaas": "1"},
            "labels": {"team": "a", "openfaas": "1"},
        })
    );
    let update = r#"{"name":"dev","labels":{"team":"b"}}"#;
    gateway.call("PUT", "/system/namespace/dev", update).await.succeeds(202);
    assert_eq!(gateway.get("/system/namespace/dev").await.json()["labels"]["team"], "b");
    gateway.call("DELETE", "/system/namespace/dev", r#"{"name":"dev"}"#).await.succeeds(202);
    gateway.get("/system/namespace/dev").await.fails_with(404, "dev");
}

#[tokio::test]
async fn failures_have_their_own_statuses() {
    let gateway = Gateway::new().await;
    gateway.call("POST", "/system/namespace/", "{}").await.fails_with(400, "name: is required");
    gateway.call("POST", "/system/namespace/", "").await.fails_with(400, "empty");
    gateway.get("/system/namespace/nowhere").await.fails_with(404, "nowhere");
    for method in ["PUT", "DELETE"] {
        let call = |body: &'static str| gateway.call(method, "/system/namespace/nowhere", body);
        call(r#"{"name":"nowhere"}"#).await.fails_with(404, "nowhere");
        call("").await.fails_with(404, "nowhere");
        call(r#"{"name":"other"}"#).await.fails_with(400, "other");
    }
    for name in ["kube-system", "openfaas", "default", "kube-x", "Bad_Name"] {
        let body = format!(r#"{{"name":"{name}"}}"#);
        gateway.call("POST", "/system/namespace/", &body).await.fails_with(400, name);
        gateway
            .call("DELETE", &format!("/system/namespace/{name}"), "")
            .await
            .fails_with(400, name);
    }
    gateway.call("DELETE", "/system/namespace/openfaas-fn", "").await.fails_with(400, "default");
}

#[tokio::test]
async fn a_change_and_a_removal_may_name_the_namespace_in_the_body_only() {
    let gateway = Gateway::new().await;
    gateway.call("POST", "/system/namespace/dev", "").await.succeeds(201);
    let change = r#"{"name":"dev","annotations":{"team":"a"}}"#;
    gateway.call("PUT", "/system/namespace/", change).await.succeeds(202);
    let read = gateway.get("/system/namespace/dev").await.json();
    assert_eq!(read["annotations"]["team"], "a");
    gateway.call("PUT", "/system/namespace/", "{}").await.fails_with(400, "name: is required");
    gateway.call("PUT", "/system/namespace/", r#"{"name":"gone"}"#).await.fails_with(404, "gone");
    gateway.call("DELETE", "/system/namespace/", r#"{"name":"dev"}"#).await.succeeds(202);
}
