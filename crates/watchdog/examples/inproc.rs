//! A function with the watchdog compiled in: build it, put it into an image as `fwatchdog` and set
//! `mode=inproc`. It tells what it was called with; `/panic`, `/slow` and `/endless` show how the
//! watchdog guards a handler.

use std::convert::Infallible;
use std::process::ExitCode;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use updraft_watchdog::Handler;

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn handle<B>(request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let (parts, body) = request.into_parts();
    match parts.uri.path() {
        "/panic" => panic!("asked for"),
        "/slow" => std::future::pending().await,
        "/endless" => {
            let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"first")))]);
            let whole = first.chain(stream::pending());
            Response::new(StreamBody::new(whole).boxed_unsync())
        }
        _ => {
            let body = match body.collect().await {
                Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
                Err(error) => error.to_string(),
            };
            let mut text = format!("{} {}\n", parts.method, parts.uri);
            for (name, value) in &parts.headers {
                for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\n"] {
                    text.push_str(&String::from_utf8_lossy(part));
                }
            }
            let mut response = Response::new(Full::from(text + &body).boxed_unsync());
            *response.status_mut() = http::StatusCode::ACCEPTED;
            response
        }
    }
}

fn main() -> ExitCode {
    updraft_watchdog::start(Some(Handler::new(handle)))
}
