//! The forking modes: a process for each call, fed by the request and read for the answer.
//!
//! `streaming` passes both bodies as they come; `serializing` holds them whole, and so does
//! `classic`, which is in a module of its own. A process that outlives its call (timeout, caller
//! gone) is killed with everything it has started.

mod classic;
mod environment;
mod sniff;

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
use crate::children::{Child, Exit, Group, Streams};
use crate::config::CommandLine;
use crate::lines;
use crate::log::Stream;
use crate::server::{App, DURATION, duration_header, plain};

pub(crate) use classic::classic;
use environment::request_environment;

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
    let Process { stdin, mut output } =
        match start(app, command, &parts, request_environment(&parts), Streams::Apart) {
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
    let input = match read_whole(app, incoming, call.started).await {
        Ok(input) => input,
        Err((status, text)) => return refuse(status, &text, call),
    };
    let Process { stdin, mut output } =
        match start(app, command, &parts, request_environment(&parts), Streams::Apart) {
            Ok(process) => process,
            Err((status, text)) => return refuse(status, &text, call),
        };
    let collected = tokio::select! {
        collected = output.collect(app.config.max_buffer) => collected,
        () = feed_whole(stdin, &input) => unreachable!("feeding never ends by itself"),
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

    /// All output until the process has ended well.
    async fn collect(&mut self, most: usize) -> Result<Bytes, Failure> {
        let mut whole = BytesMut::new();
        self.collect_into(&mut whole, most).await?;
        Ok(whole.freeze())
    }

    /// Also leaves in `whole` what a process has written before it failed.
    async fn collect_into(&mut self, whole: &mut BytesMut, most: usize) -> Result<(), Failure> {
        while let Some(chunk) = self.next().await? {
            if whole.len() + chunk.len() > most {
                return Err(Failure::TooLarge);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(())
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
    environment: Vec<(String, String)>,
    streams: Streams,
) -> Result<Process, (StatusCode, String)> {
    match app.children.spawn(command, environment, streams) {
        Ok(Child { group, stdin, stdout, stderr, exit }) => {
            if let Some(stderr) = stderr {
                let log = app.log.clone();
                let style = app.config.line_style();
                let correlation = log.correlation(&request.headers);
                tokio::spawn(lines::copy(stderr, log, Stream::Stderr, style, correlation));
            }
            let limit = app.config.exec_timeout;
            let end = limit.and_then(|limit| Instant::now().checked_add(limit));
            let output = Output { stdout, exit, group, end, buffer: BytesMut::new() };
            Ok(Process { stdin, output })
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

/// Reads the whole request, or says with which status it cannot be.
async fn read_whole(
    app: &App,
    incoming: Incoming,
    started: Instant,
) -> Result<Bytes, (StatusCode, String)> {
    let deadline = Deadline::after(started, app.config.read_timeout);
    let upload = Limited::new(Upload::Passing(incoming, deadline), app.config.max_buffer);
    match upload.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let text = "the request is larger than may be held in memory\n";
            Err((StatusCode::PAYLOAD_TOO_LARGE, text.to_owned()))
        }
        Err(error) => Err((StatusCode::BAD_REQUEST, format!("cannot read the request: {error}\n"))),
    }
}

/// Writes all input and closes it, then waits for ever: the end of the process is what counts.
async fn feed_whole(mut stdin: pipe::Sender, input: &[u8]) {
    // A process need not read its input.
    let _unread = stdin.write_all(input).await;
    drop(stdin);
    std::future::pending::<()>().await;
}

fn refuse(status: StatusCode, text: &str, mut call: Box<Call>) -> Response<Body> {
    call.answered(status, Some(i64::try_from(text.len()).unwrap_or(-1)));
    plain(status, text).map(|body| body.with(call))
}
