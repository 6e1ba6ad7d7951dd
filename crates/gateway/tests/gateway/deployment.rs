//! `POST` and `PUT /system/functions`: the table of fields, names and amounts, row by row.

use serde_json::{Value, json};

use crate::harness::Gateway;

const FUNCTIONS: &str = "/system/functions";

async fn read_back(gateway: &Gateway, field: &str, value: Value) -> Value {
    let mut body = json!({"service": "f", "image": "i"});
    body[field] = value;
    gateway.deploy(&body.to_string()).await;
    gateway.get("/system/function/f").await.json()
}

#[tokio::test]
async fn what_is_empty_is_absent_from_the_answer() {
    let gateway = Gateway::new().await;
    for (field, empty) in [
        ("envProcess", json!("")),
        ("envVars", json!({})),
        ("constraints", json!([])),
        ("secrets", json!([])),
        ("limits", json!({})),
        ("limits", json!({"memory": "", "cpu": ""})),
        ("requests", json!({})),
        ("readOnlyRootFilesystem", json!(false)),
    ] {
        for value in [empty, Value::Null] {
            let read = read_back(&gateway, field, value.clone()).await;
            assert_eq!(read.get(field), None, "{field}: {value}");
            assert_eq!(read["annotations"], json!({}), "never null, never absent");
            assert!(read["labels"].is_object());
        }
    }
}

#[tokio::test]
async fn amounts_come_back_as_they_were_written() {
    let gateway = Gateway::new().await;
    for amount in ["5Mi", "128974848", "129e6", "129M", "123Mi", "0.5Gi", "1k", "128m", "0"] {
        let read = read_back(&gateway, "limits", json!({"memory": amount})).await;
        assert_eq!(read["limits"], json!({"memory": amount}));
    }
    for amount in ["100m", "1", "0.1", "2000m", "1.5", "0"] {
        let read = read_back(&gateway, "requests", json!({"cpu": amount})).await;
        assert_eq!(read["requests"], json!({"cpu": amount}));
    }
    for device in ["nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu"] {
        let read = read_back(&gateway, "limits", json!({device: "1"})).await;
        assert_eq!(read["limits"], json!({device: "1"}));
    }
    for (field, part, amount) in [
        ("limits", "memory", "much"),
        ("limits", "memory", "-1"),
        ("limits", "memory", "1MiB"),
        ("limits", "cpu", "one"),
        ("requests", "memory", "1 Mi"),
        ("requests", "cpu", "100mm"),
        ("limits", "nvidia.com/gpu", "0.5"),
    ] {
        let body = json!({"service": "f", "image": "i", field: {part: amount}}).to_string();
        gateway.call("POST", FUNCTIONS, &body).await.fails_with(400, &format!("{field}.{part}"));
    }
}

#[tokio::test]
async fn names_are_labels_of_dns() {
    let gateway = Gateway::new().await;
    for name in ["f", "a1", "1a", "figlet", "a-b", "a--b", &"x".repeat(63)] {
        gateway.deploy(&json!({"service": name, "image": "i"}).to_string()).await;
        assert_eq!(gateway.get(&format!("/system/function/{name}")).await.status, 200, "{name}");
    }
    for name in
        ["-a", "a-", "A", "a.b", "a_b", "a b", "a/b", "a%2Fb", "é", ".", "-", &"x".repeat(64)]
    {
        for method in ["POST", "PUT"] {
            let body = json!({"service": name, "image": "i"}).to_string();
            let refusal = format!(
                "validation failed: service: ({name}) is invalid, must be a valid DNS entry"
            );
            gateway.call(method, FUNCTIONS, &body).await.fails_with(400, &refusal);
        }
    }
}

/// What makes no sense among labels and annotations that are read leniently is told beside the
/// empty 202 that clients want.
#[tokio::test]
async fn a_deployment_with_mistakes_is_accepted_and_told_of_them() {
    let gateway = Gateway::new().await;
    let warnings = async |labels: Value, annotations: Value| -> Vec<String> {
        let body =
            json!({"service": "f", "image": "i", "labels": labels, "annotations": annotations});
        let answer = gateway.call("POST", FUNCTIONS, &body.to_string()).await;
        answer.succeeds(202);
        let told = answer.headers.get_all("warning").iter();
        told.map(|warning| warning.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(warnings(json!({}), json!({})).await, Vec::<String>::new());
    for (labels, annotations, parts) in [
        (
            json!({"com.openfaas.scale.max": "many", "com.openfaas.scale.type": "happiness"}),
            json!({}),
            &["`com.openfaas.scale.max` cannot be `many`", "`com.openfaas.scale.type`"][..],
        ),
        (
            json!({"com.openfaas.scale.zero": "\"maybe\"\n\u{e4}"}),
            json!({"updraft.warm": "always"}),
            &["`com.openfaas.scale.zero` cannot be `'maybe'??`", "always"],
        ),
        (
            json!({}),
            json!({"topic": "cron-function", "schedule": "now and then", "timezone": "Mars/Olympus"}),
            &["`timezone` names no time zone"],
        ),
        (
            json!({}),
            json!({"topic": "cron-function", "schedule": "61 * * * *"}),
            &["schedule `61 * * * *`"],
        ),
        (json!({}), json!({"com.openfaas.retry.codes": "all"}), &["`com.openfaas.retry.codes`"]),
    ] {
        let told = warnings(labels, annotations).await;
        assert_eq!(told.len(), parts.len(), "{told:?}");
        for (told, part) in told.iter().zip(parts) {
            assert!(told.starts_with("299 updraft \"") && told.ends_with('"'), "{told}");
            assert!(told.contains(part), "{told}");
        }
    }
    // What nobody may get wrong is refused.
    for (key, value) in [
        ("updraft.timeout", "soon"),
        ("updraft.concurrency", "-1"),
        ("updraft.queue-limit", "many"),
        ("updraft.protocol", "http3"),
        ("updraft.auth", "password"),
    ] {
        let body = json!({"service": "f", "image": "i", "annotations": {key: value}}).to_string();
        gateway.call("POST", FUNCTIONS, &body).await.fails_with(400, key);
    }
}
