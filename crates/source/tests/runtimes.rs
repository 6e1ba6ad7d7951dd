//! The servers of the Python and Node templates, run by the real interpreters.
//!
//! Each test starts one server on its own port with a handler of its own and ends it.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

struct Language {
    template: &'static str,
    server: &'static str,
    command: &'static [&'static str],
    handler: &'static str,
}

const PYTHON: Language = Language {
    template: "python",
    server: "index.py",
    command: &["python3", "-S", "index.py"],
    handler: "handler.py",
};

const NODE: Language = Language {
    template: "node",
    server: "index.js",
    command: &["node", "index.js"],
    handler: "handler.js",
};

/// A running server; ends with the test.
struct Server {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

fn folder(language: &Language, handler: &str, code: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../templates");
    let server = template.join(language.template).join(language.server);
    std::fs::copy(server, folder.path().join(language.server)).unwrap();
    std::fs::create_dir(folder.path().join("function")).unwrap();
    std::fs::write(folder.path().join("function").join(handler), code).unwrap();
    folder
}

fn spawn(language: &Language, folder: &Path, port: u16, environment: &[(&str, &str)]) -> Child {
    let log = std::fs::File::create(folder.join("log")).unwrap();
    Command::new(language.command[0])
        .args(&language.command[1..])
        .current_dir(folder)
        .env("upstream_url", format!("http://127.0.0.1:{port}"))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("python3 and node are installed by `make test`")
}

/// Waits until `done` gives a value.
fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn start_as(
    language: &Language,
    handler: &str,
    code: &str,
    environment: &[(&str, &str)],
) -> Server {
    let folder = folder(language, handler, code);
    // Between choosing a free port and listening on it, another program may take it.
    for _ in 0..10 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = spawn(language, folder.path(), port, environment);
        let listens = wait_for("the server to listen", || {
            if child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            TcpStream::connect(("127.0.0.1", port)).ok().map(|_| true)
        });
        if listens {
            return Server { child, port, folder };
        }
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(log.to_lowercase().contains("address already in use"), "{log}");
    }
    panic!("no free port in ten attempts");
}

fn start(language: &Language, code: &str) -> Server {
    start_as(language, language.handler, code, &[])
}

impl Server {
    fn connect(&self) -> BufReader<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        BufReader::new(stream)
    }

    /// One request on a connection of its own; `head` is the request line and further headers.
    fn call(&self, head: &str, body: &str) -> Answer {
        let mut connection = self.connect();
        send(&mut connection, head, body);
        receive(&mut connection, head.starts_with("HEAD"))
    }

    fn get(&self, target: &str) -> Answer {
        self.call(&format!("GET {target} HTTP/1.1\r\n"), "")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn terminate(&self) {
        let id = i32::try_from(self.child.id()).unwrap();
        let pid = rustix::process::Pid::from_raw(id).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_for("the server to end", || child.try_wait().unwrap())
    }
}

fn send(connection: &mut BufReader<TcpStream>, head: &str, body: &str) {
    let length =
        if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let request = format!("{head}Host: test\r\n{length}\r\n{body}");
    connection.get_mut().write_all(request.as_bytes()).unwrap();
}

fn line(connection: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    connection.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn receive(connection: &mut BufReader<TcpStream>, bare: bool) -> Answer {
    let status = line(connection);
    let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {status:?}"));
    let mut headers = BTreeMap::new();
    loop {
        let line = line(connection);
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|value| value == "chunked") && !bare {
        loop {
            let size = u64::from_str_radix(&line(connection), 16).unwrap();
            connection.take(size).read_to_end(&mut body).unwrap();
            line(connection);
            if size == 0 {
                break;
            }
        }
    } else if let (Some(length), false) = (headers.get("content-length"), bare) {
        connection.take(length.parse().unwrap()).read_to_end(&mut body).unwrap();
    }
    Answer { status: status.parse().unwrap(), headers, body: String::from_utf8(body).unwrap() }
}

/// A request that runs until a file exists is answered although SIGTERM came in between.
fn running_requests_end_before_the_server(language: &Language, code: &str) {
    let mut server = start(language, code);
    let mut connection = server.connect();
    send(&mut connection, "GET / HTTP/1.1\r\n", "");
    let started = server.folder.path().join("started");
    wait_for("the handler to run", || started.exists().then_some(()));
    server.terminate();
    wait_for("the server to stop listening", || {
        TcpStream::connect(("127.0.0.1", server.port)).err()
    });
    std::fs::write(server.folder.path().join("go"), "").unwrap();
    let answer = receive(&mut connection, false);
    assert_eq!((answer.status, answer.body.as_str()), (200, "done"));
    assert_eq!(answer.headers["connection"], "close");
    assert!(server.wait().success(), "{}", server.log());
}

fn broken_handlers_end_at_once(language: &Language, code: &str, told: &str) {
    let folder = folder(language, language.handler, code);
    let mut child = spawn(language, folder.path(), 1, &[]);
    let status = wait_for("the server to give up", || child.try_wait().unwrap());
    assert!(!status.success());
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains(told), "{log}");
}

/// Both servers keep connections, take chunks, and survive nonsense.
fn the_protocol_is_kept(language: &Language, echo: &str) {
    let server = start(language, echo);
    let mut connection = server.connect();
    for number in 0..3 {
        let body = format!("body {number}");
        send(&mut connection, "POST /?a=1 HTTP/1.1\r\nContent-Type: text/plain\r\n", &body);
        let answer = receive(&mut connection, false);
        assert_eq!((answer.status, answer.body), (200, format!("POST {body}")));
    }
    let head = "POST / HTTP/1.1\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\nHost: x\r\n\r\n";
    connection.get_mut().write_all(head.as_bytes()).unwrap();
    connection.get_mut().write_all(b"3\r\nabc\r\n").unwrap();
    connection.get_mut().write_all(b"2;x=y\r\nde\r\n0\r\n\r\n").unwrap();
    assert_eq!(receive(&mut connection, false).body, "POST abcde");

    let answer = server.call("HEAD / HTTP/1.1\r\n", "");
    assert_eq!((answer.status, answer.headers["content-length"].as_str()), (200, "5"));
    let answer = server.call("GET / HTTP/1.1\r\nConnection: close\r\n", "");
    assert_eq!(answer.headers["connection"], "close");

    let large = "x".repeat(3_000_000);
    let answer = server.call("POST / HTTP/1.1\r\nContent-Type: text/plain\r\n", &large);
    assert_eq!(answer.body.len(), large.len() + 5);

    let mut nonsense = server.connect();
    nonsense.get_mut().write_all(b"this is not HTTP\r\n\r\n").unwrap();
    assert_eq!(receive(&mut nonsense, false).status, 400);
    assert_eq!(server.get("/").body, "GET ");
}

#[test]
fn python_keeps_the_protocol() {
    the_protocol_is_kept(
        &PYTHON,
        "def handle(event, context):\n    return event.method + ' ' + event.body.decode()\n",
    );
}

#[test]
fn node_keeps_the_protocol() {
    the_protocol_is_kept(
        &NODE,
        "module.exports = async (event, context) => event.method + ' ' + (typeof event.body === 'string' ? event.body : '');\n",
    );
}

#[test]
fn python_handlers_see_the_whole_request() {
    let server = start(
        &PYTHON,
        "import json\ndef handle(event, context):\n    return {'body': {'path': event.path, 'query': dict(event.query), 'all': event.query.getlist('a'), 'header': event.headers.get('x-CUSTOM'), 'has': 'X-Custom' in event.headers, 'type': type(event.body).__name__, 'host': bool(context.hostname)}}\n",
    );
    let answer = server.call("GET /p%20q/r?a=1&a=2&b=%C3%A4+b&c HTTP/1.1\r\nX-Custom: y\r\n", "");
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(
        answer.body,
        r#"{"path": "/p q/r", "query": {"a": "1", "b": "\u00e4 b", "c": ""}, "all": ["1", "2"], "header": "y", "has": true, "type": "bytes", "host": true}"#
    );
}

#[test]
fn python_answers_come_in_many_forms() {
    let server = start(
        &PYTHON,
        "
def parts():
    yield b'one '
    yield 'two'

FORMS = {
    '/whole': {'statusCode': 201, 'headers': {'Content-Type': 'text/x', 'X-A': '1'}, 'body': 'made'},
    '/pairs': {'statusCode': 200, 'headers': [('X-A', '1')], 'body': b'bytes'},
    '/json': {'some': 'value'},
    '/list': [1, 2],
    '/text': 'text',
    '/none': None,
    '/tuple': ('teapot', 418, {'X-T': 'yes'}),
    '/empty': {'statusCode': 204},
    '/number': 7,
}

def handle(event, context):
    if event.path == '/parts':
        return {'statusCode': 200, 'body': parts()}
    return FORMS[event.path]
",
    );
    let check = |target: &str, status: u16, body: &str| {
        let answer = server.get(target);
        assert_eq!((answer.status, answer.body.as_str()), (status, body), "{target}");
        answer.headers
    };
    let headers = check("/whole", 201, "made");
    assert_eq!((headers["content-type"].as_str(), headers["x-a"].as_str()), ("text/x", "1"));
    check("/pairs", 200, "bytes");
    assert_eq!(check("/json", 200, "{\"some\": \"value\"}")["content-type"], "application/json");
    check("/list", 200, "[1, 2]");
    assert_eq!(check("/text", 200, "text")["content-type"], "text/plain; charset=utf-8");
    check("/none", 200, "");
    assert_eq!(check("/tuple", 418, "teapot")["x-t"], "yes");
    assert!(!check("/empty", 204, "").contains_key("content-length"));
    check("/number", 200, "7");
    assert_eq!(check("/parts", 200, "one two")["transfer-encoding"], "chunked");
}

#[test]
fn python_handlers_of_the_text_form_get_and_give_text() {
    let code = "def handle(req):\n    return req.upper() if isinstance(req, str) else 'raw ' + req.decode()\n";
    let server = start(&PYTHON, code);
    assert_eq!(server.call("POST / HTTP/1.1\r\n", "straße").body, "STRASSE");
    let raw = start_as(&PYTHON, "handler.py", code, &[("RAW_BODY", "true")]);
    assert_eq!(raw.call("POST / HTTP/1.1\r\n", "x").body, "raw x");
}

#[test]
fn python_handlers_may_be_coroutines_and_import_their_neighbours() {
    let server = start(
        &PYTHON,
        "import asyncio\nasync def handle(event, context):\n    await asyncio.sleep(0)\n    from function import handler\n    return 'awaited ' + handler.__name__\n",
    );
    assert_eq!(server.get("/").body, "awaited function.handler");
}

#[test]
fn a_python_handler_that_raises_answers_500_and_goes_on() {
    let server = start(
        &PYTHON,
        "def handle(event, context):\n    if event.path == '/raise':\n        raise ValueError('secret detail')\n    if event.path == '/header':\n        return {'body': '', 'headers': {'X': 'a\\r\\nSet-Cookie: b'}}\n    if event.path == '/exit':\n        exit(3)\n    if event.path == '/status':\n        return {'statusCode': 99, 'body': ''}\n    return 'fine'\n",
    );
    for target in ["/raise", "/header", "/exit", "/status"] {
        let answer = server.get(target);
        assert_eq!(answer.status, 500, "{target}");
        assert!(!answer.body.contains("secret") && !answer.headers.contains_key("set-cookie"));
    }
    assert_eq!(server.get("/").body, "fine");
    assert!(server.log().contains("ValueError: secret detail"), "{}", server.log());
}

#[test]
fn a_slow_python_request_does_not_hold_up_others() {
    let server = start(
        &PYTHON,
        "import threading\ngo = threading.Event()\ndef handle(event, context):\n    if event.path == '/slow':\n        return str(go.wait(20))\n    go.set()\n    return 'fast'\n",
    );
    let mut slow = server.connect();
    send(&mut slow, "GET /slow HTTP/1.1\r\n", "");
    assert_eq!(server.get("/").body, "fast");
    assert_eq!(receive(&mut slow, false).body, "True");
}

#[test]
fn python_finishes_running_requests_on_sigterm() {
    running_requests_end_before_the_server(
        &PYTHON,
        "import os, time\ndef handle(event, context):\n    open('started', 'w').close()\n    while not os.path.exists('go'):\n        time.sleep(0.005)\n    return 'done'\n",
    );
}

#[test]
fn a_python_handler_without_handle_says_so() {
    broken_handlers_end_at_once(&PYTHON, "def handler(event): pass\n", "defines no `handle`");
    broken_handlers_end_at_once(&PYTHON, "import nothing_like_this\n", "nothing_like_this");
}

#[test]
fn packages_of_requirements_are_found_before_debians() {
    let folder = folder(
        &PYTHON,
        "handler.py",
        "import only_here\ndef handle(event, context):\n    return only_here.NAME\n",
    );
    let packages = folder.path().join("packages");
    std::fs::create_dir(&packages).unwrap();
    std::fs::write(packages.join("only_here.py"), "NAME = 'mine'\n").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = spawn(&PYTHON, folder.path(), port, &[]);
    let server = Server { child, port, folder };
    wait_for("the server to listen", || TcpStream::connect(("127.0.0.1", port)).ok());
    assert_eq!(server.get("/").body, "mine");
}

#[test]
fn node_handlers_see_the_whole_request() {
    let server = start(
        &NODE,
        "module.exports = async (event, context) => context.succeed({ path: event.path, query: event.query, header: event.headers['x-custom'], body: event.body });\n",
    );
    let answer = server.call(
        "POST /p%20q?a=1&a=2&b=%C3%A4+b HTTP/1.1\r\nX-Custom: y\r\nContent-Type: application/json\r\n",
        "{\"n\":[1]}",
    );
    assert_eq!(
        answer.body,
        r#"{"path":"/p%20q","query":{"a":["1","2"],"b":"ä b"},"header":"y","body":{"n":[1]}}"#
    );
    let form = server
        .call("POST / HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\n", "k=v+w");
    assert!(form.body.contains(r#""body":{"k":"v w"}"#), "{}", form.body);
    let wrong = server.call("POST / HTTP/1.1\r\nContent-Type: application/json\r\n", "{");
    assert_eq!((wrong.status, wrong.body.as_str()), (400, "the body is not valid JSON\n"));
}

#[test]
fn node_answers_come_in_many_forms() {
    let server = start(
        &NODE,
        "
module.exports = async (event, context) => {
  switch (event.path) {
    case '/status': return context.status(201).headers({ 'X-A': '1' }).succeed('made');
    case '/return': return 'returned';
    case '/json': return { some: 'value' };
    case '/bytes': return Buffer.from('bytes');
    case '/none': return undefined;
    case '/fail': return context.status(422).fail('wrong input');
    case '/throw': throw new Error('secret detail');
    case '/header': return context.headers({ 'X-A': 'a\\r\\nB: c' }).succeed('x');
    default: return context.status(404).succeed('no');
  }
};
",
    );
    let check = |target: &str, status: u16, body: &str| {
        let answer = server.get(target);
        assert_eq!((answer.status, answer.body.as_str()), (status, body), "{target}");
        answer.headers
    };
    assert_eq!(check("/status", 201, "made")["x-a"], "1");
    check("/return", 200, "returned");
    assert_eq!(
        check("/json", 200, "{\"some\":\"value\"}")["content-type"],
        "application/json; charset=utf-8"
    );
    assert_eq!(check("/bytes", 200, "bytes")["content-type"], "application/octet-stream");
    check("/none", 200, "");
    check("/fail", 422, "wrong input");
    let failed = "the function failed, its log says why\n";
    check("/throw", 500, failed);
    check("/header", 500, failed);
    check("/other", 404, "no");
    assert!(server.log().contains("secret detail"));
}

#[test]
fn node_handlers_may_use_callbacks_or_modules() {
    let callback = start(
        &NODE,
        "module.exports = (event, context, callback) => { setTimeout(() => callback(undefined, 'called back'), 1); };\n",
    );
    assert_eq!(callback.get("/").body, "called back");
    let module =
        start_as(&NODE, "handler.mjs", "export default async () => 'from a module';\n", &[]);
    assert_eq!(module.get("/").body, "from a module");
    let named = start(&NODE, "exports.handle = async (event) => 'by name';\n");
    assert_eq!(named.get("/").body, "by name");
}

#[test]
fn node_finishes_running_requests_on_sigterm() {
    running_requests_end_before_the_server(
        &NODE,
        "const fs = require('fs');\nmodule.exports = async () => {\n  fs.writeFileSync('started', '');\n  while (!fs.existsSync('go')) await new Promise((done) => setTimeout(done, 5));\n  return 'done';\n};\n",
    );
}

#[test]
fn a_node_handler_that_exports_nothing_says_so() {
    broken_handlers_end_at_once(&NODE, "exports.other = 1;\n", "exports no function");
    broken_handlers_end_at_once(&NODE, "require('nothing-like-this');\n", "nothing-like-this");
}
