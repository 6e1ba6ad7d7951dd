//! A request as environment variables, in the shape of the original watchdogs.
//!
//! Knows which headers must not become variables; whether the kernel takes the result is found
//! out at the start of the process.

use http::header;
use http::request::Parts;

use crate::percent::decode;

/// Headers that never become variables: `Proxy` would be `Http_Proxy`, which many libraries take
/// for the outgoing proxy; the others would pass for facts that no header may tell.
const FORBIDDEN: [&str; 6] = ["host", "proxy", "method", "path", "query", "contentlength"];

/// The request as variables: `Http_Method`, `Http_Path`, `Http_Query` and one for each header.
pub(super) fn request_environment(request: &Parts) -> Vec<(String, String)> {
    let mut variables = Vec::with_capacity(request.headers.len() + 3);
    for name in request.headers.keys() {
        if FORBIDDEN.contains(&name.as_str()) {
            continue;
        }
        if let Some(value) = request.headers.get(name) {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            variables.push((variable_name(name.as_str()), value));
        }
    }
    variables.push(("Http_Method".to_owned(), request.method.to_string()));
    let path = decode(request.uri.path());
    variables.push(("Http_Path".to_owned(), String::from_utf8_lossy(&path).into_owned()));
    if let Some(query) = request.uri.query().filter(|query| !query.is_empty()) {
        variables.push(("Http_Query".to_owned(), query.to_owned()));
    }
    variables
}

/// What the classic watchdog tells besides: `Http_Host`, and the length of the body under both its
/// names, as a number even where the body came in chunks.
pub(super) fn classic_environment(request: &Parts, length: usize) -> Vec<(String, String)> {
    let mut variables = request_environment(request);
    if let Some(host) = request.headers.get(header::HOST) {
        let host = String::from_utf8_lossy(host.as_bytes()).into_owned();
        variables.push(("Http_Host".to_owned(), host));
    }
    for name in ["Http_ContentLength", "Http_Content_Length"] {
        variables.push((name.to_owned(), length.to_string()));
    }
    variables
}

/// `x-call-id` becomes `Http_X_Call_Id`.
fn variable_name(name: &str) -> String {
    format!("Http_{}", canonical(name, '_'))
}

/// A header's name with every word capitalised, and this character for each hyphen.
pub(super) fn canonical(header: &str, separator: char) -> String {
    let mut name = String::with_capacity(header.len());
    let mut word_begins = true;
    for character in header.chars() {
        match character {
            '-' => name.push(separator),
            letter if word_begins => name.push(letter.to_ascii_uppercase()),
            letter => name.push(letter),
        }
        word_begins = character == '-';
    }
    name
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn environment(request: http::request::Builder) -> Vec<(String, String)> {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut variables = request_environment(&parts);
        variables.sort();
        variables
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_request_becomes_variables_in_canonical_case_with_first_values_only() {
        let request = Request::post("/a%20b/c?testing=1&x=%20")
            .header("X-Call-Id", "id")
            .header("content-type", "text/plain")
            .header("x-multi", "first")
            .header("x-multi", "second")
            .header("Host", "function.example")
            .header("Transfer-Encoding", "chunked");
        assert_eq!(
            environment(request),
            pairs(&[
                ("Http_Content_Type", "text/plain"),
                ("Http_Method", "POST"),
                ("Http_Path", "/a b/c"),
                ("Http_Query", "testing=1&x=%20"),
                ("Http_Transfer_Encoding", "chunked"),
                ("Http_X_Call_Id", "id"),
                ("Http_X_Multi", "first"),
            ])
        );
    }

    #[test]
    fn no_query_no_variable() {
        assert_eq!(
            environment(Request::get("/?")),
            pairs(&[("Http_Method", "GET"), ("Http_Path", "/")])
        );
    }

    #[test]
    fn a_callers_proxy_header_never_becomes_the_outgoing_proxy() {
        let request = Request::get("/")
            .header("Proxy", "http://evil.example")
            .header("Method", "DELETE")
            .header("Query", "x")
            .header("Path", "/elsewhere");
        assert_eq!(environment(request), pairs(&[("Http_Method", "GET"), ("Http_Path", "/")]));
    }

    #[test]
    fn classic_tells_host_and_length_whatever_headers_claim() {
        let request = Request::post("/")
            .header("Host", "function.example")
            .header("Transfer-Encoding", "chunked")
            .header("ContentLength", "7");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut variables: Vec<_> = classic_environment(&parts, 5);
        variables.sort();
        assert_eq!(
            variables,
            pairs(&[
                ("Http_ContentLength", "5"),
                ("Http_Content_Length", "5"),
                ("Http_Host", "function.example"),
                ("Http_Method", "POST"),
                ("Http_Path", "/"),
                ("Http_Transfer_Encoding", "chunked"),
            ])
        );
    }
}
