//! Mode http: what reaches the function, what comes back, and what failures look like.

use std::io::{BufReader, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::*;

fn echo_head() -> u16 {
    function(|stream, head| {
        read_sized(stream, head);
        answer(stream, head)
    })
}

#[test]
fn method_raw_uri_host_and_all_headers_reach_the_function() {
    let watchdog = Watchdog::before(echo_head(), &[]);
    let reply = watchdog.send(
        "PATCH /a%2Fb//c?x=%20&y HTTP/1.1\r\nHost: me.example:1\r\nX-Call-Id: 7\r\nX-Multi: a\r\n\
         X-Multi: b\r\nX-Private: p\r\nConnection: close, X-Private\r\nContent-Length: 2\r\n\r\nhi",
    );
    assert_eq!(reply.status, 200);
    assert!(reply.body.starts_with("PATCH /a%2Fb//c?x=%20&y HTTP/1.1\r\n"), "{}", reply.body);
    assert_eq!(header(&reply.body, "host").unwrap(), "me.example:1");
    for line in ["X-Call-Id: 7\r\n", "X-Multi: a\r\nX-Multi: b\r\n", "Content-Length: 2\r\n"] {
        assert!(reply.body.contains(line), "{line} in {}", reply.body);
    }
    assert!(!reply.body.contains("X-Private") && !reply.body.contains("close"), "{}", reply.body);
}

#[test]
fn the_functions_answer_passes_with_the_duration_added_and_redirects_are_not_followed() {
    let port = function(|stream, _| {
        write(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 3\r\n\r\nhey",
        )
    });
    let reply = Watchdog::before(port, &[]).get("/");
    assert_eq!((reply.status, reply.body.as_str()), (302, "hey"));
    assert_eq!(reply.header("location").unwrap(), "/elsewhere");
    assert_eq!(reply.head.matches("Set-Cookie").count(), 2);
    let duration = reply.header("x-duration-seconds").unwrap();
    assert_eq!(duration.split_once('.').unwrap().1.len(), 6, "{duration}");
    assert_eq!(reply.header("x-openfaas-internal"), None);
}

fn assert_ours(reply: &Reply, status: u16) {
    assert_eq!((reply.status, reply.body.as_str()), (status, ""));
    assert_eq!(reply.header("x-openfaas-internal").unwrap(), "of-watchdog");
    assert!(reply.header("x-duration-seconds").is_some());
}

#[test]
fn a_refused_connection_is_500_and_502_where_a_stream_was_asked_for() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let watchdog = Watchdog::start(&[
        ("mode", "http"),
        ("fprocess", "sleep 1000"),
        ("upstream_url", &format!("http://127.0.0.1:{free}")),
    ]);
    assert_ours(&watchdog.get("/"), 500);
    assert_ours(&watchdog.get_with("/", "Accept: text/event-stream\r\n"), 502);
}

#[test]
fn an_answer_that_is_not_http_is_500() {
    let port = function(|stream, _| {
        write(stream, "nonsense\r\n\r\n");
        false
    });
    assert_ours(&Watchdog::before(port, &[]).get("/"), 500);
}

#[test]
fn exec_timeout_and_a_shorter_x_timeout_end_in_504() {
    let port = function(|stream, _| stream.read(&mut [0]).is_ok_and(|read| read > 0));
    // Each of the two would have to wait much longer for the limit that does not count.
    for (exec_timeout, x_timeout) in [("10m", "100ms"), ("100ms", "1h")] {
        let variables = [("exec_timeout", exec_timeout), ("write_timeout", "1h")];
        let watchdog = Watchdog::before(port, &variables);
        assert_ours(&watchdog.get_with("/", &format!("X-Timeout: {x_timeout}\r\n")), 504);
        watchdog.wait_line("GET / - 504 Gateway Timeout - ContentLength: 0B");
    }
}

#[test]
fn x_timeout_can_be_ignored() {
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let port = function(move |stream, _| {
        held.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        answer(stream, "ok")
    });
    let watchdog = Watchdog::before(port, &[("updraft_x_timeout", "false")]);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| watchdog.get_with("/", "X-Timeout: 1ns\r\n"));
        release.send(()).unwrap();
        assert_eq!(call.join().unwrap().body, "ok");
    });
}

#[test]
fn a_callers_proxy_header_does_not_reach_the_function() {
    let reply = Watchdog::before(echo_head(), &[]).get_with("/", "Proxy: http://evil.example\r\n");
    assert!(!reply.body.to_lowercase().contains("proxy"), "{}", reply.body);
}

#[test]
fn an_upstream_may_be_named() {
    let port = function(|stream, _| answer(stream, "ok"));
    let url = format!("http://localhost:{port}");
    let watchdog =
        Watchdog::start(&[("mode", "http"), ("fprocess", "cat"), ("upstream_url", &url)]);
    watchdog.wait_healthy();
    assert_eq!(watchdog.get("/").body, "ok");
}

#[test]
fn an_answer_still_running_at_the_deadline_is_cut_so_that_the_caller_can_tell() {
    let port = function(|stream, _| {
        write(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n");
        stream.read(&mut [0]).is_ok_and(|read| read > 0)
    });
    let reply = Watchdog::before(port, &[("exec_timeout", "2s")]).get("/");
    assert_eq!((reply.body.as_str(), reply.complete), ("hi", false));
}

#[test]
fn bodies_stream_both_ways_chunk_by_chunk() {
    let (seen, sees) = mpsc::channel();
    let port = function(move |stream, head| {
        let mut first = [0; 5];
        stream.read_exact(&mut first).unwrap();
        seen.send((head.to_owned(), first)).unwrap();
        write(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
        // The rest of the request's body, then the rest of the answer's.
        let mut rest = [0; 7];
        stream.read_exact(&mut rest).unwrap();
        write(stream, "3\r\ntwo\r\n0\r\n\r\n")
    });
    let watchdog = Watchdog::before(port, &[]);
    let mut stream = watchdog.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n").unwrap();
    let (head, first) = sees.recv_timeout(PATIENCE).unwrap();
    assert!(head.contains("chunked"));
    assert_eq!(&first[..4], b"1\r\na");
    let mut answer = Vec::new();
    while !answer.ends_with(b"3\r\none\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    stream.write_all(b"1\r\nb\r\n0\r\n\r\n").unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "3\r\ntwo\r\n0\r\n\r\n");
}

#[test]
fn event_streams_outlive_exec_timeout_and_end_at_write_timeout() {
    let port = function(|stream, _| {
        write(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
        );
        stream.read(&mut [0]).is_ok_and(|read| read > 0)
    });
    let watchdog = Watchdog::before(port, &[("exec_timeout", "100ms"), ("write_timeout", "2s")]);
    let begun = Instant::now();
    let reply = watchdog.get_with("/", "Accept: text/html, Text/Event-Stream\r\n");
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert_eq!((reply.status, reply.body.as_str(), reply.complete), (200, "hi", false));
    assert_eq!(reply.header("x-duration-seconds"), None);
}

#[test]
fn a_stream_that_never_begins_is_504_at_write_timeout() {
    let port = function(|stream, _| stream.read(&mut [0]).is_ok_and(|read| read > 0));
    let watchdog = Watchdog::before(port, &[("write_timeout", "300ms"), ("exec_timeout", "0")]);
    assert_ours(&watchdog.get_with("/", "Accept: application/x-ndjson\r\n"), 504);
}

#[test]
fn an_answer_of_unknown_length_has_no_size_in_its_access_line() {
    let port = function(|stream, _| {
        write(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
    });
    let watchdog = Watchdog::before(port, &[]);
    assert_eq!(watchdog.get("/long").body, "hi");
    watchdog.wait_line("GET /long - 200 OK - ContentLength: -1B (");
}

#[test]
fn a_stream_that_carries_nothing_for_too_long_is_ended_but_not_one_that_carries_little() {
    let port = function(|stream, head| {
        let begin = if head.contains("Upgrade") {
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        } else {
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        };
        write(stream, begin);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(800));
            write(stream, "2\r\nhi\r\n");
        }
        stream.read(&mut [0]).is_ok_and(|read| read > 0)
    });
    let watchdog = Watchdog::before(port, &[("updraft_stream_idle_timeout", "3s")]);
    let reply = watchdog.get_with("/events", "Accept: text/event-stream\r\n");
    assert_eq!((reply.status, reply.body.as_str(), reply.complete), (200, "hihihihihi", false));
    watchdog.wait_line("GET /events - 504 Gateway Timeout");
    let mut stream = watchdog.connect();
    stream
        .write_all(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        )
        .unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all.matches("hi\r\n").count(), 5);
    watchdog.wait_line("a WebSocket was idle for 3s and has been closed");
}

#[test]
fn websockets_are_tunnelled() {
    let port = function(|stream, head| {
        assert_eq!(header(head, "upgrade").unwrap(), "websocket");
        assert_eq!(header(head, "connection").unwrap(), "Upgrade");
        assert_eq!(header(head, "sec-websocket-key").unwrap(), "k");
        write(
            stream,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: a\r\n\r\n",
        );
        let mut buffer = [0; 4];
        while stream.read_exact(&mut buffer).is_ok() {
            stream.get_mut().write_all(&buffer).unwrap();
        }
        false
    });
    // The tunnel lives on beyond every timeout, and counts for the limit.
    let watchdog = Watchdog::before(
        port,
        &[("exec_timeout", "100ms"), ("write_timeout", "2s"), ("max_inflight", "1")],
    );
    let mut stream = watchdog.connect();
    stream.write_all(b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: k\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let head = read_head(&mut reader).unwrap();
    assert!(
        head.starts_with("HTTP/1.1 101 ")
            && head.to_lowercase().contains("sec-websocket-accept: a"),
        "{head}"
    );
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(3500) {
        stream.write_all(b"ping").unwrap();
        let mut buffer = [0; 4];
        reader.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"ping");
    }
    assert_eq!(watchdog.get("/").status, 429);
    drop((reader, stream));
    wait_until("the tunnel's place is free", || watchdog.get("/_/ready").status == 200);
}

#[test]
fn buffering_turns_a_chunked_request_into_one_of_known_length() {
    for variable in ["http_buffer_req_body", "buffer_http"] {
        let port = function(|stream, head| {
            let body = read_sized(stream, head);
            answer(stream, &format!("{head}\r\n{body}"))
        });
        let watchdog = Watchdog::before(port, &[(variable, "true"), ("updraft_max_buffer", "10")]);
        let request =
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        let reply = watchdog.send(&format!("{request}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"));
        assert!(reply.body.ends_with("\r\nabcde") && !reply.body.contains("chunked"), "{reply:?}");
        let reply = watchdog.send(&format!("{request}b\r\n01234567890\r\n0\r\n\r\n"));
        assert_eq!(reply.status, 413);
    }
}

#[test]
fn kept_connections_are_used_again_and_silently_closed_ones_do_not_fail_a_call() {
    let port = function(|stream, head| {
        read_sized(stream, head);
        let peer = stream.get_ref().peer_addr().unwrap().port().to_string();
        answer(stream, &peer) && !head.starts_with("POST /last ")
    });
    let watchdog = Watchdog::before(port, &[]);
    let first = watchdog.post("/", "x").body;
    for _ in 0..20 {
        assert_eq!(watchdog.post("/", "x").body, first);
    }
    for _ in 0..20 {
        // Each of these closes the connection behind its answer without a word.
        assert_eq!(watchdog.post("/last", "x").status, 200);
        wait_until("the connection is seen to be closed", || {
            watchdog.get("/_/health").status == 200
        });
        assert_eq!(watchdog.post("/", "x").status, 200);
    }
}

#[test]
fn a_request_that_the_function_may_have_seen_is_never_sent_twice() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let port = function(move |stream, head| {
        read_sized(stream, head);
        if head.starts_with("POST /die ") {
            counter.fetch_add(1, Ordering::SeqCst);
            return false;
        }
        answer(stream, "ok")
    });
    let watchdog = Watchdog::before(port, &[]);
    // Over a kept connection, where sending anew is most tempting.
    assert_eq!(watchdog.post("/", "x").body, "ok");
    assert_ours(&watchdog.post("/die", "x"), 500);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[test]
fn heads_up_to_one_mebibyte_pass_and_larger_ones_are_431() {
    let watchdog = Watchdog::before(echo_head(), &[]);
    let value = "v".repeat(900 * 1024);
    let reply = watchdog.get_with("/", &format!("X-Large: {value}\r\n"));
    assert_eq!(reply.status, 200);
    assert!(reply.body.contains(&value));
    let value = "v".repeat(1100 * 1024);
    let mut stream = watchdog.connect();
    let reader = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let _refused = stream
            .write_all(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Large: {value}\r\n\r\n").as_bytes());
    });
    assert_eq!(Reply::read(reader).status, 431);
    sender.join().unwrap();
}

#[test]
fn requests_and_answers_have_a_hundred_headers_or_as_many_as_asked_for() {
    let port = function(|stream, head| {
        let count = if head.starts_with("GET /many ") { 500 } else { 90 };
        let many = "X-Many: 1\r\n".repeat(count);
        write(stream, &format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 0\r\n\r\n"))
    });
    let watchdog = Watchdog::before(port, &[]);
    let headers = |count| "X-Many: 1\r\n".repeat(count);
    assert_eq!(watchdog.get_with("/", &headers(90)).status, 200);
    assert_eq!(watchdog.get_with("/", &headers(101)).status, 431);
    assert_ours(&watchdog.get("/many"), 500);
    let watchdog = Watchdog::before(port, &[("updraft_max_headers", "1000")]);
    let reply = watchdog.get_with("/many", &headers(500));
    assert_eq!((reply.status, reply.head.matches("X-Many").count()), (200, 500));
}

#[test]
fn an_expectation_is_answered_here_and_not_passed_on() {
    let watchdog = Watchdog::before(echo_head(), &[]);
    let mut stream = watchdog.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    assert!(read_head(&mut reader).unwrap().starts_with("HTTP/1.1 100 "));
    stream.write_all(b"hi").unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 ") && !rest.contains("100-continue"), "{rest}");
}

#[test]
fn head_and_http_1_0_work() {
    let port = function(|stream, head| {
        if head.starts_with("HEAD ") {
            return write(stream, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        }
        answer(stream, "hello")
    });
    let watchdog = Watchdog::before(port, &[]);
    let reply = watchdog.send("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!((reply.header("content-length").unwrap().as_str(), reply.body.as_str()), ("5", ""));
    assert_eq!(watchdog.send("GET / HTTP/1.0\r\n\r\n").body, "hello");
}

#[test]
fn the_access_line_has_its_shape_and_probes_have_none() {
    let watchdog = Watchdog::before(echo_head(), &[("log_callid", "1")]);
    watchdog.get_with("/probe", "User-Agent: kube-probe/1.30\r\n");
    watchdog.get_with("/a?b", "X-Call-Id: c-1\r\n");
    watchdog.get("/none");
    let line = watchdog.wait_line("GET /a?b - 200 OK - ContentLength: ");
    assert!(line.ends_with("s) [c-1]"), "{line}");
    let (date, rest) = line.split_at(20);
    assert_eq!(
        date.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>(),
        "0000/00/00 00:00:00 "
    );
    let seconds = rest.split_once('(').unwrap().1.split_once("s)").unwrap().0;
    assert_eq!(seconds.split_once('.').unwrap().1.len(), 4, "{line}");
    assert!(watchdog.wait_line("GET /none ").ends_with("[none]"));
    assert!(!watchdog.lines().iter().any(|line| line.contains("/probe")));
}

#[test]
fn the_call_over_max_inflight_is_429_while_health_still_answers() {
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let (entered, enters) = mpsc::channel();
    let port = function(move |stream, _| {
        entered.send(()).unwrap();
        held.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        answer(stream, "ok")
    });
    let watchdog = Watchdog::before(port, &[("max_inflight", "1")]);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| watchdog.get("/"));
        enters.recv_timeout(PATIENCE).unwrap();
        for path in ["/", "/_/ready"] {
            let reply = watchdog.get(path);
            assert_eq!(reply.status, 429, "{path}");
            assert_eq!(
                reply.body,
                "Concurrent request limit exceeded. Max concurrent requests: 1\n"
            );
            assert_eq!(reply.header("content-type").unwrap(), "text/plain");
            assert_eq!(reply.header("x-openfaas-internal").unwrap(), "faas-middleware");
        }
        assert_eq!(watchdog.get("/_/health").status, 200);
        release.send(()).unwrap();
        assert_eq!(first.join().unwrap().status, 200);
    });
    wait_until("the place is free", || watchdog.get("/_/ready").status == 200);
}

#[test]
fn a_client_that_goes_away_ends_the_call_at_the_function() {
    let (event, events) = mpsc::channel();
    let port = function(move |stream, _| {
        event.send("begun").unwrap();
        let ended = matches!(stream.read(&mut [0]), Ok(0) | Err(_));
        event.send(if ended { "ended" } else { "spoken to" }).unwrap();
        false
    });
    let watchdog = Watchdog::before(port, &[]);
    let mut stream = watchdog.connect();
    stream.write_all(b"GET /gone HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(events.recv_timeout(PATIENCE).unwrap(), "begun");
    drop(stream);
    assert_eq!(events.recv_timeout(PATIENCE).unwrap(), "ended");
    watchdog.wait_line("GET /gone - 504 Gateway Timeout");
}

#[test]
fn a_client_that_stops_reading_is_cut_off_after_write_timeout() {
    let port = function(|stream, _| {
        write(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while write(stream, &"x".repeat(64 * 1024)) {}
        false
    });
    let watchdog = Watchdog::before(port, &[("write_timeout", "200ms"), ("exec_timeout", "0")]);
    let mut stream = watchdog.connect();
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    watchdog.wait_line("GET /slow - ");
}

#[test]
fn a_request_that_never_ends_is_given_up_after_read_timeout() {
    let port = function(|stream, _| {
        std::io::copy(stream, &mut std::io::sink()).unwrap();
        false
    });
    let watchdog = Watchdog::before(port, &[("read_timeout", "2s")]);
    let mut stream = watchdog.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").unwrap();
    assert_eq!(Reply::read(stream).status, 400);
    // Half a head, and an idle connection: both are closed.
    let mut stream = watchdog.connect();
    stream.write_all(b"GET / HT").unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let mut rest = Vec::new();
    watchdog.connect().read_to_end(&mut rest).unwrap();
}
