//! Requests go on while a function is pushed anew, and none of them fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;
use tokio::time::interval;
use updraft_tests::{Answer, Cloud, Connection, Repository, fixture};

const REQUESTS_PER_SECOND: u32 = 200;
const PUSHES: usize = 10;

/// How the load is sent.
#[derive(Clone, Copy)]
enum Clients {
    /// Each request on a connection of its own.
    New,
    /// So many connections, kept from the first request to the last.
    Kept(u32),
}

/// Asks for `/page` as often as [`REQUESTS_PER_SECOND`] says until it is over.
async fn load(cloud: Arc<Cloud>, clients: Clients, over: Arc<AtomicBool>) -> Vec<Result<Answer>> {
    let mut requests = JoinSet::new();
    match clients {
        Clients::New => {
            let mut tick = interval(Duration::from_secs(1) / REQUESTS_PER_SECOND);
            while !over.load(Ordering::Relaxed) {
                tick.tick().await;
                let cloud = Arc::clone(&cloud);
                requests.spawn(async move { vec![cloud.try_get("demo.localhost", "/page").await] });
            }
        }
        Clients::Kept(connections) => {
            for _ in 0..connections {
                let (address, over) = (cloud.address(), Arc::clone(&over));
                requests.spawn(async move {
                    let mut answers = Vec::new();
                    let mut connection = Connection::open(address).await.expect("it connects");
                    let mut tick =
                        interval(Duration::from_secs(1) * connections / REQUESTS_PER_SECOND);
                    while !over.load(Ordering::Relaxed) {
                        tick.tick().await;
                        let answer = connection.get("demo.localhost", "/page").await;
                        let broke = answer.is_err();
                        answers.push(answer);
                        if broke {
                            break;
                        }
                    }
                    answers
                });
            }
        }
    }
    requests.join_all().await.into_iter().flatten().collect()
}

/// Pushes a function ten times while it is under load; every request must be answered.
async fn push_ten_times(clients: Clients) {
    let cloud = Arc::new(Cloud::start());
    let token = cloud.token("demo");
    let url = cloud.git_url("demo", &token, "site");
    let repository = Repository::new();
    let page = fixture::site(&repository, "page", "push 0");
    fixture::stack(&repository, &[page]);
    repository.commit("Push 0");
    repository.push(&url).expect_success();

    let over = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(load(Arc::clone(&cloud), clients, Arc::clone(&over)));
    let pushing = tokio::task::spawn_blocking(move || {
        for push in 1..=PUSHES {
            let text = format!("push {push}");
            repository.write("page/index.html", &text).commit(&text);
            repository.push(&url).expect_success();
        }
    });
    pushing.await.expect("every push succeeds");
    over.store(true, Ordering::Relaxed);

    let answers = load.await.expect("the load ends");
    let failures: Vec<String> = answers
        .iter()
        .filter_map(|answer| match answer {
            Ok(answer) if answer.status == 200 && answer.body.starts_with("push ") => None,
            Ok(answer) => Some(format!("{} {}", answer.status, answer.body)),
            Err(error) => Some(format!("{error:#}")),
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {}: {:?}",
        failures.len(),
        answers.len(),
        &failures[..failures.len().min(5)]
    );
    assert!(answers.len() > PUSHES, "the load ran");
    assert_eq!(cloud.get("demo.localhost", "/page").await.body, format!("push {PUSHES}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_a_function_is_pushed_ten_times() {
    push_ten_times(Clients::New).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_on_a_kept_connection_fails_while_a_function_is_pushed_ten_times() {
    push_ten_times(Clients::Kept(20)).await;
}

/// Each caller has a connection of its own.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("a process may use what it is granted");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_calls_at_once_of_a_sleeping_function_start_it_once() {
    raise_open_files();
    let cloud = Arc::new(Cloud::start());
    let token = cloud.token("demo");
    let repository = Repository::new();
    let page = fixture::site(&repository, "page", "awake");
    fixture::stack(&repository, &[page]);
    repository.commit("Sleep");
    repository.push(&cloud.git_url("demo", &token, "site")).expect_success();
    let sleep = r#"{"serviceName":"demo-page","replicas":0}"#;
    let answer = cloud.openfaas("POST", "/system/scale-function/demo-page", sleep).await;
    assert_eq!(answer.status, 202, "{}", answer.body);

    let callers: Vec<_> = (0..2_000)
        .map(|_| {
            let cloud = Arc::clone(&cloud);
            tokio::spawn(async move { cloud.get("demo.localhost", "/page").await })
        })
        .collect();
    for caller in callers {
        let answer = caller.await.expect("the caller ends");
        assert_eq!((answer.status, answer.body.as_str()), (200, "awake"));
    }
    let replicas = cloud.json(&["list"]);
    assert_eq!(replicas[0]["ready"].as_array().map(Vec::len), Some(1), "{replicas}");
}
