//! The main journey: a repository is pushed and its functions answer, change, break and go.

use updraft_tests::{Cloud, Repository, fixture};

#[tokio::test]
async fn a_pushed_function_answers_on_its_own_host_and_on_the_gateway() {
    let cloud = Cloud::start();
    let token = cloud.token("demo");
    let repository = Repository::new();
    let site = fixture::site(&repository, "hello", "hello from a push");
    fixture::stack(&repository, &[site]);
    repository.commit("Say hello");

    let push = repository.push(&cloud.git_url("demo", &token, "site")).expect_success();
    let url = format!("http://demo.localhost:{}/hello", cloud.address().port());
    assert!(push.output.contains(&url), "{}", push.output);

    let page = cloud.get("demo.localhost", "/hello").await;
    assert_eq!((page.status, page.body.as_str()), (200, "hello from a push"));
    let same = cloud.get("127.0.0.1", "/function/demo-hello").await;
    assert_eq!((same.status, same.body.as_str()), (200, "hello from a push"));
    assert!(!same.header("x-call-id").is_empty());
}

#[tokio::test]
async fn only_what_changed_is_built_and_what_left_the_stack_is_removed() {
    let cloud = Cloud::start();
    let token = cloud.token("demo");
    let url = cloud.git_url("demo", &token, "shop");
    let repository = Repository::new();
    let one = fixture::site(&repository, "one", "one v1");
    let two = fixture::binary(&repository, "two", "two v1");
    fixture::stack(&repository, &[one.clone(), two]);
    repository.commit("Two functions");
    repository.push(&url).expect_success();
    assert_eq!(cloud.get("demo.localhost", "/two/index.html").await.body, "two v1");

    repository.write("one/index.html", "one v2").commit("Change one");
    repository.push(&url).expect_success();
    assert_eq!(cloud.get("demo.localhost", "/one").await.body, "one v2");
    let releases = |function: &str| {
        cloud.json(&["releases", &format!("demo/{function}")]).as_array().map_or(0, Vec::len)
    };
    assert_eq!((releases("one"), releases("two")), (2, 1));

    fixture::stack(&repository, &[one]);
    repository.commit("Drop two");
    let push = repository.push(&url).expect_success();
    assert!(push.output.contains("two"), "the push tells of the removal: {}", push.output);
    assert_eq!(cloud.get("demo.localhost", "/two").await.status, 404);
    assert_eq!(cloud.get("demo.localhost", "/one").await.body, "one v2");
}

#[tokio::test]
async fn a_broken_function_keeps_its_old_release_and_holds_up_no_other() {
    let cloud = Cloud::start();
    let token = cloud.token("demo");
    let url = cloud.git_url("demo", &token, "shop");
    let repository = Repository::new();
    let good = fixture::site(&repository, "good", "good v1");
    let fragile = fixture::binary(&repository, "fragile", "fragile v1");
    fixture::stack(&repository, &[good, fragile]);
    repository.commit("Both work");
    repository.push(&url).expect_success();

    repository
        .write("good/index.html", "good v2")
        .write("fragile/Dockerfile", "FROM scratch\nCOPY not-there /\n")
        .commit("Break one");
    let push = repository.push(&url).expect_failure();
    assert!(push.output.contains("fragile"), "{}", push.output);
    assert!(push.output.contains("not-there"), "the last lines are shown: {}", push.output);
    assert_eq!(cloud.get("demo.localhost", "/good").await.body, "good v2");
    assert_eq!(cloud.get("demo.localhost", "/fragile/index.html").await.body, "fragile v1");
}

#[tokio::test]
async fn a_rollback_brings_the_earlier_release_back_without_a_build() {
    let cloud = Cloud::start();
    let token = cloud.token("demo");
    let url = cloud.git_url("demo", &token, "site");
    let repository = Repository::new();
    let site = fixture::site(&repository, "page", "first");
    fixture::stack(&repository, &[site]);
    repository.commit("First");
    repository.push(&url).expect_success();
    repository.write("page/index.html", "second").commit("Second");
    repository.push(&url).expect_success();
    assert_eq!(cloud.get("demo.localhost", "/page").await.body, "second");
    let builds = || cloud.json(&["builds", "--owner", "demo"]).as_array().map_or(0, Vec::len);
    let builds_before = builds();

    cloud.run_ok(&["rollback", "demo/page"]);
    assert_eq!(cloud.get("demo.localhost", "/page").await.body, "first");
    assert_eq!(builds(), builds_before);

    // A rollback pins: the next push is built and released, but not deployed until unpinned.
    repository.write("page/index.html", "third").commit("Third");
    repository.push(&url).expect_success();
    assert_eq!(cloud.get("demo.localhost", "/page").await.body, "first");
    cloud.run_ok(&["rollback", "demo/page", "--unpin"]);
    assert_eq!(cloud.get("demo.localhost", "/page").await.body, "third");
}
