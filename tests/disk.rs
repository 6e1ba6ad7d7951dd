//! What uses the disk: images that no release needs go, what is kept can be gone back to, and
//! whoever asks is told which is which.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use updraft_tests::images::Recipe;
use updraft_tests::{Cloud, Repository, eventually, fixture};

/// A window of one release, looked at all the time.
const NARROW: &str = "[images]\nkeep_releases = 1\nkeep_unused = '0s'\ncache = '0'\n\
                      settle = '2s'\nevery = '1s'\n";

#[tokio::test]
async fn images_of_old_releases_go_and_a_rollback_to_one_says_so() {
    let cloud = Cloud::start_configured(NARROW);
    let token = cloud.token("demo");
    let url = cloud.git_url("demo", &token, "site");
    let repository = Repository::new();
    let site = fixture::binary(&repository, "page", "text 1");
    fixture::stack(&repository, &[site]);
    repository.commit("Version 1");
    repository.push(&url).expect_success();
    for number in 2..=3 {
        let text = format!("text {number}");
        repository.write("page/www/index.html", &text).commit(&format!("Version {number}"));
        repository.push(&url).expect_success();
        assert_eq!(cloud.get("demo.localhost", "/page/index.html").await.body, text);
    }
    let kept = || {
        let releases = cloud.json(&["releases", "demo/page"]);
        let releases = releases.as_array().cloned().unwrap_or_default();
        releases.iter().map(|release| release["kept"].as_bool().unwrap_or(true)).collect::<Vec<_>>()
    };
    eventually("the images of old releases are gone", Duration::from_mins(2), async || {
        (kept() == [true, false, false]).then_some(())
    })
    .await;
    let refused = cloud.run(&["rollback", "demo/page"]);
    assert_eq!(refused.code, Some(1));
    let told = &refused.stderr;
    assert!(told.contains("v2") && told.contains("push commit"), "{told}");
    assert_eq!(cloud.get("demo.localhost", "/page/index.html").await.body, "text 3");

    let disk = cloud.json(&["disk"]);
    assert!(disk["images_bytes"].as_u64() > Some(0) && disk["free_bytes"].as_u64() > Some(0));
    assert!(disk["folders"]["database"].as_u64() > Some(0), "{disk}");
    let images = cloud.json(&["images", "list"]);
    let used: Vec<_> = images.as_array().unwrap().iter().map(|i| i["used_by"].clone()).collect();
    assert!(used.iter().any(|used| used == "functions"), "{images}");
    let left = cloud.json(&["images", "prune", "--dry-run"]);
    assert_eq!(left.as_array().map(Vec::len), Some(0), "{left}");
    for command in [&["disk"][..], &["images", "list"], &["releases", "demo/page"]] {
        eprintln!("$ updraft {}\n{}", command.join(" "), cloud.run_ok(command));
    }
}

const IMAGE: &str = "functions/page:latest";

/// Writes until not one more byte fits.
fn fill(file: &Path) {
    let mut file = File::create(file).expect("a file can be made");
    for piece in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![1; piece]).is_ok() {}
    }
}

#[tokio::test]
async fn a_disk_without_any_room_is_told_as_such_and_what_runs_goes_on() {
    let mut cloud = Cloud::on_a_disk_of(640 << 20);
    let environment = &["mode=classic", "fprocess=cat"];
    cloud.load(&Recipe { names: &[IMAGE], environment, ..Recipe::default() });
    cloud.resume();
    let deployment = |name: &str, answer: &str| {
        json!({ "service": name, "image": IMAGE, "envVars": { "answer": answer } }).to_string()
    };
    let answer = cloud.openfaas("POST", "/system/functions", &deployment("page", "1")).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let says = async |text: &str| {
        let answer = cloud.send("POST", "127.0.0.1", "/function/page", &[], text).await;
        (answer.status == 200).then_some(answer.body)
    };
    let ready = async || says("hello").await;
    let first = eventually("the function answers", Duration::from_mins(1), ready).await;
    assert_eq!(first, "hello");

    let filler = cloud.data_dir().join("filler");
    fill(&filler);
    let secret = json!({ "name": "key", "value": "x".repeat(8192) }).to_string();
    for (method, path, body) in [
        ("POST", "/system/functions", deployment("other", "2")),
        ("PUT", "/system/functions", deployment("page", "2")),
        ("POST", "/system/secrets", secret.clone()),
    ] {
        let answer = cloud.openfaas(method, path, &body).await;
        assert_eq!(answer.status, 507, "{method} {path}: {}", answer.body);
        assert!(answer.body.contains("disk is full"), "{}", answer.body);
    }
    assert_eq!(says("still here").await.as_deref(), Some("still here"));
    let other = cloud.openfaas("GET", "/system/function/other", "").await;
    assert_eq!(other.status, 404, "nothing of it was kept");

    std::fs::remove_file(&filler).unwrap();
    let answer = cloud.openfaas("POST", "/system/secrets", &secret).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let answer = cloud.openfaas("PUT", "/system/functions", &deployment("page", "2")).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
}
