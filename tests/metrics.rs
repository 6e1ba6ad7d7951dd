//! The numbers of a running cloud: that they have the names, types and labels that OpenFaaS boards
//! and rules ask for, that ours in `deploy/` ask for nothing else, and that the guide tells of all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use updraft_tests::images::alpine;
use updraft_tests::{Cloud, Connection, eventually};

const IMAGE: &str = "functions/alpine:latest";

/// What `/metrics` says.
#[derive(Debug, Default)]
struct Scraped {
    /// The type of each family, as it is named.
    types: BTreeMap<String, String>,
    /// The names of the labels of each series, its name first.
    series: BTreeMap<String, BTreeSet<String>>,
    text: String,
}

impl Scraped {
    fn parse(text: &str) -> Self {
        let mut scraped = Self { text: text.to_owned(), ..Self::default() };
        assert!(text.ends_with("# EOF\n"), "the text is whole");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type has a name");
                let known = scraped.types.insert(name.to_owned(), kind.to_owned());
                assert_eq!(known, None, "{name} is told once");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("a series has a value");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                let names = label_names(labels.strip_suffix('}').expect("labels end"));
                scraped.series.entry(name.to_owned()).or_default().extend(names);
            }
        }
        scraped
    }

    /// Whether a query may name `name`.
    fn serves(&self, name: &str) -> bool {
        self.series.contains_key(name)
            || self.types.iter().any(|(family, kind)| match kind.as_str() {
                "counter" => name == family || name == format!("{family}_total"),
                "histogram" => ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|suffix| name.strip_suffix(suffix) == Some(family)),
                _ => name == family,
            })
    }
}

/// The names in `a="x",b="y"`; values here hold no quotes.
fn label_names(labels: &str) -> Vec<String> {
    let outside = labels.split('"').step_by(2);
    outside
        .filter_map(|part| part.trim_start_matches(',').strip_suffix('='))
        .map(str::to_owned)
        .collect()
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("a listener has an address")
}

/// A cloud with a function that was called, and the address of the open listener.
async fn cloud_with_a_called_function() -> (Cloud, SocketAddr) {
    let address = free_address();
    let mut file = tempfile::NamedTempFile::new().expect("a file can be made");
    write!(file, "[metrics]\nlisten = '{address}'").expect("a file can be written");
    let path = file.path().to_str().expect("the path is text");
    let cloud = Cloud::start_with_images(&[alpine(&[IMAGE])], &["--config", path]);
    let deployment = json!({
        "service": "counted", "image": IMAGE, "envProcess": "cat",
        "labels": {"com.openfaas.scale.type": "capacity", "com.openfaas.scale.target": "7"},
    });
    let answer = cloud.openfaas("POST", "/system/functions", &deployment.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let answer = cloud.send("POST", "127.0.0.1", "/function/counted", &[], "x").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    // Names that strangers make up leave no trace.
    assert_eq!(cloud.get("127.0.0.1", "/function/made-up").await.status, 404);
    (cloud, address)
}

async fn scrape(cloud: &Cloud) -> Scraped {
    let answer = cloud.openfaas("GET", "/metrics", "").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        answer.header("content-type"),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    Scraped::parse(&answer.body)
}

/// Scrapes when the scaler has looked at the function, usage included.
async fn scrape_all(cloud: &Cloud) -> Scraped {
    eventually("everything is measured", Duration::from_mins(1), async || {
        let scraped = scrape(cloud).await;
        scraped.series.contains_key("pod_memory_working_set_bytes").then_some(scraped)
    })
    .await
}

#[tokio::test]
async fn names_types_and_labels_are_those_of_openfaas() {
    let (cloud, _) = cloud_with_a_called_function().await;
    let scraped = scrape_all(&cloud).await;
    let function: &[&str] = &["function_name"];
    let function_code: &[&str] = &["function_name", "code"];
    let function_scaling: &[&str] = &["function_name", "scaling_type"];
    let pod: &[&str] = &["function_name", "namespace"];
    let path_status: &[&str] = &["method", "path", "status"];
    let path_code: &[&str] = &["method", "path", "code"];
    for (family, kind, series, labels) in [
        ("gateway_functions_seconds", "histogram", "gateway_functions_seconds_sum", function_code),
        (
            "gateway_functions_seconds",
            "histogram",
            "gateway_functions_seconds_count",
            function_code,
        ),
        (
            "gateway_function_invocation",
            "counter",
            "gateway_function_invocation_total",
            function_code,
        ),
        (
            "gateway_function_invocation_started",
            "counter",
            "gateway_function_invocation_started",
            function,
        ),
        (
            "gateway_function_invocation_inflight",
            "gauge",
            "gateway_function_invocation_inflight",
            function,
        ),
        ("gateway_service_count", "gauge", "gateway_service_count", function),
        ("gateway_service_ready_count", "gauge", "gateway_service_ready_count", function),
        ("gateway_service_min", "gauge", "gateway_service_min", function),
        ("gateway_service_target_load", "gauge", "gateway_service_target_load", function_scaling),
        ("http_requests", "counter", "http_requests_total", path_status),
        (
            "http_request_duration_seconds",
            "histogram",
            "http_request_duration_seconds_count",
            path_status,
        ),
        ("provider_http_requests", "counter", "provider_http_requests_total", path_code),
        (
            "provider_http_request_duration_seconds",
            "histogram",
            "provider_http_request_duration_seconds_count",
            path_code,
        ),
        ("pod_cpu_usage_seconds", "counter", "pod_cpu_usage_seconds_total", pod),
        ("pod_memory_working_set_bytes", "gauge", "pod_memory_working_set_bytes", pod),
    ] {
        assert_eq!(scraped.types.get(family).map(String::as_str), Some(kind), "{family}");
        let found = scraped.series.get(series).unwrap_or_else(|| panic!("{series} is missing"));
        let expected: BTreeSet<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        assert_eq!(*found, expected, "{series}");
    }
    for line in [
        "gateway_function_invocation_total{function_name=\"counted.openfaas-fn\",code=\"200\"} 1",
        "gateway_function_invocation_started{function_name=\"counted.openfaas-fn\"} 1",
        "gateway_service_count{function_name=\"counted.openfaas-fn\"} 1",
        "gateway_service_target_load{function_name=\"counted.openfaas-fn\",scaling_type=\"capacity\"} 7",
        "updraft_functions{state=\"failing\"} 0",
    ] {
        let found = scraped
            .text
            .lines()
            .any(|found| found.strip_prefix(line).is_some_and(|rest| matches!(rest, "" | ".0")));
        assert!(found, "{line}\n{}", scraped.text);
    }
    for bound in [
        "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf",
    ] {
        let bucket = format!("le=\"{bound}\"");
        let found = scraped.text.lines().any(|line| {
            line.starts_with("gateway_functions_seconds_bucket{")
                && line.contains("code=\"200\"")
                && line.contains(&bucket)
        });
        assert!(found, "{bucket}");
    }
    assert!(!scraped.text.contains("made-up"), "{}", scraped.text);
}

#[tokio::test]
async fn the_numbers_need_the_password_except_on_the_listener_of_their_own() {
    let (cloud, address) = cloud_with_a_called_function().await;
    assert_eq!(cloud.get("127.0.0.1", "/metrics").await.status, 401);
    let mut connection = Connection::open(address).await.expect("the listener is there");
    let answer = connection.get("127.0.0.1", "/metrics").await.expect("it answers");
    assert_eq!(answer.status, 200);
    assert!(Scraped::parse(&answer.body).serves("gateway_service_count"));
    let answer = connection.get("127.0.0.1", "/system/functions").await.expect("it answers");
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn the_board_and_the_rules_ask_for_numbers_that_are_served() {
    let (cloud, _) = cloud_with_a_called_function().await;
    let scraped = scrape_all(&cloud).await;

    let rules = fs::read_to_string(deploy("prometheus/rules.yml")).expect("the rules are there");
    let recorded: BTreeSet<&str> = rules.lines().filter_map(|line| field(line, "record")).collect();
    let asked: Vec<&str> = rules.lines().filter_map(|line| field(line, "expr")).collect();
    let alerts = rules.lines().filter(|line| field(line, "alert").is_some()).count();
    assert_eq!(asked.len(), recorded.len() + alerts, "each rule has its expression on one line");
    assert!(alerts > 0 && !recorded.is_empty());

    let board = fs::read_to_string(deploy("grafana/updraft.json")).expect("the board is there");
    let board: Value = serde_json::from_str(&board).expect("the board is JSON");
    let mut expressions = Vec::new();
    collect(&board, &mut expressions);
    assert!(expressions.len() > 10, "{expressions:?}");

    let known = |name: &str| scraped.serves(name) || recorded.contains(name) || name == "up";
    for expression in asked.into_iter().chain(expressions.iter().map(String::as_str)) {
        let names = metric_names(expression);
        assert!(!names.is_empty(), "{expression}");
        for name in names {
            assert!(known(&name), "`{name}` in `{expression}` is not served");
        }
    }
}

#[tokio::test]
async fn every_number_that_is_served_is_in_the_guide() {
    let (cloud, _) = cloud_with_a_called_function().await;
    let scraped = scrape_all(&cloud).await;
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let guide = fs::read_to_string(guide).expect("the guide is there");
    let told: BTreeSet<&str> = guide.split('`').skip(1).step_by(2).collect();
    assert!(scraped.types.len() > 40, "{}", scraped.text);
    let untold: Vec<&String> = scraped
        .types
        .keys()
        .filter(|family| {
            !told.contains(family.as_str()) && !told.contains(&*format!("{family}_total"))
        })
        .collect();
    assert!(untold.is_empty(), "{untold:?}");
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// The value of a field of a rule, written on one line.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let line = line.trim().trim_start_matches("- ");
    Some(line.strip_prefix(name)?.strip_prefix(':')?.trim())
}

/// Everything that a board asks Prometheus for.
fn collect(value: &Value, expressions: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                match value {
                    Value::String(text) if key == "expr" => expressions.push(text.clone()),
                    Value::String(text) if text.starts_with("label_values(") => {
                        let inner = text.trim_start_matches("label_values(");
                        let (metric, _) = inner.rsplit_once(',').expect("a label is named");
                        expressions.push(metric.to_owned());
                    }
                    value => collect(value, expressions),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, expressions)),
        _ => {}
    }
}

/// The metrics that an expression names.
fn metric_names(expression: &str) -> BTreeSet<String> {
    // Selectors, ranges, texts and the label lists of groupings name no metric.
    let mut plain = String::new();
    let (mut depth, mut quoted) = (0, false);
    for sign in expression.chars() {
        match sign {
            '"' => quoted = !quoted,
            '{' | '[' if !quoted => depth += 1,
            '}' | ']' if !quoted => depth -= 1,
            _ if depth == 0 && !quoted => plain.push(sign),
            _ => {}
        }
    }
    for grouping in ["by", "without", "on", "ignoring", "group_left", "group_right"] {
        while let Some(begin) = find_grouping(&plain, grouping) {
            let end = plain[begin..].find(')').expect("a grouping ends") + begin;
            plain.replace_range(begin..=end, " ");
        }
    }
    let is_part = |sign: char| sign.is_ascii_alphanumeric() || "_:".contains(sign);
    let mut names = BTreeSet::new();
    let mut rest = plain.as_str();
    while let Some(begin) = rest.find(is_part) {
        rest = &rest[begin..];
        let end = rest.find(|sign| !is_part(sign)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let is_function = after.trim_start().starts_with('(');
        let is_word = matches!(word, "and" | "or" | "unless" | "bool" | "offset");
        if !is_function && !is_word && !word.starts_with(|sign: char| sign.is_ascii_digit()) {
            names.insert(word.to_owned());
        }
        rest = after;
    }
    names
}

/// Where a grouping with its list of labels begins.
fn find_grouping(text: &str, word: &str) -> Option<usize> {
    text.match_indices(word).map(|(at, _)| at).find(|at| {
        let before = text[..*at].chars().next_back();
        let after = text[at + word.len()..].trim_start();
        before.is_none_or(|sign| " )".contains(sign)) && after.starts_with('(')
    })
}

#[test]
fn names_are_found_in_expressions() {
    let check = |expression: &str, expected: &[&str]| {
        let names: Vec<String> = metric_names(expression).into_iter().collect();
        assert_eq!(names, expected, "{expression}");
    };
    check("up", &["up"]);
    check("sum by (code) (rate(a_total{code=~\"5..\",x=\"b\"}[5m]))", &["a_total"]);
    check("sum(rate(a[1m])) by (le) / on (f) group_left (g) b > 0.5", &["a", "b"]);
    check("(a:b:c == 1) and b >= bool 3 unless absent(d)", &["a:b:c", "b", "d"]);
}
