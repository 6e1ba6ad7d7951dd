//! Start, health, readiness, shutdown, logs and processes.

use std::io::Write as _;
use std::net::TcpListener;

use crate::support::*;

#[test]
fn flags_print_the_version_and_check_the_lock_file() {
    let (code, text) = run_to_end(&["-version"], &[]);
    assert_eq!(code, Some(0));
    assert!(text.starts_with("Version: ") && text.contains("\tSHA: "), "{text}");
    let (code, text) = run_to_end(&["-run-healthcheck"], &[]);
    assert_eq!((code, text.as_str()), (Some(1), "unable to find lock file.\n"));
    let watchdog = Watchdog::start(&[("fprocess", "cat")]);
    watchdog.wait_healthy();
    let folder = watchdog.folder.path().to_str().unwrap();
    assert_eq!(run_to_end(&["-run-healthcheck"], &[("TMPDIR", folder)]).0, Some(0));
}

#[test]
fn bad_settings_end_the_start_with_a_reason() {
    for (variables, reason) in [
        (&[][..], "set `fprocess`"),
        (&[("fprocess", "cat"), ("mode", "afterburn")], "unknown mode `afterburn`"),
        (&[("fprocess", "cat"), ("mode", "http")], "needs `upstream_url`"),
        (&[("fprocess", "cat"), ("write_timeout", "0")], "HTTP write timeout must be over 0s"),
        (&[("fprocess", "cat"), ("jwt_auth", "true")], "jwt_auth"),
        (
            &[("fprocess", "/no/such"), ("mode", "http"), ("upstream_url", "http://127.0.0.1:1")],
            "cannot start the function `/no/such`",
        ),
        (&[("mode", "static"), ("static_path", "/no/such")], "cannot serve /no/such"),
    ] {
        let (code, text) = run_to_end(&[], variables);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(reason), "{reason} in {text}");
    }
}

#[test]
fn the_start_is_logged_line_by_line() {
    let watchdog = Watchdog::start(&[
        ("fprocess", "cat -"),
        ("write_timeout", "90s"),
        ("exec_timeout", "500ms"),
    ]);
    watchdog.wait_healthy();
    let version = watchdog.wait_line(" Version: ");
    assert!(version.contains("\tSHA: "), "{version}");
    watchdog.wait_line(" Watchdog mode: streaming\tfprocess: \"cat -\"");
    watchdog.wait_line(" Timeouts: read: 30s write: 1m30s hard: 500ms health: 1m30s");
    watchdog.wait_line(&format!(" Writing lock-file to: {}", watchdog.lock_file().display()));
}

#[test]
fn health_and_lock_file_wait_for_the_function_to_accept_connections() {
    let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let folder = tempfile::tempdir().unwrap();
    // What a predecessor in the same container left behind proves nothing.
    std::fs::write(folder.path().join(".lock"), "").unwrap();
    let url = format!("http://{address}");
    let variables = [("mode", "http"), ("fprocess", "sleep 1000"), ("upstream_url", url.as_str())];
    let watchdog = Watchdog::start_in(folder, &variables);
    for path in ["/_/health", "/_/ready"] {
        let reply = watchdog.get(path);
        assert_eq!((reply.status, reply.body.as_str()), (503, ""));
    }
    assert!(!watchdog.lock_file().exists());
    function_on(TcpListener::bind(address).unwrap(), |stream, _| answer(stream, "ok"));
    watchdog.wait_healthy();
    assert!(watchdog.lock_file().exists());
    let reply = watchdog.get("/_/health");
    assert_eq!((reply.status, reply.body.as_str()), (200, "OK"));
    assert_eq!(watchdog.get("/_/ready").status, 200);
    std::fs::remove_file(watchdog.lock_file()).unwrap();
    assert_eq!(watchdog.get("/_/health").status, 503);
}

#[test]
fn early_health_can_be_asked_for() {
    let watchdog = Watchdog::start(&[
        ("mode", "http"),
        ("fprocess", "sleep 1000"),
        ("upstream_url", "http://127.0.0.1:1"),
        ("updraft_early_ready", "true"),
    ]);
    watchdog.wait_healthy();
}

#[test]
fn a_suppressed_lock_file_leaves_health_good() {
    let watchdog = Watchdog::start(&[("fprocess", "cat"), ("suppress_lock", "true")]);
    watchdog.wait_healthy();
    assert!(!watchdog.lock_file().exists());
    assert_eq!(watchdog.get("/_/ready").status, 200);
}

#[test]
fn other_methods_than_get_are_405_on_the_watchdogs_own_paths() {
    let watchdog = Watchdog::start(&[("fprocess", "cat")]);
    for path in ["/_/health", "/_/ready"] {
        assert_eq!(watchdog.post(path, "").status, 405);
    }
}

#[test]
fn readiness_asks_the_function_at_ready_path_outside_the_limit() {
    let port = function(|stream, head| {
        if head.starts_with("GET /warm HTTP/1.1\r\n") && header(head, "x-probe").is_some() {
            return write(stream, "HTTP/1.1 418 I'm a teapot\r\nContent-Length: 4\r\n\r\nwait");
        }
        answer(stream, "ok")
    });
    let watchdog = Watchdog::before(port, &[("ready_path", "/warm"), ("max_inflight", "1")]);
    let reply = watchdog.get_with("/_/ready", "X-Probe: 1\r\n");
    assert_eq!((reply.status, reply.body.as_str()), (418, "wait"));
}

#[test]
fn health_and_lock_file_wait_until_ready_path_says_so() {
    let ready = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let switch = std::sync::Arc::clone(&ready);
    let (asked, asks) = std::sync::mpsc::channel();
    let port = function(move |stream, head| {
        assert!(head.starts_with("GET /warm?x HTTP/1.1\r\n"), "{head}");
        let status = if switch.load(std::sync::atomic::Ordering::SeqCst) { 204 } else { 503 };
        asked.send(status).unwrap();
        write(stream, &format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"))
    });
    let url = format!("http://127.0.0.1:{port}");
    let variables = [
        ("mode", "http"),
        ("fprocess", "sleep 1000"),
        ("upstream_url", url.as_str()),
        ("ready_path", "warm?x"),
    ];
    let watchdog = Watchdog::start(&variables);
    for _ in 0..3 {
        assert_eq!(asks.recv_timeout(PATIENCE).unwrap(), 503);
    }
    assert_eq!(watchdog.get("/_/health").status, 503);
    assert!(!watchdog.lock_file().exists());
    ready.store(true, std::sync::atomic::Ordering::SeqCst);
    watchdog.wait_healthy();
    assert!(watchdog.lock_file().exists());
}

#[test]
fn a_function_may_be_told_of_sigterm_at_once_and_its_end_is_no_failure_then() {
    let port = function(|stream, _| answer(stream, "ok"));
    let url = format!("http://127.0.0.1:{port}");
    let script = "trap 'echo asked to stop; exit 3' TERM; while true; do sleep 0.01; done";
    let watchdog = Watchdog::script(
        script,
        &[
            ("mode", "http"),
            ("upstream_url", &url),
            ("healthcheck_interval", "1h"),
            ("updraft_early_sigterm", "true"),
        ],
    );
    watchdog.wait_healthy();
    watchdog.terminate();
    watchdog.wait_line("stdout: asked to stop");
    // Whoever still calls is served as before.
    assert_eq!(watchdog.get("/").body, "ok");
    drop(watchdog);
    let again = [
        ("mode", "http"),
        ("upstream_url", url.as_str()),
        ("healthcheck_interval", "0"),
        ("updraft_early_sigterm", "true"),
    ];
    let mut watchdog = Watchdog::script(script, &again);
    watchdog.wait_healthy();
    watchdog.terminate();
    assert_eq!(watchdog.wait_exit(), Some(0));
    watchdog.wait_line("No new connections allowed, draining: 0 requests");
}

#[test]
fn a_function_that_ends_ends_the_watchdog_whatever_its_code() {
    for (end, expected) in [
        ("exit 0", "Forked function has terminated: exit status 0"),
        ("exit 3", "Forked function has terminated: exit status 3"),
        ("kill -SEGV $$", "Forked function has terminated: signal: segmentation fault"),
    ] {
        let script = format!("echo last words; {end}");
        let mut watchdog =
            Watchdog::script(&script, &[("mode", "http"), ("upstream_url", "http://127.0.0.1:1")]);
        assert_eq!(watchdog.wait_exit(), Some(1));
        watchdog.wait_line(expected);
        watchdog.wait_line("stdout: last words");
        assert!(!watchdog.lock_file().exists());
    }
}

#[test]
fn sigterm_turns_health_bad_and_calls_are_served_on_for_healthcheck_interval() {
    let port = function(|stream, _| answer(stream, "ok"));
    let watchdog = Watchdog::before(port, &[("healthcheck_interval", "1h")]);
    watchdog.terminate();
    watchdog.wait_line("SIGTERM: no new connections in 1h0m0s");
    watchdog.wait_line(&format!("Removing lock-file : {}", watchdog.lock_file().display()));
    wait_until("the lock file is gone", || !watchdog.lock_file().exists());
    assert_eq!(watchdog.get("/_/health").status, 503);
    assert_eq!(watchdog.get("/_/ready").status, 503);
    assert_eq!(watchdog.get("/").body, "ok");
    assert!(!watchdog.lines().iter().any(|line| line.contains("No new connections allowed")));
}

#[test]
fn draining_waits_for_calls_under_way_and_only_then_stops_the_function() {
    let (entered, enters) = std::sync::mpsc::channel();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let port = function(move |stream, head| {
        if head.starts_with("GET /slow ") {
            entered.send(()).unwrap();
            held.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
        answer(stream, "ok")
    });
    let url = format!("http://127.0.0.1:{port}");
    // The function tells when it is asked to stop; what it started is told as well.
    let script = "trap 'echo asked to stop; exit 0' TERM; sleep 1000 & echo $! > $TMPDIR/pid; while true; do wait; done";
    let mut watchdog = Watchdog::script(
        script,
        &[("mode", "http"), ("upstream_url", &url), ("healthcheck_interval", "100ms")],
    );
    watchdog.wait_healthy();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| watchdog.get("/slow"));
        enters.recv_timeout(PATIENCE).unwrap();
        watchdog.terminate();
        watchdog.wait_line("No new connections allowed, draining: 1 requests");
        wait_until("new connections are refused", || {
            std::net::TcpStream::connect(("127.0.0.1", watchdog.port)).is_err()
        });
        assert!(!watchdog.lines().iter().any(|line| line.contains("asked to stop")));
        release.send(()).unwrap();
        assert_eq!(slow.join().unwrap().body, "ok");
    });
    assert_eq!(watchdog.wait_exit(), Some(0));
    watchdog.wait_line("stdout: asked to stop");
    watchdog.wait_line("Exiting. Active connections: 0");
    let pid = std::fs::read_to_string(watchdog.folder.path().join("pid")).unwrap();
    wait_until("the group is gone", || !std::path::Path::new("/proc").join(pid.trim()).exists());
}

#[test]
fn draining_ends_at_write_timeout_and_idle_connections_do_not_hold_it_up() {
    let (entered, enters) = std::sync::mpsc::channel();
    let port = function(move |stream, _| {
        entered.send(()).unwrap();
        std::io::Read::read(stream, &mut [0]).is_ok_and(|read| read > 0)
    });
    let mut watchdog = Watchdog::before(
        port,
        &[("healthcheck_interval", "0"), ("write_timeout", "500ms"), ("exec_timeout", "0")],
    );
    let _idle = watchdog.connect();
    let mut stuck = watchdog.connect();
    stuck.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    enters.recv_timeout(PATIENCE).unwrap();
    watchdog.terminate();
    assert_eq!(watchdog.wait_exit(), Some(0));
    watchdog.wait_line("draining: 1 requests");
}

#[test]
fn a_quiet_drain_does_not_wait_for_callers_that_do_not_come() {
    let mut watchdog = Watchdog::start(&[("fprocess", "cat"), ("updraft_drain", "quiet")]);
    watchdog.wait_healthy();
    watchdog.terminate();
    // Within less than `healthcheck_interval`, which is 30 s.
    assert_eq!(watchdog.wait_exit(), Some(0));
}

#[test]
fn orphans_of_the_function_are_reaped() {
    let script =
        "(sleep 0.1 & echo $! > $TMPDIR/pid.new; mv $TMPDIR/pid.new $TMPDIR/pid); sleep 1000";
    let watchdog =
        Watchdog::script(script, &[("mode", "http"), ("upstream_url", "http://127.0.0.1:1")]);
    let pid_file = watchdog.folder.path().join("pid");
    wait_until("the orphan exists", || pid_file.exists());
    let orphan = std::fs::read_to_string(pid_file).unwrap();
    // A dead process that nobody waits for stays in the table.
    wait_until("the orphan is reaped", || {
        !std::path::Path::new("/proc").join(orphan.trim()).exists()
    });
}

#[test]
fn as_pid_1_it_reaps_orphans_serves_and_ends_on_sigterm() {
    // The function looks at its own process table, where the watchdog is number 1.
    let script = "(sleep 0 &)
        tr '\\0' ' ' < /proc/1/cmdline
        tries=0
        while cat /proc/[0-9]*/stat | grep -q ' Z 1 ' && [ $tries -lt 500 ]; do
            tries=$((tries + 1)); sleep 0.01
        done
        [ $tries -lt 500 ] && echo and all reaped";
    let mut watchdog =
        Watchdog::as_pid_1(script, &[("mode", "streaming"), ("updraft_drain", "quiet")]);
    watchdog.wait_healthy();
    let reply = watchdog.get("/");
    assert!(reply.body.contains("fwatchdog "), "{reply:?}");
    assert!(reply.body.ends_with("and all reaped\n"), "{reply:?}");
    watchdog.terminate();
    assert_eq!(watchdog.wait_exit(), Some(0));
    assert!(!watchdog.lock_file().exists());
}

#[test]
fn the_functions_lines_keep_their_stream_and_long_ones_are_split() {
    let script = "echo short; printf '%0200d\\n' 7; echo err >&2; echo after; sleep 1000";
    let http =
        [("mode", "http"), ("upstream_url", "http://127.0.0.1:1"), ("log_buffer_size", "100")];
    let watchdog = Watchdog::script(script, &http);
    watchdog.wait_line(" stdout: short");
    watchdog.wait_line(" stderr: err");
    watchdog.wait_line(" stdout: after");
    let zeros = watchdog.lines().iter().filter(|line| line.contains("stdout: 000")).count();
    assert_eq!(zeros, 2);
    let mut plain = http.to_vec();
    plain.push(("prefix_logs", "false"));
    let watchdog = Watchdog::script(script, &plain);
    watchdog.wait_line("after");
    assert!(watchdog.lines().contains(&"short".to_owned()));
}

#[test]
fn a_function_cannot_block_itself_by_a_line_without_end() {
    let script = "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo survived; sleep 1000";
    let watchdog =
        Watchdog::script(script, &[("mode", "http"), ("upstream_url", "http://127.0.0.1:1")]);
    watchdog.wait_line("stdout: survived");
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_call() {
    let port = function(|stream, _| answer(stream, "ok"));
    let url = format!("http://127.0.0.1:{port}");
    let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = reserved.local_addr().unwrap().port();
    drop(reserved);
    let variables = [("mode", "http"), ("fprocess", "sleep 1000"), ("upstream_url", url.as_str())];
    let watchdog = Watchdog::unread(own, &variables);
    watchdog.wait_healthy();
    // Several times what a pipe and the watchdog's own memory for lines hold.
    let path = format!("/{}", "x".repeat(60_000));
    for _ in 0..60 {
        assert_eq!(watchdog.get(&path).status, 200);
    }
}

#[test]
fn the_functions_standard_input_stays_open() {
    let port = function(|stream, _| answer(stream, "ok"));
    let url = format!("http://127.0.0.1:{port}");
    let watchdog =
        Watchdog::start(&[("mode", "http"), ("fprocess", "cat"), ("upstream_url", &url)]);
    watchdog.wait_healthy();
    assert_eq!(watchdog.get("/").body, "ok");
}
