//! What a request and an answer look like on the other side.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use std::fmt::Write as _;

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use support::{
    Replica, bounded, connect, connect_http2, get, house, house_with, known, one_lane_house_with,
    owned, plain_house, raw, request, send, spec, text, told,
};

/// A replica that answers with the request as it saw it.
async fn mirror() -> Replica {
    Replica::http(|request| async move {
        let (head, body) = request.into_parts();
        let mut seen = format!("{} {} {:?}\n", head.method, head.uri, head.version);
        for (name, value) in &head.headers {
            writeln!(seen, "{name}: {}", value.to_str().unwrap()).unwrap();
        }
        seen += &String::from_utf8_lossy(&body.collect().await.unwrap().to_bytes());
        text(seen)
    })
    .await
}

fn header<'a>(seen: &'a str, name: &str) -> Vec<&'a str> {
    let prefix = format!("{name}: ");
    seen.lines().filter_map(|line| line.strip_prefix(prefix.as_str())).collect()
}

#[tokio::test]
async fn hosts_and_paths_reach_the_place_they_name() {
    let replica = mirror().await;
    let house = plain_house().await;
    let endpoint = support::endpoint("r", replica.address);
    house.engine.ready(owned("alice", "hello"), &[&endpoint]);
    house.engine.ready(owned("bob", "hello"), &[&endpoint]);
    // Called like a function of alice, and not hers.
    house.engine.ready(spec("alice-stray"), &[&endpoint]);
    known(&house, "alice-stray").await;
    let reach = async |host: &str, path: &str| {
        let (status, _, body) = get(house.address, host, path).await;
        let body = String::from_utf8_lossy(&body).into_owned();
        (status.as_u16(), body.lines().next().unwrap_or_default().to_owned())
    };
    for (host, path, target) in [
        ("alice.example.test", "/hello", "/"),
        ("alice.example.test:8080", "/hello/", "/"),
        ("ALICE.Example.Test.", "/hello/a%2Fb//c?x=%20&y", "/a%2Fb//c?x=%20&y"),
        ("alice.example.test", "//hello?q", "/?q"),
        ("alice.example.test", "/hello/../x/./y", "/../x/./y"),
        ("127.0.0.1", "/function/alice-hello/x", "/x"),
        ("127.0.0.1", "/function/alice-hello.openfaas-fn?a=b", "/?a=b"),
        ("localhost", "/function/alice-stray", "/"),
        ("gateway.example.test", "/function/bob-hello//", "//"),
        ("[::1]:8080", "/function/bob-hello/%25%3F", "/%25%3F"),
    ] {
        let expected = (200, format!("GET {target} HTTP/1.1"));
        assert_eq!(reach(host, path).await, expected, "{host}{path}");
    }
    for (host, path, status) in [
        ("alice.example.test", "/", 404),
        ("alice.example.test", "/stray", 404),
        ("alice.example.test", "/bob-hello", 404),
        ("alice.example.test", "/function/alice-hello", 404),
        ("alice.example.test", "/system/functions", 404),
        ("carol.example.test", "/hello", 404),
        ("pr-1--alice.example.test", "/hello", 404),
        ("a.alice.example.test", "/hello", 404),
        ("elsewhere.test", "/function/alice-hello", 404),
        ("127.0.0.1", "/function/169.254.169.254/latest", 404),
        ("127.0.0.1", "/function/kube-dns.kube-system", 404),
        ("127.0.0.1", "/function/..%2f..", 404),
        ("user@alice.example.test", "/hello", 400),
        ("alice.example.test:99999", "/hello", 400),
        ("", "/hello", 400),
    ] {
        let (got, body) = reach(host, path).await;
        assert_eq!(got, status, "{host}{path}: {body}");
        assert!(body.contains("\"component\""), "{host}{path}: {body}");
    }
    for (host, path, place) in [
        ("127.0.0.1", "/system/functions", "gateway"),
        ("127.0.0.1", "/git/alice/x.git/info/refs", "system"),
        ("localhost:8080", "/api/v1/functions", "system"),
        ("system.example.test", "/dashboard/", "system"),
        ("system.example.test", "/system/functions", "system"),
        ("gateway.example.test", "/api/v1/functions", "gateway"),
        ("gateway.example.test", "/", "gateway"),
        ("elsewhere.test", "/healthz", "OK"),
        ("alice.example.test", "/healthz", "OK"),
        ("127.0.0.1", "/healthz", "OK"),
    ] {
        assert_eq!(reach(host, path).await, (200, place.to_owned()), "{host}{path}");
    }
}

#[tokio::test]
async fn the_function_sees_the_call_the_host_and_the_chain_of_peers() {
    let replica = mirror().await;
    let (house, _endpoint) = house_with(&replica).await;
    let asked = request("127.0.0.1:8080", "/function/f")
        .header("x-call-id", "mine-1")
        .header("x-start-time", "1")
        .header("x-forwarded-for", "10.1.1.1")
        .header("x-forwarded-for", "10.2.2.2, 10.3.3.3")
        .header("x-forwarded-host", "evil.test")
        .header("x-forwarded-proto", "https")
        .header("authorization", "Bearer for-the-function")
        .header("traceparent", "00-a-b-01")
        .body(Full::default())
        .unwrap();
    let (status, headers, body) = send(house.address, asked).await;
    let seen = String::from_utf8_lossy(&body);
    assert_eq!(status, StatusCode::OK);
    assert_eq!(header(&seen, "host"), ["127.0.0.1:8080"]);
    assert_eq!(header(&seen, "x-call-id"), ["mine-1"]);
    assert_eq!(header(&seen, "x-forwarded-for"), ["10.1.1.1, 10.2.2.2, 10.3.3.3, 127.0.0.1"]);
    assert_eq!(header(&seen, "x-forwarded-host"), ["127.0.0.1:8080"]);
    assert_eq!(header(&seen, "x-forwarded-proto"), ["http"]);
    assert_eq!(header(&seen, "authorization"), ["Bearer for-the-function"]);
    assert_eq!(header(&seen, "traceparent"), ["00-a-b-01"]);
    let start = header(&seen, "x-start-time");
    assert!(start.len() == 1 && start[0].len() == 19, "{start:?}");
    assert_eq!(headers["x-call-id"], "mine-1");
    assert_eq!(headers["x-start-time"], start[0]);
    assert_eq!(headers["x-served-by"], "updraft/test");
    let seconds: f64 = headers["x-duration-seconds"].to_str().unwrap().parse().unwrap();
    assert!(seconds < 30.0);

    let (_, headers, body) = get(house.address, "127.0.0.1", "/function/f").await;
    let seen = String::from_utf8_lossy(&body);
    assert_eq!(header(&seen, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(header(&seen, "x-call-id"), [headers["x-call-id"].to_str().unwrap()]);
    assert_eq!(headers["x-call-id"].len(), 36);
}

#[tokio::test]
async fn a_call_id_that_is_not_safe_is_replaced() {
    let replica = mirror().await;
    let (house, _endpoint) = house_with(&replica).await;
    for bad in ["", "a b", "<script>", &"x".repeat(129)] {
        let asked = request("127.0.0.1", "/function/f").header("x-call-id", bad);
        let (_, headers, body) = send(house.address, asked.body(Full::default()).unwrap()).await;
        assert_eq!(headers["x-call-id"].len(), 36, "{bad}");
        let seen = String::from_utf8_lossy(&body);
        assert_eq!(header(&seen, "x-call-id"), [headers["x-call-id"].to_str().unwrap()]);
    }
}

#[tokio::test]
async fn what_belongs_to_the_hop_stays_on_it() {
    let replica = Replica::http(|request| async move {
        let names: Vec<_> = request.headers().keys().map(ToString::to_string).collect();
        let mut answer = text(names.join(" "));
        let headers = answer.headers_mut();
        headers.insert("connection", "x-private, keep-alive".parse().unwrap());
        headers.insert("keep-alive", "timeout=5".parse().unwrap());
        headers.insert("x-private", "1".parse().unwrap());
        headers.insert("x-public", "1".parse().unwrap());
        headers.insert("x-duration-seconds", "0.5".parse().unwrap());
        headers.append("set-cookie", "a=1".parse().unwrap());
        headers.append("set-cookie", "b=2".parse().unwrap());
        answer
    })
    .await;
    let (house, _endpoint) = house_with(&replica).await;
    let asked = request("127.0.0.1", "/function/f")
        .header("connection", "keep-alive, X-Secret-Hop, host, content-length")
        .header("x-secret-hop", "1")
        .header("keep-alive", "5")
        .header("proxy-connection", "keep-alive")
        .header("proxy-authorization", "Basic x")
        .header("te", "gzip")
        .header("x-kept", "1")
        .body(Full::from("body"))
        .unwrap();
    let (_, headers, body) = send(house.address, asked).await;
    let names: Vec<_> = std::str::from_utf8(&body).unwrap().split(' ').collect();
    for gone in ["connection", "x-secret-hop", "keep-alive", "proxy-connection", "te"] {
        assert!(!names.contains(&gone), "{gone} in {names:?}");
    }
    for kept in ["x-kept", "host", "content-length"] {
        assert!(names.contains(&kept), "{kept} not in {names:?}");
    }
    assert!(!names.contains(&"proxy-authorization") && !names.contains(&"transfer-encoding"));
    assert!(!headers.contains_key("x-private") && !headers.contains_key("keep-alive"));
    assert_eq!(headers["x-public"], "1");
    assert_eq!(headers["x-duration-seconds"], "0.5");
    assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
}

#[tokio::test]
async fn a_trusted_proxy_may_say_where_the_caller_came_in() {
    let replica = mirror().await;
    let house =
        house(|options| options.trusted_proxies = vec!["127.0.0.1".parse().unwrap()], |_| {}).await;
    let endpoint = support::endpoint("r", replica.address);
    house.engine.ready(spec("f"), &[&endpoint]);
    known(&house, "f").await;
    let asked = request("127.0.0.1", "/function/f")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "public.test");
    let (_, _, body) = send(house.address, asked.body(Full::default()).unwrap()).await;
    let seen = String::from_utf8_lossy(&body);
    assert_eq!(header(&seen, "x-forwarded-proto"), ["https"]);
    assert_eq!(header(&seen, "x-forwarded-host"), ["public.test"]);
}

#[tokio::test]
async fn every_method_status_and_length_passes() {
    let replica = Replica::http(|request| async move {
        let mut answer = text(request.method().to_string());
        if let Some(code) = request.uri().path().strip_prefix("/status/") {
            *answer.status_mut() = code.parse().unwrap();
            answer.headers_mut().insert("location", "/elsewhere".parse().unwrap());
        }
        answer
    })
    .await;
    let (house, _endpoint) = one_lane_house_with(&replica).await;
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"] {
        let asked = request("127.0.0.1", "/function/f").method(method);
        let (status, headers, body) =
            send(house.address, asked.body(Full::default()).unwrap()).await;
        assert_eq!((status.as_u16(), &body[..]), (200, method.as_bytes()));
        assert_eq!(headers["content-length"], method.len().to_string());
    }
    let asked = request("127.0.0.1", "/function/f").method("HEAD");
    let (status, headers, body) = send(house.address, asked.body(Full::default()).unwrap()).await;
    assert_eq!(
        (status.as_u16(), body.len(), &headers["content-length"]),
        (200, 0, &"4".parse().unwrap())
    );
    for code in ["201", "204", "302", "307", "404", "418", "500", "599"] {
        let path = format!("/function/f/status/{code}");
        let (status, headers, _) = get(house.address, "127.0.0.1", &path).await;
        assert_eq!(status.as_str(), code);
        assert_eq!(headers["location"], "/elsewhere");
        assert!(!headers.contains_key("x-openfaas-internal"));
    }
    // One connection to the replica served them all, one after the other.
    assert_eq!(replica.connections(), 1);
}

#[tokio::test]
async fn http2_callers_are_served_like_others() {
    let replica = mirror().await;
    let house = plain_house().await;
    let endpoint = support::endpoint("r", replica.address);
    house.engine.ready(owned("alice", "f"), &[&endpoint]);
    known(&house, "alice-f").await;
    let mut sender = connect_http2(house.address).await;
    let mut answers = Vec::new();
    for index in 0..20 {
        let asked = Request::builder()
            .method("POST")
            .uri(format!("http://alice.example.test/f/{index}?q"))
            .version(Version::HTTP_2)
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Full::new(Bytes::from(format!("body {index}"))))
            .unwrap();
        answers.push(sender.send_request(asked));
    }
    for (index, answer) in answers.into_iter().enumerate() {
        let answer = bounded("an answer", answer).await.unwrap();
        assert_eq!(answer.version(), Version::HTTP_2);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let seen = String::from_utf8_lossy(&body);
        assert!(seen.starts_with(&format!("POST /{index}?q HTTP/1.1\n")), "{seen}");
        assert!(seen.ends_with(&format!("body {index}")), "{seen}");
        assert_eq!(header(&seen, "host"), ["alice.example.test"]);
        assert_eq!(header(&seen, "cookie"), ["a=1; b=2"]);
    }
}

#[tokio::test]
async fn absolute_targets_and_http10_are_understood() {
    let replica = mirror().await;
    let (house, _endpoint) = house_with(&replica).await;
    let answer = raw(
        house.address,
        b"GET http://127.0.0.1:1/function/f/x HTTP/1.1\r\nHost: elsewhere.test\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("GET /x HTTP/1.1\n") && answer.contains("host: 127.0.0.1:1\n"));
    let answer = raw(house.address, b"GET /function/f HTTP/1.0\r\nHost: localhost\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer}");
    let answer = raw(house.address, b"GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("OK"), "{answer}");
    let answer = raw(house.address, b"GET /function/f HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains(" 404 "), "{answer}");
    let answer = raw(house.address, b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn an_unknown_function_is_named_and_the_nearest_one_too() {
    let replica = mirror().await;
    let house = plain_house().await;
    let endpoint = support::endpoint("r", replica.address);
    house.engine.ready(owned("alice", "hello"), &[&endpoint]);
    known(&house, "alice-hello").await;
    let (status, headers, body) = get(house.address, "127.0.0.1", "/function/alice-helo").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(headers["x-openfaas-internal"], "gateway");
    assert_eq!(headers["content-type"], "application/json");
    let told = told(&body);
    assert_eq!(told["component"], "invoke");
    assert_eq!(told["function"], "alice-helo");
    assert_eq!(told["call_id"], headers["x-call-id"].to_str().unwrap());
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.contains("`alice-helo` does not exist, did you mean `alice-hello`"), "{reason}");
    let (_, _, body) = get(house.address, "127.0.0.1", "/function/something-else").await;
    assert!(!String::from_utf8_lossy(&body).contains("alice"));
}

#[tokio::test]
async fn a_panic_in_one_request_harms_no_other() {
    let replica = mirror().await;
    let (house, _endpoint) = house_with(&replica).await;
    let (status, _, body) = get(house.address, "127.0.0.1", "/panic").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(told(&body)["component"], "edge");
    let (status, _, _) = get(house.address, "127.0.0.1", "/function/f").await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn calls_are_counted_by_function_and_status() {
    let replica = Replica::http(|request| async move {
        let mut answer = text("");
        if request.uri().path() == "/bad" {
            *answer.status_mut() = StatusCode::IM_A_TEAPOT;
        }
        answer
    })
    .await;
    let (house, endpoint) = house_with(&replica).await;
    let mut sender = connect::<Full<Bytes>>(house.address).await;
    for path in ["/function/f", "/function/f", "/function/f/bad"] {
        let asked = request("127.0.0.1", path).body(Full::default()).unwrap();
        drop(sender.send_request(asked).await.unwrap().into_body().collect().await);
        sender.ready().await.unwrap();
    }
    get(house.address, "127.0.0.1", "/function/made-up").await;
    let id = spec("f").id;
    support::until("three calls are counted", || house.invoker.invocation_count(&id) == 3).await;
    assert_eq!(endpoint.load.in_flight(), 0);
    let text = house.invoker.metrics_text();
    for line in [
        "gateway_function_invocation_total{function_name=\"f.openfaas-fn\",code=\"200\"} 2",
        "gateway_function_invocation_total{function_name=\"f.openfaas-fn\",code=\"418\"} 1",
        "gateway_functions_seconds_count{function_name=\"f.openfaas-fn\",code=\"200\"} 2",
        "gateway_function_invocation_started{function_name=\"f.openfaas-fn\"} 3",
        "gateway_function_invocation_inflight{function_name=\"f.openfaas-fn\"} 0",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    // The buckets that Prometheus has by default, and no others.
    let of_f = "function_name=\"f.openfaas-fn\",code=\"200\"} ";
    let bounds: Vec<&str> = text
        .lines()
        .filter(|line| line.contains(of_f))
        .filter_map(|line| line.strip_prefix("gateway_functions_seconds_bucket{le=\""))
        .filter_map(|rest| rest.split('"').next())
        .collect();
    let usual = [
        "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf",
    ];
    assert_eq!(bounds, usual);
    assert!(!text.contains("made-up"), "{text}");
}
