//! Mode classic, row by row of the guide's table.

use std::io::Write as _;

use crate::support::*;

fn classic(script: &str, variables: &[(&str, &str)]) -> Watchdog {
    let mut all = vec![("mode", "classic")];
    all.extend_from_slice(variables);
    Watchdog::script(script, &all)
}

fn request(method: &str) -> String {
    format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

fn has_line(watchdog: &Watchdog, text: &str) -> bool {
    watchdog.lines().iter().any(|line| line.contains(text))
}

#[test]
fn a_call_forks_and_logs_both_its_lines_and_no_access_line() {
    let watchdog = classic("cat", &[]);
    let reply = watchdog.post("/", "hello");
    assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
    let duration = reply.header("x-duration-seconds").unwrap();
    assert_eq!(duration.split_once('.').unwrap().1.len(), 6, "{duration}");
    let line = watchdog.wait_line("Wrote 5 Bytes - Duration: 0.");
    assert!(line.ends_with('s'), "{line}");
    watchdog.wait_line("Forking fprocess.");
    assert!(!has_line(&watchdog, "ContentLength:"));
}

#[test]
fn errors_are_part_of_the_answer_unless_combine_output_is_off() {
    let script = "echo one; echo two >&2; echo three";
    assert_eq!(classic(script, &[]).get("/").body, "one\ntwo\nthree\n");
    let watchdog = classic(script, &[("combine_output", "false")]);
    assert_eq!(watchdog.get("/").body, "one\nthree\n");
    watchdog.wait_line("stderr: two");
}

#[test]
fn cgi_headers_tell_the_request_with_host_and_length() {
    let watchdog = classic("env", &[("my_own", "1")]);
    let body = "testing";
    let reply = watchdog.send(&format!(
        "POST /p%20q/r?testing=1&x HTTP/1.1\r\nHost: function.example\r\nX-Custom: c\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    ));
    let lines: Vec<_> = reply.body.lines().collect();
    for expected in [
        "Http_Method=POST",
        "Http_Path=/p q/r",
        "Http_Query=testing=1&x",
        "Http_Host=function.example",
        "Http_X_Custom=c",
        "Http_ContentLength=7",
        "Http_Content_Length=7",
        "my_own=1",
    ] {
        assert!(lines.contains(&expected), "{expected} in {lines:#?}");
    }
    let reply = watchdog.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
         3\r\nabc\r\n0\r\n\r\n",
    );
    for expected in ["Http_Transfer_Encoding=chunked\n", "Http_Content_Length=3\n"] {
        assert!(reply.body.contains(expected), "{}", reply.body);
    }
}

#[test]
fn without_cgi_headers_the_environment_is_the_containers_own() {
    let watchdog = classic("env", &[("cgi_headers", "false"), ("my_own", "1")]);
    let reply = watchdog.get_with("/?q=1", "X-Custom: c\r\n");
    assert!(reply.body.contains("my_own=1\n"), "{}", reply.body);
    assert!(!reply.body.contains("Http_"), "{}", reply.body);
}

#[test]
fn marshal_request_puts_headers_and_body_on_the_input_as_json() {
    let watchdog = classic("cat", &[("marshal_request", "true")]);
    let reply = watchdog.send(
        "POST / HTTP/1.1\r\nHost: a\r\nX-Two: 1\r\nX-Two: 2\r\nContent-Length: 2\r\n\
         Connection: close\r\n\r\nhi",
    );
    assert_eq!(
        reply.body,
        r#"{"header":{"Connection":["close"],"Content-Length":["2"],"X-Two":["1","2"]},"body":{"raw":"aGk="}}"#
    );
}

#[test]
fn write_debug_logs_the_output_and_a_shorter_line() {
    let watchdog = classic("echo printed", &[("write_debug", "true")]);
    watchdog.get("/");
    let line = watchdog.wait_line("Duration: 0.");
    assert!(!line.contains("Wrote"), "{line}");
    watchdog.wait_line("out: printed");
}

#[test]
fn debug_headers_logs_both_ways_and_keeps_secrets() {
    let watchdog = classic("echo hi", &[("debug_headers", "true"), ("content_type", "text/x")]);
    watchdog.get_with("/", "X-Two: 1\r\nX-Two: 2\r\nAuthorization: Bearer hunter2\r\n");
    watchdog.wait_line("[in] X-Two=[1 2]");
    watchdog.wait_line("[in] Authorization=[…]");
    watchdog.wait_line("[out] Content-Type=[text/x]");
    watchdog.wait_line("[out] X-Duration-Seconds=[0.");
    assert!(!has_line(&watchdog, "hunter2"));
}

#[test]
fn the_content_type_is_the_set_one_else_the_requests_else_sniffed() {
    let typed = "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: text/x-asked\r\n\
                 Content-Length: 2\r\nConnection: close\r\n\r\nhi";
    let content_type = |reply: &Reply| reply.header("content-type");
    let watchdog = classic("cat", &[("content_type", "text/x-set")]);
    assert_eq!(content_type(&watchdog.send(typed)).unwrap(), "text/x-set");
    let watchdog = classic("cat", &[]);
    assert_eq!(content_type(&watchdog.send(typed)).unwrap(), "text/x-asked");
    assert_eq!(content_type(&watchdog.post("/", "hi")).unwrap(), "text/plain; charset=utf-8");
    assert_eq!(content_type(&watchdog.post("/", "<p>hi")).unwrap(), "text/html; charset=utf-8");
    assert_eq!(content_type(&watchdog.get("/")), None);
}

#[test]
fn exec_timeout_is_none_by_default_and_else_kills_the_whole_group_with_408() {
    let watchdog =
        classic("sleep 1000 & echo $! > $TMPDIR/pid; echo begun; wait", &[("exec_timeout", "2s")]);
    watchdog.wait_line("hard: 2s");
    let reply = watchdog.get("/");
    assert_eq!((reply.status, reply.body.as_str()), (408, "Killed process.\n"));
    assert_eq!(reply.header("x-openfaas-internal"), None);
    let pid = std::fs::read_to_string(watchdog.folder.path().join("pid")).unwrap();
    wait_until("the grandchild is gone", || {
        !std::path::Path::new("/proc").join(pid.trim()).exists()
    });
    classic("true", &[]).wait_line("hard: 0s");
}

#[test]
fn a_process_that_fails_is_500_with_its_end_and_its_output() {
    let reply = classic("echo out; echo err >&2; exit 3", &[]).get("/");
    assert_eq!((reply.status, reply.body.as_str()), (500, "exit status 3\nout\nerr\n"));
    assert_eq!(reply.header("x-openfaas-internal"), None);
    let reply = classic("kill -KILL $$", &[]).get("/");
    assert_eq!((reply.status, reply.body.as_str()), (500, "signal: killed\n"));
    let watchdog = Watchdog::start(&[("mode", "classic"), ("fprocess", "/no/such/program")]);
    let reply = watchdog.get("/");
    assert_eq!(reply.status, 500);
    assert!(reply.body.starts_with("cannot start /no/such/program: "), "{}", reply.body);
    assert!(reply.body.ends_with('\n'), "{}", reply.body);
}

#[test]
fn a_request_that_breaks_off_is_400_and_starts_no_process() {
    let watchdog = classic("touch $TMPDIR/started", &[("read_timeout", "2s")]);
    let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
    let reply = watchdog.send(&format!("{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n"));
    assert_eq!(reply.status, 400);
    let mut stream = watchdog.connect();
    stream.write_all(format!("{head}Content-Length: 10\r\n\r\nabc").as_bytes()).unwrap();
    assert_eq!(Reply::read(stream).status, 400);
    assert!(!watchdog.folder.path().join("started").exists());
}

#[test]
fn five_methods_are_taken_and_head_and_options_when_asked_for() {
    let watchdog = classic("echo $Http_Method", &[]);
    for method in ["POST", "PUT", "PATCH", "DELETE", "GET"] {
        let reply = watchdog.send(&request(method));
        assert_eq!((reply.status, reply.body), (200, format!("{method}\n")));
    }
    for method in ["HEAD", "OPTIONS", "PROPFIND"] {
        let reply = watchdog.send(&request(method));
        assert_eq!((reply.status, reply.body.as_str()), (405, ""), "{method}");
    }
    let watchdog = classic("echo $Http_Method", &[("updraft_all_methods", "true")]);
    assert_eq!(watchdog.send(&request("OPTIONS")).body, "OPTIONS\n");
    let reply = watchdog.send(&request("HEAD"));
    assert_eq!((reply.status, reply.header("content-length").as_deref()), (200, Some("5")));
    assert_eq!(watchdog.send(&request("PROPFIND")).status, 405);
}

#[test]
fn a_get_without_a_body_and_one_with_both_reach_the_process() {
    let watchdog = classic("cat", &[]);
    assert_eq!(watchdog.get("/").body, "");
    let reply = watchdog
        .send("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
    assert_eq!((reply.status, reply.body.as_str()), (200, "hi"));
}

#[test]
fn readiness_is_answered_here_and_runs_no_process() {
    let watchdog = classic("touch $TMPDIR/started", &[("max_inflight", "1")]);
    watchdog.wait_healthy();
    assert_eq!(watchdog.get("/_/ready").status, 200);
    assert!(!watchdog.folder.path().join("started").exists());
}

#[test]
fn the_call_over_max_inflight_is_429_here_too() {
    let watchdog = classic(
        "touch $TMPDIR/started; while [ ! -e $TMPDIR/go ]; do sleep 0.01; done",
        &[("max_inflight", "1")],
    );
    std::thread::scope(|scope| {
        let first = scope.spawn(|| watchdog.get("/"));
        wait_until("it runs", || watchdog.folder.path().join("started").exists());
        assert_eq!(watchdog.get("/").status, 429);
        std::fs::write(watchdog.folder.path().join("go"), "").unwrap();
        assert_eq!(first.join().unwrap().status, 200);
    });
}

#[test]
fn neither_body_is_held_beyond_the_limit() {
    let limit = ("updraft_max_buffer", "4");
    assert_eq!(classic("cat", &[limit]).post("/", "hello").status, 413);
    assert_eq!(classic("echo hello", &[limit]).get("/").status, 500);
}

#[test]
fn what_does_not_fit_an_environment_is_431_unless_there_is_none() {
    let watchdog = classic("cat", &[]);
    assert_eq!(watchdog.get("/%00").status, 431);
    assert_eq!(classic("cat", &[("cgi_headers", "false")]).get("/%00").status, 200);
}

#[test]
fn a_write_timeout_of_zero_is_no_limit() {
    let watchdog = classic("sleep 0.2; echo done", &[("write_timeout", "0")]);
    watchdog.wait_line("write: 0s");
    assert_eq!(watchdog.get("/").body, "done\n");
}
