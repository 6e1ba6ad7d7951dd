//! `/system/alert`.

use serde_json::json;

use crate::harness::Gateway;

const ALERT: &str = "/system/alert";

fn alert(status: &str, functions: &[&str]) -> String {
    let alerts: Vec<_> = functions
        .iter()
        .map(|name| {
            json!({
                "status": status,
                "labels": {"alertname": "APIHighInvocationRate", "function_name": name},
                "startsAt": "2026-01-01T00:00:00Z",
            })
        })
        .collect();
    json!({"receiver": "scale-up", "status": status, "alerts": alerts, "version": "4"}).to_string()
}

async fn replicas(gateway: &Gateway, name: &str) -> u64 {
    let status = gateway.get(&format!("/system/function/{name}")).await.json();
    status["replicas"].as_u64().unwrap_or(0)
}

#[tokio::test]
async fn a_firing_alert_adds_a_step_and_a_resolved_one_goes_back_to_the_minimum() {
    let gateway = Gateway::new().await;
    let labels = r#"{"com.openfaas.scale.max":"5","com.openfaas.scale.factor":"40"}"#;
    gateway.deploy(&format!(r#"{{"service":"f","image":"i","labels":{labels}}}"#)).await;
    for expected in [3, 5, 5] {
        gateway.call("POST", ALERT, &alert("firing", &["f.openfaas-fn"])).await.succeeds(200);
        assert_eq!(replicas(&gateway, "f").await, expected);
    }
    gateway.call("POST", ALERT, &alert("resolved", &["f"])).await.succeeds(200);
    assert_eq!(replicas(&gateway, "f").await, 1);
}

#[tokio::test]
async fn unknown_functions_are_passed_over_and_the_rest_is_heeded() {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"f","image":"i"}"#).await;
    let functions = ["gone", "gone.nowhere", "Not A Name", "", "f"];
    gateway.call("POST", ALERT, &alert("firing", &functions)).await.succeeds(200);
    assert!(replicas(&gateway, "f").await > 1);
    for body in [r#"{"alerts":[]}"#, "{}", r#"{"alerts":null,"status":null}"#] {
        gateway.call("POST", ALERT, body).await.succeeds(200);
    }
}

#[tokio::test]
async fn what_is_no_alert_is_refused_with_the_place() {
    let gateway = Gateway::new().await;
    gateway.call("POST", ALERT, "").await.fails_with(400, "the body is empty");
    for (body, place) in [
        ("{", "line 1"),
        ("[]", "the alert is an array"),
        (r#"{"alerts":{}}"#, "/alerts is an object"),
        (
            r#"{"alerts":[{"labels":{}},{"labels":{"function_name":5}}]}"#,
            "/alerts/1/labels/function_name",
        ),
    ] {
        let answer = gateway.call("POST", ALERT, body).await;
        answer.fails_with(400, "Unable to parse alert, bad format.");
        answer.fails_with(400, place);
    }
    gateway.get(ALERT).await.succeeds(405);
}

#[tokio::test]
async fn what_could_not_be_scaled_is_told_line_by_line() {
    let gateway = Gateway::new().await;
    gateway.deploy(r#"{"service":"f","image":"i"}"#).await;
    gateway.engine.break_down();
    let answer = gateway.call("POST", ALERT, &alert("firing", &["f", "g"])).await;
    assert_eq!(answer.status, 500);
    let lines: Vec<&str> = answer.text.lines().collect();
    assert!(lines[0].starts_with("[0] ") && lines[0].contains("f.openfaas-fn"), "{lines:?}");
    assert!(lines[1].starts_with("[1] ") && lines[1].contains("g.openfaas-fn"), "{lines:?}");
    assert!(!answer.text.contains("/dev/secret"), "causes stay inside");
}
