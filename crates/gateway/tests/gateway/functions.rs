//! `/system/functions`, `/system/function/{name}`, `/system/scale-function/{name}`.

use serde_json::{Value, json};

use updraft_model::{FunctionSpec, labels};

use crate::harness::{Gateway, id};

const FUNCTIONS: &str = "/system/functions";

#[tokio::test]
async fn an_empty_list_is_an_empty_array() {
    assert_eq!(Gateway::new().await.get(FUNCTIONS).await.json(), json!([]));
}

#[tokio::test]
async fn a_bare_function_shows_only_what_it_has() {
    let gateway = Gateway::new().await;
    gateway
        .deploy(r#"{"service":"stronghash","image":"functions/alpine:latest","envProcess":"sha512sum"}"#)
        .await;
    let expected = json!({
        "name": "stronghash",
        "image": "functions/alpine:latest",
        "namespace": "openfaas-fn",
        "envProcess": "sha512sum",
        "labels": {"faas_function": "stronghash"},
        "annotations": {},
        "replicas": 1,
        "availableReplicas": 1,
        "createdAt": "2026-01-02T03:04:05Z",
    });
    assert_eq!(gateway.get("/system/function/stronghash").await.json(), expected);
    assert_eq!(gateway.get(FUNCTIONS).await.json(), json!([expected]));
}

#[tokio::test]
async fn every_field_comes_back_byte_for_byte() {
    let gateway = Gateway::new().await;
    gateway.call("POST", "/system/secrets", r#"{"name":"b","value":"x"}"#).await.succeeds(202);
    gateway.call("POST", "/system/secrets", r#"{"name":"a","value":"x"}"#).await.succeeds(202);
    let sent = json!({
        "service": "full", "image": "docker.io/functions/alpine:latest", "envProcess": "env",
        "namespace": "openfaas-fn",
        "envVars": {"custom_env": "custom env value", "Z": ""},
        "constraints": ["node.platform.os == linux", "a=b"],
        "secrets": ["b", "a"],
        "labels": {"upstream_uri": "example.com", "canary_build": "true"},
        "annotations": {"date": "Wed 01 Jan  12:00", "doc": "{\n  \"a\": [1, 2]\n}\n"},
        "limits": {"memory": "5Mi", "cpu": "100m", "nvidia.com/gpu": "1"},
        "requests": {"memory": "1024"},
        "readOnlyRootFilesystem": true,
    });
    gateway.deploy(&sent.to_string()).await;
    let read = gateway.get("/system/function/full").await.json();
    for key in [
        "image",
        "envProcess",
        "envVars",
        "constraints",
        "secrets",
        "annotations",
        "limits",
        "requests",
        "readOnlyRootFilesystem",
        "namespace",
    ] {
        assert_eq!(read[key], sent[key], "{key}");
    }
    for (key, value) in sent["labels"].as_object().unwrap() {
        assert_eq!(&read["labels"][key], value);
    }
    assert_eq!(read["labels"]["faas_function"], "full");
}

#[tokio::test]
async fn null_labels_old_fields_and_keys_in_other_cases_are_accepted() {
    let gateway = Gateway::new().await;
    gateway
        .deploy(
            r#"{"Service":"f","IMAGE":"i","labels":null,"annotations":null,"network":"func_functions",
                "registryAuth":"x","envvars":{"A":"b"},"ReadOnlyRootFileSystem":true}"#,
        )
        .await;
    let read = gateway.get("/system/function/f").await.json();
    assert_eq!(read["envVars"], json!({"A": "b"}));
    assert_eq!(read["readOnlyRootFilesystem"], true);
    assert_eq!(read["annotations"], json!({}));
}

#[tokio::test]
async fn the_invocation_count_is_a_number_with_a_fraction_and_absent_at_zero() {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"busy","image":"i"}"#).await;
    gateway.deploy(r#"{"service":"quiet","image":"i"}"#).await;
    assert!(gateway.get(FUNCTIONS).await.text.contains(r#""invocationCount":42.0"#));
    assert!(gateway.get("/system/function/busy").await.text.contains(r#""invocationCount":42.0"#));
    assert_eq!(gateway.get("/system/function/quiet").await.json().get("invocationCount"), None);
}

#[tokio::test]
async fn usage_is_told_when_it_is_asked_for_and_the_engine_knows() {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"f","image":"i"}"#).await;
    gateway.deploy(r#"{"service":"dark","image":"i"}"#).await;
    for asked in ["usage=1", "usage=true", "namespace=openfaas-fn&usage=T"] {
        let usage = &gateway.get(&format!("/system/function/f?{asked}")).await.json()["usage"];
        assert_eq!(usage["totalMemoryBytes"].as_f64(), Some(4096.0));
        // At each reading half a second more of processor time, told in thousandths of a second.
        assert!(usage["cpu"].as_f64().unwrap() > 100.0, "{usage}");
    }
    for path in ["f", "f?usage=false", "f?usage=0", "f?usage=", "f?usage=maybe", "dark?usage=1"] {
        let read = gateway.get(&format!("/system/function/{path}")).await.json();
        assert_eq!(read.get("usage"), None, "{path}");
    }
    gateway.get("/system/function/gone?usage=1").await.succeeds(404);
}

#[tokio::test]
async fn put_is_404_for_an_absent_function_and_replaces_a_present_one() {
    let gateway = Gateway::new().await;
    let first = r#"{"service":"f","image":"one","envVars":{"a":"1"},"labels":{"l":"1"}}"#;
    gateway.call("PUT", FUNCTIONS, first).await.fails_with(404, "f.openfaas-fn");
    gateway.get("/system/function/f").await.succeeds(404);
    gateway.deploy(first).await;
    gateway.call("PUT", FUNCTIONS, r#"{"service":"f","image":"two"}"#).await.succeeds(202);
    let read = gateway.get("/system/function/f").await.json();
    assert_eq!(read["image"], "two");
    assert_eq!(read.get("envVars"), None);
    assert_eq!(read["labels"], json!({"faas_function": "f"}));
}

#[tokio::test]
async fn post_to_a_present_function_updates_it() {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"f","image":"one"}"#).await;
    gateway.deploy(r#"{"service":"f","image":"two"}"#).await;
    assert_eq!(gateway.get("/system/function/f").await.json()["image"], "two");
}

#[tokio::test]
async fn an_update_does_not_wake_a_sleeping_function() {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"f","image":"one"}"#).await;
    gateway
        .call("POST", "/system/scale-function/f", r#"{"serviceName":"f","replicas":0}"#)
        .await
        .succeeds(202);
    gateway.call("PUT", FUNCTIONS, r#"{"service":"f","image":"two"}"#).await.succeeds(202);
    assert_eq!(gateway.get("/system/function/f").await.json().get("replicas"), None);
}

#[tokio::test]
async fn the_minimum_label_shows_at_once() {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"f","image":"i","labels":{"com.openfaas.scale.min":"2"}}"#).await;
    assert_eq!(gateway.get("/system/function/f").await.json()["replicas"], 2);
}

#[tokio::test]
async fn deployments_that_cannot_be_are_refused_with_the_field() {
    let gateway = Gateway::new().await;
    for method in ["POST", "PUT"] {
        for (body, text) in [
            ("", "failed to unmarshal request: the body is empty"),
            (
                "{",
                "failed to unmarshal request: body: EOF while parsing an object at line 1 column 1",
            ),
            (
                "{\"service\":\"f\",\n\"limits\":{\"memory\":5Mi}}",
                "failed to unmarshal request: limits: expected `,` or `}` at line 2 column 21",
            ),
            ("[]", "failed to unmarshal request: body: expected an object"),
            (
                r#"{"service":5}"#,
                "failed to unmarshal request: service: expected a string, found a number",
            ),
            (r#"{"service":"f","image":"i","labels":{"a":1}}"#, "labels.a: expected a string"),
            (r#"{"image":"i"}"#, "service: is required"),
            (r#"{"service":"f"}"#, "image: is required"),
            (
                r#"{"service":"Up.Per","image":"i"}"#,
                "validation failed: service: (Up.Per) is invalid, must be a valid DNS entry",
            ),
            (r#"{"service":"f","image":"i","limits":{"memory":"lots"}}"#, "limits.memory"),
            (r#"{"service":"f","image":"i","labels":{"faas_function":"other"}}"#, "faas_function"),
            (
                r#"{"service":"f","image":"i","namespace":"openfaas"}"#,
                "valid namespaces are: openfaas-fn",
            ),
            (
                r#"{"service":"f","image":"i","namespace":"-x-"}"#,
                "valid namespaces are: openfaas-fn",
            ),
        ] {
            gateway.call(method, FUNCTIONS, body).await.fails_with(400, text);
        }
    }
    let post = |body: &'static str| gateway.call("POST", FUNCTIONS, body);
    post(r#"{"service":"f","image":"i","secrets":["gone"]}"#)
        .await
        .fails_with(400, "unable to fetch secrets: ");
    post(r#"{"service":"f","image":"i","namespace":"nowhere"}"#)
        .await
        .fails_with(400, "valid namespaces are: openfaas-fn");
    assert_eq!(gateway.get(FUNCTIONS).await.json(), json!([]));
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let gateway = Gateway::new().await;
    let body = format!(r#"{{"service":"f","image":"i","pad":"{}"}}"#, "x".repeat(5 << 20));
    gateway.call("POST", FUNCTIONS, &body).await.fails_with(413, "larger than 4194304 bytes");
}

#[tokio::test]
async fn a_pushed_function_can_be_scaled_and_removed_but_not_overwritten() {
    let gateway = Gateway::new().await;
    let pushed = r#"{"service":"alice-f","image":"i","labels":{
        "com.openfaas.cloud.git-owner":"alice","com.openfaas.cloud.git-repo":"site"}}"#;
    gateway.deploy(pushed).await;
    for method in ["POST", "PUT"] {
        let answer =
            gateway.call(method, FUNCTIONS, r#"{"service":"alice-f","image":"evil"}"#).await;
        answer.fails_with(409, "deployed by a push to the repository `alice/site`");
    }
    assert_eq!(gateway.get("/system/function/alice-f").await.json()["image"], "i");
    gateway.call("POST", "/system/scale-function/alice-f", r#"{"replicas":3}"#).await.succeeds(202);
    gateway.call("DELETE", FUNCTIONS, r#"{"functionName":"alice-f"}"#).await.succeeds(202);
}

#[tokio::test]
async fn a_push_that_comes_while_a_client_deploys_is_not_overwritten() {
    let pushed = |name: &str| {
        let mut spec = FunctionSpec::new(id(name), "pushed".parse().unwrap());
        spec.labels.insert(labels::GIT_OWNER.to_owned(), "alice".to_owned());
        spec.labels.insert(labels::GIT_REPO.to_owned(), "site".to_owned());
        spec
    };
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"one","image":"i"}"#).await;
    gateway.deploy(r#"{"service":"two","image":"i"}"#).await;
    for (method, name) in [("POST", "new"), ("POST", "one"), ("PUT", "two")] {
        gateway.engine.overtake(pushed(name));
        let body = format!(r#"{{"service":"{name}","image":"client"}}"#);
        gateway.call(method, FUNCTIONS, &body).await.fails_with(409, "`alice/site`");
        let read = gateway.get(&format!("/system/function/{name}")).await.json();
        assert_eq!(read["image"], "pushed");
    }
    // Another client's deployment may be overwritten: the later one counts.
    gateway.engine.overtake(FunctionSpec::new(id("f"), "first".parse().unwrap()));
    gateway.deploy(r#"{"service":"f","image":"second"}"#).await;
    assert_eq!(gateway.get("/system/function/f").await.json()["image"], "second");
}

#[tokio::test]
async fn a_function_is_removed_once() {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"f","image":"i"}"#).await;
    gateway
        .call("DELETE", FUNCTIONS, r#"{"functionName":""}"#)
        .await
        .fails_with(400, "functionName");
    gateway.call("DELETE", FUNCTIONS, "no").await.fails_with(400, "failed to unmarshal");
    gateway.call("DELETE", FUNCTIONS, r#"{"functionName":"f"}"#).await.succeeds(202);
    gateway
        .call("DELETE", FUNCTIONS, r#"{"functionName":"f"}"#)
        .await
        .fails_with(404, "f.openfaas-fn");
}

#[tokio::test]
async fn an_absent_function_is_404_without_a_body() {
    let gateway = Gateway::new().await;
    for name in ["f", "f.other", ".openfaas-fn", "UPPER", "a..b", "x%2Fy"] {
        let answer = gateway.get(&format!("/system/function/{name}")).await;
        assert_eq!(answer.status, 404, "{name}");
    }
    gateway.get("/system/function/f").await.succeeds(404);
}

#[tokio::test]
async fn the_desired_number_shows_right_after_scaling() {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"f","image":"i"}"#).await;
    let scale = |body: &'static str| gateway.call("POST", "/system/scale-function/f", body);
    scale(r#"{"serviceName":"f","replicas":4,"namespace":"openfaas-fn"}"#).await.succeeds(202);
    assert_eq!(gateway.get("/system/function/f").await.json()["replicas"], 4);
    scale(r#"{"serviceName":"f","replicas":0}"#).await.succeeds(202);
    assert_eq!(gateway.get("/system/function/f").await.json().get("replicas"), None);
    // The name in the path rules.
    scale(r#"{"serviceName":"other","replicas":2}"#).await.succeeds(202);
    assert_eq!(gateway.get("/system/function/f").await.json()["replicas"], 2);
    scale("{").await.fails_with(400, "failed to unmarshal");
    scale(r#"{"replicas":-1}"#).await.fails_with(400, "replicas");
    scale(r#"{"replicas":"2"}"#).await.fails_with(400, "replicas");
    let absent = gateway.call("POST", "/system/scale-function/g", r#"{"replicas":1}"#).await;
    absent.fails_with(404, "g.openfaas-fn");
}

#[tokio::test]
async fn an_operator_may_scale_beyond_the_maximum_of_the_scaler_and_to_zero() {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"f","image":"i","labels":{"com.openfaas.scale.max":"2"}}"#).await;
    for replicas in [7, 0, 1] {
        let body = format!(r#"{{"serviceName":"f","replicas":{replicas}}}"#);
        gateway.call("POST", "/system/scale-function/f", &body).await.succeeds(202);
        let read = gateway.get("/system/function/f").await.json();
        assert_eq!(read["replicas"].as_u64().unwrap_or(0), replicas);
    }
}

#[tokio::test]
async fn labels_of_scaling_and_annotations_of_events_are_never_refused() {
    let gateway = Gateway::new().await;
    let labels = json!({
        "com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "1m",
        "com.openfaas.scale.target": "10", "com.openfaas.scale.type": "capacity",
        "com.openfaas.scale.target-proportion": "0.5", "com.openfaas.scale.down.window": "1m",
    });
    let annotations = json!({
        "topic": "payments.received,payments.failed", "com.openfaas.queue": "slow",
        "eks.amazonaws.com/role-arn": "x", "gke.io/x": "y", "prometheus.io.scrape": "true",
        "com.openfaas.retry.attempts": "3", "com.openfaas.profile": "a,b",
    });
    let body = json!({"service": "f", "image": "i", "labels": labels, "annotations": annotations});
    gateway.deploy(&body.to_string()).await;
    let read = gateway.get("/system/function/f").await.json();
    assert_eq!(read["annotations"], annotations);
    for (key, value) in labels.as_object().unwrap() {
        assert_eq!(&read["labels"][key], value);
    }
}

#[tokio::test]
async fn the_namespace_is_read_from_body_query_and_name_on_every_verb() {
    let gateway = Gateway::new().await;
    gateway.call("POST", "/system/namespace/", r#"{"name":"dev"}"#).await.succeeds(201);
    let names = async |query: &str| -> Vec<String> {
        let list = gateway.get(&format!("{FUNCTIONS}{query}")).await.json();
        list.as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap().to_owned()).collect()
    };
    gateway.deploy(r#"{"service":"a","image":"i","namespace":"dev"}"#).await;
    gateway
        .call("POST", "/system/functions?namespace=dev", r#"{"service":"b","image":"i"}"#)
        .await
        .succeeds(202);
    // The body's rules over the query's.
    gateway
        .call(
            "POST",
            "/system/functions?namespace=dev",
            r#"{"service":"c","image":"i","namespace":"openfaas-fn"}"#,
        )
        .await
        .succeeds(202);
    assert_eq!(names("?namespace=dev").await, ["a", "b"]);
    assert_eq!(names("").await, ["c"]);
    assert_eq!(names("?namespace=").await, ["c"]);
    for path in [
        "/system/function/a?namespace=dev",
        "/system/function/a.dev",
        "/system/function/a.dev?usage=1&namespace=dev",
    ] {
        assert_eq!(gateway.get(path).await.json()["namespace"], "dev", "{path}");
    }
    gateway.get("/system/function/a").await.succeeds(404);
    gateway
        .get("/system/function/a.dev?namespace=openfaas-fn")
        .await
        .fails_with(400, "leave one out");
    gateway
        .call("PUT", FUNCTIONS, r#"{"service":"a","image":"i2"}"#)
        .await
        .fails_with(404, "a.openfaas-fn");
    gateway
        .call("PUT", "/system/functions?namespace=dev", r#"{"service":"a","image":"i2"}"#)
        .await
        .succeeds(202);
    for (path, body) in [
        ("/system/scale-function/a", r#"{"replicas":2,"namespace":"dev"}"#),
        ("/system/scale-function/a?namespace=dev", r#"{"replicas":3}"#),
        ("/system/scale-function/a.dev", r#"{"replicas":4}"#),
    ] {
        gateway.call("POST", path, body).await.succeeds(202);
    }
    assert_eq!(gateway.get("/system/function/a.dev").await.json()["replicas"], 4);
    gateway
        .call("DELETE", FUNCTIONS, r#"{"functionName":"a"}"#)
        .await
        .fails_with(404, "a.openfaas-fn");
    gateway
        .call("DELETE", FUNCTIONS, r#"{"functionName":"a","namespace":"dev"}"#)
        .await
        .succeeds(202);
    gateway
        .call("DELETE", "/system/functions?namespace=dev", r#"{"functionName":"b"}"#)
        .await
        .succeeds(202);
    assert_eq!(names("?namespace=dev").await, Vec::<String>::new());
}

#[tokio::test]
async fn lists_of_namespaces_that_hold_no_functions_are_refused() {
    let gateway = Gateway::new().await;
    gateway
        .get("/system/functions?namespace=kube-system")
        .await
        .fails(401, "unable to list within the kube-system namespace");
    gateway
        .get("/system/functions?namespace=nowhere")
        .await
        .fails(400, "valid namespaces are: openfaas-fn");
}

#[tokio::test]
async fn an_engine_failure_is_500_and_keeps_its_causes_inside() {
    let gateway = Gateway::new().await;
    gateway.engine.break_down();
    for (method, path, body) in [
        ("GET", FUNCTIONS, ""),
        ("GET", "/system/function/f", ""),
        ("POST", FUNCTIONS, r#"{"service":"f","image":"i"}"#),
        ("PUT", FUNCTIONS, r#"{"service":"f","image":"i"}"#),
        ("DELETE", FUNCTIONS, r#"{"functionName":"f"}"#),
        ("POST", "/system/scale-function/f", r#"{"replicas":1}"#),
        ("GET", "/system/logs?name=f", ""),
        ("GET", "/system/secrets", ""),
        ("GET", "/system/namespaces", ""),
    ] {
        gateway.call(method, path, body).await.fails(500, "the engine could not do anything");
    }
}

/// What `faas-cli deploy` does: update, and create after a `404`; then `describe`.
#[tokio::test]
async fn the_first_deployment_of_the_command_line_works() {
    let gateway = Gateway::new().await;
    let body = r#"{"service":"figlet","image":"ghcr.io/openfaas/figlet:latest","network":"","labels":{},"annotations":{}}"#;
    assert_eq!(gateway.call("PUT", FUNCTIONS, body).await.status, 404);
    gateway.call("POST", FUNCTIONS, body).await.succeeds(202);
    let described = gateway.get("/system/function/figlet?usage=1&namespace=").await.json();
    assert_eq!(described["labels"], Value::from_iter([("faas_function", "figlet")]));
}
