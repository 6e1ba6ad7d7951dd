//! Mode inproc: the handler is compiled in, and everything around it is as in mode http.

use std::io::Write as _;

use crate::support::*;

#[test]
fn a_compiled_in_handler_answers_with_the_whole_request_before_it() {
    let watchdog = Watchdog::with_a_handler(&[("log_callid", "true")]);
    let reply = watchdog.send(
        "PATCH /a%2Fb?x=%20 HTTP/1.1\r\nHost: me.example\r\nX-Call-Id: 7\r\nContent-Length: 2\r\n\
         Connection: close\r\n\r\nhi",
    );
    assert_eq!(reply.status, 202);
    assert!(reply.body.starts_with("PATCH /a%2Fb?x=%20\n"), "{}", reply.body);
    assert!(reply.body.contains("host: me.example\n") && reply.body.ends_with("\nhi"));
    assert!(reply.header("x-duration-seconds").is_some());
    let size = reply.body.len();
    let line = watchdog.wait_line("PATCH /a%2Fb?x=%20 - 202 - ");
    assert!(line.contains(&format!("ContentLength: {size}B (0.")), "{line}");
    assert!(line.ends_with(" [7]"), "{line}");
    watchdog.wait_line("Watchdog mode: inproc\tfprocess: \"\"");
}

#[test]
fn a_compiled_in_handler_needs_no_process_and_obeys_health_limits_and_sigterm() {
    let mut watchdog =
        Watchdog::with_a_handler(&[("max_inflight", "1"), ("healthcheck_interval", "0")]);
    assert!(watchdog.lock_file().exists());
    assert_eq!(watchdog.get("/_/ready").status, 200);
    let mut slow = watchdog.connect();
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until("the one place is taken", || watchdog.get("/_/ready").status == 429);
    assert_eq!(watchdog.get("/").status, 429);
    drop(slow);
    wait_until("the handler is dropped with its caller", || watchdog.get("/").status == 202);
    watchdog.terminate();
    assert_eq!(watchdog.wait_exit(), Some(0));
    assert!(!watchdog.lock_file().exists());
}

#[test]
fn a_compiled_in_handler_that_is_too_slow_or_panics_has_a_status_and_ends_nothing_else() {
    let watchdog = Watchdog::with_a_handler(&[("exec_timeout", "300ms")]);
    for (path, status) in [("/slow", 504), ("/panic", 500)] {
        let reply = watchdog.get(path);
        assert_eq!((reply.status, reply.body.as_str()), (status, ""), "{path}");
        assert_eq!(reply.header("x-openfaas-internal").unwrap(), "of-watchdog");
    }
    watchdog.wait_line("error: the handler panicked");
    assert_eq!(watchdog.get("/").status, 202);
    // The time is over in the middle of the answer.
    let reply = watchdog.get("/endless");
    assert_eq!((reply.status, reply.body.as_str(), reply.complete), (200, "first", false));
}

#[test]
fn the_binary_without_a_handler_refuses_the_mode_and_says_what_to_do() {
    let (code, text) = run_to_end(&[], &[("mode", "inproc")]);
    assert_eq!(code, Some(1));
    assert!(text.contains("mode inproc runs a handler compiled into the watchdog"), "{text}");
}
