//! One stack, four languages: each goes live, and a change of one touches no other.

use std::collections::BTreeMap;

use updraft_tests::{Cloud, Repository, fixture};

/// How many builds each function of the owner `demo` has had.
fn builds(cloud: &Cloud) -> BTreeMap<String, usize> {
    let builds = cloud.json(&["builds", "--owner", "demo"]);
    let mut counts = BTreeMap::new();
    for build in builds.as_array().expect("a list of builds") {
        let function = build["function"].as_str().expect("a build has a function");
        *counts.entry(function.to_owned()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn four_functions_in_four_languages_go_live_and_change_one_by_one() {
    let cloud = Cloud::start_with_base_images(&["debian", "python", "node"]);
    let token = cloud.token("demo");
    let url = cloud.git_url("demo", &token, "four");
    let repository = Repository::new();
    repository.copy_example("four-languages").commit("Four languages");
    repository.push(&url).expect_success();

    let functions = cloud.json(&["list", "--owner", "demo"]);
    let functions: Vec<String> = functions
        .as_array()
        .expect("a list of functions")
        .iter()
        .map(|function| function["name"].as_str().expect("a name").to_owned())
        .collect();
    assert_eq!(functions.len(), 4, "{functions:?}");
    for function in &functions {
        let answer = cloud.get("demo.localhost", &format!("/{function}")).await;
        assert_eq!(answer.status, 200, "{function}: {}", answer.body);
        assert!(!answer.body.is_empty(), "{function}");
        let same = cloud.get("127.0.0.1", &format!("/function/demo-{function}")).await;
        assert_eq!(same.status, 200, "{function}: {}", same.body);
    }
    let before = builds(&cloud);
    assert_eq!(before.len(), 4, "{before:?}");

    let stack = std::fs::read_to_string(repository.path().join("stack.yml")).unwrap();
    let python = stack
        .lines()
        .zip(stack.lines().skip(1))
        .find(|(_, lang)| lang.trim() == "lang: python")
        .map(|(name, _)| name.trim().trim_end_matches(':').to_owned())
        .expect("a Python function");
    repository.write(&format!("{python}/note.txt"), "a change").commit("Change one file");
    repository.push(&url).expect_success();
    let after = builds(&cloud);
    for (function, count) in &before {
        let expected = count + usize::from(*function == python);
        assert_eq!(after[function], expected, "{function}: {after:?}");
    }
}

#[tokio::test]
async fn the_first_example_says_hello() {
    let cloud = Cloud::start_with_base_images(&["debian", "python"]);
    let token = cloud.token("demo");
    let repository = Repository::new();
    repository.copy_example("hello").commit("Say hello");
    repository.push(&cloud.git_url("demo", &token, "hello")).expect_success();
    let answer = cloud.get("demo.localhost", "/hello").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test]
async fn a_broken_python_dependency_shows_what_pip_said() {
    let cloud = Cloud::start_with_base_images(&["debian", "python"]);
    let token = cloud.token("demo");
    let repository = Repository::new();
    repository
        .write("broken/handler.py", "def handle(event, context):\n    return 'never'\n")
        .write("broken/requirements.txt", "./no-such-package\n");
    let entry = "  broken:\n    lang: python\n    handler: ./broken\n    image: broken:latest\n";
    fixture::stack(&repository, &[entry.to_owned()]);
    repository.commit("Break it");
    let push = repository.push(&cloud.git_url("demo", &token, "broken")).expect_failure();
    assert!(push.output.contains("no-such-package"), "{}", push.output);
    assert_eq!(cloud.get("demo.localhost", "/broken").await.status, 404);
}
