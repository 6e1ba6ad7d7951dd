//! The table of routes: which method is served where, and what the others get.

use crate::harness::{Answer, Gateway};

const METHODS: [&str; 6] = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];

#[tokio::test]
async fn every_path_serves_its_methods_and_no_other() {
    let gateway = Gateway::new().await;
    for (path, served) in [
        ("/system/functions", &["GET", "POST", "PUT", "DELETE"][..]),
        ("/system/function/f", &["GET"]),
        ("/system/scale-function/f", &["POST"]),
        ("/system/info", &["GET"]),
        ("/system/secrets", &["GET", "POST", "PUT", "DELETE"]),
        ("/system/logs", &["GET"]),
        ("/system/namespaces", &["GET"]),
        ("/system/namespace/", &["POST", "PUT", "DELETE"]),
        ("/system/namespace/dev", &["GET", "POST", "PUT", "DELETE"]),
        ("/system/alert", &["POST"]),
        ("/system/openapi.json", &["GET"]),
        ("/metrics", &["GET"]),
        ("/healthz", &["GET"]),
        ("/ui/", &["GET"]),
        ("/", &["GET"]),
        ("/async-function/f", &["POST", "DELETE"]),
        ("/async-function/f/", &["POST"]),
        ("/async-function/f/a/b", &["POST"]),
    ] {
        for method in METHODS {
            let answer = gateway.call(method, path, "").await;
            if served.contains(&method) {
                assert_ne!(answer.status, 405, "{method} {path}");
            } else {
                answer.succeeds(405);
                let allowed = answer.headers["allow"].to_str().unwrap();
                assert!(served.iter().all(|method| allowed.contains(method)), "{path}: {allowed}");
            }
        }
    }
    for path in ["/system/telemetry", "/system/async-report", "/oauth/token", "/function/", "/x"] {
        for method in METHODS {
            gateway.call(method, path, "").await.fails(404, "404 page not found");
        }
    }
}

/// The clients print what they get as it is, one line of text.
#[tokio::test]
async fn a_failure_is_one_line_of_plain_text() {
    let gateway = Gateway::new().await;
    let is_a_line = |answer: &Answer| {
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert!(answer.text.ends_with('\n') && answer.text.lines().count() == 1, "{}", answer.text);
    };
    is_a_line(&gateway.call("POST", "/system/functions", "{").await);
    is_a_line(&gateway.call("DELETE", "/system/functions", r#"{"functionName":"f"}"#).await);
    is_a_line(&gateway.call("PUT", "/system/secrets", r#"{"name":"s"}"#).await);
    is_a_line(&gateway.get("/system/functions?namespace=kube-system").await);
    is_a_line(&gateway.get("/system/logs").await);
    is_a_line(&gateway.get("/nothing").await);
}
