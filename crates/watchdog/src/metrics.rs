//! What is counted of calls, and the page that tells it, in Prometheus' text format.
//!
//! Names, labels and buckets are those of the original watchdogs. The number of series is bounded:
//! a function chooses its status codes, and each series costs memory.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::body::Body;
use crate::server::{plain, status};

/// Upper ends of the duration buckets in seconds: those of every Prometheus client.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Most pairs of status and method that are told apart.
const MAX_SERIES: usize = 256;
/// How long a request for the page may take to arrive, and an idle connection is kept.
const PAGE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a connection for the page may live in all.
const PAGE_LIFE: Duration = Duration::from_secs(10);
/// Most connections for the page at once.
const PAGE_CONNECTIONS: usize = 16;
/// In place of a status where series would become too many.
const OTHER: u16 = 0;

/// All counters of one watchdog.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    in_flight: AtomicI64,
    /// From our start until the function took calls, in microseconds; 0 until then.
    start: AtomicU64,
    /// Few in practice, so a search is quicker than a hash.
    series: Mutex<Vec<Series>>,
}

#[derive(Debug)]
struct Series {
    code: u16,
    method: &'static str,
    count: u64,
    seconds: f64,
    /// How many fell into each bucket and into none before it.
    buckets: [u64; BUCKETS.len()],
}

/// One call that is being counted; it leaves those in flight when dropped.
#[derive(Debug)]
pub(crate) struct Measured {
    metrics: Arc<Metrics>,
    method: &'static str,
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Measured {
    /// Counts the call with how it ended.
    pub(crate) fn end(self, status: StatusCode, took: Duration) {
        self.metrics.count(status.as_u16(), self.method, took.as_secs_f64());
    }
}

impl Metrics {
    /// Counts a call as in flight.
    pub(crate) fn begin(self: &Arc<Self>, method: &Method) -> Measured {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Measured { metrics: Arc::clone(self), method: method_label(method) }
    }

    /// Notes how long the function took to be ready.
    pub(crate) fn ready_after(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.start.store(micros.max(1), Ordering::Relaxed);
    }

    fn count(&self, code: u16, method: &'static str, seconds: f64) {
        let mut series = self.series();
        let find = |series: &[Series], code, method| {
            series.iter().position(|one| one.code == code && one.method == method)
        };
        let found = match find(&series, code, method) {
            Some(found) => found,
            None if series.len() < MAX_SERIES => add(&mut series, code, method),
            None => match find(&series, OTHER, "other") {
                Some(found) => found,
                None => add(&mut series, OTHER, "other"),
            },
        };
        let Some(one) = series.get_mut(found) else { return };
        one.count += 1;
        one.seconds += seconds;
        if let Some(bucket) = BUCKETS.iter().position(|&end| seconds <= end) {
            one.buckets[bucket] += 1;
        }
    }

    fn series(&self) -> MutexGuard<'_, Vec<Series>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole page.
    fn page(&self) -> String {
        let mut page = String::with_capacity(4096);
        self.write(&mut page).map_or_else(|_never| String::new(), |()| page)
    }

    fn write(&self, page: &mut String) -> std::fmt::Result {
        let mut series = self.series();
        series.sort_unstable_by_key(|one| (one.code, one.method));
        family(page, "http_requests_total", "counter", "Calls that have ended.")?;
        for one in series.iter() {
            writeln!(page, "http_requests_total{{{}}} {}", one.labels(), one.count)?;
        }
        let name = "http_request_duration_seconds";
        family(page, name, "histogram", "How long calls took.")?;
        for one in series.iter() {
            let labels = one.labels();
            let mut sum = 0;
            for (end, count) in BUCKETS.iter().zip(one.buckets) {
                sum += count;
                writeln!(page, "{name}_bucket{{{labels},le=\"{end}\"}} {sum}")?;
            }
            writeln!(page, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", one.count)?;
            writeln!(page, "{name}_sum{{{labels}}} {}", one.seconds)?;
            writeln!(page, "{name}_count{{{labels}}} {}", one.count)?;
        }
        drop(series);
        family(page, "http_requests_in_flight", "gauge", "Calls under way.")?;
        writeln!(page, "http_requests_in_flight {}", self.in_flight.load(Ordering::Relaxed))?;
        let start = self.start.load(Ordering::Relaxed);
        if start > 0 {
            let name = "updraft_function_start_seconds";
            family(
                page,
                name,
                "gauge",
                "From the watchdog's start until the function took calls.",
            )?;
            writeln!(page, "{name} {}", Duration::from_micros(start).as_secs_f64())?;
        }
        Ok(())
    }
}

impl Series {
    fn labels(&self) -> String {
        match self.code {
            OTHER => format!("code=\"other\",method=\"{}\"", self.method),
            code => format!("code=\"{code}\",method=\"{}\"", self.method),
        }
    }
}

fn add(series: &mut Vec<Series>, code: u16, method: &'static str) -> usize {
    let buckets = [0; BUCKETS.len()];
    series.push(Series { code, method, count: 0, seconds: 0.0, buckets });
    series.len() - 1
}

fn family(page: &mut String, name: &str, kind: &str, help: &str) -> std::fmt::Result {
    writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

/// The method in lower case; one that is none of HTTP's is `unknown`, since callers choose it.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        Method::CONNECT => "connect",
        Method::TRACE => "trace",
        _ => "unknown",
    }
}

/// Serves the page for as long as the watchdog runs.
pub(crate) async fn serve(metrics: Arc<Metrics>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(PAGE_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _peer)) = listener.accept().await else {
            // Mostly too many open files: connections that end make room.
            tokio::time::sleep(PAGE_TIMEOUT).await;
            continue;
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let _too_long = tokio::time::timeout(PAGE_LIFE, attend(metrics, stream)).await;
            drop(place);
        });
    }
}

async fn attend(metrics: Arc<Metrics>, stream: TcpStream) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&metrics, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = http1::Builder::new();
    builder.max_buf_size(16 * 1024).timer(TokioTimer::new()).header_read_timeout(PAGE_TIMEOUT);
    // Whoever asks learns of failures by himself.
    let _broken = builder.serve_connection(TokioIo::new(stream), service).await;
}

fn answer(metrics: &Metrics, request: &Request<Incoming>) -> Response<Body> {
    if request.uri().path() != "/metrics" {
        return status(StatusCode::NOT_FOUND);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return status(StatusCode::METHOD_NOT_ALLOWED);
    }
    let mut response = plain(StatusCode::OK, &metrics.page());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_names_labels_and_buckets_of_the_original() {
        let metrics = Arc::new(Metrics::default());
        let call = |method: Method, code: u16, millis| {
            let status = StatusCode::from_u16(code).unwrap();
            metrics.begin(&method).end(status, Duration::from_millis(millis));
        };
        call(Method::GET, 200, 4);
        call(Method::GET, 200, 250);
        call(Method::POST, 500, 20_000);
        let _under_way = metrics.begin(&Method::GET);
        let page = metrics.page();
        for line in [
            "# TYPE http_requests_total counter",
            "http_requests_total{code=\"200\",method=\"get\"} 2",
            "http_requests_total{code=\"500\",method=\"post\"} 1",
            "# TYPE http_request_duration_seconds histogram",
            "http_request_duration_seconds_bucket{code=\"200\",method=\"get\",le=\"0.005\"} 1",
            "http_request_duration_seconds_bucket{code=\"200\",method=\"get\",le=\"0.1\"} 1",
            "http_request_duration_seconds_bucket{code=\"200\",method=\"get\",le=\"0.25\"} 2",
            "http_request_duration_seconds_bucket{code=\"200\",method=\"get\",le=\"+Inf\"} 2",
            "http_request_duration_seconds_bucket{code=\"500\",method=\"post\",le=\"10\"} 0",
            "http_request_duration_seconds_bucket{code=\"500\",method=\"post\",le=\"+Inf\"} 1",
            "http_request_duration_seconds_sum{code=\"500\",method=\"post\"} 20",
            "http_request_duration_seconds_count{code=\"200\",method=\"get\"} 2",
            "# TYPE http_requests_in_flight gauge",
            "http_requests_in_flight 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in {page}");
        }
    }

    #[test]
    fn series_are_bounded_and_no_call_goes_uncounted() {
        let metrics = Metrics::default();
        for code in 100..1000 {
            metrics.count(code, "get", 0.1);
        }
        let page = metrics.page();
        let totals: Vec<_> =
            page.lines().filter(|line| line.starts_with("http_requests_total{")).collect();
        assert_eq!(totals.len(), MAX_SERIES + 1);
        assert_eq!(
            totals[0],
            format!("http_requests_total{{code=\"other\",method=\"other\"}} {}", 900 - MAX_SERIES)
        );
    }

    #[test]
    fn methods_that_are_not_https_own_share_a_label() {
        assert_eq!(method_label(&Method::PATCH), "patch");
        assert_eq!(method_label(&Method::from_bytes(b"BREW").unwrap()), "unknown");
    }
}
