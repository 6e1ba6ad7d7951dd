//! Whether a replica is ready: one GET on its port 8080, until the answer is a success.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use updraft_model::{FunctionSpec, annotations, parse_duration};

/// The port on which every function serves.
pub(crate) const PORT: u16 = 8080;

const DEFAULT_PATH: &str = "/_/health";

/// How long one attempt may take.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(1);

/// Pause after the first failed attempt; each next one is half as long again.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Longest initial delay that a function may ask for.
const DELAY_MAX: Duration = Duration::from_mins(5);

/// How a function wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    path: String,
    delay: Duration,
}

/// What an attempt met that was no success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotReady {
    /// Nothing was tried yet.
    Untried,
    /// Nobody listens.
    Refused,
    /// Somebody listens and does not answer, or not with HTTP.
    Silent(String),
    /// An answer that is no success.
    Status(StatusCode),
}

impl Probe {
    /// The probe that the spec's annotations ask for. A path or delay that makes no sense is the
    /// default one: OpenFaaS clients pass annotations on unread.
    pub(crate) fn of(spec: &FunctionSpec) -> Self {
        let annotation = |key| spec.annotations.get(key).map(|value| value.trim());
        let path = [annotations::READY_PATH, annotations::HEALTH_PATH]
            .into_iter()
            .filter_map(annotation)
            .find(|path| path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok())
            .unwrap_or(DEFAULT_PATH);
        let delay = annotation(annotations::HEALTH_INITIAL_DELAY)
            .and_then(|delay| parse_duration(delay).ok())
            .unwrap_or_default();
        Self { path: path.to_owned(), delay: delay.min(DELAY_MAX) }
    }

    /// Asks until the answer is a success. `seen` always holds the last other answer.
    pub(crate) async fn until_ready(
        &self,
        address: SocketAddr,
        seen: &tokio::sync::watch::Sender<NotReady>,
    ) {
        tokio::time::sleep(self.delay).await;
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = tokio::time::timeout(ATTEMPT_LIMIT, self.ask(address)).await;
            match attempt.unwrap_or(Err(NotReady::Silent("no answer within a second".to_owned()))) {
                Ok(()) => return,
                Err(answer) => seen.send_replace(answer),
            };
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    async fn ask(&self, address: SocketAddr) -> Result<(), NotReady> {
        let stream = TcpStream::connect(address).await.map_err(|_| NotReady::Refused)?;
        let silent = |error: hyper::Error| NotReady::Silent(error.to_string());
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(silent)?;
        let request = Request::get(&self.path)
            .header(http::header::HOST, address.to_string())
            .header(http::header::USER_AGENT, "updraft-probe")
            .header(http::header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| NotReady::Silent(error.to_string()))?;
        tokio::pin!(connection);
        let response = sender.send_request(request);
        tokio::pin!(response);
        let response = tokio::select! {
            response = &mut response => response,
            ended = &mut connection => match ended {
                Ok(()) => response.await,
                Err(error) => Err(error),
            },
        };
        let status = response.map_err(silent)?.status();
        if status.is_success() || status.is_redirection() {
            Ok(())
        } else {
            Err(NotReady::Status(status))
        }
    }

    /// What was seen last, as a sentence for whoever wrote the function.
    pub(crate) fn explain(&self, seen: &NotReady) -> String {
        let path = &self.path;
        match seen {
            NotReady::Untried => "its readiness was never asked".to_owned(),
            NotReady::Refused => {
                format!("nothing listens on its port {PORT}, the function must serve HTTP there")
            }
            NotReady::Silent(reason) => {
                format!("port {PORT} does not answer `GET {path}` with HTTP ({reason})")
            }
            NotReady::Status(status @ StatusCode::NOT_FOUND) => format!(
                "`GET {path}` on port {PORT} answers {status}; serve that path, or name another in the annotation `{}`",
                annotations::HEALTH_PATH
            ),
            NotReady::Status(status) => format!("`GET {path}` on port {PORT} answers {status}"),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use updraft_model::FunctionId;

    fn probe(annotations: &[(&str, &str)]) -> Probe {
        let id = FunctionId::in_default("f".parse().unwrap());
        let mut spec = FunctionSpec::new(id, "i".parse().unwrap());
        spec.annotations.extend(
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
        Probe::of(&spec)
    }

    #[test]
    fn annotations_choose_path_and_delay() {
        assert_eq!(probe(&[]).path, "/_/health");
        assert_eq!(probe(&[(annotations::HEALTH_PATH, "/h")]).path, "/h");
        let both = [(annotations::HEALTH_PATH, "/h"), (annotations::READY_PATH, "/r?x=1")];
        assert_eq!(probe(&both).path, "/r?x=1");
        assert_eq!(probe(&[(annotations::READY_PATH, "no path")]).path, "/_/health");
        let delayed = probe(&[(annotations::HEALTH_INITIAL_DELAY, "1500ms")]);
        assert_eq!(delayed.delay, Duration::from_millis(1500));
    }

    #[tokio::test]
    async fn a_probe_goes_on_until_the_answer_is_a_success() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            for answer in ["404 Not Found", "503 Service Unavailable", "200 OK"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                assert!(request[..length].starts_with(b"GET /_/health HTTP/1.1\r\n"));
                let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let (seen, last) = watch::channel(NotReady::Untried);
        probe(&[]).until_ready(address, &seen).await;
        server.await.unwrap();
        assert_eq!(*last.borrow(), NotReady::Status(StatusCode::SERVICE_UNAVAILABLE));
        assert!(
            probe(&[]).explain(&NotReady::Status(StatusCode::NOT_FOUND)).contains("annotation")
        );
    }
}
