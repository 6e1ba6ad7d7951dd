//! What `faas-cli` does, request by request: log in, deploy, describe, invoke, scale, log, remove.

use std::time::Duration;

use updraft_tests::images::Recipe;
use updraft_tests::{Cloud, Repository, eventually, fixture};

/// The image with a watchdog of its own.
const FOREIGN: &str = "functions/foreign:latest";
/// A watchdog by the protocol's letter and nothing more: it listens, writes the lock file at once,
/// starts the function's process beside itself and, on SIGTERM, takes the lock file away and ends.
const FOREIGN_WATCHDOG: &str = r#"#!/bin/sh
echo "Version: 0.0.1	SHA: somebody else's" >&2
echo "Watchdog mode: $mode	fprocess: $fprocess" >&2
/bin/nc -ll -p 8080 -e /home/app/answer &
$fprocess &
: > /tmp/.lock
trap 'echo "SIGTERM: no new connections" >&2; rm /tmp/.lock; exit 0' TERM
while true; do wait; done
"#;
/// One exchange of that watchdog: health from the lock file, and every other path is a call.
const FOREIGN_ANSWER: &str = r#"#!/bin/sh
read -r method path version
while read -r line && [ "$line" != "$(printf '\r')" ]; do
    case "$line" in X-Call-Id:*|x-call-id:*) call=yes ;; esac
done
status='200 OK'
if [ "$path" = /_/health ]; then
    [ -e /tmp/.lock ] || status='503 Service Unavailable'
    body=OK
else
    echo "called: $method $path" >&2
    body="$method $path fprocess=$fprocess exec=$exec_timeout write=$write_timeout call=$call $(/bin/busybox id -un)"
fi
printf 'HTTP/1.1 %s\r\nContent-Length: %s\r\nConnection: close\r\n\r\n%s' "$status" "${#body}" "$body"
"#;

/// A cloud that has the image `localhost/fixture/web:1`, as a client deploys one by name.
fn cloud_with_image() -> Cloud {
    let cloud = Cloud::start();
    let token = cloud.token("images");
    let repository = Repository::new();
    let entry = fixture::binary(&repository, "web", "from an image");
    fixture::stack(&repository, &[entry]);
    repository.commit("An image");
    repository.push(&cloud.git_url("images", &token, "web")).expect_success();
    cloud
}

/// The image that the pushed function runs.
fn image(cloud: &Cloud) -> String {
    let functions = cloud.json(&["list", "--owner", "images"]);
    functions[0]["image"].as_str().expect("a function has an image").to_owned()
}

#[tokio::test]
async fn a_client_without_the_password_is_told_to_log_in() {
    let cloud = Cloud::start();
    let answer = cloud.send("GET", "127.0.0.1", "/system/functions", &[], "").await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.header("www-authenticate"), "Basic realm=\"Restricted\"");
    assert_eq!(cloud.openfaas("GET", "/system/functions", "").await.status, 200);
    assert_eq!(cloud.get("127.0.0.1", "/healthz").await.status, 200);
}

#[tokio::test]
async fn a_function_lives_its_life_through_the_openfaas_api() {
    let cloud = cloud_with_image();
    let image = image(&cloud);
    let deployment = serde_json::json!({
        "service": "web", "image": image, "envVars": {"colour": "blue"},
        "labels": null, "annotations": {"note": "a b  c"}, "limits": {"memory": "40Mi"},
    })
    .to_string();

    // The client's first deployment: an update that finds nothing, then a creation.
    assert_eq!(cloud.openfaas("PUT", "/system/functions", &deployment).await.status, 404);
    assert_eq!(cloud.openfaas("POST", "/system/functions", &deployment).await.status, 202);
    eventually("web is available", Duration::from_secs(20), async || {
        let status = cloud.openfaas("GET", "/system/function/web", "").await.json();
        (status["availableReplicas"] == 1).then_some(())
    })
    .await;

    let status = cloud.openfaas("GET", "/system/function/web?usage=1", "").await.json();
    assert_eq!(status["image"], image.as_str());
    assert_eq!(status["envVars"]["colour"], "blue");
    assert_eq!(status["annotations"]["note"], "a b  c");
    assert_eq!(status["limits"]["memory"], "40Mi");
    assert_eq!(status["labels"]["faas_function"], "web");
    assert!(status.get("requests").is_none());

    let call = cloud.get("127.0.0.1", "/function/web.openfaas-fn/index.html").await;
    assert_eq!((call.status, call.body.as_str()), (200, "from an image"));
    assert!(!call.header("x-start-time").is_empty());
    let listed = cloud.openfaas("GET", "/system/functions", "").await.json();
    let web = listed.as_array().unwrap().iter().find(|entry| entry["name"] == "web").unwrap();
    assert_eq!(web["invocationCount"].as_f64(), Some(1.0));

    let scale = r#"{"serviceName":"web","replicas":2,"namespace":"openfaas-fn"}"#;
    assert_eq!(cloud.openfaas("POST", "/system/scale-function/web", scale).await.status, 202);
    assert_eq!(cloud.openfaas("GET", "/system/function/web", "").await.json()["replicas"], 2);

    let remove = r#"{"functionName":"web"}"#;
    assert_eq!(cloud.openfaas("DELETE", "/system/functions", remove).await.status, 202);
    assert_eq!(cloud.openfaas("DELETE", "/system/functions", remove).await.status, 404);
    assert_eq!(cloud.get("127.0.0.1", "/function/web").await.status, 404);
}

#[tokio::test]
async fn an_asynchronous_call_is_made_once_and_counted() {
    let cloud = cloud_with_image();
    let deployment = serde_json::json!({"service": "web", "image": image(&cloud)}).to_string();
    assert_eq!(cloud.openfaas("POST", "/system/functions", &deployment).await.status, 202);
    // The function may still be starting, and even be unknown to the data plane for a moment.
    let accepted = eventually("the call is taken", Duration::from_secs(20), async || {
        let answer =
            cloud.send("POST", "127.0.0.1", "/async-function/web/index.html", &[], "").await;
        (answer.status == 202).then_some(answer)
    })
    .await;
    assert_eq!(accepted.body, "");
    assert!(
        !accepted.header("x-call-id").is_empty() && !accepted.header("x-start-time").is_empty()
    );
    eventually("the function was called", Duration::from_secs(20), async || {
        let status = cloud.openfaas("GET", "/system/function/web", "").await.json();
        (status["invocationCount"].as_f64() == Some(1.0)).then_some(())
    })
    .await;
    let unknown = cloud.send("POST", "127.0.0.1", "/async-function/nobody", &[], "").await;
    assert_eq!(unknown.status, 404, "{}", unknown.body);
    let path = format!("/async-function/{}", accepted.header("x-call-id"));
    assert_eq!(cloud.send("DELETE", "127.0.0.1", &path, &[], "").await.status, 401);
    assert_eq!(cloud.openfaas("DELETE", &path, "").await.status, 409);
    let numbers = cloud.openfaas("GET", "/metrics", "").await;
    assert_eq!(numbers.status, 200);
    let line = r#"http_requests_total{method="POST",path="/async-function/{name}",status="202"} 1"#;
    assert!(numbers.body.lines().any(|found| found == line), "{}", numbers.body);
}

#[tokio::test]
async fn a_secret_reaches_the_function_that_names_it_and_nobody_else() {
    let cloud = cloud_with_image();
    let image = image(&cloud);
    let deploy = |name: &str, secrets: &[&str]| {
        let process = "/busybox httpd -f -p 8080 -h /var/openfaas/secrets";
        serde_json::json!({
            "service": name, "image": image, "secrets": secrets, "envProcess": process,
            "annotations": {"com.openfaas.health.http.path": "/"},
        })
        .to_string()
    };
    let missing = cloud.openfaas("POST", "/system/functions", &deploy("web", &["api-key"])).await;
    assert_eq!(missing.status, 400, "{}", missing.body);
    assert!(missing.body.contains("api-key"), "{}", missing.body);

    let secret = r#"{"name":"api-key","value":"s3cr3t-canary"}"#;
    assert_eq!(cloud.openfaas("POST", "/system/secrets", secret).await.status, 202);
    assert_eq!(cloud.openfaas("POST", "/system/secrets", secret).await.status, 409);
    let listed = cloud.openfaas("GET", "/system/secrets", "").await;
    assert!(listed.body.contains("api-key") && !listed.body.contains("s3cr3t"), "{}", listed.body);
    let answer = cloud.openfaas("POST", "/system/functions", &deploy("web", &["api-key"])).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert!(!cloud.server_log().contains("s3cr3t-canary"));
}

#[tokio::test]
async fn a_deployment_of_a_push_is_not_overwritten_by_a_client() {
    let cloud = cloud_with_image();
    let deployment = serde_json::json!({"service": "images-web", "image": image(&cloud)});
    let answer = cloud.openfaas("PUT", "/system/functions", &deployment.to_string()).await;
    assert_eq!(answer.status, 409, "{}", answer.body);
    assert!(answer.body.contains("images"), "{}", answer.body);
}

#[tokio::test]
async fn info_and_namespaces_are_what_clients_expect() {
    let cloud = Cloud::start();
    let info = cloud.openfaas("GET", "/system/info", "").await.json();
    for path in [
        "/provider/provider",
        "/provider/orchestration",
        "/provider/version/release",
        "/version/sha",
        "/arch",
    ] {
        assert!(info.pointer(path).is_some_and(|value| value != ""), "{path} in {info}");
    }
    let namespaces = cloud.openfaas("GET", "/system/namespaces", "").await.json();
    assert_eq!(namespaces, serde_json::json!(["openfaas-fn"]));
}

/// The lines that a function has written, as clients read them.
async fn logged(cloud: &Cloud, name: &str) -> String {
    let answer = cloud.openfaas("GET", &format!("/system/logs?name={name}"), "").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

#[tokio::test]
async fn an_image_with_a_watchdog_of_its_own_runs_as_it_is() {
    let image = Recipe {
        names: &[FOREIGN],
        environment: &[
            "mode=http",
            "fprocess=sleep 1000",
            "upstream_url=http://127.0.0.1:3000",
            "exec_timeout=10s",
            "write_timeout=15s",
            "prefix_logs=false",
        ],
        scripts: &[("home/app/answer", FOREIGN_ANSWER)],
        foreign_watchdog: Some(FOREIGN_WATCHDOG),
    };
    let cloud = Cloud::start_with_images(&[image], &[]);
    let deployment = serde_json::json!({
        "service": "foreign", "image": FOREIGN, "envProcess": "sleep 2000",
        "envVars": {"write_timeout": "20s"},
    });
    let answer = cloud.openfaas("POST", "/system/functions", &deployment.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.body);

    // The deployment's environment is over the image's, and all else is as the image says.
    let call = cloud.send("PUT", "127.0.0.1", "/function/foreign/a%2Fb?x=%20", &[], "").await;
    assert_eq!(call.status, 200, "{}", call.body);
    let expected = "PUT /a%2Fb?x=%20 fprocess=sleep 2000 exec=10s write=20s call=yes app";
    assert_eq!(call.body, expected);
    let log = logged(&cloud, "foreign").await;
    assert!(log.contains("SHA: somebody else's") && log.contains("mode: http"), "{log}");
    // A probe of a path that this watchdog does not know would have run the function.
    assert!(log.contains("called: PUT /a%2Fb") && !log.contains("called: GET"), "{log}");

    // It is asked to end, and is given the time to.
    let rest = r#"{"serviceName":"foreign","replicas":0}"#;
    assert_eq!(cloud.openfaas("POST", "/system/scale-function/foreign", rest).await.status, 202);
    eventually("the watchdog was asked to end", Duration::from_mins(1), async || {
        logged(&cloud, "foreign").await.contains("SIGTERM: no new connections").then_some(())
    })
    .await;
    let again = cloud.send("GET", "127.0.0.1", "/function/foreign/again", &[], "").await;
    assert_eq!((again.status, again.body.starts_with("GET /again ")), (200, true), "{again:?}");
}
