//! Starts watchdogs, plays the function of mode http, and speaks raw HTTP, byte for byte.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
const BINARY: &str = env!("CARGO_BIN_EXE_fwatchdog");

/// Waits until the condition holds; says what was missing otherwise.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[derive(Default)]
struct Lines {
    all: Mutex<Vec<String>>,
    more: Condvar,
}

/// A running watchdog on a free port, with a temporary folder of its own.
pub(crate) struct Watchdog {
    process: Child,
    /// The watchdog itself where `process` only wraps it.
    inner: Option<Pid>,
    pub(crate) port: u16,
    lines: Arc<Lines>,
    pub(crate) folder: tempfile::TempDir,
}

fn command(folder: &Path, variables: &[(&str, &str)]) -> Command {
    settings(Command::new(BINARY), folder, variables)
}

fn settings(mut command: Command, folder: &Path, variables: &[(&str, &str)]) -> Command {
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("TMPDIR", folder)
        .env("port", "0")
        .env("metrics_port", "0")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs one that should not come up; its exit code and what it said.
pub(crate) fn run_to_end(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path(), variables).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

impl Watchdog {
    pub(crate) fn start(variables: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), variables)
    }

    /// With a script as the function: `$0` is its path, the temporary folder is `$TMPDIR`.
    pub(crate) fn script(script: &str, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("function.sh");
        std::fs::write(&path, script).unwrap();
        let process = format!("sh {}", path.display());
        let mut all = vec![("fprocess", process.as_str())];
        all.extend_from_slice(variables);
        Self::start_in(folder, &all)
    }

    /// In mode http, before the given function.
    pub(crate) fn before(port: u16, variables: &[(&str, &str)]) -> Self {
        let url = format!("http://127.0.0.1:{port}");
        let mut all = vec![("mode", "http"), ("fprocess", "sleep 1000"), ("upstream_url", &url)];
        all.extend_from_slice(variables);
        let watchdog = Self::start(&all);
        watchdog.wait_healthy();
        watchdog
    }

    pub(crate) fn start_in(folder: tempfile::TempDir, variables: &[(&str, &str)]) -> Self {
        let process = command(folder.path(), variables).spawn().unwrap();
        Self::attend(process, folder)
    }

    /// The example program that has a handler compiled in.
    pub(crate) fn with_a_handler(variables: &[(&str, &str)]) -> Self {
        let program = Path::new(BINARY).with_file_name("examples").join("inproc");
        assert!(program.is_file(), "no {}: examples are built with the tests", program.display());
        let folder = tempfile::tempdir().unwrap();
        let mut all = vec![("mode", "inproc")];
        all.extend_from_slice(variables);
        let process = settings(Command::new(program), folder.path(), &all).spawn().unwrap();
        let watchdog = Self::attend(process, folder);
        watchdog.wait_healthy();
        watchdog
    }

    /// With a log that nobody reads, on a given port.
    pub(crate) fn unread(port: u16, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port_text = port.to_string();
        let mut unread = command(folder.path(), variables);
        let process = unread.env("port", port_text).spawn().unwrap();
        let lines = Arc::default();
        let watchdog = Self { process, inner: None, port, lines, folder };
        wait_until("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        watchdog
    }

    /// As the first process of a namespace, as in a container.
    pub(crate) fn as_pid_1(script: &str, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("function.sh");
        std::fs::write(&path, script).unwrap();
        let function = format!("sh {}", path.display());
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc", BINARY]);
        let mut unshare = settings(unshare, folder.path(), variables);
        let process = unshare.env("fprocess", function).spawn().unwrap();
        let mut watchdog = Self::attend(process, folder);
        let outer = watchdog.process.id();
        let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));
        watchdog.inner = Some(Pid::from_raw(children.unwrap().trim().parse().unwrap()));
        watchdog
    }

    fn attend(mut process: Child, folder: tempfile::TempDir) -> Self {
        let lines = Arc::new(Lines::default());
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(process.stdout.take().unwrap()), Box::new(process.stderr.take().unwrap())];
        for stream in streams {
            let lines = Arc::clone(&lines);
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines() {
                    lines.all.lock().unwrap().push(line.unwrap());
                    lines.more.notify_all();
                }
            });
        }
        let mut watchdog = Self { process, inner: None, port: 0, lines, folder };
        let line = watchdog.wait_line("Listening on port: ");
        // A line of JSON goes on behind the number.
        let rest = line.rsplit(' ').next().unwrap();
        watchdog.port = rest.split('"').next().unwrap().parse().unwrap();
        watchdog
    }

    /// The first log line with this text; waits for it.
    pub(crate) fn wait_line(&self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        let mut all = self.lines.all.lock().unwrap();
        loop {
            if let Some(line) = all.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no line with `{text}` in {all:#?}");
            all = self.lines.more.wait_timeout(all, left).unwrap().0;
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.all.lock().unwrap().clone()
    }

    pub(crate) fn wait_healthy(&self) {
        wait_until("healthy", || self.get("/_/health").status == 200);
    }

    pub(crate) fn lock_file(&self) -> PathBuf {
        self.folder.path().join(".lock")
    }

    pub(crate) fn pid(&self) -> Pid {
        self.inner.unwrap_or_else(|| Pid::from_raw(i32::try_from(self.process.id()).unwrap()))
    }

    pub(crate) fn terminate(&self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
    }

    pub(crate) fn wait_exit(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the watchdog has exited", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.get_with(path, "")
    }

    /// GET with more header lines, each ended by `\r\n`.
    pub(crate) fn get_with(&self, path: &str, headers: &str) -> Reply {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: function.example\r\n{headers}Connection: close\r\n\r\n"
        ))
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Reply {
        let length = body.len();
        self.send(&format!("POST {path} HTTP/1.1\r\nHost: function.example\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"))
    }

    pub(crate) fn send(&self, request: &str) -> Reply {
        let mut stream = self.connect();
        // The watchdog may answer and close before it has read all.
        let _early = stream.write_all(request.as_bytes());
        Reply::read(stream)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // An interrupt also ends its child, a kill would not.
        let _gone = kill(self.pid(), Signal::SIGINT);
        let end = Instant::now() + PATIENCE;
        while self.process.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > end {
                let _gone = self.process.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
    /// Whether the body ended as its framing promised.
    pub(crate) complete: bool,
}

impl Reply {
    pub(crate) fn read(mut stream: TcpStream) -> Self {
        let mut raw = Vec::new();
        // A connection that is cut may end in an error after useful bytes.
        let _cut = stream.read_to_end(&mut raw);
        let text = String::from_utf8_lossy(&raw).into_owned();
        let (head, body) =
            text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in `{text}`"));
        let mut reply = Self {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_owned(),
            body: body.to_owned(),
            complete: true,
        };
        if reply.header("transfer-encoding").is_some() {
            (reply.body, reply.complete) = unchunk(body);
        } else if let Some(length) = reply.header("content-length") {
            reply.complete = body.len() == length.parse::<usize>().unwrap();
        }
        reply
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }
}

pub(crate) fn header(head: &str, name: &str) -> Option<String> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

fn unchunk(mut rest: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { break };
        if size == 0 {
            return (body, true);
        }
        let Some(chunk) = after.get(..size) else { break };
        body.push_str(chunk);
        rest = after.get(size + 2..).unwrap_or("");
    }
    (body, false)
}

/// Plays the function of mode http: `handle` gets every connection and the head of each request on
/// it, until it says false. Connections without a request are the watchdog's looking.
pub(crate) fn function(
    handle: impl Fn(&mut BufReader<TcpStream>, &str) -> bool + Send + Sync + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    function_on(listener, handle);
    port
}

pub(crate) fn function_on(
    listener: TcpListener,
    handle: impl Fn(&mut BufReader<TcpStream>, &str) -> bool + Send + Sync + 'static,
) {
    let handle = Arc::new(handle);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let handle = Arc::clone(&handle);
            std::thread::spawn(move || {
                while let Some(head) = read_head(&mut stream) {
                    if !handle(&mut stream, &head) {
                        break;
                    }
                }
            });
        }
    });
}

pub(crate) fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            return Some(head);
        }
        head.push_str(&line);
    }
}

/// Reads the body that the head's `Content-Length` announces.
pub(crate) fn read_sized(stream: &mut BufReader<TcpStream>, head: &str) -> String {
    let length = header(head, "content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

/// Answers 200 with this body and keeps the connection.
pub(crate) fn answer(stream: &mut BufReader<TcpStream>, body: &str) -> bool {
    let length = body.len();
    write(stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"))
}

pub(crate) fn write(stream: &mut BufReader<TcpStream>, text: &str) -> bool {
    stream.get_mut().write_all(text.as_bytes()).is_ok()
}
