//! Functions that call each other, and what the platform keeps from them on that way.

use std::time::Duration;

use serde_json::{Value, json};
use updraft_tests::images::Recipe;
use updraft_tests::{Cloud, eventually};

const IMAGE: &str = "functions/caller:latest";

/// Fetches the address that it is sent and prints what came. Names are looked up in `/etc/hosts`, as
/// a C library does first; a static busybox has none that could.
const FETCH: (&str, &str) = (
    "usr/bin/fetch",
    r#"#!/bin/sh
read -r url
rest=${url#http://}
host=${rest%%[:/]*}
address=$host
case $host in *[!0-9.]*)
    address=$(/bin/busybox awk -v name="$host" \
        '{ for (i = 2; i <= NF; i++) if ($i == name) { print $1; exit } }' /etc/hosts) ;;
esac
if [ -z "$address" ]; then echo "no such host"; exit; fi
/bin/busybox wget -q -O - "http://$address${rest#"$host"}" 2>&1 || echo "no page"
"#,
);

/// How long a function may take to be there.
const READY_LIMIT: Duration = Duration::from_mins(1);

fn cloud() -> Cloud {
    Cloud::start_with_images(&[recipe()], &[])
}

fn recipe() -> Recipe<'static> {
    let environment = &["mode=classic", "fprocess=fetch"];
    Recipe { names: &[IMAGE], environment, scripts: &[FETCH], ..Recipe::default() }
}

async fn deploy(cloud: &Cloud, name: &str, process: &str, annotations: Value) {
    let deployment = json!({
        "service": name, "image": IMAGE, "envProcess": process, "annotations": annotations,
    });
    let answer = cloud.openfaas("POST", "/system/functions", &deployment.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    until_available(cloud, name, |replicas| replicas > 0).await;
}

async fn until_available(cloud: &Cloud, name: &str, wanted: impl Fn(u64) -> bool) {
    eventually(&format!("{name} has the replicas it should"), READY_LIMIT, async || {
        let status = cloud.openfaas("GET", &format!("/system/function/{name}"), "").await.json();
        wanted(status["availableReplicas"].as_u64().unwrap_or(0)).then_some(())
    })
    .await;
}

/// What a function gets that fetches an address.
async fn fetched(cloud: &Cloud, name: &str, url: &str) -> String {
    let sent = format!("{url}\n");
    let answer = cloud.send("POST", "127.0.0.1", &format!("/function/{name}"), &[], sent).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

#[tokio::test]
async fn a_function_calls_another_by_the_gateways_name_and_wakes_it() {
    let cloud = cloud();
    deploy(&cloud, "caller", "fetch", json!({})).await;
    deploy(&cloud, "callee", "echo I was called", json!({})).await;
    for gateway in ["gateway.openfaas", "gateway", "gateway.openfaas.svc.cluster.local"] {
        for path in ["/function/callee", "/function/callee.openfaas-fn"] {
            let url = format!("http://{gateway}:8080{path}");
            let got = fetched(&cloud, "caller", &url).await;
            assert!(got == "I was called\n", "{url}: {got}");
        }
    }
    let body = json!({"serviceName": "callee", "replicas": 0}).to_string();
    let answer = cloud.openfaas("POST", "/system/scale-function/callee", &body).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    until_available(&cloud, "callee", |replicas| replicas == 0).await;
    let url = "http://gateway.openfaas:8080/function/callee";
    let got = fetched(&cloud, "caller", url).await;
    assert_eq!(got, "I was called\n");
}

#[tokio::test]
async fn a_function_reaches_functions_and_nothing_else_of_the_platform() {
    let cloud = cloud();
    deploy(&cloud, "caller", "fetch", json!({})).await;
    deploy(&cloud, "callee", "echo I was called", json!({})).await;
    deploy(&cloud, "closed", "fetch", json!({"updraft.egress": "closed"})).await;
    let gateway = "http://gateway.openfaas:8080";
    for (path, status) in [
        ("/system/functions", "401"),
        ("/system/secrets", "401"),
        ("/api/v1/owners", "404"),
        ("/git/alice/repository.git/info/refs?service=git-upload-pack", "404"),
    ] {
        let got = fetched(&cloud, "caller", &format!("{gateway}{path}")).await;
        assert!(got.contains(&format!("HTTP/1.1 {status}")), "{path}: {got}");
    }
    // Past the door: the listener of the platform itself, on an address that is the machine's.
    let direct = format!("http://{}/function/callee", cloud.address());
    let got = fetched(&cloud, "caller", &direct).await;
    assert!(got.ends_with("no page\n") && !got.contains("HTTP"), "{got}");
    let got = fetched(&cloud, "closed", &format!("{gateway}/function/callee")).await;
    assert_eq!(got, "no such host\n");
}

#[tokio::test]
async fn a_function_in_gvisor_has_a_kernel_of_its_own_and_calls_those_that_have_not() {
    let cloud = cloud();
    let machines = std::fs::read_to_string("/proc/version").unwrap();
    let runsc = json!({"updraft.runtime": "runsc"});
    deploy(&cloud, "caller", "fetch", runsc.clone()).await;
    deploy(&cloud, "walled", "cat /proc/version", runsc).await;
    deploy(&cloud, "plain", "cat /proc/version", json!({})).await;
    let page = |name: &str| format!("http://gateway.openfaas:8080/function/{name}");
    assert_eq!(fetched(&cloud, "caller", &page("plain")).await, machines);
    let own = fetched(&cloud, "caller", &page("walled")).await;
    assert!(own.starts_with("Linux version ") && own != machines, "{own}");
    let status = cloud.run_ok(&["engine", "status"]);
    assert!(status.contains("runsc version "), "{status}");
}

#[tokio::test]
async fn where_the_operator_says_so_every_function_is_in_gvisor() {
    let cloud = Cloud::start_configured("[isolation]\nruntime = \"runsc\"");
    cloud.load(&recipe());
    let annotations = json!({"updraft.runtime": "default"});
    deploy(&cloud, "walled", "cat /proc/version", annotations).await;
    let own = fetched(&cloud, "walled", "").await;
    assert!(own.starts_with("Linux version "), "{own}");
    assert_ne!(own, std::fs::read_to_string("/proc/version").unwrap());
}
