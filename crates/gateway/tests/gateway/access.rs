//! Who may call what.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::response::IntoResponse;
use http::{HeaderMap, Method, Request, StatusCode, header};
use tower::ServiceExt;
use updraft_gateway::{Access, AuthProxy, Authentication, Service, routes};

use crate::harness::{ADMIN, Gateway};

/// A path that the route's pattern matches.
fn sample(path: &str) -> String {
    path.replace("{name}", "f").replace("{namespace}", "n").replace("{*page}", "page")
}

#[tokio::test]
async fn every_system_route_needs_the_administrator() {
    let gateway = Gateway::new().await;
    for route in routes().iter().filter(|route| route.access == Access::Admin) {
        let path = sample(route.path);
        let call = |credentials| gateway.call_as(credentials, route.method.as_str(), &path, "{}");
        for credentials in [None, Some("Basic bm9ib2R5Om5vdGhpbmc="), Some("Bearer x"), Some("")] {
            let answer = call(credentials).await;
            answer.fails(401, "invalid credentials");
            assert_eq!(answer.text, "invalid credentials", "no line feed here");
            assert_eq!(answer.headers[header::WWW_AUTHENTICATE], "Basic realm=\"Restricted\"");
        }
        call(Some(&gateway.owner)).await.fails_with(403, "only `admin` may");
        let status = call(Some(ADMIN)).await.status;
        assert!(status != 401 && status != 403, "{} {path}: {status}", route.method);
    }
}

#[tokio::test]
async fn without_authentication_everybody_is_the_administrator_but_no_web_page() {
    let gateway = Gateway::with(Authentication::Off).await;
    for credentials in [None, Some("Basic bm9ib2R5Om5vdGhpbmc="), Some(&*gateway.owner)] {
        let answer = gateway.call_as(credentials, "GET", "/system/functions", "").await;
        assert_eq!(answer.status, 200);
    }
    let request = Request::get("/system/functions").header("origin", "http://evil.example");
    let response = gateway.router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 403);
}

/// What such a service was asked: method, headers and body.
type Asked = Arc<Mutex<Vec<(Method, HeaderMap, String)>>>;

fn proxy(service: Service) -> Authentication {
    Authentication::Proxy(AuthProxy { service, pass_body: false })
}

/// A service that knows who may come in, and what it was asked.
async fn service() -> (Service, Asked) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let answer = move |method: Method, headers: HeaderMap, body: String| {
        let knows = headers.get("authorization").is_some_and(|value| value == "Bearer person");
        seen.lock().unwrap().push((method, headers, body));
        async move {
            if knows {
                return StatusCode::OK.into_response();
            }
            let to = [("location", "https://login.example.com/"), ("x-reason", "unknown")];
            (StatusCode::FOUND, to, "log in first").into_response()
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/validate", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/validate", axum::routing::any(answer));
    tokio::spawn(axum::serve(listener, router).into_future());
    (Service::open(url.parse().unwrap(), None).unwrap(), asked)
}

#[tokio::test]
async fn a_service_of_the_operators_decides_who_comes_in() {
    let (service, asked) = service().await;
    let gateway = Gateway::with(proxy(service)).await;
    let body = r#"{"service":"f","image":"i"}"#;
    let path = "/system/functions";
    gateway.call_as(Some("Bearer person"), "POST", path, body).await.succeeds(202);
    {
        let asked = asked.lock().unwrap();
        let (method, headers, body) = &asked[0];
        assert_eq!((asked.len(), method), (1, &Method::GET));
        assert!(body.is_empty() && !headers.contains_key("content-length"), "not sent along");
    }
    // Every other answer goes back as it is; the password of the machine means nothing here.
    for credentials in [None, Some(ADMIN), Some("Bearer other")] {
        let answer = gateway.call_as(credentials, "DELETE", path, r#"{"functionName":"f"}"#).await;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (302, "log in first"));
        assert_eq!(answer.headers["location"], "https://login.example.com/");
        assert_eq!(answer.headers["x-reason"], "unknown");
    }
    let read = gateway.call_as(Some("Bearer person"), "GET", "/system/function/f", "").await;
    assert_eq!(read.status, 200);
    assert_eq!(gateway.call_as(None, "GET", "/healthz", "").await.status, 200, "open routes stay");
}

#[tokio::test]
async fn the_service_gets_the_body_too_where_that_is_wanted_and_so_does_the_route() {
    let (service, asked) = service().await;
    let proxy = AuthProxy { service, pass_body: true };
    let gateway = Gateway::with(Authentication::Proxy(proxy)).await;
    let body = r#"{"service":"f","image":"i"}"#;
    let path = "/system/functions";
    gateway.call_as(Some("Bearer other"), "POST", path, body).await.fails(302, "log in first");
    gateway.call_as(Some("Bearer person"), "POST", path, body).await.succeeds(202);
    let read = gateway.call_as(Some("Bearer person"), "GET", "/system/function/f", "").await;
    assert_eq!(read.json()["image"], "i");
    {
        let asked = asked.lock().unwrap();
        let bodies: Vec<&str> = asked.iter().map(|(_, _, body)| body.as_str()).collect();
        assert_eq!(bodies, [body, body, ""]);
        assert!(asked.iter().all(|(method, _, _)| method == Method::GET));
    }
    let long = "x".repeat((4 << 20) + 1);
    gateway.call_as(Some("Bearer person"), "POST", path, long).await.fails_with(413, "4194304");
    assert_eq!(asked.lock().unwrap().len(), 3, "nobody is asked about what is too long");
}

#[tokio::test]
async fn a_service_that_cannot_be_asked_lets_nobody_in() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let nobody = Service::open(url.parse().unwrap(), None).unwrap();
    let gateway = Gateway::with(proxy(nobody)).await;
    let answer = gateway.call("GET", "/system/functions", "").await;
    answer.fails(502, "the authentication service could not be asked");
}

#[tokio::test]
async fn a_web_page_cannot_use_the_password_that_a_browser_knows() {
    let gateway = Gateway::new().await;
    for (name, value, status) in [
        ("origin", "http://127.0.0.1:8080", 403),
        ("sec-fetch-site", "same-origin", 403),
        ("sec-fetch-site", "cross-site", 403),
        ("sec-fetch-site", "none", 200),
    ] {
        let request = Request::get("/system/functions")
            .header(header::AUTHORIZATION, ADMIN)
            .header(name, value)
            .body(Body::empty())
            .unwrap();
        let response = gateway.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status, "{name}: {value}");
    }
}

#[test]
fn every_route_is_in_the_document() {
    let document = include_str!("../../../../docs/gateway-api.md");
    for route in routes().iter().filter(|route| !route.path.starts_with("/ui")) {
        let path = route.path.replace("/{*path}", "").replace("{namespace}", "{name}");
        let path = path.trim_end_matches('/');
        assert!(document.contains(path), "{} is not in docs/gateway-api.md", route.path);
    }
}

#[test]
fn nothing_of_the_system_is_open() {
    for route in routes() {
        let is_open = route.access == Access::Anyone;
        let is_call = route.path.starts_with("/async-function/") && route.method == Method::POST;
        let is_page = ["/", "/healthz", "/system/openapi.json"].contains(&route.path)
            || route.path.starts_with("/ui");
        assert_eq!(is_open, is_call || is_page, "{} {}", route.method, route.path);
        assert!(!is_page || route.method == Method::GET, "{}", route.path);
    }
}

#[tokio::test]
async fn open_routes_answer_without_credentials() {
    let gateway = Gateway::new().await;
    let health = gateway.call_as(None, "GET", "/healthz", "").await;
    assert_eq!((health.status.as_u16(), health.text.as_str()), (200, "OK"));
    assert_eq!(gateway.call_as(None, "HEAD", "/healthz", "").await.status, 200);
    let front = gateway.call_as(None, "GET", "/", "").await;
    assert_eq!(
        (front.status.as_u16(), &front.headers["location"]),
        (307, &"/ui/".parse().unwrap())
    );
    for page in ["/ui", "/ui/", "/ui/index.html"] {
        let portal = gateway.call_as(None, "GET", page, "").await;
        assert_eq!(portal.status, 307);
        assert_eq!(portal.headers["location"], "http://system.localhost:8080/");
    }
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_told_apart() {
    let gateway = Gateway::new().await;
    for path in ["/nothing", "/system", "/system/", "/system/telemetry", "/system/functions/x/y"] {
        gateway.get(path).await.fails(404, "404 page not found");
    }
    for (method, path) in
        [("PATCH", "/system/functions"), ("GET", "/system/scale-function/f"), ("POST", "/healthz")]
    {
        gateway.call(method, path, "").await.succeeds(405);
    }
}

#[tokio::test]
async fn a_path_with_doubled_slashes_is_sent_on_with_its_body() {
    let gateway = Gateway::new().await;
    let answer = gateway.call("POST", "//system//functions?namespace=a", "{}").await;
    // 308 and no other: the client repeats method and body.
    assert_eq!(answer.status, 308);
    assert_eq!(answer.headers["location"], "/system/functions?namespace=a");
    gateway.get("//elsewhere.example//x").await.fails(404, "404 page not found");
}
