//! The process is killed at any moment of a push, and the push ends as if nothing had happened.

use std::time::Duration;

use updraft_tests::{Cloud, Repository, eventually, fixture};

const LIMIT: Duration = Duration::from_secs(30);

/// Waits until a page of the owner `demo` says `text`.
async fn page_says(cloud: &Cloud, path: &str, text: &str) {
    eventually(&format!("{path} says {text}"), LIMIT, async || {
        let answer = cloud.try_get("demo.localhost", path).await.ok()?;
        (answer.body == text).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_push_ends_well_whenever_the_process_is_killed() {
    let mut cloud = Cloud::start();
    let token = cloud.token("demo");
    let repository = Repository::new();
    let page = fixture::site(&repository, "page", "before");
    let steady = fixture::site(&repository, "steady", "steady");
    fixture::stack(&repository, &[page, steady]);
    repository.commit("Before");
    repository.push(&cloud.git_url("demo", &token, "site")).expect_success();

    // Later and later, so that the kill falls into receiving, planning, building, deploying.
    for (round, delay) in [0, 20, 45, 70, 100, 150, 250, 400, 700].into_iter().enumerate() {
        let text = format!("round {round}");
        repository.write("page/index.html", &text).commit(&text);
        let url = cloud.git_url("demo", &token, "site");
        let mut git = repository.start_push(&url);
        tokio::time::sleep(Duration::from_millis(delay)).await;
        cloud.kill();
        git.wait().expect("git can be waited for");
        cloud.resume();

        // What ran before goes on at once, without a new start.
        assert_eq!(cloud.get("demo.localhost", "/steady").await.body, "steady");
        // Whatever git was told, pushing again settles it; a received push needs no second one.
        let is_received = repository
            .git(&["ls-remote", &url, "refs/heads/main"])
            .starts_with(repository.git(&["rev-parse", "HEAD"]).trim());
        if !is_received {
            repository.push(&url).expect_success();
        }
        page_says(&cloud, "/page", &text).await;
    }
}

#[tokio::test]
async fn a_push_killed_in_its_build_is_built_after_the_start() {
    let mut cloud = Cloud::start();
    let token = cloud.token("demo");
    let url = cloud.git_url("demo", &token, "slow");
    let repository = Repository::new();
    let entry = fixture::binary(&repository, "slow", "built");
    let dockerfile = std::fs::read_to_string(repository.path().join("slow/Dockerfile")).unwrap();
    let slow = dockerfile.replace("USER", "RUN [\"/busybox\", \"sleep\", \"2\"]\nUSER");
    repository.write("slow/Dockerfile", slow);
    fixture::stack(&repository, &[entry]);
    repository.commit("Build slowly");

    let mut git = repository.start_push(&url);
    eventually("the build has begun", LIMIT, async || {
        let builds = cloud.json(&["builds", "--owner", "demo"]);
        builds.as_array().is_some_and(|builds| !builds.is_empty()).then_some(())
    })
    .await;
    cloud.kill();
    git.wait().expect("git can be waited for");
    cloud.resume();
    page_says(&cloud, "/slow/index.html", "built").await;
}

#[tokio::test]
async fn replicas_outlive_the_process_and_are_taken_over() {
    let mut cloud = Cloud::start();
    let token = cloud.token("demo");
    let repository = Repository::new();
    let page = fixture::site(&repository, "page", "still here");
    fixture::stack(&repository, &[page]);
    repository.commit("Stay");
    repository.push(&cloud.git_url("demo", &token, "site")).expect_success();
    let replica =
        |cloud: &Cloud| cloud.json(&["list"])[0]["ready"][0]["name"].as_str().map(str::to_owned);
    let before = replica(&cloud);
    assert!(before.is_some());

    cloud.kill();
    cloud.resume();
    assert_eq!(cloud.get("demo.localhost", "/page").await.body, "still here");
    assert_eq!(replica(&cloud), before, "the replica was adopted, not started anew");

    // A service manager's stop leaves replicas running too.
    assert_eq!(cloud.signal(rustix::process::Signal::TERM), Some(0));
    cloud.resume();
    assert_eq!(replica(&cloud), before);

    // Ctrl-C stops them; the next start brings the function back.
    assert_eq!(cloud.signal(rustix::process::Signal::INT), Some(0));
    cloud.resume();
    page_says(&cloud, "/page", "still here").await;
    assert_ne!(replica(&cloud), before);
}
