//! What can be seen from outside: metrics, and log lines as JSON.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};

use crate::support::*;

/// The metrics page; empty while nobody serves it.
fn page(port: u16) -> String {
    fetch(port, "/metrics").body
}

fn fetch(port: u16, path: &str) -> Reply {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    Reply::read(stream)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn metrics_count_calls_by_code_and_method_but_no_probes() {
    let port = free_port();
    let text = port.to_string();
    let watchdog = Watchdog::script(
        "[ \"$Http_Path\" = /ok ] && echo hi",
        &[("mode", "serializing"), ("metrics_port", &text)],
    );
    watchdog.wait_line(&format!("Metrics listening on port: {port}"));
    watchdog.wait_healthy();
    assert_eq!(watchdog.get("/ok").status, 200);
    assert_eq!(watchdog.get("/bad").status, 500);
    assert_eq!(watchdog.post("/ok", "x").status, 200);
    watchdog.get("/_/ready");
    wait_until("all three calls are counted", || {
        page(port).matches("_requests_total{").count() == 3
    });
    let page = page(port);
    for line in [
        "http_requests_total{code=\"200\",method=\"get\"} 1",
        "http_requests_total{code=\"500\",method=\"get\"} 1",
        "http_requests_total{code=\"200\",method=\"post\"} 1",
        "http_request_duration_seconds_count{code=\"200\",method=\"get\"} 1",
        "http_requests_in_flight 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in {page}");
    }
    assert!(page.contains("\nupdraft_function_start_seconds 0."), "{page}");
    let reply = fetch(port, "/metrics");
    assert!(reply.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert_eq!(fetch(port, "/").status, 404);
}

#[test]
fn metrics_show_calls_under_way_and_refused_ones() {
    let port = free_port();
    let text = port.to_string();
    let watchdog = Watchdog::script(
        "while [ ! -e $TMPDIR/go ]; do sleep 0.01; done; echo done",
        &[("max_inflight", "1"), ("metrics_port", &text)],
    );
    watchdog.wait_healthy();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| watchdog.get("/"));
        wait_until("one is in flight", || page(port).contains("\nhttp_requests_in_flight 1\n"));
        assert_eq!(watchdog.get("/").status, 429);
        assert!(page(port).contains("http_requests_total{code=\"429\",method=\"get\"} 1\n"));
        std::fs::write(watchdog.folder.path().join("go"), "").unwrap();
        assert_eq!(first.join().unwrap().body, "done\n");
    });
    wait_until("none is in flight", || page(port).contains("\nhttp_requests_in_flight 0\n"));
}

#[test]
fn a_metrics_port_in_use_ends_the_start_with_a_reason() {
    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, text) = run_to_end(&[], &[("fprocess", "cat"), ("metrics_port", &port)]);
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("cannot serve metrics on port {port}: ")), "{text}");
    assert!(text.contains("set `metrics_port`"), "{text}");
}

/// Every line so far as an object.
fn objects(watchdog: &Watchdog) -> Vec<serde_json::Value> {
    let parse = |line: &String| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
    watchdog.lines().iter().map(parse).collect()
}

#[test]
fn json_logs_are_one_object_a_line_with_the_ids_of_their_call() {
    let watchdog =
        Watchdog::script("echo '{\"a\":1}' >&2; echo hi; exit 3", &[("log_format", "json")]);
    watchdog.wait_line("\"message\":\"Listening on port: ");
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    watchdog.get_with(
        "/a?b",
        &format!("X-Call-Id: c-1\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\n"),
    );
    watchdog.wait_line("\"source\":\"access\"");
    watchdog.wait_line("\"source\":\"stderr\"");
    let all = objects(&watchdog);
    let of = |source: &str| all.iter().find(|line| line["source"] == source).unwrap();
    let access = of("access");
    for (field, expected) in [
        ("method", "GET".into()),
        ("path", "/a?b".into()),
        ("status", 500.into()),
        ("level", "error".into()),
        ("call_id", "c-1".into()),
        ("trace_id", serde_json::Value::from(trace)),
    ] {
        assert_eq!(access[field], expected, "{access}");
    }
    let line = of("stderr");
    assert_eq!((&line["message"], &line["call_id"]), (&"{\"a\":1}".into(), &"c-1".into()));
    assert!(all.iter().all(|line| line["time"].as_str().unwrap().ends_with('Z')));
}

#[test]
fn the_callers_trace_reaches_the_function() {
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = format!("traceparent: {parent}\r\ntracestate: a=b\r\n");
    let port = function(answer);
    let reply = Watchdog::before(port, &[]).get_with("/", &headers);
    assert_eq!(header(&reply.body, "traceparent").unwrap(), parent);
    assert_eq!(header(&reply.body, "tracestate").unwrap(), "a=b");
    let reply = Watchdog::start(&[("fprocess", "env")]).get_with("/", &headers);
    assert!(reply.body.contains(&format!("Http_Traceparent={parent}\n")), "{}", reply.body);
}

#[test]
fn an_unknown_log_format_ends_the_start_with_a_reason() {
    let (code, text) = run_to_end(&[], &[("fprocess", "cat"), ("log_format", "xml")]);
    assert_eq!(code, Some(1));
    assert!(text.contains("unknown log_format `xml`"), "{text}");
}
