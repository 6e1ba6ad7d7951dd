//! Headers on their way through: what belongs to the hop goes, what tells of the hop comes.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::ext::Protocol;

use crate::call_id::{self as ids};
use crate::ink;

/// Names one invocation everywhere.
pub const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");
const START_TIME: HeaderName = HeaderName::from_static("x-start-time");
const DURATION: HeaderName = HeaderName::from_static("x-duration-seconds");
const SERVED_BY: HeaderName = HeaderName::from_static("x-served-by");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// No header of HTTP: programs behind CGI take it for the variable that names their outgoing proxy.
const PROXY: HeaderName = HeaderName::from_static("proxy");

/// How the caller reached us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

/// Who calls, made once a connection.
#[derive(Debug, Clone)]
pub struct Caller {
    address: IpAddr,
    /// The address as a header value, so that it is written once and not once a request.
    shown: HeaderValue,
    scheme: HeaderValue,
    /// Whether what a private function asks of its callers has been seen to already.
    pub(crate) authorized: bool,
}

impl Caller {
    /// The caller at the other end of a connection.
    pub fn new(peer: SocketAddr, scheme: Scheme) -> Self {
        let address = peer.ip().to_canonical();
        let shown = HeaderValue::try_from(address.to_string())
            .expect("an address is digits, dots and colons");
        let scheme = match scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let scheme = HeaderValue::from_static(scheme);
        Self { address, shown, scheme, authorized: false }
    }

    /// The same caller, whose right to call is settled: by
    /// [`Invoker::authorize`](crate::Invoker::authorize) when the call was submitted, or because
    /// the platform itself calls.
    pub fn authorized(mut self) -> Self {
        self.authorized = true;
        self
    }

    /// Whether its right to call is settled.
    pub fn is_authorized(&self) -> bool {
        self.authorized
    }

    /// The caller's address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How the caller reached us.
    pub fn scheme(&self) -> Scheme {
        if self.scheme == "https" { Scheme::Https } else { Scheme::Http }
    }
}

/// The id of the call that a request with these headers makes: its own if that is safe, else new.
pub fn call_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(CALL_ID) {
        Some(id) if ids::is_safe(id.as_bytes()) => id.clone(),
        _ => ids::new(),
    }
}

/// What is told about one call, to the function and to the caller.
#[derive(Debug)]
pub(crate) struct Marks {
    pub(crate) call_id: HeaderValue,
    start: HeaderValue,
    /// What the request's body was said to be.
    pub(crate) kind: Option<HeaderValue>,
}

impl Marks {
    /// Keeps the caller's call id when it is safe, else makes one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let call_id = call_id(headers);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let start = ink::write(format_args!("{start}")).unwrap_or_else(|| start.into());
        Self { call_id, start, kind: headers.get(CONTENT_TYPE).cloned() }
    }
}

/// The protocol that both sides are asked to change to, if the request asks: by `Upgrade`, or by
/// the extended `CONNECT` of HTTP/2 (RFC 8441).
pub(crate) fn upgrade_asked<B>(request: &Request<B>) -> Option<HeaderValue> {
    if let Some(protocol) = extended_connect(request) {
        return HeaderValue::try_from(protocol).ok();
    }
    if request.version() != Version::HTTP_11 {
        return None;
    }
    let headers = request.headers();
    let protocol = headers.get(UPGRADE)?;
    // A change to HTTP/2 would be ours to answer, and is better asked for by prior knowledge.
    if protocol.as_bytes().eq_ignore_ascii_case(b"h2c") {
        return None;
    }
    lists(headers, &CONNECTION, "upgrade").then(|| protocol.clone())
}

/// The protocol that an extended `CONNECT` names.
pub(crate) fn extended_connect<B>(request: &Request<B>) -> Option<&str> {
    if *request.method() != Method::CONNECT || request.version() != Version::HTTP_2 {
        return None;
    }
    request.extensions().get::<Protocol>().map(Protocol::as_str)
}

/// Makes an extended `CONNECT` the request of HTTP/1.1 that asks for the same.
pub(crate) fn written_as_upgrade<B>(request: &mut Request<B>) {
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    // HTTP/2 has no use for the key, with which HTTP/1.1 makes sure that nobody answers by chance.
    if headers.contains_key(SEC_WEBSOCKET_VERSION) && !headers.contains_key(SEC_WEBSOCKET_KEY) {
        headers.insert(SEC_WEBSOCKET_KEY, websocket_key());
    }
}

/// Makes the answer to such a request the one that HTTP/2 has for it.
pub(crate) fn written_as_connected<B>(response: &mut Response<B>) {
    *response.status_mut() = StatusCode::OK;
    for name in [UPGRADE, CONNECTION, SEC_WEBSOCKET_ACCEPT] {
        response.headers_mut().remove(name);
    }
}

/// Sixteen random bytes in Base64.
fn websocket_key() -> HeaderValue {
    let key = BASE64_STANDARD.encode(ids::random());
    HeaderValue::try_from(key).expect("Base64 is printable")
}

/// Whether a comma-separated list header names `token`.
fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

fn is_of_the_hop(name: &HeaderName) -> bool {
    name == CONNECTION
        || name == TRANSFER_ENCODING
        || name == TE
        || name == UPGRADE
        || name == PROXY_AUTHENTICATE
        || name == PROXY_AUTHORIZATION
        || name == KEEP_ALIVE
        || name == PROXY_CONNECTION
        || name == HTTP2_SETTINGS
        || name == PROXY
}

/// Removes what belongs to the connection the message came by, and what `Connection` lists.
/// `Trailer` stays: it announces trailers, which pass through.
fn remove_hop_headers(headers: &mut HeaderMap) {
    if !headers.keys().any(is_of_the_hop) {
        return;
    }
    // Of two lengths the chunks count; the other must not reach the next reader.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|item| HeaderName::from_bytes(item.trim().as_bytes()).ok())
        // Nobody may have these taken off on the way.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH && *name != CALL_ID)
        .collect();
    for name in listed {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        TRANSFER_ENCODING,
        TE,
        UPGRADE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        HTTP2_SETTINGS,
        PROXY,
    ] {
        headers.remove(name);
    }
}

/// Makes the caller's headers the ones for the replica.
pub(crate) fn prepare_request<B>(
    request: &mut Request<B>,
    caller: &Caller,
    trusted: bool,
    marks: &Marks,
    upgrade: Option<&HeaderValue>,
) {
    let version = request.version();
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();

    let wants_trailers = headers.contains_key(TE) && lists(headers, &TE, "trailers");
    remove_hop_headers(headers);
    // The server answers `100 Continue` itself as soon as a replica reads the body.
    headers.remove(EXPECT);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol.clone());
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if version == Version::HTTP_2 {
        join_cookies(headers);
    }

    // An absolute or HTTP/2 target names the host, whatever `Host` says.
    if let Some(host) = authority.and_then(|host| HeaderValue::try_from(host).ok()) {
        headers.insert(HOST, host);
    }
    let host = headers.get(HOST).cloned();
    match host {
        _ if trusted && headers.contains_key(FORWARDED_HOST) => {}
        Some(host) if !host.is_empty() => {
            headers.insert(FORWARDED_HOST, host);
        }
        _ => {
            headers.remove(FORWARDED_HOST);
        }
    }
    if !headers.contains_key(HOST) {
        headers.insert(HOST, HeaderValue::from_static(""));
    }
    if !(trusted && headers.contains_key(FORWARDED_PROTO)) {
        headers.insert(FORWARDED_PROTO, caller.scheme.clone());
    }
    if headers.contains_key(FORWARDED) {
        continue_forwarded(headers, caller);
    }
    let chain = if headers.contains_key(FORWARDED_FOR) {
        appended(headers, &caller.shown)
    } else {
        caller.shown.clone()
    };
    headers.insert(FORWARDED_FOR, chain);
    headers.insert(CALL_ID, marks.call_id.clone());
    headers.insert(START_TIME, marks.start.clone());
}

/// The chain of addresses so far with ours at the end.
fn appended(headers: &HeaderMap, address: &HeaderValue) -> HeaderValue {
    let parts: Vec<&[u8]> = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .chain([address])
        .map(HeaderValue::as_bytes)
        .filter(|part| !part.is_empty())
        .collect();
    HeaderValue::from_bytes(&parts.join(&b", "[..])).unwrap_or_else(|_| address.clone())
}

/// Adds our hop to a `Forwarded` chain that the caller brought (RFC 7239). None is begun: what it
/// tells is in `X-Forwarded-*` too.
fn continue_forwarded(headers: &mut HeaderMap, caller: &Caller) {
    let quoted = if caller.address.is_ipv6() {
        format!("\"[{}]\"", caller.address)
    } else {
        caller.address.to_string()
    };
    let scheme = caller.scheme.to_str().unwrap_or("http");
    let ours = format!("for={quoted};proto={scheme}");
    let parts: Vec<&[u8]> = headers
        .get_all(FORWARDED)
        .iter()
        .map(HeaderValue::as_bytes)
        .filter(|part| !part.is_empty())
        .chain([ours.as_bytes()])
        .collect();
    if let Ok(chain) = HeaderValue::from_bytes(&parts.join(&b", "[..])) {
        headers.insert(FORWARDED, chain);
    }
}

/// HTTP/2 callers may split their cookies over several fields; HTTP/1 has one.
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Makes the replica's headers the ones for the caller.
pub(crate) fn prepare_response<B: Body>(
    response: &mut Response<B>,
    marks: &Marks,
    served_by: &HeaderValue,
    took: Duration,
) {
    let upgraded = (response.status() == StatusCode::SWITCHING_PROTOCOLS)
        .then(|| response.headers().get(UPGRADE).cloned())
        .flatten();
    let has_body = !response.body().is_end_stream();
    *response.version_mut() = Version::HTTP_11;
    let headers = response.headers_mut();
    remove_hop_headers(headers);
    if let Some(protocol) = upgraded {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    // As OpenFaaS has it; a type that nobody names is one that browsers guess.
    if has_body && !headers.contains_key(CONTENT_TYPE) {
        let kind = marks.kind.clone();
        headers.insert(CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("text/plain")));
    }
    headers.insert(CALL_ID, marks.call_id.clone());
    headers.insert(START_TIME, marks.start.clone());
    headers.insert(SERVED_BY, served_by.clone());
    headers.entry(DURATION).or_insert_with(|| seconds(took));
}

/// Seconds with six decimals.
fn seconds(took: Duration) -> HeaderValue {
    ink::write(format_args!("{}.{:06}", took.as_secs(), took.subsec_micros()))
        .unwrap_or(HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prepared(request: http::request::Builder) -> HeaderMap {
        let mut request = request.body(()).unwrap();
        let caller = Caller::new("[::ffff:192.0.2.1]:99".parse().unwrap(), Scheme::Https);
        let marks = Marks::of(request.headers());
        let upgrade = upgrade_asked(&request);
        prepare_request(&mut request, &caller, false, &marks, upgrade.as_ref());
        assert_eq!(request.version(), Version::HTTP_11);
        request.into_parts().0.headers
    }

    #[test]
    fn a_mapped_address_is_shown_as_what_it_is() {
        let headers = prepared(Request::get("/").header(HOST, "a.test"));
        assert_eq!(headers[FORWARDED_FOR], "192.0.2.1");
        assert_eq!(headers[FORWARDED_PROTO], "https");
        assert_eq!(headers[FORWARDED_HOST], "a.test");
    }

    #[test]
    fn a_forwarded_chain_is_continued_and_none_begun() {
        assert!(!prepared(Request::get("/")).contains_key(FORWARDED));
        let headers = prepared(Request::get("/").header(FORWARDED, "for=10.0.0.1"));
        assert_eq!(headers[FORWARDED], "for=10.0.0.1, for=192.0.2.1;proto=https");
    }

    #[test]
    fn an_empty_host_is_not_told_as_a_forwarded_one() {
        for request in [
            Request::get("/"),
            Request::get("/").header(HOST, ""),
            Request::get("/").header(HOST, "").header(FORWARDED_HOST, "evil.test"),
        ] {
            let headers = prepared(request);
            assert!(!headers.contains_key(FORWARDED_HOST));
            assert_eq!(headers[HOST], "");
        }
    }

    #[test]
    fn an_upgrade_passes_only_when_both_headers_ask_for_it() {
        let ask = |connection: &str, protocol: &str, version: Version| {
            let request = Request::get("/")
                .version(version)
                .header(CONNECTION, connection)
                .header(UPGRADE, protocol);
            let headers = prepared(request);
            (headers.contains_key(UPGRADE), headers.get(CONNECTION).cloned())
        };
        let upgrade = HeaderValue::from_static("upgrade");
        let passes = (true, Some(upgrade));
        assert_eq!(ask("keep-alive, Upgrade", "websocket", Version::HTTP_11), passes);
        assert_eq!(ask("Upgrade", "anything/1.0", Version::HTTP_11), passes);
        assert_eq!(ask("keep-alive", "websocket", Version::HTTP_11), (false, None));
        assert_eq!(ask("Upgrade, HTTP2-Settings", "h2c", Version::HTTP_11), (false, None));
        assert_eq!(ask("Upgrade", "websocket", Version::HTTP_10), (false, None));
    }

    #[test]
    fn of_two_lengths_only_the_chunks_go_on() {
        let request =
            Request::post("/").header(TRANSFER_ENCODING, "chunked").header(CONTENT_LENGTH, "5");
        let headers = prepared(request);
        assert!(!headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING));
        let request = Request::post("/").header(CONTENT_LENGTH, "5");
        assert_eq!(prepared(request)[CONTENT_LENGTH], "5");
    }

    #[test]
    fn seconds_have_six_decimals() {
        assert_eq!(seconds(Duration::from_micros(4_917)), "0.004917");
        assert_eq!(seconds(Duration::from_millis(61_500)), "61.500000");
        assert_eq!(seconds(Duration::ZERO), "0.000000");
        assert_eq!(seconds(Duration::from_micros(999_999)), "0.999999");
        assert_eq!(seconds(Duration::from_secs(1_234_567)), "1234567.000000");
    }

    proptest! {
        #[test]
        fn whatever_connection_lists_is_gone_and_the_rest_stays(
            listed in proptest::collection::vec("x-[a-m]{1,6}", 0..6),
            kept in proptest::collection::vec("y-[a-m]{1,6}", 0..6),
            junk in "[ ,;\"a-z]{0,12}",
        ) {
            let mut request = Request::get("/")
                .header(HOST, "a.test")
                .header(CONNECTION, format!("{junk},{}", listed.join(" , ")))
                .header("keep-alive", "1");
            for name in listed.iter().chain(&kept) {
                request = request.header(name.as_str(), "1");
            }
            let headers = prepared(request);
            prop_assert!(listed.iter().all(|name| !headers.contains_key(name.as_str())));
            let removed = |name: &String| junk.contains(name.as_str());
            prop_assert!(kept.iter().all(|name| headers.contains_key(name.as_str()) || removed(name)));
            prop_assert!(!headers.contains_key(CONNECTION) && !headers.contains_key(KEEP_ALIVE));
            prop_assert_eq!(&headers[HOST], "a.test");
        }
    }
}
