//! `/system/info`.

use serde_json::json;

use crate::harness::Gateway;

#[tokio::test]
async fn info_names_provider_and_gateway_with_their_versions() {
    let info = Gateway::new().await.get("/system/info").await.json();
    assert_eq!(
        info["provider"],
        json!({
            "provider": "memory",
            "version": {"sha": "abc", "release": "1.2.3"},
            "orchestration": "containers",
        })
    );
    assert_eq!(info["version"], json!({"sha": "0123abc", "release": "0.1.0"}));
    let arch = info["arch"].as_str().unwrap();
    assert!(!arch.is_empty() && arch != "aarch64", "{arch}");
}
