//! The `OpenAPI` document against what is served.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use updraft_gateway::{Access, OPENAPI, routes};

use crate::harness::{ADMIN, Gateway, id};

const METHODS: [&str; 5] = ["get", "post", "put", "delete", "patch"];

fn document() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

/// What a `$ref` means, or the value itself.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(place) => document.pointer(place.trim_start_matches('#')).expect(place),
        None => value,
    }
}

/// Every operation with its method and path.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        let item = item.as_object().unwrap();
        item.iter().map(move |(method, operation)| (method.as_str(), path.as_str(), operation))
    });
    operations.collect()
}

/// Whether `value` is as `schema` says; a member that the schema does not know is wrong unless it
/// allows others. Panics with the place where it is not.
fn check(document: &Value, schema: &Value, value: &Value, place: &str) {
    let schema = resolved(document, schema);
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect(),
        _ => return,
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() || number.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = kinds.contains(&kind) || (kind == "integer" && kinds.contains(&"number"));
    assert!(fits, "{place} is {kind}, the document says {kinds:?}");
    if schema["format"] == "date-time" {
        let text = value.as_str().unwrap();
        assert!(text.parse::<jiff::Timestamp>().is_ok(), "{place}: {text}");
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(required.as_str().unwrap()).is_some(), "{place} lacks {required}");
    }
    for (name, member) in value.as_object().into_iter().flatten() {
        let place = format!("{place}.{name}");
        match (schema["properties"].get(name), &schema["additionalProperties"]) {
            (Some(known), _) => check(document, known, member, &place),
            (None, Value::Bool(true)) => {}
            (None, other @ Value::Object(_)) => check(document, other, member, &place),
            (None, _) => panic!("{place} is not in the document"),
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check(document, &schema["items"], item, &format!("{place}[{index}]"));
    }
}

#[test]
fn every_route_is_described_and_nothing_else_is() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let served: BTreeSet<_> = routes()
        .iter()
        .map(|route| {
            let path = route.path.replace("{*", "{");
            (route.method.as_str().to_ascii_lowercase(), path)
        })
        .collect();
    let described: BTreeSet<_> = operations(&document)
        .into_iter()
        .map(|(method, path, _)| (method.to_owned(), path.to_owned()))
        .collect();
    assert_eq!(served, described);
}

#[test]
fn who_may_call_is_described_as_it_is() {
    let document = document();
    for route in routes() {
        let path = route.path.replace("{*", "{");
        let operation = &document["paths"][&path][route.method.as_str().to_ascii_lowercase()];
        let schemes: Vec<&String> = operation["security"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|scheme| scheme.as_object().unwrap().keys())
            .collect();
        let expected: &[&str] = match route.access {
            Access::Anyone => &[],
            Access::Admin => &["administrator", "bearer"],
            Access::Account => &["administrator", "bearer", "owner"],
        };
        assert_eq!(schemes, expected, "{} {path}", route.method);
        for scheme in schemes {
            assert!(document["components"]["securitySchemes"].get(scheme).is_some());
        }
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_parameter_of_a_path_is_described() {
    fn walk(document: &Value, value: &Value) {
        resolved(document, value);
        let members = value.as_object().into_iter().flat_map(|object| object.values());
        members.chain(value.as_array().into_iter().flatten()).for_each(|v| walk(document, v));
    }
    let document = document();
    walk(&document, &document);
    for (method, path, operation) in operations(&document) {
        assert!(METHODS.contains(&method));
        let described: BTreeSet<&str> = operation["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        let named: BTreeSet<&str> = path.split(['{', '}']).skip(1).step_by(2).collect();
        assert_eq!(described, named, "{method} {path}");
    }
}

/// Calls a route and checks status, content type and body against its description.
async fn answers(gateway: &Gateway, document: &Value, route: (&str, &str), path: &str, body: &str) {
    let (method, described) = route;
    let operation = &document["paths"][described][method.to_ascii_lowercase()];
    let what = format!("{method} {path} with {body:?}");
    for credentials in [Some(ADMIN), Some(gateway.owner.as_str()), None] {
        let answer = gateway.call_as(credentials, method, path, body.to_owned()).await;
        let status = answer.status.as_str();
        let response = operation["responses"].get(status);
        let response = response.unwrap_or_else(|| panic!("{what}: {status} is not described"));
        let response = resolved(document, response);
        for name in response["headers"].as_object().into_iter().flatten().map(|(name, _)| name) {
            assert!(answer.headers.contains_key(name), "{what}: {status} without {name}");
        }
        let Some(content) = response.get("content") else {
            assert!(answer.text.is_empty(), "{what}: {status} has a body: {}", answer.text);
            continue;
        };
        let sent = answer.headers.get("content-type").map_or("", |kind| kind.to_str().unwrap());
        let kind = sent.split(';').next().unwrap();
        let schema = &content.get(kind).unwrap_or_else(|| panic!("{what}: {sent}"))["schema"];
        match kind {
            "application/json" => {
                check(document, schema, &serde_json::from_str(&answer.text).unwrap(), &what);
            }
            "application/x-ndjson" => {
                for line in answer.text.lines() {
                    check(document, schema, &serde_json::from_str(line).unwrap(), &what);
                }
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn answers_are_as_described() {
    let gateway = Gateway::new().await;
    let document = document();
    let full = json!({
        "service": "busy", "image": "i", "envProcess": "cat", "envVars": {"a": "b"},
        "constraints": ["a=b"], "secrets": ["s"], "labels": {"l": "1"}, "annotations": {"a": "1"},
        "limits": {"memory": "5Mi", "cpu": "1", "nvidia.com/gpu": "1"},
        "requests": {"memory": "1Mi"}, "readOnlyRootFilesystem": true,
    })
    .to_string();
    let alert =
        r#"{"status":"firing","alerts":[{"status":"firing","labels":{"function_name":"f"}}]}"#;
    let mut called = BTreeSet::new();
    for (method, route, path, body) in [
        ("POST", "/system/secrets", "", r#"{"name":"s","value":"x"}"#),
        ("POST", "/system/secrets", "", r#"{"name":"../s"}"#),
        ("PUT", "/system/secrets", "", r#"{"name":"s","rawValue":"eA=="}"#),
        ("PUT", "/system/secrets", "", r#"{"name":"gone","value":"x"}"#),
        ("GET", "/system/secrets", "", ""),
        ("GET", "/system/secrets", "/system/secrets?namespace=kube-system", ""),
        ("PUT", "/system/functions", "", &full),
        ("POST", "/system/functions", "", &full),
        ("POST", "/system/functions", "", r#"{"service":"f","image":"i"}"#),
        ("POST", "/system/functions", "", "{"),
        ("GET", "/system/functions", "", ""),
        ("GET", "/system/functions", "/system/functions?namespace=gone", ""),
        ("GET", "/system/function/{name}", "/system/function/busy?usage=1", ""),
        ("GET", "/system/function/{name}", "/system/function/gone", ""),
        ("POST", "/system/scale-function/{name}", "/system/scale-function/f", r#"{"replicas":2}"#),
        (
            "POST",
            "/system/scale-function/{name}",
            "/system/scale-function/gone",
            r#"{"replicas":2}"#,
        ),
        ("GET", "/system/logs", "/system/logs?name=f", ""),
        ("GET", "/system/logs", "/system/logs", ""),
        ("GET", "/system/logs", "/system/logs?name=gone", ""),
        ("GET", "/system/info", "", ""),
        ("GET", "/system/openapi.json", "", ""),
        ("GET", "/system/namespaces", "", ""),
        ("POST", "/system/namespace/", "", r#"{"name":"dev"}"#),
        ("POST", "/system/namespace/", "", "{}"),
        ("POST", "/system/namespace/{namespace}", "/system/namespace/dev", ""),
        (
            "PUT",
            "/system/namespace/{namespace}",
            "/system/namespace/dev",
            r#"{"labels":{"a":"b"}}"#,
        ),
        ("GET", "/system/namespace/{namespace}", "/system/namespace/dev", ""),
        ("GET", "/system/namespace/{namespace}", "/system/namespace/gone", ""),
        ("DELETE", "/system/namespace/{namespace}", "/system/namespace/dev", ""),
        ("PUT", "/system/namespace/", "", r#"{"name":"dev"}"#),
        ("DELETE", "/system/namespace/", "", r#"{"name":"dev"}"#),
        ("POST", "/system/alert", "", alert),
        ("POST", "/system/alert", "", "[]"),
        ("POST", "/async-function/{name}", "/async-function/f", "x"),
        ("POST", "/async-function/{name}", "/async-function/gone", "x"),
        ("POST", "/async-function/{name}/", "/async-function/f/", "x"),
        ("POST", "/async-function/{name}/{path}", "/async-function/f/a/b?c", "x"),
        ("DELETE", "/async-function/{name}", "/async-function/no-such-call", ""),
        ("GET", "/metrics", "", ""),
        ("GET", "/healthz", "", ""),
        ("GET", "/", "", ""),
        ("GET", "/ui", "", ""),
        ("GET", "/ui/", "", ""),
        ("GET", "/ui/{page}", "/ui/index.html", ""),
        ("DELETE", "/system/functions", "", r#"{"functionName":"f"}"#),
        ("DELETE", "/system/functions", "", r#"{"functionName":"gone"}"#),
        ("DELETE", "/system/secrets", "", r#"{"name":"gone"}"#),
    ] {
        if body.contains(r#""service":"f""#) {
            gateway.engine.write_line(&id("f"), "f-1", "2026-01-01T00:00:01Z", "one");
        }
        if route.starts_with("/async-function") && method == "POST" {
            gateway.is_callable("f", true).await;
        }
        let path = if path.is_empty() { route } else { path };
        answers(&gateway, &document, (method, route), path, body).await;
        called.insert((method.to_ascii_lowercase(), route.to_owned()));
    }
    let described: BTreeSet<_> = operations(&document)
        .into_iter()
        .map(|(method, path, _)| (method.to_owned(), path.to_owned()))
        .collect();
    assert_eq!(called, described, "every operation is called");
}

/// `faas-cli` takes 204 for a failure, and ends with an error after a deployment with 201.
#[test]
fn nothing_answers_204_and_only_namespaces_answer_201() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        let statuses = operation["responses"].as_object().unwrap();
        assert!(!statuses.contains_key("204"), "{method} {path}");
        let creates_namespace = method == "post" && path.starts_with("/system/namespace/");
        assert_eq!(statuses.contains_key("201"), creates_namespace, "{method} {path}");
    }
}

#[tokio::test]
async fn the_document_is_served_to_anybody() {
    let answer = Gateway::new().await.call_as(None, "GET", "/system/openapi.json", "").await;
    assert_eq!(answer.json(), document());
}
