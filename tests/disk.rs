//! What uses the disk: images that no release needs go, what is kept can be gone back to, and
//! whoever asks is told which is which.

use std::time::Duration;

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
