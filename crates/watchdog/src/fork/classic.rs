//! Mode classic: the forking behaviour of the first OpenFaaS watchdog, for images written for it.
//!
//! The request is read whole, the process gets it on its input, and its output (with its errors,
//! unless told otherwise) is the answer. Reads no settings but those handed in.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;

use super::environment::{canonical, classic_environment};
use super::{Failure, Process, feed_whole, read_whole, sniff, start};
use crate::body::Body;
use crate::call::Call;
use crate::children::Streams;
use crate::config::{Classic, CommandLine};
use crate::log::Log;
use crate::server::{App, DURATION, duration_header, plain, status};

/// Answers one call.
pub(crate) async fn classic(
    app: &Arc<App>,
    command: &CommandLine,
    settings: &Classic,
    request: Request<Incoming>,
    mut call: Box<Call>,
) -> Response<Body> {
    let response = match answer(app, command, settings, request, &call).await {
        Ok(response) => response,
        Err((status, text)) => {
            // Every refusal ends its line, as the original's do.
            let end = if text.ends_with('\n') { "" } else { "\n" };
            plain(status, &format!("{text}{end}"))
        }
    };
    if settings.debug_headers {
        log_headers(&app.log, "out", response.headers());
    }
    call.answered(response.status(), None);
    response.map(|body| body.with(call))
}

async fn answer(
    app: &Arc<App>,
    command: &CommandLine,
    settings: &Classic,
    request: Request<Incoming>,
    call: &Call,
) -> Result<Response<Body>, (StatusCode, String)> {
    let (parts, incoming) = request.into_parts();
    if !settings.takes(&parts.method) {
        let mut response = status(StatusCode::METHOD_NOT_ALLOWED);
        let allowed = if settings.all_methods {
            "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
        } else {
            "GET, POST, PUT, PATCH, DELETE"
        };
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
        return Ok(response);
    }
    if settings.debug_headers {
        log_headers(&app.log, "in", &parts.headers);
    }
    let body = read_whole(app, incoming, call.started).await?;
    let environment =
        if settings.cgi_headers { classic_environment(&parts, body.len()) } else { Vec::new() };
    let input = if settings.marshal_request { marshal(&parts, &body)? } else { body };
    let streams = if settings.combine_output { Streams::Together } else { Streams::Apart };

    app.log.line(format_args!("Forking fprocess."));
    let Process { stdin, mut output } = start(app, command, &parts, environment, streams)?;
    let mut written = BytesMut::new();
    let ended = tokio::select! {
        ended = output.collect_into(&mut written, app.config.max_buffer) => ended,
        () = feed_whole(stdin, &input) => unreachable!("feeding never ends by itself"),
    };
    let written = written.freeze();
    if settings.write_debug {
        for line in String::from_utf8_lossy(&written).lines() {
            app.log.line(format_args!("out: {line}"));
        }
    }
    if let Err(failure) = ended {
        app.log.line(format_args!("error: {}: {failure}", command.text));
        return failed(&failure, &written);
    }
    let seconds = call.started.elapsed().as_secs_f64();
    if settings.write_debug {
        app.log.line(format_args!("Duration: {seconds:.6}s"));
    } else {
        let length = written.len();
        app.log.line(format_args!("Wrote {length} Bytes - Duration: {seconds:.6}s"));
    }

    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(DURATION, duration_header(call.started));
    let asked = parts.headers.get(header::CONTENT_TYPE).cloned();
    let content_type = settings.content_type.clone().or(asked).or_else(|| {
        (!written.is_empty()).then(|| HeaderValue::from_static(sniff::content_type(&written)))
    });
    if let Some(content_type) = content_type {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    Ok(response.map(|_| Body::full(written)))
}

/// What the caller is told of a process that has not ended well: the reason, then its output.
fn failed(failure: &Failure, written: &[u8]) -> Result<Response<Body>, (StatusCode, String)> {
    match failure {
        Failure::TimedOut => Err((StatusCode::REQUEST_TIMEOUT, "Killed process.".to_owned())),
        Failure::Exit(exit) => {
            let mut body = BytesMut::from(format!("{exit}\n").as_bytes());
            body.extend_from_slice(written);
            let response = plain(StatusCode::INTERNAL_SERVER_ERROR, "");
            Ok(response.map(|_| Body::full(body.freeze())))
        }
        other => Err((StatusCode::INTERNAL_SERVER_ERROR, other.to_string())),
    }
}

/// The request as one JSON document, for processes that want the headers on their input.
fn marshal(request: &Parts, body: &[u8]) -> Result<Bytes, (StatusCode, String)> {
    #[derive(Serialize)]
    struct Marshalled {
        header: BTreeMap<String, Vec<String>>,
        body: Raw,
    }
    #[derive(Serialize)]
    struct Raw {
        raw: String,
    }
    let names = request.headers.keys().filter(|name| *name != header::HOST);
    let header =
        names.map(|name| (canonical(name.as_str(), '-'), values(&request.headers, name))).collect();
    let marshalled = Marshalled { header, body: Raw { raw: BASE64_STANDARD.encode(body) } };
    serde_json::to_vec(&marshalled)
        .map(Bytes::from)
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn values(headers: &HeaderMap, name: &header::HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter();
    values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
}

/// One line for each header; those that carry passwords or sessions keep them to themselves.
fn log_headers(log: &Log, direction: &str, headers: &HeaderMap) {
    const SECRET: [header::HeaderName; 4] =
        [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE, header::SET_COOKIE];
    for name in headers.keys() {
        let shown =
            if SECRET.contains(name) { "…".to_owned() } else { values(headers, name).join(" ") };
        let name = canonical(name.as_str(), '-');
        log.line(format_args!("[{direction}] {name}=[{shown}]"));
    }
}

impl Classic {
    fn takes(&self, method: &Method) -> bool {
        match *method {
            Method::GET | Method::POST | Method::PUT | Method::PATCH | Method::DELETE => true,
            Method::HEAD | Method::OPTIONS => self.all_methods,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marshalled_request_has_canonical_headers_without_host_and_the_body_in_base64() {
        let request = Request::post("/")
            .header("host", "function.example")
            .header("x-multi", "a")
            .header("x-multi", "b");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(
            marshal(&parts, b"\xff\x00hi").unwrap(),
            r#"{"header":{"X-Multi":["a","b"]},"body":{"raw":"/wBoaQ=="}}"#
        );
    }
}
