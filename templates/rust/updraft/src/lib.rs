//! What a function in Rust sees of the world: a request comes in, a response goes out.
//!
//! Only the standard library is used, so that a function without further crates builds without a
//! network. Requests come from the watchdog on the loopback address, which also keeps the time and
//! waits for running requests before it stops the process.

use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

const LINE_MAX: u64 = 64 * 1024;
const HEADERS_MAX: usize = 200;

/// One request.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path as it came, without the query.
    pub path: String,
    /// The query as it came, without the `?`.
    pub query: String,
    /// Names and values in the order they came.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// The first value of a header; the case of the name does not matter.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(&found.1)
    }

    /// The body as text; what is not UTF-8 becomes the replacement character.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first value of a query parameter, decoded.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if decode(key) == name { Some(decode(value)) } else { None }
        })
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One response. Texts, bytes and results become one by `into()`.
#[derive(Debug, Clone)]
pub struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    /// A response without a body.
    pub fn new(status: u16) -> Self {
        Response { status, headers: Vec::new(), body: Vec::new() }
    }

    /// Status 200 and a text.
    pub fn text(text: impl Into<String>) -> Self {
        Response::new(200).header("Content-Type", "text/plain; charset=utf-8").body(text.into())
    }

    /// Status 200 and a text that already is JSON.
    pub fn json(json: impl Into<String>) -> Self {
        Response::new(200).header("Content-Type", "application/json").body(json.into())
    }

    /// The same with another status.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The same with one more header. Line breaks in it are left out.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let clean = |text: String| text.replace(['\r', '\n', '\0'], "");
        self.headers.push((clean(name.into()), clean(value.into())));
        self
    }

    /// The same with another body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

impl From<&str> for Response {
    fn from(text: &str) -> Self {
        Response::text(text)
    }
}

impl From<String> for Response {
    fn from(text: String) -> Self {
        Response::text(text)
    }
}

impl From<Vec<u8>> for Response {
    fn from(body: Vec<u8>) -> Self {
        Response::new(200).body(body)
    }
}

/// An error goes to the log; the caller only learns that there was one.
impl<T: Into<Response>, E: Display> From<Result<T, E>> for Response {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => value.into(),
            Err(error) => {
                eprintln!("error: {}", error);
                failed()
            }
        }
    }
}

fn failed() -> Response {
    Response::text("the function failed, its log says why\n").status(500)
}

/// Answers requests with `handle` for as long as the process lives, a thread a connection. Returns
/// only when the address cannot be listened on.
pub fn serve<R: Into<Response>>(
    handle: impl Fn(Request) -> R + Send + Sync + 'static,
) -> io::Result<()> {
    let upstream = std::env::var("upstream_url").unwrap_or_default();
    let port = upstream.trim_end_matches('/').rsplit(':').next();
    let port: u16 = port.and_then(|port| port.parse().ok()).unwrap_or(8082);
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let handle = Arc::new(move |request| handle(request).into());
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Out of descriptors: connections that end give some back.
                std::thread::sleep(std::time::Duration::from_millis(50));
                continue;
            }
        };
        let handle = Arc::clone(&handle);
        // A connection that cannot have a thread is closed; the watchdog tries another.
        let _ = std::thread::Builder::new().spawn(move || {
            let _ = stream.set_nodelay(true);
            let _ = connection(stream, &*handle);
        });
    }
}

fn connection(stream: TcpStream, handle: &dyn Fn(Request) -> Response) -> io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let (request, keep) = match read_request(&mut reader, &mut writer) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let wrong = Response::text("this is no HTTP request\n").status(400);
                return write_response(&mut writer, wrong, false, false);
            }
            Err(error) => return Err(error),
        };
        let head = request.method == "HEAD";
        // The panic itself is already in the log.
        let response = catch_unwind(AssertUnwindSafe(|| handle(request)));
        write_response(&mut writer, response.unwrap_or_else(|_| failed()), head, keep)?;
        if !keep {
            return Ok(());
        }
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn read_line(reader: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        return Err(wrong("line without an end"));
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map(Some).map_err(|_| wrong("not UTF-8"))
}

fn read_request(
    reader: &mut BufReader<TcpStream>,
    writer: &mut TcpStream,
) -> io::Result<Option<(Request, bool)>> {
    let line = match read_line(reader)? {
        Some(line) => line,
        None => return Ok(None),
    };
    let mut parts = line.split(' ');
    let (method, target, version) = match (parts.next(), parts.next(), parts.next()) {
        (Some(method), Some(target), Some(version)) => (method, target, version),
        _ => return Err(wrong("request line")),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        ..Request::default()
    };
    loop {
        let line = read_line(reader)?.ok_or_else(|| wrong("cut short"))?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| wrong("header"))?;
        if request.headers.len() == HEADERS_MAX {
            return Err(wrong("too many headers"));
        }
        request.headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    let has = |name: &str, word: &str| {
        request.header(name).map_or(false, |value| value.to_ascii_lowercase().contains(word))
    };
    let keep = match version {
        "HTTP/1.1" => !has("Connection", "close"),
        _ => has("Connection", "keep-alive"),
    };
    if has("Expect", "100-continue") {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if has("Transfer-Encoding", "chunked") {
        request.body = read_chunks(reader)?;
    } else if let Some(length) = request.header("Content-Length") {
        let length: u64 = length.parse().map_err(|_| wrong("content length"))?;
        reader.by_ref().take(length).read_to_end(&mut request.body)?;
        if (request.body.len() as u64) < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some((request, keep)))
}

fn read_chunks(reader: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(reader)?.ok_or_else(|| wrong("cut short"))?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| wrong("chunk size"))?;
        if size == 0 {
            // Trailers end with an empty line.
            while !read_line(reader)?.ok_or_else(|| wrong("cut short"))?.is_empty() {}
            return Ok(body);
        }
        let before = body.len() as u64;
        reader.by_ref().take(size).read_to_end(&mut body)?;
        if body.len() as u64 - before < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read_line(reader)?;
    }
}

fn write_response(
    writer: &mut TcpStream,
    response: Response,
    head: bool,
    keep: bool,
) -> io::Result<()> {
    let mut out = format!("HTTP/1.1 {} Status\r\n", response.status).into_bytes();
    for (name, value) in &response.headers {
        let ours = ["content-length", "transfer-encoding", "connection"];
        if !ours.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            write!(out, "{}: {}\r\n", name, value)?;
        }
    }
    let bare = response.status < 200 || response.status == 204 || response.status == 304;
    if !bare {
        write!(out, "Content-Length: {}\r\n", response.body.len())?;
    }
    if !keep {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if !bare && !head {
        out.extend_from_slice(&response.body);
    }
    writer.write_all(&out)
}
