//! The forking modes: a process for each call, fed by the request and read for the answer.
//!
//! `streaming` passes both bodies as they come; `serializing` holds them whole. A process that
//! outlives its call (timeout, caller gone) is killed with everything it has started.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::body::{Body, Upload};
use crate::call::{Call, Deadline, StatusStyle};
use crate::children::{Exit, Group};
use crate::config::CommandLine;
use crate::lines;
use crate::log::Stream;
use crate::percent::decode;
use crate::server::{App, DURATION, duration_header, plain};

/// What is read from a process at once.
const CHUNK: usize = 16 * 1024;

/// Mode streaming: the answer begins with the first output; a failure before that has a status.
pub(crate) async fn streaming(
    app: &Arc<App>,
    command: &CommandLine,
    request: Request<Incoming>,
    mut call: Box<Call>,
) -> Response<Body> {
    let (parts, incoming) = request.into_parts();
    call.log_access(&app.log, &parts, StatusStyle::Number, app.config.log_call_id);
    let Process { stdin, mut output } = match start(app, command, &parts) {
        Ok(process) => process,
        Err((status, text)) => return refuse(status, &text, call),
    };
    let deadline = Deadline::after(call.started, app.config.read_timeout);
    tokio::spawn(feed(Upload::Passing(incoming, deadline), stdin, Arc::clone(&output.group)));
    let first = match output.next().await {
        Ok(first) => first,
        Err(failure) => {
            app.log.line(format_args!("error: {}: {failure}", command.text));
            return refuse(failure.status(), &failure.to_string(), call);
        }
    };
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(header::CONTENT_TYPE, app.config.content_type.clone());
    call.answered(StatusCode::OK, None);
    let Some(first) = first else {
        return response.map(|body| body.with(call));
    };
    if parts.method == Method::HEAD {
        // Nobody takes the output, but the process is to end by itself all the same.
        while let Ok(Some(_unwanted)) = output.next().await {}
        return response.map(|body| body.with(call));
    }
    let log = app.log.clone();
    let name = command.text.clone();
    let rest = stream::try_unfold(output, move |mut output| {
        let log = log.clone();
        let name = name.clone();
        async move {
            match output.next().await {
                Ok(chunk) => Ok(chunk.map(|chunk| (chunk, output))),
                Err(failure) => {
                    log.line(format_args!("error: {name}: {failure} after output had been sent"));
                    Err(failure.into_io())
                }
            }
        }
    });
    let whole = stream::iter([Ok(first)]).chain(rest).boxed();
    response.map(|_| Body::stream(whole, None).with(call))
}

/// Mode serializing: the whole request in, the whole output out, and a status that tells.
pub(crate) async fn serializing(
    app: &Arc<App>,
    command: &CommandLine,
    request: Request<Incoming>,
    mut call: Box<Call>,
) -> Response<Body> {
    let (parts, incoming) = request.into_parts();
    call.log_access(&app.log, &parts, StatusStyle::Number, app.config.log_call_id);
    let deadline = Deadline::after(call.started, app.config.read_timeout);
    let upload = Limited::new(Upload::Passing(incoming, deadline), app.config.max_buffer);
    let input = match upload.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let text = "the request is larger than may be held in memory\n";
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, text, call);
        }
        Err(error) => {
            let text = format!("cannot read the request: {error}\n");
            return refuse(StatusCode::BAD_REQUEST, &text, call);
        }
    };
    let Process { mut stdin, mut output } = match start(app, command, &parts) {
        Ok(process) => process,
        Err((status, text)) => return refuse(status, &text, call),
    };
    let feeding = async move {
        // A process need not read its input.
        let _unread = stdin.write_all(&input).await;
        drop(stdin);
        std::future::pending::<()>().await;
    };
    let collected = tokio::select! {
        collected = output.collect(app.config.max_buffer) => collected,
        () = feeding => unreachable!("feeding never ends by itself"),
    };
    let took = duration_header(call.started);
    let mut response = match collected {
        Ok(bytes) => {
            let size = i64::try_from(bytes.len()).unwrap_or(-1);
            call.answered(StatusCode::OK, Some(size));
            let mut response = Response::new(Body::full(bytes).with(call));
            response.headers_mut().insert(header::CONTENT_TYPE, app.config.content_type.clone());
            response
        }
        Err(failure) => {
            app.log.line(format_args!("error: {}: {failure}", command.text));
            refuse(StatusCode::INTERNAL_SERVER_ERROR, &failure.to_string(), call)
        }
    };
    response.headers_mut().insert(DURATION, took);
    response
}

/// Why a process gave no complete answer; the text goes to the caller, as the original sends it.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Exit(Exit),
    /// Killed at the end of its time.
    #[error("{}", Exit::Signal(Signal::SIGKILL))]
    TimedOut,
    #[error("the output is larger than may be held in memory")]
    TooLarge,
    #[error("cannot read the output: {0}")]
    Read(io::Error),
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn into_io(self) -> io::Error {
        match self {
            Self::TimedOut => io::ErrorKind::TimedOut.into(),
            other => io::Error::other(other),
        }
    }
}

/// What comes out of a running process; dropping it kills what still runs.
struct Output {
    stdout: pipe::Receiver,
    exit: oneshot::Receiver<Exit>,
    group: Arc<Group>,
    end: Option<Instant>,
    buffer: BytesMut,
}

impl Drop for Output {
    fn drop(&mut self) {
        self.group.signal(Signal::SIGKILL);
    }
}

impl Output {
    /// The next piece of output; `None` once the process has ended well.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let end = self.end;
        let step = self.step();
        let result = match end {
            Some(end) => tokio::time::timeout_at(end, step).await.unwrap_or(Err(Failure::TimedOut)),
            None => step.await,
        };
        if result.is_err() {
            self.group.signal(Signal::SIGKILL);
        }
        result
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Failure> {
        self.buffer.reserve(CHUNK);
        match self.stdout.read_buf(&mut self.buffer).await {
            Ok(0) => {}
            Ok(_) => return Ok(Some(self.buffer.split().freeze())),
            Err(error) => return Err(Failure::Read(error)),
        }
        let exit = (&mut self.exit).await.unwrap_or(Exit::Code(-1));
        self.group.release();
        if exit.success() { Ok(None) } else { Err(Failure::Exit(exit)) }
    }

    async fn collect(&mut self, most: usize) -> Result<Bytes, Failure> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.next().await? {
            if whole.len() + chunk.len() > most {
                return Err(Failure::TooLarge);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }
}

struct Process {
    stdin: pipe::Sender,
    output: Output,
}

/// Starts the process of one call, or says with which status it cannot be.
fn start(
    app: &Arc<App>,
    command: &CommandLine,
    request: &Parts,
) -> Result<Process, (StatusCode, String)> {
    match app.children.spawn(command, request_environment(request)) {
        Ok(child) => {
            let log = app.log.clone();
            let style = app.config.line_style();
            tokio::spawn(lines::copy(child.stderr, log, Stream::Stderr, style));
            Ok(Process {
                stdin: child.stdin,
                output: Output {
                    stdout: child.stdout,
                    exit: child.exit,
                    group: child.group,
                    end: app
                        .config
                        .exec_timeout
                        .and_then(|limit| Instant::now().checked_add(limit)),
                    buffer: BytesMut::new(),
                },
            })
        }
        // A NUL byte, or more than the kernel passes to a process: both come from the request.
        Err(error)
            if error.kind() == io::ErrorKind::InvalidInput
                || error.kind() == io::ErrorKind::ArgumentListTooLong =>
        {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            Err((status, "the request does not fit the environment of a process\n".to_owned()))
        }
        Err(error) => {
            let text = format!("cannot start {}: {error}", command.program);
            app.log.line(format_args!("error: {text}"));
            Err((StatusCode::INTERNAL_SERVER_ERROR, text))
        }
    }
}

/// Writes the request to the process. A request that breaks off kills it: a truncated input must
/// not look like a whole one.
async fn feed(mut upload: Upload, mut stdin: pipe::Sender, group: Arc<Group>) {
    while let Some(frame) = upload.frame().await {
        match frame.map(http_body::Frame::into_data) {
            Ok(Ok(chunk)) => {
                if stdin.write_all(&chunk).await.is_err() {
                    // A process need not read its input.
                    return;
                }
            }
            Ok(Err(_trailers)) => {}
            Err(_broken) => {
                group.signal(Signal::SIGKILL);
                return;
            }
        }
    }
}

fn refuse(status: StatusCode, text: &str, mut call: Box<Call>) -> Response<Body> {
    call.answered(status, Some(i64::try_from(text.len()).unwrap_or(-1)));
    plain(status, text).map(|body| body.with(call))
}

/// The request as variables: `Http_Method`, `Http_Path`, `Http_Query` and one for each header.
fn request_environment(request: &Parts) -> Vec<(String, String)> {
    let mut variables = Vec::with_capacity(request.headers.len() + 3);
    for name in request.headers.keys() {
        // `Proxy` would become `Http_Proxy`, which many libraries take for the outgoing proxy;
        // the others would pass for facts about the request that no header may tell.
        if matches!(name.as_str(), "host" | "proxy" | "method" | "path" | "query") {
            continue;
        }
        if let Some(value) = request.headers.get(name) {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            variables.push((variable_name(name.as_str()), value));
        }
    }
    variables.push(("Http_Method".to_owned(), request.method.to_string()));
    let path = decode(request.uri.path());
    variables.push(("Http_Path".to_owned(), String::from_utf8_lossy(&path).into_owned()));
    if let Some(query) = request.uri.query().filter(|query| !query.is_empty()) {
        variables.push(("Http_Query".to_owned(), query.to_owned()));
    }
    variables
}

/// `x-call-id` becomes `Http_X_Call_Id`.
fn variable_name(header: &str) -> String {
    let mut name = String::with_capacity(header.len() + 5);
    name.push_str("Http_");
    let mut word_begins = true;
    for character in header.chars() {
        match character {
            '-' => name.push('_'),
            letter if word_begins => name.push(letter.to_ascii_uppercase()),
            letter => name.push(letter),
        }
        word_begins = character == '-';
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(request: http::request::Builder) -> Vec<(String, String)> {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut variables = request_environment(&parts);
        variables.sort();
        variables
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_request_becomes_variables_in_canonical_case_with_first_values_only() {
        let request = Request::post("/a%20b/c?testing=1&x=%20")
            .header("X-Call-Id", "id")
            .header("content-type", "text/plain")
            .header("x-multi", "first")
            .header("x-multi", "second")
            .header("Host", "function.example")
            .header("Transfer-Encoding", "chunked");
        assert_eq!(
            environment(request),
            pairs(&[
                ("Http_Content_Type", "text/plain"),
                ("Http_Method", "POST"),
                ("Http_Path", "/a b/c"),
                ("Http_Query", "testing=1&x=%20"),
                ("Http_Transfer_Encoding", "chunked"),
                ("Http_X_Call_Id", "id"),
                ("Http_X_Multi", "first"),
            ])
        );
    }

    #[test]
    fn no_query_no_variable() {
        assert_eq!(
            environment(Request::get("/?")),
            pairs(&[("Http_Method", "GET"), ("Http_Path", "/")])
        );
    }

    #[test]
    fn a_callers_proxy_header_never_becomes_the_outgoing_proxy() {
        let request = Request::get("/")
            .header("Proxy", "http://evil.example")
            .header("Method", "DELETE")
            .header("Query", "x")
            .header("Path", "/elsewhere");
        assert_eq!(environment(request), pairs(&[("Http_Method", "GET"), ("Http_Path", "/")]));
    }
}
