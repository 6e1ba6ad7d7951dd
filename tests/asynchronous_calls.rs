//! Calls that are made later: accepted, made, told of, and none lost when the server is killed,
//! whether the server keeps them or NATS does.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use updraft_tests::images::alpine;
use updraft_tests::{Answer, Cloud, Nats, eventually};

const IMAGE: &str = "functions/alpine:latest";

/// Longest wait for anything here; a loaded machine is slow.
const LIMIT: Duration = Duration::from_mins(2);

/// Calls of the test that kills the server, and how often it does.
const CALLS: usize = 600;
const KILLS: usize = 3;

/// A cloud with the image, whose callbacks may reach this machine.
fn cloud() -> Cloud {
    cloud_with("")
}

/// The same, with more about the queue in its configuration.
fn cloud_with(more: &str) -> Cloud {
    let mut cloud = Cloud::start_with_images(&[alpine(&[IMAGE])], &[]);
    let config = cloud.data_dir().join("test.toml");
    let usual = "[queue]\ncallback_allow = ['127.0.0.0/8']\nretry_min_wait = '100ms'\n";
    std::fs::write(&config, format!("{usual}{more}")).expect("the configuration can be written");
    cloud.signal(rustix::process::Signal::TERM);
    start_again(&mut cloud);
    cloud
}

fn start_again(cloud: &mut Cloud) {
    let config = cloud.data_dir().join("test.toml");
    let config = config.to_str().expect("the path is text").to_owned();
    cloud.try_resume(&["--no-example", "--config", &config]).expect("the server starts again");
}

async fn deploy(cloud: &Cloud, name: &str, process: &str, annotations: Value) {
    let function = json!({
        "service": name, "image": IMAGE, "envProcess": process, "annotations": annotations,
    });
    let answer = cloud.openfaas("POST", "/system/functions", &function.to_string()).await;
    assert!(matches!(answer.status, 200 | 202), "{}: {}", answer.status, answer.body);
}

async fn submit(cloud: &Cloud, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    cloud.send("POST", "127.0.0.1", &format!("/async-function/{path}"), headers, body).await
}

/// Waits until the call is in the state.
async fn ends(cloud: &Cloud, id: &str, state: &str) -> Value {
    eventually(&format!("call {id} is {state}"), LIMIT, async || {
        let call = cloud.json(&["calls", "show", id]);
        (call["state"] == state).then_some(call)
    })
    .await
}

/// Takes callbacks and remembers their call ids and bodies.
struct Receiver {
    address: SocketAddr,
    told: Arc<Mutex<HashMap<String, Vec<String>>>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let told: Arc<Mutex<HashMap<String, Vec<String>>>> = Arc::default();
        let kept = Arc::clone(&told);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some((id, body)) = take(stream) {
                    kept.lock().expect("no thread panics").entry(id).or_default().push(body);
                }
            }
        });
        Self { address, told }
    }

    fn told(&self) -> HashMap<String, Vec<String>> {
        self.told.lock().expect("no thread panics").clone()
    }
}

/// Reads one request and answers it; nothing when it ends early, as when the server is killed.
fn take(mut stream: TcpStream) -> Option<(String, String)> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let header = |name: &str| {
                let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name))?;
                Some(line.split_once(':')?.1.trim().to_owned())
            };
            let length: usize = header("content-length")?.parse().ok()?;
            if body.len() >= length {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
                return Some((header("x-call-id")?, body.to_owned()));
            }
        }
        match stream.read(&mut piece).ok()? {
            0 => return None,
            count => request.extend_from_slice(&piece[..count]),
        }
    }
}

#[tokio::test]
async fn a_call_is_accepted_made_shown_and_told_of() {
    let cloud = cloud();
    let receiver = Receiver::start();
    deploy(&cloud, "echo", "cat", json!({})).await;
    let unknown = submit(&cloud, "nobody", &[], "x").await;
    assert_eq!(unknown.status, 404, "{}", unknown.body);
    let inside =
        submit(&cloud, "echo", &[("x-callback-url", "http://169.254.169.254/")], "x").await;
    assert_eq!(inside.status, 400, "{}", inside.body);

    let url = format!("http://{}/hook", receiver.address);
    let accepted = submit(&cloud, "echo/a%2Fb?c=d", &[("x-callback-url", &url)], "hello").await;
    assert_eq!((accepted.status, accepted.body.as_str()), (202, ""));
    let id = accepted.header("x-call-id").to_owned();
    let call = ends(&cloud, &id, "done").await;
    assert_eq!((&call["status"], &call["attempts"]), (&json!(200), &json!(1)));
    assert_eq!(call["path"], "/a%2Fb?c=d");
    assert_eq!(cloud.run_ok(&["calls", "result", &id]), "hello");
    eventually("the receiver is told", LIMIT, async || {
        receiver.told().get(&id).is_some_and(|told| *told == ["hello"]).then_some(())
    })
    .await;
    assert!(cloud.run_ok(&["calls", "list"]).contains(&id));
    let shown = cloud.run_ok(&["calls", "show", &id]);
    assert!(shown.contains("delivered") || shown.contains("pending"), "{shown}");
    let metrics = cloud.openfaas("GET", "/metrics", "").await.body;
    assert!(metrics.contains("queue_worker_messages_submitted_total"), "{metrics}");
}

#[tokio::test]
async fn a_dead_letter_is_listed_made_again_and_discarded_from_the_command_line() {
    let cloud = cloud();
    let once = json!({"com.openfaas.retry.attempts": "1", "com.openfaas.retry.min_wait": "50ms"});
    deploy(&cloud, "fails", "false", once).await;
    let id = submit(&cloud, "fails", &[], "x").await.header("x-call-id").to_owned();
    let call = ends(&cloud, &id, "dead").await;
    assert_eq!((&call["status"], &call["attempts"]), (&json!(500), &json!(2)));
    let listed = cloud.run_ok(&["calls", "list", "--dead", "--function", "fails"]);
    assert!(listed.contains(&id) && listed.contains("the function answered 500"), "{listed}");
    cloud.run_ok(&["calls", "redrive", &id]);
    ends(&cloud, &id, "dead").await;
    let all = cloud.json(&["calls", "redrive", "--all", "--function", "fails"]);
    assert_eq!(all["calls"], 1);
    ends(&cloud, &id, "dead").await;
    cloud.run_ok(&["calls", "discard", &id]);
    let gone = cloud.run(&["calls", "show", &id]);
    assert_eq!(gone.code, Some(1));
    assert!(gone.stderr.contains("there is no call"), "{}", gone.stderr);
}

#[tokio::test]
async fn a_call_that_runs_is_cancelled() {
    let cloud = cloud();
    deploy(&cloud, "sleeps", "sleep 30", json!({})).await;
    let id = submit(&cloud, "sleeps", &[], "").await.header("x-call-id").to_owned();
    ends(&cloud, &id, "running").await;
    cloud.run_ok(&["calls", "cancel", &id]);
    assert_eq!(cloud.json(&["calls", "show", &id])["state"], "cancelled");
    let again = cloud.run(&["calls", "cancel", &id]);
    assert_eq!(again.code, Some(1), "{}", again.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_accepted_call_is_lost_when_the_server_is_killed_again_and_again() {
    let mut cloud = cloud();
    let receiver = Receiver::start();
    deploy(&cloud, "echo", "cat", json!({})).await;
    let url = Arc::new(format!("http://{}/", receiver.address));
    let shared = Arc::new(cloud);
    let mut submissions = JoinSet::new();
    for worker in 0..8 {
        let (cloud, url) = (Arc::clone(&shared), Arc::clone(&url));
        submissions.spawn(async move {
            let mut accepted = Vec::new();
            for number in 0..CALLS / 8 {
                let body = format!("body {worker} {number}");
                let headers = [("x-callback-url", url.as_str())];
                let answer = submit(&cloud, "echo", &headers, &body).await;
                assert_eq!(answer.status, 202, "{}", answer.body);
                accepted.push((answer.header("x-call-id").to_owned(), body));
            }
            accepted
        });
    }
    let accepted: HashMap<String, String> =
        submissions.join_all().await.into_iter().flatten().collect();
    assert_eq!(accepted.len(), CALLS, "every call has an id of its own");
    cloud = Arc::into_inner(shared).expect("nobody submits any more");
    for kill in 0..KILLS {
        let enough = CALLS * (kill + 1) / (KILLS + 2);
        eventually("some calls are made", LIMIT, async || {
            (receiver.told().len() >= enough).then_some(())
        })
        .await;
        cloud.kill();
        start_again(&mut cloud);
    }
    eventually("every call is told of", LIMIT, async || {
        (receiver.told().len() >= CALLS).then_some(())
    })
    .await;
    let told = receiver.told();
    assert_eq!(
        told.keys().collect::<BTreeSet<_>>(),
        accepted.keys().collect::<BTreeSet<_>>(),
        "a call that was made twice has the id it was accepted with"
    );
    for (id, body) in &accepted {
        assert!(told[id].iter().all(|told| told == body), "call {id} was told {:?}", told[id]);
    }
    let dead = cloud.json(&["calls", "list", "--dead"]);
    assert_eq!(dead, json!([]));
}

#[tokio::test]
async fn calls_kept_by_nats_are_made_told_of_and_outlive_the_server_and_the_broker() {
    let mut nats = Nats::start();
    let backend = format!("backend = 'nats'\n[queue.nats]\nservers = ['{}']\n", nats.url());
    let mut cloud = cloud_with(&backend);
    let receiver = Receiver::start();
    let url = format!("http://{}/hook", receiver.address);
    let told = async |id: &str, body: &str| {
        eventually(&format!("the receiver is told {body} of {id}"), LIMIT, async || {
            receiver.told().get(id)?.iter().any(|told| told == body).then_some(())
        })
        .await;
    };

    // Made, with a result by its id, and told of.
    deploy(&cloud, "echo", "cat", json!({})).await;
    assert_eq!(submit(&cloud, "nobody", &[], "x").await.status, 404);
    let own = [("x-call-id", "my-call"), ("x-callback-url", url.as_str())];
    let accepted = submit(&cloud, "echo/a%2Fb?c=d", &own, "hello").await;
    assert_eq!((accepted.status, accepted.header("x-call-id")), (202, "my-call"));
    let call = ends(&cloud, "my-call", "done").await;
    assert_eq!((&call["status"], &call["path"]), (&json!(200), &json!("/a%2Fb?c=d")));
    assert_eq!(cloud.run_ok(&["calls", "result", "my-call"]), "hello");
    told("my-call", "hello").await;
    // One whose body lies apart from its message.
    let long = "long ".repeat(40 << 10);
    let id = submit(&cloud, "echo", &[], &long).await.header("x-call-id").to_owned();
    ends(&cloud, &id, "done").await;
    assert!(cloud.run_ok(&["calls", "result", &id]) == long);

    // A dead letter, whose function is mended, is made again by a server that was killed meanwhile.
    let once = json!({"com.openfaas.retry.attempts": "1", "com.openfaas.retry.min_wait": "50ms"});
    deploy(&cloud, "mended", "false", once.clone()).await;
    let callback = [("x-callback-url", url.as_str())];
    let letter = submit(&cloud, "mended", &callback, "again").await.header("x-call-id").to_owned();
    let dead = ends(&cloud, &letter, "dead").await;
    assert_eq!((&dead["status"], &dead["attempts"]), (&json!(500), &json!(2)));
    deploy(&cloud, "slow", "sleep 3", json!({})).await;
    let running = submit(&cloud, "slow", &callback, "").await.header("x-call-id").to_owned();
    ends(&cloud, &running, "running").await;
    cloud.kill();
    start_again(&mut cloud);
    assert!(cloud.run_ok(&["calls", "list", "--dead"]).contains(&letter));
    deploy(&cloud, "mended", "cat", once).await;
    eventually("the mended function answers", LIMIT, async || {
        let answer = cloud.send("POST", "127.0.0.1", "/function/mended", &[], "x").await;
        (answer.status == 200).then_some(())
    })
    .await;
    cloud.run_ok(&["calls", "redrive", &letter]);
    ends(&cloud, &letter, "done").await;
    told(&letter, "again").await;
    // The call that was under way when the server was killed is made again under its own id.
    assert!(ends(&cloud, &running, "done").await["attempts"].as_u64() > Some(1));
    told(&running, "").await;

    // Without the broker nothing is taken; what it has taken is there when it is back.
    deploy(&cloud, "waits", "false", json!({})).await;
    let kept = submit(&cloud, "waits", &[], "kept").await.header("x-call-id").to_owned();
    nats.kill();
    let refused = eventually("calls are refused", LIMIT, async || {
        let answer = submit(&cloud, "echo", &[], "x").await;
        (answer.status != 202).then_some(answer)
    })
    .await;
    assert_eq!((refused.status, refused.header("retry-after").is_empty()), (503, false));
    nats.resume();
    eventually("calls are taken", LIMIT, async || {
        (submit(&cloud, "echo", &[], "x").await.status == 202).then_some(())
    })
    .await;
    let found = cloud.json(&["calls", "show", &kept]);
    assert_eq!(found["function"], "waits.openfaas-fn");
    assert_eq!(found["body_length"], 4);
}
