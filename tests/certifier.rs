//! The cases of OpenFaaS's conformance suite, one test each, in two namespaces, as a client sends
//! them: through the API and the function routes alone. Where the suite sleeps, these wait for
//! what it sleeps for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use updraft_tests::images::{alpine, redirector};
use updraft_tests::{Answer, Cloud, Connection, eventually};

/// The default namespace and the suite's second one.
const NAMESPACES: [&str; 2] = ["openfaas-fn", "certifier-test"];
/// The image by the short name that some cases use.
const SHORT: &str = "functions/alpine:latest";
/// The same image with the suite's registry in front.
const PREFIXED: &str = "docker.io/functions/alpine:latest";
/// How long the suite tries to invoke: 30 times 750 ms.
const INVOKE_LIMIT: Duration = Duration::from_millis(30 * 750);
/// How long the suite waits for a number of replicas.
const SCALE_LIMIT: Duration = Duration::from_mins(1);

/// A cloud as the suite finds one: both namespaces and both images.
struct Certified {
    cloud: Cloud,
    /// Whether requests carry the password.
    password: bool,
}

impl Certified {
    async fn new() -> Self {
        Self::with_flags(&[], true).await
    }

    async fn with_flags(flags: &[&str], password: bool) -> Self {
        let recipes = [alpine(&[SHORT]), redirector(&["theaxer/redirector:latest"])];
        let certified = Self { cloud: Cloud::start_with_images(&recipes, flags), password };
        let namespace = json!({"name": NAMESPACES[1], "annotations": {"openfaas": "1"}});
        let created = certified.api("POST", "/system/namespace/", &namespace).await;
        assert_eq!(created.status, 201, "{}", created.body);
        certified
    }

    async fn api(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        if self.password {
            return self.cloud.openfaas(method, path, &body).await;
        }
        self.cloud.send(method, "127.0.0.1", path, &[], body).await
    }

    async fn read(&self, path: &str) -> Value {
        let answer = self.api("GET", path, &Value::Null).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.json()
    }

    /// Creates as the suite does: `POST`, where 200 and 202 count.
    async fn deploy(&self, deployment: &Value) {
        let answer = self.api("POST", "/system/functions", deployment).await;
        assert!(matches!(answer.status, 200 | 202), "{}: {}", answer.status, answer.body);
    }

    async fn status(&self, name: &str, namespace: &str) -> Value {
        self.read(&format!("/system/function/{name}?namespace={namespace}")).await
    }

    /// Calls as the suite does, without credentials, until the answer is the one wanted.
    async fn invoke(&self, method: &str, path: &str, body: &str, status: u16) -> Answer {
        let what = format!("{method} {path} answers {status}");
        eventually(&what, INVOKE_LIMIT, async || {
            let answer = self.cloud.send(method, "127.0.0.1", path, &[], body).await;
            assert_ne!(answer.status, 401, "functions are open");
            (answer.status == status).then_some(answer)
        })
        .await
    }

    async fn available(&self, name: &str, namespace: &str) {
        let what = format!("{name}.{namespace} is available");
        eventually(&what, SCALE_LIMIT, async || {
            let status = self.status(name, namespace).await;
            (number(&status, "availableReplicas") >= 1).then_some(())
        })
        .await;
    }
}

/// A number that is left out when it is 0.
fn number(status: &Value, field: &str) -> u64 {
    status.get(field).map_or(0, |value| value.as_u64().expect("a whole number"))
}

/// What the suite sends: every member that its client does not leave out.
fn deployment(name: &str, namespace: &str, image: &str, process: &str) -> Value {
    json!({
        "service": name, "namespace": namespace, "image": image, "envProcess": process,
        "labels": {}, "annotations": {},
    })
}

fn with(mut deployment: Value, field: &str, value: Value) -> Value {
    deployment[field] = value;
    deployment
}

fn assert_holds(held: &Value, expected: &Value) {
    let held = held.as_object().expect("never null");
    for (key, value) in expected.as_object().into_iter().flatten() {
        assert_eq!(held.get(key), Some(value), "{key}");
    }
}

/// What the suite asks of a function that is read back.
fn assert_is_as_deployed(status: &Value, sent: &Value) {
    for (read, sent_as) in [
        ("name", "service"),
        ("image", "image"),
        ("namespace", "namespace"),
        ("envProcess", "envProcess"),
        // Absent on both sides, or equal.
        ("envVars", "envVars"),
        ("constraints", "constraints"),
        ("secrets", "secrets"),
        ("limits", "limits"),
        ("requests", "requests"),
        ("readOnlyRootFilesystem", "readOnlyRootFilesystem"),
    ] {
        assert_eq!(status.get(read), sent.get(sent_as), "{read} of {status}");
    }
    assert_holds(&status["labels"], &sent["labels"]);
    assert_holds(&status["annotations"], &sent["annotations"]);
    assert_eq!(status["labels"]["faas_function"], sent["service"]);
}

/// Deploys in both namespaces, and expects list and single answer to show it.
async fn deploys(certified: &Certified, of: impl Fn(&str) -> Value) {
    for namespace in NAMESPACES {
        let sent = of(namespace);
        certified.deploy(&sent).await;
        let name = sent["service"].as_str().expect("a name");
        assert_is_as_deployed(&certified.status(name, namespace).await, &sent);
        let list = certified.read(&format!("/system/functions?namespace={namespace}")).await;
        let list = list.as_array().expect("an array");
        assert_eq!(list.len(), 1, "only what the test deployed: {list:?}");
        assert_is_as_deployed(&list[0], &sent);
    }
}

fn metadata_cases(namespace: &str) -> [Value; 4] {
    let bare = |name| deployment(name, namespace, PREFIXED, "");
    let without_process = |mut sent: Value| {
        sent.as_object_mut().expect("an object").remove("envProcess");
        sent
    };
    [
        deployment("stronghash", namespace, SHORT, "sha512sum"),
        with(
            deployment("env-test-labels", namespace, PREFIXED, "env"),
            "labels",
            json!({"upstream_uri": "example.com", "canary_build": "true"}),
        ),
        with(
            without_process(bare("env-test-annotations")),
            "annotations",
            json!({
                "important-date": "Fri Aug 10 08:21:00 BST 2018",
                "some-json": "{\n  \"key\": \"value\",\n  \"key2\": \"value2\",\n  \"key3\": \"value3\"\n}\n",
            }),
        ),
        with(
            without_process(bare("memory-limit")),
            "limits",
            json!({"memory": "5Mi", "cpu": "100m"}),
        ),
    ]
}

#[tokio::test]
async fn deploy_without_extra_metadata() {
    let certified = Certified::new().await;
    deploys(&certified, |namespace| metadata_cases(namespace)[0].clone()).await;
}

#[tokio::test]
async fn deploy_with_labels() {
    let certified = Certified::new().await;
    deploys(&certified, |namespace| metadata_cases(namespace)[1].clone()).await;
}

#[tokio::test]
async fn deploy_with_annotations() {
    let certified = Certified::new().await;
    deploys(&certified, |namespace| metadata_cases(namespace)[2].clone()).await;
}

#[tokio::test]
async fn deploy_with_memory_limit() {
    let certified = Certified::new().await;
    deploys(&certified, |namespace| metadata_cases(namespace)[3].clone()).await;
}

#[tokio::test]
async fn deploy_test_listing_functions() {
    let certified = Certified::new().await;
    for namespace in NAMESPACES {
        let mut sent = BTreeMap::new();
        for case in metadata_cases(namespace) {
            certified.deploy(&case).await;
            sent.insert(case["service"].as_str().expect("a name").to_owned(), case);
        }
        let list = certified.read(&format!("/system/functions?namespace={namespace}")).await;
        let list = list.as_array().expect("an array");
        assert_eq!(list.len(), sent.len(), "nothing else is there: {list:?}");
        for status in list {
            let name = status["name"].as_str().expect("a name");
            assert_is_as_deployed(status, &sent[name]);
            assert_eq!(certified.status(name, namespace).await["image"], sent[name]["image"]);
        }
    }
}

#[tokio::test]
async fn list_namespaces() {
    let certified = Certified::new().await;
    assert_eq!(certified.read("/system/namespaces").await, json!(NAMESPACES));
}

#[tokio::test]
async fn health_endpoint() {
    let cloud = Cloud::start();
    assert_eq!(cloud.get("127.0.0.1", "/healthz").await.status, 200);
}

#[tokio::test]
async fn provider_info() {
    let certified = Certified { cloud: Cloud::start(), password: true };
    let info = certified.read("/system/info").await;
    for path in [
        "/provider/provider",
        "/provider/orchestration",
        "/provider/version/release",
        "/provider/version/sha",
        "/version/release",
        "/version/sha",
    ] {
        let text = info.pointer(path).and_then(Value::as_str);
        assert!(text.is_some_and(|text| !text.is_empty()), "{path} in {info}");
    }
    // The suite leaves scaling out for a provider of this name.
    assert_ne!(info["provider"]["provider"], "faasd");
}

#[tokio::test]
async fn invoke_not_found() {
    let certified = Certified { cloud: Cloud::start(), password: true };
    certified.invoke("POST", "/function/.openfaas-fn", "", 404).await;
}

#[tokio::test]
async fn invoke_verbs() {
    let certified = Certified::new().await;
    verbs(&certified).await;
}

async fn verbs(certified: &Certified) {
    for namespace in NAMESPACES {
        certified.deploy(&deployment("env-test-verbs", namespace, PREFIXED, "env")).await;
        let list = certified.read(&format!("/system/functions?namespace={namespace}")).await;
        assert_eq!(list[0]["namespace"], namespace);
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let path = format!("/function/env-test-verbs.{namespace}");
            let answer = certified.invoke(method, &path, "", 200).await;
            assert!(answer.body.contains(&format!("Http_Method={method}")), "{}", answer.body);
            assert!(!answer.header("x-call-id").is_empty());
            assert!(!answer.header("x-start-time").is_empty());
        }
    }
}

#[tokio::test]
async fn invoke_redirect() {
    let certified = Certified::new().await;
    for namespace in NAMESPACES {
        let sent =
            deployment("redirector-test", namespace, "theaxer/redirector:latest", "./handler");
        let sent = with(sent, "envVars", json!({"destination": "http://example.com"}));
        certified.deploy(&sent).await;
        assert_is_as_deployed(&certified.status("redirector-test", namespace).await, &sent);
        let path = format!("/function/redirector-test.{namespace}");
        let answer = certified.invoke("POST", &path, "", 302).await;
        assert_eq!(answer.header("location"), "http://example.com");
    }
}

#[tokio::test]
async fn invoke_env_and_query() {
    let certified = Certified::new().await;
    for namespace in NAMESPACES {
        let sent = deployment("env-test", namespace, SHORT, "env");
        let sent = with(sent, "envVars", json!({"custom_env": "custom_env_value"}));
        certified.deploy(&sent).await;
        assert_is_as_deployed(&certified.status("env-test", namespace).await, &sent);
        let path = format!("/function/env-test.{namespace}");
        let answer = certified.invoke("POST", &path, "", 200).await;
        assert!(answer.body.contains("custom_env=custom_env_value"), "{}", answer.body);
        let answer = certified.invoke("POST", &format!("{path}?testing=1"), "", 200).await;
        assert!(answer.body.contains("Http_Query=testing=1"), "{}", answer.body);
    }
}

/// The text of a line behind the time that the watchdog prints before it.
fn behind_the_time(line: &Value) -> &str {
    let text = line["text"].as_str().expect("a text");
    text.trim_start_matches(|sign: char| sign.is_ascii_digit() || "/: ".contains(sign))
}

#[tokio::test]
async fn function_logs() {
    let certified = Certified::new().await;
    for namespace in NAMESPACES {
        certified.deploy(&deployment("test-logger", namespace, PREFIXED, "cat")).await;
        certified.available("test-logger", namespace).await;
        let path = format!("/function/test-logger.{namespace}");
        assert_eq!(certified.invoke("POST", &path, namespace, 200).await.body, namespace);

        // Neither `tail` nor `since`: all that is kept, however long ago it was written.
        let path = format!("/system/logs?name=test-logger&namespace={namespace}&follow=false");
        let wrote = format!("Wrote {} Bytes", namespace.len());
        eventually("both lines are logged", Duration::from_secs(30), async || {
            let answer = certified.api("GET", &path, &Value::Null).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            let lines: Vec<Value> = answer
                .body
                .lines()
                .map(|line| serde_json::from_str(line).expect("each line is JSON"))
                .collect();
            assert!(lines.iter().all(|line| line["name"] == "test-logger"), "{lines:?}");
            assert!(lines.iter().all(|line| line["namespace"] == namespace), "{lines:?}");
            let begins =
                |text: &str| lines.iter().any(|line| behind_the_time(line).starts_with(text));
            (begins("Forking fprocess") && begins(&wrote)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn scale_minimum() {
    let certified = Certified::new().await;
    let sent = deployment("test-min-scale", NAMESPACES[0], PREFIXED, "env");
    certified.deploy(&with(sent, "labels", json!({"com.openfaas.scale.min": "2"}))).await;
    let status = certified.status("test-min-scale", NAMESPACES[0]).await;
    assert_eq!(number(&status, "replicas"), 2);
}

#[tokio::test]
async fn scale_from_zero_during_invoke() {
    let certified = Certified::new().await;
    for namespace in NAMESPACES {
        certified.deploy(&deployment("test-scale-from-zero", namespace, PREFIXED, "env")).await;
        certified.available("test-scale-from-zero", namespace).await;
        let scale =
            json!({"serviceName": "test-scale-from-zero", "replicas": 0, "namespace": namespace});
        let path = "/system/scale-function/test-scale-from-zero";
        let scaled = certified.api("POST", path, &scale).await;
        assert!(matches!(scaled.status, 200 | 202), "{}", scaled.status);
        let status = certified.status("test-scale-from-zero", namespace).await;
        assert_eq!(number(&status, "replicas"), 0);
        let path = format!("/function/test-scale-from-zero.{namespace}");
        // The very first call waits for its replica; the suite would let it try 30 times.
        let answer = certified.cloud.send("POST", "127.0.0.1", &path, &[], "").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
}

/// Load as the suite makes it: two clients, five calls a second each, a connection for each call.
struct Load {
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn on(cloud: &Cloud, function: &str) -> Self {
        let address = cloud.address();
        let path = format!("/function/{function}");
        let client = || {
            let path = path.clone();
            tokio::spawn(async move {
                let mut turns = tokio::time::interval(Duration::from_millis(200));
                loop {
                    turns.tick().await;
                    if let Ok(mut connection) = Connection::open(address).await {
                        // Early calls may fail: the function may not be there yet.
                        drop(connection.post("127.0.0.1", &path, "").await);
                    }
                }
            })
        };
        Self { tasks: vec![client(), client()] }
    }

    fn stop(self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Certified {
    async fn replicas(&self, name: &str, what: &str, wanted: impl Fn(u64) -> bool) {
        eventually(what, SCALE_LIMIT, async || {
            let status = self.status(name, NAMESPACES[0]).await;
            wanted(number(&status, "replicas")).then_some(())
        })
        .await;
    }

    async fn deploy_scaled(&self, name: &str, labels: Value) {
        let sent = deployment(name, NAMESPACES[0], PREFIXED, "env");
        self.deploy(&with(sent, "labels", labels)).await;
    }
}

#[tokio::test]
async fn scale_up_and_down_from_throughput() {
    let certified = Certified::new().await;
    let name = "test-throughput-scaling";
    let labels = json!({"com.openfaas.scale.min": "1", "com.openfaas.scale.max": "2"});
    certified.deploy_scaled(name, labels).await;
    let load = Load::on(&certified.cloud, name);
    certified.replicas(name, "10 calls a second bring a second replica", |it| it >= 2).await;
    load.stop();
    certified.replicas(name, "without load there is one again", |it| it == 1).await;
}

#[tokio::test]
async fn scaling_disabled_via_labels() {
    let certified = Certified::new().await;
    let fixed = json!({"com.openfaas.scale.min": "2", "com.openfaas.scale.max": "2"});
    certified.deploy_scaled("test-scaling-disabled", fixed).await;
    // Beside it one that may grow: when that has grown and shrunk, the other had its chance to.
    let free = json!({"com.openfaas.scale.min": "1", "com.openfaas.scale.max": "2"});
    certified.deploy_scaled("test-throughput-scaling", free).await;
    let is_fixed = async || {
        let status = certified.status("test-scaling-disabled", NAMESPACES[0]).await;
        assert_eq!(number(&status, "replicas"), 2);
    };
    let loads = ["test-scaling-disabled", "test-throughput-scaling"]
        .map(|name| Load::on(&certified.cloud, name));
    certified.replicas("test-throughput-scaling", "the other grows", |it| it == 2).await;
    is_fixed().await;
    loads.into_iter().for_each(Load::stop);
    certified.replicas("test-throughput-scaling", "the other shrinks", |it| it == 1).await;
    is_fixed().await;
}

/// The suite's own case asks for two and for no replicas in the same moment; this is its intent.
#[tokio::test]
async fn scale_to_zero() {
    let certified = Certified::new().await;
    let name = "test-scaling-to-zero";
    let labels = json!({
        "com.openfaas.scale.max": "2",
        "com.openfaas.scale.zero": "true",
        "com.openfaas.scale.zero-duration": "3s",
    });
    certified.deploy_scaled(name, labels).await;
    let load = Load::on(&certified.cloud, name);
    certified.replicas(name, "load brings a second replica", |it| it == 2).await;
    load.stop();
    certified.replicas(name, "without load there is none", |it| it == 0).await;
    let path = format!("/function/{name}");
    let answer = certified.cloud.send("POST", "127.0.0.1", &path, &[], "").await;
    assert_eq!(answer.status, 200, "a call brings it back: {}", answer.body);
}

/// The suite runs with `-enableAuth` and without: all that differs is what the API is asked with.
#[tokio::test]
async fn the_suite_without_authentication() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let config = folder.path().join("updraft.toml");
    std::fs::write(&config, "[gateway]\nauthentication = false\n").expect("a file can be written");
    let flags = ["--config", config.to_str().expect("the path is text")];
    let certified = Certified::with_flags(&flags, false).await;
    assert_eq!(certified.read("/system/namespaces").await, json!(NAMESPACES));
    assert_ne!(certified.read("/system/info").await["provider"]["provider"], "");
    verbs(&certified).await;
    let secret = json!({"name": "secret-string", "value": "x"});
    assert_eq!(certified.api("POST", "/system/secrets", &secret).await.status, 202);
    let path = "/system/scale-function/env-test-verbs";
    assert_eq!(certified.api("POST", path, &json!({"replicas": 2})).await.status, 202);
    let logs = certified.api("GET", "/system/logs?name=env-test-verbs", &Value::Null).await;
    assert_eq!(logs.status, 200);
    let remove = json!({"functionName": "env-test-verbs"});
    assert_eq!(certified.api("DELETE", "/system/functions", &remove).await.status, 202);
}

/// And with it, nothing of the API is there for who does not know the password.
#[tokio::test]
async fn the_suite_without_a_password_where_one_is_asked() {
    let certified = Certified { cloud: Cloud::start(), password: false };
    let deployment = deployment("stronghash", NAMESPACES[0], SHORT, "sha512sum");
    for (method, path, body) in [
        ("GET", "/system/functions", &Value::Null),
        ("GET", "/system/info", &Value::Null),
        ("GET", "/system/namespaces", &Value::Null),
        ("POST", "/system/functions", &deployment),
        ("POST", "/system/secrets", &json!({"name": "secret-string", "value": "x"})),
    ] {
        let answer = certified.api(method, path, body).await;
        assert_eq!(answer.status, 401, "{method} {path}");
        assert_eq!(answer.header("www-authenticate"), "Basic realm=\"Restricted\"");
    }
    certified.invoke("POST", "/function/.openfaas-fn", "", 404).await;
}

#[derive(Clone, Copy)]
enum SecretForm {
    Text,
    Raw,
}

async fn secret_lives(name: &str, form: SecretForm) {
    let certified = Certified::new().await;
    let written = |namespace: &str, value: &str| match form {
        SecretForm::Text => json!({"name": name, "namespace": namespace, "value": value}),
        SecretForm::Raw => {
            let encoded = updraft_tests::base64(value.as_bytes());
            json!({"name": name, "namespace": namespace, "rawValue": encoded})
        }
    };
    for namespace in NAMESPACES {
        let listed = async || {
            let list = certified.read(&format!("/system/secrets?namespace={namespace}")).await;
            let list = list.as_array().expect("an array").clone();
            list.iter().any(|entry| entry["name"] == name)
        };
        assert!(!listed().await);
        let value = "this-is-the-secret-value";
        let answer = certified.api("POST", "/system/secrets", &written(namespace, value)).await;
        assert!(matches!(answer.status, 200..=202), "{}", answer.status);
        assert!(listed().await);

        let process = format!("cat /var/openfaas/secrets/{name}");
        let sent = with(deployment(name, namespace, PREFIXED, &process), "secrets", json!([name]));
        certified.deploy(&sent).await;
        assert_is_as_deployed(&certified.status(name, namespace).await, &sent);
        let path = format!("/function/{name}.{namespace}");
        assert_eq!(certified.invoke("POST", &path, "", 200).await.body, value);

        // The suite takes the first answer after the roll-out: it must be the new value already.
        let value = "this-is-the-updated-secret-value";
        let answer = certified.api("PUT", "/system/secrets", &written(namespace, value)).await;
        assert!(matches!(answer.status, 200 | 202), "{}", answer.status);
        let sent = with(sent, "annotations", json!({"secret-hash": "1"}));
        let answer = certified.api("PUT", "/system/functions", &sent).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        assert_eq!(certified.invoke("POST", &path, "", 200).await.body, value);

        let remove = json!({"functionName": name, "namespace": namespace});
        assert_eq!(certified.api("DELETE", "/system/functions", &remove).await.status, 202);
        let remove = json!({"name": name, "namespace": namespace});
        assert_eq!(certified.api("DELETE", "/system/secrets", &remove).await.status, 202);
        assert!(!listed().await);
    }
}

#[tokio::test]
async fn secret_crud_string() {
    secret_lives("secret-string", SecretForm::Text).await;
}

#[tokio::test]
async fn secret_crud_bytes() {
    secret_lives("secret-bytes", SecretForm::Raw).await;
}
