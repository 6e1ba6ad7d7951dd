//! A call as a message: the JSON that OpenFaaS gateways put into their queue, and ours beside it.
//!
//! The payload has the fields that OpenFaaS's queue-workers read, so that another worker can be
//! put behind the stream and another producer in front of it. What that form has no place for
//! (who asked, the exact target, whom to tell) lies in headers of the message; a message without
//! them is taken for another producer's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use async_nats::HeaderMap as MessageHeaders;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize};
use updraft_store::queue::{CallId, Client, RequestHead};

/// Ours: who asked.
const CLIENT: &str = "Updraft-Client";

/// The payload. Keys and their case are OpenFaaS's.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Payload {
    header: BTreeMap<String, Vec<String>>,
    host: String,
    body: Option<String>,
    method: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    query_string: String,
    function: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    queue_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_url: Option<CallbackUrl>,
}

/// An address, taken apart as Go does it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct CallbackUrl {
    scheme: String,
    opaque: String,
    user: Option<serde_json::Value>,
    host: String,
    path: String,
    raw_path: String,
    omit_host: bool,
    force_query: bool,
    raw_query: String,
    fragment: String,
    raw_fragment: String,
}

impl CallbackUrl {
    fn of(url: &str) -> Option<Self> {
        let url: http::Uri = url.parse().ok()?;
        Some(Self {
            scheme: url.scheme_str()?.to_owned(),
            host: url.authority()?.as_str().to_owned(),
            path: url.path().to_owned(),
            raw_query: url.query().unwrap_or_default().to_owned(),
            ..Self::default()
        })
    }

    fn to_url(&self) -> Option<String> {
        // A user and a password do not survive that form; what they protect cannot be told.
        if self.user.as_ref().is_some_and(|user| !user.is_null()) {
            return None;
        }
        let path = if self.raw_path.is_empty() { &self.path } else { &self.raw_path };
        let query = if self.raw_query.is_empty() { "" } else { "?" };
        Some(format!("{}://{}{path}{query}{}", self.scheme, self.host, self.raw_query))
    }
}

/// A call to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) id: &'a CallId,
    /// As in the URL: with the namespace unless that is the usual one.
    pub(crate) function: String,
    pub(crate) queue: &'a str,
    pub(crate) head: &'a RequestHead,
    /// Nothing when it lies elsewhere.
    pub(crate) body: Option<&'a Bytes>,
    pub(crate) callback: Option<&'a str>,
}

impl Outgoing<'_> {
    /// The payload, and what is told beside it.
    pub(crate) fn encode(&self) -> Result<(MessageHeaders, Bytes), serde_json::Error> {
        let mut header = to_map(&self.head.headers);
        header.insert("X-Call-Id".to_owned(), vec![self.id.to_string()]);
        if let Some(callback) = self.callback {
            header.insert("X-Callback-Url".to_owned(), vec![callback.to_owned()]);
        }
        let (path, query) = self.head.target.split_once('?').unwrap_or((&self.head.target, ""));
        let body = self.body.filter(|body| !body.is_empty());
        let payload = Payload {
            host: header.get("Host").and_then(|host| host.first()).cloned().unwrap_or_default(),
            header,
            body: body.map(|body| STANDARD.encode(body)),
            method: self.head.method.to_string(),
            path: if path == "/" { String::new() } else { path.to_owned() },
            query_string: query.to_owned(),
            function: self.function.clone(),
            queue_name: self.queue.to_owned(),
            callback_url: self.callback.and_then(CallbackUrl::of),
        };
        let mut headers = MessageHeaders::new();
        headers.insert(CLIENT, serde_json::to_string(&self.head.client)?);
        Ok((headers, serde_json::to_vec(&payload)?.into()))
    }
}

/// A call as it came.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) head: RequestHead,
    pub(crate) body: Bytes,
    pub(crate) queue: Option<String>,
    pub(crate) callback: Option<String>,
    /// The id that its producer gave it.
    pub(crate) id: Option<CallId>,
}

/// Reads a message, ours or another producer's.
pub(crate) fn decode(headers: &MessageHeaders, payload: &[u8]) -> Result<Incoming, String> {
    // An array would be read as the fields in their order.
    if !payload.trim_ascii_start().starts_with(b"{") {
        return Err("the message is no call: it is no JSON object".to_owned());
    }
    let payload: Payload = serde_json::from_slice(payload)
        .map_err(|error| format!("the message is no call: {error}"))?;
    let body = match &payload.body {
        None => Bytes::new(),
        Some(text) => {
            STANDARD.decode(text).map_err(|error| format!("its body is no base64: {error}"))?.into()
        }
    };
    let mut http_headers = from_map(&payload.header);
    let text = |name: &str| {
        http_headers.get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned)
    };
    let id = text("x-call-id").and_then(|id| id.parse().ok());
    let told = text("x-callback-url").filter(|url| !url.is_empty());
    let callback = told.or_else(|| payload.callback_url.as_ref()?.to_url());
    http_headers.remove("x-callback-url");
    if !payload.host.is_empty()
        && let Ok(host) = HeaderValue::try_from(&payload.host)
    {
        http_headers.entry(http::header::HOST).or_insert(host);
    }
    let path =
        if payload.path.starts_with('/') { payload.path } else { format!("/{}", payload.path) };
    let target = if payload.query_string.is_empty() {
        path
    } else {
        format!("{path}?{}", payload.query_string)
    };
    if target.parse::<http::uri::PathAndQuery>().is_err() {
        return Err("its path holds characters that no path may".to_owned());
    }
    let method = match payload.method.as_str() {
        "" => Method::POST,
        method => method.parse().map_err(|_| format!("`{method}` is no method"))?,
    };
    let client = headers.get(CLIENT).and_then(|client| serde_json::from_str(client.as_str()).ok());
    // Nobody has looked at what another producer's caller may do.
    let unknown =
        Client { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), tls: false, authorized: false };
    let client = client.unwrap_or(unknown);
    let queue = Some(payload.queue_name).filter(|queue| !queue.is_empty());
    let head = RequestHead { method, target, headers: http_headers, client };
    Ok(Incoming { head, body, queue, callback, id })
}

/// Headers as Go has them: names in canonical case, values in their order. A value may be any
/// bytes; each becomes the character of its number.
pub(crate) fn to_map(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let text = value.as_bytes().iter().map(|byte| char::from(*byte)).collect();
        map.entry(canonical(name.as_str())).or_default().push(text);
    }
    map
}

/// What [`to_map`] made. What is no header is left out.
pub(crate) fn from_map(map: &BTreeMap<String, Vec<String>>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in map {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        for value in values {
            let latin: Option<Vec<u8>> =
                value.chars().map(|sign| u8::try_from(sign).ok()).collect();
            // Another producer's text may hold more; then its bytes are meant.
            let bytes = latin.unwrap_or_else(|| value.as_bytes().to_vec());
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.append(name.clone(), value);
            }
        }
    }
    headers
}

/// `x-call-id` as `X-Call-Id`.
fn canonical(name: &str) -> String {
    let mut upper = true;
    name.chars()
        .map(|sign| {
            let shown = if upper { sign.to_ascii_uppercase() } else { sign };
            upper = sign == '-';
            shown
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn head(target: &str) -> RequestHead {
        let mut headers = HeaderMap::new();
        headers.append("x-two", HeaderValue::from_static("a"));
        headers.append("x-two", HeaderValue::from_static("b"));
        headers.append("host", HeaderValue::from_static("gateway.test"));
        headers.append("x-bytes", HeaderValue::from_bytes(b"\xc3\xa4\xff").unwrap());
        headers.append("x-call-id", HeaderValue::from_static("of-the-caller"));
        let client = Client { address: "192.0.2.1".parse().unwrap(), tls: true, authorized: true };
        RequestHead { method: Method::PUT, target: target.to_owned(), headers, client }
    }

    fn outgoing<'a>(
        id: &'a CallId,
        head: &'a RequestHead,
        body: &'a Bytes,
        callback: Option<&'a str>,
    ) -> Outgoing<'a> {
        let function = "resize".to_owned();
        Outgoing { id, function, queue: "faas-request", head, body: Some(body), callback }
    }

    #[test]
    fn the_payload_has_the_fields_that_queue_workers_read() {
        let (id, head, body) = ("one".parse().unwrap(), head("/v1/x?a=%20b"), Bytes::from("body"));
        let url = "https://example.org:8443/done?x=1";
        let (_, payload) = outgoing(&id, &head, &body, Some(url)).encode().unwrap();
        let payload: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(payload["Header"]["X-Two"], json!(["a", "b"]));
        assert_eq!(payload["Header"]["X-Call-Id"], json!(["one"]));
        assert_eq!(payload["Header"]["X-Callback-Url"], json!([url]));
        assert_eq!(
            (&payload["Host"], &payload["Body"]),
            (&json!("gateway.test"), &json!("Ym9keQ=="))
        );
        assert_eq!((&payload["Method"], &payload["Path"]), (&json!("PUT"), &json!("/v1/x")));
        assert_eq!(payload["QueryString"], "a=%20b");
        assert_eq!(
            (&payload["Function"], &payload["QueueName"]),
            (&json!("resize"), &json!("faas-request"))
        );
        assert_eq!(payload["CallbackUrl"]["Host"], "example.org:8443");
        assert_eq!(payload["CallbackUrl"]["RawQuery"], "x=1");
        let root = RequestHead { target: "/".to_owned(), ..head };
        let (_, payload) = outgoing(&id, &root, &Bytes::new(), None).encode().unwrap();
        let payload: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!((&payload["Body"], payload.get("Path")), (&Value::Null, None));
        assert_eq!((payload.get("QueryString"), payload.get("CallbackUrl")), (None, None));
    }

    #[test]
    fn a_message_of_an_openfaas_gateway_is_read_and_its_caller_is_nobody() {
        let message = json!({
            "Header": {"X-Call-Id": ["theirs"], "Content-Type": ["text/plain"], "bad name": ["x"]},
            "Host": "gateway:8080", "Body": "aGk=", "Method": "POST", "Path": "/a",
            "QueryString": "b=c", "Function": "resize", "QueueName": "slow",
            "CallbackUrl": {"Scheme": "http", "Host": "hooks:80", "Path": "/x", "RawQuery": "y",
                "User": null},
            "Annotations": {"com.openfaas.retry.attempts": "3"},
        });
        let read = decode(&MessageHeaders::new(), message.to_string().as_bytes()).unwrap();
        assert_eq!((read.head.method, read.head.target.as_str()), (Method::POST, "/a?b=c"));
        assert_eq!((&read.body[..], read.queue.as_deref()), (&b"hi"[..], Some("slow")));
        assert_eq!(read.callback.as_deref(), Some("http://hooks:80/x?y"));
        assert_eq!(read.id, "theirs".parse().ok());
        assert!(!read.head.client.authorized);
        assert_eq!(read.head.headers["host"], "gateway:8080");
        let least = decode(&MessageHeaders::new(), b"{\"Body\":null}").unwrap();
        assert_eq!((least.head.method, least.head.target.as_str()), (Method::POST, "/"));
    }

    #[test]
    fn what_is_no_call_is_told_and_harms_nothing() {
        for bad in [
            "",
            "[]",
            "{\"Body\":\"%\"}",
            "{\"Method\":\"A B\"}",
            "{\"Path\":\"/a b\"}",
            "{\"Header\":7}",
        ] {
            assert!(decode(&MessageHeaders::new(), bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_the_same(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            target in "/[a-z%2F/.]{0,20}(\\?[a-z=&]{1,10})?",
            told in any::<bool>(),
        ) {
            let (id, head, body) = ("one".parse().unwrap(), head(&target), Bytes::from(body));
            let callback = told.then_some("http://example.org/?a=b");
            let (headers, payload) = outgoing(&id, &head, &body, callback).encode().unwrap();
            let read = decode(&headers, &payload).unwrap();
            prop_assert_eq!(&read.head.target, &head.target);
            prop_assert_eq!(read.body, body);
            prop_assert_eq!(read.callback.as_deref(), callback);
            prop_assert_eq!(read.head.client, head.client);
            prop_assert_eq!(read.head.headers.get_all("x-two").iter().count(), 2);
            prop_assert_eq!(&read.head.headers["x-bytes"], &head.headers["x-bytes"]);
            prop_assert_eq!(read.id, Some(id));
        }

        #[test]
        fn any_message_is_read_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(decode(&MessageHeaders::new(), &payload));
        }
    }
}
