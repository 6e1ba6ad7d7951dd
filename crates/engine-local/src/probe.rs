//! Whether a replica is ready, and whether it still is healthy: a GET on its port 8080, or a look
//! at the watchdog's lock file.
//!
//! A new replica is asked often, because somebody waits for it, until the answer is a success. A
//! ready one is asked now and then while it is awake; several failures in a row mean that it hangs
//! and is to be replaced. Who says how to ask for readiness is asked that now and then too: one
//! that is not ready any more gets no requests until it is, and is not replaced for it. Who names a health path in the annotations gets what Kubernetes would
//! do. Where nobody did, the usual path is asked with more patience: it must have answered well
//! once, and silence counts only while no request is under way, because a server that takes one
//! request at a time is busy then and not dead.

mod lock_file;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;
use updraft_engine::ReplicaLoad;
use updraft_model::{FunctionSpec, annotations, parse_duration};

/// The port on which every function serves.
pub(crate) const PORT: u16 = 8080;

const DEFAULT_PATH: &str = "/_/health";

/// How long one question to a new replica may take.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause after a failed attempt: a tenth of the time waited so far, so that a start is found out
/// late by no more than that, within these bounds.
const SHORTEST_PAUSE: Duration = Duration::from_micros(250);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How often a ready replica of a function that named a readiness path is asked whether it still
/// is, and after how many failures it is not.
const READY_PERIOD: Duration = Duration::from_secs(2);
const READY_FAILURES: u32 = 3;

/// Longest initial delay, period or timeout that a function may ask for.
const LONGEST: Duration = Duration::from_mins(5);

/// How often a ready replica is asked, how long that may take, and how many failures are too many.
const PERIOD: Duration = Duration::from_secs(10);
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
const HEALTH_FAILURES: u32 = 3;

/// Most answers in a row that a function may ask for, good or bad.
const MOST_ANSWERS: u32 = 100;

/// How a function wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probes {
    pub(crate) ready: Readiness,
    pub(crate) health: Health,
}

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Check {
    /// GET on this path.
    Http(String),
    /// The watchdog's lock file.
    LockFile,
}

/// How a replica is asked whether it takes requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Readiness {
    check: Check,
    delay: Duration,
    timeout: Duration,
    successes: u32,
    /// How often one that was ready is asked again; never where the function named nothing that
    /// would tell more than its health does.
    period: Option<Duration>,
    failures: u32,
}

/// How a ready replica is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Health {
    check: Check,
    delay: Duration,
    period: Duration,
    timeout: Duration,
    failures: u32,
    /// The function said how: then every failure counts.
    strict: bool,
}

/// Where a replica is asked: its server, and its first process for what is no server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) address: SocketAddr,
    pub(crate) process: Option<i32>,
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
    /// The lock file is not there.
    NoLockFile,
}

impl Probes {
    /// Whether something is looked at that is no answer on the network.
    pub(crate) fn look_into_the_container(&self) -> bool {
        self.ready.check == Check::LockFile || self.health.check == Check::LockFile
    }

    /// The probes that the spec's annotations ask for. What makes no sense in them is as if it
    /// were not there: OpenFaaS clients pass annotations on unread.
    pub(crate) fn of(spec: &FunctionSpec) -> Self {
        let text = |key: &str| spec.annotations.get(key).map(|value| value.trim());
        let path = |key| {
            text(key).filter(|path| {
                path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok()
            })
        };
        let time = |key| text(key).and_then(|text| parse_duration(text).ok());
        let time = |key| time(key).map(|time| time.min(LONGEST));
        let count = |key, usual| {
            let count = text(key).and_then(|text| u32::from_str(text).ok());
            count.filter(|count| *count > 0).map_or(usual, |count| count.min(MOST_ANSWERS))
        };
        let health_path = path(annotations::HEALTH_PATH);
        let lock_file = text(annotations::PROBE) == Some("lock");
        let check = |path: Option<&str>| match path {
            None if lock_file => Check::LockFile,
            path => Check::Http(path.unwrap_or(DEFAULT_PATH).to_owned()),
        };
        let delay = time(annotations::HEALTH_INITIAL_DELAY);
        let ready_path = path(annotations::READY_PATH);
        let named = [annotations::READY_PERIOD, annotations::READY_FAILURES];
        let is_watched = ready_path.is_some() || named.into_iter().any(|key| text(key).is_some());
        let ready_period =
            time(annotations::READY_PERIOD).unwrap_or(READY_PERIOD).max(SHORTEST_PERIOD);
        let asked = [
            annotations::HEALTH_PERIOD,
            annotations::HEALTH_TIMEOUT,
            annotations::HEALTH_FAILURES,
            annotations::HEALTH_INITIAL_DELAY_SECONDS,
        ];
        Self {
            ready: Readiness {
                check: check(ready_path.or(health_path)),
                delay: time(annotations::READY_INITIAL_DELAY).or(delay).unwrap_or_default(),
                timeout: time(annotations::READY_TIMEOUT)
                    .filter(|time| !time.is_zero())
                    .unwrap_or(READY_TIMEOUT),
                successes: count(annotations::READY_SUCCESSES, 1),
                period: is_watched.then_some(ready_period),
                failures: count(annotations::READY_FAILURES, READY_FAILURES),
            },
            health: Health {
                check: check(health_path),
                delay: time(annotations::HEALTH_INITIAL_DELAY_SECONDS).unwrap_or_default(),
                period: time(annotations::HEALTH_PERIOD).unwrap_or(PERIOD).max(SHORTEST_PERIOD),
                timeout: time(annotations::HEALTH_TIMEOUT)
                    .filter(|time| !time.is_zero())
                    .unwrap_or(HEALTH_TIMEOUT),
                failures: count(annotations::HEALTH_FAILURES, HEALTH_FAILURES),
                strict: health_path.is_some() || asked.into_iter().any(|key| text(key).is_some()),
            },
        }
    }
}

impl Readiness {
    /// Asks until the answer is a success. `seen` always holds the last other answer.
    pub(crate) async fn until_ready(
        &self,
        asked: Asked,
        seen: &tokio::sync::watch::Sender<NotReady>,
    ) {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let begin = Instant::now();
        let mut successes = 0;
        loop {
            match self.check.ask(asked, self.timeout).await {
                Ok(()) => {
                    successes += 1;
                    if successes >= self.successes {
                        return;
                    }
                }
                Err(answer) => {
                    successes = 0;
                    seen.send_replace(answer);
                }
            }
            pause((begin.elapsed() / 10).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
        }
    }

    /// Asks a ready replica now and then whether it still is, for as long as it is polled, and
    /// tells each change: why it is not, or nothing once it is again. What rests is not asked.
    pub(crate) async fn watch(
        &self,
        asked: Asked,
        load: &ReplicaLoad,
        tell: impl Fn(Option<String>),
    ) -> Infallible {
        let Some(period) = self.period else { return std::future::pending().await };
        let mut is_ready = true;
        let mut others = 0;
        loop {
            tokio::time::sleep(period).await;
            if load.is_paused() {
                others = 0;
                continue;
            }
            let answer = self.check.ask(asked, self.timeout).await;
            // Frozen in the middle of the question: no answer is none.
            if answer.is_ok() == is_ready || load.is_paused() {
                others = 0;
                continue;
            }
            others += 1;
            if others >= if is_ready { self.failures } else { self.successes } {
                is_ready = !is_ready;
                others = 0;
                tell(answer.err().map(|answer| self.check.explain(&answer)));
            }
        }
    }

    /// What was seen last, as a sentence for whoever wrote the function.
    pub(crate) fn explain(&self, seen: &NotReady) -> String {
        match seen {
            NotReady::Untried => "its readiness was never asked".to_owned(),
            seen => self.check.explain(seen),
        }
    }
}

/// Waits as long as that, also where it is less than the runtime's timers tell apart: those have
/// it rounded up to the next but one millisecond, which is as long as small functions take to start.
async fn pause(time: Duration) {
    if time < Duration::from_millis(2) {
        // Fails at the end of the runtime only, when nobody waits any more.
        drop(tokio::task::spawn_blocking(move || std::thread::sleep(time)).await);
    } else {
        tokio::time::sleep(time).await;
    }
}

impl Health {
    /// Asks now and then until too many answers in a row were no success. Returns why the replica
    /// is to be replaced. What rests is not asked.
    pub(crate) async fn until_unhealthy(&self, asked: Asked, load: &ReplicaLoad) -> String {
        tokio::time::sleep(self.delay).await;
        let mut failures = 0;
        let mut was_well = self.strict;
        loop {
            tokio::time::sleep(self.period).await;
            if load.is_paused() {
                failures = 0;
                continue;
            }
            let answer = self.check.ask(asked, self.timeout).await;
            let Err(answer) = answer else {
                was_well = true;
                failures = 0;
                continue;
            };
            let busy = matches!(answer, NotReady::Silent(_)) && load.in_flight() > 0;
            // Frozen in the middle of the question: no answer is none.
            if load.is_paused() || !was_well || (busy && !self.strict) {
                continue;
            }
            failures += 1;
            if failures >= self.failures {
                return self.check.explain(&answer);
            }
        }
    }
}

impl Check {
    async fn ask(&self, asked: Asked, limit: Duration) -> Result<(), NotReady> {
        match self {
            Self::Http(path) => {
                let answer = tokio::time::timeout(limit, get(path, asked.address)).await;
                answer.unwrap_or_else(|_| {
                    let limit = updraft_model::format_duration(limit);
                    Err(NotReady::Silent(format!("no answer within {limit}")))
                })
            }
            Self::LockFile => {
                let there = asked.process.is_some_and(lock_file::exists);
                if there { Ok(()) } else { Err(NotReady::NoLockFile) }
            }
        }
    }

    fn explain(&self, seen: &NotReady) -> String {
        let path = match self {
            Self::Http(path) => path,
            Self::LockFile => lock_file::PATH,
        };
        match seen {
            NotReady::Untried => "it was never asked".to_owned(),
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
            NotReady::NoLockFile => format!(
                "the lock file `{path}` is not there; without the annotation `{}` it is asked by HTTP",
                annotations::PROBE
            ),
        }
    }
}

async fn get(path: &str, address: SocketAddr) -> Result<(), NotReady> {
    let stream = TcpStream::connect(address).await.map_err(|_| NotReady::Refused)?;
    let silent = |error: hyper::Error| NotReady::Silent(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(silent)?;
    let request = Request::get(path)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use updraft_model::FunctionId;

    fn probes(annotations: &[(&str, &str)]) -> Probes {
        let id = FunctionId::in_default("f".parse().unwrap());
        let mut spec = FunctionSpec::new(id, "i".parse().unwrap());
        spec.annotations.extend(
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
        Probes::of(&spec)
    }

    fn http(path: &str) -> Check {
        Check::Http(path.to_owned())
    }

    #[test]
    fn annotations_choose_paths_and_times() {
        use annotations::{HEALTH_INITIAL_DELAY, HEALTH_PATH, READY_PATH};
        assert_eq!(probes(&[]).ready.check, http("/_/health"));
        assert!(!probes(&[]).health.strict);
        let health = probes(&[(HEALTH_PATH, "/h")]);
        assert_eq!((health.ready.check, health.health.check), (http("/h"), http("/h")));
        assert!(health.health.strict);
        let both = probes(&[(HEALTH_PATH, "/h"), (READY_PATH, "/r?x=1")]);
        assert_eq!((both.ready.check, both.health.check), (http("/r?x=1"), http("/h")));
        assert_eq!(probes(&[(READY_PATH, "no path")]).ready.check, http("/_/health"));
        let delayed = probes(&[(HEALTH_INITIAL_DELAY, "1500ms")]);
        assert_eq!(delayed.ready.delay, Duration::from_millis(1500));
        let own = probes(&[
            ("com.openfaas.ready.http.initialDelaySeconds", "4"),
            ("com.openfaas.ready.http.timeoutSeconds", "2"),
            ("com.openfaas.ready.http.successThreshold", "3"),
            ("com.openfaas.health.http.initialDelaySeconds", "5"),
            ("com.openfaas.health.http.periodSeconds", "2"),
            ("com.openfaas.health.http.timeoutSeconds", "1"),
            ("com.openfaas.health.http.failureThreshold", "4"),
        ]);
        let seconds = Duration::from_secs;
        let Readiness { delay, timeout, successes, period, .. } = own.ready;
        assert_eq!((delay, timeout, successes, period), (seconds(4), seconds(2), 3, None));
        let watched = |key, value| {
            let Readiness { period, failures, .. } = probes(&[(key, value)]).ready;
            (period, failures)
        };
        assert_eq!(watched(READY_PATH, "/r"), (Some(READY_PERIOD), READY_FAILURES));
        assert_eq!(watched(annotations::READY_PERIOD, "0"), (Some(SHORTEST_PERIOD), 3));
        assert_eq!(watched(annotations::READY_FAILURES, "7"), (Some(READY_PERIOD), 7));
        assert_eq!(watched(READY_PATH, "no path").0, None);
        let Health { delay, period, timeout, failures, strict, .. } = own.health;
        assert_eq!((delay, period, timeout, failures), (seconds(5), seconds(2), seconds(1), 4));
        assert!(strict);
        let senseless = probes(&[
            ("com.openfaas.health.http.periodSeconds", "0"),
            ("com.openfaas.health.http.failureThreshold", "-1"),
            ("com.openfaas.ready.http.initialDelaySeconds", "86400"),
        ]);
        assert_eq!((senseless.health.period, senseless.health.failures), (SHORTEST_PERIOD, 3));
        assert_eq!(senseless.ready.delay, LONGEST);
    }

    #[test]
    fn the_lock_file_is_looked_at_where_no_path_is_named() {
        let lock = probes(&[(annotations::PROBE, "lock")]);
        assert_eq!((lock.ready.check, lock.health.check), (Check::LockFile, Check::LockFile));
        let path = probes(&[(annotations::PROBE, "lock"), (annotations::HEALTH_PATH, "/h")]);
        assert_eq!(path.ready.check, http("/h"), "a path always means HTTP");
    }

    /// A server that gives these answers, one a connection, then none.
    async fn server(answers: &'static [&'static str]) -> (Asked, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                assert!(request[..length].starts_with(b"GET /_/health HTTP/1.1\r\n"));
                let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (Asked { address, process: None }, serving)
    }

    #[tokio::test]
    async fn a_probe_goes_on_until_the_answer_is_a_success() {
        let (asked, serving) =
            server(&["404 Not Found", "503 Service Unavailable", "200 OK"]).await;
        let (seen, last) = watch::channel(NotReady::Untried);
        let ready = probes(&[]).ready;
        ready.until_ready(asked, &seen).await;
        serving.await.unwrap();
        assert_eq!(*last.borrow(), NotReady::Status(StatusCode::SERVICE_UNAVAILABLE));
        assert!(ready.explain(&NotReady::Status(StatusCode::NOT_FOUND)).contains("annotation"));
    }

    #[tokio::test]
    async fn as_many_good_answers_in_a_row_are_wanted_as_were_asked_for() {
        let (asked, serving) = server(&["200 OK", "500 No", "200 OK", "200 OK"]).await;
        let (seen, _last) = watch::channel(NotReady::Untried);
        probes(&[(annotations::READY_SUCCESSES, "2")]).ready.until_ready(asked, &seen).await;
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn failures_in_a_row_make_a_replica_unhealthy_and_a_good_answer_forgives_them() {
        let (asked, serving) = server(&["200 OK", "500 No", "200 OK", "500 No", "500 No"]).await;
        let health = Health { period: Duration::from_millis(1), failures: 2, ..probes(&[]).health };
        let load = Arc::new(ReplicaLoad::default());
        let reason = health.until_unhealthy(asked, &load).await;
        serving.await.unwrap();
        assert!(reason.contains("500"), "{reason}");
    }

    #[tokio::test]
    async fn each_change_of_readiness_is_told_once_and_a_rest_is_none() {
        let answers = &["200 OK", "503 No", "200 OK", "503 No", "503 No", "500 No", "200 OK"];
        let (asked, serving) = server(answers).await;
        let load = Arc::new(ReplicaLoad::default());
        let ready =
            Readiness { period: Some(Duration::from_millis(1)), failures: 2, ..probes(&[]).ready };
        assert!(load.pause_if_idle());
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let watching = tokio::spawn({
            let load = Arc::clone(&load);
            async move { ready.watch(asked, &load, |why| told.send(why).unwrap()).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(heard.try_recv().is_err() && !serving.is_finished(), "it rests");
        load.resume();
        let why = heard.recv().await.unwrap().unwrap();
        assert!(why.contains("503"), "{why}");
        assert_eq!(heard.recv().await.unwrap(), None);
        serving.await.unwrap();
        watching.abort();
    }

    #[tokio::test]
    async fn what_rests_or_never_answered_well_is_not_unhealthy() {
        // Nothing listens there.
        let asked = Asked { address: SocketAddr::from(([127, 0, 0, 1], 1)), process: None };
        let patient = Health { period: Duration::from_millis(1), ..probes(&[]).health };
        let strict = Health { strict: true, ..patient.clone() };
        let load = Arc::new(ReplicaLoad::default());
        let limit = Duration::from_millis(100);
        let ends = async |health: &Health| {
            tokio::time::timeout(limit, health.until_unhealthy(asked, &load)).await.is_ok()
        };
        assert!(!ends(&patient).await, "it never answered well");
        assert!(load.pause_if_idle());
        assert!(!ends(&strict).await, "it rests");
        load.resume();
        assert!(strict.until_unhealthy(asked, &load).await.contains("nothing listens"));
    }
}
