//! Modes streaming and serializing: a process for each call.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use crate::support::*;

fn process_is_gone(pid_file: &std::path::Path) -> bool {
    let pid = std::fs::read_to_string(pid_file).unwrap();
    !std::path::Path::new("/proc").join(pid.trim()).exists()
}

#[test]
fn streaming_passes_stdin_and_stdout_with_the_content_type_and_no_duration() {
    let watchdog = Watchdog::start(&[("fprocess", "cat"), ("content_type", "text/x-mine")]);
    let reply = watchdog.post("/", "hello");
    assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
    assert_eq!(reply.header("content-type").unwrap(), "text/x-mine");
    assert_eq!(reply.header("x-duration-seconds"), None);
    watchdog.wait_line("POST / - 200 - ContentLength: 5B (0.");
}

#[test]
fn streaming_passes_each_chunk_as_it_comes() {
    let watchdog = Watchdog::start(&[("fprocess", "cat")]);
    let mut stream = watchdog.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\none\r\n").unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"3\r\none\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "3\r\ntwo\r\n0\r\n\r\n");
}

#[test]
fn the_request_is_in_the_environment_beside_the_containers_own() {
    let watchdog = Watchdog::start(&[("fprocess", "env"), ("my_own", "1")]);
    let reply =
        watchdog.get_with("/p%20q?testing=1", "X-Call-Id: c\r\nProxy: http://evil.example\r\n");
    let lines: Vec<_> = reply.body.lines().collect();
    for expected in [
        "Http_Method=GET",
        "Http_Query=testing=1",
        "Http_Path=/p q",
        "Http_X_Call_Id=c",
        "my_own=1",
    ] {
        assert!(lines.contains(&expected), "{expected} in {lines:#?}");
    }
    for absent in ["Http_Proxy", "Http_Host"] {
        assert!(!reply.body.contains(absent), "{lines:#?}");
    }
}

#[test]
fn quotes_in_fprocess_count_when_asked_for() {
    let process = "sh -c 'echo \"a  b\"'";
    let watchdog = Watchdog::start(&[("fprocess", process), ("updraft_quoted_fprocess", "true")]);
    assert_eq!(watchdog.get("/").body, "a  b\n");
    let reply = Watchdog::start(&[("fprocess", process)]).get("/");
    assert_eq!(reply.status, 500);
}

#[test]
fn a_head_request_lets_the_process_end_by_itself() {
    let watchdog = Watchdog::script("echo begun; sleep 0.1; touch $TMPDIR/finished", &[]);
    let reply = watchdog.send("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    assert!(watchdog.folder.path().join("finished").exists());
}

#[test]
fn streaming_failures_before_output_have_a_status() {
    let reply = Watchdog::script("echo why >&2; exit 3", &[]).get("/");
    assert_eq!((reply.status, reply.body.as_str()), (500, "exit status 3"));
    let reply = Watchdog::script("kill -KILL $$", &[]).get("/");
    assert_eq!((reply.status, reply.body.as_str()), (500, "signal: killed"));
    let reply = Watchdog::start(&[("fprocess", "/no/such/program")]).get("/");
    assert_eq!(reply.status, 500);
    assert!(reply.body.starts_with("cannot start /no/such/program: "), "{}", reply.body);
    let reply = Watchdog::script("true", &[]).get("/");
    assert_eq!((reply.status, reply.body.as_str(), reply.complete), (200, "", true));
}

#[test]
fn streaming_failures_after_output_cut_the_connection() {
    let watchdog = Watchdog::script("echo begun; exit 3", &[]);
    let reply = watchdog.get("/");
    assert_eq!((reply.status, reply.body.as_str(), reply.complete), (200, "begun\n", false));
    watchdog.wait_line("GET / - 500 - ");
}

#[test]
fn exec_timeout_kills_the_process_with_all_it_has_started() {
    for (mode, status) in [("streaming", 504), ("serializing", 500)] {
        let watchdog = Watchdog::script(
            "sleep 1000 & echo $! > $TMPDIR/pid; wait",
            &[("exec_timeout", "2s"), ("mode", mode)],
        );
        let reply = watchdog.get("/");
        assert_eq!((reply.status, reply.body.as_str()), (status, "signal: killed"), "{mode}");
        wait_until("the grandchild is gone", || {
            process_is_gone(&watchdog.folder.path().join("pid"))
        });
    }
}

#[test]
fn a_caller_that_goes_away_takes_the_process_along() {
    let watchdog = Watchdog::script(
        "sleep 1000 & echo $! > $TMPDIR/pid.new; mv $TMPDIR/pid.new $TMPDIR/pid; wait",
        &[],
    );
    let mut stream = watchdog.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let pid_file = watchdog.folder.path().join("pid");
    wait_until("the process runs", || pid_file.exists());
    drop(stream);
    wait_until("the process is gone", || process_is_gone(&pid_file));
}

#[test]
fn a_request_that_breaks_off_never_looks_whole_to_the_process() {
    let watchdog =
        Watchdog::script("cat > /dev/null; touch $TMPDIR/finished", &[("read_timeout", "2s")]);
    let mut stream = watchdog.connect();
    stream
        .write_all(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nConnection: close\r\n\r\nabc",
        )
        .unwrap();
    assert_eq!(Reply::read(stream).status, 500);
    assert!(!watchdog.folder.path().join("finished").exists());
}

#[test]
fn what_does_not_fit_an_environment_is_431() {
    let watchdog = Watchdog::start(&[("fprocess", "cat")]);
    let value = "v".repeat(300 * 1024);
    assert_eq!(watchdog.get_with("/", &format!("X-Large: {value}\r\n")).status, 431);
    assert_eq!(watchdog.get("/%00").status, 431);
    // Written out it is no HTTP.
    assert_eq!(watchdog.get_with("/", "X-Nul: a\0b\r\n").status, 400);
    assert_eq!(watchdog.get("/").status, 200);
}

#[test]
fn serializing_answers_whole_with_length_and_duration() {
    let watchdog = Watchdog::start(&[
        ("fprocess", "cat"),
        ("mode", "serializing"),
        ("content_type", "text/plain"),
    ]);
    let reply = watchdog.post("/", "hello");
    assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
    assert_eq!(reply.header("content-type").unwrap(), "text/plain");
    assert_eq!(reply.header("content-length").unwrap(), "5");
    assert!(reply.header("x-duration-seconds").is_some());
    // More than any pipe holds, both ways.
    let large = "x".repeat(2_000_000);
    assert_eq!(watchdog.post("/", &large).body, large);
}

#[test]
fn serializing_failures_are_500_with_the_reason_and_stderr_in_the_log() {
    let watchdog =
        Watchdog::script("echo lost; echo trouble >&2; exit 1", &[("mode", "serializing")]);
    let reply = watchdog.get("/");
    assert_eq!((reply.status, reply.body.as_str()), (500, "exit status 1"));
    assert!(reply.header("x-duration-seconds").is_some());
    watchdog.wait_line(" stderr: trouble");
    watchdog.wait_line("GET / - 500 - ");
}

#[test]
fn serializing_holds_no_more_than_it_may() {
    let watchdog = Watchdog::start(&[
        ("fprocess", "cat"),
        ("mode", "serializing"),
        ("updraft_max_buffer", "4"),
    ]);
    assert_eq!(watchdog.post("/", "hello").status, 413);
    let reply =
        Watchdog::script("echo hello", &[("mode", "serializing"), ("updraft_max_buffer", "4")])
            .get("/");
    assert_eq!(reply.status, 500);
}

#[test]
fn a_process_that_reads_nothing_is_no_failure() {
    let large = "x".repeat(1_000_000);
    for mode in ["streaming", "serializing"] {
        let reply = Watchdog::script("echo done", &[("mode", mode)]).post("/", &large);
        assert_eq!((reply.status, reply.body.as_str()), (200, "done\n"), "{mode}");
    }
}

#[test]
fn without_exec_timeout_a_process_may_take_its_time() {
    let watchdog = Watchdog::script("sleep 0.3; echo done", &[("exec_timeout", "0")]);
    let begun = Instant::now();
    assert_eq!(watchdog.get("/").body, "done\n");
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[test]
fn static_mode_serves_files_over_http() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("large.txt"), "0123456789".repeat(100_000)).unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let watchdog = Watchdog::start(&[("mode", "static"), ("static_path", &path)]);
    let reply = watchdog.get("/large.txt");
    assert_eq!((reply.status, reply.body.len(), reply.complete), (200, 1_000_000, true));
    let reply = watchdog.get_with("/large.txt", "Range: bytes=999995-\r\n");
    assert_eq!((reply.status, reply.body.as_str()), (206, "56789"));
    let reply = watchdog.send("HEAD /large.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(
        (reply.header("content-length").unwrap().as_str(), reply.body.as_str()),
        ("1000000", "")
    );
    assert_eq!(watchdog.get("/../../../../etc/passwd").status, 404);
    assert!(!watchdog.lines().iter().any(|line| line.contains("large.txt")));
}
